//! The endpoints of an upstream at the moment, with the health of each. Shared by all workers, and kept over
//! generations, so that a reload forgets nothing.
//!
//! A worker reads a snapshot and a version. It takes the lock only when the version has changed, or when a request
//! failed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::EndpointAddr;
use super::endpoint::{Endpoint, InFlight, Totals};
use super::health::{Check, EndpointFailure, Health, HealthRules, HealthState};
use crate::system::client_parts::ClientParts;
use crate::telemetry::failure_log::{self, Topic};

/// The current endpoints of an upstream, shared by all workers.
pub struct EndpointSet {
    name: Arc<str>,
    /// Grows with each change of the snapshot.
    version: AtomicU64,
    /// The number of failures in a row after which health is evaluated; 0 for never.
    consecutive: AtomicU32,
    set: Mutex<SetState>,
    /// Requests in flight at all endpoints.
    pub in_flight: Arc<InFlight>,
    /// The requests in flight that a limit counts, by client.
    limited: OnceLock<Arc<ClientParts>>,
    /// Counters of the upstream as a whole. They change rarely, so that workers may share them.
    pub events: Events,
}

/// The counts of rare events.
#[derive(Debug, Default)]
pub struct Events {
    pub retries: AtomicU64,
    /// Retries that the budget didn't allow.
    pub retries_denied: AtomicU64,
    /// The number of requests that were rejected because the upstream was full.
    pub overflows: AtomicU64,
}

/// A configured endpoint of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSpec {
    pub address: EndpointAddr,
    /// The weight, from 1 to 65535.
    pub weight: u32,
    pub tier: u32,
    pub zone: Arc<str>,
    pub draining: bool,
}

/// A copy of a set at one moment, for balancers and the status document.
pub struct EndpointSnapshot {
    pub version: u64,
    pub list: Vec<EndpointState>,
    /// Whether too few endpoints were up, so that all are offered.
    pub panicking: bool,
    pub in_flight: Arc<InFlight>,
}

/// An endpoint in a set.
pub struct EndpointState {
    pub endpoint: Arc<Endpoint>,
    /// The weight: a hundred times that of the manifest, less in a slow start.
    pub weight: u32,
    pub tier: u32,
    pub zone: Arc<str>,
    pub state: HealthState,
    pub offer: Availability,
    /// The number of ejections so far.
    pub ejections: u64,
}

/// The availability of an endpoint for a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    Up,
    Down,
    Draining,
}

struct SetState {
    rules: HealthRules,
    records: Vec<EndpointRecord>,
    snapshot: Arc<EndpointSnapshot>,
    next_interval: Option<Instant>,
    /// Whether it was logged that no more endpoints may be ejected.
    is_full: bool,
    /// The time at which the set first got endpoints; `None` before.
    begun: Option<Instant>,
    /// Addresses that an operator drains, in every upstream.
    drained: Vec<Arc<str>>,
}

struct EndpointRecord {
    endpoint: Arc<Endpoint>,
    wanted: EndpointSpec,
    health: Health,
    ejections: u64,
    /// Whether an ejection was logged, and no request has succeeded since.
    is_ejection_logged: bool,
    /// The metrics at the last interval.
    seen: Totals,
}

/// The part of an endpoint's requests that fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EjectionReach {
    /// Some requests fail, as far as is known.
    Failing,
    /// All requests fail.
    Dead,
}

/// The maximum number of endpoints of an upstream, from the manifest, its files and DNS together: each is checked, and looked
/// at for each request. As many as the addresses of a name.
pub const MAX_ENDPOINTS: usize = 1024;

/// The time after the first endpoint in which new ones start with their whole share: names are looked up one by one.
const BEGINNING: Duration = Duration::from_secs(5);

impl EndpointSet {
    /// Returns a set without endpoints.
    pub fn new(name: Arc<str>) -> Self {
        let in_flight = Arc::<InFlight>::default();
        let snapshot =
            EndpointSnapshot { version: 0, list: Vec::new(), panicking: false, in_flight: in_flight.clone() };
        let (records, drained) = (Vec::new(), Vec::new());
        let (rules, snapshot) = (HealthRules::default(), Arc::new(snapshot));
        let set = SetState { rules, records, snapshot, next_interval: None, is_full: false, begun: None, drained };
        let (version, consecutive) = (AtomicU64::new(0), AtomicU32::new(0));
        let (set, events, limited) = (Mutex::new(set), Events::default(), OnceLock::new());
        EndpointSet { name, version, consecutive, set, in_flight, limited, events }
    }

