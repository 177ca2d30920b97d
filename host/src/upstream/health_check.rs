//! Checks whether an endpoint is healthy, on a connection of its own: an accept that hangs is a failed check.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use http_body::Frame;

use super::EndpointAddr;
use super::connect::{self, ConnectTerms};
use super::connection::{Connection, SendError};
use super::connection_limit::ConnectionPermit;
use super::http1::Http1Error;
use super::http1::response_head::HeadError;
use super::request_head::RequestHead;
use super::required_protocol::RequiredProtocol;
use super::response_head_limits::ResponseHeadLimits;
use super::status_codes::StatusCodes;
use crate::body::BodyError;
use crate::body::upload::RequestBody;
use crate::error::causes;
use crate::protocol::proxy_protocol;

/// The settings of an upstream's health checks.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    pub kind: CheckKind,
    pub interval: Duration,
    /// The maximum duration of a check.
    pub timeout: Duration,
    /// The version of the PROXY header that a check sends; `None` if it sends none.
    pub proxy_protocol: Option<proxy_protocol::ProxyVersion>,
    /// The limits of the heads of responses, as for requests.
    pub head: ResponseHeadLimits,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// The endpoint accepts a connection, with TLS if that is configured.
    Tcp,
    /// The endpoint answers a GET request.
    Http(HttpCheck),
    /// The endpoint answers `grpc.health.v1.Health/Check` of a service with `SERVING`; an empty name stands for the
    /// server as a whole.
    Grpc(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    pub target: PathAndQuery,
    /// The value of `Host`; `None` for the endpoint's address.
    pub host: Option<HeaderValue>,
    /// The status codes of a healthy endpoint.
    pub statuses: StatusCodes,
    /// The text that the content must contain; `None` for any content.
    pub content: Option<String>,
}

/// The maximum number of bytes that are read of a response, to look for the expected content.
const MAX_CONTENT_BYTES: usize = 64 << 10;

/// Runs one health check. The error is text for the log.
pub async fn check(check: &HealthCheck, address: &EndpointAddr) -> Result<(), String> {
    match tokio::time::timeout(check.timeout, run_check(check, address)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("nothing was heard in {:?}", check.timeout)),
    }
}

async fn run_check(check: &HealthCheck, address: &EndpointAddr) -> Result<(), String> {
    let terms = ConnectTerms {
        wanted: RequiredProtocol::Any,
        addresses: None,
        proxy_protocol: check.proxy_protocol,
        head: check.head,
        within: check.timeout,
        last: None,
        lookup: None,
        stage: None,
        idle: None,
    };
    let connecting = connect::connect(address, &terms, ConnectionPermit::default());
    let mut connection = connecting.await.map_err(|error| format!("{}: {}", error.kind.token(), error.causes()))?;
    match &check.kind {
        CheckKind::Tcp => Ok(()),
        CheckKind::Http(wanted) => http(&mut connection, address, wanted).await,
        CheckKind::Grpc(service) => grpc(&mut connection, address, service).await,
    }
}

async fn http(connection: &mut Connection, address: &EndpointAddr, wanted: &HttpCheck) -> Result<(), String> {
    let mut fields = HeaderMap::new();
    fields.insert(header::USER_AGENT, AGENT);
    if let Some(host) = &wanted.host {
        fields.insert(header::HOST, host.clone());
    }
    let head = RequestHead::new(&Method::GET, wanted.target.clone(), &fields, address, connection.version());
    let answer = exchange(connection, head, RequestBody::Empty).await?;
    if !wanted.statuses.contains(answer.status) {
        let needs_host = wanted.host.is_none() && answer.status == StatusCode::BAD_REQUEST;
        let hint = if needs_host { "; if it accepts certain hosts only, name one by `health.host`" } else { "" };
        return Err(format!("it answered {}{hint}", answer.status.as_u16()));
    }
    match &wanted.content {
        Some(text) if memchr::memmem::find(&answer.content, text.as_bytes()).is_none() => {
            Err(format!("`{text}` is not in its answer"))
        }
        _ => Ok(()),
    }
}

/// The gRPC health checking protocol: a request with the name of the service, a response with a status.
async fn grpc(connection: &mut Connection, address: &EndpointAddr, service: &str) -> Result<(), String> {
    if connection.version() != Version::HTTP_2 {
        return Err("it speaks no HTTP/2, and so no gRPC".into());
    }
    let mut fields = HeaderMap::new();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert(header::TE, HeaderValue::from_static("trailers"));
    fields.insert(header::USER_AGENT, AGENT);
    let target = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let head = RequestHead::new(&Method::POST, target, &fields, address, Version::HTTP_2);
    let answer = exchange(connection, head, RequestBody::Whole(grpc_request(service))).await?;
    let status = answer.trailers.get(&GRPC_STATUS).and_then(|status| status.to_str().ok()).unwrap_or("none");
    if status != "0" {
        return Err(format!("its gRPC status is {status}"));
    }
    // A message is a flag, a length and, for SERVING, field 1 with the value 1.
    if answer.content.get(5..) == Some(&[0x08, 0x01]) { Ok(()) } else { Err("it says that it isn't serving".into()) }
}

/// A message of gRPC with `HealthCheckRequest { service }`: not compressed, its length, and field 1.
fn grpc_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed.into()
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

const AGENT: HeaderValue = HeaderValue::from_static("plugway-health-check");

struct CheckResponse {
    status: StatusCode,
    content: Vec<u8>,
    trailers: HeaderMap,
}

async fn exchange(
    connection: &mut Connection,
    head: Result<RequestHead<'_>, http::Error>,
    content: RequestBody,
) -> Result<CheckResponse, String> {
    let head = head.map_err(|error| error.to_string())?;
    let mut pending = pin!(connection.send(head, content, None));
    let response = poll_fn(|cx| connection.poll_response(cx, pending.as_mut())).await;
    let (head, mut content) = response.map_err(|unsent| described(&unsent.error, connection))?.into_parts();
    let mut answer = CheckResponse { status: head.status, content: Vec::new(), trailers: HeaderMap::new() };
    // A response without content may have its gRPC status among the fields.
    if let Some(status) = head.headers.get(&GRPC_STATUS) {
        answer.trailers.insert(GRPC_STATUS, status.clone());
    }
    while answer.content.len() < MAX_CONTENT_BYTES {
        let frame = poll_fn(|cx| connection.poll_frame(cx, &mut content)).await;
        let Some(frame) = frame else { break };
        take(&mut answer, frame)?;
    }
    Ok(answer)
}

/// Returns why a request got no response, with the keys of a limit.
fn described(error: &SendError, connection: &Connection) -> String {
    match (error, connection.protocol_remedy()) {
        (_, Some(remedy)) => remedy.into(),
        (SendError::Http1(Http1Error::Head(HeadError::TooLarge)), None) => connection.head_limits().exceeded(),
        (_, None) => causes(error),
    }
}

fn take(answer: &mut CheckResponse, frame: Result<Frame<Bytes>, BodyError>) -> Result<(), String> {
    match frame.map_err(|error| causes(&*error))?.into_data() {
        Ok(piece) => answer.content.extend(piece),
        Err(frame) => answer.trailers.extend(frame.into_trailers().unwrap_or_default()),
    }
    Ok(())
}
