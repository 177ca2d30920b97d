//! A body on its way through the plugins of a chain that transform bodies.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use smallvec::SmallVec;

use crate::body::BodyError;
use crate::body::backlog::{Piece, SHORT};
use crate::body::buffer_space::BufferSpace;
use crate::body::collected::{CollectedBody, CollectedContent};
use crate::body::early_content::ReadEarly;
use crate::body::spool::SpooledContent;
use crate::body::upload::{ClientBody, RequestBody, UploadFault, UploadProgress};
use crate::error::{Error, FailureKind, causes};
use crate::exchange::decoded_body::{DecodedBody, DecodedBodyError};
use crate::exchange::gathered_body::{GatheredBody, WholeContent};
use crate::net::turn::TurnClaim;
use crate::plugin::body_filter::{BodyFilter, BodyFilterError, joined};
use crate::plugin::body_permit::BodyPermit;
use crate::plugin::caller::share_pause::SharePause;
use crate::system::thread_time::timed;

/// A body and the plugins that it passes, in the order of its way.
pub struct FilteredBody<B> {
    source: B,
    stages: Vec<BodyFilter>,
    state: FilterState,
    /// The output of the plugins that was not passed on yet.
    output: Bytes,
    /// The permits of plugins that have ended the body with long output, which waits for its recipient.
    permits: SmallVec<[BodyPermit; 1]>,
    /// The bytes that were passed on since other tasks had their turn.
    in_turn: usize,
    /// The wait for a plugin that has used its share of the worker's time.
    pause: SharePause,
    /// The claim to the time of the worker; `None` without plugins.
    claim: Option<TurnClaim>,
    /// The status in the `on-error` of a plugin that has failed; `None` if it has none.
    status: Option<StatusCode>,
    /// The way through the plugins if one of them may wait; `None` if none may.
    waiting: Option<Waiting>,
}

/// The way of each frame through plugins that may wait.
pub struct WaitingPass(pub Box<PassFrame>);

/// Takes a frame, or the end of the content, through plugins.
type PassFrame = dyn Fn(Vec<BodyFilter>, Option<Frame<Bytes>>) -> PassFuture;

/// A frame on its way through plugins that may wait, with the plugins.
type PassFuture = Pin<Box<dyn Future<Output = PassedFrame>>>;

/// A frame that has passed plugins, or has not.
pub struct PassedFrame {
    pub stages: Vec<BodyFilter>,
    pub state: FilterState,
    pub passed: Result<Bytes, FilterFailure>,
}

struct Waiting {
    pass: WaitingPass,
    /// The frame that is on its way; `None` if none is.
    under_way: Option<PassFuture>,
}

/// The number of bytes that are passed on before other tasks have their turn.
const MAX_TURN: usize = 256 << 10;

/// The state of a body that passes plugins.
pub enum FilterState {
    Passing,
    /// All data was passed on; these trailers are left.
    Trailers(HeaderMap),
    Over,
}

impl<B> FilteredBody<B> {
    /// Returns the body behind plugins. `pass` takes frames through them if one of them may wait.
    pub fn new(source: B, stages: Vec<BodyFilter>, pass: Option<WaitingPass>) -> Self {
        let claim = stages.iter().max_by_key(|stage| stage.takes_turns()).map(BodyFilter::claim);
        let (state, pause, status) = (FilterState::Passing, SharePause::default(), None);
        let waiting = pass.map(|pass| Waiting { pass, under_way: None });
        let (output, permits) = (Bytes::new(), SmallVec::new());
        FilteredBody { source, stages, state, output, permits, in_turn: 0, pause, claim, status, waiting }
    }

