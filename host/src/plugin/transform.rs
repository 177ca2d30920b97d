//! A body passing through a plugin, on an instance of its own: what it holds dies with it, and nobody else's does.

use std::cell::Cell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use wasmtime::component::ResourceAny;

use super::binding::{Beyond, Binding, BodyMode};
use super::instance::{Instance, Trap, gave_up, trapped};
use crate::edit::{self, Side};
use crate::metrics::Place;

/// Bodies that one worker has in one plugin at a time. Each holds an instance, and the process has a bounded number of
/// these: slow clients of one route must not use up those of all others.
const MOST_BODIES: usize = 256;

/// Counts the bodies that a worker has in a plugin.
#[derive(Default)]
pub struct Bodies(Rc<Cell<usize>>);

/// The leave to have one more, until it is dropped.
pub struct Turn(Rc<Cell<usize>>);

impl Bodies {
    /// One more, if there are not too many.
    pub fn begin(&self) -> Result<Turn, Trap> {
        if self.0.get() >= MOST_BODIES {
            return Err(Trap::Failed(format!("{MOST_BODIES} bodies pass through it already")));
        }
        self.0.set(self.0.get() + 1);
        Ok(Turn(self.0.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// One body in one plugin.
pub struct Transform {
    _turn: Turn,
    instance: Box<Instance>,
    side: Side,
    body: ResourceAny,
    state: State,
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
    #[error("the body is longer than the {0} bytes that a plugin takes")]
    TooLarge(u64),
}

/// Calls a method of the body on either side's interface.
macro_rules! call {
    ($transform:expr, $method:ident $(, $argument:expr)*) => {{
        let Transform { instance, side, body, .. } = $transform;
        instance.begin_call();
        let Instance { store, request_body, response_body, .. } = &mut **instance;
        match side {
            Side::Request => {
                let hook = request_body.as_ref().ok_or(Trap::NoHook)?;
                hook.plugway_plugin_request_body().transform().$method(store, *body $(, $argument)*)
            }
            Side::Response => {
                let hook = response_body.as_ref().ok_or(Trap::NoHook)?;
                hook.plugway_plugin_response_body().transform().$method(store, *body $(, $argument)*)
            }
        }
        .map_err(trapped)?
        .map_err(gave_up)?
    }};
}

impl Transform {
    /// Begins a body.
    pub fn begin(binding: &Binding, side: Side, mode: BodyMode, figures: &Place, turn: Turn) -> Result<Self, Trap> {
        let mut instance = Box::new(Instance::new(binding, figures)?);
        // A body that a plugin wants whole, or has gathered by itself, is handed over whole.
        instance.store.set_hostcall_fuel(binding.limits.memory);
        instance.begin_call();
        let Instance { store, request_body, response_body, .. } = &mut *instance;
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
        let state = match mode {
            BodyMode::Streamed => State::Streaming,
            BodyMode::Buffered(limit, beyond) => State::Gathering(BytesMut::new(), limit, beyond),
        };
        Ok(Transform { _turn: turn, body: body.map_err(trapped)?, instance, side, state })
    }

    /// Takes a chunk and gives what goes on now, which may be nothing.
    pub fn push(&mut self, chunk: Bytes) -> Result<Bytes, TransformError> {
        match &mut self.state {
            State::Passing => Ok(chunk),
            State::Streaming if chunk.is_empty() => Ok(chunk),
            State::Streaming => Ok(Bytes::from(call!(self, call_push, &chunk))),
            State::Gathering(gathered, limit, beyond) => {
                if (gathered.len() + chunk.len()) as u64 <= *limit {
                    gathered.extend_from_slice(&chunk);
                    return Ok(Bytes::new());
                }
                if *beyond == Beyond::Refuse {
                    return Err(TransformError::TooLarge(*limit));
                }
                gathered.extend_from_slice(&chunk);
                let all = gathered.split().freeze();
                self.state = State::Passing;
                Ok(all)
            }
        }
    }

    /// The body is over: gives what was held back.
    pub fn finish(&mut self) -> Result<Bytes, TransformError> {
        let mut out = BytesMut::new();
        match &mut self.state {
            State::Passing => return Ok(Bytes::new()),
            State::Streaming => {}
            State::Gathering(gathered, ..) => {
                let whole = gathered.split().freeze();
                out.extend_from_slice(&call!(self, call_push, &whole));
            }
        }
        out.extend_from_slice(&call!(self, call_finish));
        Ok(out.freeze())
    }

    /// Gives the trailers that go on.
    pub fn trailers(&mut self, received: &HeaderMap) -> Result<HeaderMap, TransformError> {
        if matches!(self.state, State::Passing) {
            return Ok(received.clone());
        }
        let owned =
            |(name, value): (&http::HeaderName, &http::HeaderValue)| (name.to_string(), value.as_bytes().to_vec());
        let fields: Vec<(String, Vec<u8>)> = received.iter().map(owned).collect();
        let sent = call!(self, call_trailers, &fields);
        Ok(edit::checked_fields(&sent).map_err(Trap::from)?)
    }
}
