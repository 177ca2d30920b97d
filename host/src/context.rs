//! The context of an exchange: everything that is known of it besides its bodies, and the values that plugins and
//! templates can read.

pub mod body_mode;
pub mod bounds;
pub mod edit_check;
pub mod edit_plan;
pub mod edit_room;
mod edited_names;
pub mod edits;
pub mod host_work;
pub mod informational;
mod pairs;
pub mod repeated;
pub mod template;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use smallvec::SmallVec;

use crate::context::body_mode::BodyDecisions;
use crate::context::edit_check::MessageSide;
use crate::context::edited_names::EditedNames;
use crate::context::host_work::HostWork;
use crate::context::informational::InformationalQueue;
use crate::context::pairs::{LineOwner, PairKind, Pairs};
use crate::net::waiting_bytes::WaitingBytes;
use crate::protocol::authority;
use crate::protocol::client_address::{ClientAddress, Scheme, X_FORWARDED_FOR};
use crate::protocol::client_net::ClientNet;
use crate::protocol::field_alias;
use crate::protocol::hop_by_hop;
use crate::protocol::proxy_protocol::ConnectionAddresses;
use crate::system::holder_counts::Holder;
use crate::system::random;

/// The heads of both messages, and the state of the exchange.
#[derive(Debug)]
pub struct ExchangeContext {
    /// The request as the client sent it, before any edit.
    pub received: ReceivedRequest,
    /// The request with all edits so far.
    pub request: http::request::Parts,
    /// The path as the client has sent it, if the route forwards that path; `None` if it is the path of `request`.
    pub sent_path: Option<Box<SentPath>>,
    /// The target for the endpoint or the folder of files, if the route changes the target; `None` if it is that of
    /// `request`.
    pub forwarded: Option<PathAndQuery>,
    /// The response with all edits so far; `None` before there is a response.
    pub response: Option<http::response::Parts>,
    /// The facts about the client that its connection shows.
    pub peer: Arc<ClientInfo>,
    /// The client that trusted proxies name; `None` if it is the peer.
    pub client: Option<Box<ClientAddress>>,
    /// The scheme by which the client reached the trusted proxies; `None` if they name none.
    pub named_scheme: Option<Scheme>,
    /// Whether the request may have fields that an origin confuses with others.
    pub has_aliases: bool,
    /// Whether the request, as received, has `Authorization`: a plugin may have removed the field since.
    has_authorization: bool,
    /// The number of proxies named `plugway` that the request has passed, this one included.
    pub passages: u8,
    /// The chain of addresses that trusted proxies have sent.
    chain: Option<HeaderValue>,
    /// The name of the matched route.
    pub route: Arc<str>,
    /// The name of the upstream that the request goes to.
    pub upstream: Arc<str>,
    /// The chosen endpoint.
    pub endpoint: Option<Arc<str>>,
    /// The outcome at the cache of the chain; `None` if the chain has no cache.
    pub cache: Option<CacheOutcome>,
    /// The length of the request's content.
    pub content: ContentLength,
    /// The limit of the request's content, in bytes; `None` before a plugin or the route has set one.
    pub max_body: Option<u64>,
    /// The decisions of head hooks about body hooks.
    pub bodies: BodyDecisions,
    /// The names of the request's fields that plugins have edited, if the request has content: some origins merge trailers
    /// into the head, so the client's trailers of these names are not forwarded.
    pub edited_fields: Vec<HeaderName>,
    /// Values left by plugins.
    pub notes: Vec<(String, HeaderValue)>,
    /// The counts of what plugins have added to the exchange.
    pub added: Added,
    /// The queue for informational responses of endpoints; `None` if the client can't receive any.
    pub informational: Option<Arc<InformationalQueue>>,
    /// The host's work for the plugin that the exchange is at.
    pub work: HostWork,
    cookies: Pairs,
    parameters: Pairs,
    /// The names of the request's fields during the edits of a call.
    edited_names: EditedNames,
    id: OnceCell<[u8; 32]>,
}

