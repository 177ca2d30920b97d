//! TLS towards endpoints: trusted roots, our certificate, and the offered HTTP versions. `assemble` calls [`client`]
//! for each upstream with TLS; `upstream/connect` passes the name that an endpoint has to prove with each connection.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::CertificateError;
use super::bounded_chain::BoundedServerChain;
use super::pem::CertificateFiles;
use super::pem::{self, PemError};

/// The TLS settings of an upstream in the manifest.
pub struct ClientFiles {
    pub roots: Roots,
    /// The certificate that is presented to endpoints that request one; `None` if there is none.
    pub certificate: Option<CertificateFiles>,
    pub verify: Verify,
    pub http2: bool,
}

/// The authorities that are trusted to certify an endpoint's name.
pub enum Roots {
    System(Arc<SystemRoots>),
    File(PathBuf),
}

/// The system's authorities, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, as they were read.
pub struct SystemRoots {
    /// The authorities that can be read: some systems have an unusual one, which this proxy can't repair.
    store: Arc<RootCertStore>,
    /// The digest of the certificates: the same digest means the same authorities.
    digest: blake3::Hash,
    /// The first error of the system's files.
    error: Option<String>,
}

/// Whether an endpoint has to prove its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    Always,
    /// The setting is `insecure-skip-verify = true`: any certificate is accepted, and [`Roots`] aren't used.
    Never,
}

/// The setting of the [`ClientFiles`] that has an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFilePlace {
    Roots,
    Certificate,
    Key,
}

/// Accepts any certificate. The signatures of the handshake are verified nevertheless: that costs little, and rejects
/// peers with broken TLS.
#[derive(Debug)]
struct AcceptAnyCertificate(WebPkiSupportedAlgorithms);

/// Returns the TLS configuration for endpoints. The configuration stores the sessions to resume, so it is to be shared.
pub fn client(files: &ClientFiles) -> Result<Arc<ClientConfig>, Vec<CertificateError<ClientFilePlace>>> {
    let provider = super::provider();
    let mut mistakes = Vec::new();
    let verifier = verifier(files, &provider);
    let verifier =
        verifier.map_err(|message| mistakes.push(CertificateError { place: ClientFilePlace::Roots, message }));
    let certificate = certificate(files, &provider);
    let certificate = certificate.map_err(|faults| mistakes.extend(faults.into_iter().map(CertificateError::from)));
    let (Ok(verifier), Ok(certificate)) = (verifier, certificate) else { return Err(mistakes) };

    let verifier: Arc<dyn ServerCertVerifier> = match verifier {
        Some(verifier) => Arc::new(BoundedServerChain(verifier)),
        None => Arc::new(AcceptAnyCertificate(provider.signature_verification_algorithms)),
    };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has cipher suites for TLS 1.2 and 1.3");
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        Some(certificate) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = super::protocols(files.http2);
    Ok(Arc::new(config))
}

/// Returns the verifier by the trusted roots; `None` if any certificate is accepted.
fn verifier(files: &ClientFiles, provider: &Arc<CryptoProvider>) -> Result<Option<Arc<WebPkiServerVerifier>>, String> {
    let roots = match (files.verify, &files.roots) {
        (Verify::Never, _) => return Ok(None),
        (Verify::Always, Roots::File(path)) => Arc::new(pem::authorities(path)?.0),
        (Verify::Always, Roots::System(system)) => system.store()?,
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
    verifier.map(Some).map_err(|error| format!("the authorities can't be used: {error}"))
}

impl SystemRoots {
    /// Reads the authorities. Each generation reads them anew, since the system may add and remove some at any time.
    pub fn read() -> Arc<Self> {
        let native_certs = rustls_native_certs::load_native_certs();
        let mut digest = blake3::Hasher::new();
        for certificate in &native_certs.certs {
            digest.update(&(certificate.len() as u64).to_le_bytes()).update(certificate);
        }
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(native_certs.certs);
        let error = native_certs.errors.first().map(ToString::to_string);
        Arc::new(SystemRoots { store: Arc::new(store), digest: digest.finalize(), error })
    }

    /// Returns the digest of the authorities.
    pub fn digest(&self) -> blake3::Hash {
        self.digest
    }

    fn store(&self) -> Result<Arc<RootCertStore>, String> {
        if !self.store.is_empty() {
            return Ok(self.store.clone());
        }
        let why = self.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        Err(format!("this system has no authorities{why}; install `ca-certificates`, or name a file of them"))
    }
}

fn certificate(files: &ClientFiles, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, Vec<PemError>> {
    files.certificate.as_ref().map(|files| pem::certified(files, provider)).transpose()
}

// === Mistake ===

impl From<PemError> for CertificateError<ClientFilePlace> {
    fn from(fault: PemError) -> Self {
        match fault {
            PemError::Chain(message) => CertificateError { place: ClientFilePlace::Certificate, message },
            PemError::Key(message) => CertificateError { place: ClientFilePlace::Key, message },
        }
    }
}

// === Credulous ===

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
