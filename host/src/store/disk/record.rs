//! The format of a cache file: the content, the checksums of its blocks, a record of everything else, and a footer. A
//! newer record is appended behind an older one, and the last counts. A file that is not complete is not used.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::blocks::{BLOCK, Sums, broken};
use crate::store::stored_response::{Content, Freshness, StoredResponse};
use crate::store::variant::{PurgeKind, VariantInfo};
use crate::store::vary::VaryValue;

/// The magic number of the format; it changes with the format.
const MAGIC: [u8; 8] = *b"plugway1";

/// The end of a file: magic, length of the content, length of the record, mark of a purge, checksum; each in eight bytes,
/// the numbers in little-endian order.
#[derive(Debug)]
struct Footer {
    length: u64,
    record_length: u64,
    is_purged: bool,
    sum: u64,
}

/// The length of a footer, in bytes.
const FOOTER: usize = 40;

/// The offset of the mark in a footer: outside of the checksum, because the mark is set later.
const MARK: usize = 24;

/// The maximum length of a record, in bytes; a longer one is damaged.
const MAX_RECORD_BYTES: u64 = 4 << 20;

/// Everything of a stored response except its content.
#[derive(Debug)]
pub struct RecordEntry {
    pub key: Box<[u8]>,
    /// The stored response without content.
    pub object: StoredResponse,
    pub trailers: Option<HeaderMap>,
    pub sums: Sums,
    /// The length of the content, in bytes.
    pub length: u64,
    /// The length of the file, in bytes.
    pub size: u64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    key: Vec<u8>,
    scope: u64,
    /// The fields of the request that select the variant; `None` if the request did not have the field.
    selectors: Vec<(String, Option<Vec<u8>>)>,
    uri: Option<String>,
    tags: Vec<String>,
    status: u16,
    fields: Vec<(String, Vec<u8>)>,
    trailers: Option<Vec<(String, Vec<u8>)>>,
    lifetime_ms: u64,
    initial_age_ms: u64,
    stale_while_revalidate_ms: u64,
    stale_if_error_ms: u64,
    must_revalidate: bool,
    since_ms: u64,
}

/// The content of a file.
#[derive(Clone, Copy)]
pub struct WrittenContent<'a> {
    /// The length in bytes.
    pub length: u64,
    /// The checksums of the blocks.
    pub sums: &'a Sums,
}

/// Returns the bytes behind the content of a new file: the checksums and the first record.
pub fn tail(
    key: &[u8],
    object: &StoredResponse,
    trailers: Option<&HeaderMap>,
    content: WrittenContent<'_>,
    seed: u64,
) -> io::Result<Vec<u8>> {
    let mut tail = content.sums.bytes();
    tail.extend(record(key, object, trailers, content, seed)?);
    Ok(tail)
}

/// Returns a record with its footer, to be appended to a file: of a response whose content has this length and these
/// checksums.
pub fn record(
    key: &[u8],
    object: &StoredResponse,
    trailers: Option<&HeaderMap>,
    content: WrittenContent<'_>,
    seed: u64,
) -> io::Result<Vec<u8>> {
    let WrittenContent { length, sums } = content;
    let variant_info = &object.variant;
    let head = object.head();
    let record = Record {
        key: key.into(),
        scope: variant_info.scope,
        selectors: variant_info.selectors.values().map(|(name, value)| (name.into(), value.map(Into::into))).collect(),
        uri: variant_info.uri.as_deref().map(Into::into),
        tags: variant_info.tags.iter().map(|tag| tag.to_string()).collect(),
        status: object.status.as_u16(),
        fields: encoded(&head.headers),
        trailers: trailers.map(encoded),
        lifetime_ms: object.freshness.lifetime_ms,
        initial_age_ms: object.freshness.initial_age_ms,
        stale_while_revalidate_ms: object.freshness.stale_while_revalidate_ms,
        stale_if_error_ms: object.freshness.stale_if_error_ms,
        must_revalidate: object.freshness.must_revalidate,
        since_ms: object.since_ms,
    };
    let mut bytes = postcard::to_stdvec(&record).map_err(io::Error::other)?;
    if bytes.len() as u64 > MAX_RECORD_BYTES {
        return Err(io::Error::new(ErrorKind::InvalidInput, "its head is too long for a file"));
    }
    let mut footer = Footer { length, record_length: bytes.len() as u64, is_purged: variant_info.is_purged(), sum: 0 };
    footer.sum = checksum(sums, &bytes, &footer, seed);
    bytes.extend(footer.bytes());
    Ok(bytes)
}

