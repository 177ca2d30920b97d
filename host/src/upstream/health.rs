//! The health of one endpoint, from the results of checks and requests. Pure rules without sockets; callers pass `now`.

use std::time::{Duration, Instant};

use super::status_codes::StatusCodes;

/// The rules of an upstream for checks and failures.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthRules {
    /// Whether health checks are configured.
    pub are_checked: bool,
    /// The number of passed checks in a row that make an endpoint healthy again.
    pub healthy: u32,
    /// The number of failed checks in a row that make an endpoint unhealthy.
    pub unhealthy: u32,
    /// The rules for ejections; `None` if failures of requests eject no endpoint.
    pub outliers: Option<OutlierRules>,
    /// The duration of slow start; `None` for none.
    pub slow_start: Option<Duration>,
    /// The percentage of healthy endpoints below which all endpoints are used, because the healthy ones would be
    /// overloaded.
    pub panic: u32,
}

/// The rules by which failing or slow requests eject an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierRules {
    /// The number of failures in a row that eject an endpoint; 0 for never.
    pub consecutive: u32,
    /// Status codes that count as failures.
    pub statuses: StatusCodes,
    /// Failures per hundred requests of an interval.
    pub error_rate: Option<u32>,
    /// Mean latency, in percent of the median of all endpoints.
    pub latency: Option<u32>,
    /// The minimum of requests in an interval; below it, error rate and latency are not evaluated.
    pub requests: u64,
    pub interval: Duration,
    /// The duration of the first ejection; the n-th in a row takes n times as long.
    pub ejection: Duration,
    pub longest: Duration,
    /// The maximum percentage of endpoints that are ejected at a time; dead endpoints do not count.
    pub most: u32,
}

/// The health of one endpoint. The default has been up from the beginning.
#[derive(Clone, Debug, Default)]
pub struct Health {
    checks: CheckState,
    /// Checks in a row that contradict `checks`.
    contrary: u32,
    ejected_until: Option<Instant>,
    /// Ejections not yet made up for.
    ejections: u32,
    /// The time since which the endpoint is back, or has joined the others.
    back_since: Option<Instant>,
}

/// The state by health checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CheckState {
    /// No check has finished. The endpoint is used until the first check fails.
    #[default]
    Unknown,
    Passing,
    Failing,
}

/// The state of an endpoint, which decides whether it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    Up,
    /// The endpoint's checks fail.
    Failing,
    /// The endpoint is ejected: too many of its requests failed, or it was too slow.
    Ejected,
    /// An operator drains the endpoint.
    Draining,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Passed,
    Failed,
}

/// The multiple of `consecutive` at which failed exchanges in a row mean that an endpoint is dead. With an endpoint
/// that answers every other request, five fail in a row each minute, and twenty once in weeks.
const DEAD: u32 = 4;

/// The part of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointFailure {
    /// The connection: the request could not have caused the failure.
    Connect,
    /// The response: it didn't arrive, was cut off or malformed, or its status counts as a failure.
    Exchange,
}

/// The least share in a slow start, in percent: a request now and then is what warms it.
const MIN_SHARE_PERCENT: u32 = 10;

impl Default for HealthRules {
    /// The defaults of the manifest reference.
    fn default() -> Self {
        let outliers = Some(OutlierRules::default());
        HealthRules { are_checked: false, healthy: 2, unhealthy: 3, outliers, slow_start: None, panic: 1 }
    }
}

impl Default for OutlierRules {
    /// Five failures in a row are no accident; ten seconds are time to restart something.
    fn default() -> Self {
        OutlierRules {
            consecutive: 5,
            statuses: StatusCodes::default(),
            error_rate: None,
            latency: None,
            requests: 20,
            interval: Duration::from_secs(10),
            ejection: Duration::from_secs(10),
            longest: Duration::from_secs(300),
            most: 50,
        }
    }
}

impl Health {
    /// Returns the health of an endpoint that has joined others.
    pub fn newly_added(now: Instant) -> Self {
        Health { back_since: Some(now), ..Health::default() }
    }

    /// Records a check. Returns whether the check changed the endpoint's state.
    pub fn record_check(&mut self, check: Check, rules: &HealthRules, now: Instant) -> bool {
        let (shown, needed) = match check {
            Check::Passed => (CheckState::Passing, rules.healthy),
            Check::Failed => (CheckState::Failing, rules.unhealthy),
        };
        if shown == self.checks {
            self.contrary = 0;
            return false;
        }
        self.contrary += 1;
        // The first check of all decides at once.
        if self.checks != CheckState::Unknown && self.contrary < needed {
            return false;
        }
        let returns = self.checks == CheckState::Failing;
        (self.checks, self.contrary) = (shown, 0);
        if returns {
            self.back_since = Some(now);
        }
        returns || shown == CheckState::Failing
    }

