//! Reports when the control thread is blocked: then signals, health checks, lookups and the admin listener all wait.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::telemetry::metrics::Registry;

/// A watchdog of the control thread, active until dropped.
pub struct Watchdog {
    beating: AbortHandle,
}

/// The interval in which the control thread shows that it runs.
const BEAT: Duration = Duration::from_millis(250);

/// The time after which the control thread counts as blocked: four beats, since a busy machine may delay fewer.
const HELD: Duration = Duration::from_secs(1);

/// The time when the control thread last ran.
struct Heartbeat {
    start: Instant,
    /// The time of the last beat, in milliseconds since the start.
    last: AtomicU64,
}

impl Watchdog {
    /// Watches the calling thread, which has to run a runtime.
    pub fn start(registry: Arc<Registry>) -> io::Result<Self> {
        let heart = Arc::new(Heartbeat { start: Instant::now(), last: AtomicU64::new(0) });
        let watched = Arc::downgrade(&heart);
        std::thread::Builder::new().name("watchdog".into()).spawn(move || watch(&watched, &registry))?;
        Ok(Watchdog { beating: spawn_local(beat(heart)).abort_handle() })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

async fn beat(heart: Arc<Heartbeat>) {
    let mut interval = interval(BEAT);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        heart.last.store(heart.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

fn watch(heart: &Weak<Heartbeat>, registry: &Registry) {
    let mut held: Option<Duration> = None;
    loop {
        let before = Instant::now();
        std::thread::sleep(BEAT);
        let overslept = before.elapsed() > HELD;
        let Some(heart) = heart.upgrade() else { return };
        let silent = heart.start.elapsed() - Duration::from_millis(heart.last.load(Ordering::Relaxed));
        match held {
            // The whole process, or the machine, was suspended.
            _ if overslept => {}
            None if silent > HELD => {
                registry.control_holds.add(1);
                warn!(ms = silent.as_millis(), "control thread held up: signals, health checks and admin wait");
                held = Some(silent);
            }
            Some(longest) if silent < HELD => {
                info!(ms = longest.as_millis(), "control thread runs again");
                held = None;
            }
            Some(_) => held = Some(silent),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_counted_once() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()).unwrap();
        let registry = Arc::new(Registry::default());
        let _watchdog = runtime.block_on(async { Watchdog::start(registry.clone()) }).unwrap();
        runtime.block_on(async { tokio::time::sleep(BEAT * 2).await });
        assert_eq!(registry.control_holds.value(), 0);
        // The runtime doesn't run, as if a task blocked it.
        let deadline = Instant::now() + Duration::from_secs(30);
        while registry.control_holds.value() == 0 {
            assert!(Instant::now() < deadline, "not noticed");
            std::thread::yield_now();
        }
        std::thread::sleep(BEAT * 3);
        assert_eq!(registry.control_holds.value(), 1, "the same hold");
    }
}
