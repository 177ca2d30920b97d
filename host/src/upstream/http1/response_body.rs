//! The body of a response of an HTTP/1 endpoint (RFC 9112 §6, §7.1): a state that takes its content off the bytes that were
//! read, without a copy.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use memchr::memchr;

use super::body_length::BodyLength;
use super::head_search::HeadSearch;
use crate::upstream::response_head_limits::ResponseHeadLimits;

/// A body that is being read.
#[derive(Debug)]
pub struct ResponseBodyDecoder {
    state: State,
    limits: ResponseHeadLimits,
    /// The bytes of chunk extensions and of their lines that may still come.
    extensions: usize,
    search: HeadSearch,
    /// Trailers that were read together with the last of the content.
    trailers: Option<HeaderMap>,
    /// An error that was found behind content that had to be returned first.
    failed: Option<DecodeError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The decoder is in content, which has this number of bytes left.
    Content(u64),
    UntilClose,
    ChunkSize,
    /// The decoder is in a chunk, which has this number of bytes left.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Over,
}

/// The reason for which a body can't be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the endpoint closed the connection within its response")]
    Incomplete,
    #[error("the response has a malformed chunk")]
    Chunk,
    #[error("the response has malformed trailers")]
    Trailers,
    #[error("the response has more chunk extensions than are read")]
    Extensions,
    #[error("the response has larger trailers than a head may be")]
    TooLarge,
}

/// The maximum number of bytes of chunk extensions in a body: nothing uses them.
const MAX_EXTENSIONS: usize = 16 << 10;

/// The length up to which chunks that have arrived together are joined, in bytes: a frame costs more than copying them.
const SMALL: usize = 1 << 10;

/// The maximum length of joined chunks, in bytes, and their maximum number: the worker does nothing else while it joins
/// them.
const JOINED: usize = 8 << 10;
const JOINED_CHUNKS: usize = 256;

impl ResponseBodyDecoder {
    /// Returns the decoder of a body whose trailers obey the limits of a head.
    pub fn new(length: BodyLength, limits: ResponseHeadLimits) -> Self {
        let state = match length {
            BodyLength::None => State::Over,
            BodyLength::Known(length) => State::Content(length),
            BodyLength::Chunked => State::ChunkSize,
            BodyLength::UntilClose => State::UntilClose,
        };
        let search = HeadSearch::default();
        ResponseBodyDecoder { state, limits, extensions: MAX_EXTENSIONS, search, trailers: None, failed: None }
    }

