//! The errors of handshakes in words for the log: the cause, and the key of the manifest that concerns it. The texts of
//! rustls are the names of its types, and don't mention the manifest.

use std::io;
use std::time::{Duration, SystemTime};

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use rustls_pki_types::UnixTime;

/// The peer of a handshake that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPeer {
    Client,
    Endpoint,
}

/// The part of TLS that has failed, as RFC 9209 §2.3 distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsErrorClass {
    /// The certificate of the peer can't be accepted.
    Certificate,
    /// The peer has sent an alert.
    Alert,
    Protocol,
}

/// Returns the class of an error of a handshake, or of the connection after it; `None` if the error is not of TLS.
pub fn class(error: &io::Error) -> Option<TlsErrorClass> {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(_)) => Some(TlsErrorClass::Certificate),
        Some(Error::AlertReceived(_)) => Some(TlsErrorClass::Alert),
        Some(_) => Some(TlsErrorClass::Protocol),
        None => alert_in_text(&error.to_string()).map(|_| TlsErrorClass::Alert),
    }
}

/// Returns the words for an error of a handshake, or of the connection after it; `None` if the error is not of TLS.
pub fn in_words(error: &io::Error, peer: TlsPeer) -> Option<String> {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
        Some(cause) => Some(words(cause, peer)),
        // h2 keeps the text of an error, and no type.
        None if let Some(alert) = alert_in_text(&error.to_string()) => Some(words(&alert, peer)),
        None if error.to_string().contains(NO_END) => {
            Some(format!("the {} closed the connection without the end of TLS (close_notify)", peer.name()))
        }
        // tokio-rustls has this text, and no type.
        None => error.to_string().contains("handshake eof").then(|| {
            let hint = if peer == TlsPeer::Endpoint { "; it may not speak TLS at this address" } else { "" };
            format!("the {} closed the connection within the TLS handshake{hint}", peer.name())
        }),
    }
}

/// The beginning of the text that rustls has for a connection without its end; the rest is the address of a manual.
const NO_END: &str = "without sending TLS close_notify";

/// Returns the alert that rustls describes by a text; `None` if the text is another.
fn alert_in_text(text: &str) -> Option<Error> {
    let mut alerts = (0..=u8::MAX).map(|code| Error::AlertReceived(AlertDescription::from(code)));
    alerts.find(|alert| alert.to_string() == text)
}

/// Returns the words for a certificate that its owner shows, such as "the endpoint".
pub(super) fn certificate_in_words(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "is signed by no trusted authority".into(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<&str> = presented.iter().map(|name| bare_name(name)).collect();
            let names = if names.is_empty() { "no name at all".into() } else { names.join(", ") };
            format!("is not for the name `{}`, but for {names}", expected.to_str())
        }
        CertificateError::NotValidForName => "is for another name".into(),
        CertificateError::ExpiredContext { not_after, .. } => format!("has expired: {}", date(*not_after)),
        CertificateError::Expired => "has expired".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("is not valid before {}; this machine's clock may be wrong", date(*not_before))
        }
        CertificateError::NotValidYet => "is not valid yet; this machine's clock may be wrong".into(),
        CertificateError::BadEncoding => "is damaged".into(),
        CertificateError::BadSignature => "has a signature that is not its authority's".into(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is for another purpose (extended key usage)".into()
        }
        CertificateError::Other(other) => match other.0.to_string().as_str() {
            "UnsupportedCertVersion" => {
                "is of X.509 version 1 or 2; only version 3 is supported, so issue it anew".into()
            }
            "CaUsedAsEndEntity" => {
                "is that of an authority (`CA:TRUE`); issue one of its own, which the authority signs".into()
            }
            other => format!("can't be verified: {other}"),
        },
        other => format!("can't be verified: {other}"),
    }
}

