//! The hash of keys and addresses.

use crate::random::mix;

/// Hashes a key or an address, with the same result in all processes: FNV-1a, whose weak high bits are mixed at the
/// end. A cryptographic hash would cost more than the rest of a pick, and a client may choose its key anyway.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}
