//! Responses of the files below a folder: complete, partial, or without content if the client has the file already.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode, Uri, response};

use super::error_response::{redirect, status_page};
use super::response_body::ResponseBody;
use crate::context::{ExchangeContext, ReceivedRequest};
use crate::error::Error;
use crate::generation::ids::RouteId;
use crate::generation::worker_state::WorkerState;
use crate::net::deadline::Deadline;
use crate::protocol::client_net::ClientNet;
use crate::protocol::conditions::{self, Precondition};
use crate::protocol::content_coding;
use crate::protocol::media_type;
use crate::protocol::path;
use crate::protocol::ranges::{self, PartOrder, RangeRequest};
use crate::static_files::file_body::{FileBody, Segment};
use crate::static_files::find::{FileQuery, FileTime, FoundFile, PathAnswer, SiteFile};
use crate::static_files::site_path::SitePath;
use crate::static_files::worker_site::WorkerSite;
use crate::store::unix_time::{http_date, now_ms};
use crate::system::holder_counts::Holder;
use crate::telemetry::failure_log::{self, Topic};

/// The methods of a file, for `Allow`.
const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// The maximum length of a file that is read before its response begins. The file is closed at once, instead of when a
/// slow client has read it. Shorter than the maximum head of a response.
const READ_AT_ONCE: u64 = 16 << 10;

/// Returns the file that a request asks for, or the status that says why there is none. The path is that of
/// [`ExchangeContext::forwarded_target`], which `strip-prefix` and `rewrite` of the route have changed. `step` limits
/// each single wait.
pub async fn serve_files(
    worker: &WorkerState,
    route_id: RouteId,
    context: &ExchangeContext,
    step: &Deadline,
) -> Result<Response<ResponseBody>, Error> {
    let page = |status| status_page(status, context, worker.generation.error_page(Some(route_id), status));
    let request = &context.request;
    if request.method != Method::GET && request.method != Method::HEAD {
        let mut response = match request.method {
            Method::OPTIONS => without_content(StatusCode::NO_CONTENT),
            _ => page(StatusCode::METHOD_NOT_ALLOWED),
        };
        response.headers_mut().insert(header::ALLOW, ALLOWED);
        return Ok(response);
    }
    let Some(site) = &worker.sites[route_id] else { return Ok(page(StatusCode::NOT_FOUND)) };
    let forwarded = context.forwarded_target().map_or("/", PathAndQuery::path);
    let Some(path) = SitePath::parse(forwarded) else { return Ok(page(StatusCode::NOT_FOUND)) };
    // The links of a page are relative to the path that the client knows.
    let is_bare_prefix = path.is_root() && !request.uri.path().ends_with('/') && !names_folder(context);
    if is_bare_prefix && worker.generation.routes[route_id].uri.prefix.is_some() {
        return Ok(redirect_into_folder(context));
    }
    let codings = content_coding::preferred(&request.headers, &site.site.precompressed);
    let mut query = FileQuery { path, codings };
    let holder = context.holder();
    let mut found = find(site, &query, holder, step).await?;
    // A plugin has removed the slash that the client sent: a redirect to it would come back without it again.
    if matches!(found, PathAnswer::Folder) && names_folder(context) {
        query.path = query.path.join(b"/");
        found = find(site, &query, holder, step).await?;
    }
    Ok(match found {
        PathAnswer::File(found) => match file_response(found, site, context, step) {
            Some(response) => response,
            None => page(StatusCode::PRECONDITION_FAILED),
        },
        PathAnswer::Folder => redirect_into_folder(context),
        PathAnswer::Unindexed => {
            let memory = worker.buffers.memory_for_made(&worker.generation.routes[route_id].made, holder);
            match site.list(query.path, ClientNet::new(context.client_ip()), memory, step).await? {
                Some(page) => listing_response(page, &request.method),
                None => page(StatusCode::NOT_FOUND),
            }
        }
        PathAnswer::Absent => page(StatusCode::NOT_FOUND),
        PathAnswer::Denied => {
            warn_of_denied(worker, route_id, context);
            page(StatusCode::FORBIDDEN)
        }
    })
}

