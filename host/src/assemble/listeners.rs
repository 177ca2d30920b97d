//! The assembly of a listener's table: addresses, TLS, and the limits of its clients.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;

use super::addresses::{Address, ListenerAddress, ManifestPlace};
use super::{Assembly, beside, head_of, route_conditions};
use crate::config::diagnostic::{Doubt, Source};
use crate::config::load::ManifestFile;
use crate::config::manifest::{self};
use crate::config::spanned::Spanned;
use crate::context::edit_check::field_name;
use crate::generation::listener::{ClientLimits, Listener, SendLimits};
use crate::generation::listener_rules::ListenerRules;
use crate::protocol::client_address::{AddressSource as ClientSource, AliasPolicy, ClientAddressRules};
use crate::protocol::field_alias;
use crate::protocol::framing;
use crate::protocol::trusted_peers::TrustedPeers;
use crate::system::bind_error;
use crate::tls;
use crate::tls::certificate_resolver::is_nameless;
use crate::tls::pem::CertificateFiles;
use crate::tls::server::{ClientAuth, ClientScope, MinimumVersion, ServerFilePlace, ServerFiles, ServerTls};
use crate::upstream::response_head_limits::ResponseHeadLimits;

/// Fits what browsers send with many cookies; as much as nginx takes.
const HEAD: usize = 32 << 10;
/// The default of `fields`, as in nginx and most others.
const FIELDS: usize = 100;
/// The default of `target`, as in nginx and most others.
const TARGET: usize = 8 << 10;
/// Generous for a head, which is seldom more than two packets.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The default of `keep-alive`, as in nginx.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// The default of `requests`. A connection must end at times, or clients would never be distributed anew.
const REQUESTS: usize = 10_000;
/// A connection at rest costs some KiB: these are below 1 GiB with all their TLS.
const CONNECTIONS: usize = 20_000;
/// The default of `streams`, as in nginx.
const STREAMS: usize = 128;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// The default of `body-rate`, slower than any modem.
const BODY_RATE: usize = 128;
/// The default of `send-timeout`, as in nginx.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// The bounds that also hold for content that clients send.
const SEND_RATE: usize = BODY_RATE;
/// The default of `buffer`: enough for a fast client at a long distance. 20,000 connections that read nothing hold 20
/// GB at worst.
const BUFFER: usize = 1 << 20;
/// The defaults of `response-head` and `response-fields`: nghttp2 ends a connection for more than eight CONTINUATION frames,
/// each of 16 KiB.
const RESPONSE_HEAD: ResponseHeadLimits = ResponseHeadLimits { bytes: 128 << 10, fields: MAX_FIELDS };
/// The default of `tunnel-timeout`: longer than the pause between the pings of WebSocket libraries.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(3600);

/// The TLS of a listener.
struct ListenerTls {
    acceptor: TlsAcceptor,
    demands: TlsDemands,
}

/// The demands of a listener's TLS that a connection meets in its handshake.
struct TlsDemands {
    client_scope: Option<ClientScope>,
    minimum: MinimumVersion,
    http2: bool,
}

