//! The pipeline: request hooks down the list, response hooks up it, and what a failed plugin means for the exchange.

use std::ops::Range;
use std::sync::Arc;

use http::Response;
use http_body::Body;
use smallvec::SmallVec;

use crate::context::edit_check::{self, Refused, Side};
use crate::context::edits::{self, Edit};
use crate::context::{CacheOutcome, Head, ValueName};
use crate::error::{Error, Kind};
use crate::exchange::filtered_body::Passage;
use crate::exchange::response_body::ResponseBody;
use crate::generation::{Route, Running};
use crate::plugin::body_filter::Transform;
use crate::plugin::configured::{Beyond, Binding, BodyMode, Hook, OnError};
use crate::plugin::failure::Exchange;
use crate::plugin::instance::{Trap, Verdict};
use crate::protocol::transformed_content;

/// What came out of the way down.
pub enum Down {
    /// To the upstream; all response hooks are due.
    Forward,
    /// A plugin answered; the response hooks of those above it are due.
    Answer(Response<Vec<u8>>, Depth),
    /// Here is a cache.
    Cache(Depth),
}

/// How many plugins, from the top of the chain, see the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth(usize);

/// A failed plugin whose `on-error` ends the exchange.
pub struct Failed {
    pub error: Error,
    pub status: http::StatusCode,
    pub depth: Depth,
}

/// The edits that a balancer wants made to the response.
#[derive(Clone)]
pub struct BalancerEdits {
    /// The place of the balancer in the generation.
    pub binding: usize,
    pub edits: Arc<[Edit]>,
}

impl From<Error> for Failed {
    /// A failure that no plugin sees.
    fn from(error: Error) -> Self {
        Failed { status: error.status.unwrap_or(error.kind.status()), error, depth: Depth::none() }
    }
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

    /// One more.
    pub fn next(self) -> Self {
        Depth(self.0 + 1)
    }

    /// The place of the plugin just below these, in the generation.
    pub fn plugin(self, route: &Route) -> usize {
        route.chain[self.0]
    }

    /// Their places in the chain.
    pub fn plugins(self) -> Range<usize> {
        0..self.0
    }

    /// Those of them that aren't of a lesser depth.
    pub fn beyond(self, top: Depth) -> Range<usize> {
        top.0..self.0.max(top.0)
    }
}

/// Runs the request hooks from a depth on, to the end or to a cache; may choose another upstream, as a place in the
/// generation.
pub fn down(
    running: &Running,
    route: &Route,
    from: Depth,
    head: &mut Box<Head>,
    upstream: &mut usize,
) -> Result<Down, Failed> {
    for (depth, place) in route.chain.iter().enumerate().skip(from.0) {
        let binding = &running.generation.bindings[*place];
        let hooked = match &binding.request {
            Hook::Absent => Ok(None),
            Hook::Plan(plan) => carry_out(binding, *plan as u32, Side::Request, head).map(|()| None),
            Hook::Call(needs) => match call(running, *place, Side::Request, needs, head) {
                Ok(Verdict::Plan(plan)) => carry_out(binding, plan, Side::Request, head).map(|()| None),
                Ok(Verdict::Proceed(edits)) => proceed(running, binding, edits, head, upstream).map(|()| None),
                Ok(Verdict::Respond(response)) => Ok(Some(response)),
                Err(trap) => Err(trap),
            },
        };
        match hooked {
            Ok(None) => {}
            Ok(Some(response)) => return Ok(Down::Answer(response, Depth(depth))),
            Err(trap) => on_error(running, *place, trap, Depth(depth), Failing { hook: "request-filter", head })?,
        }
        if binding.response_body.is_some() {
            transformed_content::ask(&mut head.request.headers);
        }
        if binding.cache.is_some() {
            return Ok(Down::Cache(Depth(depth)));
        }
    }
    Ok(Down::Forward)
}

/// Runs the response hooks of some plugins, given by their places in the chain, upwards; one may put another content in
/// place.
pub fn up(
    running: &Running,
    route: &Route,
    plugins: Range<usize>,
    head: &mut Box<Head>,
) -> Result<Option<Vec<u8>>, Failed> {
    let mut content = None;
    for (depth, place) in plugins.clone().zip(&route.chain[plugins]).rev() {
        let binding = &running.generation.bindings[*place];
        let hooked = match &binding.response {
            Hook::Absent => continue,
            Hook::Plan(plan) => carry_out(binding, *plan as u32, Side::Response, head),
            Hook::Call(needs) => match call(running, *place, Side::Response, needs, head) {
                Ok(Verdict::Plan(plan)) => carry_out(binding, plan, Side::Response, head),
                Ok(Verdict::Proceed(edits)) => {
                    edits::apply(edits, &binding.plans, Side::Response, head).map_err(Trap::from)
                }
                Ok(Verdict::Respond(response)) => {
                    let (parts, body) = response.into_parts();
                    head.response = Some(parts);
                    content = Some(body);
                    Ok(())
                }
                Err(trap) => Err(trap),
            },
        };
        if let Err(trap) = hooked {
            on_error(running, *place, trap, Depth(depth), Failing { hook: "response-filter", head })?;
        }
    }
    Ok(content)
}

/// Makes the edits that a balancer wants made to the response.
pub fn balanced(running: &Running, wanted: Option<&BalancerEdits>, head: &mut Head) -> Result<(), Failed> {
    let Some(BalancerEdits { binding, edits }) = wanted else { return Ok(()) };
    match edits::apply(edits.iter().cloned().collect(), &[], Side::Response, head) {
        Ok(()) => Ok(()),
        Err(refused) => on_error(running, *binding, refused.into(), Depth::none(), Failing { hook: "balancer", head }),
    }
}

