//! Panics of tasks and threads: caught, logged in one line, counted by task. Callers decide how to continue, so that
//! the process never runs with only a part of its tasks.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::JoinHandle;

/// A task or thread of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    AccessLog,
    Accept,
    Admin,
    Assemble,
    CacheFill,
    CacheScan,
    CacheWriter,
    Connection,
    Control,
    Drain,
    HealthCheck,
    Log,
    Lookup,
    Maintenance,
    Manifest,
    Observer,
    PluginCall,
    PluginClock,
    Reload,
    Revalidate,
    Stream,
    Swap,
    Sweep,
    Tick,
    Timer,
    Tunnel,
    Turns,
    UpstreamConnection,
    UpstreamTick,
    Worker,
    /// All code that runs outside the other tasks.
    Other,
}

/// The error of a task that has panicked. The panic is logged and counted already.
#[derive(Debug, thiserror::Error)]
#[error("a panic in the task `{}`; the log has its message", .0.name())]
pub struct Panicked(pub Task);

/// The number of panics since the start, in the order of [`Task::ALL`].
static PANICS: [AtomicU64; Task::ALL.len()] = [const { AtomicU64::new(0) }; Task::ALL.len()];

thread_local! {
    /// The task that runs on this thread.
    static CURRENT: Cell<Task> = const { Cell::new(Task::Other) };
    /// Whether a panic is a failure that the code around it reports.
    static IS_CATCHING: Cell<bool> = const { Cell::new(false) };
    /// The last panic while that was so.
    static CAUGHT: Cell<String> = const { Cell::new(String::new()) };
}

impl Task {
    /// All tasks, each at its own discriminant.
    pub const ALL: [Task; 31] = [
        Task::AccessLog,
        Task::Accept,
        Task::Admin,
        Task::Assemble,
        Task::CacheFill,
        Task::CacheScan,
        Task::CacheWriter,
        Task::Connection,
        Task::Control,
        Task::Drain,
        Task::HealthCheck,
        Task::Log,
        Task::Lookup,
        Task::Maintenance,
        Task::Manifest,
        Task::Observer,
        Task::PluginCall,
        Task::PluginClock,
        Task::Reload,
        Task::Revalidate,
        Task::Stream,
        Task::Swap,
        Task::Sweep,
        Task::Tick,
        Task::Timer,
        Task::Tunnel,
        Task::Turns,
        Task::UpstreamConnection,
        Task::UpstreamTick,
        Task::Worker,
        Task::Other,
    ];

    /// Returns the name of the task in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Task::AccessLog => "access-log",
            Task::Accept => "accept",
            Task::Admin => "admin",
            Task::Assemble => "assemble",
            Task::CacheFill => "cache-fill",
            Task::CacheScan => "cache-scan",
            Task::CacheWriter => "cache-writer",
            Task::Connection => "connection",
            Task::Control => "control",
            Task::Drain => "drain",
            Task::HealthCheck => "health-check",
            Task::Log => "log",
            Task::Lookup => "lookup",
            Task::Maintenance => "maintenance",
            Task::Manifest => "manifest",
            Task::Observer => "observer",
            Task::PluginCall => "plugin-call",
            Task::PluginClock => "plugin-clock",
            Task::Reload => "reload",
            Task::Revalidate => "revalidate",
            Task::Stream => "stream",
            Task::Swap => "swap",
            Task::Sweep => "sweep",
            Task::Tick => "tick",
            Task::Timer => "timer",
            Task::Tunnel => "tunnel",
            Task::Turns => "turns",
            Task::UpstreamConnection => "upstream-connection",
            Task::UpstreamTick => "upstream-tick",
            Task::Worker => "worker",
            Task::Other => "other",
        }
    }

    /// Returns the number of panics since the start.
    pub fn panics(self) -> u64 {
        PANICS[self as usize].load(Ordering::Relaxed)
    }
}

/// Runs code as a part of a task; a panic in the code becomes an error.
pub fn guard<R>(task: Task, code: impl FnOnce() -> R) -> Result<R, Panicked> {
    within(task, || {
        injected::meet(task);
        code()
    })
}

/// Runs code of which a panic is a failure that the caller reports; the error describes the panic, of which the log has no
/// line. The library that runs plugins panics if they use it in ways that it doesn't expect: each call of a plugin could
/// write such a line.
pub fn caught<R>(task: Task, code: impl FnOnce() -> R) -> Result<R, String> {
    let outer = IS_CATCHING.replace(true);
    let outcome = within(task, code);
    IS_CATCHING.set(outer);
    outcome.map_err(|_| CAUGHT.take())
}