/// The exchange that a request of a plugin's own is sent for: its client, and its names for the log.
#[derive(Clone, Debug)]
pub struct CalloutCause {
    pub peer: Arc<ClientInfo>,
    /// The client that trusted proxies name; `None` if it is the peer.
    client: Option<Box<ClientAddress>>,
    route: Arc<str>,
    /// The request ID; `None` if there is no exchange.
    id: Option<[u8; 32]>,
    /// The number of proxies named `plugway` that the exchange's request has passed, including this proxy.
    passages: u8,
}

/// A path in the spelling of the client.
#[derive(Clone, Debug)]
pub struct SentPath {
    /// The target that the client has sent.
    pub target: http::Uri,
    /// The path of the request before any edit: after an edit of the path, the spelling of the client is not forwarded.
    pub normal: String,
}

/// The length of a request's content, as far as it is known before the content arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentLength {
    /// The request has no content.
    #[default]
    Absent,
    /// The length is known when the content ends, as with chunks.
    Unknown,
    /// The length in bytes.
    Known(u64),
}

/// The counts of what the plugins of a chain have added to an exchange. Additions that were removed again still count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added {
    request: AddedFields,
    response: AddedFields,
    /// The bytes of notes, with their names.
    pub note_bytes: usize,
}

/// Counts the fields that were added to a message.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddedFields {
    pub fields: usize,
    pub bytes: usize,
}

impl Added {
    /// Returns the count for one side.
    pub fn to(&self, side: MessageSide) -> AddedFields {
        match side {
            MessageSide::Request => self.request,
            MessageSide::Response => self.response,
        }
    }

    /// Returns the count for one side, to be changed.
    pub fn to_mut(&mut self, side: MessageSide) -> &mut AddedFields {
        match side {
            MessageSide::Request => &mut self.request,
            MessageSide::Response => &mut self.response,
        }
    }
}

/// The outcome of a request at a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    /// A fresh stored response was served.
    Hit,
    /// Served stale, with a validation behind the client's back.
    Stale,
    /// The upstream was asked because the stored response was stale, or because the client asked for a validation.
    Validated,
    /// The cache had no response, so that the upstream was asked.
    Miss,
    /// Waited for another request's response, and got that.
    Collapsed,
    /// Served stale since the upstream failed.
    ErrorCovered,
    /// The cache was bypassed.
    Bypass,
}

impl CacheOutcome {
    pub const ALL: [CacheOutcome; 7] = [
        CacheOutcome::Hit,
        CacheOutcome::Stale,
        CacheOutcome::Validated,
        CacheOutcome::Miss,
        CacheOutcome::Collapsed,
        CacheOutcome::ErrorCovered,
        CacheOutcome::Bypass,
    ];

    /// Returns the word for metrics and logs.
    pub fn word(self) -> &'static str {
        match self {
            CacheOutcome::Hit => "hit",
            CacheOutcome::Stale => "stale",
            CacheOutcome::Validated => "validated",
            CacheOutcome::Miss => "miss",
            CacheOutcome::Collapsed => "collapsed",
            CacheOutcome::ErrorCovered => "error-covered",
            CacheOutcome::Bypass => "bypass",
        }
    }
}

/// A request as the client sent it, as far as the access log shows it.
#[derive(Debug)]
pub enum ReceivedRequest {
    /// The request was parsed.
    Parsed(RequestLine),
    /// The request was rejected before it was parsed. Contains the part of its first line that was read, without the
    /// line's end.
    Unparsed(Bytes),
}

impl ReceivedRequest {
    /// Whether the client's own method is HEAD, whatever plugins have made of the method.
    pub fn is_head(&self) -> bool {
        matches!(self, ReceivedRequest::Parsed(line) if line.method == http::Method::HEAD)
    }
}

/// A request line, and what the access log shows besides.
#[derive(Debug)]
pub struct RequestLine {
    pub method: http::Method,
    pub target: http::Uri,
    pub version: http::Version,
    /// The fields for the access log; `None` if there is no access log.
    pub words: Option<Box<ReceivedFields>>,
}

/// The fields of the access log as the client sent them.
#[derive(Debug)]
pub struct ReceivedFields {
    /// `Host`, or the target's authority.
    pub host: Option<HeaderValue>,
    pub referer: Option<HeaderValue>,
    pub user_agent: Option<HeaderValue>,
}

