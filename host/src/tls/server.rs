//! TLS towards clients: certificates by name, client certificates, resumption, and the choice of the HTTP version.
//! `assemble` calls [`server`] for each listener with TLS; all errors in its files are reported at once.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::CertificateDer;

use super::CertificateError;
use super::bounded_chain::BoundedClientChain;
use super::certificate_resolver::CertificateResolver;
use super::pem::{self, CertificateFiles, PemError};

/// The maximum number of encrypted bytes that a session holds for a client that reads nothing: two records.
pub const SEND_BUFFER: usize = 32 << 10;

/// The TLS settings of a listener.
pub struct ServerFiles {
    /// The certificates. The first is the default: used if the client sends no SNI or a name that no certificate has.
    pub certificates: Vec<CertificateFiles>,
    pub client: ClientAuth,
    pub minimum: MinimumVersion,
    pub http2: bool,
}

/// Whether clients are asked for certificates; with the file of authorities that these are checked against.
pub enum ClientAuth {
    None,
    /// A client without a certificate is served; one with a wrong certificate isn't.
    Optional(PathBuf),
    Required(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MinimumVersion {
    Tls12,
    Tls13,
}

/// The file of [`ServerFiles`] that has an error; certificates are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFilePlace {
    Certificate(usize),
    Key(usize),
    ClientCa,
}

/// The secret that seals session tickets, by which clients resume sessions. It is made once a process, so that sessions
/// outlive reloads, and changes every six hours; tickets of the former secret are still accepted.
pub struct Tickets(Arc<dyn ProducesTickets>);

/// The tickets for listeners that demand the same of their clients. Without this separation, a session that was begun
/// without a client certificate could be resumed where one is required: rustls doesn't check that.
#[derive(Debug)]
struct ScopedTickets {
    /// Behind a lock that is never contended: handshakes take it for reading, and it's written when the secret changes.
    all: Arc<dyn ProducesTickets>,
    /// A digest of the requirements, authorities included: no ticket outlives an authority that its client may have been
    /// verified against.
    scope: Vec<u8>,
}

/// The requirements for clients' certificates, and digests of the authorities: no connection outlives an authority that its
/// client may have been verified against.
#[derive(Clone, Debug)]
pub struct ClientScope {
    mode: &'static str,
    authorities: BTreeSet<Vec<u8>>,
}

/// The running configuration of a listener's TLS.
pub struct ServerTls {
    pub config: Arc<ServerConfig>,
    /// The requirements for clients' certificates; `None` if clients are asked for none.
    pub client_scope: Option<ClientScope>,
}

/// Returns the running configuration of a listener's TLS. All that it needs of the files is read here.
pub fn server(files: &ServerFiles, tickets: &Tickets) -> Result<ServerTls, Vec<CertificateError<ServerFilePlace>>> {
    let provider = super::provider();
    let mut mistakes = Vec::new();
    let certificates = certificates(&files.certificates, &provider, &mut mistakes);
    let client = client_auth(&files.client, &provider);
    let client =
        client.map_err(|message| mistakes.push(CertificateError { place: ServerFilePlace::ClientCa, message }));
    let (Ok((verifier, client_scope)), []) = (client, mistakes.as_slice()) else { return Err(mistakes) };

    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&files.minimum.versions());
    let builder = builder.expect("the provider has cipher suites for TLS 1.2 and 1.3");
    let certificates = Arc::new(CertificateResolver::new(certificates));
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(certificates);
    config.alpn_protocols = super::protocols(files.http2);
    // A client of HTTP/1.0 that offers its version alone (RFC 7301 §6) would have no handshake, and is served without TLS.
    config.alpn_protocols.push(b"http/1.0".to_vec());
    // The order of the provider, strongest first. A client's own order may be anything, and scanners complain of it.
    config.ignore_client_order = true;
    let scope = ClientScope::digest(client_scope.as_ref());
    config.ticketer = Arc::new(ScopedTickets { all: tickets.0.clone(), scope });
    // Sessions are with the clients alone: no memory that workers would share behind a lock, nothing to look through.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A request in early data could be replayed (RFC 8446 §8), and plugins couldn't tell; so it's never taken. Nor is
    // anything sent to a client whose part of the handshake hasn't been checked.
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    Ok(ServerTls { config: Arc::new(config), client_scope })
}