async fn find(site: &WorkerSite, query: &FileQuery, client: Holder, step: &Deadline) -> Result<PathAnswer, Error> {
    match site.find_now(query, client, step.clock().now()) {
        Some(found) => found,
        None => site.find(query.clone(), client, step).await,
    }
}

/// Logs that the proxy may not read a file: the client's 403 looks like a plugin's.
fn warn_of_denied(worker: &WorkerState, route_id: RouteId, context: &ExchangeContext) {
    let route = &*worker.generation.routes[route_id].name;
    if !failure_log::admits(Topic::File, route) {
        return;
    }
    let (request_id, path) = (context.request_id(), context.forwarded_target().map_or("/", PathAndQuery::path));
    let remedy = "let the user that runs the proxy read the file and enter its folders";
    tracing::warn!(request_id, route, path, remedy, "file can't be read: permission denied");
}

/// Returns the response to a request for a file; `None` if its conditions are not met.
fn file_response(
    found: FoundFile,
    site: &WorkerSite,
    context: &ExchangeContext,
    step: &Deadline,
) -> Option<Response<ResponseBody>> {
    let request = &context.request;
    let mut head = file_head(&found, site);
    match conditions::precondition(&head, &request.headers) {
        Precondition::Met => {}
        Precondition::NotModified => {
            conditions::to_not_modified(&mut head);
            return Some(Response::from_parts(head, content(Bytes::new(), step)));
        }
        Precondition::Failed => return None,
    }
    let file = found.file;
    let length = file.length;
    if request.method == Method::HEAD {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        return Some(Response::from_parts(head, content(Bytes::new(), step)));
    }
    match requested(&mut head, &request.headers, length) {
        RangeRequest::All => {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            Some(Response::from_parts(head, whole(file, site, step)))
        }
        RangeRequest::Nothing(length) => {
            ranges::to_unsatisfiable(&mut head, length);
            Some(Response::from_parts(head, content(Bytes::new(), step)))
        }
        RangeRequest::Parts(parts, length) => {
            let texts = ranges::to_partial_content(&mut head, &parts, length);
            let mut texts_before = texts.before.into_iter();
            let mut segments = VecDeque::new();
            for part in parts {
                segments.extend(texts_before.next().map(|text| Segment::Text(text.into())));
                segments.push_back(Segment::Part { next: part.first, end: part.last + 1 });
            }
            segments.push_back(Segment::Text(texts.end.into()));
            Some(Response::from_parts(head, body(file, site, segments, step)))
        }
    }
}

/// Returns the head of a complete response, without its length.
fn file_head(found: &FoundFile, site: &WorkerSite) -> response::Parts {
    let (mut head, ()) = Response::new(()).into_parts();
    let fields = &mut head.headers;
    fields.insert(header::CONTENT_TYPE, media_type::of_file(&found.path.name()));
    fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(tag) = entity_tag(found) {
        fields.insert(header::ETAG, tag);
    }
    let modified = Some(found.file.modified).filter(|modified| !modified.is_fixed());
    if let Some(modified) = modified.and_then(|modified| last_modified(modified.seconds)) {
        fields.insert(header::LAST_MODIFIED, modified);
    }
    if let Some(coding) = found.coding {
        fields.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
    }
    if !site.site.precompressed.is_empty() {
        fields.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    head
}

/// Returns a strong entity tag; `None` if no time of the file changes with its content, as on a file system that is an image.
fn entity_tag(found: &FoundFile) -> Option<HeaderValue> {
    let file = &found.file;
    let text = |time: FileTime| format!("{:x}.{:x}", time.seconds, time.nanoseconds);
    let times = match (file.modified.is_fixed(), file.changed.is_fixed()) {
        (false, _) => text(file.modified),
        (true, false) => format!("{}-{}", text(file.modified), text(file.changed)),
        (true, true) => return None,
    };
    let coding = found.coding.map_or(String::new(), |coding| format!("-{}", coding.token()));
    HeaderValue::try_from(format!("\"{times}-{:x}{coding}\"", file.length)).ok()
}

/// Returns the value of `Last-Modified`; `None` if the time is before the epoch or in the future, which the field can't
/// hold (RFC 9110 §8.8.2.1).
fn last_modified(seconds: i64) -> Option<HeaderValue> {
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds <= now_ms() / 1000)?;
    let time: SystemTime = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    HeaderValue::try_from(httpdate::fmt_http_date(time)).ok()
}

