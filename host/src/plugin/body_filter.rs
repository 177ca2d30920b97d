//! A body passing through a plugin, on an instance that it has to itself meanwhile: what the body holds dies with the
//! instance if a call fails. An instance that a body has left well serves the next one.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use wasmtime::component::ResourceAny;

use super::caller::Guard;
use super::configured::{Beyond, BodyMode, OnError};
use super::failure::Exchange;
use super::instance::{Instance, Trap, gave_up, trapped};
use super::version::{BodyPermit, Need};
use crate::context::edit_check::{self, Side};
use crate::protocol::transformed_content;

/// The instances of a worker that wait for the next body in a plugin.
#[allow(clippy::vec_box, reason = "instances move between bodies without being copied")]
#[derive(Default)]
pub struct Bodies(RefCell<Vec<Box<Instance>>>);

/// Instances that are kept for later bodies: as many as most routes have at a time.
pub const MOST_IDLE: usize = 4;

impl Bodies {
    /// Drops the instances that wait.
    pub fn clear(&self) {
        self.0.take();
    }

    fn keep(&self, instance: Box<Instance>) {
        let mut idle = self.0.borrow_mut();
        if idle.len() < MOST_IDLE {
            idle.push(instance);
        }
    }
}

/// One body in one plugin.
pub struct Transform {
    _permit: BodyPermit,
    guard: Rc<Guard>,
    bodies: Rc<Bodies>,
    /// `None` after a failed call.
    instance: Option<Box<Instance>>,
    side: Side,
    body: ResourceAny,
    state: State,
    /// Whether the plugin has taken anything of the body that can't be had back.
    has_taken: bool,
    /// Whether the body has come to its end.
    is_over: bool,
    /// The exchange of the body, for the log.
    exchange: Option<Exchange>,
}

enum State {
    Streaming,
    /// What has come so far of a body that is wanted whole.
    Gathering(BytesMut, u64, Beyond),
    /// The body was longer than the plugin wanted it.
    Passing,
}

/// Why a body can't go on.
#[derive(Debug, thiserror::Error)]
pub enum TransformError {
    #[error("the plugin failed: {0}")]
    Trap(#[from] Trap),
    #[error("the body is longer than the {limit} bytes that the plugin `{plugin}` takes")]
    TooLarge { plugin: Arc<str>, limit: u64 },
}

/// Calls a method of the body on either side's interface.
macro_rules! call {
    ($transform:expr, $method:ident $(, $argument:expr)*) => {{
        let (side, body) = ($transform.side, $transform.body);
        $transform.call(|instance| {
            let Instance { store, request_body, response_body, .. } = instance;
            let result = match side {
                Side::Request => {
                    let hook = request_body.as_ref().ok_or(Trap::NoHook)?;
                    hook.plugway_plugin_request_body().transform().$method(store, body $(, $argument)*)
                }
                Side::Response => {
                    let hook = response_body.as_ref().ok_or(Trap::NoHook)?;
                    hook.plugway_plugin_response_body().transform().$method(store, body $(, $argument)*)
                }
            };
            result.map_err(trapped)?.map_err(gave_up)
        })?
    }};
}

impl Transform {
    /// Begins a body.
    pub fn begin(guard: &Rc<Guard>, bodies: &Rc<Bodies>, side: Side, mode: BodyMode) -> Result<Self, Trap> {
        let admitted = guard.admit()?;
        let permit = BodyPermit::new(&guard.binding)?;
        let kept = bodies.0.borrow_mut().pop();
        let fresh = || guard.fresh(Need::Body).inspect_err(|trap| guard.settle_without_call(admitted, trap));
        let mut instance = kept.map_or_else(fresh, Ok)?;
        // A body that a plugin wants whole, or has gathered by itself, is handed over whole.
        instance.store.set_hostcall_fuel(guard.binding.limits.memory);
        let body = guard.run(&mut instance, admitted, |instance| construct(instance, side))?;
        let state = match mode {
            BodyMode::Streamed => State::Streaming,
            BodyMode::Buffered(limit, beyond) => State::Gathering(BytesMut::new(), limit, beyond),
        };
        let (guard, bodies, instance) = (guard.clone(), bodies.clone(), Some(instance));
        let (has_taken, is_over, exchange) = (false, false, None);
        Ok(Transform { _permit: permit, guard, bodies, instance, side, body, state, has_taken, is_over, exchange })
    }

    /// Names the exchange of the body for the log.
    pub fn belongs_to(&mut self, exchange: Exchange) {
        self.exchange = Some(exchange);
    }

    /// Logs and counts a failure of this plugin. A body that is too long is none.
    pub fn failed(&self, error: &TransformError) {
        let hook = if self.side == Side::Request { "request-body" } else { "response-body" };
        match error {
            TransformError::Trap(trap) => self.guard.failed(hook, trap, self.exchange.as_ref()),
            TransformError::TooLarge { .. } => {
                tracing::debug!(plugin = &*self.guard.binding.name, hook, %error, "body refused");
            }
        }
    }

    /// The status that `on-error` names for a message that has not begun; `None` if it names none.
    pub fn status(&self) -> Option<StatusCode> {
        match self.guard.binding.on_error {
            OnError::Respond(status) => Some(status),
            OnError::Fail | OnError::Skip => None,
        }
    }

    /// Has the rest of the body pass as it is after a failed call, where `on-error` says so and the plugin has nothing of
    /// the body that would be missing.
    pub fn skip(&mut self, error: TransformError) -> Result<(), TransformError> {
        let is_trap = matches!(error, TransformError::Trap(_));
        if !is_trap || self.has_taken || self.guard.binding.on_error != OnError::Skip {
            return Err(error);
        }
        self.failed(&error);
        self.state = State::Passing;
        Ok(())
    }

