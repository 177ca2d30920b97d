//! The assembly of the TLS settings for an upstream's endpoints.

use std::ops::Range;
use std::sync::Arc;

use rustls_pki_types::ServerName;

use super::listeners::certificate_files;
use super::{Assembly, beside};
use crate::config::diagnostic::Source;
use crate::config::manifest;
use crate::config::spanned::Spanned;
use crate::system::files;
use crate::tls;
use crate::tls::client::{ClientFilePlace, ClientFiles, Roots, SystemRoots, Verify};
use crate::upstream::connect::TlsDialer;

/// The place of an endpoint in a file.
pub(super) struct EndpointPlace<'a> {
    pub(super) source: &'a Arc<Source>,
    pub(super) span: Range<usize>,
}

impl Assembly<'_> {
    /// Returns the authorities in a file, or else those of the system, which are read once per assembly.
    pub(super) fn roots(&mut self, source: &Source, file: Option<&Spanned<String>>) -> Roots {
        match file {
            Some(file) => Roots::File(beside(source, file.get_ref())),
            None => Roots::System(self.system_roots.get_or_insert_with(SystemRoots::read).clone()),
        }
    }

    /// Returns the TLS settings for an endpoint; `None` if one of them has an error.
    pub(super) fn dialer(
        &mut self,
        source: &Arc<Source>,
        endpoint: EndpointPlace<'_>,
        host: &str,
        upstream: &manifest::UpstreamTable,
    ) -> Option<TlsDialer> {
        let default = manifest::UpstreamTls::default();
        let tls = upstream.tls.as_ref().map_or(&default, Spanned::get_ref);
        let (name, location) = match &tls.server_name {
            Some(name) => (name.get_ref().as_str(), EndpointPlace { source, span: name.span() }),
            None => (host, endpoint),
        };
        let Ok(name) = ServerName::try_from(name.to_owned()) else {
            let message = format!(
                "invalid name for a certificate: `{name}`; expected a host, such as `server-name = \"app.internal\"` in `tls`"
            );
            self.problems.at(location.source, location.span, message);
            return None;
        };
        let files = ClientFiles {
            roots: self.roots(source, tls.ca.as_ref()),
            certificate: tls.certificate.as_ref().map(|files| certificate_files(source, files.get_ref())),
            verify: if tls.insecure_skip_verify { Verify::Never } else { Verify::Always },
            http2: tls.http2.unwrap_or(true),
        };
        if let (Some(files), Some(named)) = (&files.certificate, &tls.certificate) {
            self.note_certificate(source, &named.get_ref().chain.span(), &files.chain);
        }
        let digest = digest(&files);
        if let Some(config) = self.assembly.dialers.get(&digest) {
            return Some(TlsDialer::new(config.clone(), name, digest));
        }
        match tls::client::client(&files) {
            Ok(config) => {
                self.assembly.dialers.insert(digest, config.clone());
                Some(TlsDialer::new(config, name, digest))
            }
            Err(mistakes) => {
                for mistake in mistakes {
                    let files = tls.certificate.as_ref().map(Spanned::get_ref);
                    let span = match mistake.place {
                        ClientFilePlace::Roots => tls.ca.as_ref().map(Spanned::span),
                        ClientFilePlace::Certificate => files.map(|files| files.chain.span()),
                        ClientFilePlace::Key => files.map(|files| files.key.span()),
                    };
                    match span {
                        Some(span) => self.problems.at(source, span, mistake.message),
                        None => self.problems.at(location.source, location.span.clone(), mistake.message),
                    }
                }
                None
            }
        }
    }
}

/// Computes the digest of a configuration: two with the same digest are equal.
pub(super) fn digest(files: &ClientFiles) -> blake3::Hash {
    let mut digest = blake3::Hasher::new();
    let mut content = |path: &std::path::Path| files::update_digest(&mut digest, path, files::PEM);
    let system = match &files.roots {
        Roots::File(path) => {
            content(path);
            None
        }
        Roots::System(system) => Some(system.digest()),
    };
    if let Some(files) = &files.certificate {
        content(&files.chain);
        content(&files.key);
    }
    let kinds = [system.is_some(), files.certificate.is_some(), files.http2];
    digest.update(&kinds.map(u8::from)).update(&[u8::from(matches!(files.verify, Verify::Never))]);
    if let Some(system) = system {
        digest.update(system.as_bytes());
    }
    digest.finalize()
}
