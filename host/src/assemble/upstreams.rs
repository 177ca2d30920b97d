//! From an upstream's table to its endpoints, balancer and rules.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::ServerName;
use toml::Spanned;

use super::listeners::certificate_files;
use super::{Draft, beside};
use crate::config::manifest;
use crate::config::problem::Source;
use crate::generation::{Endpoint, Upstream};
use crate::proxy_protocol;
use crate::tls;
use crate::tls::client::{ClientFiles, Place as TlsPlace, Roots, Verify};
use crate::upstream::connect::Dialer;
use crate::upstream::{EndpointAddr, Place, Rules, Speaks};

impl Draft<'_> {
    pub(super) fn upstream(
        &mut self,
        source: &Arc<Source>,
        name: &Spanned<String>,
        upstream: &manifest::Upstream,
    ) -> Upstream {
        let mut endpoints = Vec::new();
        for endpoint in &upstream.endpoints {
            let (text, weight) = match endpoint.get_ref() {
                manifest::Endpoint::Address(address) => (address, 1),
                manifest::Endpoint::Weighted(endpoint) => {
                    (&endpoint.address, self.weight(source, endpoint.weight.as_ref()))
                }
            };
            let speaks = match scheme(text) {
                (Scheme::Http, rest) => Some((Speaks::Http1, rest)),
                (Scheme::H2c, rest) => Some((Speaks::Http2, rest)),
                (Scheme::Https, rest) => {
                    self.dialer(source, endpoint.span(), rest, upstream).map(|dialer| (Speaks::Tls(dialer), rest))
                }
            };
            let Some((speaks, rest)) = speaks else { continue };
            match place(rest) {
                Some(place) => {
                    let address = EndpointAddr { text: text.as_str().into(), place, speaks };
                    let in_flight = self.assembly.in_flight.entry(address.clone()).or_default().clone();
                    endpoints.push(Endpoint { address, weight, in_flight });
                }
                None => {
                    let message = format!(
                        "`{text}` is no endpoint; write `127.0.0.1:8000`, `https://app.internal:443` or `unix:/path`"
                    );
                    self.problems.at(source, endpoint.span(), message);
                }
            }
        }
        if upstream.endpoints.is_empty() {
            self.problems.at(source, name.span(), "an upstream needs at least one endpoint");
        }
        let balancer = match &upstream.balancer {
            Some(reference) => {
                let place = self.reference(source, reference);
                if place.is_some_and(|place| !self.bindings[place].balances()) {
                    self.problems.at(
                        source,
                        reference.span(),
                        "this plugin is no balancer: it doesn't export that hook",
                    );
                }
                place
            }
            None if endpoints.len() > 1 => self.round_robin(source, name.span()),
            None => None,
        };
        let proxy_protocol = upstream.proxy_protocol.as_ref().and_then(|version| match version.get_ref().as_str() {
            "v1" => Some(proxy_protocol::Version::V1),
            "v2" => Some(proxy_protocol::Version::V2),
            other => {
                let message = format!("`{other}` is no version of the PROXY protocol; write \"v1\" or \"v2\"");
                self.problems.at(source, version.span(), message);
                None
            }
        });
        let rules = Rules {
            proxy_protocol,
            read_timeout: self.duration(source, upstream.read_timeout.as_ref(), Duration::from_secs(60)),
            connect_timeout: self.duration(source, upstream.connect_timeout.as_ref(), Duration::from_secs(5)),
            response_timeout: self.duration(source, upstream.response_timeout.as_ref(), Duration::from_secs(60)),
            idle_timeout: self.duration(source, upstream.idle_timeout.as_ref(), Duration::from_secs(60)),
            idle_connections: upstream.idle_connections.unwrap_or(128),
        };
        Upstream { name: name.get_ref().as_str().into(), endpoints, balancer, rules }
    }

    /// How TLS is spoken to an endpoint.
    fn dialer(
        &mut self,
        source: &Arc<Source>,
        span: Range<usize>,
        address: &str,
        upstream: &manifest::Upstream,
    ) -> Option<Dialer> {
        let default = manifest::UpstreamTls::default();
        let tls = upstream.tls.as_ref().map_or(&default, Spanned::get_ref);
        let (name, span) = match &tls.server_name {
            Some(name) => (name.get_ref().as_str(), name.span()),
            None => (host(address), span),
        };
        let Ok(name) = ServerName::try_from(name.to_owned()) else {
            let message =
                format!("`{name}` can't be the name in a certificate; set `server-name` under [upstream.….tls]");
            self.problems.at(source, span, message);
            return None;
        };
        let files = ClientFiles {
            roots: tls.ca.as_ref().map_or(Roots::System, |file| Roots::File(beside(source, file.get_ref()))),
            certificate: tls.certificate.as_ref().map(|files| certificate_files(source, files.get_ref())),
            verify: if tls.insecure_skip_verify { Verify::Never } else { Verify::Always },
            http2: tls.http2.unwrap_or(true),
        };
        let digest = digest(&files);
        if let Some(config) = self.assembly.dialers.get(&digest) {
            return Some(Dialer::new(config.clone(), name, digest));
        }
        match tls::client::client(&files, SystemTime::now()) {
            Ok(config) => {
                self.assembly.dialers.insert(digest, config.clone());
                Some(Dialer::new(config, name, digest))
            }
            Err(mistakes) => {
                for mistake in mistakes {
                    let files = tls.certificate.as_ref().map(Spanned::get_ref);
                    let place = match mistake.place {
                        TlsPlace::Roots => tls.ca.as_ref().map(Spanned::span),
                        TlsPlace::Certificate => files.map(|files| files.chain.span()),
                        TlsPlace::Key => files.map(|files| files.key.span()),
                    };
                    self.problems.at(source, place.unwrap_or(span.clone()), mistake.message);
                }
                None
            }
        }
    }

    fn weight(&mut self, source: &Arc<Source>, weight: Option<&Spanned<i64>>) -> u32 {
        let Some(weight) = weight else { return 1 };
        match u16::try_from(*weight.get_ref()) {
            Ok(given @ 1..) => given.into(),
            _ => {
                self.problems.at(source, weight.span(), "a weight is a number between 1 and 65535");
                1
            }
        }
    }
}

