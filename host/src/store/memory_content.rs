//! Content in memory: one allocation, or pieces. Responses hold pieces until their clients have them, also after the content
//! has left the index: what is held then is counted, for it is a part of the same memory.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderMap;

/// Content that is in memory to its last byte.
#[derive(Debug)]
pub enum MemoryContent {
    /// Content that is short enough for one allocation, and not counted once it has left the index.
    Whole(Bytes),
    /// Content that is longer, or has trailers.
    Pieces(Arc<Pieces>),
}

/// Content in pieces, none of them empty.
#[derive(Debug)]
pub struct Pieces {
    pub list: Vec<Bytes>,
    /// The length of all pieces together, in bytes.
    pub length: u64,
    pub trailers: Option<HeaderMap>,
    in_index: IndexUse,
}

/// The bytes of content that has left the index of a store, and that responses still hold.
#[derive(Clone, Debug, Default)]
pub struct HeldBytes(Arc<AtomicU64>);

/// The entries of an index that have a content.
#[derive(Debug, Default)]
struct IndexUse {
    entries: AtomicU32,
    /// Whether the content counts as held, because no entry has it.
    is_counted: AtomicBool,
    /// The count of the store; unset before the content is in its index.
    held: OnceLock<HeldBytes>,
}

/// A piece that keeps the content that it is a part of.
struct PieceOf {
    pieces: Arc<Pieces>,
    index: usize,
}

/// The longest content that is put into one allocation.
pub const WHOLE: u64 = 64 << 10;

impl Pieces {
    /// Returns content that is in no index.
    pub fn new(list: Vec<Bytes>, length: u64, trailers: Option<HeaderMap>) -> Arc<Self> {
        Arc::new(Pieces { list, length, trailers, in_index: IndexUse::default() })
    }

    /// Returns a piece; `None` behind the last one. The content counts as held as long as the piece lives.
    pub fn piece(self: &Arc<Self>, index: usize) -> Option<Bytes> {
        (index < self.list.len()).then(|| Bytes::from_owner(PieceOf { pieces: self.clone(), index }))
    }

    /// Records that another entry of an index has the content.
    pub fn enter(&self, held: &HeldBytes) {
        let in_index = &self.in_index;
        in_index.entries.fetch_add(1, Ordering::Relaxed);
        if in_index.is_counted.swap(false, Ordering::Relaxed) {
            in_index.held.get_or_init(|| held.clone()).subtract(self.length);
        }
        let _ = in_index.held.set(held.clone());
    }

    /// Records that an entry which had the content has left the index.
    pub fn leave(&self) {
        let in_index = &self.in_index;
        let less = |entries: u32| entries.checked_sub(1);
        let before = in_index.entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if before == Ok(1)
            && let Some(held) = in_index.held.get()
            && !in_index.is_counted.swap(true, Ordering::Relaxed)
        {
            held.0.fetch_add(self.length, Ordering::Relaxed);
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if let Some(held) = self.in_index.held.get().filter(|_| *self.in_index.is_counted.get_mut()) {
            held.subtract(self.length);
        }
    }
}

impl HeldBytes {
    /// Returns the number of bytes.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn subtract(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl AsRef<[u8]> for PieceOf {
    fn as_ref(&self) -> &[u8] {
        &self.pieces.list[self.index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_held_from_when_it_leaves_the_index_until_its_last_piece_is_dropped() {
        let held = HeldBytes::default();
        let pieces = Pieces::new(vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de")], 5, None);
        pieces.enter(&held);
        let piece = pieces.piece(1).unwrap();
        assert_eq!((&piece[..], pieces.piece(2), held.bytes()), (&b"de"[..], None, 0));
        // A validation puts another entry with the same content in the place of the first.
        pieces.enter(&held);
        pieces.leave();
        assert_eq!(held.bytes(), 0);
        pieces.leave();
        pieces.leave();
        assert_eq!(held.bytes(), 5);
        pieces.enter(&held);
        assert_eq!(held.bytes(), 0);
        pieces.leave();
        drop(pieces);
        assert_eq!(held.bytes(), 5, "a piece is left");
        drop(piece);
        assert_eq!(held.bytes(), 0);
    }
}
