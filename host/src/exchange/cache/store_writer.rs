//! Storing a response while it arrives: its content goes to memory, to a file, or only to the clients that read it now.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use http_body::Body;

use crate::body::BodyError;
use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind, causes};
use crate::exchange::response_body::ResponseBody;
use crate::store::Store;
use crate::store::collapse::FetchLeader;
use crate::store::disk::UnfinishedFile;
use crate::store::memory_budget::MemoryReservation;
use crate::store::purge_log::PurgeEpoch;
use crate::store::shared_body::SharedBody;
use crate::store::stored_response::StoredResponse;
use crate::store::unix_time::now_ms;
use crate::telemetry::failure_log::{self, Topic};

/// A response that is being stored while it arrives.
pub struct StoreWriter {
    pub fill: Arc<SharedBody>,
    pub object: Arc<StoredResponse>,
    /// The leader of the fetch, by which new requests find the response until it is stored.
    pub lead: Option<FetchLeader>,
    pub room: MemoryReservation,
    pub store: Arc<Store>,
    pub id: u128,
    pub key: Vec<u8>,
    pub epoch: PurgeEpoch,
    /// The maximum length of content in memory, and the maximum length of stored content, in bytes.
    pub max: u64,
    pub longest: u64,
    pub into: WriteTarget,
    pub exchange: FetchName,
}

/// The exchange that fetches a response, as the log names it.
pub struct FetchName {
    request_id: String,
    route: Arc<str>,
    upstream: Arc<str>,
    endpoint: Option<Arc<str>>,
}

impl FetchName {
    /// Names the exchange of a context, after its endpoint has responded.
    pub fn of(context: &ExchangeContext) -> Self {
        FetchName {
            request_id: context.request_id().into(),
            route: context.route.clone(),
            upstream: context.upstream.clone(),
            endpoint: context.endpoint.clone(),
        }
    }
}

/// The destination of the arriving content.
pub enum WriteTarget {
    Memory,
    File(Box<UnfinishedFile>),
    /// The content goes only to the current readers and is not stored.
    Nowhere,
}

impl StoreWriter {
    /// Reads the body to its end and stores its content.
    pub async fn run(mut self, mut body: ResponseBody) {
        let (mut trailers, mut bytes, mut patience) = (None, 0, PATIENCE);
        loop {
            if matches!(self.into, WriteTarget::Nowhere) {
                wait_for_readers(&self.fill, &mut patience).await;
            }
            let fill = &self.fill;
            let frame = poll_fn(|cx| match ready!(fill.poll_ready(cx)) {
                Ok(()) => Pin::new(&mut body).poll_frame(cx).map(Ok),
                Err(abandoned) => Poll::Ready(Err(abandoned)),
            });
            let Ok(frame) = frame.await else { return };
            match frame.transpose() {
                Err(error) => {
                    self.log(&error);
                    return;
                }
                Ok(None) => break,
                Ok(Some(frame)) => match frame.into_data() {
                    Ok(piece) => {
                        let more = piece.len() as u64;
                        bytes += more;
                        self.fill.push(piece);
                        self.choose_target(bytes, more).await;
                    }
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
            }
        }
        if self.fill.length().is_some_and(|length| length != bytes) {
            return;
        }
        if let WriteTarget::File(spill) = &mut self.into
            && !spill.write(&self.fill, true).await
        {
            self.pass();
        }
        self.fill.finish(trailers.clone());
        match std::mem::replace(&mut self.into, WriteTarget::Nowhere) {
            WriteTarget::Memory => {
                let object = Arc::new(self.object.with_content(self.fill.content(trailers).into()));
                self.store.insert(self.id, &self.key, object, self.epoch);
            }
            WriteTarget::File(spill) => {
                let (key, object) = (self.key.clone(), self.object.clone());
                spill.finish(self.id, key, self.epoch, object, bytes, trailers).await;
                self.store.drop_older_in_memory(self.id, &self.object);
            }
            WriteTarget::Nowhere => {}
        }
    }

    /// Logs why a response did not arrive completely. Its readers log their own failures, and it may have no readers.
    fn log(&self, error: &BodyError) {
        let FetchName { request_id, route, upstream, endpoint } = &self.exchange;
        if !failure_log::admits(Topic::Cache, route) {
            return;
        }
        let known = error.downcast_ref::<Error>();
        // An endpoint that breaks off leaves an error of its connection.
        let kind = known.map_or(FailureKind::ConnectionTerminated, |error| error.kind).token();
        let limit = known.and_then(|error| error.limit);
        let cause = known.map_or_else(|| causes(&**error), Error::causes);
        let (request_id, route, upstream, endpoint) = (&**request_id, &**route, &**upstream, endpoint.as_deref());
        let what = "response not stored: it came only in part";
        tracing::warn!(kind, request_id, route, upstream, endpoint, cause, limit, "{what}");
    }

    /// Chooses the destination for the content so far: memory, a file if the content is too long for memory, or none.
    async fn choose_target(&mut self, bytes: u64, more: u64) {
        match &mut self.into {
            WriteTarget::Memory => {
                let is_long = bytes > self.max || self.fill.length().is_some_and(|length| length > self.max);
                if self.room.take(more, self.store.capacity()) && !is_long {
                    return;
                }
                self.room.leave();
                let disk = self.store.disk().filter(|_| bytes <= self.longest);
                self.into = match disk {
                    Some(disk) => {
                        let spill = UnfinishedFile::begin(disk, &self.fill, self.object.sequence).await;
                        spill.map_or(WriteTarget::Nowhere, |spill| WriteTarget::File(Box::new(spill)))
                    }
                    None => WriteTarget::Nowhere,
                };
            }
            WriteTarget::File(_) if bytes > self.longest => self.into = WriteTarget::Nowhere,
            WriteTarget::File(_) => {}
            WriteTarget::Nowhere => return,
        }
        let goes_on = match &mut self.into {
            WriteTarget::File(spill) => spill.write(&self.fill, false).await,
            WriteTarget::Memory | WriteTarget::Nowhere => false,
        };
        if !goes_on {
            self.pass();
        }
    }

    /// Stops storing the response, because it is too long or there is no room for it.
    fn pass(&mut self) {
        self.into = WriteTarget::Nowhere;
        self.fill.pass();
        // The older stored response is outdated.
        self.store.remove(self.id, &self.object);
        self.store.mark_hit_for_miss(self.id, &self.key, now_ms());
        self.lead = None;
    }
}

/// Waits until the slowest reader of content that is not stored has made room. Once no `patience` is left, that reader is
/// cut off if others wait for more: a slow client must not decide what the others get.
async fn wait_for_readers(fill: &SharedBody, patience: &mut Duration) {
    let mut ready = pin!(poll_fn(|cx| fill.poll_ready(cx).map(drop)));
    while tokio::time::timeout(STEP, &mut ready).await.is_err() {
        *patience = patience.saturating_sub(STEP);
        if patience.is_zero() {
            fill.leave_behind();
        }
    }
}

/// The maximum total time that the readers of content that is not stored wait for slower readers.
const PATIENCE: Duration = Duration::from_secs(10);

/// The shortest wait that counts. A reader that takes a piece in less time is fast enough.
const STEP: Duration = Duration::from_millis(100);

impl Drop for StoreWriter {
    fn drop(&mut self) {
        // No effect if the content is complete.
        self.fill.fail();
    }
}