impl Assembly<'_> {
    /// The listeners by their addresses; the first file is the manifest itself.
    pub(super) fn listeners(&mut self, files: &[ManifestFile]) -> HashMap<Arc<str>, Arc<Listener>> {
        let mut listeners = HashMap::new();
        let mut known: Vec<(Address, String)> = Vec::new();
        for (source, listener) in
            files.iter().flat_map(|file| file.manifest.listener.iter().map(move |one| (&file.source, one)))
        {
            let (address, span) = (listener.address.get_ref().as_str(), listener.address.span());
            let parsed = match Address::parse(address) {
                Ok(parsed) => parsed,
                Err(message) => {
                    self.problems.at(source, span, message);
                    continue;
                }
            };
            if let Some((_, location)) = known.iter().find(|(known, _)| *known == parsed) {
                let message =
                    format!("address used twice: `{address}` is that of the listener at {location}; choose another");
                self.problems.at(source, span, message);
                continue;
            }
            self.admin_apart(files, &parsed, address);
            if let Address::Unix(path) = &parsed
                && let Some(obstacle) = bind_error::obstacle(path)
            {
                self.problems.at(source, span, format!("cannot listen at `{address}`: {obstacle}"));
                continue;
            }
            known.push((parsed, source.location(&span)));
            listeners.insert(address.into(), Arc::new(self.listener(source, listener)));
        }
        let has_none = files.iter().all(|file| file.manifest.listener.is_empty()) && !self.left_out.has_any("listener");
        if let (Some(ManifestFile { source, .. }), true) = (files.first(), has_none) {
            let message = "no listener: add `[[listener]]` with `address = \"127.0.0.1:8080\"`";
            self.problems.at(source, 0..0, message);
        }
        listeners
    }

    fn listener(&mut self, source: &Arc<Source>, listener: &manifest::ListenerTable) -> Listener {
        let census = self.assembly.census.entry(listener.address.get_ref().as_str().into()).or_default().clone();
        let tls = listener.tls.as_ref().and_then(|tls| self.listener_tls(source, tls));
        let redirect = listener.redirect_to_https.as_ref().and_then(|redirect| redirect.get_ref().port());
        if let (Some(_), Some(redirect), true) = (redirect, &listener.redirect_to_https, listener.tls.is_some()) {
            let message =
                "`redirect-to-https` beside `tls`: this listener speaks TLS; redirect from a listener without `tls`";
            self.problems.at(source, redirect.span(), message);
        }
        if let (Some(0), Some(redirect)) = (redirect, &listener.redirect_to_https) {
            let message = "invalid port: 0; expected the port of HTTPS, such as `redirect-to-https = 443`";
            self.problems.at(source, redirect.span(), message);
        }
        let own_port = listener.address.get_ref().parse::<SocketAddr>().ok().map(|address| address.port());
        if let (Some(port), Some(span)) = (redirect, listener.redirect_to_https.as_ref().map(Spanned::span))
            && own_port == Some(port)
            && port != 0
            && listener.tls.is_none()
        {
            let message = format!(
                "redirect to itself: port {port} is that of this listener, which speaks no TLS; name the port of one \
                         that does, such as `redirect-to-https = 443`"
            );
            self.problems.at(source, span, message);
        }
        self.check_mode(source, listener);
        let proxies = self.peers(source, &listener.proxy_protocol_from);
        self.unreachable_peers(source, listener);
        if redirect.is_some() {
            self.warn_of_unread_scheme(source, listener);
        }
        let client = ClientAddressRules {
            trusted: self.peers(source, &listener.trusted_proxies),
            source: self.client_source(source, listener),
            aliases: self.aliases(source, listener.field_aliases.as_ref()),
        };
        let address = listener.address.get_ref().as_str().into();
        let limits = self.client_limits(source, &listener.limits);
        let client = Arc::new(client);
        let (acceptor, demands) = (tls.as_ref().map(|tls| tls.acceptor.clone()), tls.map(|tls| tls.demands));
        let versions = demands.as_ref().map(|demands| (demands.minimum, demands.http2));
        let client_scope = demands.and_then(|demands| demands.client_scope);
        let rules = ListenerRules::new((&proxies, &client, redirect, limits, versions), client_scope);
        Listener { address, tls: acceptor, proxies, client, redirect, limits, census, rules }
    }

    fn check_mode(&mut self, source: &Arc<Source>, listener: &manifest::ListenerTable) {
        let Some(mode) = &listener.mode else { return };
        if !listener.address.get_ref().starts_with("unix:") {
            let message = "`mode` at an address of TCP: only the file of a unix socket has a mode; remove it";
            self.problems.at(source, mode.span(), message);
        } else if let Err(why) = socket_mode(mode.get_ref()) {
            let message = format!("invalid mode: `{}` {why}; expected octal digits such as `0660`", mode.get_ref());
            self.problems.at(source, mode.span(), message);
        }
    }

    pub(super) fn peers(&mut self, source: &Arc<Source>, texts: &[Spanned<String>]) -> TrustedPeers {
        let mut peers = TrustedPeers::default();
        for text in texts {
            if !peers.add(text.get_ref()) {
                let message = format!(
                    "invalid network: `{}`; expected an address or a network such as `10.0.0.0/8` or `::1`, or `unix:` for all \
                     that connect to a unix socket",
                    text.get_ref()
                );
                self.problems.at(source, text.span(), message);
            }
        }
        peers
    }

    /// Reports peers that can't connect to this kind of socket.
    fn unreachable_peers(&mut self, source: &Arc<Source>, listener: &manifest::ListenerTable) {
        let is_unix = listener.address.get_ref().starts_with("unix:");
        let never = |text: &&Spanned<String>| (text.get_ref() == "unix:") != is_unix;
        let kind = if is_unix { "a unix socket" } else { "TCP" };
        let expected = if is_unix { "`unix:`, for all that connect to it" } else { "a network such as `10.0.0.0/8`" };
        let senders = listener.proxy_protocol_from.iter().filter(never);
        // An address that the PROXY protocol tells may be trusted, and one further back in a chain.
        let is_told = !listener.proxy_protocol_from.is_empty();
        let trusts_none = listener.trusted_proxies.iter().all(|text| never(&text)) && !is_told;
        let trusted = listener.trusted_proxies.iter().filter(|_| trusts_none);
        for text in senders.chain(trusted) {
            let message = format!(
                "peer that never connects: this listener is at {kind}, found `{}`; expected {expected}",
                text.get_ref()
            );
            self.problems.at(source, text.span(), message);
        }
    }

    /// Warns of load balancers whose word about the scheme doesn't count, because their PROXY header names another peer: the
    /// clients of such a listener are redirected without end.
    fn warn_of_unread_scheme(&mut self, source: &Arc<Source>, listener: &manifest::ListenerTable) {
        let is_told = |text: &&Spanned<String>| {
            listener.proxy_protocol_from.iter().any(|sender| sender.get_ref() == text.get_ref())
        };
        for text in listener.trusted_proxies.iter().filter(is_told) {
            let why = "fields of this peer such as `X-Forwarded-Proto` aren't read, because `proxy-protocol-from` names it too: \
                       what counts is the address that its PROXY header names. A load balancer that sets these fields \
                       belongs in `trusted-proxies` alone";
            self.problems.warn(Doubt::Meaning, source, text.span(), why);
        }
    }

    fn client_source(&mut self, source: &Arc<Source>, listener: &manifest::ListenerTable) -> ClientSource {
        let Some(text) = &listener.client_address_from else { return ClientSource::default() };
        if listener.trusted_proxies.is_empty() {
            let message = "`client-address-from` without `trusted-proxies`: the field is read from trusted proxies alone; add \
                           `trusted-proxies = [\"10.0.0.0/8\"]`";
            self.problems.at(source, text.span(), message);
        }
        let name = text.get_ref().to_ascii_lowercase();
        match name.as_str() {
            "x-forwarded-for" => ClientSource::XForwardedFor,
            "forwarded" => ClientSource::Forwarded,
            // Not one that is removed from every request, or that says something else.
            name if !field_alias::is_ambiguous(name)
                && route_conditions::may_name_client(name)
                && field_name(name).is_ok() =>
            {
                field_name(name).map_or_else(|_| ClientSource::default(), ClientSource::Field)
            }
            _ => {
                let message = format!(
                    "invalid field for the client's address: `{}`; expected \"x-forwarded-for\", \"forwarded\", or a field \
                     that holds addresses alone, such as \"cf-connecting-ip\"",
                    text.get_ref()
                );
                self.problems.at(source, text.span(), message);
                ClientSource::default()
            }
        }
    }

    fn aliases(&mut self, source: &Arc<Source>, word: Option<&Spanned<String>>) -> AliasPolicy {
        let Some(word) = word else { return AliasPolicy::default() };
        match word.get_ref().as_str() {
            "remove" => AliasPolicy::Remove,
            "reject" => AliasPolicy::Reject,
            "pass" => AliasPolicy::Pass,
            other => {
                let message = format!("unknown value: `{other}`; expected \"remove\", \"reject\" or \"pass\"");
                self.problems.at(source, word.span(), message);
                AliasPolicy::default()
            }
        }
    }

    fn client_limits(&mut self, source: &Arc<Source>, limits: &manifest::ListenerLimits) -> ClientLimits {
        let framing = framing::HeadLimits {
            head_bytes: self.bytes(source, limits.head.as_ref(), HEAD),
            fields: self.count(source, limits.fields.as_ref(), FIELDS, MAX_FIELDS),
            target_bytes: self.bytes(source, limits.target.as_ref(), TARGET),
        };
        let connections = self.count(source, limits.connections.as_ref(), CONNECTIONS, u32::MAX as usize);
        let per_client = limits.connections_per_client.as_ref();
        let connections_per_client =
            per_client.map(|count| self.count(source, Some(count), connections, u32::MAX as usize));
        let streams = self.count(source, limits.streams.as_ref(), STREAMS, MAX_STREAMS);
        self.check_head_limits(source, limits, &framing);
        self.check_connections_per_client(source, limits, connections);
        ClientLimits {
            framing,
            head_timeout: self.duration(source, limits.head_timeout.as_ref(), HEAD_TIMEOUT),
            keep_alive: self.duration(source, limits.keep_alive.as_ref(), KEEP_ALIVE),
            requests: self.count(source, limits.requests.as_ref(), REQUESTS, u32::MAX as usize),
            connections,
            connections_per_client,
            has_own_connections: limits.connections.is_some(),
            streams: streams as u32,
            body_timeout: self.duration(source, limits.body_timeout.as_ref(), BODY_TIMEOUT),
            body_rate: self.rate(source, limits.body_rate.as_ref(), BODY_RATE),
            send: SendLimits {
                timeout: self.duration(source, limits.send_timeout.as_ref(), SEND_TIMEOUT),
                rate: self.rate(source, limits.send_rate.as_ref(), SEND_RATE),
            },
            buffer: self.buffer(source, limits.buffer.as_ref()),
            response_head: self.head_limits(
                source,
                limits.response_head.as_ref(),
                limits.response_fields.as_ref(),
                RESPONSE_HEAD,
            ),
            tunnel_timeout: self.duration(source, limits.tunnel_timeout.as_ref(), TUNNEL_TIMEOUT),
        }
    }

    /// Checks the sizes of request heads.
    fn check_head_limits(
        &mut self,
        source: &Arc<Source>,
        limits: &manifest::ListenerLimits,
        framing: &framing::HeadLimits,
    ) {
        if let Some(head) =
            limits.head.as_ref().filter(|_| !(MIN_HEAD_BYTES..=MAX_HEAD_BYTES).contains(&framing.head_bytes))
        {
            let message =
                format!("`head` out of range: `{}`; expected `1 KiB` to `16 MiB`, such as `32 KiB`", head.get_ref());
            self.problems.at(source, head.span(), message);
        }
        if let Some(target) = limits.target.as_ref().filter(|_| framing.target_bytes == 0) {
            self.problems.at(
                source,
                target.span(),
                "`target` out of range: no request has an empty target; expected a size such as `8 KiB`",
            );
        }
        if let Some(target) = limits.target.as_ref().filter(|_| framing.target_bytes > framing.head_bytes) {
            let message = format!(
                "`target` larger than the head that it is in: `{}`; expected at most the value of `head`, {} B",
                target.get_ref(),
                framing.head_bytes
            );
            self.problems.at(source, target.span(), message);
        }
    }

    /// Checks that one client may not have more connections than all clients together.
    fn check_connections_per_client(
        &mut self,
        source: &Arc<Source>,
        limits: &manifest::ListenerLimits,
        connections: usize,
    ) {
        // A large number beside the default of `connections` is a way to say that a client may have them all.
        let is_total_given = limits.connections.is_some();
        if let Some(count) =
            limits.connections_per_client.as_ref().filter(|count| is_total_given && *count.get_ref() > connections)
        {
            let message = format!(
                "`connections-per-client` larger than `connections`: {}; expected at most {connections}, or raise `connections`",
                count.get_ref()
            );
            self.problems.at(source, count.span(), message);
        }
    }

    fn rate(&mut self, source: &Arc<Source>, text: Option<&Spanned<String>>, default: usize) -> u64 {
        let rate = self.bytes(source, text, default);
        if let Some(text) = text.filter(|_| rate > MAX_BYTES_PER_SECOND) {
            let message = format!(
                "rate out of range: `{}` a second, which no client keeps up; expected `0 B` to `1 GiB`, such as `128 B`",
                text.get_ref()
            );
            self.problems.at(source, text.span(), message);
        }
        rate as u64
    }

    fn buffer(&mut self, source: &Arc<Source>, text: Option<&Spanned<String>>) -> usize {
        let buffer = self.bytes(source, text, BUFFER);
        if let Some(text) = text.filter(|_| !(MIN_BUFFER_BYTES..=MAX_BUFFER_BYTES).contains(&buffer)) {
            let message =
                format!("`buffer` out of range: `{}`; expected `64 KiB` to `1 GiB`, such as `1 MiB`", text.get_ref());
            self.problems.at(source, text.span(), message);
        }
        buffer
    }

    fn listener_tls(&mut self, source: &Arc<Source>, tls: &Spanned<manifest::TlsTable>) -> Option<ListenerTls> {
        let (span, tls) = (tls.span(), tls.get_ref());
        if tls.certificates.is_empty() {
            let message = "no certificate: `certificates` is empty; expected at least one, such as \
                           [{ chain = \"cert.pem\", key = \"key.pem\" }]";
            self.problems.at(source, head_of(&span), message);
            return None;
        }
        let minimum = match tls.min_version.as_ref().map(|text| text.get_ref().as_str()) {
            None | Some("1.2") => MinimumVersion::Tls12,
            Some("1.3") => MinimumVersion::Tls13,
            Some(other) => {
                let message = format!("unknown version of TLS: `{other}`; expected \"1.2\" or \"1.3\"");
                let version_span = tls.min_version.as_ref().map_or(span.clone(), Spanned::span);
                self.problems.at(source, version_span, message);
                return None;
            }
        };
        let client = self.client_auth(source, tls)?;
        let files = |certificate: &Spanned<manifest::Certificate>| certificate_files(source, certificate.get_ref());
        let certificates = tls.certificates.iter().map(files).collect();
        let wanted = ServerFiles { certificates, client, minimum, http2: tls.http2.unwrap_or(true) };
        let made = tls::server::server(&wanted, &self.assembly.tickets);
        let mistakes = match made {
            Ok(ServerTls { config, client_scope }) => {
                for (files, named) in wanted.certificates.iter().zip(&tls.certificates) {
                    self.note_certificate(source, &named.get_ref().chain.span(), &files.chain);
                }
                // The first one is for clients that ask for no known name.
                let further = wanted.certificates.iter().zip(&tls.certificates).skip(1);
                for (_, named) in further.filter(|(files, _)| is_nameless(&files.chain)) {
                    let message = "no client gets this certificate: it has no DNS name; issue it with `subjectAltName`";
                    self.problems.warn(Doubt::NoEffect, source, named.get_ref().chain.span(), message);
                }
                let demands = TlsDemands { client_scope, minimum, http2: wanted.http2 };
                return Some(ListenerTls { acceptor: TlsAcceptor::from(config), demands });
            }
            Err(mistakes) => mistakes,
        };
        for mistake in mistakes {
            let certificate = |at: usize| tls.certificates.get(at).map(Spanned::get_ref);
            let file_span = match mistake.place {
                ServerFilePlace::Certificate(at) => certificate(at).map(|files| files.chain.span()),
                ServerFilePlace::Key(at) => certificate(at).map(|files| files.key.span()),
                ServerFilePlace::ClientCa => tls.client_ca.as_ref().map(Spanned::span),
            };
            self.problems.at(source, file_span.unwrap_or(head_of(&span)), mistake.message);
        }
        None
    }

    fn client_auth(&mut self, source: &Arc<Source>, tls: &manifest::TlsTable) -> Option<ClientAuth> {
        let wanted = tls.client_certificate.as_ref();
        let ca = tls.client_ca.as_ref().map(|file| beside(source, file.get_ref()));
        match (wanted.map(|text| text.get_ref().as_str()), ca) {
            (None, None) => Some(ClientAuth::None),
            (None | Some("required"), Some(ca)) => Some(ClientAuth::Required(ca)),
            (Some("optional"), Some(ca)) => Some(ClientAuth::Optional(ca)),
            (Some(text), ca) => {
                let message = match ca {
                    Some(_) => format!("unknown value: `{text}`; expected \"required\" or \"optional\""),
                    None => "`client-certificate` without `client-ca`: client certificates are verified by its authorities; add \
                             `client-ca = \"ca.pem\"`"
                        .into(),
                };
                self.problems.at(source, wanted.map_or(0..0, Spanned::span), message);
                None
            }
        }
    }
}

