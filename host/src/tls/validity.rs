//! The validity period of a certificate. An invalid certificate is served nevertheless, with warnings: its site may be
//! one of many, and its clients see the reason.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::pem;

/// The validity of a certificate: its first and its last moment, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: i64,
    pub until: i64,
}

/// The validity of the certificate in a file that a manifest names.
#[derive(Clone, Debug)]
pub struct DatedCertificate {
    pub chain: PathBuf,
    /// The place in the manifest that names the file, such as `plugway.toml:14`.
    pub place: String,
    /// The time in which the chain is valid: the common time of `certificate` and `issuer`.
    pub validity: Validity,
    certificate: Validity,
    /// The validity of the authority that has signed the certificate; `None` if the file doesn't have it next.
    issuer: Option<Validity>,
}

/// The reason why clients don't accept a certificate at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    Expired,
    NotYetValid,
}

impl Validity {
    /// Reads the dates of a certificate; `None` if it can't be parsed.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let validity = parsed.validity();
        Some(Validity { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() })
    }

    /// Returns the reason why the certificate is invalid at a time; `None` if it is valid.
    pub fn invalid(self, now: SystemTime) -> Option<Invalid> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        if now > self.until {
            return Some(Invalid::Expired);
        }
        (now < self.from).then_some(Invalid::NotYetValid)
    }
}

impl DatedCertificate {
    /// Reads the dates of the first certificate in a file, which a place in the manifest names, and of its issuer; `None` if
    /// no certificate can be parsed. Later certificates may have expired: clients take other ways around them.
    pub fn read(chain: &Path, place: String) -> Option<Self> {
        let certificates = pem::certificates(chain).ok()?;
        let (first, second) = (certificates.first()?, certificates.get(1));
        let certificate = Validity::of(first)?;
        let issuer = second.filter(|second| is_issued_by(first, second)).and_then(|second| Validity::of(second));
        let common = |issuer: Validity| Validity {
            from: certificate.from.max(issuer.from),
            until: certificate.until.min(issuer.until),
        };
        let validity = issuer.map_or(certificate, common);
        Some(DatedCertificate { chain: chain.into(), place, validity, certificate, issuer })
    }

    /// Returns the certificate that is not valid at a time, as messages name it, with its validity; `None` if both are valid.
    fn invalid(&self, now: SystemTime) -> Option<InvalidCertificate> {
        let own = self.certificate.invalid(now).map(|why| InvalidCertificate {
            what: "certificate",
            validity: self.certificate,
            why,
        });
        own.or_else(|| {
            let validity = self.issuer?;
            Some(InvalidCertificate { what: "certificate of the issuer", validity, why: validity.invalid(now)? })
        })
    }

    /// Returns a message if the certificate is not valid at a time.
    pub fn doubt(&self, now: SystemTime) -> Option<String> {
        let InvalidCertificate { what, validity: Validity { from, until }, why } = self.invalid(now)?;
        let chain = self.chain.display();
        Some(match why {
            Invalid::Expired => {
                format!("{what} has expired: `{chain}` was valid until {}; renew it, or set the clock", Date(until))
            }
            Invalid::NotYetValid => {
                format!("{what} is not yet valid: `{chain}` is valid from {}; set the clock, or wait", Date(from))
            }
        })
    }

    /// Warns if the certificate is not valid at a time.
    pub fn warn(&self, now: SystemTime) {
        let Some(InvalidCertificate { what, validity: Validity { from, until }, why }) = self.invalid(now) else {
            return;
        };
        let (chain, place, date) = (self.chain.display(), &self.place, |seconds| Date(seconds).to_string());
        match why {
            Invalid::Expired => tracing::warn!(
                %chain,
                %place,
                expired = date(until),
                remedy = "renew it; the new file is taken as soon as it is in place",
                "{what} has expired: it is still shown, and refused by most of its peers"
            ),
            Invalid::NotYetValid => tracing::warn!(
                %chain,
                %place,
                valid_from = date(from),
                remedy = "set this machine's clock, or wait",
                "{what} is not yet valid: it is shown all the same, and refused by most of its peers"
            ),
        }
    }
}

/// A certificate of a chain that is not valid at some time.
struct InvalidCertificate {
    /// The certificate, as messages name it.
    what: &'static str,
    validity: Validity,
    why: Invalid,
}

/// Whether a certificate names the subject of another one as its issuer.
fn is_issued_by(certificate: &[u8], issuer: &[u8]) -> bool {
    let parsed = |der| x509_parser::parse_x509_certificate(der).ok().map(|(_, parsed)| parsed);
    let (Some(certificate), Some(issuer)) = (parsed(certificate), parsed(issuer)) else { return false };
    certificate.issuer().as_raw() == issuer.subject().as_raw()
}

/// Warns about all certificates that are not valid at a time.
pub fn warn_of(certificates: &[DatedCertificate], now: SystemTime) {
    certificates.iter().for_each(|dated| dated.warn(now));
}

/// A date, in seconds since 1970, displayed as certificates write it.
struct Date(i64);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match x509_parser::time::ASN1Time::from_timestamp(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_certificate_is_valid_from_its_first_to_its_last_second() {
        let validity = Validity { from: 100, until: 200 };
        let at = |seconds| validity.invalid(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!((at(99), at(100)), (Some(Invalid::NotYetValid), None));
        assert_eq!((at(200), at(201)), (None, Some(Invalid::Expired)));
    }
}