/// Whether the fields for the access log are copied from the client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    Logged,
    Unneeded,
}

/// Facts of a client connection, ready for use in fields.
#[derive(Debug)]
pub struct ClientInfo {
    /// The address without port; `None` for a unix socket.
    pub address: Option<HeaderValue>,
    /// The port, in decimal; `None` for a unix socket.
    pub port: Option<HeaderValue>,
    /// Address and port of the listener.
    pub listener: HeaderValue,
    /// The client's address and the address that it connected to; `None` for a unix socket.
    pub addresses: Option<ConnectionAddresses>,
    pub tls: Option<Box<ClientTls>>,
    /// The bytes of responses that wait in memory for the client.
    pub waiting: Arc<WaitingBytes>,
}

/// Facts of a client's TLS.
#[derive(Debug)]
pub struct ClientTls {
    pub version: HeaderValue,
    pub cipher: Option<HeaderValue>,
    pub server_name: Option<HeaderValue>,
    pub certificate: Option<ClientCertificate>,
}

/// A client's certificate, after its verification.
#[derive(Debug)]
pub struct ClientCertificate {
    pub subject: Option<HeaderValue>,
    pub issuer: Option<HeaderValue>,
    pub serial: Option<HeaderValue>,
    pub names: Option<HeaderValue>,
    pub fingerprint: Option<HeaderValue>,
}

/// The name of the note by which a cache policy knows that the client has sent credentials.
const CREDENTIALS: &str = "plugway.credentials";

/// The value of the note if the request, as received, has `Authorization`.
static AUTHORIZATION: HeaderValue = HeaderValue::from_static("authorization");

static HTTP: HeaderValue = HeaderValue::from_static("http");
static HTTPS: HeaderValue = HeaderValue::from_static("https");

/// The name of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueName {
    Method,
    Scheme,
    Authority,
    Host,
    Path,
    Query,
    Uri,
    Protocol,
    ClientAddress,
    ClientPort,
    ListenerAddress,
    Route,
    Upstream,
    Endpoint,
    RequestId,
    ForwardedFor,
    Status,
    RequestField(HeaderName),
    ResponseField(HeaderName),
    Cookie(String),
    QueryParameter(String),
    Note(String),
    TlsVersion,
    TlsCipher,
    TlsServerName,
    ClientCertificateSubject,
    ClientCertificateIssuer,
    ClientCertificateSerial,
    ClientCertificateNames,
    ClientCertificateFingerprint,
    ContentLength,
}

impl ValueName {
    /// Bytes of the text that the name holds.
    pub fn text_len(&self) -> usize {
        match self {
            ValueName::RequestField(name) | ValueName::ResponseField(name) => name.as_str().len(),
            ValueName::Cookie(name) | ValueName::QueryParameter(name) | ValueName::Note(name) => name.len(),
            _ => 0,
        }
    }
}

/// Formats the name as templates write it.
impl fmt::Display for ValueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueName::Method => f.write_str("method"),
            ValueName::Scheme => f.write_str("scheme"),
            ValueName::Authority => f.write_str("authority"),
            ValueName::Host => f.write_str("host"),
            ValueName::Path => f.write_str("path"),
            ValueName::Query => f.write_str("query"),
            ValueName::Uri => f.write_str("uri"),
            ValueName::Protocol => f.write_str("protocol"),
            ValueName::ClientAddress => f.write_str("client.ip"),
            ValueName::ClientPort => f.write_str("client.port"),
            ValueName::ListenerAddress => f.write_str("listener.address"),
            ValueName::Route => f.write_str("route"),
            ValueName::Upstream => f.write_str("upstream"),
            ValueName::Endpoint => f.write_str("endpoint"),
            ValueName::RequestId => f.write_str("request-id"),
            ValueName::ForwardedFor => f.write_str("forwarded-for"),
            ValueName::Status => f.write_str("status"),
            ValueName::RequestField(name) => write!(f, "request.header.{name}"),
            ValueName::ResponseField(name) => write!(f, "response.header.{name}"),
            ValueName::Cookie(name) => write!(f, "cookie.{name}"),
            ValueName::QueryParameter(name) => write!(f, "query.{name}"),
            ValueName::Note(name) => write!(f, "note.{name}"),
            ValueName::TlsVersion => f.write_str("tls.version"),
            ValueName::TlsCipher => f.write_str("tls.cipher"),
            ValueName::TlsServerName => f.write_str("tls.server-name"),
            ValueName::ClientCertificateSubject => f.write_str("tls.client.subject"),
            ValueName::ClientCertificateIssuer => f.write_str("tls.client.issuer"),
            ValueName::ClientCertificateSerial => f.write_str("tls.client.serial"),
            ValueName::ClientCertificateNames => f.write_str("tls.client.names"),
            ValueName::ClientCertificateFingerprint => f.write_str("tls.client.fingerprint"),
            ValueName::ContentLength => f.write_str("content-length"),
        }
    }
}

