//! An authority for tests, with a folder of certificates, and both kinds of configuration made of them.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    SignatureAlgorithm,
};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, SupportedProtocolVersion};
use tempfile::TempDir;

use super::client::{ClientFiles, Roots, Verify, client};
use super::pem;
use super::pem::CertificateFiles;
use super::server::{ClientAuth, MinimumVersion, ServerFiles};

/// A folder with an authority, `ca.pem`, and the certificates that it has issued.
pub struct TestAuthority {
    pub folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl TestAuthority {
    pub fn new() -> Self {
        let mut params = params("Tests", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = TestAuthority { folder: tempfile::tempdir().unwrap(), issuer };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    /// Creates an authority that has issued `site.pem` to `site.example`.
    pub fn with_site() -> Self {
        let authority = Self::new();
        authority.issue("site", &PKCS_ECDSA_P256_SHA256, &["site.example"]);
        authority
    }

    /// Writes `NAME.pem` and `NAME.key`.
    pub fn issue(&self, file: &str, kind: &'static SignatureAlgorithm, names: &[&str]) {
        self.issue_by(file, kind, params(file, names));
    }

    pub fn issue_by(&self, file: &str, kind: &'static SignatureAlgorithm, params: CertificateParams) {
        let key = KeyPair::generate_for(kind).unwrap();
        self.write(&format!("{file}.pem"), &params.signed_by(&key, &self.issuer).unwrap().pem());
        self.write(&format!("{file}.key"), &key.serialize_pem());
    }

    pub fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path(file), text).unwrap();
    }

    pub fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).unwrap()
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub fn files(&self, name: &str) -> CertificateFiles {
        CertificateFiles { chain: self.path(&format!("{name}.pem")), key: self.path(&format!("{name}.key")) }
    }

    pub fn served(&self, names: &[&str], client: ClientAuth) -> ServerFiles {
        let certificates = names.iter().map(|name| self.files(name)).collect();
        ServerFiles { certificates, client, minimum: MinimumVersion::Tls12, http2: true }
    }

    pub fn required(&self) -> ClientAuth {
        ClientAuth::Required(self.path("ca.pem"))
    }

    /// Returns a client that trusts this authority, and presents a certificate if it has one.
    pub fn client(&self, certificate: Option<&str>) -> Arc<ClientConfig> {
        let certificate = certificate.map(|name| self.files(name));
        let roots = Roots::File(self.path("ca.pem"));
        made(&ClientFiles { roots, certificate, verify: Verify::Always, http2: true })
    }

    /// Returns a client that trusts this authority, of one version.
    pub fn client_of(
        &self,
        provider: Arc<CryptoProvider>,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let (roots, _) = pem::authorities(&self.path("ca.pem")).unwrap();
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

pub fn params(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

pub fn made(files: &ClientFiles) -> Arc<ClientConfig> {
    client(files).unwrap()
}
