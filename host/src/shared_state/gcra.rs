//! The generic cell rate algorithm (GCRA): a token bucket that is one time, the time at which the bucket is full again.
//! Times are in nanoseconds.

use super::SharedError;

/// The rate at which a bucket fills, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeRate {
    /// The tokens that are added in each period.
    pub tokens: u32,
    /// The period, in milliseconds.
    pub period_ms: u64,
    /// The most tokens that a bucket holds.
    pub burst: u32,
}

/// The result of an attempt to take tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whether the tokens were taken.
    pub allowed: bool,
    /// The tokens that are left.
    pub remaining: u32,
    /// The time until as many tokens are there, rounded up; 0 if they were taken.
    pub retry_after_ms: u64,
    /// The time until the bucket is full, rounded up.
    pub reset_after_ms: u64,
}

/// A rate in the terms of the algorithm, for one call.
pub(super) struct GcraLimiter {
    /// The time in which one token is added.
    interval: u64,
    /// The time in which an empty bucket is filled.
    burst: u64,
    /// The time in which the tokens of the call are added.
    cost: u64,
}

const NS_PER_MS: u64 = 1_000_000;

/// The longest period: a quota for each year.
const MAX_PERIOD_MS: u64 = 366 * 24 * 3600 * 1000;

impl TakeRate {
    /// Returns the rate for a call that takes `cost` tokens; an error if no bucket of the rate ever has as many.
    pub(super) fn limiter(self, cost: u32) -> Result<GcraLimiter, SharedError> {
        let TakeRate { tokens, period_ms, burst } = self;
        if tokens == 0 || !(1..=MAX_PERIOD_MS).contains(&period_ms) || burst == 0 || cost > burst {
            return Err(SharedError::BadRate);
        }
        let interval = (period_ms * NS_PER_MS / u64::from(tokens)).max(1);
        let times = |count: u32| interval.saturating_mul(u64::from(count)).min(u64::MAX / 4);
        Ok(GcraLimiter { interval, burst: times(burst), cost: times(cost) })
    }
}

impl GcraLimiter {
    /// Takes the tokens from a bucket that is full at `full_at`; returns when it is full afterwards.
    pub(super) fn take(&self, full_at: u64, now: u64) -> (u64, Taken) {
        // A bucket of a rate that was greater before holds no debt beyond its size.
        let before = full_at.clamp(now, now.saturating_add(self.burst));
        let after = before.saturating_add(self.cost);
        let missing = (after - now).saturating_sub(self.burst);
        let full_at = if missing == 0 { after } else { before };
        (full_at, self.taken(missing, full_at - now))
    }

    /// Returns the result of an attempt: `missing` is the time until enough tokens are there, and `used` the time until the
    /// bucket is full.
    pub(super) fn taken(&self, missing: u64, used: u64) -> Taken {
        Taken {
            allowed: missing == 0,
            remaining: u32::try_from(self.burst.saturating_sub(used) / self.interval).unwrap_or(u32::MAX),
            retry_after_ms: missing.div_ceil(NS_PER_MS),
            reset_after_ms: used.div_ceil(NS_PER_MS),
        }
    }

    /// The time in which an empty bucket is filled, in nanoseconds.
    pub(super) fn burst(&self) -> u64 {
        self.burst
    }

    /// The time in which the tokens of the call are added, in nanoseconds.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = NS_PER_MS;

    fn taken(allowed: bool, remaining: u32, retry_after_ms: u64, reset_after_ms: u64) -> Taken {
        Taken { allowed, remaining, retry_after_ms, reset_after_ms }
    }

