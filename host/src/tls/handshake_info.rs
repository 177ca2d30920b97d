//! The facts about a client after a finished handshake, for logs and for plugins that use them. `downstream/handshake`
//! reads them once per connection. A certificate is verified by then, but its authority may let a client write any text into it.
//! All texts are therefore visible letters of ASCII, and a separator within a value differs from one between values.

use std::net::IpAddr;

use rustls::{ProtocolVersion, ServerConnection};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::distinguished_name::{distinguished, escaped, hex};

/// The facts of a TLS connection.
pub struct HandshakeInfo {
    /// The protocol version: `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite by its IANA name, such as `TLS_AES_128_GCM_SHA256`.
    pub cipher: String,
    /// The server name that the client requested, in lower case; `None` if it named none.
    pub server_name: Option<String>,
    /// Whether HTTP/2 was negotiated.
    pub alpn_h2: bool,
    /// The client's certificate, verified against the listener's authorities; `None` if it presented none.
    pub client: Option<PeerCertificate>,
}

/// The facts of a client's certificate. A fact that can't be parsed is an empty text.
pub struct PeerCertificate {
    /// The subject as RFC 4514 writes it, with OpenSSL's names of attributes, mostly from the particular to the general:
    /// `CN=alice,O=Example,C=DE`.
    pub subject: String,
    /// The subject's alternative names: `DNS:a.example,IP:::1,URI:spiffe://example/a,email:a@example.org`. In a name,
    /// `,` is written `\,`.
    pub names: String,
    /// The SHA-256 digest of the whole certificate, in lower-case hexadecimal digits.
    pub fingerprint: String,
    /// The issuer, written like the subject.
    pub issuer: String,
    /// The serial number, in upper-case hexadecimal digits.
    pub serial: String,
}

/// Returns the facts of a connection. They are complete only after the handshake.
pub fn facts(connection: &ServerConnection) -> HandshakeInfo {
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    };
    let cipher = connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or_default();
    HandshakeInfo {
        version,
        // rustls has its own names for the cipher suites of TLS 1.3.
        cipher: cipher.replacen("TLS13_", "TLS_", 1),
        server_name: connection.server_name().map(str::to_owned),
        alpn_h2: connection.alpn_protocol() == Some(b"h2"),
        client: connection.peer_certificates().and_then(<[_]>::first).map(|leaf| PeerCertificate::read(leaf)),
    }
}

// === ClientCertificate ===

impl PeerCertificate {
    fn read(der: &[u8]) -> Self {
        let fingerprint = hex(super::sha256(der).as_ref());
        let parsed = x509_parser::parse_x509_certificate(der).ok();
        let text = |of: fn(&X509Certificate) -> String| parsed.as_ref().map(|(_, leaf)| of(leaf)).unwrap_or_default();
        PeerCertificate {
            subject: text(|leaf| distinguished(leaf.subject())),
            names: text(names),
            fingerprint,
            issuer: text(|leaf| distinguished(leaf.issuer())),
            serial: text(serial),
        }
    }
}

fn serial(leaf: &X509Certificate) -> String {
    // A number whose first bit is set has a leading zero, which other programs don't show either.
    let bytes = leaf.raw_serial();
    let bytes = bytes.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(bytes);
    hex(bytes).to_uppercase()
}

fn names(leaf: &X509Certificate) -> String {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    names.filter_map(alternative).collect::<Vec<_>>().join(",")
}

/// Returns the text of an alternative name; `None` for kinds that have no usual text.
fn alternative(name: &GeneralName) -> Option<String> {
    let (kind, value) = match name {
        GeneralName::DNSName(name) => ("DNS", escaped(name, IN_NAMES)),
        GeneralName::URI(uri) => ("URI", escaped(uri, IN_NAMES)),
        GeneralName::RFC822Name(address) => ("email", escaped(address, IN_NAMES)),
        GeneralName::IPAddress(bytes) => ("IP", address(bytes)?.to_string()),
        _ => return None,
    };
    Some(format!("{kind}:{value}"))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The separator of names, and the escape character itself.
const IN_NAMES: &[u8] = b",\\";