    /// Returns the next frame; `None` if the body is over or if more bytes are needed.
    pub fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame<Bytes>>, DecodeError> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        self.skip_framing(bytes)?;
        let content = match &mut self.state {
            State::Content(left) | State::Chunk(left) if !bytes.is_empty() => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= length as u64;
                bytes.split_to(length).freeze()
            }
            State::UntilClose if !bytes.is_empty() => bytes.split().freeze(),
            State::Over => return Ok(self.trailers.take().map(Frame::trailers)),
            _ => return Ok(None),
        };
        // The end is known at once if it has arrived.
        self.failed = self.skip_framing(bytes).err();
        Ok(Some(Frame::data(self.joined(content, bytes))))
    }

    /// Notes that the endpoint has closed the connection.
    pub fn close(&mut self) -> Result<(), DecodeError> {
        match self.state {
            State::UntilClose => self.state = State::Over,
            State::Over => {}
            _ => return Err(DecodeError::Incomplete),
        }
        Ok(())
    }

    /// Whether all of the body has been returned.
    pub fn is_over(&self) -> bool {
        self.state == State::Over && self.trailers.is_none()
    }

    /// Returns how many bytes the body still needs, at most `most`.
    pub fn wanted(&self, most: usize) -> usize {
        match self.state {
            State::Content(left) => usize::try_from(left).unwrap_or(usize::MAX).min(most),
            _ => most,
        }
    }

    /// Returns the length of the rest of the body.
    pub fn size_hint(&self) -> SizeHint {
        match self.state {
            State::Content(left) => SizeHint::with_exact(left),
            State::Over => SizeHint::with_exact(0),
            _ => SizeHint::new(),
        }
    }

    /// Returns content joined with the small chunks behind it that have arrived too. Each frame has a cost, and the
    /// endpoint decides how small its chunks are.
    fn joined(&mut self, content: Bytes, bytes: &mut BytesMut) -> Bytes {
        if content.len() > SMALL || self.small_chunk(bytes).is_none() {
            return content;
        }
        let mut joined = BytesMut::with_capacity(SMALL.min(content.len() + bytes.len()));
        joined.extend_from_slice(&content);
        for _ in 1..JOINED_CHUNKS {
            let Some(length) = self.small_chunk(bytes).filter(|_| joined.len() <= JOINED - SMALL) else { break };
            if let State::Chunk(left) = &mut self.state {
                *left -= length as u64;
            }
            joined.extend_from_slice(&bytes[..length]);
            bytes.advance(length);
            self.failed = self.skip_framing(bytes).err();
        }
        joined.freeze()
    }

    /// Returns the length of a small chunk at the beginning of the bytes; `None` if there is none.
    fn small_chunk(&self, bytes: &BytesMut) -> Option<usize> {
        let State::Chunk(left) = self.state else { return None };
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        (self.failed.is_none() && (1..=SMALL).contains(&length)).then_some(length)
    }

    /// Removes lines of chunks and trailers from the bytes, up to content or to the end.
    fn skip_framing(&mut self, bytes: &mut BytesMut) -> Result<(), DecodeError> {
        loop {
            self.state = match self.state {
                State::Content(0) => State::Over,
                State::Chunk(0) => State::ChunkEnd,
                State::ChunkSize => match self.chunk_size(bytes)? {
                    None => return Ok(()),
                    Some(0) => State::Trailers,
                    Some(size) => State::Chunk(size),
                },
                State::ChunkEnd => match bytes[..] {
                    [b'\r', b'\n', ..] => {
                        bytes.advance(2);
                        State::ChunkSize
                    }
                    [] | [b'\r'] => return Ok(()),
                    _ => return Err(DecodeError::Chunk),
                },
                State::Trailers => match self.take_trailers(bytes)? {
                    false => return Ok(()),
                    true => State::Over,
                },
                State::Content(_) | State::Chunk(_) | State::UntilClose | State::Over => return Ok(()),
            };
        }
    }

    /// Removes the line before a chunk from the bytes, and returns the chunk's size; `None` if the line has not arrived
    /// completely.
    fn chunk_size(&mut self, bytes: &mut BytesMut) -> Result<Option<u64>, DecodeError> {
        /// The digits of the largest size.
        const MAX_DIGITS: usize = 16;
        /// The digits, and the end of the line.
        const USUAL_LINE: usize = MAX_DIGITS + 2;
        let Some(end) = memchr(b'\n', bytes) else {
            return if bytes.len() > USUAL_LINE + self.extensions { Err(DecodeError::Extensions) } else { Ok(None) };
        };
        let line = bytes[..end].strip_suffix(b"\r").ok_or(DecodeError::Chunk)?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (number, rest) = line.split_at(digits);
        let extension = rest.trim_ascii_start();
        let zeros = number.iter().take_while(|digit| **digit == b'0').count();
        if digits == 0
            || digits - zeros > MAX_DIGITS
            || !matches!(extension, [] | [b';', ..])
            || rest.iter().any(is_control)
        {
            return Err(DecodeError::Chunk);
        }
        // Leading zeros beyond the usual length say as little as extensions.
        let idle = rest.len() + digits.saturating_sub(MAX_DIGITS);
        self.extensions = self.extensions.checked_sub(idle).ok_or(DecodeError::Extensions)?;
        let digits = number.iter().filter_map(|digit| char::from(*digit).to_digit(16));
        let size = digits.fold(0, |size, digit| size << 4 | u64::from(digit));
        bytes.advance(end + 1);
        Ok(Some(size))
    }

    /// Removes the trailers from the bytes. Returns `false` if they have not arrived completely.
    fn take_trailers(&mut self, bytes: &mut BytesMut) -> Result<bool, DecodeError> {
        if bytes.starts_with(b"\r\n") {
            bytes.advance(2);
            return Ok(true);
        }
        let Some(length) = self.search.length(bytes).filter(|length| *length <= self.limits.bytes) else {
            return if bytes.len() > self.limits.bytes { Err(DecodeError::TooLarge) } else { Ok(false) };
        };
        let block = bytes.split_to(length).freeze();
        let mut room = vec![httparse::EMPTY_HEADER; self.limits.fields];
        let parsed = match httparse::parse_headers(&block, &mut room) {
            Ok(httparse::Status::Complete((_, parsed))) => parsed,
            Err(httparse::Error::TooManyHeaders) => return Err(DecodeError::TooLarge),
            _ => return Err(DecodeError::Trailers),
        };
        let mut trailers = HeaderMap::with_capacity(parsed.len());
        for field in parsed {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| DecodeError::Trailers)?;
            let value = HeaderValue::from_maybe_shared(block.slice_ref(field.value));
            trailers.append(name, value.map_err(|_| DecodeError::Trailers)?);
        }
        self.trailers = Some(trailers);
        Ok(true)
    }
}

