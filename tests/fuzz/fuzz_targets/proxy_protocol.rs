//! Bytes that have become a header were the beginning of one all along, and say the same when they are written anew.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plugway_fuzz::protocol::proxy_protocol::{Addresses, Parsed, ProxyVersion, encode, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Parsed::Done(addresses)) = parse(bytes) else { return };
    for length in 0..bytes.len() {
        assert_eq!(parse(&bytes[..length]), Ok(Parsed::Incomplete), "{length}");
    }
    let Some(Addresses { client, destination }) = addresses else { return };
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let Ok(Parsed::Done(Some(again))) = parse(&encode(version, Some((client, destination)))) else { panic!("{client}") };
        assert_eq!(again.client.ip().to_canonical(), client.ip().to_canonical());
        assert_eq!(again.destination.port(), destination.port());
    }
});