/// A value of an exchange. A field with one line is borrowed whole, so that it can be sent without a copy.
#[derive(Debug)]
pub enum Value<'a> {
    Field(&'a HeaderValue),
    Bytes(Cow<'a, [u8]>),
}

impl ExchangeContext {
    /// The head of an exchange that begins.
    pub fn new(
        received: RequestLine,
        request: http::request::Parts,
        peer: Arc<ClientInfo>,
        route: Arc<str>,
        upstream: Arc<str>,
    ) -> Self {
        let (response, endpoint, cache, notes, id) = (None, None, None, Vec::new(), OnceCell::new());
        let (added, client, named_scheme, has_aliases) = (Added::default(), None, None, false);
        let (sent_path, forwarded) = (None, None);
        let has_authorization = request.headers.contains_key(header::AUTHORIZATION);
        let chain = joined(&request.headers, &X_FORWARDED_FOR).and_then(|chain| match chain {
            Value::Field(field) => Some(field.clone()),
            chain => HeaderValue::from_bytes(chain.bytes()).ok(),
        });
        ExchangeContext {
            received: ReceivedRequest::Parsed(received),
            request,
            sent_path,
            forwarded,
            chain,
            response,
            peer,
            client,
            named_scheme,
            has_aliases,
            has_authorization,
            passages: 0,
            route,
            upstream,
            endpoint,
            cache,
            content: ContentLength::Absent,
            max_body: None,
            bodies: BodyDecisions::default(),
            edited_fields: Vec::new(),
            notes,
            added,
            informational: None,
            work: HostWork::default(),
            cookies: Pairs::default(),
            parameters: Pairs::default(),
            edited_names: EditedNames::default(),
            id,
        }
    }

    /// Returns the context of a request that is rejected before it is routed.
    pub fn rejected(received: ReceivedRequest, peer: Arc<ClientInfo>) -> Self {
        let mut context = ExchangeContext::empty();
        (context.received, context.peer) = (received, peer);
        (context.route, context.upstream) = ("-".into(), "-".into());
        context
    }

    /// Returns an empty context, which stands in for a context that a plugin is using.
    pub fn empty() -> Self {
        let (request, ()) = http::Request::new(()).into_parts();
        let received = RequestLine::of(&request, Words::Unneeded);
        ExchangeContext::new(received, request, Arc::new(ClientInfo::unix("")), "".into(), "".into())
    }

    /// Returns the exchange as the cause of requests that its plugins send.
    pub fn callout_cause(&self) -> CalloutCause {
        self.request_id();
        let (peer, client, route) = (self.peer.clone(), self.client.clone(), self.route.clone());
        CalloutCause { peer, client, route, id: self.id.get().copied(), passages: self.passages }
    }

    /// Returns the head of a request that a plugin sends.
    pub fn of_callout(cause: &CalloutCause, mut request: http::request::Parts, upstream: Arc<str>) -> Self {
        hop_by_hop::put_passages(cause.passages, &mut request.headers);
        let received = RequestLine::of(&request, Words::Unneeded);
        let mut context = ExchangeContext::new(received, request, cause.peer.clone(), cause.route.clone(), upstream);
        context.client.clone_from(&cause.client);
        context.passages = cause.passages;
        if let Some(id) = cause.id {
            context.id = OnceCell::from(id);
        }
        context
    }

    /// Returns a copy of the context for another exchange of the same request.
    pub fn copy(&self) -> Self {
        let received = RequestLine::of(&self.request, Words::Unneeded);
        let (peer, route, upstream) = (self.peer.clone(), self.route.clone(), self.upstream.clone());
        let mut copy = ExchangeContext::new(received, self.request.clone(), peer, route, upstream);
        (copy.notes, copy.added) = (self.notes.clone(), self.added);
        (copy.client, copy.has_aliases, copy.passages) = (self.client.clone(), self.has_aliases, self.passages);
        (copy.named_scheme, copy.has_authorization) = (self.named_scheme, self.has_authorization);
        copy.chain = self.chain.clone();
        copy.sent_path.clone_from(&self.sent_path);
        copy
    }

    /// Returns a value of the exchange; `None` if it is absent.
    pub fn value(&self, name: &ValueName) -> Option<Value<'_>> {
        let text = |text: &'_ str| Some(Value::Bytes(Cow::Owned(text.as_bytes().to_vec())));
        match name {
            ValueName::Method => Some(borrowed(self.request.method.as_str())),
            ValueName::Scheme => Some(Value::Field(if self.is_secure() { &HTTPS } else { &HTTP })),
            ValueName::Authority => self.request.headers.get(header::HOST).map(Value::Field),
            ValueName::Host => Some(host(self.request.headers.get(header::HOST)?)),
            ValueName::Path => Some(borrowed(self.request.uri.path())),
            ValueName::Query => self.request.uri.query().map(borrowed),
            ValueName::Uri => {
                let mut uri = Vec::new();
                self.put_uri(&mut uri);
                Some(Value::Bytes(Cow::Owned(uri)))
            }
            ValueName::Protocol => text(&format!("{:?}", self.request.version)),
            ValueName::ClientAddress => self.client_address().map(Value::Field),
            ValueName::ClientPort => match &self.client {
                Some(client) => client.port.as_ref().map(Value::Field),
                None => self.peer.port.as_ref().map(Value::Field),
            },
            ValueName::ListenerAddress => Some(Value::Field(&self.peer.listener)),
            ValueName::Route => Some(borrowed(&self.route)),
            ValueName::Upstream => Some(borrowed(&self.upstream)),
            ValueName::Endpoint => self.endpoint.as_deref().map(borrowed),
            ValueName::RequestId => Some(Value::Bytes(Cow::Borrowed(self.request_id().as_bytes()))),
            ValueName::ForwardedFor => self.forwarded_for(),
            ValueName::Status => self.response.as_ref().and_then(|response| text(response.status.as_str())),
            ValueName::RequestField(name) => joined(&self.request.headers, name),
            ValueName::ResponseField(name) => joined(&self.response.as_ref()?.headers, name),
            ValueName::Cookie(name) => self.cookie(name),
            ValueName::QueryParameter(name) => self.query_parameter(name),
            ValueName::Note(name) => self.note(name).map(Value::Field),
            ValueName::TlsVersion => self.peer.tls.as_ref().map(|tls| Value::Field(&tls.version)),
            ValueName::TlsCipher => self.peer.tls.as_ref()?.cipher.as_ref().map(Value::Field),
            ValueName::TlsServerName => self.peer.tls.as_ref()?.server_name.as_ref().map(Value::Field),
            ValueName::ClientCertificateSubject => self.certificate()?.subject.as_ref().map(Value::Field),
            ValueName::ClientCertificateIssuer => self.certificate()?.issuer.as_ref().map(Value::Field),
            ValueName::ClientCertificateSerial => self.certificate()?.serial.as_ref().map(Value::Field),
            ValueName::ClientCertificateNames => self.certificate()?.names.as_ref().map(Value::Field),
            ValueName::ClientCertificateFingerprint => self.certificate()?.fingerprint.as_ref().map(Value::Field),
            ValueName::ContentLength => match self.content {
                ContentLength::Absent => None,
                ContentLength::Unknown => Some(borrowed("")),
                ContentLength::Known(length) => text(&length.to_string()),
            },
        }
    }

    /// Returns all values of a name, in order: each line of a field, each query parameter or cookie of that name. Any
    /// other name has one value at most.
    pub fn values<'a>(&'a self, name: &'a ValueName) -> Box<dyn Iterator<Item = Value<'a>> + 'a> {
        match name {
            ValueName::RequestField(name) => Box::new(self.request.headers.get_all(name).iter().map(Value::Field)),
            ValueName::ResponseField(name) => {
                let response = self.response.iter();
                Box::new(response.flat_map(move |response| response.headers.get_all(name)).map(Value::Field))
            }
            ValueName::Cookie(name) => Box::new(repeated::cookies(&self.request.headers, name).map(Value::of)),
            ValueName::QueryParameter(name) => {
                let query = self.request.uri.query().unwrap_or_default();
                Box::new(repeated::query_parameters(query, name).map(Value::of))
            }
            name => Box::new(self.value(name).into_iter()),
        }
    }

    /// Writes the target URI, in its normal form (RFC 9110 §7.1, §4.2.3).
    pub fn put_uri(&self, into: &mut Vec<u8>) {
        let (scheme, port) = if self.is_secure() { (&b"https://"[..], 443) } else { (&b"http://"[..], 80) };
        let authority = self.request.headers.get(header::HOST).map_or(&b""[..], HeaderValue::as_bytes);
        // What a plugin has put into Host may have no normal form.
        let authority = authority::normal(authority, Some(port)).unwrap_or(Cow::Borrowed(authority));
        let target = self.request.uri.path_and_query().map_or("/", |target| target.as_str());
        into.reserve(scheme.len() + authority.len() + target.len());
        into.extend_from_slice(scheme);
        into.extend_from_slice(&authority);
        into.extend_from_slice(target.as_bytes());
    }

    /// Returns the target that an endpoint, or a folder of files, is asked for.
    pub fn forwarded_target(&self) -> Option<&PathAndQuery> {
        self.forwarded.as_ref().or(self.request.uri.path_and_query())
    }

    /// Returns the path as the client has sent it; `None` if it equals the request's path, or if a plugin has changed
    /// the path.
    pub fn unchanged_sent_path(&self) -> Option<&str> {
        let sent = self.sent_path.as_ref().filter(|sent| sent.normal == self.request.uri.path())?;
        Some(sent.target.path())
    }

    fn cookie(&self, name: &str) -> Option<Value<'_>> {
        let cookies = self.request.headers.get_all(header::COOKIE);
        let lines = || cookies.iter().map(HeaderValue::as_bytes);
        let owner = || LineOwner::Fields(cookies.iter().cloned().collect());
        let value = self.cookies.find(lines, owner, PairKind::Cookies, name, &self.work);
        value.map(|value| Value::Bytes(Cow::Borrowed(value)))
    }

    fn query_parameter(&self, name: &str) -> Option<Value<'_>> {
        let (uri, query) = (&self.request.uri, self.request.uri.query()?.as_bytes());
        let owner = || LineOwner::Uri(uri.clone());
        let value = self.parameters.find(|| std::iter::once(query), owner, PairKind::Parameters, name, &self.work);
        value.map(|value| Value::Bytes(Cow::Borrowed(value)))
    }

    fn certificate(&self) -> Option<&ClientCertificate> {
        self.peer.tls.as_ref()?.certificate.as_ref()
    }

    /// Returns a note; `None` if neither a plugin nor the host has set it.
    pub fn note(&self, name: &str) -> Option<&HeaderValue> {
        let set = self.notes.iter().find(|(known, _)| known == name).map(|(_, value)| value);
        set.or_else(|| (self.has_authorization && name == CREDENTIALS).then_some(&AUTHORIZATION))
    }

    /// Limits the request's content to `max` bytes, unless a lower limit is set.
    pub fn limit_body(&mut self, max: u64) {
        self.max_body = Some(self.max_body.map_or(max, |lowest| lowest.min(max)));
    }

    /// Sets a note, and replaces a note of the same name.
    pub fn set_note(&mut self, name: String, value: HeaderValue) {
        self.notes.retain(|(known, _)| *known != name);
        self.notes.push((name, value));
    }

    /// Returns the request ID: 32 random hexadecimal digits, the same for the whole exchange.
    pub fn request_id(&self) -> &str {
        let digits = self.id.get_or_init(|| {
            // Without random numbers an identifier of zeros is better than no service.
            let random = random::id();
            let mut digits = [0; 32];
            for (index, digit) in digits.iter_mut().enumerate() {
                let nibble = random[index / 2] >> (4 * (index % 2)) & 15;
                *digit = b"0123456789abcdef"[usize::from(nibble)];
            }
            digits
        });
        std::str::from_utf8(digits).unwrap_or_default()
    }

    /// The address of the client; `None` if it is unknown.
    pub fn client_address(&self) -> Option<&HeaderValue> {
        self.client.as_ref().map(|client| &client.address).or(self.peer.address.as_ref())
    }

    /// Whether the client uses `https`, as the trusted proxies say, or else by the connection.
    pub fn is_secure(&self) -> bool {
        self.peer.is_secure_for(self.named_scheme)
    }

    /// The client's address without port; `None` if it is unknown.
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.client.as_ref().map(|client| client.socket.ip()).or(self.peer.ip())
    }

    /// Returns the client as the holder of a share.
    pub fn holder(&self) -> Holder {
        ClientNet::holder(self.client_ip())
    }

    /// Returns the client's address and the address that it connected to; `None` if the client's address is unknown.
    pub fn addresses(&self) -> Option<ConnectionAddresses> {
        let Some(client) = &self.client else { return self.peer.addresses };
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let destination = self.peer.addresses.map_or(unknown, |addresses| addresses.destination);
        Some(ConnectionAddresses { client: client.socket, destination })
    }

    /// Returns a value for the decisions of a cache: with the lines that an origin may take for the field's, and with all
    /// values of a cookie or a parameter that the request repeats, as origins differ in the one that they read.
    pub fn value_with_aliases(&self, name: &ValueName) -> Option<Value<'_>> {
        let value = self.value(name);
        let name = match name {
            ValueName::RequestField(name) => name,
            ValueName::Cookie(name) => {
                let cookies = self.request.headers.get_all(header::COOKIE).iter();
                self.work.add_scan(cookies.map(HeaderValue::len).sum());
                return with_others(value, repeated::alike_cookies(&self.request.headers, name));
            }
            ValueName::QueryParameter(name) => {
                let query = self.request.uri.query().unwrap_or_default();
                self.work.add_scan(query.len());
                return with_others(value, repeated::query_parameters(query, name));
            }
            _ => return value,
        };
        if !self.has_aliases {
            return value;
        }
        let mut joined_value = value.as_ref().map_or(Vec::new(), |value| value.bytes().to_vec());
        let has_more = field_alias::put_aliases(&self.request.headers, name, &mut joined_value);
        if has_more { Some(Value::Bytes(Cow::Owned(joined_value))) } else { value }
    }

    /// Returns the chain that trusted proxies have sent, or their client, with the peer at the end. A peer at a unix
    /// socket has no address: it is on this machine, and the next proxy reads the chain without it.
    fn forwarded_for(&self) -> Option<Value<'_>> {
        let peer = self.peer.address.as_ref();
        let client = || self.client.as_ref().map(|client| Value::Field(&client.address));
        // Not the field as it is now: a plugin may have put this hop there already.
        let chain = self.chain.as_ref().map(Value::Field).or_else(client);
        Some(match (chain, peer) {
            (Some(chain), Some(peer)) => Value::Bytes(Cow::Owned([chain.bytes(), b", ", peer.as_bytes()].concat())),
            (Some(chain), None) => chain,
            (None, peer) => Value::Field(peer?),
        })
    }
}

