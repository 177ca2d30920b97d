//! The requests at the admin listener: routing, documents and commands.

use std::cell::RefCell;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use percent_encoding::percent_decode;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tracing::{info, warn};

use super::access::{self, AccessRefusal, AdminTransport};
use super::connection::{AdminConnectionState, AdminPhase, Connections};
use super::document::Document;
use super::metrics_page::metrics;
use super::status::status;
use super::{Admin, MANIFEST_FIELD, purge, text};
use crate::assemble::admin::AdminSettings;
use crate::exchange::response_body::ResponseBody;

/// The maximum time that a client waits for the result of its reload. Loading has its own limits; this one covers the
/// rest.
const RELOAD_TIME: Duration = Duration::from_secs(600);

/// The maximum number of concurrent purges; others wait. Each purge scans the whole store.
const MAX_CONCURRENT_PURGES: usize = 2;

/// The minimum time between two log lines about rejected requests.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The state that all admin listeners share to answer requests.
pub struct RequestHandler {
    admin: Arc<Admin>,
    settings: RefCell<Rc<AdminSettings>>,
    metrics: Document,
    status: Document,
    purges: Arc<Semaphore>,
    refusals: RefCell<Refusals>,
}

/// The rejected requests that are not logged yet.
#[derive(Default)]
struct Refusals {
    count: u64,
    logged: Option<Instant>,
}

/// The paths that can be read.
const READS: [&str; 3] = ["/metrics", "/status", "/"];
const CHANGES: [&str; 4] = ["/reload", "/drain", "/undrain", "/purge"];

impl RequestHandler {
    /// Creates the shared state for a process, with the settings of who has access.
    pub fn new(admin: Arc<Admin>, settings: AdminSettings) -> Self {
        let (metrics, status) = (Document::new(metrics), Document::new(status));
        let settings = RefCell::new(Rc::new(settings));
        let purges = Arc::new(Semaphore::new(MAX_CONCURRENT_PURGES));
        RequestHandler { admin, settings, metrics, status, purges, refusals: RefCell::default() }
    }

    /// Replaces the settings.
    pub fn obey(&self, settings: AdminSettings) {
        self.settings.replace(Rc::new(settings));
    }

