//! The text of a distinguished name: as RFC 4514 writes it, with the names of attributes that OpenSSL has, and thus nginx,
//! Apache and HAProxy. [`handshake_info`](super::handshake_info) reads the names of certificates by this module.

use x509_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::x509::{AttributeTypeAndValue, RelativeDistinguishedName, X509Name};

/// Returns the text of a name: the particular before the general, the opposite of the certificate's order, also among the
/// attributes of one relative name.
pub fn distinguished(name: &X509Name) -> String {
    joined(name.iter().map(relative).collect(), ",")
}

fn relative(name: &RelativeDistinguishedName) -> String {
    joined(name.iter().map(attribute).collect(), "+")
}

fn joined(mut parts: Vec<String>, separator: &str) -> String {
    parts.reverse();
    parts.join(separator)
}

fn attribute(attribute: &AttributeTypeAndValue) -> String {
    let (number, value) = (attribute.attr_type().to_id_string(), attribute.attr_value());
    let name = NAMES.iter().find(|(known, _)| *known == number).map(|(_, name)| *name);
    match name.and_then(|name| Some((name, text(value)?))) {
        Some((name, text)) => format!("{name}={}", escaped(&text, SPECIAL)),
        // Where there is no usual text, the value is its encoding (RFC 4514 §2.4).
        None => format!("{}=#{}", name.unwrap_or(&number), hex(&value.to_der_vec().unwrap_or_default())),
    }
}

/// Returns the text of a value; `None` if the value is no text, or a malformed one.
fn text(value: &Any) -> Option<String> {
    match value.tag() {
        Tag::NumericString | Tag::PrintableString | Tag::Utf8String | Tag::Ia5String | Tag::VisibleString => {
            std::str::from_utf8(value.data).ok().map(str::to_owned)
        }
        Tag::BmpString => {
            let units: Vec<u16> = value.data.as_chunks().0.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
            String::from_utf16(&units).ok()
        }
        // Programs take it for Latin-1 (ISO 8859-1).
        Tag::TeletexString => Some(value.data.iter().copied().map(char::from).collect()),
        _ => None,
    }
}

