//! The facts about a client after a finished handshake, for logs and for plugins that use them. `downstream/handshake`
//! reads them once per connection. A certificate is verified by then, but its authority may let a client write any text into it.
//! All texts are therefore visible letters of ASCII, and a separator within a value differs from one between values.

use std::net::IpAddr;

use rustls::{ProtocolVersion, ServerConnection};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::x509::{AttributeTypeAndValue, RelativeDistinguishedName, X509Name};

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
    /// The subject as RFC 4514 writes it, mostly from the particular to the general: `CN=alice,O=Example,C=DE`.
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

/// Returns the text of a name as RFC 4514 has it: the particular before the general, the opposite of the certificate's order.
fn distinguished(name: &X509Name) -> String {
    let mut names: Vec<String> = name.iter().map(relative).collect();
    names.reverse();
    names.join(",")
}

fn relative(name: &RelativeDistinguishedName) -> String {
    name.iter().map(attribute).collect::<Vec<_>>().join("+")
}

fn attribute(attribute: &AttributeTypeAndValue) -> String {
    let kind = attribute.attr_type();
    let kind = oid2abbrev(kind, oid_registry()).map_or_else(|_| kind.to_id_string(), str::to_owned);
    let value = match attribute.as_str() {
        Ok(text) => escaped(text, IN_DISTINGUISHED),
        Err(_) => format!("#{}", hex(attribute.as_slice())),
    };
    format!("{kind}={value}")
}

/// Escapes special characters with a backslash, and bytes that are no visible letters of ASCII as `\C3`.
fn escaped(text: &str, special: &[u8]) -> String {
    let mut escaped = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let is_edge = at == 0 && matches!(byte, b' ' | b'#') || at == last && byte == b' ';
        if is_edge || special.contains(&byte) {
            escaped.push('\\');
        }
        match byte {
            b' '..=b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("\\{byte:02X}")),
        }
    }
    escaped
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The separator of names, and the escape character itself.
const IN_NAMES: &[u8] = b",\\";
/// The characters that RFC 4514 §2.4 escapes.
const IN_DISTINGUISHED: &[u8] = b",+\"\\<>;";
