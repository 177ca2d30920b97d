//! Bytes that have become a header were the beginning of one all along, and say the same when they are written anew.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plugway_fuzz::protocol::proxy_protocol::{Parsed, ProxyVersion, encode, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Parsed::Done(addresses)) = parse(bytes) else { return };
    for length in 0..bytes.len() {
        assert_eq!(parse(&bytes[..length]), Ok(Parsed::Incomplete), "{length}");
    }
    let Some(addresses) = addresses else { return };
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let Ok(Parsed::Done(Some(again))) = parse(&encode(version, Some(addresses))) else { panic!("{addresses:?}") };
        assert_eq!(again.client.ip().to_canonical(), addresses.client.ip().to_canonical());
        assert_eq!(again.destination.port(), addresses.destination.port());
    }
});
