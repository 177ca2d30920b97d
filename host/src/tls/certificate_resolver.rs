//! The certificate that a client gets, chosen by the requested name (SNI) and the signatures that the client supports.
//! [`server`](super::server) creates the choice once per load; rustls queries it once per handshake.
#![expect(clippy::disallowed_methods, reason = "certificates are valid by wall-clock time")]

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};
use x509_parser::extensions::GeneralName;

use super::pem;
use super::validity::Validity;

/// A listener's certificates, by the DNS names in them. Common names don't count, as with clients (RFC 9525 §2).
#[derive(Debug)]
pub(super) struct CertificateResolver {
    exact: HashMap<String, CertificateChoice>,
    /// The wildcard certificates, by the text behind `*.`, which stands for one label (RFC 9525 §6.3).
    wildcards: HashMap<String, CertificateChoice>,
    /// The choice for clients that send no name or an unknown one; they decide whether to accept it.
    default: CertificateChoice,
}

/// The certificates for the same name with different kinds of keys or dates, the cheapest to sign with first.
#[derive(Debug, Default)]
struct CertificateChoice(Vec<ShownCertificate>);

/// A certificate that may be presented.
#[derive(Clone, Debug)]
struct ShownCertificate {
    certificate: Arc<CertifiedKey>,
    validity: Option<Validity>,
}

// === Certificates ===

impl CertificateResolver {
    /// Creates the choice. The first certificate is the default, together with those that have the same DNS names.
    pub(super) fn new(certificates: Vec<CertifiedKey>) -> Self {
        let default_names = certificates.first().map(dns_names).unwrap_or_default();
        let named = certificates.into_iter().enumerate().map(|(at, certificate)| {
            let names = dns_names(&certificate);
            // Two certificates without DNS names, for instance for addresses, need not be for the same server.
            let is_default = at == 0 || !names.is_empty() && names == default_names;
            (is_default, names, ShownCertificate::new(certificate))
        });
        let mut named: Vec<_> = named.collect();
        // A stable order: of two certificates that are equal in this respect, the earlier one in the manifest is used.
        named.sort_by_key(|(_, _, shown)| shown.certificate.key.algorithm() == SignatureAlgorithm::RSA);

        let mut all = CertificateResolver {
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            default: CertificateChoice::default(),
        };
        for (is_default, names, shown) in named {
            if is_default {
                all.default.0.push(shown.clone());
            }
            names.into_iter().for_each(|name| all.add(&name, &shown));
        }
        all
    }

    fn add(&mut self, name: &str, shown: &ShownCertificate) {
        let (names, key) = match name.strip_prefix("*.") {
            Some(parent) => (&mut self.wildcards, parent),
            None => (&mut self.exact, name),
        };
        names.entry(key.into()).or_default().0.push(shown.clone());
    }

    /// Returns the choice for a name in lower case. A trailing dot has no meaning (RFC 6066 §3 has names without). A
    /// wildcard replaces a certificate of the exact name that is not valid.
    fn choice(&self, name: Option<&str>, now: SystemTime) -> &CertificateChoice {
        let Some(name) = name else { return &self.default };
        let name = name.strip_suffix('.').unwrap_or(name);
        let exact = self.exact.get(name);
        let wildcard = name.split_once('.').and_then(|(_, parent)| self.wildcards.get(parent));
        let is_valid = |choice: &&CertificateChoice| choice.0.iter().any(|shown| shown.is_valid(now));
        let valid = exact.filter(is_valid).or_else(|| wildcard.filter(is_valid));
        valid.or(exact).or(wildcard).unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls has put the name in lower case.
        let now = SystemTime::now();
        self.choice(hello.server_name(), now).for_client(hello.signature_schemes(), now)
    }
}

// === Choice ===

impl CertificateChoice {
    /// Returns a certificate whose signatures the client supports, preferably a valid one. If the client supports none,
    /// the handshake fails with rustls's own error.
    fn for_client(&self, understood: &[SignatureScheme], now: SystemTime) -> Option<Arc<CertifiedKey>> {
        let CertificateChoice(all) = self;
        let fits = |shown: &&ShownCertificate| shown.certificate.key.choose_scheme(understood).is_some();
        let valid = || all.iter().find(|shown| shown.is_valid(now) && fits(shown));
        let chosen = match all.as_slice() {
            [only] => Some(only),
            _ => valid().or_else(|| all.iter().find(fits)).or(all.first()),
        };
        chosen.map(|shown| shown.certificate.clone())
    }
}

// === Shown ===

impl ShownCertificate {
    fn new(certificate: CertifiedKey) -> Self {
        let validity = certificate.cert.first().and_then(|leaf| Validity::of(leaf));
        ShownCertificate { certificate: Arc::new(certificate), validity }
    }

    fn is_valid(&self, now: SystemTime) -> bool {
        self.validity.is_none_or(|validity| validity.invalid(now).is_none())
    }
}

/// Whether the certificate in a file is chosen for no name, because it has no DNS name.
pub fn is_nameless(chain: &Path) -> bool {
    let certificates = pem::certificates(chain).unwrap_or_default();
    certificates.first().is_some_and(|leaf| names_in(leaf).is_empty())
}

fn dns_names(certificate: &CertifiedKey) -> BTreeSet<String> {
    certificate.cert.first().map(|leaf| names_in(leaf)).unwrap_or_default()
}

/// Returns the DNS names of a certificate in lower case.
fn names_in(leaf: &[u8]) -> BTreeSet<String> {
    let leaf = x509_parser::parse_x509_certificate(leaf).ok();
    let Some((_, leaf)) = leaf else { return BTreeSet::new() };
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let dns = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()),
        _ => None,
    });
    dns.collect()
}
