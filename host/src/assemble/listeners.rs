//! From a listener's table to what it demands of its clients.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use toml::Spanned;

use super::{Draft, beside, head_of};
use crate::bind_error::LONGEST_PATH;
use crate::client_address::{Aliases, Rules, Source as ClientSource};
use crate::config::manifest::{self, Manifest, Redirect};
use crate::config::problem::Source;
use crate::edit::field_name;
use crate::field_alias;
use crate::framing;
use crate::listener::{Limits, Listener, SendLimits};
use crate::tls;
use crate::tls::server::{CertificateFiles, ClientAuth, MinimumVersion, Place, ServerFiles};
use crate::tls::validity::Dated;
use crate::trust::Peers;

/// Fits what browsers send with many cookies; as much as nginx takes.
const HEAD: usize = 32 << 10;
/// As nginx and most others.
const FIELDS: usize = 100;
/// As nginx and most others.
const TARGET: usize = 8 << 10;
/// Generous for a head, which is seldom more than two packets.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// As nginx.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Now and then a connection has to end, or clients would never be shared out anew.
const REQUESTS: usize = 10_000;
/// A connection at rest costs some KiB: these are below 1 GiB with all their TLS.
const CONNECTIONS: usize = 20_000;
/// As nginx.
const STREAMS: usize = 128;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Slower than any modem: only who means to be slow is.
const BODY_RATE: usize = 128;
/// As nginx.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// The bounds that also hold for content that clients send.
const SEND_RATE: usize = BODY_RATE;
/// Enough for a fast client on a long way; 20,000 connections that all take nothing hold 20 GB at worst.
const BUFFER: usize = 1 << 20;
/// Longer than WebSocket libraries leave between pings.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(3600);