    /// Waits until the plugins may be called: a body is slowed down to their share of the worker's time.
    fn poll_share(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyFilterError>> {
        while self.pause.poll_until_none(|| self.stages.iter().filter_map(BodyFilter::wait).max(), cx).is_pending() {
            if !self.pause.is_too_long() {
                return Poll::Pending;
            }
            self.pause = SharePause::default();
            let waits = self.stages.iter_mut().filter_map(|stage| Some((stage.wait()?, stage)));
            let Some((_, stage)) = waits.max_by_key(|(wait, _)| *wait) else { continue };
            let spent = stage.share_error();
            if let Err(error) = stage.skip(spent) {
                stage.record_failure(&error);
                self.status = stage.status();
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what the source gave through all stages; `Pending` if one of them waits, and [`Self::poll_passed`] has the
    /// result.
    fn poll_pass(&mut self, frame: Option<Frame<Bytes>>, cx: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
        let Some(waiting) = &mut self.waiting else {
            let (passed, time) = timed(|| pass(&mut self.stages, frame, &mut self.state));
            self.claim.iter_mut().for_each(|claim| claim.spend(time));
            return Poll::Ready(self.settle(passed));
        };
        waiting.under_way = Some((waiting.pass.0)(std::mem::take(&mut self.stages), frame));
        self.poll_passed(cx).map(|passed| passed.unwrap_or_else(|| Ok(Bytes::new())))
    }

    /// Waits for the frame that is on its way through stages which wait; `None` if there is none.
    fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let under_way = self.waiting.as_mut().and_then(|waiting| waiting.under_way.as_mut());
        let Some(under_way) = under_way else { return Poll::Ready(None) };
        let PassedFrame { stages, state, passed } = ready!(under_way.as_mut().poll(cx));
        (self.stages, self.state) = (stages, state);
        self.waiting.iter_mut().for_each(|waiting| waiting.under_way = None);
        Poll::Ready(Some(self.settle(passed)))
    }

    /// Returns the next piece of the plugins' output. A quick client takes megabytes otherwise, until its socket is full.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        if self.in_turn >= MAX_TURN {
            self.in_turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = self.output.split_to(self.output.len().min(MAX_TURN));
        self.in_turn += piece.len();
        Poll::Ready(piece)
    }

    /// Waits for plugins that have a frame on its way, or that have used their share of time; `None` if the source may be
    /// read.
    fn poll_plugins(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match ready!(self.poll_passed(cx)) {
            Some(passed) => Poll::Ready(Some(passed)),
            None => self.poll_share(cx).map(|share| share.err().map(|error| Err(error.into()))),
        }
    }

    /// Notes the status of a plugin that has failed.
    fn settle(&mut self, passed: Result<Bytes, FilterFailure>) -> Result<Bytes, BodyError> {
        passed.map_err(|FilterFailure { error, status }| {
            self.status = status;
            BodyError::from(error)
        })
    }

    /// Returns the status that a failed plugin has set for the client.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Returns the body before any plugin transforms it.
    pub fn source(&self) -> &B {
        &self.source
    }

    /// Returns the body before any plugin transforms it, for [`ReadEarly::read_early`].
    pub fn source_mut(&mut self) -> &mut B {
        &mut self.source
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + ReadEarly + Unpin> FilteredBody<B> {
    /// Takes the next frame through the plugins. While these wait, the source is read early.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
        let mut polled = self.poll_plugins(cx);
        if let Poll::Ready(None) = polled {
            match ready!(Pin::new(&mut self.source).poll_frame(cx)).transpose() {
                Err(error) => return Poll::Ready(Err(error)),
                Ok(frame) => polled = self.poll_pass(frame, cx).map(Some),
            }
        }
        match polled {
            Poll::Ready(Some(passed)) => Poll::Ready(passed),
            Poll::Ready(None) | Poll::Pending => {
                self.source.read_early(cx);
                Poll::Pending
            }
        }
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + ReadEarly + Unpin> Body for FilteredBody<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if !this.output.is_empty() {
                return this.poll_output(cx).map(|data| Some(Ok(Frame::data(data))));
            }
            this.permits.clear();
            match std::mem::replace(&mut this.state, FilterState::Passing) {
                FilterState::Over => {
                    this.state = FilterState::Over;
                    return Poll::Ready(None);
                }
                FilterState::Trailers(trailers) => {
                    this.state = FilterState::Over;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                FilterState::Passing => {}
            }
            if this.claim.as_mut().is_some_and(|claim| claim.poll(cx).is_pending()) {
                this.source.read_early(cx);
                return Poll::Pending;
            }
            let passed = ready!(this.poll_next(cx));
            if !matches!(this.state, FilterState::Passing) {
                // Their instances serve the next bodies, for which there is no more memory as long as much output waits.
                let waits = passed.as_ref().is_ok_and(|output| output.len() > SHORT);
                let ended = std::mem::take(&mut this.stages).into_iter();
                this.permits = ended.filter_map(|mut stage| stage.take_permit().filter(|_| waits)).collect();
            }
            match passed {
                Ok(data) => this.output = data,
                Err(error) => {
                    this.state = FilterState::Over;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// Returns no size: only the plugins know the length of their output.
    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// The content of a request that passes plugins, on its way to an endpoint.
struct FilteredUpload {
    passage: UploadContent,
    upload: UploadProgress,
}

impl FilteredUpload {
    /// The fault of the upload for an error of a plugin or of decoding; `None` for other errors, which the upload records by
    /// itself.
    fn fault(&self, error: &BodyError) -> Option<UploadFault> {
        passage_fault(error, self.passage.status())
    }
}

impl Body for FilteredUpload {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let this = &mut *self;
        ready!(this.upload.poll_room(cx));
        let frame = Pin::new(&mut this.passage).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &frame
            && let Some(fault) = this.fault(error)
        {
            this.upload.set_fault(fault);
        }
        this.upload.hold_frame(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.passage.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.passage.size_hint()
    }
}

/// Returns the fault of an upload for an error of a plugin or of decoding, with the status in the plugin's `on-error`; `None`
/// for other errors.
fn passage_fault(error: &BodyError, status: Option<StatusCode>) -> Option<UploadFault> {
    if let Some(undecoded) = error.downcast_ref::<DecodedBodyError>() {
        let fault = UploadFault::new(undecoded.kind_in_request());
        return Some(UploadFault { limit: undecoded.limit(), status, ..fault });
    }
    Some(filter_fault(error.downcast_ref()?, status))
}

/// Returns the fault of an upload for an error of a plugin, with the status in the plugin's `on-error`.
fn filter_fault(error: &BodyFilterError, status: Option<StatusCode>) -> UploadFault {
    match error {
        BodyFilterError::TooLarge { .. } => UploadFault::new(FailureKind::RequestBodySize),
        BodyFilterError::Trap(failure) => {
            let is_logged = failure.rejection().is_none();
            UploadFault { status, is_logged, ..UploadFault::new(FailureKind::PluginError) }
        }
    }
}

/// Returns content that is all there as the body of a request, which can be sent any number of times.
fn collected(whole: WholeContent, upload: &UploadProgress, space: &Rc<BufferSpace>) -> RequestBody {
    let WholeContent { content, trailers, permit } = whole;
    let length = content.len() as u64;
    let pieces = SpooledContent::in_memory(content, space);
    let content = CollectedContent { pieces, length, trailers, permit: Some(Box::new(permit)) };
    RequestBody::Collected(Box::new(CollectedBody::new(Rc::new(content), upload.forwarded())))
}

/// The content of a request between its client and the endpoint.
pub enum UploadContent {
    /// The content comes from the client as it is.
    Client(Box<ClientBody>),
    /// The content has passed plugins.
    Filtered(Box<FilteredBody<UploadContent>>),
    /// The content is decoded for plugins.
    Decoded(Box<DecodedBody<UploadContent>>),
    /// The content was gathered for a plugin that takes it whole, or was put in its place by that plugin.
    Gathered(Box<GatheredBody<UploadContent>>),
}

impl UploadContent {
    /// Returns the content as the body of a request.
    pub fn into_body(self, upload: UploadProgress, space: &Rc<BufferSpace>) -> RequestBody {
        let passage = match self {
            UploadContent::Client(body) => return RequestBody::Incoming(body),
            UploadContent::Gathered(body) => match body.into_whole() {
                Ok(whole) => return collected(whole, &upload, space),
                Err(body) => UploadContent::Gathered(body),
            },
            passage @ (UploadContent::Filtered(_) | UploadContent::Decoded(_)) => passage,
        };
        RequestBody::Stream(Box::pin(FilteredUpload { passage, upload: upload.clone() }), Some(upload))
    }

    /// Returns the error of the exchange for an error of the content.
    pub fn failure(&self, error: BodyError) -> Error {
        let cause = causes(&*error);
        match passage_fault(&error, self.status()) {
            Some(fault) => fault.error(cause),
            None => match self.client() {
                Some(client) => client.failure(cause),
                None => Error::new(FailureKind::RequestError, cause),
            },
        }
    }

    /// Returns the content as it comes from the client; `None` if all of it was received.
    fn client(&self) -> Option<&ClientBody> {
        match self {
            UploadContent::Client(body) => Some(body),
            UploadContent::Filtered(passage) => passage.source().client(),
            UploadContent::Decoded(body) => body.source().client(),
            UploadContent::Gathered(body) => body.rest()?.client(),
        }
    }

    /// The status that a plugin which has failed wants the client to get.
    fn status(&self) -> Option<StatusCode> {
        match self {
            UploadContent::Client(_) => None,
            UploadContent::Filtered(passage) => passage.status().or_else(|| passage.source().status()),
            UploadContent::Decoded(body) => body.status().or_else(|| body.source().status()),
            UploadContent::Gathered(body) => body.rest()?.status(),
        }
    }
}

impl ReadEarly for UploadContent {
    fn read_early(&mut self, cx: &mut Context<'_>) {
        match self {
            UploadContent::Client(body) => body.read_early(cx),
            UploadContent::Filtered(passage) => passage.source_mut().read_early(cx),
            UploadContent::Decoded(body) => body.source_mut().read_early(cx),
            UploadContent::Gathered(body) => body.rest_mut().into_iter().for_each(|rest| rest.read_early(cx)),
        }
    }
}

impl Body for UploadContent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            UploadContent::Client(body) => Pin::new(&mut **body).poll_frame(cx),
            UploadContent::Filtered(passage) => Pin::new(&mut **passage).poll_frame(cx),
            UploadContent::Decoded(body) => Pin::new(&mut **body).poll_frame(cx),
            UploadContent::Gathered(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            UploadContent::Client(body) => body.is_end_stream(),
            UploadContent::Filtered(_) | UploadContent::Decoded(_) => false,
            UploadContent::Gathered(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            UploadContent::Client(body) => body.size_hint(),
            UploadContent::Filtered(passage) => passage.size_hint(),
            UploadContent::Decoded(body) => body.size_hint(),
            UploadContent::Gathered(body) => body.size_hint(),
        }
    }
}

/// Takes what the source gave through all stages.
fn pass(
    stages: &mut [BodyFilter],
    frame: Option<Frame<Bytes>>,
    state: &mut FilterState,
) -> Result<Bytes, FilterFailure> {
    let mut trailers = match frame.map(Frame::into_data) {
        Some(Ok(data)) => return stages.iter_mut().try_fold(data, |data, stage| reported(stage, |at| at.push(data))),
        Some(Err(other)) => other.into_trailers().ok(),
        None => None,
    };
    let mut rest = Bytes::new();
    for stage in stages {
        let out = if rest.is_empty() { rest } else { reported(stage, |at| at.push(rest))? };
        rest = joined(out, reported(stage, BodyFilter::finish)?);
        trailers = trailers.map(|trailers| reported(stage, |at| at.trailers(&trailers))).transpose()?;
    }
    *state = trailers.map_or(FilterState::Over, FilterState::Trailers);
    Ok(rest)
}

/// Makes a call of a stage, and has a failure logged.
fn reported<R>(
    stage: &mut BodyFilter,
    call: impl FnOnce(&mut BodyFilter) -> Result<R, BodyFilterError>,
) -> Result<R, FilterFailure> {
    call(stage).map_err(|error| FilterFailure::of(stage, error))
}

/// The error of a stage, with the status of its plugin's `on-error`.
pub struct FilterFailure {
    error: BodyFilterError,
    status: Option<StatusCode>,
}

impl FilterFailure {
    /// Has the failure of a stage logged.
    pub fn of(stage: &BodyFilter, error: BodyFilterError) -> Self {
        stage.record_failure(&error);
        FilterFailure { status: stage.status(), error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// A source with one long frame.
    struct LongFrame(Option<Bytes>);

    impl ReadEarly for LongFrame {
        fn read_early(&mut self, _: &mut Context<'_>) {}
    }

    impl Body for LongFrame {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
        }
    }

    #[test]
    fn a_long_output_leaves_other_tasks_their_turn() {
        let content = Bytes::from(vec![b'x'; 4 * MAX_TURN + 1]);
        let mut body = FilteredBody::new(LongFrame(Some(content.clone())), Vec::new(), None);
        let (mut received, mut since_turn, mut turns) = (0, 0, 0);
        loop {
            match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => (since_turn, turns) = (0, turns + 1),
                Poll::Ready(None) => break,
                Poll::Ready(Some(frame)) => {
                    let length = frame.unwrap().into_data().unwrap().len();
                    (received, since_turn) = (received + length, since_turn + length);
                }
            }
            assert!(since_turn <= MAX_TURN, "{since_turn} bytes in a turn");
        }
        assert_eq!((received, turns), (content.len(), 4));
    }
}
