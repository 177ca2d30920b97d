//! TLS: what rustls needs to know, made of the files that a manifest names. `assemble` makes configurations here once a
//! load, `arrival` and `upstream/connect` shake hands by them, `arrival` asks [`facts`] what came of it.
//!
//! Nothing here reads a socket, and no file is read once a configuration is made.
//!
//! - [`server`]: towards clients: certificates by name, client certificates, tickets
//! - [`client`]: towards endpoints
//! - [`facts`]: what a finished handshake tells about a client
//! - [`self_signed`]: a certificate for development
//! - [`validity`]: certificates that have expired, or are not valid yet

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, hash};

#[cfg(test)]
mod authority;
pub mod client;
pub mod facts;
mod names;
mod pem;
pub mod self_signed;
pub mod server;
#[cfg(test)]
mod tests;
pub mod validity;

/// Something wrong with a file, and with which of those that a configuration is made of.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Mistake<Place> {
    pub place: Place,
    pub message: String,
}

/// The cryptography of every configuration. Given to each, for a default of the process would be a global that whoever
/// comes first sets.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// What is offered or taken by ALPN, the preferred first.
fn protocols(http2: bool) -> Vec<Vec<u8>> {
    let names: &[&[u8]] = if http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
    names.iter().map(|name| name.to_vec()).collect()
}

/// By the hash of a cipher suite, which is in the program anyway.
fn sha256(bytes: &[u8]) -> hash::Output {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256;
    let suite = suite.tls13().expect("its name says that it is one of TLS 1.3");
    suite.common.hash_provider.hash(bytes)
}