    /// Returns the requests in flight that a limit counts, by client.
    pub fn limited(&self) -> &Arc<ClientParts> {
        self.limited.get_or_init(|| Arc::new(ClientParts::new(0)))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the version of the snapshot, which grows with each change.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns the current snapshot.
    pub fn members(&self) -> Arc<EndpointSnapshot> {
        self.lock().snapshot.clone()
    }

    /// Replaces the rules for checks and failures.
    pub fn set_rules(&self, rules: &HealthRules, now: Instant) {
        let mut set = self.lock();
        if set.rules != *rules {
            set.rules = rules.clone();
            if !rules.are_checked {
                set.records.iter_mut().for_each(|record| record.health.forget_checks());
            }
            self.publish(&mut set, now);
        }
        let consecutive = rules.outliers.as_ref().map_or(0, |outliers| outliers.consecutive);
        self.consecutive.store(consecutive, Ordering::Relaxed);
    }

    /// Replaces the endpoints of the set by `wanted`. An endpoint that was in the set before keeps its health and its
    /// counters.
    #[expect(clippy::mutable_key_type, reason = "settings of TLS are compared by their digest")]
    pub fn set_members(&self, wanted: Vec<EndpointSpec>, now: Instant) {
        let mut set = self.lock();
        let first = now.saturating_duration_since(*set.begun.get_or_insert(now)) < BEGINNING;
        let before = std::mem::take(&mut set.records).into_iter();
        // With other settings of TLS, an endpoint is another one.
        let mut before: HashMap<EndpointAddr, EndpointRecord> =
            before.map(|record| (record.wanted.address.clone(), record)).collect();
        let mut seen = HashSet::new();
        for wanted in wanted {
            if !seen.insert(wanted.address.clone()) {
                continue;
            }
            let record = match before.remove(&wanted.address) {
                Some(record) => EndpointRecord { wanted, ..record },
                None if first => EndpointRecord::new(wanted, Health::default(), now),
                None => EndpointRecord::new(wanted, Health::newly_added(now), now),
            };
            set.records.push(record);
        }
        self.publish(&mut set, now);
    }

    /// Records the result of a health check.
    pub fn record_check(&self, address: &EndpointAddr, check: Check, why: &str, now: Instant) {
        let mut set = self.lock();
        let SetState { rules, records, .. } = &mut *set;
        let Some(record) = records.iter_mut().find(|record| record.wanted.address == *address) else { return };
        if !record.health.record_check(check, rules, now) {
            return;
        }
        let (upstream, endpoint) = (&*self.name, &*address.text);
        match check {
            _ if !failure_log::admits(Topic::Endpoint, upstream) => {}
            Check::Passed => tracing::info!(upstream, endpoint, "endpoint is up: health checks pass"),
            Check::Failed => tracing::warn!(upstream, endpoint, why, "endpoint is down: health checks fail"),
        }
        self.publish(&mut set, now);
    }

    /// Records that a request has failed at an endpoint, the last of `in_a_row` failures in a row.
    pub fn record_failure(&self, endpoint: &Endpoint, failed: EndpointFailure, in_a_row: u32, now: Instant) {
        let consecutive = self.consecutive.load(Ordering::Relaxed);
        if consecutive == 0 || !in_a_row.is_multiple_of(consecutive) {
            return;
        }
        let mut set = self.lock();
        let Some(index) = set.records.iter().position(|record| std::ptr::eq(&*record.endpoint, endpoint)) else {
            return;
        };
        let outliers = set.rules.outliers.as_ref();
        let is_dead =
            outliers.is_some_and(|outliers| outliers.is_dead(failed, in_a_row)) && set.spares(index, consecutive);
        let extent = if is_dead { EjectionReach::Dead } else { EjectionReach::Failing };
        if self.eject(&mut set, index, extent, &format!("{in_a_row} failures in a row"), now) {
            self.publish(&mut set, now);
        }
    }

    /// Records that a request has succeeded at an endpoint after others had failed. If all endpoints are in use because
    /// none is up, that ends the endpoint's ejection: it is the one that can serve. Returns whether the ejection
    /// was logged, and no return since.
    pub fn record_recovery(&self, endpoint: &Endpoint, now: Instant) -> bool {
        let mut set = self.lock();
        let is_panicking = set.snapshot.panicking;
        let known = set.records.iter_mut().find(|record| std::ptr::eq(&*record.endpoint, endpoint));
        let Some(record) = known.filter(|record| is_panicking || !record.health.is_ejected()) else { return false };
        let was_logged = std::mem::take(&mut record.is_ejection_logged);
        if record.health.readmit(now) {
            self.publish(&mut set, now);
        }
        was_logged
    }

    /// Records that a request could not connect to any of these endpoints. If they are all that are up while others are
    /// ejected, they are ejected as well, so that all are used. Returns whether that was the case.
    pub fn is_exhausted_by(&self, tried: &[&Endpoint], now: Instant) -> bool {
        let mut set = self.lock();
        let is_up = |record: &EndpointRecord| record.state(&set.drained) == HealthState::Up;
        let up: Vec<usize> = (0..set.records.len()).filter(|index| is_up(&set.records[*index])).collect();
        let is_tried =
            |index: &usize| tried.iter().any(|endpoint| std::ptr::eq(&*set.records[*index].endpoint, *endpoint));
        let has_ejected = set.records.iter().any(|record| record.state(&set.drained) == HealthState::Ejected);
        if set.rules.panic == 0 || !has_ejected || !up.iter().all(is_tried) {
            return false;
        }
        for index in up {
            self.eject(&mut set, index, EjectionReach::Dead, "no endpoint that is up can be connected to", now);
        }
        self.publish(&mut set, now);
        set.snapshot.panicking
    }

    /// Drains an endpoint, or ends its draining. Returns whether the set has this endpoint.
    pub fn drain(&self, address: &str, drains: bool, now: Instant) -> bool {
        let mut set = self.lock();
        let before = set.drained.len();
        set.drained.retain(|drained| **drained != *address);
        let was_drained = set.drained.len() < before;
        let known = set.records.iter().find(|record| *record.wanted.address.text == *address);
        let known = known.map(|record| record.wanted.address.text.clone());
        let is_known = known.is_some();
        set.drained.extend(known.filter(|_| drains));
        self.publish(&mut set, now);
        is_known || was_drained
    }

    /// Advances time: ends ejections, advances slow starts, and evaluates the counters of an interval.
    pub fn tick(&self, now: Instant) {
        let mut set = self.lock();
        let mut changes = false;
        let SetState { records, rules, is_full, .. } = &mut *set;
        for record in records {
            if record.health.tick(rules, now) {
                let (upstream, endpoint) = (&*self.name, &*record.wanted.address.text);
                // It is on probation: its next failure ejects it again, unless a request succeeds before.
                let consecutive = rules.outliers.as_ref().map_or(0, |outliers| outliers.consecutive);
                let failures = consecutive.saturating_sub(1);
                record.endpoint.failures.store(failures, Ordering::Relaxed);
                if failures > 0 {
                    // A dead endpoint is on probation again and again; the log says its first success.
                    tracing::debug!(upstream, endpoint, "ejection ended");
                } else {
                    record.is_ejection_logged = false;
                    if failure_log::admits(Topic::Endpoint, upstream) {
                        tracing::info!(upstream, endpoint, "ejection ended");
                    }
                }
                *is_full = false;
                changes = true;
            }
            changes |= record.health.is_in_slow_start(rules);
        }
        let interval = set.rules.outliers.as_ref().map(|outliers| outliers.interval);
        if let Some(interval) = interval
            && now >= *set.next_interval.get_or_insert(now + interval)
        {
            set.next_interval = Some(now + interval);
            self.look_at_interval(&mut set, now);
            changes = true;
        }
        if changes {
            self.publish(&mut set, now);
        }
    }

    fn look_at_interval(&self, set: &mut SetState, now: Instant) {
        let Some(outliers) = set.rules.outliers.clone() else { return };
        let latest = |record: &mut EndpointRecord| {
            let totals = record.endpoint.totals();
            let since = totals.since(&std::mem::replace(&mut record.seen, totals));
            let enough = since.total_responses() + since.failures >= outliers.requests;
            (since, since.mean_latency_us().filter(|_| enough))
        };
        let figures: Vec<(Totals, Option<u64>)> = set.records.iter_mut().map(latest).collect();
        let mut latencies: Vec<u64> = figures.iter().filter_map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        // Of two, one alone can't be told from the other.
        let median = latencies.get((latencies.len().max(1) - 1) / 2).copied().filter(|_| latencies.len() > 2);
        for (index, (since, latency)) in figures.into_iter().enumerate() {
            let requests = since.total_responses() + since.failures;
            let failures = since.failures + since.bad_responses;
            if outliers.is_outlier(requests, failures, latency, median) {
                let latency = latency.map_or_else(String::new, |latency| format!(", mean latency {latency} µs"));
                let why = format!("{failures} of {requests} requests failed{latency}");
                self.eject(set, index, EjectionReach::Failing, &why, now);
            } else {
                set.records[index].health.forgive_ejection();
            }
        }
    }

    /// Ejects an endpoint, unless too many are ejected already. A dead endpoint is always ejected, because it can serve
    /// nothing.
    fn eject(&self, set: &mut SetState, index: usize, extent: EjectionReach, why: &str, now: Instant) -> bool {
        let Some(outliers) = set.rules.outliers.clone() else { return false };
        let out = set.records.iter().filter(|record| record.health.is_ejected()).count();
        let Some(record) = set.records.get_mut(index).filter(|record| !record.health.is_ejected()) else {
            return false;
        };
        let (upstream, endpoint) = (&*self.name, &*record.wanted.address.text);
        let max = outliers.max_ejected(set.snapshot.list.len());
        if out >= max && (extent == EjectionReach::Failing || max == 0) {
            // Said once, not with each failure.
            if max > 0 && !std::mem::replace(&mut set.is_full, true) {
                tracing::warn!(upstream, endpoint, why, "ejection limit reached: endpoint not ejected");
            }
            return false;
        }
        let time = record.health.eject(&outliers, now);
        record.ejections += 1;
        if std::mem::replace(&mut record.is_ejection_logged, true) {
            tracing::debug!(upstream, endpoint, why, ?time, "ejected again");
        } else if failure_log::admits(Topic::Endpoint, upstream) {
            tracing::warn!(upstream, endpoint, why, ?time, "ejected");
        }
        true
    }

    /// Makes a new snapshot, if anything is other than in the last.
    fn publish(&self, set: &mut SetState, now: Instant) {
        let version = set.snapshot.version + 1;
        let next = set.members(version, self.in_flight.clone(), now);
        if next.panicking && !set.snapshot.panicking {
            tracing::warn!(upstream = &*self.name, "panic threshold reached: all endpoints are used");
        }
        if !next.is_like(&set.snapshot) {
            set.snapshot = Arc::new(next);
            self.version.store(version, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, SetState> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SetState {
    /// Whether requests can be served without an endpoint: another one is up and answers, or all are used because none
    /// is up.
    fn spares(&self, index: usize, consecutive: u32) -> bool {
        let answers = |record: &EndpointRecord| {
            record.state(&self.drained) == HealthState::Up
                && record.endpoint.failures.load(Ordering::Relaxed) < consecutive
        };
        let others = || self.records.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, record)| record);
        others().any(answers) || self.rules.panic > 0 && self.records.len() > 1
    }

    fn members(&self, version: u64, in_flight: Arc<InFlight>, now: Instant) -> EndpointSnapshot {
        let states: Vec<HealthState> = self.records.iter().map(|record| record.state(&self.drained)).collect();
        let count = |wanted: fn(HealthState) -> bool| states.iter().filter(|state| wanted(**state)).count();
        let (up, in_use) = (count(|state| state == HealthState::Up), count(|state| state != HealthState::Draining));
        let panicking = up * 100 < in_use * self.rules.panic as usize;
        let member = |(record, state): (&EndpointRecord, &HealthState)| EndpointState {
            endpoint: record.endpoint.clone(),
            weight: record.wanted.weight * record.health.share(&self.rules, now),
            tier: record.wanted.tier,
            zone: record.wanted.zone.clone(),
            state: *state,
            offer: match state {
                HealthState::Up => Availability::Up,
                HealthState::Draining => Availability::Draining,
                _ if panicking => Availability::Up,
                _ => Availability::Down,
            },
            ejections: record.ejections,
        };
        EndpointSnapshot { version, list: self.records.iter().zip(&states).map(member).collect(), panicking, in_flight }
    }
}

impl EndpointSnapshot {
    fn is_like(&self, other: &EndpointSnapshot) -> bool {
        self.panicking == other.panicking
            && self.list.len() == other.list.len()
            && self.list.iter().zip(&other.list).all(|(own, other)| own.is_like(other))
    }
}

impl EndpointState {
    fn is_like(&self, other: &EndpointState) -> bool {
        Arc::ptr_eq(&self.endpoint, &other.endpoint)
            && (self.weight, self.tier, &self.zone) == (other.weight, other.tier, &other.zone)
            && (self.state, self.offer, self.ejections) == (other.state, other.offer, other.ejections)
    }
}

impl EndpointRecord {
    fn new(wanted: EndpointSpec, health: Health, now: Instant) -> Self {
        let endpoint = Arc::new(Endpoint::new(wanted.address.clone(), now));
        EndpointRecord { endpoint, wanted, health, ejections: 0, is_ejection_logged: false, seen: Totals::default() }
    }

    fn state(&self, drained: &[Arc<str>]) -> HealthState {
        if self.wanted.draining || drained.contains(&self.wanted.address.text) {
            return HealthState::Draining;
        }
        self.health.state()
    }
}
