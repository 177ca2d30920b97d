//! Responses from the store: complete, partial, or 304 if the client has the response already (RFC 9110 §13, §14).

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, request, response};

use crate::context::ExchangeContext;
use crate::exchange::response_body::ResponseBody;
use crate::protocol::conditions::{client_has_it, to_not_modified};
use crate::protocol::ranges::{self, ByteRange, PartOrder, RangeRequest};
use crate::store::stored_body::StoredBody;
use crate::store::stored_response::{Content, StoredResponse};

/// The request fields for conditions and ranges that the cache evaluates itself.
static CONDITIONS: [HeaderName; 4] =
    [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::RANGE, header::IF_RANGE];

/// Removes conditions and ranges from a request, so that it asks for the complete response.
pub fn ask_for_all(fields: &mut HeaderMap) {
    CONDITIONS.iter().for_each(|name| drop(fields.remove(name)));
}

/// Gives a request the method, the conditions and the ranges of another one.
pub fn ask_as(received: &request::Parts, request: &mut request::Parts) {
    request.method.clone_from(&received.method);
    for name in &CONDITIONS {
        match received.headers.get(name) {
            Some(value) => drop(request.headers.insert(name, value.clone())),
            None => drop(request.headers.remove(name)),
        }
    }
}

/// Returns whether a request has conditions or ranges.
pub fn is_conditional(fields: &HeaderMap) -> bool {
    CONDITIONS.iter().any(|name| fields.contains_key(name))
}

/// Returns the response to a request from a stored one; `None` if the beginning of its content is gone. `is_fetched`: the
/// response was fetched or validated for this request.
pub fn hit_response(
    object: &StoredResponse,
    context: &ExchangeContext,
    is_fetched: bool,
    now_ms: u64,
) -> Option<Response<ResponseBody>> {
    let request = &context.request;
    let mut head = object.head();
    let age = object.age_ms(now_ms) / 1000;
    // An age says that the response was not made for this request (RFC 9111 §5.1).
    if age > 0 || !is_fetched || head.headers.contains_key(header::AGE) {
        head.headers.insert(header::AGE, HeaderValue::from(age));
    }
    if !head.headers.contains_key(header::CONTENT_LENGTH)
        && let Content::Whole(content) = &object.content
        && object.status != StatusCode::NO_CONTENT
    {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.len()));
    }
    // Without `Last-Modified`, the `Date` is used for `If-Modified-Since` (RFC 9111 §4.3.2).
    let modified = head.headers.get(header::LAST_MODIFIED).or_else(|| head.headers.get(header::DATE));
    if client_has_it(&head, modified, &request.headers) {
        return Some(not_modified(head));
    }
    if object.status == StatusCode::OK && request.method == Method::GET {
        match requested_range(object, &head, &request.headers) {
            RangeRequest::All => {}
            RangeRequest::Nothing(length) => {
                ranges::to_unsatisfiable(&mut head, length);
                return Some(Response::from_parts(head, ResponseBody::Full(Bytes::new())));
            }
            RangeRequest::Parts(parts, length) => return partial(object, head, &parts, length, context),
        }
    }
    let body = match request.method {
        Method::HEAD => ResponseBody::Full(Bytes::new()),
        _ => {
            ResponseBody::Stored(StoredBody::all(&object.content)?.for_client(context.holder(), &context.peer.waiting))
        }
    };
    Some(Response::from_parts(head, body))
}

/// Returns whether the client asks for ranges of a response, and the upstream doesn't say that it has no support for
/// them.
pub fn asks_for_part(context: &ExchangeContext) -> bool {
    let response = context.response.as_ref().filter(|response| response.status == StatusCode::OK);
    let has_none = |fields: &HeaderMap| fields.get(header::ACCEPT_RANGES).is_some_and(|unit| unit == "none");
    context.request.headers.contains_key(header::RANGE) && response.is_some_and(|response| !has_none(&response.headers))
}

/// Returns a 304 with the fields of `head` (RFC 9110 §15.4.5).
pub fn not_modified(mut head: response::Parts) -> Response<ResponseBody> {
    to_not_modified(&mut head);
    Response::from_parts(head, ResponseBody::Full(Bytes::new()))
}

fn requested_range(object: &StoredResponse, head: &response::Parts, request: &HeaderMap) -> RangeRequest {
    let Some(length) = object.content.length() else { return RangeRequest::All };
    // Content that isn't stored waits for its slowest reader, and the ranges are read one after the other.
    let order = if matches!(object.content, Content::Filling(_)) { PartOrder::Ascending } else { PartOrder::Any };
    ranges::requested(request, head, length, order)
}

fn partial(
    object: &StoredResponse,
    mut head: response::Parts,
    parts: &[ByteRange],
    length: u64,
    context: &ExchangeContext,
) -> Option<Response<ResponseBody>> {
    let texts = ranges::to_partial_content(&mut head, parts, length);
    let (client, waiting) = (context.holder(), &context.peer.waiting);
    let body = |part: &ByteRange| {
        Some(StoredBody::part(&object.content, part.first, part.length())?.for_client(client, waiting))
    };
    if let [part] = parts {
        return Some(Response::from_parts(head, ResponseBody::Stored(body(part)?)));
    }
    let mut list = Vec::new();
    for (part, before) in parts.iter().zip(texts.before) {
        list.push(StoredBody::text(before));
        list.push(body(part)?);
    }
    list.push(StoredBody::text(texts.end));
    Some(Response::from_parts(head, ResponseBody::Parts(list.into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::shared_body::SharedBody;

    /// Ranges are read one after the other. Content that isn't stored can't wait for the second reader and the first
    /// one.
    #[test]
    fn arriving_content_is_not_sent_in_another_order() {
        let (head, ()) = Response::new(()).into_parts();
        let object = |content| StoredResponse::new(Default::default(), &head, content, Default::default(), 0);
        let comes = object(Content::Filling(SharedBody::new(Some(100))));
        let is_there = object(Content::Whole(Bytes::from(vec![0; 100])));
        let parts = |object: &StoredResponse, range: &'static str| {
            let request = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(range))]);
            matches!(requested_range(object, &head, &request), RangeRequest::Parts(..))
        };
        assert!(parts(&is_there, "bytes=90-99,0-9") && parts(&is_there, "bytes=0-9,5-14"));
        assert!(!parts(&comes, "bytes=90-99,0-9") && !parts(&comes, "bytes=0-9,5-14"));
        assert!(parts(&comes, "bytes=0-9,90-99") && parts(&comes, "bytes=90-99"));
    }
}
