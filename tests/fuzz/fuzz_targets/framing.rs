//! However the bytes are cut, the outcome is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plugway_fuzz::protocol::framing::{FramingError, HeadLimits, Scanner};

const LIMITS: HeadLimits = HeadLimits { head_bytes: 300, fields: 5, target_bytes: 40 };

fn scanned<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<(bool, bool), FramingError> {
    let mut scanner = Scanner::new(LIMITS);
    for piece in pieces {
        scanner.take(piece)?;
    }
    Ok((scanner.is_between(), scanner.is_in_head()))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = scanned(std::iter::once(bytes));
    assert_eq!(scanned(bytes.chunks(1)), whole);
    assert_eq!(scanned(bytes.chunks(usize::from(piece) + 1)), whole);
    if whole == Ok((true, false)) {
        assert!(!bytes.contains(&b'\n') || bytes.windows(2).any(|pair| pair == b"\r\n"));
    }
});