fn words(error: &Error, peer: TlsPeer) -> String {
    match (error, peer) {
        (Error::InvalidCertificate(error), _) => {
            let (owner, problem, remedy) = (peer.name(), certificate_in_words(error), certificate_remedy(error, peer));
            format!("the {owner}'s certificate {problem}{remedy}")
        }
        (Error::NoCertificatesPresented, TlsPeer::Client) => {
            "the client has shown no certificate, and `client-certificate` of the listener is \"required\"".into()
        }
        (Error::AlertReceived(alert), _) => {
            let (name, meaning) = (alert_name(*alert), alert_meaning(*alert, peer));
            format!("the {} ended TLS with the alert `{name}`{meaning}", peer.name())
        }
        (Error::InvalidMessage(_) | Error::InappropriateMessage { .. }, TlsPeer::Endpoint) => {
            "the endpoint doesn't speak TLS, or not here; remove `https://` before its address, or name its port for TLS"
                .into()
        }
        (Error::InvalidMessage(_) | Error::InappropriateMessage { .. }, TlsPeer::Client) => {
            "the client has sent bytes that are no TLS".into()
        }
        (Error::PeerIncompatible(why), _) => incompatible(why, peer),
        (Error::NoApplicationProtocol, TlsPeer::Client) => {
            "the client offers no HTTP version that the listener speaks (ALPN); see `http2` of the listener's `tls`".into()
        }
        (Error::NoApplicationProtocol, TlsPeer::Endpoint) => {
            "the endpoint speaks no HTTP version that is offered (ALPN); see `tls.http2` of the upstream".into()
        }
        (error, _) => format!("TLS with the {} failed: {error}", peer.name()),
    }
}

fn certificate_remedy(error: &CertificateError, peer: TlsPeer) -> &'static str {
    match (error, peer) {
        (CertificateError::UnknownIssuer, TlsPeer::Endpoint) => {
            "; name the file of its authority in `tls.ca` of the upstream, or have the endpoint send its whole chain"
        }
        (CertificateError::UnknownIssuer, TlsPeer::Client) => {
            "; those that are trusted are in the file that `client-ca` of the listener names"
        }
        (CertificateError::NotValidForNameContext { presented, .. }, TlsPeer::Endpoint) if presented.is_empty() => {
            "; issue it anew with a subjectAltName, since a common name (CN) doesn't count"
        }
        (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }, TlsPeer::Endpoint) => {
            "; set `tls.server-name` of the upstream to a name that it is for"
        }
        _ => "",
    }
}

fn incompatible(why: &PeerIncompatible, peer: TlsPeer) -> String {
    let versions = matches!(
        why,
        PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
    );
    match (versions, peer) {
        (true, TlsPeer::Client) => {
            "the client speaks no version of TLS that the listener accepts; see `min-version` of its `tls`".into()
        }
        (true, TlsPeer::Endpoint) => "the endpoint speaks neither TLS 1.2 nor TLS 1.3".into(),
        (false, _) => {
            format!("the {} and Plugway have no way of TLS in common: {}", peer.name(), split(&format!("{why:?}")))
        }
    }
}

/// Returns what an alert probably means, as the end of a sentence.
fn alert_meaning(alert: AlertDescription, peer: TlsPeer) -> &'static str {
    let is_about_certificate = matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
    );
    match (alert, peer) {
        (AlertDescription::CertificateRequired, TlsPeer::Endpoint) => {
            ": it wants a client certificate; name one in `tls.certificate` of the upstream"
        }
        (_, TlsPeer::Endpoint) if is_about_certificate => {
            ": it does not accept the client certificate; see `tls.certificate` of the upstream"
        }
        (_, TlsPeer::Client) if is_about_certificate => {
            ": it does not trust the certificate that the listener shows; see `tls.certificates` of the listener"
        }
        (AlertDescription::UnrecognisedName, TlsPeer::Endpoint) => {
            ": it does not know the server name; see `tls.server-name` of the upstream"
        }
        (AlertDescription::HandshakeFailure, TlsPeer::Endpoint) => {
            ": it has no cipher in common with Plugway, or wants a client certificate (`tls.certificate` of the upstream)"
        }
        (AlertDescription::ProtocolVersion, TlsPeer::Endpoint) => ": it speaks neither TLS 1.2 nor TLS 1.3",
        (AlertDescription::NoApplicationProtocol, TlsPeer::Endpoint) => {
            ": it speaks no HTTP version that is offered; see `tls.http2` of the upstream"
        }
        _ => "",
    }
}