    /// Returns the response to a request, and sets the phase of its connection.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        transport: AdminTransport,
        state: &Rc<AdminConnectionState>,
        connections: &Connections,
    ) -> Response<ResponseBody> {
        let settings = self.settings.borrow().clone();
        let allowed = access::check(&request, transport, settings.token.as_ref());
        let mut response = match allowed {
            Err(refusal) => self.refuse(refusal, &request, transport),
            Ok(()) if access::is_greeting(&request) => greeting(),
            // hyper sends no content in a response to HEAD.
            Ok(()) if matches!(*request.method(), Method::GET | Method::HEAD) => {
                state.enter(AdminPhase::Reading, Instant::now());
                self.read(request.uri().path()).await
            }
            Ok(()) => {
                state.enter(AdminPhase::Changing, Instant::now());
                self.change(&request, &settings).await
            }
        };
        if connections.is_stopping() || response.status() == StatusCode::PAYLOAD_TOO_LARGE {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let document = if let ResponseBody::Full(content) = response.body() { content.clone() } else { Bytes::new() };
        connections.send(state, document, Instant::now());
        response
    }

    fn refuse<B>(
        &self,
        refusal: AccessRefusal,
        request: &Request<B>,
        transport: AdminTransport,
    ) -> Response<ResponseBody> {
        let mut refusals = self.refusals.borrow_mut();
        refusals.count += 1;
        if refusals.logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL) {
            let (reason, path) = (refusal.reason, request.uri().path());
            warn!(count = refusals.count, ?transport, method = %request.method(), ?path, reason, "admin request refused");
            *refusals = Refusals { count: 0, logged: Some(Instant::now()) };
        }
        let mut response = text(refusal.status, "text/plain", format!("{}\n", refusal.reason));
        if refusal.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"plugway\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }

    async fn read(&self, path: &str) -> Response<ResponseBody> {
        let (document, media_type) = match path {
            "/metrics" => (&self.metrics, "text/plain; version=0.0.4"),
            "/" | "/status" => (&self.status, "application/json"),
            _ => return unknown(path),
        };
        match document.current(&self.admin).await {
            Ok(content) => super::respond(StatusCode::OK, media_type, content),
            Err(error) => failed(&error),
        }
    }

    async fn change<B>(&self, request: &Request<B>, settings: &AdminSettings) -> Response<ResponseBody> {
        let (path, query) = (request.uri().path(), request.uri().query());
        if request.method() != Method::POST || !CHANGES.contains(&path) {
            return unknown(path);
        }
        if let Err(refused) = is_meant(request.headers(), settings.manifest.as_deref()).await {
            return refused;
        }
        info!(path, ?query, "admin request");
        match path {
            "/reload" => self.reload().await,
            "/purge" => purge::purge(&self.admin, query, &self.purges).await,
            _ => super::drain(&self.admin, query, path == "/drain"),
        }
    }

    async fn reload(&self) -> Response<ResponseBody> {
        let (done, outcome) = oneshot::channel();
        let outcome = async {
            let _ = self.admin.reload.send(done).await;
            outcome.await
        };
        match timeout(RELOAD_TIME, outcome).await {
            Ok(Ok(Ok(message))) => text(StatusCode::OK, "text/plain", message + "\n"),
            Ok(Ok(Err(problems))) => text(StatusCode::UNPROCESSABLE_ENTITY, "text/plain", problems + "\n"),
            Ok(Err(_)) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the process is stopping\n".into()),
            Err(_) => text(StatusCode::GATEWAY_TIMEOUT, "text/plain", "the reload has not ended yet\n".into()),
        }
    }
}

/// Checks that the manifest that a client names, if any, is the one in service.
async fn is_meant(fields: &HeaderMap, served: Option<&Path>) -> Result<(), Response<ResponseBody>> {
    let Some(named) = fields.get(MANIFEST_FIELD) else { return Ok(()) };
    let named = percent_decode(named.as_bytes()).collect::<Vec<u8>>();
    let named = PathBuf::from(std::ffi::OsStr::from_bytes(&named));
    let conflict = |message: String| text(StatusCode::CONFLICT, "text/plain", message);
    let Some(served) = served.map(Path::to_path_buf) else {
        return Err(conflict(format!("this proxy serves no manifest, and not {}\n", named.display())));
    };
    // Links may have changed since the start. A file system may be slow, so the check runs on another thread.
    let looked = tokio::task::spawn_blocking(move || {
        let is_same =
            served == named || served.canonicalize().ok().is_some_and(|real| named.canonicalize().ok() == Some(real));
        if is_same { Ok(()) } else { Err(format!("this proxy serves {}, not {}\n", served.display(), named.display())) }
    });
    match looked.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(message)) => Err(conflict(message)),
        Err(error) => Err(failed(&error)),
    }
}

/// Returns the response to `OPTIONS *`: its fields say that this is an admin listener.
fn greeting() -> Response<ResponseBody> {
    let mut response = text(StatusCode::NO_CONTENT, "text/plain", String::new());
    response.headers_mut().remove(header::CONTENT_TYPE);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, OPTIONS"));
    response
}

fn unknown(path: &str) -> Response<ResponseBody> {
    let allowed = match path {
        path if READS.contains(&path) => "GET, HEAD",
        path if CHANGES.contains(&path) => "POST",
        _ => {
            let known = "/status, /metrics, POST /reload, /drain, /undrain, /purge\n";
            return text(StatusCode::NOT_FOUND, "text/plain", known.into());
        }
    };
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", format!("this takes {allowed}\n"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

fn failed(error: &dyn std::error::Error) -> Response<ResponseBody> {
    text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n"))
}