/// Reads the record at the end of a file that is not being written.
pub fn read(file: &File, seed: u64) -> io::Result<RecordEntry> {
    read_at(file, seed, file.metadata()?.len())
}

/// Reads the record that ends at `size`, which was the end of the file when the record was written. Behind it another one may
/// be written at the moment.
pub fn read_at(file: &File, seed: u64, size: u64) -> io::Result<RecordEntry> {
    let footer_at = size.checked_sub(FOOTER as u64).ok_or_else(broken)?;
    let mut footer = [0; FOOTER];
    file.read_exact_at(&mut footer, footer_at)?;
    let footer = Footer::parse(&footer).ok_or_else(broken)?;
    let Footer { length, record_length, is_purged, sum } = footer;
    let record_at = footer_at.checked_sub(record_length).filter(|_| record_length <= MAX_RECORD_BYTES);
    let blocks = length.div_ceil(BLOCK as u64);
    let record_at = record_at.filter(|at| length.saturating_add(blocks * 8) <= *at).ok_or_else(broken)?;
    let (mut sums, mut record) = (vec![0; blocks as usize * 8], vec![0; record_length as usize]);
    file.read_exact_at(&mut sums, length)?;
    file.read_exact_at(&mut record, record_at)?;
    let sums = Sums::from_blocks(sums.chunks_exact(8).map(number).collect());
    if checksum(&sums, &record, &footer, seed) != sum {
        return Err(broken());
    }
    let record: Record = postcard::from_bytes(&record).map_err(|_| broken())?;
    record.into_entry(is_purged, sums, length, size).ok_or_else(broken)
}

/// Marks a file as purged softly.
pub fn mark(file: &File) -> io::Result<()> {
    let footer_at = file.metadata()?.len().checked_sub(FOOTER as u64).ok_or_else(broken)?;
    file.write_all_at(&[1], footer_at + MARK as u64)
}

impl Footer {
    fn bytes(&self) -> [u8; FOOTER] {
        let mut bytes = [0; FOOTER];
        bytes[..MARK].copy_from_slice(&self.checksum_input());
        bytes[MARK] = u8::from(self.is_purged);
        bytes[32..].copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }

    /// Returns the bytes of the footer that the checksum covers.
    fn checksum_input(&self) -> [u8; MARK] {
        let mut bytes = [0; MARK];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..].copy_from_slice(&self.record_length.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; FOOTER]) -> Option<Self> {
        let (length, record_length) = (number(&bytes[8..16]), number(&bytes[16..24]));
        let footer = Footer { length, record_length, is_purged: bytes[MARK] != 0, sum: number(&bytes[32..]) };
        (bytes[..8] == MAGIC).then_some(footer)
    }
}

impl Record {
    fn into_entry(self, is_purged: bool, sums: Sums, length: u64, size: u64) -> Option<RecordEntry> {
        let name = |name: &String| HeaderName::from_bytes(name.as_bytes()).ok();
        let selectors = self.selectors.iter().map(|(known, value)| Some((name(known)?, value.clone())));
        let selectors = VaryValue::from_values(selectors.collect::<Option<Vec<_>>>()?);
        let tags = self.tags.into_iter().map(String::into_boxed_str).collect();
        let variant_info = VariantInfo::new(self.scope, selectors, self.uri.map(Into::into), tags);
        if is_purged {
            variant_info.purge(PurgeKind::Soft);
        }
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = StatusCode::from_u16(self.status).ok()?;
        head.headers = decoded(&self.fields)?;
        let rules = Freshness {
            lifetime_ms: self.lifetime_ms,
            initial_age_ms: self.initial_age_ms,
            stale_while_revalidate_ms: self.stale_while_revalidate_ms,
            stale_if_error_ms: self.stale_if_error_ms,
            must_revalidate: self.must_revalidate,
        };
        let object = StoredResponse::new(variant_info, &head, Content::Whole(Default::default()), rules, self.since_ms);
        let trailers = match &self.trailers {
            Some(trailers) => Some(decoded(trailers)?),
            None => None,
        };
        Some(RecordEntry { key: self.key.into(), object, trailers, sums, length, size })
    }
}

fn encoded(fields: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    fields.iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().into())).collect()
}

