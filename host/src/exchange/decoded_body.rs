//! Content with a coding, which is decoded on its way to plugins that want plain content.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};

use crate::body::BodyError;
use crate::body::early_content::ReadEarly;
use crate::error::FailureKind;
use crate::net::turn::TurnClaim;
use crate::plugin::body_filter::BodyFilterError;
use crate::plugin::caller::PluginCaller;
use crate::plugin::caller::share_pause::SharePause;
use crate::plugin::decoder_memory::{DecoderMemory, DecoderMemoryFull};
use crate::plugin::settings::OnError;
use crate::protocol::content_decoder::{ContentDecoder, DecodingError, DecodingStep};
use crate::protocol::transformed_content;
use crate::system::holder_counts::Holder;
use crate::system::thread_time::timed;

/// Content that is decoded as it passes.
pub struct DecodedBody<B> {
    source: B,
    /// The decoder; `None` once all content has passed, or after an error.
    decoder: Option<Box<ContentDecoder>>,
    memory: DecoderMemory,
    trailers: Option<HeaderMap>,
    on_error: OnError,
    /// The status in the plugin's `on-error`, after an error; `None` if it has none.
    status: Option<StatusCode>,
    /// The plugin that wants the content plain, whose share of the worker's time decoding takes.
    guard: Rc<PluginCaller>,
    client: Holder,
    pause: SharePause,
    claim: TurnClaim,
}

/// The error of content that can't be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodedBodyError {
    #[error(transparent)]
    Content(#[from] DecodingError),
    #[error(transparent)]
    Memory(#[from] DecoderMemoryFull),
}

impl DecodedBodyError {
    /// Returns the kind of the exchange's failure if the content is that of the request.
    pub fn kind_in_request(&self) -> FailureKind {
        match self {
            DecodedBodyError::Memory(_) => FailureKind::LimitReached,
            DecodedBodyError::Content(DecodingError::Ratio(_) | DecodingError::Size(_)) => FailureKind::RequestBodySize,
            DecodedBodyError::Content(_) => FailureKind::RequestError,
        }
    }

    /// Returns the kind of the exchange's failure if the content is that of the response.
    pub fn kind_in_response(&self) -> FailureKind {
        match self {
            DecodedBodyError::Memory(_) => FailureKind::LimitReached,
            DecodedBodyError::Content(DecodingError::Ratio(_) | DecodingError::Size(_)) => {
                FailureKind::ResponseBodySize
            }
            DecodedBodyError::Content(_) => FailureKind::ContentCoding,
        }
    }

    /// Returns the key of the limit that was met; `None` if the error is not about a limit.
    pub fn limit(&self) -> Option<&'static str> {
        match self {
            DecodedBodyError::Memory(_) => Some("limits.decoded-memory"),
            DecodedBodyError::Content(DecodingError::Ratio(_)) => Some("limits.decoded-ratio"),
            DecodedBodyError::Content(DecodingError::Size(_)) => Some("limits.decoded-size"),
            DecodedBodyError::Content(_) => None,
        }
    }
}

impl<B> DecodedBody<B> {
    /// Returns content of a client's exchange that a decoder decodes at the expense of the plugin that wants it plain.
    pub fn new(source: B, decoder: ContentDecoder, guard: Rc<PluginCaller>, client: Holder) -> Self {
        let (decoder, memory) = (Some(Box::new(decoder)), DecoderMemory::new(guard.supply()));
        let (on_error, pause, claim) = (guard.on_error(), SharePause::default(), guard.claim(client));
        DecodedBody { source, decoder, memory, trailers: None, on_error, status: None, guard, client, pause, claim }
    }

    /// Returns the status in the plugin's `on-error` after an error.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Returns the content before it is decoded.
    pub fn source(&self) -> &B {
        &self.source
    }

    /// Returns the content before it is decoded, for [`ReadEarly::read_early`].
    pub fn source_mut(&mut self) -> &mut B {
        &mut self.source
    }

    /// Waits until the worker has time for decoding, and the plugin a share of it: a few bytes may decode to very many.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyFilterError>> {
        if self.pause.poll(&self.guard, self.client, cx).is_pending() {
            if !self.pause.is_too_long() {
                return Poll::Pending;
            }
            let spent = self.guard.share_error();
            self.guard.record_failure("decoding", &spent, None);
            return Poll::Ready(Err(spent.into()));
        }
        self.claim.poll(cx).map(Ok)
    }

    /// Decodes one piece.
    fn step(&mut self) -> Result<DecodingStep, DecodedBodyError> {
        let Some(decoder) = &mut self.decoder else { return Ok(DecodingStep::End) };
        let (step, time) = timed(|| decoder.step());
        let memory = decoder.memory() as u64;
        self.guard.charge_received(&mut self.claim, time, self.client);
        let step = step?;
        self.memory.set(memory)?;
        Ok(step)
    }

    /// Drops the decoder with its memory, though the body may be kept for longer.
    fn drop_decoder(&mut self) {
        self.decoder = None;
        self.memory.release();
    }

    /// Ends the content after an error.
    fn fail(&mut self, error: impl Into<BodyError>) -> BodyError {
        self.drop_decoder();
        self.status = match self.on_error {
            OnError::Respond(status) => Some(status),
            OnError::Fail | OnError::Skip => None,
        };
        error.into()
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> DecodedBody<B> {
    /// Passes coded content to the decoder, or its end.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let frame = ready!(Pin::new(&mut self.source).poll_frame(cx)).transpose();
        let Some(decoder) = &mut self.decoder else { return Poll::Ready(Ok(())) };
        match frame {
            Ok(Some(frame)) => match frame.into_data() {
                Ok(data) => decoder.push(data),
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok().map(transformed_content::trailers);
                    decoder.end();
                }
            },
            Ok(None) => decoder.end(),
            Err(error) => {
                self.drop_decoder();
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + ReadEarly + Unpin> Body for DecodedBody<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        while this.decoder.is_some() {
            match this.poll_turn(cx) {
                Poll::Pending => {
                    this.source.read_early(cx);
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(this.fail(error)))),
                Poll::Ready(Ok(())) => {}
            }
            match this.step() {
                Ok(DecodingStep::Content(content)) => return Poll::Ready(Some(Ok(Frame::data(content)))),
                Ok(DecodingStep::Progress) => {}
                Ok(DecodingStep::Starved) => {
                    if let Err(error) = ready!(this.poll_source(cx)) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Ok(DecodingStep::End) => this.drop_decoder(),
                Err(error) => return Poll::Ready(Some(Err(this.fail(error)))),
            }
        }
        Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    /// Returns no size: the length of decoded content is known at its end.
    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
