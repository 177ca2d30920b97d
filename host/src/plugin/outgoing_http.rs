//! The import `wasi:http/outgoing-handler`: requests of plugins whose hooks may wait, to destinations that the manifest
//! grants. A request leaves by a channel to the worker, which sends it through an upstream.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use tokio::sync::{mpsc, oneshot};
use wasmtime::component::ResourceTable;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView,
    WasiHttpHooks,
};

use super::early_answers::{EarlyAnswer, EarlyAnswers, request_digest};
use super::held_bytes::{CountedBytes, HeldBytes};
use crate::context::{bounds, edit_check};
use crate::error::FailureKind;
use crate::protocol::field_alias::is_plain;
use crate::protocol::{hop_by_hop, path};

/// A destination that a plugin may send requests to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HttpDestination {
    /// An upstream of the manifest, as `http://NAME`.
    Upstream(Box<str>),
    /// A server, by its scheme, host and port.
    Server {
        /// Whether the scheme is `https`.
        is_secure: bool,
        /// The host, in lower case.
        host: Box<str>,
        port: u16,
    },
}

/// A request of a plugin, for the worker to send.
pub struct Callout {
    /// The index of the destination among those of the plugin.
    pub destination: usize,
    pub request: Request<Bytes>,
    pub times: CalloutTimes,
    /// The receiver of the response; closed if the plugin no longer waits.
    pub reply: oneshot::Sender<Result<Response<Bytes>, FailureKind>>,
}

/// The times that a plugin gives a request; `None` for those of the upstream.
#[derive(Clone, Copy, Debug, Default)]
pub struct CalloutTimes {
    /// Until the head of the response.
    pub head: Option<std::time::Duration>,
    /// For the body of the response.
    pub body: Option<std::time::Duration>,
}

/// The sending end for the requests of one call.
#[derive(Clone)]
pub struct CalloutSender(mpsc::Sender<Callout>);

/// The receiving end for the requests of one call.
pub struct CalloutReceiver(mpsc::Receiver<Callout>);

/// The HTTP state of an instance.
#[derive(Default)]
pub(super) struct HttpState {
    context: WasiHttpCtx,
    hooks: HttpHooks,
}

#[derive(Default)]
struct HttpHooks {
    destinations: Arc<[HttpDestination]>,
    way: CalloutWay,
    held: HeldBytes,
}

/// The way of an instance's requests.
#[derive(Clone, Default)]
enum CalloutWay {
    /// Outside of calls that may wait.
    #[default]
    Closed,
    /// A worker sends them.
    Sent(CalloutSender),
    /// A worker sends them, and the answers are kept for other instances.
    Kept(CalloutSender, Arc<EarlyAnswers>),
    /// The answers are those of another instance.
    Answered(Arc<EarlyAnswers>),
}

/// Bytes of one write of a plugin that waits.
pub(super) const MAX_WAITING_WRITE: u64 = 64 << 10;

/// Requests of one call at a time that are not sent yet, and as many that are.
pub const MAX_CALLOUTS: usize = 4;

/// The bytes of the fields of a head that a plugin makes, as the host keeps them.
const MAX_FIELD_BYTES: usize = 64 << 10;

impl CalloutSender {
    /// Returns both ends for the requests of a call.
    pub fn channel() -> (CalloutSender, CalloutReceiver) {
        let (sender, receiver) = mpsc::channel(MAX_CALLOUTS);
        (CalloutSender(sender), CalloutReceiver(receiver))
    }
}