/// Of all that a configuration is made of: two with the same digest are the same.
fn digest(files: &ClientFiles) -> blake3::Hash {
    let mut digest = blake3::Hasher::new();
    let mut content = |path: &std::path::Path| {
        digest.update(&std::fs::read(path).unwrap_or_default()).update(&[0]);
    };
    if let Roots::File(path) = &files.roots {
        content(path);
    }
    if let Some(files) = &files.certificate {
        content(&files.chain);
        content(&files.key);
    }
    let kinds = [matches!(files.roots, Roots::System), files.certificate.is_some(), files.http2];
    digest.update(&kinds.map(u8::from)).update(&[u8::from(matches!(files.verify, Verify::Never))]);
    digest.finalize()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scheme {
    Http,
    H2c,
    Https,
}

/// What an endpoint speaks, and the rest of its text.
fn scheme(text: &str) -> (Scheme, &str) {
    let schemes = [("http://", Scheme::Http), ("h2c://", Scheme::H2c), ("https://", Scheme::Https)];
    let known = schemes.iter().find_map(|(prefix, scheme)| Some((*scheme, text.strip_prefix(prefix)?)));
    known.unwrap_or((Scheme::Http, text))
}

fn place(text: &str) -> Option<Place> {
    if let Some(path) = text.strip_prefix("unix:") {
        return path.starts_with('/').then(|| Place::Unix(path.into()));
    }
    let (host, port) = text.rsplit_once(':')?;
    let is_host = !host.is_empty() && !host.contains(['/', ' ', '@']) && (!host.contains(':') || host.starts_with('['));
    (is_host && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| Place::Tcp(text.into()))
}

/// The host of an endpoint's address, without brackets.
fn host(text: &str) -> &str {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_port_or_a_path() {
        for good in ["127.0.0.1:80", "[::1]:80", "app.internal:8000", "unix:/run/app.sock"] {
            assert!(place(good).is_some(), "{good}");
        }
        for bad in ["127.0.0.1", "::1:80", ":80", "a:0", "a:99999", "ftp://a:80", "unix:relative"] {
            assert!(place(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_scheme_says_what_is_spoken() {
        assert_eq!(scheme("https://a:443"), (Scheme::Https, "a:443"));
        assert_eq!(scheme("h2c://unix:/run/a"), (Scheme::H2c, "unix:/run/a"));
        assert_eq!(scheme("a:80"), (Scheme::Http, "a:80"));
        assert_eq!((host("[::1]:443"), host("a.b:1")), ("::1", "a.b"));
    }
}
