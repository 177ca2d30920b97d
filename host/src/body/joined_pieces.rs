//! The pieces of a body in order, as they are kept in memory. Short ones are joined: a piece is a part of the memory that it
//! was read into, and keeps all of it, which is 8 KiB for a byte of a slow client.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces of a body. No two short ones follow each other, so that their memory is at most twice their bytes, or 8 KiB.
#[derive(Debug, Default)]
pub struct JoinedPieces {
    pieces: VecDeque<Bytes>,
    /// The short pieces behind the others, joined.
    tail: BytesMut,
}

/// A place in the pieces, for a reader that leaves them there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PiecePlace {
    /// The number of pieces before the place.
    pieces: usize,
    /// The bytes of the next piece before the place.
    bytes: usize,
}

/// The length from which a piece is kept as it is, in bytes.
const LONG_ENOUGH: usize = 4 << 10;

/// The length from which joined pieces are a piece of their own, in bytes.
const FULL: usize = 8 << 10;

impl JoinedPieces {
    /// Adds a piece behind the others. Returns whether it was joined with the piece before.
    pub fn push(&mut self, piece: Bytes) -> bool {
        if piece.len() >= LONG_ENOUGH {
            self.end_tail();
            self.pieces.push_back(piece);
            return false;
        }
        let is_joined = !self.tail.is_empty();
        self.tail.extend_from_slice(&piece);
        if self.tail.len() >= FULL {
            self.end_tail();
        }
        is_joined
    }

    /// Adds a piece before the others.
    pub fn push_front(&mut self, piece: Bytes) {
        self.pieces.push_front(piece);
    }

    /// Adds pieces behind the others. None of them are joined.
    pub fn append(&mut self, mut others: JoinedPieces) {
        self.end_tail();
        self.pieces.append(&mut others.pieces);
        self.tail = others.tail;
    }

    /// Removes the first piece.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.pieces.pop_front().or_else(|| (!self.tail.is_empty()).then(|| self.tail.split().freeze()))
    }

    /// Whether there are no pieces.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    /// Returns the pieces behind a place, and moves the place to their end: one piece at a time.
    pub fn read(&self, place: &mut PiecePlace) -> Option<Bytes> {
        while let Some(piece) = self.pieces.get(place.pieces) {
            let rest = piece.slice(place.bytes.min(piece.len())..);
            *place = PiecePlace { pieces: place.pieces + 1, bytes: 0 };
            if !rest.is_empty() {
                return Some(rest);
            }
        }
        let rest = self.tail.get(place.bytes..).filter(|rest| !rest.is_empty())?;
        place.bytes = self.tail.len();
        Some(Bytes::copy_from_slice(rest))
    }

    /// Returns the place behind all pieces.
    pub fn end(&self) -> PiecePlace {
        PiecePlace { pieces: self.pieces.len(), bytes: self.tail.len() }
    }

    /// Returns the number of bytes behind a place.
    pub fn bytes_behind(&self, place: PiecePlace) -> usize {
        let pieces: usize = self.pieces.iter().skip(place.pieces).map(Bytes::len).sum();
        (pieces + self.tail.len()).saturating_sub(place.bytes)
    }

    /// Returns all pieces.
    pub fn into_pieces(mut self) -> VecDeque<Bytes> {
        self.end_tail();
        self.pieces
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns pieces of these lengths, with bytes that count.
    fn pieces(lengths: &[usize]) -> (JoinedPieces, Vec<u8>) {
        let all: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|number| number as u8).collect();
        let (mut joined, mut rest) = (JoinedPieces::default(), Bytes::from(all.clone()));
        for length in lengths {
            joined.push(rest.split_to(*length));
        }
        (joined, all)
    }

    #[test]
    fn short_pieces_are_joined_and_come_out_in_order() {
        let mut lengths = vec![1; 20_000];
        lengths.splice(5_000..5_000, [LONG_ENOUGH, 3, LONG_ENOUGH - 1]);
        let (mut joined, all) = pieces(&lengths);
        let (mut out, mut number) = (Vec::new(), 0);
        while let Some(piece) = joined.pop() {
            out.extend_from_slice(&piece);
            number += 1;
        }
        assert!(out == all && joined.is_empty() && number <= 6, "{number} pieces");
        assert!(!joined.push(Bytes::from_static(b"a")) && joined.push(Bytes::from_static(b"b")));
        assert_eq!(joined.pop().unwrap(), "ab");
    }

    #[test]
    fn a_short_piece_keeps_no_more_than_itself() {
        let memory = Bytes::from(vec![0; 8 << 10]);
        let mut joined = JoinedPieces::default();
        joined.push(memory.slice(..1));
        assert!(memory.is_unique());
    }

    #[test]
    fn a_reader_keeps_its_place_while_pieces_are_added() {
        let lengths = [3, 1, LONG_ENOUGH, 5, 5, FULL / 5, FULL / 5, FULL / 5, FULL / 5, FULL / 5, 7];
        let (mut joined, mut place, mut read) = (JoinedPieces::default(), PiecePlace::default(), Vec::new());
        let mut all = Vec::new();
        for (number, length) in lengths.iter().enumerate() {
            let piece = vec![number as u8; *length];
            all.extend_from_slice(&piece);
            joined.push(piece.into());
            assert_eq!(joined.bytes_behind(place), *length);
            while let Some(piece) = joined.read(&mut place) {
                read.extend_from_slice(&piece);
            }
            assert_eq!((joined.bytes_behind(place), joined.bytes_behind(joined.end())), (0, 0));
        }
        assert_eq!(read, all);
        let mut again = PiecePlace::default();
        assert_eq!(std::iter::from_fn(|| joined.read(&mut again)).collect::<Vec<_>>().concat(), all);
        assert_eq!(joined.into_pieces().into_iter().collect::<Vec<_>>().concat(), all);
    }
}
