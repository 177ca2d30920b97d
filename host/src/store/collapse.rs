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
    /// The fetch has no result yet, and its request has not been sent.
    Pending,
    /// The endpoint, or the files of the route, have been asked, and there is no result yet.
    Asked,
    /// The response has begun, and its content may still be arriving. The [`PurgeEpoch`] is that of its request.
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
    fetches: Arc<FetchesInProgress>,
    id: u128,
    outcome: watch::Sender<FetchOutcome>,
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
        if let Some(outcome) = shard.get(&id) {
            return FetchRole::Follow(outcome.clone());
        }
        let (outcome, followers) = watch::channel(FetchOutcome::Pending);
        shard.insert(id, followers);
        FetchRole::Lead(FetchLeader { fetches: self.clone(), id, outcome, is_listed: true })
    }

    /// Detaches the fetch, so that new requests start another one; has no effect if another fetch has its name already.
    pub fn detach(&self, id: u128, outcome: &watch::Receiver<FetchOutcome>) {
        let mut shard = self.shard(id);
        if shard.get(&id).is_some_and(|listed| listed.same_channel(outcome)) {
            shard.remove(&id);
        }
    }

    fn shard(&self, id: u128) -> MutexGuard<'_, HashMap<u128, watch::Receiver<FetchOutcome>>> {
        self.0[id as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FetchOutcome {
    /// Whether there is no result yet.
    pub fn is_pending(&self) -> bool {
        matches!(self, FetchOutcome::Pending | FetchOutcome::Asked)
    }
}

impl FetchLeader {
    /// Records that the request is sent now. Followers wait longer from then on.
    pub fn ask(&self) {
        self.outcome.send_if_modified(|outcome| {
            if outcome.is_pending() {
                *outcome = FetchOutcome::Asked;
            }
            // Nothing to wake followers for.
            false
        });
    }

    /// Publishes a response that can be shared. New requests find it until this is dropped; by then the store has it.
    pub fn bring(&self, object: Arc<StoredResponse>, epoch: PurgeEpoch) {
        self.outcome.send_replace(FetchOutcome::Object(object, epoch));
    }

    /// Ends the fetch without a response for new requests, and wakes all followers at once.
    pub fn end(mut self, outcome: FetchOutcome) {
        self.unlist();
        self.outcome.send_replace(outcome);
    }

    fn unlist(&mut self) {
        if std::mem::take(&mut self.is_listed) {
            self.fetches.detach(self.id, &self.outcome.subscribe());
        }
    }
}

impl Drop for FetchLeader {
    fn drop(&mut self) {
        // Removed before the followers wake, because they start a new fetch.
        self.unlist();
        self.outcome.send_if_modified(|outcome| {
            let is_pending = outcome.is_pending();
            if is_pending {
                *outcome = FetchOutcome::Left;
            }
            is_pending
        });
    }
}

/// Waits for the end of a fetch, or for the beginning of its response.
pub async fn wait_for_outcome(outcome: &mut watch::Receiver<FetchOutcome>) -> FetchOutcome {
    match outcome.wait_for(|outcome| !outcome.is_pending()).await {
        Ok(outcome) => outcome.clone(),
        Err(_) => FetchOutcome::Left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn followers_get_the_end_and_later_requests_fetch_again() {
        let fetches = FetchesInProgress::new();
        let FetchRole::Lead(lead) = fetches.join(1) else { panic!("the first leads") };
        let FetchRole::Follow(mut follower) = fetches.join(1) else { panic!("the second follows") };
        assert!(matches!(fetches.join(2), FetchRole::Lead(_)), "another flight");
        lead.end(FetchOutcome::Pass);
        assert!(matches!(wait_for_outcome(&mut follower).await, FetchOutcome::Pass));
        assert!(matches!(fetches.join(1), FetchRole::Lead(_)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_lead_that_is_dropped_falls_to_another() {
        let fetches = FetchesInProgress::new();
        let FetchRole::Lead(lead) = fetches.join(1) else { panic!("the first leads") };
        let FetchRole::Follow(mut follower) = fetches.join(1) else { panic!("the second follows") };
        drop(lead);
        assert!(matches!(wait_for_outcome(&mut follower).await, FetchOutcome::Left));
        assert!(matches!(fetches.join(1), FetchRole::Lead(_)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn outdated_fetch_is_not_joined_and_ends_alone() {
        let fetches = FetchesInProgress::new();
        let FetchRole::Lead(old) = fetches.join(1) else { panic!("the first leads") };
        let FetchRole::Follow(follower) = fetches.join(1) else { panic!("the second follows") };
        fetches.detach(1, &follower);
        let FetchRole::Lead(new) = fetches.join(1) else { panic!("a new one begins") };
        fetches.detach(1, &follower);
        drop(old);
        assert!(matches!(fetches.join(1), FetchRole::Follow(_)), "the new one is listed all the while");
        drop(new);
    }
}