fn is_control(byte: &u8) -> bool {
    byte.is_ascii_control() && *byte != b'\t'
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ResponseHeadLimits = ResponseHeadLimits { bytes: 100, fields: 5 };

    /// The content, trailers and result of a body whose bytes arrive in parts, and the bytes behind it.
    fn decode(length: BodyLength, parts: &[&[u8]]) -> (Vec<u8>, Vec<String>, Result<bool, DecodeError>, Vec<u8>) {
        let mut decoder = ResponseBodyDecoder::new(length, LIMITS);
        let (mut bytes, mut content, mut trailers) = (BytesMut::new(), Vec::new(), Vec::new());
        for part in parts {
            bytes.extend_from_slice(part);
            loop {
                match decoder.decode(&mut bytes) {
                    Ok(Some(frame)) => match frame.into_data() {
                        Ok(data) => content.extend_from_slice(&data),
                        Err(frame) => trailers.extend(
                            frame.into_trailers().unwrap().iter().map(|(name, value)| format!("{name}={value:?}")),
                        ),
                    },
                    Ok(None) => break,
                    Err(error) => return (content, trailers, Err(error), bytes.to_vec()),
                }
            }
        }
        (content, trailers, Ok(decoder.is_over()), bytes.to_vec())
    }

    const BODIES: [(BodyLength, &[u8], &[u8]); 8] = [
        (BodyLength::None, b"", b""),
        (BodyLength::Known(5), b"hello", b"hello"),
        (BodyLength::Chunked, b"0\r\n\r\n", b""),
        (BodyLength::Chunked, b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (BodyLength::Chunked, b"002;a=\"b\"\r\nhe\r\n3 \r\nllo\r\n00\r\n\r\n", b"hello"),
        (BodyLength::Chunked, b"5\r\nhello\r\n0\r\nX: a\r\ny:\r\n\r\n", b"hello"),
        (BodyLength::Chunked, b"00000000000000005\r\nhello\r\n000000000000000000\r\n\r\n", b"hello"),
        (BodyLength::Chunked, b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n", b"hello0123456789"),
    ];

    #[test]
    fn a_body_cut_anywhere_gives_the_same_result() {
        for (length, text, content) in BODIES {
            let text = [text, b"next"].concat();
            let whole = decode(length, &[&text]);
            assert_eq!((&whole.0[..], &whole.2, &whole.3[..]), (content, &Ok(true), &b"next"[..]));
            for cut in 0..=text.len() {
                assert_eq!(decode(length, &[&text[..cut], &text[cut..]]), whole, "{length:?} {cut}");
            }
            let bytes: Vec<&[u8]> = text.chunks(1).collect();
            assert_eq!(decode(length, &bytes), whole, "{length:?} byte by byte");
        }
    }

    #[test]
    fn small_chunks_that_arrive_together_are_few_frames() {
        let (tiny, large) = (b"1\r\nx\r\n".repeat(1_000), [&b"5000\r\n"[..], &[b'y'; 0x5000], b"\r\n"].concat());
        let mut bytes = BytesMut::from(&[&tiny[..], &large, &tiny[..6], b"0\r\n\r\nnext"].concat()[..]);
        let mut decoder = ResponseBodyDecoder::new(BodyLength::Chunked, LIMITS);
        let mut lengths = Vec::new();
        while let Some(frame) = decoder.decode(&mut bytes).unwrap() {
            lengths.push(frame.into_data().unwrap().len());
        }
        assert!(decoder.is_over() && bytes[..] == b"next"[..]);
        assert_eq!(lengths, [256, 256, 256, 232, 0x5000, 1]);
    }

    #[test]
    fn the_end_is_known_with_the_last_of_the_content() {
        for (length, text, _) in &BODIES[1..5] {
            let mut decoder = ResponseBodyDecoder::new(*length, LIMITS);
            let mut bytes = BytesMut::from(*text);
            while !bytes.is_empty() {
                assert!(decoder.decode(&mut bytes).unwrap().is_some_and(|frame| frame.is_data()) || bytes.is_empty());
            }
            assert!(decoder.is_over(), "{length:?}");
        }
        let mut decoder = ResponseBodyDecoder::new(BodyLength::UntilClose, LIMITS);
        assert!(decoder.decode(&mut BytesMut::from(&b"abc"[..])).unwrap().is_some() && !decoder.is_over());
        assert_eq!((decoder.close(), decoder.is_over()), (Ok(()), true));
    }

    #[test]
    fn malformed_bodies_are_errors_behind_their_good_content() {
        let long = [b"5\r\nhello\r\n1;".to_vec(), vec![b'x'; MAX_EXTENSIONS + 40]].concat();
        let large = [b"5\r\nhello\r\n0\r\nx: ".to_vec(), vec![b'x'; 200]].concat();
        let cases: [(&[u8], DecodeError); 13] = [
            (b"5\r\nhellox", DecodeError::Chunk),
            (b"5\r\nhello\n", DecodeError::Chunk),
            (b"5\r\nhello\r\nx\r\n", DecodeError::Chunk),
            (b"5\r\nhello\r\n\r\n", DecodeError::Chunk),
            (b"5\r\nhello\r\n1\n", DecodeError::Chunk),
            (b"5\r\nhello\r\n-1\r\n", DecodeError::Chunk),
            (b"5\r\nhello\r\n1 1\r\n", DecodeError::Chunk),
            (b"5\r\nhello\r\n1;a\rb\r\n", DecodeError::Chunk),
            (b"5\r\nhello\r\n11112222333344445\r\n", DecodeError::Chunk),
            (b"5\r\nhello\r\n0\r\nno colon\r\n\r\n", DecodeError::Trailers),
            (b"5\r\nhello\r\n0\r\na:\r\nb:\r\nc:\r\nd:\r\ne:\r\nf:\r\n\r\n", DecodeError::TooLarge),
            (&long, DecodeError::Extensions),
            (&large, DecodeError::TooLarge),
        ];
        for (text, error) in cases {
            let (content, _, result, _) = decode(BodyLength::Chunked, &[text]);
            assert_eq!((&content[..], result), (&b"hello"[..], Err(error)), "{}", text.escape_ascii());
        }
        for (length, state) in [(BodyLength::Known(3), "short"), (BodyLength::Chunked, "cut")] {
            let mut decoder = ResponseBodyDecoder::new(length, LIMITS);
            assert!(decoder.decode(&mut BytesMut::from(&b"2"[..])).is_ok());
            assert_eq!(decoder.close(), Err(DecodeError::Incomplete), "{state}");
        }
    }
}
