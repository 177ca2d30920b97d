//! The decoders of `gzip` (RFC 1952) and `deflate` (RFC 1950).

use flate2::{Decompress, FlushDecompress, Status};

use super::{CodingDecoder, CodingFault, Passed};

/// A decoder of `gzip`, which may have several members (RFC 1952 §2.2).
#[derive(Default)]
pub struct GzipDecoder {
    /// The decoder of the current member; `None` before the first one and behind each.
    member: Option<Decompress>,
    /// Whether a member has ended.
    has_ended: bool,
    /// Whether zeros followed the last member. Archives on tape have them up to the end of a block, as gzip(1) allows.
    is_padded: bool,
}

/// A decoder of `deflate`: the format of zlib as RFC 9110 §8.4.1.2 demands, or the bare format (RFC 1951) that some senders
/// use in error and all browsers accept.
#[derive(Default)]
pub struct DeflateDecoder {
    state: DeflateState,
}

#[derive(Default)]
enum DeflateState {
    #[default]
    Empty,
    /// The first byte, which alone doesn't show the format.
    First(u8),
    Within(Decompress),
    Over,
}

/// The bytes that the state of a decoder takes, with its window of 32 KiB.
const MEMORY: usize = 48 << 10;

/// The window of gzip, as a power of two.
const WINDOW_BITS: u8 = 15;

/// The first byte of each member.
const MAGIC: u8 = 0x1f;

impl CodingDecoder for GzipDecoder {
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Passed, CodingFault> {
        if self.member.is_none() {
            match input.first() {
                None => return Ok(Passed::default()),
                Some(0) if self.has_ended => {
                    self.is_padded = true;
                    let read = input.iter().take_while(|byte| **byte == 0).count();
                    return Ok(Passed { read, written: 0 });
                }
                Some(byte) if self.has_ended && (*byte != MAGIC || self.is_padded) => {
                    return Err(CodingFault::Trailing);
                }
                Some(_) => {}
            }
        }
        let member = self.member.get_or_insert_with(|| Decompress::new_gzip(WINDOW_BITS));
        let (passed, is_over) = inflate(member, input, output)?;
        if is_over {
            (self.member, self.has_ended) = (None, true);
        }
        Ok(passed)
    }

    fn is_complete(&self) -> bool {
        self.member.is_none()
    }

    fn memory(&self) -> usize {
        MEMORY
    }
}

impl CodingDecoder for DeflateDecoder {
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Passed, CodingFault> {
        match (&self.state, input) {
            (_, []) if !matches!(self.state, DeflateState::Within(_)) => return Ok(Passed::default()),
            (DeflateState::Over, _) => return Err(CodingFault::Trailing),
            (DeflateState::Empty, [first]) => {
                self.state = DeflateState::First(*first);
                return Ok(Passed { read: 1, written: 0 });
            }
            (DeflateState::Empty, [first, second, ..]) => {
                self.state = DeflateState::Within(Decompress::new(is_zlib(*first, *second)));
            }
            (DeflateState::First(first), [second, ..]) => {
                let mut stream = Decompress::new(is_zlib(*first, *second));
                // Too few bits for any output.
                inflate(&mut stream, &[*first], output)?;
                self.state = DeflateState::Within(stream);
            }
            _ => {}
        }
        let DeflateState::Within(stream) = &mut self.state else { return Ok(Passed::default()) };
        let (passed, is_over) = inflate(stream, input, output)?;
        if is_over {
            self.state = DeflateState::Over;
        }
        Ok(passed)
    }

    fn is_complete(&self) -> bool {
        matches!(self.state, DeflateState::Empty | DeflateState::Over)
    }

    fn memory(&self) -> usize {
        MEMORY
    }
}

/// Whether two bytes begin the format of zlib (RFC 1950 §2.2): the method is deflate, and the check is right.
fn is_zlib(first: u8, second: u8) -> bool {
    first & 0x0f == 8 && u16::from_be_bytes([first, second]).is_multiple_of(31)
}

/// Decodes a part of the input. Returns whether the stream is over, too.
fn inflate(stream: &mut Decompress, input: &[u8], output: &mut [u8]) -> Result<(Passed, bool), CodingFault> {
    let (read, written) = (stream.total_in(), stream.total_out());
    let status = stream.decompress(input, output, FlushDecompress::None).map_err(|_| CodingFault::Corrupt)?;
    let passed = Passed { read: (stream.total_in() - read) as usize, written: (stream.total_out() - written) as usize };
    Ok((passed, status == Status::StreamEnd))
}
