//! From a finished request to the head of a response: choose an endpoint, make an attempt, and another one at another
//! endpoint where the upstream's rules allow that.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;

use crate::attempt::{Answer, Attempt, Failure};
use crate::balance::{self, Choice};
use crate::body::{Lease, ResponseBody, Switched, UpstreamBody};
use crate::clock::Deadline;
use crate::edit::Edit;
use crate::error::{Error, Kind};
use crate::forwarding::Hop;
use crate::generation::{Running, Upstream};
use crate::head::Head;
use crate::resend::Content;
use crate::upload::{RequestBody, Upload};
use crate::upstream::retry::{self, Reached};
use crate::upstream::seats::{Flight, Seat};

/// What is sent with a request, and how far that is.
pub struct Sending {
    pub body: RequestBody,
    pub upload: Upload,
    /// What the endpoint is asked besides.
    pub hop: Hop,
}

/// A response, with the edits that the balancer wants made to it.
pub struct Forwarded {
    pub response: Response<ResponseBody>,
    pub edits: Option<Arc<[Edit]>>,
}

impl From<Response<ResponseBody>> for Forwarded {
    /// A response that no balancer has to do with.
    fn from(response: Response<ResponseBody>) -> Self {
        Forwarded { response, edits: None }
    }
}

/// An attempt to be made.
struct Next {
    seat: Rc<Seat>,
    edits: Option<Arc<[Edit]>>,
    flight: Flight,
}

/// The attempts of a request so far.
struct Attempts<'a> {
    running: &'a Running,
    place: usize,
    upstream: &'a Upstream,
    /// Where it has failed.
    tried: Vec<Rc<Seat>>,
}

/// Sends the request of `head` with a body to an upstream, given by its place. The body is taken out of `sending`. `step`
/// limits each thing that is waited for, up to the end of the response.
pub async fn forward(
    running: &Running,
    place: usize,
    head: &mut Head,
    sending: &mut Sending,
    step: &Deadline,
) -> Result<Forwarded, Error> {
    let upstream = &running.generation.upstreams[place];
    let Sending { body, upload, hop } = sending;
    let body = std::mem::replace(body, RequestBody::Empty);
    // An endpoint that speaks HTTP/2 may say that it has not read a request, which is then repeated whatever its method.
    let is_kept = upstream.may_speak_http2 || upstream.retry.may_repeat(&head.request.method);
    let kept = if is_kept { upstream.retry.buffer } else { 0 };
    let content = RefCell::new(Content::new(body, kept));
    let mut attempts = Attempts::new(running, place, step.clock().now());
    let refused = |error: Error| {
        if error.kind == Kind::LimitReached {
            upstream.live.events.overflows.fetch_add(1, Ordering::Relaxed);
        }
        error
    };
    let mut next = attempts.next(head, step, 0).map_err(refused)?;
    loop {
        let Next { seat, edits, flight } = next;
        attempts.pause(&seat).await;
        let (rules, slots, began) = (&running.upstreams[place].rules, &upstream.slots, Instant::now());
        let mut attempt = Attempt { head, content: &content, upload, hop, rules, slots, step };
        let mut outcome = attempt.run(flight).await;
        let now = Instant::now();
        attempts.note(&seat, &mut outcome, now - began, now);
        let again = attempts.are_worth_another(&outcome, &head.request.method, &content.borrow(), now);
        if again {
            attempts.tried.push(seat);
            // A response in hand still counts as in flight, and makes room for the one in its place.
            let in_hand = outcome.is_ok().into();
            // Where there is nobody to ask, what came of this one is what the client gets.
            if let Ok(another) = attempts.next(head, step, in_hand) {
                attempts.again(now);
                next = another;
                continue;
            }
        }
        let Answer { response, lease } = outcome.map_err(|failure| refused(failure.error))?;
        let empty = content.borrow().is_empty();
        // What is kept of it is of no use any more, and stands for content that isn't all sent.
        drop(content);
        let is_sent = empty || upload.is_over();
        return received(response, lease, is_sent, upload).map(|response| Forwarded { response, edits });
    }
}