    #[test]
    fn a_bucket_gives_a_burst_and_then_the_rate() {
        let one = TakeRate { tokens: 10, period_ms: 1000, burst: 3 }.limiter(1).unwrap();
        let start = 5_000 * MS;
        let (full_at, first) = one.take(0, start);
        assert_eq!(first, taken(true, 2, 0, 100));
        let (full_at, second) = one.take(full_at, start);
        assert_eq!(second, taken(true, 1, 0, 200));
        let (full_at, third) = one.take(full_at, start);
        assert_eq!(third, taken(true, 0, 0, 300));
        let (full_at, fourth) = one.take(full_at, start + MS / 2);
        assert_eq!(fourth, taken(false, 0, 100, 300));
        let (_, later) = one.take(full_at, start + 100 * MS);
        assert_eq!(later, taken(true, 0, 0, 300));
        assert_eq!(one.take(full_at, start + 99 * MS).1, taken(false, 0, 1, 201));
    }

    #[test]
    fn a_rate_is_kept_over_a_long_time() {
        for (tokens, period_ms, burst) in [(7, 1000, 1), (1000, 60_000, 10), (1, 3_600_000, 5), (50_000, 1000, 100)] {
            let one = TakeRate { tokens, period_ms, burst }.limiter(1).unwrap();
            let (mut full_at, mut count, mut now) = (0, 0_u64, 0);
            let interval = period_ms * MS / u64::from(tokens);
            // Attempts that come often: an attempt that comes late takes its token late.
            while now < interval * 2000 {
                let (next, taken) = one.take(full_at, now);
                (full_at, now, count) = (next, now + interval / 100, count + u64::from(taken.allowed));
            }
            let most = 2000 + u64::from(burst);
            assert!((1970..=most).contains(&count), "{count} of {most}");
        }
    }

    #[test]
    fn a_call_of_several_tokens_takes_all_or_none() {
        let rate = TakeRate { tokens: 1, period_ms: 1000, burst: 10 };
        let (full_at, first) = rate.limiter(7).unwrap().take(0, 0);
        assert_eq!(first, taken(true, 3, 0, 7000));
        assert_eq!(rate.limiter(4).unwrap().take(full_at, 0).1, taken(false, 3, 1000, 7000));
        assert_eq!(rate.limiter(3).unwrap().take(full_at, 0).1, taken(true, 0, 0, 10_000));
        // A look at the bucket.
        assert_eq!(rate.limiter(0).unwrap().take(full_at, 0).1, taken(true, 3, 0, 7000));
    }

    #[test]
    fn rates_that_allow_nothing_are_errors_and_great_ones_do_not_overflow() {
        let good = TakeRate { tokens: 1, period_ms: 1000, burst: 5 };
        for bad in [
            TakeRate { tokens: 0, ..good },
            TakeRate { period_ms: 0, ..good },
            TakeRate { period_ms: u64::MAX, ..good },
            TakeRate { burst: 0, ..good },
        ] {
            assert_eq!(bad.limiter(1).err(), Some(SharedError::BadRate), "{bad:?}");
        }
        assert_eq!(good.limiter(6).err(), Some(SharedError::BadRate));
        let slowest = TakeRate { tokens: 1, period_ms: MAX_PERIOD_MS, burst: u32::MAX };
        let (full_at, taken) = slowest.limiter(u32::MAX).unwrap().take(u64::MAX, u64::MAX / 2);
        assert!(!taken.allowed && full_at > u64::MAX / 2);
        let quickest = TakeRate { tokens: u32::MAX, period_ms: 1, burst: u32::MAX };
        assert_eq!(quickest.limiter(1).unwrap().take(0, 9).1, self::taken(true, u32::MAX - 1, 0, 1));
    }

    #[test]
    fn a_smaller_rate_forgives_what_a_greater_one_took() {
        let great = TakeRate { tokens: 1, period_ms: 1000, burst: 1000 };
        let (full_at, _) = great.limiter(1000).unwrap().take(0, 0);
        let small = TakeRate { tokens: 1, period_ms: 1000, burst: 2 };
        assert_eq!(small.limiter(1).unwrap().take(full_at, 0).1, taken(false, 0, 1000, 2000));
    }
}
