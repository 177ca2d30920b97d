//! What a finished handshake tells about a client: for logs, and for plugins that decide by it. `arrival` asks once a
//! connection.
//!
//! A certificate was checked by then, but what an authority lets its clients write into it may be anything. So all
//! texts are of visible letters of ASCII, and a separator within a value is told from one between values.

use std::net::IpAddr;

use rustls::{ProtocolVersion, ServerConnection};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::x509::{AttributeTypeAndValue, RelativeDistinguishedName, X509Name};

/// Of a connection.
pub struct Facts {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// As IANA names it: `TLS_AES_128_GCM_SHA256`.
    pub cipher: String,
    /// What the client asked for, in lower case.
    pub server_name: Option<String>,
    /// Whether HTTP/2 was agreed on.
    pub alpn_h2: bool,
    /// Checked against the listener's authorities.
    pub client: Option<ClientCertificate>,
}

/// Of a client's certificate. What can't be read in it is an empty text.
pub struct ClientCertificate {
    /// In the certificate's order, mostly from the general to the particular: `C=DE, O=Example, CN=alice`. Escaped by
    /// RFC 4514 §2.4.
    pub subject: String,
    /// The subject's other names: `DNS:a.example,IP:::1,URI:spiffe://example/a,email:a@example.org`. In a name, `,` is
    /// written `\,`.
    pub names: String,
    /// SHA-256 of the whole, in hexadecimal digits, which are in lower case.
    pub fingerprint: String,
    /// As the subject.
    pub issuer: String,
    /// In hexadecimal digits, in lower case.
    pub serial: String,
}

/// After the handshake; before it, there is little to tell.
pub fn facts(connection: &ServerConnection) -> Facts {
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    };
    let cipher = connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or_default();
    Facts {
        version,
        // rustls has a name of its own for those of TLS 1.3.
        cipher: cipher.replacen("TLS13_", "TLS_", 1),
        server_name: connection.server_name().map(str::to_owned),
        alpn_h2: connection.alpn_protocol() == Some(b"h2"),
        client: connection.peer_certificates().and_then(<[_]>::first).map(|leaf| ClientCertificate::read(leaf)),
    }
}

// === ClientCertificate ===

impl ClientCertificate {
    fn read(der: &[u8]) -> Self {
        let fingerprint = hex(super::sha256(der).as_ref());
        let parsed = x509_parser::parse_x509_certificate(der).ok();
        let text = |of: fn(&X509Certificate) -> String| parsed.as_ref().map(|(_, leaf)| of(leaf)).unwrap_or_default();
        ClientCertificate {
            subject: text(|leaf| distinguished(leaf.subject())),
            names: text(names),
            fingerprint,
            issuer: text(|leaf| distinguished(leaf.issuer())),
            serial: text(serial),
        }
    }
}

fn serial(leaf: &X509Certificate) -> String {
    // A number whose first bit is set has a zero before it, which isn't shown elsewhere either.
    let bytes = leaf.raw_serial();
    hex(bytes.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(bytes))
}

fn names(leaf: &X509Certificate) -> String {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    names.filter_map(alternative).collect::<Vec<_>>().join(",")
}

/// None for kinds that have no usual text.
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

fn distinguished(name: &X509Name) -> String {
    name.iter().map(relative).collect::<Vec<_>>().join(", ")
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

/// With a backslash before what is special, and `\C3` for a byte that is no visible letter of ASCII.
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

/// What separates names, and the escape itself.
const IN_NAMES: &[u8] = b",\\";
/// RFC 4514 §2.4.
const IN_DISTINGUISHED: &[u8] = b",+\"\\<>;";
