//! Requests of plugins: sent through upstreams, while the call that makes them waits. They end with the call.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body::Body;

use super::forward::{OutgoingRequest, forward};
use super::response_body::ResponseBody;
use crate::body::upload::RequestBody;
use crate::context::{CalloutCause, ExchangeContext, bounds};
use crate::error::{Error, FailureKind};
use crate::generation::ids::PluginId;
use crate::generation::worker_state::WorkerState;
use crate::net::boxed::boxed;
use crate::net::deadline::{Clock, Deadline};
use crate::net::turn::TurnClaim;
use crate::plugin::breaker::HookKind;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::caller::share_pause::SharePause;
use crate::plugin::instance::Instance;
use crate::plugin::outgoing_http::{Callout, CalloutReceiver, CalloutSender, CalloutTimes, MAX_CALLOUTS};
use crate::protocol::hop_by_hop;
use crate::system::holder_counts::Holder;
use crate::system::thread_time::timed;
use crate::telemetry::failure_log::{self, Topic};

/// The exchange that a plugin sends requests for.
pub struct CalloutOrigin<'a> {
    pub worker: &'a WorkerState,
    pub plugin_id: PluginId,
    /// The cause of the requests; `None` if the plugin has no destination for one.
    pub cause: Option<CalloutCause>,
    /// The client of the exchange.
    pub client: Holder,
    pub clock: Rc<Clock>,
}

/// The time until a response is there, head and content each, if the plugin names none.
const TIME: Duration = Duration::from_secs(10);

/// The requests of a call that are under way.
struct UnderWay<'a> {
    sent: Vec<SentCallout<'a>>,
    pause: SharePause,
    claim: TurnClaim,
}

type SentCallout<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

