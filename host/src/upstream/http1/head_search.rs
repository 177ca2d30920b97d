//! The search for the empty line that ends a head or the trailers.

use memchr::memchr;

/// The search for the end of a head in bytes that arrive piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadSearch {
    /// The bytes that hold no end of the head.
    scanned: usize,
}

impl HeadSearch {
    /// Returns the length of the head, with the empty line that ends it; `None` if its end has not arrived.
    pub fn length(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(found) = memchr(b'\n', &bytes[self.scanned..]) {
            let line_end = self.scanned + found;
            match bytes[line_end + 1..] {
                [b'\n', ..] => return Some(line_end + 2),
                [b'\r', b'\n', ..] => return Some(line_end + 3),
                [] | [b'\r'] => {
                    self.scanned = line_end;
                    return None;
                }
                _ => self.scanned = line_end + 1,
            }
        }
        self.scanned = bytes.len();
        None
    }
}