    /// Returns the time until the plugin's share admits the next call; `None` if it does now.
    pub fn wait(&self) -> Option<Duration> {
        if matches!(self.state, State::Passing) { None } else { self.guard.wait() }
    }

    /// Returns the error of a body that has waited for too long.
    pub fn spent(&self) -> TransformError {
        TransformError::Trap(self.guard.spent())
    }

    /// Calls the body's instance, which is dropped if the call fails.
    fn call<R>(&mut self, call: impl FnOnce(&mut Instance) -> Result<R, Trap>) -> Result<R, Trap> {
        let mut instance = self.instance.take().ok_or(Trap::NoInstance("an earlier call for the body failed"))?;
        let result = self.guard.run(&mut instance, self.guard.admit_further(), |instance| {
            instance.begin_call();
            call(instance)
        });
        if result.is_ok() {
            self.instance = Some(instance);
        }
        result
    }

    /// Takes a chunk and gives what goes on now, which may be nothing.
    pub fn push(&mut self, chunk: Bytes) -> Result<Bytes, TransformError> {
        match &mut self.state {
            State::Passing => Ok(chunk),
            State::Streaming if chunk.is_empty() => Ok(chunk),
            State::Streaming => match self.transformed(&chunk) {
                Ok(out) => {
                    self.has_taken = true;
                    Ok(out)
                }
                Err(error) => self.skip(error).map(|()| chunk),
            },
            State::Gathering(gathered, limit, beyond) => {
                if (gathered.len() + chunk.len()) as u64 <= *limit {
                    gathered.extend_from_slice(&chunk);
                    return Ok(Bytes::new());
                }
                if *beyond == Beyond::Refuse {
                    let plugin = self.guard.binding.name.clone();
                    return Err(TransformError::TooLarge { plugin, limit: *limit });
                }
                gathered.extend_from_slice(&chunk);
                let all = gathered.split().freeze();
                self.state = State::Passing;
                Ok(all)
            }
        }
    }

    fn transformed(&mut self, chunk: &[u8]) -> Result<Bytes, TransformError> {
        Ok(Bytes::from(call!(self, call_push, chunk)))
    }

    /// The body is over: gives what was held back.
    pub fn finish(&mut self) -> Result<Bytes, TransformError> {
        let whole = match &mut self.state {
            State::Passing => {
                self.is_over = true;
                return Ok(Bytes::new());
            }
            State::Streaming => None,
            State::Gathering(gathered, ..) => Some(gathered.split().freeze()),
        };
        let out = match self.rest(whole.as_deref()) {
            Ok(out) => out,
            Err(error) => self.skip(error).map(|()| whole.unwrap_or_default())?,
        };
        // From here on only the trailers are left.
        self.has_taken = false;
        self.is_over = true;
        Ok(out)
    }

    /// The last bytes of a body that the plugin has streamed, or all of one that it wants whole.
    fn rest(&mut self, whole: Option<&[u8]>) -> Result<Bytes, TransformError> {
        let mut out = BytesMut::new();
        if let Some(whole) = whole {
            out.extend_from_slice(&self.transformed(whole)?);
        }
        out.extend_from_slice(&call!(self, call_finish));
        Ok(out.freeze())
    }

    /// Gives the trailers that go on.
    pub fn trailers(&mut self, received: &HeaderMap) -> Result<HeaderMap, TransformError> {
        if matches!(self.state, State::Passing) {
            return Ok(received.clone());
        }
        match self.edited(received) {
            Ok(trailers) => Ok(trailers),
            Err(error) => self.skip(error).map(|()| received.clone()),
        }
    }

    fn edited(&mut self, received: &HeaderMap) -> Result<HeaderMap, TransformError> {
        let owned =
            |(name, value): (&http::HeaderName, &http::HeaderValue)| (name.to_string(), value.as_bytes().to_vec());
        let is_true = |(name, _): &(&http::HeaderName, &http::HeaderValue)| !transformed_content::is_digest(name);
        let fields: Vec<(String, Vec<u8>)> = received.iter().filter(is_true).map(owned).collect();
        let sent = call!(self, call_trailers, &fields);
        Ok(edit_check::checked_trailers(&sent).map_err(Trap::from)?)
    }
}

impl Drop for Transform {
    /// Keeps the instance of a body that came to its end, once the plugin has dropped what it held for the body.
    fn drop(&mut self) {
        // What has failed before was logged, and its instance is gone.
        if !self.is_over || self.instance.is_none() || self.guard.is_released() {
            return;
        }
        let body = self.body;
        match self.call(|instance| body.resource_drop(&mut instance.store).map_err(trapped)) {
            Ok(()) => self.instance.take().into_iter().for_each(|instance| self.bodies.keep(instance)),
            // The content has left by then, and nothing is lost but the instance.
            Err(trap) => self.failed(&TransformError::Trap(trap)),
        }
    }
}

fn construct(instance: &mut Instance, side: Side) -> Result<ResourceAny, Trap> {
    instance.begin_call();
    let Instance { store, request_body, response_body, .. } = instance;
    let body = match side {
        Side::Request => {
            let hook = request_body.as_ref().ok_or(Trap::NoHook)?;
            hook.plugway_plugin_request_body().transform().call_constructor(store)
        }
        Side::Response => {
            let hook = response_body.as_ref().ok_or(Trap::NoHook)?;
            hook.plugway_plugin_response_body().transform().call_constructor(store)
        }
    };
    body.map_err(trapped)
}