impl CalloutOrigin<'_> {
    /// Calls a hook that may wait, on an instance of its own, and waits for the result. `step` limits each thing that is
    /// waited for.
    pub async fn call<R>(
        &self,
        step: &Deadline,
        hook: HookKind,
        call: impl AsyncFnOnce(&mut Instance) -> Result<R, PluginFailure>,
    ) -> Result<R, PluginFailure> {
        let (sender, callouts) = CalloutSender::channel();
        let call = async |instance: &mut Instance| {
            instance.allow_callouts(sender);
            call(instance).await
        };
        let call = self.worker.guards[self.plugin_id].call_waiting(step, hook, self.client, call);
        if self.cause.is_none() { call.await } else { self.drive(call, callouts).await }
    }

    /// Runs a call of a plugin, and sends the requests that the call makes. Requests that are under way when the call ends
    /// are dropped.
    pub async fn drive<R>(&self, call: impl Future<Output = R>, mut callouts: CalloutReceiver) -> R {
        let mut call = pin!(call);
        let claim = self.worker.guards[self.plugin_id].claim(self.client);
        let mut under_way = UnderWay { sent: Vec::new(), pause: SharePause::default(), claim };
        poll_fn(|cx| {
            let polled = call.as_mut().poll(cx);
            // A response wakes the call.
            while polled.is_pending() && self.advance(&mut callouts, &mut under_way, cx) {}
            polled
        })
        .await
    }

    /// Begins requests, and drives those that are under way; returns whether one has begun or ended.
    fn advance<'a>(
        &'a self,
        callouts: &mut CalloutReceiver,
        under_way: &mut UnderWay<'a>,
        cx: &mut Context<'_>,
    ) -> bool {
        let UnderWay { sent, pause, claim } = under_way;
        let mut has_advanced = false;
        while sent.len() < MAX_CALLOUTS
            && let Poll::Ready(Some(callout)) = callouts.poll(cx)
        {
            sent.push(boxed(|| self.send(callout)));
            has_advanced = true;
        }
        let guard = &self.worker.guards[self.plugin_id];
        // Responses are received at the expense of the plugin, and no faster than its share.
        if sent.is_empty() || pause.poll(guard, self.client, cx).is_pending() || claim.poll(cx).is_pending() {
            return false;
        }
        let before = sent.len();
        let ((), time) = timed(|| sent.retain_mut(|callout| callout.as_mut().poll(cx).is_pending()));
        guard.charge_received(claim, time, self.client);
        has_advanced || sent.len() < before
    }

    /// Sends a request, and passes the response to the plugin, unless the plugin no longer waits.
    async fn send(&self, callout: Callout) {
        let Callout { destination, request, times, mut reply } = callout;
        let mut response = pin!(self.response(destination, request, times));
        let answered = poll_fn(|cx| match reply.poll_closed(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => response.as_mut().poll(cx).map(Some),
        });
        if let Some(answered) = answered.await {
            let _ = reply.send(answered);
        }
    }

    async fn response(
        &self,
        destination: usize,
        request: Request<Bytes>,
        times: CalloutTimes,
    ) -> Result<Response<Bytes>, FailureKind> {
        let worker = self.worker;
        let targets = &worker.generation.callout_targets[self.plugin_id];
        let upstream_id = *targets.get(destination).ok_or(FailureKind::DestinationUnavailable)?;
        let cause = self.cause.as_ref().ok_or(FailureKind::DestinationUnavailable)?;
        let [step, total] = self.clock.deadlines();
        let (mut parts, content) = request.into_parts();
        if !content.is_empty() {
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.len()));
        }
        let upstream = worker.upstream_name(Some(upstream_id));
        let mut context = ExchangeContext::of_callout(cause, parts, upstream);
        let body = if content.is_empty() { RequestBody::Empty } else { RequestBody::Whole(content) };
        let mut sending = OutgoingRequest { body, ..OutgoingRequest::empty() };
        let (place, client) = (Cell::new(None), context.holder());
        let forwarded = total.limit(times.head.unwrap_or(TIME), async {
            place.set(worker.guards[self.plugin_id].callout_place(client).await);
            forward(worker, upstream_id, &mut context, &mut sending, &step).await
        });
        let forwarded = forwarded.await;
        let place = place.take();
        let late = |what| Error::new(FailureKind::ResponseTimeout, format!("no {what} in the plugin's time"));
        let received = forwarded.unwrap_or_else(|_| Err(if place.is_some() { late("response") } else { no_place() }));
        let collected = match received {
            Ok(received) => {
                let late = || late("further content");
                collect(received.response, &total, times.body.unwrap_or(TIME), late).await
            }
            Err(error) => Err(error),
        };
        collected.map_err(|error| {
            self.log(&error, &context);
            error.kind
        })
    }

    /// Logs a request that has failed, with the exchange that it was sent for.
    fn log(&self, error: &Error, context: &ExchangeContext) {
        let plugin = &*self.worker.generation.bindings[self.plugin_id].name;
        if error.is_logged || !failure_log::admits(Topic::Exchange(error.kind), plugin) {
            return;
        }
        let (kind, cause, limit) = (error.kind.token(), error.causes(), error.limit);
        let (request_id, route, upstream) = (context.request_id(), &*context.route, &*context.upstream);
        let endpoint = context.endpoint.as_deref();
        tracing::warn!(kind, request_id, route, plugin, upstream, endpoint, cause, limit, "request of a plugin failed");
    }
}

/// Returns the error of a request that was not sent, because too many others of the plugin were under way.
fn no_place() -> Error {
    let cause = "the plugin has as many requests under way as it may have, and none ended in this one's time";
    Error::new(FailureKind::LimitReached, cause).with_limit("limits.callouts")
}

/// Receives the content of a response, whose parts arrive within a time of each other.
async fn collect(
    response: Response<ResponseBody>,
    total: &Deadline,
    between: Duration,
    late: impl Fn() -> Error,
) -> Result<Response<Bytes>, Error> {
    let (mut parts, mut body) = response.into_parts();
    hop_by_hop::response(&mut parts);
    let mut content = BytesMut::new();
    loop {
        let next = total.limit(between, poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)));
        let Some(frame) = next.await.map_err(|_| late())? else { break };
        let frame = frame.map_err(|error| match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => Error::new(FailureKind::ConnectionTerminated, error),
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if content.len() + data.len() > bounds::CALLOUT_RESPONSE {
            let cause = format!("a plugin gets at most {} bytes of content", bounds::CALLOUT_RESPONSE);
            return Err(Error::new(FailureKind::ResponseBodySize, cause));
        }
        content.extend_from_slice(&data);
    }
    Ok(Response::from_parts(parts, content.freeze()))
}