impl TlsPeer {
    fn name(self) -> &'static str {
        match self {
            TlsPeer::Client => "client",
            TlsPeer::Endpoint => "endpoint",
        }
    }
}

/// Returns the name of an alert as RFC 8446 §6 has it.
fn alert_name(alert: AlertDescription) -> String {
    split(&format!("{alert:?}").replace("CA", "Ca").replace("PSK", "Psk")).replace(' ', "_")
}

/// Splits a name such as `UnknownCa` into words.
fn split(name: &str) -> String {
    let mut words = String::with_capacity(name.len() + 8);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

/// Returns the name in a text such as `DnsName("site.example")`.
fn bare_name(text: &str) -> &str {
    let inner = text.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(text);
    inner.trim_matches('"')
}

fn date(time: UnixTime) -> String {
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::ServerName;

    use super::*;

    #[test]
    fn certificates_are_described_in_words_with_the_key() {
        let expected = ServerName::try_from("a.example").unwrap();
        let presented = vec!["DnsName(\"b.example\")".into(), "IpAddress(127.0.0.1)".into()];
        let name = Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented });
        assert_eq!(
            words(&name, TlsPeer::Endpoint),
            "the endpoint's certificate is not for the name `a.example`, but for b.example, 127.0.0.1; set \
             `tls.server-name` of the upstream to a name that it is for"
        );
        let (expected, presented) = (ServerName::try_from("localhost").unwrap(), Vec::new());
        let nameless = Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented });
        let said = words(&nameless, TlsPeer::Endpoint);
        assert!(said.contains("no name at all") && said.contains("subjectAltName"), "{said}");
        assert!(!said.contains("server-name"), "{said}");
        let issuer = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(words(&issuer, TlsPeer::Client).contains("`client-ca`"));
        assert!(words(&issuer, TlsPeer::Endpoint).contains("`tls.ca`"));
    }

    #[test]
    fn a_missing_end_of_tls_is_no_address_of_a_manual() {
        let text = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/x#unexpected-eof";
        let said = in_words(&io::Error::new(io::ErrorKind::UnexpectedEof, text), TlsPeer::Endpoint).unwrap();
        assert_eq!(said, "the endpoint closed the connection without the end of TLS (close_notify)");
    }

    #[test]
    fn failures_have_the_classes_of_the_rfc() {
        let of = |error| class(&io::Error::other(error));
        assert_eq!(of(Error::InvalidCertificate(CertificateError::Expired)), Some(TlsErrorClass::Certificate));
        assert_eq!(of(Error::AlertReceived(AlertDescription::CertificateRequired)), Some(TlsErrorClass::Alert));
        assert_eq!(of(Error::NoApplicationProtocol), Some(TlsErrorClass::Protocol));
        // As h2 keeps it.
        let text = Error::AlertReceived(AlertDescription::CertificateRequired).to_string();
        assert_eq!(class(&io::Error::other(text)), Some(TlsErrorClass::Alert));
        assert_eq!(class(&io::ErrorKind::ConnectionReset.into()), None);
    }

    #[test]
    fn alerts_have_the_names_of_the_rfc() {
        for (alert, name) in [
            (AlertDescription::UnknownCA, "unknown_ca"),
            (AlertDescription::HandshakeFailure, "handshake_failure"),
            (AlertDescription::CertificateRequired, "certificate_required"),
            (AlertDescription::UnknownPSKIdentity, "unknown_psk_identity"),
        ] {
            assert_eq!(alert_name(alert), name);
        }
    }
}
