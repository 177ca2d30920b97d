//! A body on its way through the plugins of a chain that transform bodies.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::plugin::transform::{Transform, TransformError};

/// Why a body doesn't go on.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body and the plugins that it passes, in the order of its way.
pub struct Passage<B> {
    source: B,
    stages: Vec<Transform>,
    state: State,
}

enum State {
    Passing,
    /// All data has gone; these trailers are left.
    Trailers(HeaderMap),
    Over,
}

impl<B> Passage<B> {
    pub fn new(source: B, stages: Vec<Transform>) -> Self {
        Passage { source, stages, state: State::Passing }
    }

    /// The body before it passes any plugin.
    pub fn source(&self) -> &B {
        &self.source
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Body for Passage<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            match std::mem::replace(&mut this.state, State::Passing) {
                State::Over => {
                    this.state = State::Over;
                    return Poll::Ready(None);
                }
                State::Trailers(trailers) => {
                    this.state = State::Over;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                State::Passing => {}
            }
            let Poll::Ready(frame) = Pin::new(&mut this.source).poll_frame(cx) else { return Poll::Pending };
            let passed = match frame.transpose() {
                Err(error) => Err(error),
                Ok(frame) => pass(&mut this.stages, frame, &mut this.state).map_err(|error| {
                    tracing::warn!(%error, "body");
                    BodyError::from(error)
                }),
            };
            match passed {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(error) => {
                    this.state = State::Over;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// What the plugins will make of it, nobody knows before.
    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Takes what the source gave through all stages.
fn pass(stages: &mut [Transform], frame: Option<Frame<Bytes>>, state: &mut State) -> Result<Bytes, TransformError> {
    let mut trailers = match frame.map(Frame::into_data) {
        Some(Ok(data)) => return stages.iter_mut().try_fold(data, |data, stage| stage.push(data)),
        Some(Err(other)) => other.into_trailers().ok(),
        None => None,
    };
    let mut rest = Bytes::new();
    for stage in stages {
        let mut out = Vec::from(if rest.is_empty() { rest } else { stage.push(rest)? });
        out.extend_from_slice(&stage.finish()?);
        rest = Bytes::from(out);
        trailers = trailers.map(|trailers| stage.trailers(&trailers)).transpose()?;
    }
    *state = trailers.map_or(State::Over, State::Trailers);
    Ok(rest)
}
