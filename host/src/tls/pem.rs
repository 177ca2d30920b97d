//! Reads certificates and keys from files. [`server`](super::server) and [`client`](super::client) call it when a manifest
//! is loaded. Errors are texts for the author of the manifest, with the file and a remedy.
//!
//! No text shows anything of what is in a file: it may be a key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error, InconsistentKeys, RootCertStore};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::system::files;
use crate::tls::handshake_error::certificate_in_words;

/// A certificate with its chain, and its key; both in PEM.
pub struct CertificateFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// The error of a certificate's files: which of the two is wrong, and why.
#[derive(Debug, thiserror::Error)]
pub(super) enum PemError {
    #[error("{0}")]
    Chain(String),
    #[error("{0}")]
    Key(String),
}

/// A certificate with its chain and its key.
pub(super) fn certified(files: &CertificateFiles, provider: &CryptoProvider) -> Result<CertifiedKey, Vec<PemError>> {
    let (chain, key) = match (chain(&files.chain), private_key(&files.key, provider)) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => {
            let chain = chain.err().map(PemError::Chain);
            return Err(chain.into_iter().chain(key.err().map(PemError::Key)).collect());
        }
    };
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // Unknown: the library doesn't tell the public half of this kind of key.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(Error::InconsistentKeys(_)) => Err(vec![mismatch(files, &certified)]),
        Err(Error::InvalidCertificate(error)) => {
            let (path, problem) = (files.chain.display(), certificate_in_words(&error));
            Err(vec![PemError::Chain(format!("invalid certificate: the first in `{path}` {problem}"))])
        }
        Err(error) => Err(vec![PemError::Chain(unreadable(&files.chain, &error.to_string()))]),
    }
}

/// The authorities that a file names.
pub(super) fn authorities(path: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), String> {
    let certificates = certificates(path)?;
    let mut roots = RootCertStore::empty();
    for (at, certificate) in certificates.iter().enumerate() {
        let added = roots.add(certificate.clone());
        added.map_err(|error| {
            let problem = match &error {
                Error::InvalidCertificate(error) => certificate_in_words(error),
                error => error.to_string(),
            };
            format!("invalid authority: certificate {} of `{}` {problem}; remove it", at + 1, path.display())
        })?;
    }
    Ok((roots, certificates))
}

// === Certificates ===

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = certificates(path)?;
    // The first only: correct chains often carry an authority's older certificate. Its dates are no mistake of the
    // manifest, see `validity`.
    if let Some(leaf) = chain.first() {
        x509_parser::parse_x509_certificate(leaf).map_err(|error| unreadable(path, &error.to_string()))?;
    }
    Ok(chain)
}

/// Reads the certificates of a file; an error if there is none.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let certificates: Vec<CertificateDer> = sections(path, &bytes)?;
    if !certificates.is_empty() {
        return Ok(certificates);
    }
    let shown = path.display();
    Err(if is_pkcs12(&bytes) {
        pkcs12(path)
    } else if bytes.starts_with(DER_SEQUENCE) {
        format!("no certificate in PEM: `{shown}` is in DER; convert it by `openssl x509 -inform der -in {shown}`")
    } else if contains(&bytes, b"PRIVATE KEY-----") {
        format!("no certificate: `{shown}` holds a private key; `chain` and `key` may be swapped")
    } else {
        format!(
            "no certificate: found none in `{shown}`; expected PEM, which begins with `-----BEGIN CERTIFICATE-----`"
        )
    })
}

// === Keys ===

fn private_key(path: &Path, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, String> {
    let bytes = read(path)?;
    let shown = path.display();
    if ENCRYPTED.iter().any(|sign| contains(&bytes, sign)) {
        return Err(format!(
            "encrypted private key: `{shown}`; decrypt it by `openssl pkey -in {shown} -out plain.key`, and name that file"
        ));
    }
    let mut keys: Vec<PrivateKeyDer> = sections(path, &bytes)?;
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => provider
            .key_provider
            .load_private_key(key)
            .map_err(|_| format!("unsupported private key: `{shown}`; expected {KEYS}")),
        (Some(_), more) => {
            Err(format!("several private keys: `{shown}` has {}; keep that of the certificate", more + 1))
        }
        (None, _) => Err(no_key(path, &bytes)),
    }
}