fn certificates(
    files: &[CertificateFiles],
    provider: &CryptoProvider,
    mistakes: &mut Vec<CertificateError<ServerFilePlace>>,
) -> Vec<CertifiedKey> {
    if files.is_empty() {
        let message = "no certificate is named; name the files of one".into();
        mistakes.push(CertificateError { place: ServerFilePlace::Certificate(0), message });
    }
    let mut certificates = Vec::new();
    for (index, files) in files.iter().enumerate() {
        match pem::certified(files, provider) {
            Ok(certificate) => certificates.push(certificate),
            Err(faults) => {
                mistakes.extend(faults.into_iter().map(|fault| CertificateError::of_certificate(index, fault)))
            }
        }
    }
    certificates
}

/// Returns the verifier of client certificates, and the tickets for clients that it has accepted.
fn client_auth(
    wanted: &ClientAuth,
    provider: &Arc<CryptoProvider>,
) -> Result<(Arc<dyn ClientCertVerifier>, Option<ClientScope>), String> {
    let (file, is_required) = match wanted {
        ClientAuth::None => return Ok((WebPkiClientVerifier::no_client_auth(), None)),
        ClientAuth::Optional(file) => (file, false),
        ClientAuth::Required(file) => (file, true),
    };
    let (roots, authorities) = pem::authorities(file)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let (builder, mode) = match is_required {
        true => (builder, "required"),
        false => (builder.allow_unauthenticated(), "optional"),
    };
    let verifier = builder.build().map_err(|error| format!("`{}` can't be used: {error}", file.display()))?;
    Ok((Arc::new(BoundedClientChain(verifier)), Some(ClientScope::of(mode, &authorities))))
}

// === MinimumVersion ===

impl MinimumVersion {
    fn versions(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            MinimumVersion::Tls12 => vec![&TLS13, &TLS12],
            MinimumVersion::Tls13 => vec![&TLS13],
        }
    }
}

// === Mistake ===

impl CertificateError<ServerFilePlace> {
    fn of_certificate(index: usize, fault: PemError) -> Self {
        match fault {
            PemError::Chain(message) => CertificateError { place: ServerFilePlace::Certificate(index), message },
            PemError::Key(message) => CertificateError { place: ServerFilePlace::Key(index), message },
        }
    }
}

// === Tickets ===

impl Tickets {
    /// Creates the tickets; an error if the system provides no random bytes.
    pub fn new() -> Result<Self, rustls::Error> {
        Ticketer::new().map(Tickets)
    }
}

// === ScopedTickets ===

impl ProducesTickets for ScopedTickets {
    fn enabled(&self) -> bool {
        self.all.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.all.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.all.encrypt(&[&self.scope, plain].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.all.decrypt(cipher)?.strip_prefix(self.scope.as_slice()).map(<[u8]>::to_vec)
    }
}

// === ClientScope ===

impl ClientScope {
    fn of(mode: &'static str, authorities: &[CertificateDer]) -> Self {
        let authorities = authorities.iter().map(|authority| super::sha256(authority).as_ref().to_vec()).collect();
        ClientScope { mode, authorities }
    }

    /// Returns whether clients need a certificate, in a word.
    pub fn mode(&self) -> &'static str {
        self.mode
    }

    /// Whether each client that meets other requirements meets these too.
    pub fn covers(&self, other: &ClientScope) -> bool {
        self.mode == other.mode && self.authorities.is_superset(&other.authorities)
    }

    /// Returns the scope of tickets, all of the same length, so that none is the beginning of another.
    fn digest(scope: Option<&ClientScope>) -> Vec<u8> {
        let mut prints = super::sha256(scope.map_or("none", |scope| scope.mode).as_bytes()).as_ref().to_vec();
        scope.iter().for_each(|scope| scope.authorities.iter().for_each(|print| prints.extend(print)));
        super::sha256(&prints).as_ref().to_vec()
    }
}
