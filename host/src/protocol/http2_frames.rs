//! A scanner of HTTP/2 frame headers (RFC 9113 §4.1) in a stream of bytes, independent of the sizes of reads or writes.
//! h2 parses the same bytes again and validates them. The scanner only reports the frames, and skips their payloads by
//! length.

pub mod budget;
pub mod turn;

/// The first bytes of an HTTP/2 connection (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The type of a frame that begins a head or trailers.
pub const HEADERS: u8 = 1;

/// The type of a frame of content.
pub const DATA: u8 = 0;

/// The length of content below which a frame costs more than its content.
pub const SHORT_DATA: usize = 256;

/// The type of a frame that ends a stream before its time.
pub const RST_STREAM: u8 = 3;

/// The type of a frame that continues a head or trailers.
pub const CONTINUATION: u8 = 9;

/// The type of a frame of settings.
pub const SETTINGS: u8 = 4;

/// The type of a frame that lets its receiver send more content.
pub const WINDOW_UPDATE: u8 = 8;

/// The window of a connection before the first frame that extends it (RFC 9113 §6.9.2), in bytes.
pub const FIRST_WINDOW: u32 = 65_535;

/// The setting for the number of streams that the sender accepts at a time (RFC 9113 §6.5.2).
pub const MAX_CONCURRENT_STREAMS: u16 = 3;

/// The setting for the longest list of fields that the sender accepts (RFC 9113 §6.5.2).
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The bytes of a setting: its identifier and its value.
pub const SETTING_LENGTH: usize = 6;

/// The flag of HEADERS and DATA that end their side of a stream.
pub const END_STREAM: u8 = 1;

/// The error code of a stream or connection that takes too much (RFC 9113 §7).
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// The bytes of a frame header.
const HEAD: usize = 9;

/// The position of a scanner in its stream of frames.
#[derive(Debug)]
pub struct FrameScanner {
    /// The bytes of a partial frame header.
    head: [u8; HEAD],
    /// The number of bytes of the header that have been read.
    filled: usize,
    /// The number of bytes to skip before the next frame header.
    skip: usize,
    /// The value in the payload as far as it was read; `None` outside of frames with values.
    value: Option<PartialValue>,
}

/// A value in the payload of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameValue {
    /// The error code of a RST_STREAM frame.
    ResetCode(u32),
    /// A setting of a SETTINGS frame.
    Setting { identifier: u16, value: u32 },
    /// The bytes by which a WINDOW_UPDATE frame extends the window of the connection.
    Window(u32),
}

/// A value of which the last bytes may be missing.
#[derive(Clone, Copy, Debug)]
struct PartialValue {
    bytes: u64,
    read: u8,
    /// The type of the frame.
    kind: u8,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// The length of the payload, in bytes.
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    /// The stream that the frame belongs to; 0 for the connection.
    pub stream: u32,
}

impl FrameScanner {
    /// Creates a scanner of bytes that begin with a preface of this length, which is no frame.
    pub fn after(preface: usize) -> Self {
        FrameScanner { head: [0; HEAD], filled: 0, skip: preface, value: None }
    }

    /// Scans the next bytes and calls `each` for each frame whose header they complete.
    pub fn scan(&mut self, bytes: &[u8], each: impl FnMut(FrameHead)) {
        self.scan_with_values(bytes, each, |_| {});
    }

    /// Scans the next bytes as [`FrameScanner::scan`] does, and calls `found` with each error code and each setting.
    pub fn scan_with_values(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(FrameHead),
        mut found: impl FnMut(FrameValue),
    ) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            if let Some(value) = &mut self.value {
                bytes[..skipped].iter().filter_map(|byte| value.push(*byte)).for_each(&mut found);
                if self.skip == 0 {
                    self.value = None;
                }
            }
            bytes = &bytes[skipped..];
            let read = (HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + read].copy_from_slice(&bytes[..read]);
            self.filled += read;
            bytes = &bytes[read..];
            if self.filled == HEAD {
                self.filled = 0;
                let head = FrameHead::parse(&self.head);
                self.skip = head.length;
                self.value = PartialValue::in_frame(head);
                each(head);
            }
        }
    }

    /// Whether the next byte begins a frame.
    pub fn is_between(&self) -> bool {
        self.skip == 0 && self.filled == 0
    }
}

