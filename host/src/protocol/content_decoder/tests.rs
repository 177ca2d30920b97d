use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

use super::*;

const WIDE: DecodingBounds = DecodingBounds { ratio: 1 << 20, bytes: 1 << 40 };

/// Text that codings shorten, and whose copies are at many distances.
fn text(bytes: usize) -> Vec<u8> {
    (0..)
        .flat_map(|line: u64| format!("{} the cat {} sat\n", line * 7919 % 1009, line % 13).into_bytes())
        .take(bytes)
        .collect()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zlib(content: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(content: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn brotli(content: &[u8]) -> Vec<u8> {
    let mut encoder = ::brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
    encoder.write_all(content).unwrap();
    encoder.into_inner()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    let mut coded = vec![0; zstd_safe::compress_bound(content.len())];
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(zstd_safe::CParameter::ChecksumFlag(true)).unwrap();
    let length = context.compress2(&mut coded[..], content).unwrap();
    coded.truncate(length);
    coded
}

/// Each coding with a sample of it.
fn samples(content: &[u8]) -> Vec<(&'static str, KnownCoding, Vec<u8>)> {
    let two = [gzip(&content[..content.len() / 2]), gzip(&content[content.len() / 2..])].concat();
    let frames = [&zstd(&content[..content.len() / 2])[..], SKIPPABLE, &zstd(&content[content.len() / 2..])].concat();
    vec![
        ("gzip", KnownCoding::Gzip, gzip(content)),
        ("gzip of two members", KnownCoding::Gzip, two),
        ("zlib", KnownCoding::Deflate, zlib(content)),
        ("raw deflate", KnownCoding::Deflate, raw_deflate(content)),
        ("br", KnownCoding::Brotli, brotli(content)),
        ("zstd", KnownCoding::Zstd, zstd(content)),
        ("zstd of two frames", KnownCoding::Zstd, frames),
    ]
}

/// A skippable frame (RFC 8878 §3.1.2) of two bytes.
const SKIPPABLE: &[u8] = b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab";

/// Decodes chunks to their end. Returns the content; its pieces are bounded.
fn decode(codings: CodingList, bounds: DecodingBounds, chunks: &[&[u8]]) -> Result<Vec<u8>, DecodingError> {
    let (mut decoder, mut content) = (ContentDecoder::new(codings, bounds), Vec::new());
    let mut chunks = chunks.iter();
    loop {
        match decoder.step()? {
            DecodingStep::Content(piece) => {
                assert!(!piece.is_empty() && piece.len() <= MAX_PIECE);
                content.extend_from_slice(&piece);
            }
            DecodingStep::Progress => {}
            DecodingStep::Starved => match chunks.next() {
                Some(chunk) => decoder.push(Bytes::copy_from_slice(chunk)),
                None => decoder.end(),
            },
            DecodingStep::End => return Ok(content),
        }
    }
}

fn list(codings: &[KnownCoding]) -> CodingList {
    let names: Vec<&str> = codings.iter().map(|coding| coding.name()).collect();
    let value = http::HeaderValue::from_str(&names.join(", ")).unwrap();
    match crate::protocol::coded_content::coded(&http::HeaderMap::from_iter([(http::header::CONTENT_ENCODING, value)]))
    {
        crate::protocol::coded_content::Coded::Known(list) => list,
        other => panic!("{other:?}"),
    }
}

#[test]
fn content_cut_at_every_byte_is_the_same() {
    let content = text(3000);
    for (name, coding, coded) in samples(&content) {
        for cut in 0..=coded.len() {
            let (first, second) = coded.split_at(cut);
            assert_eq!(decode(coding.into(), WIDE, &[first, second]).as_ref(), Ok(&content), "{name} at {cut}");
        }
        let bytes: Vec<&[u8]> = coded.chunks(1).collect();
        assert_eq!(decode(coding.into(), WIDE, &bytes).as_ref(), Ok(&content), "{name} byte by byte");
    }
}

#[test]
fn long_content_is_decoded_in_bounded_pieces() {
    let content = text(3 << 20);
    for (name, coding, coded) in samples(&content) {
        let decoded = decode(coding.into(), WIDE, &[&coded]);
        assert!(decoded.as_ref() == Ok(&content), "{name}");
    }
}

#[test]
fn codings_are_undone_in_the_order_opposite_to_that_of_the_list() {
    let content = text(200_000);
    let coded = brotli(&zstd(&gzip(&content)));
    let codings = list(&[KnownCoding::Gzip, KnownCoding::Zstd, KnownCoding::Brotli]);
    let chunks: Vec<&[u8]> = coded.chunks(100).collect();
    assert!(decode(codings, WIDE, &chunks).as_ref() == Ok(&content));
    assert!(decode(list(&[KnownCoding::Gzip, KnownCoding::Gzip]), WIDE, &[&gzip(&gzip(&content))]) == Ok(content));
}

#[test]
fn truncated_content_is_an_error_at_every_length() {
    let content = text(2000);
    for (name, coding, coded) in samples(&content) {
        assert_eq!(decode(coding.into(), WIDE, &[]), Ok(Vec::new()), "{name}: no content at all");
        for length in 1..coded.len() {
            let decoded = decode(coding.into(), WIDE, &[&coded[..length]]);
            // The first of two members, or frames, is complete by itself.
            if name.contains("two") && decoded.as_ref().is_ok_and(|decoded| *decoded == content[..1000]) {
                continue;
            }
            assert_eq!(decoded, Err(DecodingError::Truncated(coding)), "{name} of {length} bytes");
        }
    }
}

#[test]
fn bytes_behind_the_end_are_an_error() {
    for (name, coding, coded) in samples(&text(2000)) {
        for trailing in [&b"x"[..], b"\0\0\0\0\0\0\0\0", b"\0\0x", b"GET / HTTP/1.1"] {
            if coding == KnownCoding::Gzip && trailing.iter().all(|byte| *byte == 0) {
                continue;
            }
            let trailing_error = Err(DecodingError::Trailing(coding));
            assert_eq!(decode(coding.into(), WIDE, &[&coded, trailing]), trailing_error, "{name}");
            assert_eq!(decode(coding.into(), WIDE, &[&[&coded, trailing].concat()]), trailing_error, "{name} at once");
        }
    }
}

#[test]
fn zeros_behind_gzip_are_padding() {
    let content = text(2000);
    let (coded, zeros) = (gzip(&content), vec![0; 100_000]);
    assert!(decode(KnownCoding::Gzip.into(), WIDE, &[&coded, &zeros[..3], &zeros]) == Ok(content.clone()));
    assert!(decode(KnownCoding::Gzip.into(), WIDE, &[&[&coded[..], &zeros].concat()]) == Ok(content.clone()));
    let member_behind = decode(KnownCoding::Gzip.into(), WIDE, &[&coded, &zeros, &coded]);
    assert_eq!(member_behind, Err(DecodingError::Trailing(KnownCoding::Gzip)), "no member follows padding");
    assert_eq!(decode(KnownCoding::Gzip.into(), WIDE, &[&zeros]), Err(DecodingError::Corrupt(KnownCoding::Gzip)));
}

#[test]
fn changed_bytes_are_an_error_and_never_other_content() {
    let content = text(2000);
    for (name, coding, coded) in samples(&content) {
        // Without a checksum in the format, a change may yield other content.
        let is_checked = !matches!(name, "raw deflate" | "br");
        for place in 0..coded.len() {
            let mut changed = coded.clone();
            changed[place] ^= 0x41;
            match decode(coding.into(), WIDE, &[&changed]) {
                Ok(decoded) => assert!(decoded == content || !is_checked, "{name} with byte {place} changed"),
                Err(DecodingError::Ratio(_) | DecodingError::Size(_)) => panic!("{name} with byte {place} changed"),
                Err(_) => {}
            }
        }
    }
    for coding in [KnownCoding::Gzip, KnownCoding::Deflate, KnownCoding::Zstd] {
        assert_eq!(decode(coding.into(), WIDE, &[b"<html>plain text</html>"]), Err(DecodingError::Corrupt(coding)));
    }
}

/// Passes ten gigabytes of zeros, coded, to a decoder. Returns the error that ends it, with the bytes decoded before.
fn explode(bounds: DecodingBounds) -> (DecodingError, u64) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let mut decoder = ContentDecoder::new(KnownCoding::Gzip.into(), bounds);
    let (zeros, mut left, mut decoded) = (vec![0; 1 << 20], 10_u64 << 10, 0);
    loop {
        match decoder.step() {
            Ok(DecodingStep::Content(piece)) => decoded += piece.len() as u64,
            Ok(DecodingStep::Progress) => {}
            Ok(DecodingStep::Starved) if left > 0 => {
                encoder.write_all(&zeros).unwrap();
                left -= 1;
                decoder.push(std::mem::take(encoder.get_mut()).into());
            }
            Ok(step) => panic!("{step:?} after {decoded}"),
            Err(error) => return (error, decoded),
        }
        assert!(decoder.memory() < 64 << 10, "{}", decoder.memory());
    }
}

#[test]
fn bombs_end_at_the_ratio_and_at_the_size() {
    let (error, decoded) = explode(DecodingBounds { ratio: 200, bytes: 1 << 40 });
    assert_eq!(error, DecodingError::Ratio(200));
    assert!(decoded <= 16 << 20, "{decoded}");
    let (error, decoded) = explode(DecodingBounds { ratio: 10_000, bytes: 64 << 20 });
    assert_eq!(error, DecodingError::Size(64 << 20));
    assert!(decoded <= 64 << 20, "{decoded}");
}

#[test]
fn bombs_within_bombs_end_too() {
    let bounds = DecodingBounds { ratio: 200, bytes: 1 << 40 };
    let twice = gzip(&gzip(&vec![0; 64 << 20]));
    let codings = list(&[KnownCoding::Gzip, KnownCoding::Gzip]);
    assert_eq!(decode(codings, bounds, &[&twice]), Err(DecodingError::Ratio(200)));
    // Empty members decode to nothing: the outer coding makes very many of them.
    let nothing = gzip(&gzip(b"").repeat(1 << 20));
    assert_eq!(decode(codings, bounds, &[&nothing]), Err(DecodingError::Ratio(200)));
    for coded in [brotli(&vec![0; 64 << 20]), zstd(&vec![0; 64 << 20])] {
        let coding = if coded.starts_with(b"\x28\xb5\x2f\xfd") { KnownCoding::Zstd } else { KnownCoding::Brotli };
        assert_eq!(decode(coding.into(), bounds, &[&coded]), Err(DecodingError::Ratio(200)));
    }
    // A short page of repetitions is none.
    let page = vec![b' '; FREE_BYTES as usize];
    assert!(decode(KnownCoding::Gzip.into(), bounds, &[&gzip(&page)]) == Ok(page));
}

#[test]
fn windows_are_bounded() {
    // A frame header with a window of 16 MiB (RFC 8878 §3.1.1.1.2), and one of 8 MiB.
    let frame = |exponent: u8| [b"\x28\xb5\x2f\xfd\x00", &[exponent << 3][..], b"\x01\x00\x00"].concat();
    assert_eq!(decode(KnownCoding::Zstd.into(), WIDE, &[&frame(14)]), Err(DecodingError::Window(KnownCoding::Zstd)));
    assert_eq!(decode(KnownCoding::Zstd.into(), WIDE, &[&frame(21)]), Err(DecodingError::Window(KnownCoding::Zstd)));
    assert_eq!(decode(KnownCoding::Zstd.into(), WIDE, &[&frame(13)]), Ok(Vec::new()));
    let large = [0x11, 30, 3];
    assert_eq!(decode(KnownCoding::Brotli.into(), WIDE, &[&large]), Err(DecodingError::Window(KnownCoding::Brotli)));
}

/// Returns the most memory that a decoder of coded content reports.
fn most_memory(coding: KnownCoding, coded: &[u8]) -> usize {
    let (mut decoder, mut most) = (ContentDecoder::new(coding.into(), WIDE), 0);
    let mut chunks = coded.chunks(4096);
    loop {
        match decoder.step().unwrap() {
            DecodingStep::Starved => match chunks.next() {
                Some(chunk) => decoder.push(Bytes::copy_from_slice(chunk)),
                None => decoder.end(),
            },
            DecodingStep::End => return most,
            DecodingStep::Content(_) | DecodingStep::Progress => most = most.max(decoder.memory()),
        }
    }
}

#[test]
fn memory_is_reported_as_it_is_used() {
    let (short, long) = (text(10_000), text(24 << 20));
    for (coding, coded, range) in [
        (KnownCoding::Brotli, brotli(&short), 4 << 10..256 << 10),
        (KnownCoding::Brotli, brotli(&long), 4 << 20..9 << 20),
        (KnownCoding::Zstd, zstd(&short), 64 << 10..1 << 20),
        (KnownCoding::Zstd, zstd(&long), 1 << 20..9 << 20),
        (KnownCoding::Gzip, gzip(&long), MAX_PIECE / 2..MAX_PIECE),
    ] {
        let memory = most_memory(coding, &coded);
        assert!(range.contains(&memory), "{coding}: {memory} bytes");
    }
}