/// Marks the beginning of a turn of a task that no [`guard`] surrounds.
pub fn turn(task: Task) {
    injected::meet(task);
}

/// Wraps a future as a part of a task; a panic in one of its polls becomes an error.
pub fn supervised<F: Future>(task: Task, future: F) -> Supervised<F> {
    Supervised { future, task, has_begun: false }
}

/// Spawns a future on this worker as a task that ends at a panic.
pub fn spawn<F: Future + 'static>(task: Task, future: F) -> JoinHandle<Result<F::Output, Panicked>> {
    tokio::task::spawn_local(supervised(task, future))
}

/// Spawns a future on this worker that guards each of its turns itself.
pub fn spawn_turns<F: Future + 'static>(task: Task, turns: F) -> JoinHandle<Result<F::Output, Panicked>> {
    tokio::task::spawn_local(Supervised { future: turns, task, has_begun: true })
}

/// Installs a panic hook that logs and counts panics instead of printing them: a print to a closed pipe panics itself.
pub fn install() {
    injected::arm();
    std::panic::set_hook(Box::new(report));
}

fn within<R>(task: Task, code: impl FnOnce() -> R) -> Result<R, Panicked> {
    let outer = CURRENT.replace(task);
    // After a panic each caller drops what the code could have left half done, or begins its next turn from data that
    // is valid at any time (counters, maps, cells).
    let outcome = catch_unwind(AssertUnwindSafe(code));
    CURRENT.set(outer);
    outcome.map_err(|_| Panicked(task))
}

fn report(panic: &PanicHookInfo<'_>) {
    let task = CURRENT.get();
    PANICS[task as usize].fetch_add(1, Ordering::Relaxed);
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let reason = crate::system::printable::one_line(message, MAX_MESSAGE_BYTES);
    if IS_CATCHING.get() {
        CAUGHT.set(format!("{reason}, at {location}"));
        return;
    }
    tracing::error!(task = task.name(), %reason, location, "panic");
}

/// The maximum length of a panic's message in the log, in bytes.
const MAX_MESSAGE_BYTES: usize = 1 << 10;

pin_project! {
    /// A future whose panics become an error in its output.
    pub struct Supervised<F> {
        #[pin]
        future: F,
        task: Task,
        has_begun: bool,
    }
}

impl<F: Future> Future for Supervised<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let begins = !std::mem::replace(this.has_begun, true);
        let polled = within(*this.task, || {
            if begins {
                injected::meet(*this.task);
            }
            this.future.poll(cx)
        });
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panicked) => Poll::Ready(Err(panicked)),
        }
    }
}

/// Panics on demand, for the tests of a debug build: `PLUGWAY_TEST_PANIC=tick:3` panics in the third turn of the task
/// `tick`, once.
#[cfg(debug_assertions)]
mod injected {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Task;

    static ARMED: OnceLock<Task> = OnceLock::new();
    static TURNS_LEFT: AtomicU64 = AtomicU64::new(0);

    pub fn arm() {
        #[expect(clippy::disallowed_methods, reason = "a test names the task that panics")]
        let Ok(wanted) = std::env::var("PLUGWAY_TEST_PANIC") else { return };
        let (name, turn) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        let task = Task::ALL.into_iter().find(|task| task.name() == name);
        if let (Some(task), Ok(turn)) = (task, turn.parse()) {
            TURNS_LEFT.store(turn, Ordering::Relaxed);
            let _ = ARMED.set(task);
        }
    }

    pub fn meet(task: Task) {
        if ARMED.get() == Some(&task) {
            let left = TURNS_LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            assert!(left != Ok(1), "injected into {}", task.name());
        }
    }
}

/// The panics on demand for tests: a release build has none.
#[cfg(not(debug_assertions))]
mod injected {
    pub fn arm() {}

    pub fn meet(_: super::Task) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_is_at_its_place() {
        for (index, task) in Task::ALL.into_iter().enumerate() {
            assert_eq!(task as usize, index);
        }
    }

    #[tokio::test]
    async fn a_panic_ends_the_task_and_nothing_else() {
        let panicked = supervised(Task::Lookup, async { panic!("in a test") }).await;
        assert_eq!(panicked.unwrap_err().0, Task::Lookup);
        assert_eq!(supervised(Task::Lookup, async { 7 }).await.unwrap(), 7);
        assert_eq!(guard(Task::Tick, || 7).unwrap(), 7);
        assert!(guard(Task::Tick, || panic!("in a test")).is_err());
        assert_eq!(CURRENT.get(), Task::Other);
    }
}
