//! The blocks in which the content of a stored file is read, and their checksums.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The length of the blocks in which content is read and checked, in bytes.
pub const BLOCK: usize = 256 << 10;

/// The sums of a content's blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums(Arc<[u64]>);

impl Sums {
    /// Computes the checksums of content in pieces of any length.
    pub fn of<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut sums, mut sum, mut filled) = (Vec::new(), Xxh3::new(), 0);
        for mut piece in pieces {
            while !piece.is_empty() {
                let (part, rest) = piece.split_at(piece.len().min(BLOCK - filled));
                sum.update(part);
                filled += part.len();
                if filled == BLOCK {
                    sums.push(sum.digest());
                    sum.reset();
                    filled = 0;
                }
                piece = rest;
            }
        }
        if filled > 0 {
            sums.push(sum.digest());
        }
        Sums(sums.into())
    }

    /// Collects checksums that were computed block by block.
    pub fn from_blocks(sums: Vec<u64>) -> Self {
        Sums(sums.into())
    }

    /// Whether a block, by its index, has the bytes that were written.
    pub fn holds(&self, block_index: usize, block: &[u8]) -> bool {
        self.0.get(block_index) == Some(&sum(block))
    }

    /// Returns the checksums as a file has them: eight bytes each, the least significant first.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|sum| sum.to_le_bytes()).collect()
    }
}

/// Computes the checksum of one block.
pub fn sum(block: &[u8]) -> u64 {
    xxh3_64(block)
}

/// Returns the error for a file whose bytes have changed.
pub fn broken() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "its content or its record is damaged")
}

/// Whether an error means that a file has other bytes than those that were written.
pub fn is_broken(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
}