impl CalloutCause {
    /// Returns a cause that is no exchange, such as a timer.
    pub fn without_exchange(name: &str) -> Self {
        let peer = Arc::new(ClientInfo::unix(name));
        CalloutCause { peer, client: None, route: "-".into(), id: None, passages: 0 }
    }
}

impl RequestLine {
    /// Copies the parts of a request that the access log needs, before a plugin changes it.
    pub fn of(request: &http::request::Parts, words: Words) -> Self {
        let words = (words == Words::Logged).then(|| {
            let field = |name| request.headers.get(name).cloned();
            let authority = || HeaderValue::from_str(request.uri.authority()?.as_str()).ok();
            let host = field(header::HOST).or_else(authority);
            Box::new(ReceivedFields { host, referer: field(header::REFERER), user_agent: field(header::USER_AGENT) })
        });
        RequestLine { method: request.method.clone(), target: request.uri.clone(), version: request.version, words }
    }
}

impl ClientInfo {
    /// The facts of a connection over TCP.
    pub fn tcp(addresses: ConnectionAddresses) -> Self {
        let ConnectionAddresses { client, destination } = addresses;
        // The canonical form: an IPv4 client of a dual-stack socket is an IPv4 client.
        let (address, port) = (client.ip().to_canonical().to_string(), client.port().to_string());
        let field = |text: String| HeaderValue::from_str(&text).ok();
        let listener = field(destination.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let addresses = Some(addresses);
        ClientInfo { address: field(address), port: field(port), addresses, ..ClientInfo::at(listener) }
    }

    /// The facts of a connection over a unix socket.
    pub fn unix(listener: &str) -> Self {
        let listener = HeaderValue::from_str(listener).unwrap_or(HeaderValue::from_static("unix"));
        ClientInfo::at(listener)
    }

    /// The facts of a connection to a listener, of whose client nothing is known yet.
    fn at(listener: HeaderValue) -> Self {
        let waiting = Arc::new(WaitingBytes::new(u64::MAX));
        ClientInfo { address: None, port: None, listener, addresses: None, tls: None, waiting }
    }

    /// Returns the address that connected; `None` at a unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        self.addresses.map(|addresses| addresses.client.ip().to_canonical())
    }