impl<'a> Attempts<'a> {
    fn new(running: &'a Running, place: usize, now: Instant) -> Self {
        let upstream = &running.generation.upstreams[place];
        if upstream.retry.retries > 0 {
            running.upstreams[place].budget.borrow_mut().request(now);
        }
        Attempts { running, place, upstream, tried: Vec::new() }
    }

    /// Whom to ask, with a place for that among those in flight, of which so many are this request's own.
    fn next(&self, head: &mut Head, step: &Deadline, own: u32) -> Result<Next, Error> {
        let Choice { seat, edits } = balance::choose(self.running, self.place, head, &self.tried, step.clock().now())?;
        let full = || Error::new(Kind::LimitReached, "as many requests are in flight as may be");
        let most = self.upstream.most_in_flight.saturating_add(own);
        let flight = Flight::begin(&seat, most).ok_or_else(full)?;
        head.endpoint = Some(seat.name.clone());
        Ok(Next { seat, edits, flight })
    }

    /// Takes note of what an attempt says of its endpoint.
    fn note(&self, seat: &Seat, outcome: &mut Result<Answer, Failure>, took: Duration, now: Instant) {
        match outcome {
            Ok(Answer { response, lease }) => {
                let status = response.status();
                lease.is_good = self.upstream.is_good(status);
                if lease.is_good {
                    seat.answered(status, took, now);
                } else {
                    seat.answered_badly(status, took, now);
                }
            }
            // That an endpoint closes a connection in good order says nothing against it.
            Err(Failure { reached: Reached::Unread, .. }) => {}
            Err(failure) if failure.error.kind.blames_endpoint() => seat.failed(took, now),
            Err(_) => {}
        }
    }

    /// Whether a request is to be sent once more.
    fn are_worth_another(
        &self,
        outcome: &Result<Answer, Failure>,
        method: &Method,
        content: &Content,
        now: Instant,
    ) -> bool {
        let retry = &self.upstream.retry;
        let is_covered = match outcome {
            Ok(answer) => retry.covers_status(answer.response.status(), method),
            Err(failure) => retry.covers(failure.error.kind, failure.reached, method),
        };
        is_covered && content.is_whole() && self.may_go_on(now)
    }

    fn may_go_on(&self, now: Instant) -> bool {
        let retry = &self.upstream.retry;
        if self.tried.len() >= retry.retries as usize {
            return false;
        }
        let allowed = self.running.upstreams[self.place].budget.borrow_mut().allows(retry.budget, now);
        if !allowed {
            self.upstream.live.events.retries_denied.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }

    /// Takes note of a retry that is made.
    fn again(&self, now: Instant) {
        self.running.upstreams[self.place].budget.borrow_mut().retry(now);
        self.upstream.live.events.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits before an endpoint is asked once more that has just failed.
    async fn pause(&self, next: &Rc<Seat>) {
        let is_next = |seat: &&Rc<Seat>| Arc::ptr_eq(&seat.endpoint, &next.endpoint);
        let before = self.tried.iter().filter(is_next).count() as u32;
        if before > 0 {
            // Boxed, so that the many exchanges that never wait don't carry room for it.
            Box::pin(tokio::time::sleep(retry::pause(before - 1))).await;
        }
    }
}

/// What came back, with the connection that it streams from.
fn received(
    response: Response<Incoming>,
    mut lease: Lease,
    is_sent: bool,
    upload: &Upload,
) -> Result<Response<ResponseBody>, Error> {
    upload.take_time();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switched(response, lease);
    }
    if !is_sent {
        lease.connection.detach();
    }
    Ok(response.map(|content| ResponseBody::Upstream(Box::new(UpstreamBody::new(content, lease)))))
}

fn switched(response: Response<Incoming>, lease: Lease) -> Result<Response<ResponseBody>, Error> {
    let Lease { connection, flight, .. } = lease;
    let protocol = response.headers().get(header::UPGRADE).cloned().unwrap_or(HeaderValue::from_static("unknown"));
    let lost = || Error::new(Kind::ConnectionTerminated, "the endpoint closed as it switched protocols");
    let stream = connection.into_stream().ok_or_else(lost)?;
    flight.seat().ended_well();
    Ok(response.map(|_| ResponseBody::Switched(Box::new(Switched { protocol, stream, flight }))))
}