impl CalloutReceiver {
    /// Returns the next request; `None` if there will be none.
    pub fn poll(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Callout>> {
        self.0.poll_recv(cx)
    }
}

impl HttpDestination {
    /// Whether a request to a URI goes to this destination.
    fn is_of(&self, uri: &Uri) -> bool {
        let (Some(scheme), Some(host)) = (uri.scheme(), uri.host()) else { return false };
        match self {
            HttpDestination::Upstream(name) => *scheme == Scheme::HTTP && uri.port().is_none() && host == &**name,
            HttpDestination::Server { is_secure, host: known, port } => {
                let is_of_scheme = *scheme == if *is_secure { Scheme::HTTPS } else { Scheme::HTTP };
                let default = if *is_secure { 443 } else { 80 };
                is_of_scheme && host.eq_ignore_ascii_case(known) && uri.port_u16().unwrap_or(default) == *port
            }
        }
    }
}

impl std::fmt::Display for HttpDestination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HttpDestination::Upstream(name) => write!(f, "http://{name}"),
            HttpDestination::Server { is_secure: true, host, port } => write!(f, "https://{host}:{port}"),
            HttpDestination::Server { is_secure: false, host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

impl HttpState {
    /// Returns the state of an instance that may send requests to destinations.
    pub(super) fn new(destinations: Arc<[HttpDestination]>) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(MAX_FIELD_BYTES);
        HttpState { context, hooks: HttpHooks { destinations, ..HttpHooks::default() } }
    }

    /// Opens the way to the worker for a call.
    pub(super) fn open(&mut self, sender: CalloutSender) {
        self.hooks.way = CalloutWay::Sent(sender);
    }

    /// Opens the way to a worker, and keeps the answers for other instances.
    pub(super) fn open_and_keep(&mut self, sender: CalloutSender, answers: Arc<EarlyAnswers>) {
        self.hooks.way = CalloutWay::Kept(sender, answers);
    }

    /// Gives the answers of another instance.
    pub(super) fn answer_by(&mut self, answers: Arc<EarlyAnswers>) {
        self.hooks.way = CalloutWay::Answered(answers);
    }

    /// Sends no more requests.
    pub(super) fn close(&mut self) {
        self.hooks.way = CalloutWay::Closed;
    }

    /// The answers of another instance; `None` if this instance asks itself.
    pub(super) fn given(&self) -> Option<&Arc<EarlyAnswers>> {
        if let CalloutWay::Answered(answers) = &self.hooks.way { Some(answers) } else { None }
    }

    /// The answers that are kept for other instances; `None` if none are.
    pub(super) fn kept(&self) -> Option<&Arc<EarlyAnswers>> {
        if let CalloutWay::Kept(_, answers) = &self.hooks.way { Some(answers) } else { None }
    }

    /// Whether the host keeps bytes of requests or responses.
    pub(super) fn holds_bytes(&self) -> bool {
        !self.hooks.held.is_empty()
    }

    /// Returns the state as `wasmtime-wasi-http` takes it.
    pub(super) fn view<'a>(&'a mut self, table: &'a mut ResourceTable) -> WasiHttpCtxView<'a> {
        WasiHttpCtxView { ctx: &mut self.context, table, hooks: &mut self.hooks }
    }
}

/// The end of a response that the host has received as a whole.
type ResponseEnd = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for HttpHooks {
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        let is_alias = |name: &HeaderName| !is_plain(name.as_str()) && edit_check::is_framing(name);
        Arc::new(move |name| DEFAULT_FORBIDDEN_HEADERS.contains(name) || is_alias(name))
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: ResponseEnd,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, ResponseEnd), Error>> + Send> {
        let destination = self.destinations.iter().position(|known| known.is_of(request.uri()));
        let has_user = request.uri().authority().is_some_and(|authority| authority.as_str().contains('@'));
        let (way, held, request) = (self.way.clone(), self.held.clone(), as_sent(request));
        Box::new(async move {
            let request = request?;
            let destination = destination.filter(|_| !has_user).ok_or(Error::HttpRequestDenied)?;
            let request = received(request, held.count()).await?;
            let response = way.send(destination, request, options.unwrap_or_default()).await?;
            let (head, content) = response.into_parts();
            let content = held.hold(&head.headers, content).ok_or(Error::HttpResponseBodySize(None))?;
            let content = Full::new(content).map_err(|never| match never {}).boxed_unsync();
            let response = Response::from_parts(head, content);
            Ok((response, Box::new(std::future::ready(Ok(()))) as ResponseEnd))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        MAX_WAITING_WRITE as usize
    }
}

impl CalloutWay {
    /// Sends a request, and returns the response as a whole.
    async fn send(
        self,
        destination: usize,
        request: Request<Bytes>,
        options: RequestOptions,
    ) -> Result<Response<Bytes>, Error> {
        let times = CalloutTimes { head: options.first_byte_timeout, body: options.between_bytes_timeout };
        match self {
            CalloutWay::Closed => Err(Error::ConfigurationError),
            CalloutWay::Sent(sender) => sender.send(destination, request, times).await?.map_err(error),
            CalloutWay::Kept(sender, answers) => {
                if !answers.has_room() {
                    return Err(Error::ConnectionLimitReached);
                }
                let question = request_digest(destination, &request);
                let answer = sender.send(destination, request, times).await?;
                answers.keep(question, EarlyAnswer::Response(answer.clone()));
                answer.map_err(error)
            }
            CalloutWay::Answered(answers) => match answers.answer(&request_digest(destination, &request)) {
                Some(EarlyAnswer::Response(answer)) => answer.map_err(error),
                Some(EarlyAnswer::Password(_)) | None => Err(Error::ConfigurationError),
            },
        }
    }
}

impl CalloutSender {
    /// Has the worker send a request; the outer error is that the worker takes no more, or is gone.
    async fn send(
        self,
        destination: usize,
        request: Request<Bytes>,
        times: CalloutTimes,
    ) -> Result<Result<Response<Bytes>, FailureKind>, Error> {
        let (reply, response) = oneshot::channel();
        let callout = Callout { destination, request, times, reply };
        self.0.try_send(callout).map_err(|_| Error::ConnectionLimitReached)?;
        response.await.map_err(|_| Error::ConnectionTerminated)
    }
}

/// Returns a request with its path as it is sent; an error if its method or path is none that is sent.
fn as_sent(mut request: Request<WasiBody>) -> Result<Request<WasiBody>, Error> {
    if edit_check::method(request.method().as_str()).is_err() {
        return Err(Error::HttpRequestMethodInvalid);
    }
    let invalid = || Error::HttpRequestUriInvalid;
    let target =
        request.uri().path_and_query().filter(|target| target.as_str().starts_with('/')).ok_or_else(invalid)?;
    let Cow::Owned(mut sent) = path::of_own_request(target.path()).map_err(|_| invalid())? else { return Ok(request) };
    if let Some(query) = target.query() {
        sent.push('?');
        sent.push_str(query);
    }
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(sent).map_err(|_| invalid())?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| invalid())?;
    Ok(request)
}

/// Returns a request once the plugin has written its content, which counts among the bytes that the host keeps.
async fn received(request: Request<WasiBody>, mut counted: CountedBytes) -> Result<Request<Bytes>, Error> {
    let (mut head, mut body) = request.into_parts();
    hop_by_hop::own_request(&mut head.headers);
    let mut content = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if content.len() + data.len() > bounds::CALLOUT_REQUEST || !counted.add(data.len()) {
            return Err(Error::HttpRequestBodySize(None));
        }
        content.extend_from_slice(&data);
    }
    // RFC 9110 §9.3.8.
    if head.method == Method::TRACE && !content.is_empty() {
        return Err(Error::HttpRequestMethodInvalid);
    }
    let content = if content.is_empty() { Bytes::new() } else { counted.of(content.freeze()) };
    Ok(Request::from_parts(head, content))
}