impl PartialValue {
    /// Returns the first value in a frame; `None` if such frames have no values.
    fn in_frame(head: FrameHead) -> Option<Self> {
        let has_values = matches!(head.kind, SETTINGS | RST_STREAM) || head.kind == WINDOW_UPDATE && head.stream == 0;
        has_values.then_some(PartialValue { bytes: 0, read: 0, kind: head.kind })
    }

    /// Adds a byte. Returns the value if that was the last byte of it.
    fn push(&mut self, byte: u8) -> Option<FrameValue> {
        (self.bytes, self.read) = (self.bytes << 8 | u64::from(byte), self.read + 1);
        let length = if self.kind == SETTINGS { SETTING_LENGTH } else { 4 };
        if usize::from(self.read) < length {
            return None;
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.read = 0;
        let value = bytes as u32;
        Some(match self.kind {
            SETTINGS => FrameValue::Setting { identifier: (bytes >> 32) as u16, value },
            // The first bit is reserved.
            WINDOW_UPDATE => FrameValue::Window(value & 0x7fff_ffff),
            _ => FrameValue::ResetCode(value),
        })
    }
}

impl FrameHead {
    fn parse(head: &[u8; HEAD]) -> Self {
        let [high, middle, low, kind, flags, stream @ ..] = *head;
        FrameHead {
            length: u32::from_be_bytes([0, high, middle, low]) as usize,
            kind,
            flags,
            // The first bit is reserved.
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u32;
        [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// Returns a preface and some frames, among whose payloads are bytes that look like frames.
    fn stream() -> Vec<u8> {
        let tricky = frame(6, 0, 0, &[0; 8]);
        let frames = [
            frame(4, 0, 0, &[]),
            frame(0, 1, 1, &tricky),
            frame(0, 0, 0x8000_0003, &[7; 300]),
            frame(8, 0, 0, &[1; 4]),
        ];
        [PREFACE, &frames.concat()].concat()
    }

    fn heads<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<FrameHead>, bool) {
        let (mut scanner, mut heads) = (FrameScanner::after(PREFACE.len()), Vec::new());
        pieces.for_each(|piece| scanner.scan(piece, |head| heads.push(head)));
        (heads, scanner.is_between())
    }

    #[test]
    fn frames_are_the_same_however_reads_split_them() {
        let stream = stream();
        let whole = heads(std::iter::once(&stream[..]));
        let head = |length, kind, flags, stream| FrameHead { length, kind, flags, stream };
        assert_eq!(whole.0, [head(0, 4, 0, 0), head(17, 0, 1, 1), head(300, 0, 0, 3), head(4, 8, 0, 0)]);
        assert!(whole.1);
        for size in 1..=stream.len() {
            assert_eq!(heads(stream.chunks(size)), whole, "pieces of {size}");
        }
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(heads(pieces.into_iter()), whole, "cuts at {first} and {second}");
            }
        }
    }

    #[test]
    fn values_of_frames_are_the_same_however_reads_split_them() {
        let frames = [
            frame(RST_STREAM, 0, 1, &[0, 0, 0, 1]),
            frame(0, 0, 1, &[3; 20]),
            frame(RST_STREAM, 0, 3, &[0xff, 0, 0, 8]),
            frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100, 0, 6, 0, 1, 0, 0]),
            frame(SETTINGS, 1, 0, &[]),
            frame(WINDOW_UPDATE, 0, 3, &[0, 0, 0, 9]),
            frame(WINDOW_UPDATE, 0, 0, &[0x80, 0, 0, 7]),
        ]
        .concat();
        let wanted = [
            FrameValue::ResetCode(1),
            FrameValue::ResetCode(0xff00_0008),
            FrameValue::Setting { identifier: 3, value: 100 },
            FrameValue::Setting { identifier: MAX_HEADER_LIST_SIZE, value: 1 << 16 },
            FrameValue::Window(7),
        ];
        for size in 1..=frames.len() {
            let (mut scanner, mut codes) = (FrameScanner::after(0), Vec::new());
            frames.chunks(size).for_each(|piece| scanner.scan_with_values(piece, |_| {}, |code| codes.push(code)));
            assert_eq!(codes, wanted, "pieces of {size}");
        }
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_is_not_between_frames() {
        let stream = stream();
        let boundaries: Vec<usize> = [24, 33, 59, 368, 381].to_vec();
        for length in 24..=stream.len() {
            let (_, is_between) = heads(std::iter::once(&stream[..length]));
            assert_eq!(is_between, boundaries.contains(&length), "{length}");
        }
    }
}
