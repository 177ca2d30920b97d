//! Content on its way through plugins that transform it and may wait. While a call waits, nothing more is read of the
//! content, but for that of a client with other streams ([`crate::body::early_content`]). A call whose content is dropped
//! ends.

use std::rc::Rc;

use bytes::Bytes;
use http_body::Frame;

use super::callouts::CalloutOrigin;
use super::filtered_body::{FilterFailure, FilterState, PassedFrame, WaitingPass};
use crate::context::CalloutCause;
use crate::generation::ids::PluginId;
use crate::generation::worker_state::WorkerState;
use crate::net::boxed::boxed;
use crate::net::deadline::Clock;
use crate::plugin::body_filter::{BodyFilter, BodyFilterError, joined};
use crate::plugin::outgoing_http::CalloutSender;

/// The exchange of content that passes plugins, some of which may wait.
pub struct WaitingBodies {
    pub worker: Rc<WorkerState>,
    /// The plugins, in the order in which the content passes them.
    pub plugins: Vec<PluginId>,
    /// The client of the exchange.
    pub cause: Option<CalloutCause>,
    pub clock: Rc<Clock>,
}

impl WaitingBodies {
    /// Returns the way through the plugins for each frame of the content.
    pub fn pass(self) -> WaitingPass {
        let bodies = Rc::new(self);
        WaitingPass(Box::new(move |stages, frame| {
            let bodies = bodies.clone();
            boxed(|| async move { bodies.pass_frame(stages, frame).await })
        }))
    }

    /// Takes what the source gave through all stages.
    async fn pass_frame(&self, mut stages: Vec<BodyFilter>, frame: Option<Frame<Bytes>>) -> PassedFrame {
        let mut state = FilterState::Passing;
        let passed = self.pass_stages(&mut stages, frame, &mut state).await;
        PassedFrame { stages, state, passed }
    }

    async fn pass_stages(
        &self,
        stages: &mut [BodyFilter],
        frame: Option<Frame<Bytes>>,
        state: &mut FilterState,
    ) -> Result<Bytes, FilterFailure> {
        let mut trailers = match frame.map(Frame::into_data) {
            Some(Ok(mut data)) => {
                for (stage, plugin_id) in stages.iter_mut().zip(&self.plugins) {
                    data = self.push(stage, *plugin_id, data).await?;
                }
                return Ok(data);
            }
            Some(Err(other)) => other.into_trailers().ok(),
            None => None,
        };
        let mut rest = Bytes::new();
        for (stage, plugin_id) in stages.iter_mut().zip(&self.plugins) {
            let out = if rest.is_empty() { rest } else { self.push(stage, *plugin_id, rest).await? };
            let end = match stage.waits() {
                true => self.call(stage, *plugin_id, async |stage, sender| stage.finish_waiting(sender).await).await?,
                false => stage.finish().map_err(|error| FilterFailure::of(stage, error))?,
            };
            rest = joined(out, end);
            trailers = match trailers {
                Some(trailers) if stage.waits() => {
                    let call = async |stage: &mut BodyFilter, sender: &CalloutSender| {
                        stage.trailers_waiting(sender, &trailers).await
                    };
                    Some(self.call(stage, *plugin_id, call).await?)
                }
                Some(trailers) => Some(stage.trailers(&trailers).map_err(|error| FilterFailure::of(stage, error))?),
                None => None,
            };
            if stage.waits() {
                let close = async |stage: &mut BodyFilter, sender: &CalloutSender| {
                    stage.close_waiting(sender).await;
                    Ok(())
                };
                self.call(stage, *plugin_id, close).await?;
            }
        }
        *state = trailers.map_or(FilterState::Over, FilterState::Trailers);
        Ok(rest)
    }

    async fn push(&self, stage: &mut BodyFilter, plugin_id: PluginId, data: Bytes) -> Result<Bytes, FilterFailure> {
        match stage.waits() {
            true => self.call(stage, plugin_id, async |stage, sender| stage.push_waiting(sender, data).await).await,
            false => stage.push(data).map_err(|error| FilterFailure::of(stage, error)),
        }
    }

    /// Makes a call of a stage, sends the requests that it makes, and has a failure logged.
    async fn call<R>(
        &self,
        stage: &mut BodyFilter,
        plugin_id: PluginId,
        call: impl AsyncFnOnce(&mut BodyFilter, &CalloutSender) -> Result<R, BodyFilterError>,
    ) -> Result<R, FilterFailure> {
        let WaitingBodies { worker, cause, clock, .. } = self;
        let origin =
            CalloutOrigin { worker, plugin_id, cause: cause.clone(), client: stage.client(), clock: clock.clone() };
        let (sender, callouts) = CalloutSender::channel();
        let called = origin.drive(call(&mut *stage, &sender), callouts).await;
        called.map_err(|error| FilterFailure::of(stage, error))
    }
}