/// Returns the error of a plugin for a failure of an upstream.
fn error(kind: FailureKind) -> Error {
    match kind {
        FailureKind::NoRoute | FailureKind::InternalError | FailureKind::UpgradeFailed | FailureKind::PluginError => {
            Error::InternalError(None)
        }
        FailureKind::DestinationUnavailable => Error::DestinationUnavailable,
        FailureKind::LimitReached => Error::ConnectionLimitReached,
        FailureKind::DnsError => Error::DnsError { rcode: None, info_code: None },
        FailureKind::DnsTimeout => Error::DnsTimeout,
        FailureKind::ConnectionRefused => Error::ConnectionRefused,
        FailureKind::ConnectionTimeout => Error::ConnectionTimeout,
        FailureKind::ConnectionTerminated => Error::ConnectionTerminated,
        FailureKind::TlsError => Error::TlsProtocolError,
        FailureKind::TlsCertificate => Error::TlsCertificateError,
        FailureKind::TlsAlert => Error::TlsAlertReceived { alert_id: None, alert_message: None },
        FailureKind::ResponseTimeout | FailureKind::RequestTimeout => Error::HttpResponseTimeout,
        FailureKind::ProtocolError => Error::HttpProtocolError,
        FailureKind::RequestError => Error::HttpRequestUriInvalid,
        FailureKind::RequestBodySize => Error::HttpRequestBodySize(None),
        FailureKind::ResponseBodySize => Error::HttpResponseBodySize(None),
        FailureKind::ResponseHeadSize => Error::HttpResponseHeaderSectionSize(None),
        FailureKind::ContentCoding => Error::HttpResponseContentCoding(None),
        FailureKind::LoopDetected => Error::LoopDetected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_where_its_authority_says() {
        let server = |is_secure, host: &str, port| HttpDestination::Server { is_secure, host: host.into(), port };
        let upstream = HttpDestination::Upstream("auth".into());
        for (destination, uri, wanted) in [
            (server(true, "auth.example", 443), "https://auth.example/x", true),
            (server(true, "auth.example", 443), "https://AUTH.example:443/x", true),
            (server(true, "auth.example", 443), "http://auth.example/x", false),
            (server(true, "auth.example", 443), "https://auth.example:444/x", false),
            (server(true, "auth.example", 443), "https://auth.example.evil/x", false),
            (server(false, "::1", 8080), "http://[::1]:8080/", false),
            (server(false, "[::1]", 8080), "http://[::1]:8080/", true),
            (upstream.clone(), "http://auth/verify?a=b", true),
            (upstream.clone(), "https://auth/verify", false),
            (upstream.clone(), "http://auth:80/verify", false),
            (upstream, "http://author/", false),
        ] {
            assert_eq!(destination.is_of(&uri.parse().unwrap()), wanted, "{destination:?} {uri}");
        }
    }
}