/// Escapes special characters with a backslash, and bytes that are no visible letters of ASCII as `\C3`.
pub fn escaped(text: &str, special: &[u8]) -> String {
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

/// Returns bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The characters that RFC 4514 §2.4 escapes.
const SPECIAL: &[u8] = b",+\"\\<>;";

/// The names of attributes by their numbers: the short names of OpenSSL, for the attributes of X.520 and of RFC 4519, and for
/// those that authorities and directories use besides. Names in OpenSSL that RFC 4514 §3 has too are alike in both.
const NAMES: [(&str, &str); 70] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.14", "searchGuide"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.16", "postalAddress"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.18", "postOfficeBox"),
    ("2.5.4.19", "physicalDeliveryOfficeName"),
    ("2.5.4.20", "telephoneNumber"),
    ("2.5.4.21", "telexNumber"),
    ("2.5.4.22", "teletexTerminalIdentifier"),
    ("2.5.4.23", "facsimileTelephoneNumber"),
    ("2.5.4.24", "x121Address"),
    ("2.5.4.25", "internationaliSDNNumber"),
    ("2.5.4.26", "registeredAddress"),
    ("2.5.4.27", "destinationIndicator"),
    ("2.5.4.28", "preferredDeliveryMethod"),
    ("2.5.4.29", "presentationAddress"),
    ("2.5.4.30", "supportedApplicationContext"),
    ("2.5.4.31", "member"),
    ("2.5.4.32", "owner"),
    ("2.5.4.33", "roleOccupant"),
    ("2.5.4.34", "seeAlso"),
    ("2.5.4.35", "userPassword"),
    ("2.5.4.36", "userCertificate"),
    ("2.5.4.37", "cACertificate"),
    ("2.5.4.38", "authorityRevocationList"),
    ("2.5.4.39", "certificateRevocationList"),
    ("2.5.4.40", "crossCertificatePair"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.45", "x500UniqueIdentifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.47", "enhancedSearchGuide"),
    ("2.5.4.48", "protocolInformation"),
    ("2.5.4.49", "distinguishedName"),
    ("2.5.4.50", "uniqueMember"),
    ("2.5.4.51", "houseIdentifier"),
    ("2.5.4.52", "supportedAlgorithms"),
    ("2.5.4.53", "deltaRevocationList"),
    ("2.5.4.54", "dmdName"),
    ("2.5.4.65", "pseudonym"),
    ("2.5.4.72", "role"),
    ("2.5.4.97", "organizationIdentifier"),
    ("2.5.4.98", "c3"),
    ("2.5.4.99", "n3"),
    ("2.5.4.100", "dnsName"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.3", "mail"),
    ("0.9.2342.19200300.100.1.9", "host"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.44", "uid"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
    ("1.2.840.113549.1.9.7", "challengePassword"),
    ("1.2.840.113549.1.9.8", "unstructuredAddress"),
    ("1.3.6.1.4.1.311.60.2.1.1", "jurisdictionL"),
    ("1.3.6.1.4.1.311.60.2.1.2", "jurisdictionST"),
    ("1.3.6.1.4.1.311.60.2.1.3", "jurisdictionC"),
];

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// Runs `openssl` in a folder, and returns its output.
    fn openssl(folder: &Path, arguments: &[&str]) -> Vec<u8> {
        let done = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    }

    /// Returns the subject of a new certificate: our text, and that of OpenSSL in the form that nginx shows.
    fn texts(folder: &Path, subject: &str, strings: &str) -> (String, String) {
        let config = format!("[req]\nstring_mask = {strings}\ndistinguished_name = dn\n[dn]\n");
        std::fs::write(folder.join("req.cnf"), config).unwrap();
        let make =
            ["req", "-config", "req.cnf", "-x509", "-utf8", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        let make = [&make[..], &["-nodes", "-keyout", "key.pem", "-subj", subject, "-out", "leaf.pem"]].concat();
        openssl(folder, &make);
        let shown = openssl(folder, &["x509", "-in", "leaf.pem", "-noout", "-subject", "-nameopt", "RFC2253"]);
        let der = openssl(folder, &["x509", "-in", "leaf.pem", "-outform", "der"]);
        let leaf = x509_parser::parse_x509_certificate(&der).unwrap().1;
        let shown = String::from_utf8(shown).unwrap().trim_end_matches('\n').replacen("subject=", "", 1);
        (distinguished(leaf.subject()), shown)
    }

    #[test]
    fn names_are_those_of_openssl() {
        let folder = tempfile::tempdir().unwrap();
        let value = |name: &str| if ["C", "jurisdictionC"].contains(&name) { "DE" } else { "123" };
        let subject: String = NAMES.iter().map(|(_, name)| format!("/{name}={}", value(name))).collect();
        for (subject, strings) in [
            (subject.as_str(), "utf8only"),
            ("/CN=alice/emailAddress=a@b.example", "default"),
            ("/OU=a+CN=multi+UID=u1/O=b", "default"),
            ("/CN=Jörg, the \"2nd\"; <a\\+b> \\\\ #", "utf8only"),
            ("/CN= lead and trail ", "utf8only"),
            ("/CN=#hash", "utf8only"),
            ("/CN=Jörg", "nombstr"),
            ("/CN=中文", "default"),
        ] {
            let (ours, theirs) = texts(folder.path(), subject, strings);
            assert_eq!(ours, theirs, "{subject}");
        }
    }

    #[test]
    fn unknown_attributes_and_values_without_a_text_are_hexadecimal() {
        let text = |bytes: &[u8]| {
            let (_, name) = <X509Name as x509_parser::prelude::FromDer<_>>::from_der(bytes).unwrap();
            distinguished(&name)
        };
        // 1.2.3.4 with the text `ab`, then CN as a text of two bytes a letter, and CN as octets.
        let unknown = [&[0x30, 13, 0x31, 11, 0x30, 9, 6, 3, 42, 3, 4, 12, 2][..], b"ab"].concat();
        assert_eq!(text(&unknown), "1.2.3.4=#0c026162");
        let wide = [0x30, 13, 0x31, 11, 0x30, 9, 6, 3, 85, 4, 3, 30, 2, 0x4e, 0x2d];
        assert_eq!(text(&wide), r"CN=\E4\B8\AD");
        let octets = [0x30, 13, 0x31, 11, 0x30, 9, 6, 3, 85, 4, 3, 4, 2, 0xff, 0];
        assert_eq!(text(&octets), "CN=#0402ff00");
    }
}