/// Parses the mode of the file of a unix socket; the error says what is wrong with it.
fn socket_mode(text: &str) -> Result<u32, &'static str> {
    let is_octal = matches!(text.len(), 3 | 4) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| is_octal).ok_or("is no mode of a file")?;
    match mode {
        0o1000.. => Err("has more than the permissions of owner, group and others"),
        mode if mode & 0o222 == 0 => Err("lets no client connect, for which it needs the permission to write"),
        mode => Ok(mode),
    }
}

pub(super) fn certificate_files(source: &Source, files: &manifest::Certificate) -> CertificateFiles {
    CertificateFiles { chain: beside(source, files.chain.get_ref()), key: beside(source, files.key.get_ref()) }
}

/// Returns the addresses in order, so that the log of a start is always the same.
pub(super) fn addresses(files: &[ManifestFile], listeners: &HashMap<Arc<str>, Arc<Listener>>) -> Vec<ListenerAddress> {
    let named =
        files.iter().flat_map(|file| file.manifest.listener.iter().map(move |listener| (&file.source, listener)));
    let address = |(source, listener): (&Arc<Source>, &manifest::ListenerTable)| {
        let (text, known) = listeners.get_key_value(listener.address.get_ref().as_str())?;
        let place = ManifestPlace { source: source.clone(), span: listener.address.span() };
        let mode = listener.mode.as_ref().and_then(|mode| socket_mode(mode.get_ref()).ok());
        Some(ListenerAddress { text: text.clone(), is_tls: known.tls.is_some(), mode, place })
    };
    let mut addresses: Vec<ListenerAddress> = named.filter_map(address).collect();
    addresses.sort_by(|one, other| one.text.cmp(&other.text));
    addresses
}

/// The least that the fields of a plain request need, as for responses.
const MIN_HEAD_BYTES: usize = 1 << 10;
/// The maximum of rates, in bytes a second: more than any network carries on one connection.
const MAX_BYTES_PER_SECOND: usize = 1 << 30;
/// The maximum of `head`. Each connection may hold one head.
const MAX_HEAD_BYTES: usize = 16 << 20;
/// The window that HTTP/2 begins with.
const MIN_BUFFER_BYTES: usize = 64 << 10;
/// Half of the largest window of HTTP/2.
const MAX_BUFFER_BYTES: usize = 1 << 30;
/// The maximum of `fields`. A search for a field looks at each of them.
const MAX_FIELDS: usize = 10_000;
/// The maximum of `streams`. Each stream may hold a response in memory.
const MAX_STREAMS: usize = 10_000;