/// Calls a head hook.
fn call(
    running: &Running,
    place: usize,
    side: Side,
    needs: &[ValueName],
    head: &mut Box<Head>,
) -> Result<Verdict, Trap> {
    running.call(place, |instance| instance.filter(side, needs, head))
}

fn carry_out(binding: &Binding, plan: u32, side: Side, head: &mut Head) -> Result<(), Trap> {
    let plan = binding.plans.get(plan as usize).ok_or(Refused::Plan(plan))?;
    edits::apply_plan(plan, side, head)?;
    Ok(())
}

/// Makes the edits to a request, all or none.
fn proceed(
    running: &Running,
    binding: &Binding,
    edits: SmallVec<[Edit; 4]>,
    head: &mut Head,
    upstream: &mut usize,
) -> Result<(), Trap> {
    // Looked up before anything is changed.
    let named = edits.iter().rev().find_map(|edit| match edit {
        Edit::Upstream(name) => Some(chosen(running, name)),
        _ => None,
    });
    let place = named.transpose()?;
    edits::apply(edits, &binding.plans, Side::Request, head)?;
    if let Some(place) = place {
        *upstream = place;
        head.upstream = running.upstreams[place].name.clone();
    }
    Ok(())
}

/// The plugins that a body of a known or unknown length passes on its way: down the chain for a request, up for the
/// response.
pub fn stages(
    running: &Running,
    route: &Route,
    plugins: Range<usize>,
    side: Side,
    length: Option<u64>,
    head: &Head,
) -> Result<Vec<Transform>, Failed> {
    let mut stages = Vec::new();
    for (depth, place) in plugins.clone().zip(&route.chain[plugins]) {
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
        match Transform::begin(&running.guards[*place], &running.bodies[*place], side, mode) {
            Ok(mut stage) => {
                stage.belongs_to(Exchange::of(head));
                stages.push(stage);
            }
            Err(trap) => {
                let hook = if side == Side::Request { "request-body" } else { "response-body" };
                on_error(running, *place, trap, Depth(depth), Failing { hook, head })?;
            }
        }
    }
    if side == Side::Response {
        stages.reverse();
    }
    Ok(stages)
}

/// The content of a response, through those of some plugins that transform it. What plugins and the proxy made
/// themselves passes as it is.
pub fn filtered(
    running: &Running,
    route: &Route,
    plugins: Range<usize>,
    head: &mut Head,
    body: ResponseBody,
) -> Result<ResponseBody, Failed> {
    let comes_from_upstream = matches!(
        body,
        ResponseBody::Upstream(_) | ResponseBody::Stored(_) | ResponseBody::Parts(_) | ResponseBody::Filtered(_)
    );
    // A cache below has answered HEAD, or that its content is what the client has.
    let is_of_cache = || head.cache.is_some_and(|outcome| outcome != CacheOutcome::Bypass) && body.is_end_stream();
    let comes_from_upstream = comes_from_upstream || is_of_cache();
    let transforms = |place: &usize| running.generation.bindings[*place].response_body.is_some();
    let is_forbidden = |head: &Head| head.response.as_ref().is_some_and(transformed_content::is_forbidden);
    if !comes_from_upstream || !route.chain[plugins.clone()].iter().any(transforms) || is_forbidden(head) {
        return Ok(body);
    }
    if let Some(obstacle) =
        head.response.as_ref().and_then(transformed_content::obstacle).filter(|_| !body.is_end_stream())
    {
        for (depth, place) in plugins.clone().zip(&route.chain[plugins]).filter(|(_, place)| transforms(place)) {
            let failing = Failing { hook: "response-body", head };
            on_error(running, *place, Trap::Failed(obstacle.clone()), Depth(depth), failing)?;
        }
        return Ok(body);
    }
    let stages = if body.is_end_stream() {
        Vec::new()
    } else {
        stages(running, route, plugins, Side::Response, body.size_hint().exact(), head)?
    };
    if let Some(response) = head.response.as_mut().filter(|_| body.is_end_stream() || !stages.is_empty()) {
        transformed_content::response(&mut response.headers);
    }
    if stages.is_empty() {
        return Ok(body);
    }
    Ok(ResponseBody::Filtered(Box::new(Passage::new(body, stages))))
}

fn chosen(running: &Running, name: &str) -> Result<usize, Trap> {
    let place = running.generation.upstream_places.get(name).copied();
    place.ok_or_else(|| {
        Trap::Senseless(format!("it chose the upstream `{}`, which the manifest doesn't have", edit_check::shown(name)))
    })
}

/// The hook that failed, and the exchange that it failed in.
pub struct Failing<'a> {
    pub hook: &'static str,
    pub head: &'a Head,
}

/// What a failed plugin means for the exchange: nothing, or its end.
pub fn on_error(running: &Running, place: usize, trap: Trap, depth: Depth, failing: Failing<'_>) -> Result<(), Failed> {
    running.plugin_failed(place, failing.hook, &trap, Some(failing.head));
    let status = match running.generation.bindings[place].on_error {
        OnError::Skip => return Ok(()),
        OnError::Fail => Kind::PluginError.status(),
        OnError::Respond(status) => status,
    };
    // Of calls that were not made, the log has one line a minute, which names no exchange.
    let is_logged = trap.rejection().is_none();
    let error = Error { is_logged, ..Error::new(Kind::PluginError, trap) };
    Err(Failed { error, status, depth })
}
