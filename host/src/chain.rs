//! The pipeline: request hooks down the list, response hooks up it, and what a failed plugin means for the exchange.

use std::time::Instant;

use http::Response;

use crate::edit::{self, Edit, Side};
use crate::error::{Error, Kind};
use crate::generation::{Route, Running};
use crate::head::Head;
use crate::metrics::SAMPLE;
use crate::plugin::binding::{Beyond, BodyMode, Hook, OnError};
use crate::plugin::instance::{Instance, Trap, Verdict};
use crate::plugin::transform::Transform;

/// What came out of the way down.
pub enum Down {
    /// To the upstream; all response hooks are due.
    Forward,
    /// A plugin answered; the response hooks of those above it are due.
    Answer(Response<Vec<u8>>, Depth),
}

/// How many plugins, from the top of the chain, see the response.
#[derive(Clone, Copy, Debug)]
pub struct Depth(usize);

/// A failed plugin whose `on-error` ends the exchange.
pub struct Failed {
    pub error: Error,
    pub status: http::StatusCode,
    pub depth: Depth,
}

impl Depth {
    /// None of them.
    pub fn none() -> Self {
        Depth(0)
    }

    /// All of them.
    pub fn whole(route: &Route) -> Self {
        Depth(route.chain.len())
    }
}

/// Runs the request hooks; may choose another upstream, as a place in the generation.
pub fn down(running: &Running, route: &Route, head: &mut Box<Head>, upstream: &mut usize) -> Result<Down, Failed> {
    for (depth, place) in route.chain.iter().enumerate() {
        let binding = &running.generation.bindings[*place];
        match &binding.request {
            Hook::Absent => {}
            Hook::Plan(plan) => edit::apply_plan(plan, Side::Request, head),
            Hook::Call(needs) => {
                let call = |instance: &mut Instance| instance.filter(Side::Request, needs, head);
                let verdict = counted(running, *place, || {
                    running.filters[*place].borrow_mut().call(|| running.instance(*place), call)
                });
                let proceeded = verdict.and_then(|verdict| match verdict {
                    Verdict::Proceed(edits) => {
                        // Looked up before anything is changed: edits are made all or none.
                        let named = edits.iter().rev().find_map(|edit| match edit {
                            Edit::Upstream(name) => Some(chosen(running, name)),
                            _ => None,
                        });
                        let place = named.transpose()?;
                        edit::apply(edits, Side::Request, head)?;
                        if let Some(place) = place {
                            *upstream = place;
                            head.upstream = running.generation.upstreams[place].name.clone();
                        }
                        Ok(None)
                    }
                    Verdict::Respond(response) => Ok(Some(response)),
                });
                match proceeded {
                    Ok(None) => {}
                    Ok(Some(response)) => return Ok(Down::Answer(response, Depth(depth))),
                    Err(trap) => on_error(running, *place, trap, Depth(depth))?,
                }
            }
        }
    }
    Ok(Down::Forward)
}

/// Runs the response hooks of the plugins above a depth; a plugin may put another content in place.
pub fn up(running: &Running, route: &Route, depth: Depth, head: &mut Box<Head>) -> Result<Option<Vec<u8>>, Failed> {
    let mut content = None;
    for (depth, place) in route.chain.iter().enumerate().take(depth.0).rev() {
        let binding = &running.generation.bindings[*place];
        match &binding.response {
            Hook::Absent => {}
            Hook::Plan(plan) => edit::apply_plan(plan, Side::Response, head),
            Hook::Call(needs) => {
                let call = |instance: &mut Instance| instance.filter(Side::Response, needs, head);
                let verdict = counted(running, *place, || {
                    running.filters[*place].borrow_mut().call(|| running.instance(*place), call)
                });
                let done = verdict.and_then(|verdict| match verdict {
                    Verdict::Proceed(edits) => Ok(edit::apply(edits, Side::Response, head)?),
                    Verdict::Respond(response) => {
                        let (parts, body) = response.into_parts();
                        head.response = Some(parts);
                        content = Some(body);
                        Ok(())
                    }
                });
                if let Err(trap) = done {
                    on_error(running, *place, trap, Depth(depth))?;
                }
            }
        }
    }
    Ok(content)
}

/// The plugins that a body of a known or unknown length passes on its way: down the chain for a request, up for the
/// response.
pub fn stages(
    running: &Running,
    route: &Route,
    depth: Depth,
    side: Side,
    length: Option<u64>,
) -> Result<Vec<Transform>, Failed> {
    let mut stages = Vec::new();
    for (depth, place) in route.chain.iter().enumerate().take(depth.0) {
        let binding = &running.generation.bindings[*place];
        let mode = if side == Side::Request { binding.request_body } else { binding.response_body };
        let Some(mode) = mode else { continue };
        if let (BodyMode::Buffered(limit, Beyond::Refuse), Some(length)) = (mode, length)
            && length > limit
        {
            let kind = if side == Side::Request { Kind::RequestBodySize } else { Kind::ResponseBodySize };
            let error = Error::new(kind, format!("{length} bytes, and `{}` takes {limit}", binding.name));
            return Err(Failed { error, status: kind.status(), depth: Depth(depth) });
        }
        match Transform::begin(binding, side, mode, &running.place) {
            Ok(stage) => stages.push(stage),
            Err(trap) => on_error(running, *place, trap, Depth(depth))?,
        }
    }
    if side == Side::Response {
        stages.reverse();
    }
    Ok(stages)
}

/// Makes a call, and counts it; one in [`SAMPLE`] is timed.
fn counted<R>(running: &Running, place: usize, call: impl FnOnce() -> Result<R, Trap>) -> Result<R, Trap> {
    let figures = &running.plugins[place];
    figures.calls.add(1);
    let began = figures.calls.value().is_multiple_of(SAMPLE).then(Instant::now);
    let result = call();
    if let Some(began) = began {
        figures.nanoseconds.add(began.elapsed().as_nanos() as u64 * SAMPLE);
    }
    result
}

fn chosen(running: &Running, name: &str) -> Result<usize, Trap> {
    let place = running.generation.upstream_places.get(name).copied();
    place.ok_or_else(|| Trap::Failed(format!("it chose the upstream `{name}`, which the manifest doesn't have")))
}

fn on_error(running: &Running, place: usize, trap: Trap, depth: Depth) -> Result<(), Failed> {
    let binding = &running.generation.bindings[place];
    running.plugins[place].failures.add(1);
    tracing::warn!(plugin = &*binding.name, error = %trap, "plugin failed");
    let status = match binding.on_error {
        OnError::Skip => return Ok(()),
        OnError::Fail => Kind::PluginError.status(),
        OnError::Respond(status) => status,
    };
    Err(Failed { error: Error::new(Kind::PluginError, trap), status, depth })
}