/// Whether a file is a PKCS #12 archive (RFC 7292 §4): a sequence that begins with the number 3, where a key has 0 or 1.
fn is_pkcs12(bytes: &[u8]) -> bool {
    let beginning = &bytes[..bytes.len().min(MAX_HEADER + VERSION_3.len())];
    bytes.starts_with(DER_SEQUENCE)
        && (2..=MAX_HEADER).any(|at| beginning.get(at..).is_some_and(|rest| rest.starts_with(VERSION_3)))
}

fn pkcs12(path: &Path) -> String {
    let shown = path.display();
    format!("no PEM: `{shown}` is a PKCS #12 archive; convert it by `openssl pkcs12 -in {shown} -nodes -out both.pem`")
}

/// The number 3 in DER, and the beginning of the sequence behind it.
const VERSION_3: &[u8] = &[2, 1, 3, 0x30];

/// The longest header of a sequence in a file of less than 4 GiB, in bytes.
const MAX_HEADER: usize = 6;

fn no_key(path: &Path, bytes: &[u8]) -> String {
    let shown = path.display();
    if is_pkcs12(bytes) {
        pkcs12(path)
    } else if bytes.starts_with(DER_SEQUENCE) {
        format!("no private key in PEM: `{shown}` is in DER; convert it by `openssl pkey -inform der -in {shown}`")
    } else if contains(bytes, b"-----BEGIN CERTIFICATE-----") {
        format!("no private key: `{shown}` holds a certificate; `chain` and `key` may be swapped")
    } else {
        format!(
            "no private key: found none in `{shown}`; expected PEM, which begins with `-----BEGIN PRIVATE KEY-----`"
        )
    }
}

fn mismatch(files: &CertificateFiles, certified: &CertifiedKey) -> PemError {
    let (chain, key) = (files.chain.display(), files.key.display());
    let fits = |other: &CertificateDer<'static>| {
        CertifiedKey::new(vec![other.clone()], certified.key.clone()).keys_match().is_ok()
    };
    if certified.cert.iter().skip(1).any(fits) {
        return PemError::Chain(format!(
            "wrong order of certificates: that of the key is not the first in `{chain}`; move it to the top"
        ));
    }
    PemError::Key(format!(
        "private key of another certificate: `{key}` doesn't match `{chain}`; name the two that were made together"
    ))
}

// === Files ===

fn read(path: &Path) -> Result<Vec<u8>, String> {
    files::read(path, files::PEM).map_err(|error| files::unreadable(path, &error))
}

fn sections<T: PemObject>(path: &Path, bytes: &[u8]) -> Result<Vec<T>, String> {
    let all: Result<_, pem::Error> = T::pem_slice_iter(bytes).collect();
    all.map_err(|error| {
        // Not the library's words, which show the line.
        let what = match error {
            pem::Error::MissingSectionEnd { .. } => "a section has no `-----END`",
            pem::Error::IllegalSectionStart { .. } => "a line with `-----BEGIN` has another end than `-----`",
            pem::Error::Base64Decode(_) => "something in a section isn't base64",
            _ => "its form is wrong",
        };
        format!("damaged PEM: in `{}` {what}; copy the file again", path.display())
    })
}

fn unreadable(path: &Path, why: &str) -> String {
    format!("invalid certificate: the first in `{}` cannot be parsed: {why}; expected X.509 version 3", path.display())
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// The first byte of certificates and keys in DER.
const DER_SEQUENCE: &[u8] = b"\x30";
/// A key in a form that the provider loads.
const KEYS: &str = "RSA from 2048 bits, ECDSA with P-256, P-384 or P-521, and Ed25519";
/// The labels of private keys: PKCS#8, and the older forms.
const ENCRYPTED: [&[u8]; 2] = [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_from_keys_and_certificates() {
        for (bytes, is_archive) in [
            (&[0x30, 0x82, 0x09, 0xb1, 2, 1, 3, 0x30, 0x82][..], true),
            (&[0x30, 0x80, 2, 1, 3, 0x30, 0x80], true),
            (&[0x30, 0x81, 0x87, 2, 1, 0, 0x30, 0x13], false),
            (&[0x30, 0x77, 2, 1, 1, 4, 0x20], false),
            (&[0x30, 0x82, 0x01, 0x7c, 0x30, 0x82, 0x01, 0x22, 0xa0, 3, 2, 1, 2], false),
            (&[0x30], false),
            (b"-----BEGIN CERTIFICATE-----", false),
        ] {
            assert_eq!(is_pkcs12(bytes), is_archive, "{bytes:x?}");
        }
    }
}
