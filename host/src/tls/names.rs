//! Which certificate a client is shown, by the name that it asks for (SNI) and the signatures that it understands.
//! [`server`](super::server) makes it once a load; rustls asks it once a handshake.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};
use x509_parser::extensions::GeneralName;

/// A listener's certificates, by the DNS names in them. Common names don't count, as with clients (RFC 9525 §2).
#[derive(Debug)]
pub(super) struct Certificates {
    exact: HashMap<String, Choice>,
    /// By what follows `*.`, which stands for one label (RFC 9525 §6.3).
    wildcards: HashMap<String, Choice>,
    /// For clients that name nothing, or something unknown: those then decide whether they like it.
    default: Choice,
}

/// Certificates for the same name with different kinds of keys, the cheapest to sign with first.
#[derive(Debug, Default)]
struct Choice(Vec<Arc<CertifiedKey>>);

// === Certificates ===

impl Certificates {
    /// The first is the default, together with those that have the same names.
    pub(super) fn new(certificates: Vec<CertifiedKey>) -> Self {
        let named = certificates.into_iter().map(|certificate| (dns_names(&certificate), Arc::new(certificate)));
        let mut named: Vec<_> = named.collect();
        let default_names = named.first().map(|(names, _)| names.clone()).unwrap_or_default();
        // A stable order: of two that are alike in this, the earlier in the manifest is taken.
        named.sort_by_key(|(_, certificate)| certificate.key.algorithm() == SignatureAlgorithm::RSA);

        let mut all = Certificates { exact: HashMap::new(), wildcards: HashMap::new(), default: Choice::default() };
        for (names, certificate) in named {
            if names == default_names {
                all.default.0.push(certificate.clone());
            }
            names.into_iter().for_each(|name| all.add(&name, &certificate));
        }
        all
    }

    fn add(&mut self, name: &str, certificate: &Arc<CertifiedKey>) {
        let (names, key) = match name.strip_prefix("*.") {
            Some(parent) => (&mut self.wildcards, parent),
            None => (&mut self.exact, name),
        };
        names.entry(key.into()).or_default().0.push(certificate.clone());
    }

    /// For a name in lower case. A dot at its end says nothing more (RFC 6066 §3 has names without).
    fn choice(&self, name: Option<&str>) -> &Choice {
        let named = name.map(|name| name.strip_suffix('.').unwrap_or(name)).and_then(|name| {
            let wildcard = || self.wildcards.get(name.split_once('.')?.1);
            self.exact.get(name).or_else(wildcard)
        });
        named.unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls has put the name in lower case.
        self.choice(hello.server_name()).for_client(hello.signature_schemes())
    }
}

// === Choice ===

impl Choice {
    /// One whose signatures the client understands; if there is none, the handshake fails with rustls's own words.
    fn for_client(&self, understood: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let Choice(certificates) = self;
        if let [only] = certificates.as_slice() {
            return Some(only.clone());
        }
        let fit = certificates.iter().find(|certificate| certificate.key.choose_scheme(understood).is_some());
        fit.or(certificates.first()).cloned()
    }
}

fn dns_names(certificate: &CertifiedKey) -> BTreeSet<String> {
    let leaf = certificate.cert.first().and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok());
    let Some((_, leaf)) = leaf else { return BTreeSet::new() };
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let dns = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()),
        _ => None,
    });
    dns.collect()
}
