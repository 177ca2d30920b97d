//! Collapsing: of many requests for the same response, one leads and fetches it, and the others wait and share the
//! result.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::purge_log::PurgeEpoch;
use super::stored_response::StoredResponse;
use crate::error::FailureKind;

/// The fetches in progress, by name.
#[derive(Debug)]
pub struct FetchesInProgress([Mutex<HashMap<u128, watch::Receiver<FetchOutcome>>>; SHARDS]);

const SHARDS: usize = 16;

/// The state of a fetch, as its followers see it.
#[derive(Clone, Debug)]
pub enum FetchOutcome {
    /// The fetch has no result yet.
    Pending,
    /// The response has begun, and its content may still be arriving. The [`PurgeEpoch`] is when it was requested.
    Object(Arc<StoredResponse>, PurgeEpoch),
    /// The response can't be shared.
    Pass,
    /// The fetch failed with this kind of error.
    Failed(FailureKind),
    /// The leader was dropped without a result.
    Left,
}

/// The role of a request in a fetch.
pub enum FetchRole {
    Lead(FetchLeader),
    Follow(watch::Receiver<FetchOutcome>),
}

/// The leader of a fetch, which has to publish the result. If it is dropped without a result, a follower takes over.
pub struct FetchLeader {
    flights: Arc<FetchesInProgress>,
    id: u128,
    landing: watch::Sender<FetchOutcome>,
    /// Whether new requests still join this fetch.
    is_listed: bool,
}

impl FetchesInProgress {
    pub fn new() -> Arc<Self> {
        Arc::new(FetchesInProgress(std::array::from_fn(|_| Mutex::default())))
    }

    /// Joins the fetch with this name, or starts one.
    pub fn join(self: &Arc<Self>, id: u128) -> FetchRole {
        let mut shard = self.shard(id);
        if let Some(landing) = shard.get(&id) {
            return FetchRole::Follow(landing.clone());
        }
        let (landing, followers) = watch::channel(FetchOutcome::Pending);
        shard.insert(id, followers);
        FetchRole::Lead(FetchLeader { flights: self.clone(), id, landing, is_listed: true })
    }

    /// Detaches the fetch, so that new requests start another one; has no effect if another fetch has its name already.
    pub fn detach(&self, id: u128, flight: &watch::Receiver<FetchOutcome>) {
        let mut shard = self.shard(id);
        if shard.get(&id).is_some_and(|listed| listed.same_channel(flight)) {
            shard.remove(&id);
        }
    }

    fn shard(&self, id: u128) -> MutexGuard<'_, HashMap<u128, watch::Receiver<FetchOutcome>>> {
        self.0[id as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FetchLeader {
    /// Publishes a response that can be shared. New requests find it until this is dropped; by then the store has it.
    pub fn bring(&self, object: Arc<StoredResponse>, asked: PurgeEpoch) {
        self.landing.send_replace(FetchOutcome::Object(object, asked));
    }

    /// Ends the fetch without a response for new requests, and wakes all followers at once.
    pub fn end(mut self, landing: FetchOutcome) {
        self.unlist();
        self.landing.send_replace(landing);
    }

    fn unlist(&mut self) {
        if std::mem::take(&mut self.is_listed) {
            self.flights.detach(self.id, &self.landing.subscribe());
        }
    }
}

impl Drop for FetchLeader {
    fn drop(&mut self) {
        // Removed before the followers wake, because they start a new fetch.
        self.unlist();
        self.landing.send_if_modified(|landing| {
            let is_pending = matches!(landing, FetchOutcome::Pending);
            if is_pending {
                *landing = FetchOutcome::Left;
            }
            is_pending
        });
    }
}

/// Waits for the end of a fetch, or for the beginning of its response.
pub async fn wait_for_outcome(flight: &mut watch::Receiver<FetchOutcome>) -> FetchOutcome {
    match flight.wait_for(|landing| !matches!(landing, FetchOutcome::Pending)).await {
        Ok(landing) => landing.clone(),
        Err(_) => FetchOutcome::Left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn who_waits_hears_of_the_end_and_who_comes_later_begins_anew() {
        let flights = FetchesInProgress::new();
        let FetchRole::Lead(lead) = flights.join(1) else { panic!("the first leads") };
        let FetchRole::Follow(mut follower) = flights.join(1) else { panic!("the second follows") };
        assert!(matches!(flights.join(2), FetchRole::Lead(_)), "another flight");
        lead.end(FetchOutcome::Pass);
        assert!(matches!(wait_for_outcome(&mut follower).await, FetchOutcome::Pass));
        assert!(matches!(flights.join(1), FetchRole::Lead(_)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_lead_that_is_dropped_falls_to_another() {
        let flights = FetchesInProgress::new();
        let FetchRole::Lead(lead) = flights.join(1) else { panic!("the first leads") };
        let FetchRole::Follow(mut follower) = flights.join(1) else { panic!("the second follows") };
        drop(lead);
        assert!(matches!(wait_for_outcome(&mut follower).await, FetchOutcome::Left));
        assert!(matches!(flights.join(1), FetchRole::Lead(_)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_outdated_is_joined_no_more_and_ends_alone() {
        let flights = FetchesInProgress::new();
        let FetchRole::Lead(old) = flights.join(1) else { panic!("the first leads") };
        let FetchRole::Follow(follower) = flights.join(1) else { panic!("the second follows") };
        flights.detach(1, &follower);
        let FetchRole::Lead(new) = flights.join(1) else { panic!("a new one begins") };
        flights.detach(1, &follower);
        drop(old);
        assert!(matches!(flights.join(1), FetchRole::Follow(_)), "the new one is listed all the while");
        drop(new);
    }
}
