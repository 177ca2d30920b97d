//! The choice of the responses that are read ahead of a slow client, so that their endpoint need not wait for it.

use http::{HeaderMap, HeaderName};

use super::response_body::ResponseBody;
use super::upstream_body::ReadAheadRules;
use crate::context::ExchangeContext;
use crate::generation::Route;
use crate::generation::worker_state::WorkerState;
use crate::protocol::conversation::is_conversation;

/// The field in which an application asks a proxy not to buffer its response, as nginx defines it.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Allows the content of a response to be read ahead, unless the route or the endpoint says otherwise, or the content is
/// a conversation. `fields` are those that the endpoint sent.
pub fn allow(worker: &WorkerState, route: &Route, context: &ExchangeContext, fields: &HeaderMap, body: &ResponseBody) {
    let Some(body) = body.of_endpoint().filter(|_| route.response_buffer > 0) else { return };
    let is_unwanted = fields.get(ACCEL_BUFFERING).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"no"));
    if is_unwanted || is_conversation(fields) || is_conversation(&context.request.headers) {
        return;
    }
    let (space, client) = (worker.buffers.clone(), context.peer.waiting.clone());
    body.allow_read_ahead(ReadAheadRules { space, client, max: route.response_buffer });
}