    /// Forgets the results of checks, when there are no checks any more.
    pub fn forget_checks(&mut self) {
        (self.checks, self.contrary) = (CheckState::Unknown, 0);
    }

    /// Ejects the endpoint. Returns the time for which the endpoint is ejected.
    pub fn eject(&mut self, outliers: &OutlierRules, now: Instant) -> Duration {
        self.ejections = self.ejections.saturating_add(1);
        let time = outliers.ejection.saturating_mul(self.ejections).min(outliers.longest);
        self.ejected_until = now.checked_add(time);
        time
    }

    /// Ends an ejection early. Returns `false` if there is none.
    pub fn readmit(&mut self, now: Instant) -> bool {
        let was_ejected = self.ejected_until.take().is_some();
        if was_ejected {
            self.back_since = Some(now);
        }
        was_ejected
    }

    /// Advances time. Returns whether an ejection has ended.
    pub fn tick(&mut self, rules: &HealthRules, now: Instant) -> bool {
        let slow_start = rules.slow_start.unwrap_or_default();
        // Kept a little longer than it counts, so that the last step is still told of.
        self.back_since.take_if(|since| now.saturating_duration_since(*since) > slow_start * 2);
        let ended = self.ejected_until.take_if(|until| *until <= now).is_some();
        if ended {
            self.back_since = Some(now);
        }
        ended
    }

    /// Reduces the count of ejections, because an interval has passed without failures.
    pub fn forgive_ejection(&mut self) {
        if self.ejected_until.is_none() {
            self.ejections = self.ejections.saturating_sub(1);
        }
    }

    pub fn is_ejected(&self) -> bool {
        self.ejected_until.is_some()
    }

    /// Returns the state of the endpoint; failed checks outweigh ejection.
    pub fn state(&self) -> HealthState {
        match self {
            Health { checks: CheckState::Failing, .. } => HealthState::Failing,
            Health { ejected_until: Some(_), .. } => HealthState::Ejected,
            _ => HealthState::Up,
        }
    }

    /// Whether the share of the endpoint is still growing in slow start.
    pub fn is_in_slow_start(&self, rules: &HealthRules) -> bool {
        self.back_since.is_some() && rules.slow_start.is_some()
    }

    /// Returns the share of the endpoint, in percent of its weight, in steps of ten.
    pub fn share(&self, rules: &HealthRules, now: Instant) -> u32 {
        let (Some(since), Some(slow_start)) = (self.back_since, rules.slow_start) else { return 100 };
        let passed = now.saturating_duration_since(since);
        if passed >= slow_start {
            return 100;
        }
        let percent = (passed.as_millis() * 100 / slow_start.as_millis().max(1)) as u32;
        (percent / 10 * 10).max(MIN_SHARE_PERCENT)
    }
}

impl HealthState {
    pub fn word(self) -> &'static str {
        match self {
            HealthState::Up => "up",
            HealthState::Failing => "failing",
            HealthState::Ejected => "ejected",
            HealthState::Draining => "draining",
        }
    }

    /// All states, in the order of their declaration.
    pub const ALL: [HealthState; 4] =
        [HealthState::Up, HealthState::Failing, HealthState::Ejected, HealthState::Draining];
}

impl OutlierRules {
    /// Returns how many of `endpoints` endpoints may be ejected at a time: at least one, unless there is no other.
    pub fn max_ejected(&self, endpoints: usize) -> usize {
        let share = endpoints * self.most as usize / 100;
        if endpoints > 1 && self.most > 0 { share.max(1).min(endpoints) } else { 0 }
    }

    /// Whether an endpoint serves nothing, so that all its requests would fail. Failed exchanges may be caused by one
    /// client's requests, so more of them in a row are needed than failed connections.
    pub fn is_dead(&self, failed: EndpointFailure, in_a_row: u32) -> bool {
        let needed = match failed {
            EndpointFailure::Connect => self.consecutive,
            EndpointFailure::Exchange => self.consecutive.saturating_mul(DEAD),
        };
        self.consecutive > 0 && in_a_row >= needed
    }