    /// Whether the client has spoken TLS to this listener.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether a client uses `https`, given the scheme that the trusted proxies name, or else by the connection.
    pub fn is_secure_for(&self, named: Option<Scheme>) -> bool {
        named.map_or(self.is_secure(), |scheme| scheme == Scheme::Https)
    }

    /// Returns the client with a connection over TLS, for tests.
    pub fn secure(&mut self, tls: ClientTls) {
        self.tls = Some(Box::new(tls));
    }
}

impl<'a> Value<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Value::Bytes(Cow::Borrowed(bytes))
    }

    /// Returns the bytes of the value.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Value::Field(value) => value.as_bytes(),
            Value::Bytes(bytes) => bytes,
        }
    }
}

/// Returns the host of an authority without its port (RFC 3986 §3.2), in lower case.
pub fn host(field: &HeaderValue) -> Value<'_> {
    match authority::without_port(field.as_bytes()) {
        Cow::Borrowed(host) if host.len() == field.len() => Value::Field(field),
        host => Value::Bytes(host),
    }
}

/// Returns a value with all values of its name, if they are several, or if the name was written otherwise.
fn with_others<'a>(value: Option<Value<'a>>, all: impl Iterator<Item = &'a [u8]>) -> Option<Value<'a>> {
    let all: SmallVec<[&[u8]; 4]> = all.collect();
    if all.is_empty() || all.len() == 1 && value.is_some() {
        return value;
    }
    let mut joined = value.map_or(Vec::new(), |value| value.bytes().to_vec());
    // No value has a line break, and no name in a key begins with a `=`.
    all.iter().for_each(|other| joined.extend([b"\n=", *other].concat()));
    Some(Value::Bytes(Cow::Owned(joined)))
}

fn borrowed(text: &str) -> Value<'_> {
    Value::of(text.as_bytes())
}

fn joined<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<Value<'a>> {
    let mut lines = fields.get_all(name).iter();
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(Value::Field(first)) };
    let mut list = [first.as_bytes(), b", ", second.as_bytes()].concat();
    for line in lines {
        list.extend_from_slice(b", ");
        list.extend_from_slice(line.as_bytes());
    }
    Some(Value::Bytes(Cow::Owned(list)))
}
