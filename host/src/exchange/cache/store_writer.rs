//! Storing a response while it arrives: its content is written to memory, to a file, or only to the clients that read
//! it now.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use http_body::Body;

use super::reader_backlog::ReaderBacklog;
use crate::body::BodyError;
use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind, causes};
use crate::exchange::response_body::ResponseBody;
use crate::generation::fetch_places::{FetchPlace, FetchPlaces};
use crate::generation::ids::RouteId;
use crate::store::Store;
use crate::store::collapse::FetchLeader;
use crate::store::disk::{UnfinishedFile, Unwritten, WrittenResponse};
use crate::store::memory_budget::{ArrivingBytes, MemoryReservation};
use crate::store::purge_log::PurgeEpoch;
use crate::store::shared_body::{Abandoned, SharedBody, WriteProgress};
use crate::store::stored_response::StoredResponse;
use crate::store::unix_time::now_ms;
use crate::system::descriptor_shares;
use crate::telemetry::failure_log::{self, Topic};
use crate::telemetry::metrics::CacheMetrics;

/// A response that is being stored while it arrives.
pub struct StoreWriter {
    pub fill: Arc<SharedBody>,
    pub object: Arc<StoredResponse>,
    /// The leader of the fetch, by which new requests find the response until it is stored.
    pub lead: Option<FetchLeader>,
    pub room: MemoryReservation,
    /// The bytes of the route's responses that arrive on disk.
    pub arriving_on_disk: ArrivingBytes,
    pub store: Arc<Store>,
    pub id: u128,
    pub key: Vec<u8>,
    pub epoch: PurgeEpoch,
    /// The maximum length of content in memory, and the maximum length of stored content, in bytes.
    pub max: u64,
    pub longest: u64,
    pub into: WriteTarget,
    /// The content that waits for slower readers, if it is not stored.
    pub backlog: ReaderBacklog,
    pub exchange: FetchName,
    /// The places of fetches that their clients have left, at the upstream.
    pub places: FetchPlaces,
    pub route: RouteId,
    /// The place of this fetch; `None` while it needs none.
    pub place: Option<FetchPlace>,
    pub figures: Arc<CacheMetrics>,
}

/// The exchange that fetches a response, as it is named in the log.
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

/// The reason for which a response is not stored while it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotStored {
    /// The content is longer than that of a stored response may be.
    TooLong,
    /// The arriving responses have no more room in the budget of this key.
    NoRoom(&'static str),
    /// The file of the response can't be written, which is logged.
    Failed,
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
        let (mut trailers, mut bytes) = (None, 0);
        loop {
            if matches!(self.into, WriteTarget::Nowhere) {
                self.backlog.make_room(&self.fill).await;
                self.room.shrink(self.fill.in_memory());
                body.limit_reads(self.backlog.next_read());
            }
            let (fill, place) = (&self.fill, &mut self.place);
            let frame = poll_fn(|cx| {
                // Clients that leave as soon as they have the head would leave any number of fetches behind.
                let has_all = fill.length() == Some(bytes);
                if fill.is_unread() && place.is_none() && !has_all {
                    *place = self.places.take(self.route);
                    if place.is_none() {
                        return Poll::Ready(Err(Abandoned));
                    }
                }
                match ready!(fill.poll_ready(cx)) {
                    Ok(()) => Pin::new(&mut body).poll_frame(cx).map(Ok),
                    Err(abandoned) => Poll::Ready(Err(abandoned)),
                }
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
                        let piece = self.backlog.own(piece);
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
            && let Err(unwritten) = spill.write(&self.fill, WriteProgress::Whole).await
        {
            self.pass(unwritten.into());
        }
        self.fill.finish(trailers.clone());
        match std::mem::replace(&mut self.into, WriteTarget::Nowhere) {
            WriteTarget::Memory => {
                let object = Arc::new(self.object.with_content(self.fill.content(trailers).into()));
                if self.store.insert(self.id, &self.key, object, &self.epoch) {
                    self.figures.stored.add(1);
                }
            }
            WriteTarget::File(spill) => {
                let (key, object) = (self.key.clone(), self.object.clone());
                let (id, epoch, length) = (self.id, self.epoch.clone(), bytes);
                if spill.finish(WrittenResponse { id, key, epoch, object, length, trailers }).await {
                    self.figures.stored.add(1);
                }
                self.store.drop_older_in_memory(self.id, &self.object);
            }
            WriteTarget::Nowhere => {
                // What arrived before the response turned out not to be stored may wait for a slow client.
                drop(body);
                self.backlog.drain(&self.fill, |bytes| self.room.shrink(bytes)).await;
            }
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
        let chosen = match &mut self.into {
            WriteTarget::Memory => match self.reserve_memory(bytes, more) {
                Ok(()) => return,
                Err(reason) => self.begin_file(bytes, reason).await,
            },
            WriteTarget::File(_) if bytes > self.longest => Err(NotStored::TooLong),
            WriteTarget::File(_) => Ok(()),
            WriteTarget::Nowhere => return,
        };
        let written = match (chosen, &mut self.into) {
            (Ok(()), WriteTarget::File(spill)) => {
                spill.write(&self.fill, WriteProgress::Arriving).await.map_err(NotStored::from)
            }
            (chosen, _) => chosen,
        };
        if let Err(reason) = written {
            self.pass(reason);
        }
    }

    /// Reserves memory for more bytes of the content.
    fn reserve_memory(&mut self, bytes: u64, more: u64) -> Result<(), NotStored> {
        let has_room = self.room.take(more, self.store.room());
        if bytes > self.max || self.fill.length().is_some_and(|length| length > self.max) {
            return Err(NotStored::TooLong);
        }
        has_room.then_some(()).ok_or(NotStored::NoRoom("cache.memory"))
    }

    /// Begins a file for content that memory has no room for.
    async fn begin_file(&mut self, bytes: u64, reason: NotStored) -> Result<(), NotStored> {
        let disk = self.store.disk().ok_or(reason)?;
        if bytes > self.longest {
            return Err(NotStored::TooLong);
        }
        let descriptor = self.backlog.descriptor().ok_or(NotStored::NoRoom(descriptor_shares::LIMIT))?;
        let (number, route) = (self.object.sequence, &self.arriving_on_disk);
        let begun = UnfinishedFile::begin(disk, &self.fill, number, route, descriptor).await;
        self.into = WriteTarget::File(Box::new(begun.ok_or(NotStored::Failed)?));
        self.room.leave();
        Ok(())
    }

    /// Stops storing the response.
    fn pass(&mut self, reason: NotStored) {
        self.into = WriteTarget::Nowhere;
        self.fill.pass();
        // The older stored response is outdated.
        self.store.remove(self.id, &self.object);
        self.store.mark_hit_for_miss(self.id, &self.key, now_ms());
        self.lead = None;
        let FetchName { request_id, route, upstream, .. } = &self.exchange;
        if let NotStored::NoRoom(limit) = reason
            && failure_log::admits(Topic::Cache, route)
        {
            let (request_id, route, upstream) = (&**request_id, &**route, &**upstream);
            let cause = "the arriving responses of the route have no room left";
            tracing::warn!(request_id, route, upstream, cause, limit, "response not stored");
        }
    }
}

impl From<Unwritten> for NotStored {
    fn from(unwritten: Unwritten) -> Self {
        match unwritten {
            Unwritten::NoRoom => NotStored::NoRoom("cache.disk.size"),
            Unwritten::Failed => NotStored::Failed,
        }
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        // No effect if the content is complete.
        self.fill.fail();
    }
}