impl Draft<'_> {
    /// The listeners by their addresses; the first file is the manifest itself.
    pub(super) fn listeners(&mut self, files: &[(Arc<Source>, Manifest)]) -> HashMap<Arc<str>, Arc<Listener>> {
        let mut listeners = HashMap::new();
        for (source, listener) in
            files.iter().flat_map(|(source, file)| file.listener.iter().map(move |one| (source, one)))
        {
            let (address, span) = (listener.address.get_ref().as_str(), listener.address.span());
            if !address.starts_with("unix:/") && address.parse::<SocketAddr>().is_err() {
                let message =
                    format!("`{address}` is no address to listen at; write `0.0.0.0:80`, `[::]:80` or `unix:/path`");
                self.problems.at(source, span, message);
            } else if let Some(path) = address.strip_prefix("unix:").filter(|path| path.len() > LONGEST_PATH) {
                let message = format!(
                    "the path of this unix socket has {} bytes, and at most {LONGEST_PATH} are possible; choose a shorter \
                     one",
                    path.len()
                );
                self.problems.at(source, span, message);
            } else if listeners.contains_key(address) {
                self.problems.at(source, span, format!("another listener has the address `{address}`"));
            } else {
                listeners.insert(address.into(), Arc::new(self.listener(source, listener)));
            }
        }
        let has_none = files.iter().all(|(_, file)| file.listener.is_empty()) && !self.left_out.has_any("listener");
        if let (Some((source, _)), true) = (files.first(), has_none) {
            let message = "there is no listener; add `[[listener]]` with `address = \"127.0.0.1:8080\"`";
            self.problems.at(source, 0..0, message);
        }
        listeners
    }

    fn listener(&mut self, source: &Arc<Source>, listener: &manifest::Listener) -> Listener {
        let census = self.assembly.census.entry(listener.address.get_ref().as_str().into()).or_default().clone();
        let tls = listener.tls.as_ref().and_then(|tls| self.acceptor(source, tls));
        let redirect = listener.redirect_to_https.as_ref().and_then(|redirect| match redirect.get_ref() {
            Redirect::Switch(on) => on.then_some(443),
            Redirect::Port(port) => Some(*port),
        });
        if let (Some(redirect), true) = (&listener.redirect_to_https, listener.tls.is_some()) {
            let message = "this listener speaks TLS already; redirect from one without `tls`";
            self.problems.at(source, redirect.span(), message);
        }
        let own_port = listener.address.get_ref().parse::<SocketAddr>().ok().map(|address| address.port());
        if let (Some(port), Some(span)) = (redirect, listener.redirect_to_https.as_ref().map(Spanned::span))
            && own_port == Some(port)
            && listener.tls.is_none()
        {
            let message =
                format!("this listener has the port {port} itself, and speaks no TLS; name the port of one that does");
            self.problems.at(source, span, message);
        }
        let proxies = self.peers(source, &listener.proxy_protocol_from);
        let client = Rules {
            trusted: self.peers(source, &listener.trusted_proxies),
            source: self.client_source(source, listener),
            aliases: self.aliases(source, listener.field_aliases.as_ref()),
        };
        Listener { tls, proxies, client, redirect, limits: self.client_limits(source, &listener.limits), census }
    }

    fn peers(&mut self, source: &Arc<Source>, texts: &[Spanned<String>]) -> Peers {
        let mut peers = Peers::default();
        for text in texts {
            if !peers.add(text.get_ref()) {
                let wanted = "write `10.0.0.0/8`, `::1`, or `unix:` for all that connect to a unix socket";
                let message = format!("`{}` is no network; {wanted}", text.get_ref());
                self.problems.at(source, text.span(), message);
            }
        }
        peers
    }

    fn client_source(&mut self, source: &Arc<Source>, listener: &manifest::Listener) -> ClientSource {
        let Some(text) = &listener.client_address_from else { return ClientSource::default() };
        if listener.trusted_proxies.is_empty() {
            let message = "this is read from trusted proxies alone: add `trusted-proxies`, such as [\"10.0.0.0/8\"]";
            self.problems.at(source, text.span(), message);
        }
        let name = text.get_ref().to_ascii_lowercase();
        match name.as_str() {
            "x-forwarded-for" => ClientSource::XForwardedFor,
            "forwarded" => ClientSource::Forwarded,
            // Not one that is removed from every request, or that no request can do without.
            name if !field_alias::is_ambiguous(name) && name != "host" && field_name(name).is_ok() => {
                field_name(name).map_or_else(|_| ClientSource::default(), ClientSource::Field)
            }
            _ => {
                let wanted = "write \"x-forwarded-for\", \"forwarded\", or a name such as \"cf-connecting-ip\"";
                let message = format!("`{}` is no field of a client's address; {wanted}", text.get_ref());
                self.problems.at(source, text.span(), message);
                ClientSource::default()
            }
        }
    }

    fn aliases(&mut self, source: &Arc<Source>, word: Option<&Spanned<String>>) -> Aliases {
        let Some(word) = word else { return Aliases::default() };
        match word.get_ref().as_str() {
            "remove" => Aliases::Remove,
            "reject" => Aliases::Reject,
            "pass" => Aliases::Pass,
            other => {
                let message = format!("`{other}` is no rule for aliases; write \"remove\", \"reject\" or \"pass\"");
                self.problems.at(source, word.span(), message);
                Aliases::default()
            }
        }
    }

    fn client_limits(&mut self, source: &Arc<Source>, limits: &manifest::ListenerLimits) -> Limits {
        let framing = framing::Limits {
            head_bytes: self.bytes(source, limits.head.as_ref(), HEAD),
            fields: self.count(source, limits.fields.as_ref(), FIELDS, MOST_FIELDS),
            target_bytes: self.bytes(source, limits.target.as_ref(), TARGET),
        };
        let connections = self.count(source, limits.connections.as_ref(), CONNECTIONS, u32::MAX as usize);
        let per_client = limits.connections_per_client.as_ref();
        let connections_per_client =
            per_client.map(|count| self.count(source, Some(count), connections, u32::MAX as usize));
        let streams = self.count(source, limits.streams.as_ref(), STREAMS, MOST_STREAMS);
        if let Some(head) = limits.head.as_ref().filter(|_| framing.head_bytes > MOST_HEAD) {
            self.problems.at(source, head.span(), "a head of more than 16 MiB would be held whole in memory");
        }
        Limits {
            framing,
            head_timeout: self.duration(source, limits.head_timeout.as_ref(), HEAD_TIMEOUT),
            keep_alive: self.duration(source, limits.keep_alive.as_ref(), KEEP_ALIVE),
            requests: self.count(source, limits.requests.as_ref(), REQUESTS, u32::MAX as usize),
            connections,
            connections_per_client,
            streams: streams as u32,
            body_timeout: self.duration(source, limits.body_timeout.as_ref(), BODY_TIMEOUT),
            body_rate: self.bytes(source, limits.body_rate.as_ref(), BODY_RATE) as u64,
            send: SendLimits {
                timeout: self.duration(source, limits.send_timeout.as_ref(), SEND_TIMEOUT),
                rate: self.bytes(source, limits.send_rate.as_ref(), SEND_RATE) as u64,
            },
            buffer: self.buffer(source, limits.buffer.as_ref()),
            tunnel_timeout: self.duration(source, limits.tunnel_timeout.as_ref(), TUNNEL_TIMEOUT),
        }
    }

    fn buffer(&mut self, source: &Arc<Source>, text: Option<&Spanned<String>>) -> usize {
        let buffer = self.bytes(source, text, BUFFER);
        if let Some(text) = text.filter(|_| !(LEAST_BUFFER..=MOST_BUFFER).contains(&buffer)) {
            let message = format!("`{}` is out of range; `buffer` is from 64 KiB to 1 GiB", text.get_ref());
            self.problems.at(source, text.span(), message);
        }
        buffer
    }

    fn acceptor(&mut self, source: &Arc<Source>, tls: &Spanned<manifest::Tls>) -> Option<TlsAcceptor> {
        let (span, tls) = (tls.span(), tls.get_ref());
        if tls.certificates.is_empty() {
            let message = "`certificates` names at least one: [{ chain = \"cert.pem\", key = \"key.pem\" }]";
            self.problems.at(source, head_of(&span), message);
            return None;
        }
        let minimum = match tls.min_version.as_ref().map(|text| text.get_ref().as_str()) {
            None | Some("1.2") => MinimumVersion::Tls12,
            Some("1.3") => MinimumVersion::Tls13,
            Some(other) => {
                let message = format!("`{other}` is no version of TLS that is served; write \"1.2\" or \"1.3\"");
                let place = tls.min_version.as_ref().map_or(span.clone(), Spanned::span);
                self.problems.at(source, place, message);
                return None;
            }
        };
        let client = self.client_auth(source, tls)?;
        let files = |certificate: &Spanned<manifest::Certificate>| certificate_files(source, certificate.get_ref());
        let certificates = tls.certificates.iter().map(files).collect();
        let wanted = ServerFiles { certificates, client, minimum, http2: tls.http2.unwrap_or(true) };
        let made = tls::server::server(&wanted, &self.assembly.tickets);
        let mistakes = match made {
            Ok(config) => {
                self.certificates.extend(wanted.certificates.iter().filter_map(|files| Dated::read(&files.chain)));
                return Some(TlsAcceptor::from(config));
            }
            Err(mistakes) => mistakes,
        };
        for mistake in mistakes {
            let certificate = |at: usize| tls.certificates.get(at).map(Spanned::get_ref);
            let place = match mistake.place {
                Place::Certificate(at) => certificate(at).map(|files| files.chain.span()),
                Place::Key(at) => certificate(at).map(|files| files.key.span()),
                Place::ClientCa => tls.client_ca.as_ref().map(Spanned::span),
            };
            self.problems.at(source, place.unwrap_or(head_of(&span)), mistake.message);
        }
        None
    }

    fn client_auth(&mut self, source: &Arc<Source>, tls: &manifest::Tls) -> Option<ClientAuth> {
        let wanted = tls.client_certificate.as_ref();
        let ca = tls.client_ca.as_ref().map(|file| beside(source, file.get_ref()));
        match (wanted.map(|text| text.get_ref().as_str()), ca) {
            (None, None) => Some(ClientAuth::None),
            (None | Some("required"), Some(ca)) => Some(ClientAuth::Required(ca)),
            (Some("optional"), Some(ca)) => Some(ClientAuth::Optional(ca)),
            (Some(text), ca) => {
                let message = match ca {
                    Some(_) => format!("`{text}` is neither `required` nor `optional`"),
                    None => "client certificates are checked against `client-ca`: name the file".into(),
                };
                self.problems.at(source, wanted.map_or(0..0, Spanned::span), message);
                None
            }
        }
    }
}

pub(super) fn certificate_files(source: &Source, files: &manifest::Certificate) -> CertificateFiles {
    CertificateFiles { chain: beside(source, files.chain.get_ref()), key: beside(source, files.key.get_ref()) }
}

/// Addresses in order, so that what a start tells is always the same.
pub(super) fn addresses(listeners: &HashMap<Arc<str>, Arc<Listener>>) -> Vec<(Arc<str>, bool)> {
    let ordered: BTreeSet<(Arc<str>, bool)> =
        listeners.iter().map(|(address, listener)| (address.clone(), listener.tls.is_some())).collect();
    ordered.into_iter().collect()
}

/// Each connection may hold one.
const MOST_HEAD: usize = 16 << 20;
/// The window that HTTP/2 begins with.
const LEAST_BUFFER: usize = 64 << 10;
/// Half of the largest window of HTTP/2.
const MOST_BUFFER: usize = 1 << 30;
/// A head has to be looked through for each of them.
const MOST_FIELDS: usize = 10_000;
/// Each may hold a response in memory.
const MOST_STREAMS: usize = 10_000;
