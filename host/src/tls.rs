//! TLS: creates the configurations of rustls from the files that a manifest names. `assemble` creates them once per
//! load, `downstream/handshake` and `upstream/connect` use them for handshakes, and `downstream/handshake` reads the
//! results from [`handshake_info`].
//!
//! This module reads no socket, and reads no file once a configuration is created.
//!
//! - [`server`]: for clients: certificates by name, client certificates, tickets
//! - [`client`]: for endpoints
//! - [`handshake_info`]: the facts about a client after a finished handshake
//! - [`handshake_error`]: errors of handshakes in words for the log
//! - [`self_signed`]: a certificate for development
//! - [`validity`]: certificates that have expired, or are not valid yet

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, hash};

mod bounded_chain;
pub mod certificate_resolver;
pub mod client;
mod distinguished_name;
pub mod handshake_error;
pub mod handshake_info;
pub mod pem;
pub mod self_signed;
pub mod server;
#[cfg(test)]
mod test_authority;
#[cfg(test)]
mod tests;
pub mod validity;

/// An error of a file, with the setting that names the file.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CertificateError<Place> {
    pub place: Place,
    pub message: String,
}

/// Returns the cryptography provider of every configuration. It is passed explicitly, since a default of the process
/// would be a global that the first caller sets.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// Returns the ALPN protocols that are offered to endpoints, and accepted from clients, the preferred first.
fn protocols(http2: bool) -> Vec<Vec<u8>> {
    let names: &[&[u8]] = if http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
    names.iter().map(|name| name.to_vec()).collect()
}

/// Returns the SHA-256 digest, computed by the hash of a cipher suite, which the program contains anyway.
fn sha256(bytes: &[u8]) -> hash::Output {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256;
    let suite = suite.tls13().expect("its name says that it is one of TLS 1.3");
    suite.common.hash_provider.hash(bytes)
}
