//! A self-signed certificate for development, which no authority has signed. Only `cli` calls this module: a proxy
//! never creates such a certificate by itself, for its clients would get used to warnings.
#![expect(clippy::disallowed_methods, reason = "certificates are valid by wall-clock time")]

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

/// Returns a certificate for DNS names and addresses, and its key (ECDSA, P-256), both in PEM. Clients have to trust
/// the certificate itself.
pub fn self_signed(names: &[String]) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(first) = names.first() {
        params.distinguished_name.push(DnType::CommonName, first.as_str());
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - BACKDATED).into(), (now + LIFETIME).into());
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The time by which the certificate is backdated, for clients whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);
/// The lifetime: long enough for a piece of work, and too short to be forgotten in production.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);