fn decoded(fields: &[(String, Vec<u8>)]) -> Option<HeaderMap> {
    // A file may say anything.
    let mut map = HeaderMap::try_with_capacity(fields.len()).ok()?;
    for (name, value) in fields {
        map.try_append(HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?).ok()?;
    }
    Some(map)
}

/// Computes the checksum over everything that decides what is served; the content has checksums of its own. Without the
/// seed, an origin can't send content whose end looks like a record if a file is cut there.
fn checksum(sums: &Sums, record: &[u8], footer: &Footer, seed: u64) -> u64 {
    let mut sum = Xxh3::with_seed(seed);
    sum.update(&sums.bytes());
    sum.update(record);
    sum.update(&footer.checksum_input());
    sum.digest()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bytes::Bytes;

    use super::*;

    fn object(content: &[u8]) -> StoredResponse {
        let (mut head, ()) = Response::new(()).into_parts();
        head.headers.append("etag", HeaderValue::from_static("\"a\""));
        head.headers.append("link", HeaderValue::from_static("a"));
        head.headers.append("link", HeaderValue::from_bytes(b"\xff").unwrap());
        let request = HeaderMap::from_iter([(HeaderName::from_static("x-a"), HeaderValue::from_static("1"))]);
        let names = ["x-a", "x-b"].map(HeaderName::from_static);
        let selectors = VaryValue::from_request(names.into_iter(), &request);
        let variant_info = VariantInfo::new(7, selectors, Some("http://a/".into()), ["t".into()].into());
        let rules = Freshness { lifetime_ms: 5, must_revalidate: true, ..Freshness::default() };
        StoredResponse::new(variant_info, &head, Content::Whole(Bytes::copy_from_slice(content)), rules, 3)
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let sums = Sums::of([content].into_iter());
        let content_of = WrittenContent { length: content.len() as u64, sums: &sums };
        file.write_all(&tail(b"key", &object(content), None, content_of, 5).unwrap()).unwrap();
        file
    }

    #[test]
    fn written_record_is_read() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK * 2 + 1] {
            let content: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let (file, object) = (file(&content), object(&content));
            let entry = read(&file, 5).unwrap();
            assert!(read(&file, 6).is_err(), "another's");
            assert_eq!(
                (&*entry.key, entry.length, entry.size),
                (&b"key"[..], length as u64, file.metadata().unwrap().len())
            );
            assert!(entry.object.variant.replaces(&object.variant) && !entry.object.variant.is_purged());
            assert_eq!(
                (&entry.object.variant.uri, &entry.object.variant.tags),
                (&object.variant.uri, &object.variant.tags)
            );
            assert_eq!(entry.object.head().headers, object.head().headers);
            assert_eq!((entry.object.freshness, entry.object.since_ms), (object.freshness, object.since_ms));
            assert!(content.chunks(BLOCK).enumerate().all(|(block_index, block)| entry.sums.holds(block_index, block)));
            mark(&file).unwrap();
            assert!(read(&file, 5).unwrap().object.variant.is_purged());
        }
    }

    #[test]
    fn the_last_record_counts() {
        let mut file = file(b"content");
        let (mut newer, sums) = (object(b"content"), read(&file, 5).unwrap().sums);
        newer.freshness.lifetime_ms = 9;
        file.write_all(&record(b"key", &newer, None, WrittenContent { length: 7, sums: &sums }, 5).unwrap()).unwrap();
        let entry = read(&file, 5).unwrap();
        assert_eq!((entry.object.freshness.lifetime_ms, entry.length), (9, 7));
        assert!(entry.sums.holds(0, b"content") && !entry.sums.holds(0, b"c0ntent") && !entry.sums.holds(1, b""));
    }

    /// A damaged file is read as it was written, or not at all.
    #[test]
    fn damaged_record_is_not_read() {
        let content = b"content";
        let whole = {
            let file = file(content);
            let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let read_of = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            read(&file, 5)
        };
        for length in 0..whole.len() {
            assert!(read_of(&whole[..length]).is_err(), "cut off at {length}");
        }
        let mark = whole.len() - FOOTER + MARK;
        for offset in content.len()..whole.len() {
            let mut bytes = whole.clone();
            bytes[offset] ^= 0x41;
            assert!(read_of(&bytes).is_err() || (mark..mark + 8).contains(&offset), "byte {offset}");
        }
        let mut zeros = whole.clone();
        zeros[content.len()..].fill(0);
        assert!(read_of(&zeros).is_err());
        assert!(read_of(&[whole, vec![0; 100]].concat()).is_err());
    }
}