/// Returns the part of the content that a GET request asks for.
fn requested(head: &mut response::Parts, request: &HeaderMap, length: u64) -> RangeRequest {
    // Whether a date is a strong validator depends on the date of the response.
    if request.contains_key(header::IF_RANGE)
        && let Ok(date) = HeaderValue::try_from(http_date())
    {
        head.headers.insert(header::DATE, date);
    }
    ranges::requested(request, head, length, PartOrder::Any)
}

fn whole(file: SiteFile, site: &WorkerSite, step: &Deadline) -> ResponseBody {
    let length = file.length;
    if length <= READ_AT_ONCE
        && let Some(bytes) = file.read_now(0, length as usize).filter(|bytes| bytes.len() as u64 == length)
    {
        return content(bytes, step);
    }
    body(file, site, VecDeque::from([Segment::Part { next: 0, end: length }]), step)
}

/// Returns a body of content that was read already. Plugins transform it, as all content of files.
fn content(bytes: Bytes, step: &Deadline) -> ResponseBody {
    ResponseBody::File(Box::new(FileBody::of_content(bytes, step.clone())))
}

fn body(file: SiteFile, site: &WorkerSite, segments: VecDeque<Segment>, step: &Deadline) -> ResponseBody {
    ResponseBody::File(Box::new(FileBody::new(file, site.turns.clone(), segments, step.clone())))
}

fn listing_response(page: Bytes, method: &Method) -> Response<ResponseBody> {
    let length = page.len();
    let body = if *method == Method::HEAD { Bytes::new() } else { page };
    let mut response = Response::new(ResponseBody::Full(body));
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// Returns the redirect to the client's path of a folder with a slash at its end.
fn redirect_into_folder(context: &ExchangeContext) -> Response<ResponseBody> {
    let target = received_target(context);
    let path = path::normal(target.path()).unwrap_or(Cow::Borrowed("/"));
    match HeaderValue::try_from(location_with_slash(&path, target.query())) {
        Ok(location) => redirect(StatusCode::MOVED_PERMANENTLY, location),
        Err(_) => without_content(StatusCode::MOVED_PERMANENTLY),
    }
}

/// Whether the path that the client knows has a slash at its end.
fn names_folder(context: &ExchangeContext) -> bool {
    path::normal(received_target(context).path()).is_ok_and(|path| path.ends_with('/'))
}

/// Returns the target that the client knows, and not the one that a plugin has put in its place.
fn received_target(context: &ExchangeContext) -> &Uri {
    match &context.received {
        ReceivedRequest::Parsed(line) => &line.target,
        ReceivedRequest::Unparsed(_) => &context.request.uri,
    }
}

/// Returns a reference to a path with a slash at its end, relative to the path. It names no host, whatever the path begins
/// with, and it holds below a prefix that the route has removed.
fn location_with_slash(path: &str, query: Option<&str>) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    format!("./{name}/{query}")
}

fn without_content(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(Bytes::new()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_names_no_host_and_no_scheme() {
        let cases = [
            (("/docs", None), "./docs/"),
            (("/a/docs", Some("x=1")), "./docs/?x=1"),
            (("//evil.example", None), "./evil.example/"),
            (("/a:b", None), "./a:b/"),
            (("/%0d%0aX:y", None), "./%0d%0aX:y/"),
        ];
        for ((path, query), wanted) in cases {
            assert_eq!(location_with_slash(path, query), wanted);
        }
    }

    #[test]
    fn a_date_that_can_not_be_is_not_sent() {
        assert_eq!(last_modified(0).unwrap(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(last_modified(-1), None);
        assert_eq!(last_modified(i64::MAX), None);
        assert_eq!(last_modified((now_ms() / 1000) as i64 + 60), None);
    }
}