    /// Whether an interval's counts make an endpoint an outlier. `median_us` is the median of the endpoints' latencies.
    pub fn is_outlier(&self, requests: u64, failures: u64, latency_us: Option<u64>, median_us: Option<u64>) -> bool {
        if requests < self.requests.max(1) {
            return false;
        }
        let fails = self.error_rate.is_some_and(|percent| failures * 100 >= requests * u64::from(percent));
        let lags = match (self.latency, latency_us, median_us) {
            (Some(percent), Some(own), Some(median)) => own * 100 > median * u64::from(percent),
            _ => false,
        };
        fails || lags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outliers() -> OutlierRules {
        OutlierRules {
            consecutive: 5,
            statuses: StatusCodes::default(),
            error_rate: Some(50),
            latency: Some(400),
            requests: 20,
            interval: Duration::from_secs(10),
            ejection: Duration::from_secs(10),
            longest: Duration::from_secs(25),
            most: 50,
        }
    }

    fn rules() -> HealthRules {
        let slow_start = Some(Duration::from_secs(30));
        HealthRules { outliers: Some(outliers()), slow_start, ..HealthRules::default() }
    }

    fn after(now: Instant, seconds: u64) -> Instant {
        now + Duration::from_secs(seconds)
    }

    #[test]
    fn checks_turn_the_state_after_their_thresholds() {
        let (now, rules) = (Instant::now(), rules());
        let mut health = Health::default();
        assert!(!health.record_check(Check::Passed, &rules, now));
        let steps = [
            (Check::Failed, HealthState::Up),
            (Check::Failed, HealthState::Up),
            (Check::Passed, HealthState::Up),
            (Check::Failed, HealthState::Up),
            (Check::Failed, HealthState::Up),
            (Check::Failed, HealthState::Failing),
            (Check::Passed, HealthState::Failing),
            (Check::Failed, HealthState::Failing),
            (Check::Passed, HealthState::Failing),
            (Check::Passed, HealthState::Up),
        ];
        for (at, (check, state)) in steps.into_iter().enumerate() {
            let before = health.state();
            let turned = health.record_check(check, &rules, now);
            assert_eq!((health.state(), turned), (state, before != state), "step {at}");
        }
    }

    #[test]
    fn the_first_check_decides_at_once() {
        let mut health = Health::default();
        assert_eq!(health.state(), HealthState::Up);
        assert!(health.record_check(Check::Failed, &rules(), Instant::now()));
        assert_eq!(health.state(), HealthState::Failing);
    }

    #[test]
    fn ejections_grow_end_and_are_made_up_for() {
        let (now, outliers) = (Instant::now(), outliers());
        let mut health = Health::default();
        for seconds in [10, 20, 25, 25] {
            assert_eq!(health.eject(&outliers, now), Duration::from_secs(seconds));
            assert_eq!(health.state(), HealthState::Ejected);
            assert!(!health.tick(&rules(), after(now, seconds - 1)));
            health.forgive_ejection();
            assert!(health.tick(&rules(), after(now, seconds)) && health.state() == HealthState::Up);
        }
        (0..9).for_each(|_| health.forgive_ejection());
        assert_eq!(health.eject(&outliers, now), Duration::from_secs(10));
    }

    #[test]
    fn returning_endpoint_gets_its_share_in_steps() {
        let (now, rules) = (Instant::now(), rules());
        let mut health = Health::default();
        assert_eq!(health.share(&rules, now), 100);
        health.eject(&outliers(), now);
        assert!(health.tick(&rules, after(now, 10)));
        let shares = [10, 11, 16, 25, 39, 40].map(|seconds| health.share(&rules, after(now, seconds)));
        assert_eq!(shares, [10, 10, 20, 50, 90, 100]);
        assert_eq!(Health::newly_added(now).share(&rules, now), 10);
        assert_eq!(Health::newly_added(now).share(&HealthRules { slow_start: None, ..rules }, now), 100);
    }

    #[test]
    fn an_intervals_figures_condemn_who_fails_or_lags() {
        let outliers = outliers();
        let cases = [
            ((19, 19, None, None), false),
            ((20, 10, None, None), true),
            ((20, 9, None, None), false),
            ((20, 0, Some(401), Some(100)), true),
            ((20, 0, Some(400), Some(100)), false),
            ((19, 0, Some(900), Some(100)), false),
        ];
        for ((requests, failures, latency, median), condemned) in cases {
            let is_outlier = outliers.is_outlier(requests, failures, latency, median);
            assert_eq!(is_outlier, condemned, "{requests} {failures} {latency:?}");
        }
        assert_eq!([1, 2, 3, 10].map(|endpoints| outliers.max_ejected(endpoints)), [0, 1, 1, 5]);
    }

    #[test]
    fn an_endpoint_without_connections_is_dead_sooner_than_one_that_fails_requests() {
        let outliers = outliers();
        assert_eq!([4, 5].map(|failures| outliers.is_dead(EndpointFailure::Connect, failures)), [false, true]);
        assert_eq!(
            [5, 19, 20].map(|failures| outliers.is_dead(EndpointFailure::Exchange, failures)),
            [false, false, true]
        );
        let never = OutlierRules { consecutive: 0, ..outliers };
        assert!(!never.is_dead(EndpointFailure::Connect, 1_000));
    }

    #[test]
    fn an_endpoint_that_is_readmitted_starts_slowly() {
        let (now, rules) = (Instant::now(), rules());
        let mut health = Health::default();
        assert!(!health.readmit(now));
        health.eject(&outliers(), now);
        assert!(health.readmit(now) && health.state() == HealthState::Up);
        assert_eq!(health.share(&rules, now), MIN_SHARE_PERCENT);
    }
}
