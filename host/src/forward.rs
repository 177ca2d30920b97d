//! From a finished request to the head of a response: choose an endpoint, make an attempt, and another one at another
//! endpoint where the upstream's rules allow that.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::{HeaderValue, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use smallvec::SmallVec;

use crate::attempt::{Attempt, Failure};
use crate::balance::{self, Choice};
use crate::body::{Lease, ResponseBody, Switched, UpstreamBody};
use crate::clock::Deadline;
use crate::edit::Edit;
use crate::error::{Error, Kind};
use crate::forwarding::{self, Hop};
use crate::generation::{Running, Upstream};
use crate::head::Head;
use crate::resend::Content;
use crate::upload::{RequestBody, Upload};
use crate::upstream::retry;
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
    pub edits: SmallVec<[Edit; 4]>,
}

impl From<Response<ResponseBody>> for Forwarded {
    /// A response that no balancer has to do with.
    fn from(response: Response<ResponseBody>) -> Self {
        Forwarded { response, edits: SmallVec::new() }
    }
}

/// The attempts of a request so far.
struct Attempts<'a> {
    running: &'a Running,
    place: usize,
    upstream: &'a Upstream,
    /// Where it has failed.
    tried: Vec<Rc<Seat>>,
}

/// Sends the request of `head` with a body to an upstream, given by its place. `step` limits each thing that is waited
/// for, up to the end of the response.
pub async fn forward(
    running: &Running,
    place: usize,
    head: &mut Head,
    sending: Sending,
    step: &Deadline,
) -> Result<Forwarded, Error> {
    let upstream = &running.generation.upstreams[place];
    let Sending { body, upload, hop } = sending;
    let kept = if upstream.retry.may_repeat(&head.request.method) { upstream.retry.buffer } else { 0 };
    let mut content = Content::new(body, kept);
    let mut attempts = Attempts::new(running, place, step.clock().now());
    loop {
        let Choice { seat, edits } = balance::choose(running, place, head, &attempts.tried, step.clock().now())?;
        head.endpoint = Some(seat.endpoint.address.text.clone());
        attempts.pause(&seat).await;
        let full = || Error::new(Kind::LimitReached, "as many requests are in flight as may be");
        let flight = Flight::begin(&seat, upstream.most_in_flight).ok_or_else(full)?;
        let (rules, slots) = (upstream.rules, &upstream.slots);
        let attempt = Attempt { head, content: &mut content, upload: &upload, hop: &hop, rules, slots, step };
        let began = Instant::now();
        match attempt.run(flight).await {
            Ok((response, mut lease)) => {
                let now = Instant::now();
                lease.is_good = upstream.answered(&seat, response.status(), now - began, now);
                if attempts.retries_status(response.status(), head, &content, now) {
                    attempts.tried.push(seat);
                    continue;
                }
                let empty = content.is_empty();
                // What is kept of it is of no use any more, and stands for content that isn't all sent.
                drop(content);
                let (is_sent, asked) = (empty || upload.is_over(), hop.upgrade.is_some());
                return received(response, lease, is_sent, &upload, asked)
                    .map(|response| Forwarded { response, edits });
            }
            Err(failure) => {
                let now = Instant::now();
                if failure.error.kind.blames_endpoint() {
                    seat.failed(now - began, now);
                }
                if !attempts.retries(&failure, head, &content, now) {
                    return Err(failure.error);
                }
                tracing::debug!(endpoint = &*seat.endpoint.address.text, error = %failure.error, "tried again");
                attempts.tried.push(seat);
            }
        }
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

    /// Whether a failed request is to be sent once more.
    fn retries(&self, failure: &Failure, head: &Head, content: &Content, now: Instant) -> bool {
        let covered = self.upstream.retry.covers(failure.error.kind, failure.reached, &head.request.method);
        covered && content.is_whole() && self.may_go_on(now)
    }

    /// Whether a request whose response has this status is.
    fn retries_status(&self, status: StatusCode, head: &Head, content: &Content, now: Instant) -> bool {
        let covered = self.upstream.retry.covers_status(status, &head.request.method);
        covered && content.is_whole() && self.may_go_on(now)
    }

    fn may_go_on(&self, now: Instant) -> bool {
        let (retry, events) = (&self.upstream.retry, &self.upstream.live.events);
        if self.tried.len() >= retry.retries as usize {
            return false;
        }
        let allowed = self.running.upstreams[self.place].budget.borrow_mut().retry(retry.budget, now);
        let count = if allowed { &events.retries } else { &events.retries_denied };
        count.fetch_add(1, Ordering::Relaxed);
        allowed
    }

    /// Waits before an endpoint is asked once more that has just failed.
    async fn pause(&self, next: &Rc<Seat>) {
        let is_next = |seat: &&Rc<Seat>| std::sync::Arc::ptr_eq(&seat.endpoint, &next.endpoint);
        let before = self.tried.iter().filter(is_next).count() as u32;
        if before > 0 {
            tokio::time::sleep(retry::pause(before - 1)).await;
        }
    }
}

/// What came back, with the connection that it streams from. `asked`: whether another protocol was asked for.
fn received(
    response: Response<Incoming>,
    mut lease: Lease,
    is_sent: bool,
    upload: &Upload,
    asked: bool,
) -> Result<Response<ResponseBody>, Error> {
    upload.take_time();
    let version = response.version();
    if version != Version::HTTP_2 && !forwarding::is_framed(version, response.headers()) {
        return Err(Error::new(Kind::ProtocolError, "the response's framing is ambiguous"));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if !asked {
            return Err(Error::new(Kind::ProtocolError, "a switch of protocols that nobody asked for"));
        }
        return switched(response, lease);
    }
    if let (false, Some(driver)) = (is_sent, &mut lease.connection.driver) {
        driver.detach();
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
