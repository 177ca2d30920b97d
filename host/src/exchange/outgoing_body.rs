//! The content of a request on its way to the upstream, through the plugins that transform it.

use http::{Version, header};
use http_body::Body;

use super::body_hooks::{self, Passage};
use super::chain::{ChainFailure, ChainPosition, RouteChain};
use super::collect;
use super::filtered_body::UploadContent;
use super::forward::OutgoingRequest;
use crate::body::upload::{ClientBody, ClientContent, RequestBody, UploadProgress};
use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::protocol::conversation;
use crate::protocol::hop_by_hop::HopOptions;

/// The part of a request that its exchange context does not have.
pub struct UnsentRequest {
    pub body: ClientContent,
    pub hop: HopOptions,
}

/// Returns the request's content and options for the upstream. `upload` is the progress of the content, `receive` begins
/// to read it, up to a number of bytes: the lowest of the limits that the route and its plugins have set.
pub fn outgoing_body(
    chain: RouteChain<'_>,
    context: &mut ExchangeContext,
    request: UnsentRequest,
    upload: UploadProgress,
    receive: impl FnOnce(ClientContent, u64) -> ClientBody,
) -> Result<OutgoingRequest, ChainFailure> {
    let (worker, route) = (chain.worker, chain.route());
    let UnsentRequest { body, mut hop } = request;
    if body.is_end_stream() {
        upload.end();
        return Ok(OutgoingRequest { body: RequestBody::Empty, passage: None, upload, collected: None, hop });
    }
    // With gRPC either side may be silent for as long as it likes.
    let is_grpc = conversation::is_grpc(&context.request.headers);
    if context.request.version == Version::HTTP_2 && is_grpc {
        upload.stop_rate_limit();
    }
    let collected = collect::rule(route.request_buffer, body.size_hint().exact()).filter(|_| !is_grpc);
    let bottom = ChainPosition::bottom(route);
    context.limit_body(route.max_body);
    let max = context.max_body.unwrap_or(route.max_body);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > max) {
        let cause = format!("{length} bytes, and the limit is {max}");
        let error = Error::new(FailureKind::RequestBodySize, cause).with_limit("max-body");
        return Err(ChainFailure::new(error, bottom));
    }
    let content = UploadContent::Client(Box::new(receive(body, max)));
    let passage = body_hooks::filter_request(worker, route, context, content)
        // All request hooks have run, those of the plugins below the failed one too.
        .map_err(|failed| ChainFailure { depth: bottom, ..failed })?;
    // Where the next protocol begins, must not depend on who understands the content's end (RFC 9110 §7.8). A length has one
    // meaning; chunks may have several, and plugins may change the length.
    let has_length = context.request.headers.contains_key(header::CONTENT_LENGTH);
    if context.request.version == Version::HTTP_2 || !has_length || matches!(passage, Passage::Waits(_)) {
        hop.upgrade = None;
    }
    let (body, passage) = match passage {
        Passage::Done(content) => (content.into_body(upload.clone(), &worker.buffers), None),
        Passage::Waits(passage) => (RequestBody::Empty, Some(passage)),
    };
    Ok(OutgoingRequest { body, passage, upload, collected, hop })
}
