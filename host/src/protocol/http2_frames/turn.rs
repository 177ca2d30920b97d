//! The work that the frames of one connection make in a turn of its task. h2 parses all that has arrived at once: without
//! an end of the turn, heads of thousands of fields hold up all others of the worker, and content in small pieces piles up
//! unread, since nothing that reads it gets a turn.

use super::{CONTINUATION, DATA, FrameHead, HEADERS, SHORT_DATA};

/// The work of the frames that were received in a turn.
#[derive(Debug, Default)]
pub struct FrameTurn {
    work: usize,
    /// The heads that began in the last two reads, the last one first: a head may continue in the next read.
    reads: [ReadHeads; 2],
    /// The number of short frames of content in the last read.
    short: usize,
}

/// The heads that began in a read.
#[derive(Clone, Copy, Debug, Default)]
struct ReadHeads {
    number: usize,
    bytes: usize,
}

/// The bytes of heads in two reads from which on their parse is measured. Most requests and responses have less.
const MEASURED: usize = 1 << 10;

/// The work of a turn: each byte of a head counts one, because it can stand for a field of the dynamic table (RFC 7541 §6.1).
/// About a millisecond.
const MAX_WORK: usize = 4 << 10;

/// The work of a short frame of content.
const SHORT_DATA_WORK: usize = 32;

/// The bytes that are read at once behind a read of many short frames: with a byte of content each, some 200 of them. A turn
/// ends between two reads, and a longer one has thousands of such frames.
const SHORT_READ: usize = 2 << 10;

impl FrameTurn {
    /// Begins another read.
    pub fn begin_read(&mut self) {
        self.reads = [ReadHeads::default(), self.reads[0]];
        self.short = 0;
    }

    /// Returns the maximum number of bytes of the next read; `None` for no limit.
    pub fn read_limit(&self) -> Option<usize> {
        (self.short * SHORT_DATA_WORK >= MAX_WORK).then_some(SHORT_READ)
    }

    /// Returns the number of heads in the last read, if their parse may take long.
    pub fn heads(&self) -> Option<usize> {
        let [last, before] = self.reads;
        (last.bytes + before.bytes >= MEASURED).then_some(last.number)
    }

    /// Counts a received frame.
    pub fn count_received(&mut self, head: FrameHead) {
        if matches!(head.kind, HEADERS | CONTINUATION) {
            self.reads[0].number += 1;
            self.reads[0].bytes += head.length;
        }
        self.short += usize::from(head.kind == DATA && head.length < SHORT_DATA);
        self.work += match head.kind {
            HEADERS | CONTINUATION => head.length,
            DATA if head.length < SHORT_DATA => SHORT_DATA_WORK,
            _ => 0,
        };
    }

    /// Ends the turn if it has made enough work, and begins the next one. Returns whether it has ended.
    pub fn end_if_long(&mut self) -> bool {
        let is_long = self.work >= MAX_WORK;
        if is_long {
            self.work = 0;
        }
        is_long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of such frames in a turn, up to a million.
    fn frames(kind: u8, length: usize) -> usize {
        let mut turn = FrameTurn::default();
        let mut ends = || {
            turn.count_received(FrameHead { length, kind, flags: 0, stream: 1 });
            turn.end_if_long()
        };
        (1..1_000_000).find(|_| ends()).unwrap_or(1_000_000)
    }

    #[test]
    fn reads_are_short_behind_many_short_frames() {
        let mut turn = FrameTurn::default();
        let mut read = |number: usize, length| {
            turn.begin_read();
            (0..number).for_each(|_| turn.count_received(FrameHead { length, kind: DATA, flags: 0, stream: 1 }));
            turn.read_limit()
        };
        assert_eq!([read(127, 1), read(128, 1), read(1_000, 256), read(10, 1)], [None, Some(SHORT_READ), None, None]);
    }

    #[test]
    fn a_turn_has_so_many_heads_and_short_pieces_and_long_pieces_without_end() {
        let (settings, kib) = (4, 1 << 10);
        assert_eq!([frames(HEADERS, 64), frames(HEADERS, 3 * kib), frames(CONTINUATION, 16 * kib)], [64, 2, 1]);
        assert_eq!([frames(DATA, 1), frames(DATA, 255), frames(DATA, 256)], [128, 128, 1_000_000]);
        assert_eq!(frames(settings, 6), 1_000_000);
    }
}
