//! Decodes content with codings (RFC 9110 §8.4.1) piece by piece, within bounds.
//!
//! A sender that means harm makes a few bytes into very many ("bombs"). So each step yields at most [`MAX_PIECE`] bytes, each
//! decoder is bounded against the bytes that have arrived, and windows are as long as the codings need. This module has no
//! clock: the caller decides how many steps it takes at a time.

mod brotli;
mod deflate;
mod zstd;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::protocol::coded_content::{CodingList, KnownCoding};

/// The bounds of decoded content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodingBounds {
    /// The maximum number of decoded bytes for each byte that has arrived, beyond [`FREE_BYTES`].
    pub ratio: u64,
    /// The maximum number of decoded bytes.
    pub bytes: u64,
}

/// The decoded bytes to which no ratio applies: a short page of repetitions is no bomb.
pub const FREE_BYTES: u64 = 1 << 20;

/// The maximum length of a decoded piece, in bytes: some tenths of a millisecond of work.
pub const MAX_PIECE: usize = 64 << 10;

/// The length of the first pieces, in bytes. Most messages are short.
const FIRST_PIECE: usize = 8 << 10;

/// The decoder of the content of one message.
pub struct ContentDecoder {
    /// One stage for each coding, in the order in which content passes them.
    stages: SmallVec<[Stage; 1]>,
    bounds: DecodingBounds,
    /// The number of bytes that have arrived.
    received: u64,
    /// Whether all content has arrived.
    is_ended: bool,
    /// The room for the next piece.
    room: Vec<u8>,
}

/// The decoder of one coding.
struct Stage {
    coding: KnownCoding,
    decoder: Box<dyn CodingDecoder>,
    input: Bytes,
    /// Whether the decoder may have more output without more input.
    is_full: bool,
    produced: u64,
}

/// The result of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodingStep {
    /// A piece of decoded content.
    Content(Bytes),
    /// There is more to do before the next content.
    Progress,
    /// The decoder needs more coded content.
    Starved,
    /// All content was decoded.
    End,
}

/// An error of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodingError {
    #[error("the content is no valid `{0}`")]
    Corrupt(KnownCoding),
    #[error("the content ends within its `{0}`")]
    Truncated(KnownCoding),
    #[error("bytes follow the end of the `{0}` content")]
    Trailing(KnownCoding),
    #[error("the content needs a longer window than `{0}` has in HTTP")]
    Window(KnownCoding),
    #[error("the content decodes to more than {0} times its length")]
    Ratio(u64),
    #[error("the content decodes to more than {0} bytes")]
    Size(u64),
}

/// The fault of a stage's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CodingFault {
    Corrupt,
    Trailing,
    Window,
}

/// The bytes that a call of a decoder has read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Passed {
    read: usize,
    written: usize,
}

/// A decoder of one coding.
trait CodingDecoder {
    /// Decodes a part of the input into the output, of which neither need be used up.
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Passed, CodingFault>;

    /// Whether content may end here: it was complete, or there was none at all.
    fn is_complete(&self) -> bool;

    /// Returns the number of bytes that the decoder holds.
    fn memory(&self) -> usize;
}

impl ContentDecoder {
    /// Returns a decoder of content with some codings.
    pub fn new(codings: CodingList, bounds: DecodingBounds) -> Self {
        // The coding that was applied last is the first to be decoded.
        let stages = codings.codings().iter().rev().map(|coding| Stage::new(*coding)).collect();
        ContentDecoder { stages, bounds, received: 0, is_ended: false, room: Vec::new() }
    }

    /// Passes coded content to a decoder that is [`DecodingStep::Starved`].
    pub fn push(&mut self, content: Bytes) {
        self.received += content.len() as u64;
        if let Some(first) = self.stages.first_mut() {
            first.input = content;
        }
    }

    /// Tells the decoder that all content has arrived.
    pub fn end(&mut self) {
        self.is_ended = true;
    }

    /// Returns the number of bytes that the decoders hold.
    pub fn memory(&self) -> usize {
        self.stages.iter().map(|stage| stage.decoder.memory()).sum()
    }

    /// Decodes the next piece, of at most [`MAX_PIECE`] bytes.
    pub fn step(&mut self) -> Result<DecodingStep, DecodingError> {
        let Some(place) = self.stages.iter().rposition(Stage::has_work) else {
            if !self.is_ended {
                return Ok(DecodingStep::Starved);
            }
            return match self.stages.iter().find(|stage| !stage.decoder.is_complete()) {
                Some(stage) => Err(DecodingError::Truncated(stage.coding)),
                None => Ok(DecodingStep::End),
            };
        };
        if self.room.is_empty() {
            self.room.resize(FIRST_PIECE, 0);
        }
        let Some(stage) = self.stages.get_mut(place) else { return Ok(DecodingStep::Starved) };
        let written = stage.run(&mut self.room)?;
        // Each stage is bounded: an inner one may expand what an outer one swallows.
        self.bounds.check(stage.produced, self.received)?;
        let content = Bytes::copy_from_slice(self.room.get(..written).unwrap_or_default());
        if written == self.room.len() && written < MAX_PIECE {
            self.room.resize(written * 2, 0);
        }
        if content.is_empty() {
            return Ok(DecodingStep::Progress);
        }
        match self.stages.get_mut(place + 1) {
            Some(next) => {
                next.input = content;
                Ok(DecodingStep::Progress)
            }
            None => Ok(DecodingStep::Content(content)),
        }
    }
}

impl DecodingBounds {
    /// Returns the lower one of each of two bounds.
    pub fn lowest(self, other: Self) -> Self {
        DecodingBounds { ratio: self.ratio.min(other.ratio), bytes: self.bytes.min(other.bytes) }
    }

    fn check(self, decoded: u64, received: u64) -> Result<(), DecodingError> {
        if decoded > self.bytes {
            return Err(DecodingError::Size(self.bytes));
        }
        if decoded > FREE_BYTES && decoded > received.saturating_mul(self.ratio) {
            return Err(DecodingError::Ratio(self.ratio));
        }
        Ok(())
    }
}

impl Stage {
    fn new(coding: KnownCoding) -> Self {
        let decoder: Box<dyn CodingDecoder> = match coding {
            KnownCoding::Gzip => Box::new(deflate::GzipDecoder::default()),
            KnownCoding::Deflate => Box::new(deflate::DeflateDecoder::default()),
            KnownCoding::Brotli => Box::new(brotli::BrotliDecoder::default()),
            KnownCoding::Zstd => Box::new(zstd::ZstdDecoder::default()),
        };
        Stage { coding, decoder, input: Bytes::new(), is_full: false, produced: 0 }
    }

    fn has_work(&self) -> bool {
        self.is_full || !self.input.is_empty()
    }

    /// Decodes into some room. Returns the number of bytes in it.
    fn run(&mut self, room: &mut [u8]) -> Result<usize, DecodingError> {
        let coding = self.coding;
        let passed = self.decoder.decode(&self.input, room).map_err(|fault| match fault {
            CodingFault::Corrupt => DecodingError::Corrupt(coding),
            CodingFault::Trailing => DecodingError::Trailing(coding),
            CodingFault::Window => DecodingError::Window(coding),
        })?;
        if passed == Passed::default() && !self.input.is_empty() {
            // Or the next steps would be like this one, without an end.
            return Err(DecodingError::Corrupt(coding));
        }
        drop(self.input.split_to(passed.read.min(self.input.len())));
        self.is_full = passed.written == room.len();
        self.produced += passed.written as u64;
        Ok(passed.written)
    }
}

#[cfg(test)]
mod tests;
