//! The state that plugins share over a fleet of proxies, on a Redis or Valkey server: the operations of
//! [`SharedState`](super::SharedState), each of which waits for the server.
//!
//! One connection of the process carries the commands of all workers, and a plugin has a quarter of its places at most. Each
//! command has a time limit. A command that is late has the server pinged; a server that doesn't answer the ping is not
//! asked again before it has answered another one.

mod command_places;
mod link;
mod received_bytes;
mod scripts;
mod settings;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisError, RedisResult, ScriptInvocation};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use super::{KeyPage, MAX_LISTED_KEYS, SharedError, StateOwner, TakeRate, Taken};
use crate::context::bounds;
use crate::system::printable::one_line;

pub use link::LinkStatus;
pub use settings::{FleetFallback, FleetSettings, FleetTls, InvalidFleetUrl};

use command_places::{CommandPlace, CommandPlaces, MAX_PLUGIN_BYTES};
use link::{Link, LinkEnd};
use received_bytes::ReceivedBytes;

/// The client of a server, which all plugins of a generation use.
pub struct FleetClient {
    settings: Arc<FleetSettings>,
    link: watch::Receiver<Link>,
    /// The thread's end of the connection, until the thread has started.
    end: Mutex<Option<LinkEnd>>,
    places: Arc<CommandPlaces>,
    received: Arc<ReceivedBytes>,
    /// The way of late commands to the thread of the connection.
    late: mpsc::Sender<LateCommand>,
    breakage: Arc<Breakage>,
    /// The time at which a failed command was last logged, in milliseconds, plus one; 0 before the first.
    logged: AtomicU64,
}

/// The signal that a connection is of no use any more.
#[derive(Default)]
struct Breakage {
    /// The number of the last connection that is of no use.
    broken: AtomicU64,
    signal: Notify,
}

/// A command whose call has ended before the answer was there. It keeps its place until the server has answered it.
struct LateCommand {
    _place: CommandPlace,
    /// The number of the connection.
    connection: u64,
}

/// A command that is under way, which is late if it is dropped before the answer.
struct SentCommand<'a> {
    late: &'a mpsc::Sender<LateCommand>,
    command: Option<LateCommand>,
}

/// The state that one plugin shares over a fleet.
pub struct FleetState {
    client: Arc<FleetClient>,
    /// The beginning of the plugin's keys on the server.
    prefix: Arc<[u8]>,
    counts: FleetCounts,
}

/// The states of plugins on servers, which outlive generations; a state is dropped with the last plugin that has it.
#[derive(Default)]
pub struct FleetStates {
    client: Weak<FleetClient>,
    states: HashMap<StateOwner, Weak<FleetState>>,
}

/// The counts of one plugin's calls since it came into service.
#[derive(Default)]
struct FleetCounts {
    calls: AtomicU64,
    failures: [AtomicU64; FleetFailure::ALL.len()],
    fallbacks: AtomicU64,
}

/// The reason why a command has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FleetFailure {
    /// The server was not connected, so that the command was not sent.
    Away,
    /// The command has found no place in time, so that it was not sent.
    Busy,
    /// The server did not answer within `[shared] timeout`.
    Timeout,
    /// The connection was lost before the answer.
    Lost,
    /// The server answered with an error.
    Refused,
}

/// The figures of one plugin's calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetUse {
    pub calls: u64,
    /// The calls that failed, in the order of [`FleetFailure::ALL`].
    pub failures: [u64; FleetFailure::ALL.len()],
    /// The calls that the state of this process has answered.
    pub fallbacks: u64,
}

/// Characters of a name that stand for themselves in keys on the server.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Characters of a path that stand for themselves in keys on the server.
const PLAIN_IN_PATHS: &AsciiSet = &PLAIN.remove(b'/');

/// The longest time to live, in milliseconds: 30,000 years, which the server can still add to the time.
const MAX_TTL_MS: u64 = 1_000_000_000_000_000;

/// The pause between two lines about failed commands.
const LOG_PAUSE_MS: u64 = 60_000;

/// Bytes of the server's messages in the log.
const MAX_MESSAGE_BYTES: usize = 200;

/// The length in bytes that is expected of a value which a command gets: a plugin has a quarter of all commands under way, and
/// no more than its bytes, if its values are no longer.
const USUAL_VALUE: usize = 16 << 10;

/// The maximum number of late commands that the link looks after.
const MAX_LATE: usize = 10_000;

/// The message about a command that has found no place.
const NO_PLACE: &str =
    "no place among `[shared] commands` in time: a plugin has a quarter of them at most, and 1 MiB for all of its own";

// === FleetStates ===

impl FleetStates {
    /// Returns the client for a server: that of a generation in service if the settings are the same, or a new one.
    pub fn client(&mut self, settings: FleetSettings) -> Arc<FleetClient> {
        if let Some(client) = self.client.upgrade().filter(|client| client.settings.is_same(&settings)) {
            return client;
        }
        let client = Arc::new(FleetClient::new(settings));
        self.client = Arc::downgrade(&client);
        client
    }

    /// Returns the state of an owner on a server: that of a generation in service, or a new one.
    pub fn of(&mut self, client: &Arc<FleetClient>, owner: &StateOwner) -> Arc<FleetState> {
        self.states.retain(|_, state| state.strong_count() > 0);
        let known = self.states.get(owner).and_then(Weak::upgrade);
        if let Some(state) = known.filter(|state| Arc::ptr_eq(&state.client, client)) {
            return state;
        }
        let state = Arc::new(FleetState::of(client.clone(), owner));
        self.states.insert(owner.clone(), Arc::downgrade(&state));
        state
    }
}

// === FleetClient ===

impl FleetClient {
    /// Returns a client that is not connected yet.
    pub fn new(settings: FleetSettings) -> Self {
        let (sender, link) = watch::channel(Link::Connecting);
        // A wrong number is an error of its own, which is found while the manifest is read.
        let (late, received) = mpsc::channel(settings.commands.clamp(1, MAX_LATE));
        let places = Arc::new(CommandPlaces::new(settings.commands));
        let bytes = Arc::new(ReceivedBytes::new(places.clone()));
        let end = Mutex::new(Some(LinkEnd { link: sender, late: received, received: bytes.clone() }));
        let (breakage, logged) = (Arc::default(), AtomicU64::new(0));
        let settings = Arc::new(settings);
        FleetClient { settings, link, end, places, received: bytes, late, breakage, logged }
    }

    pub fn settings(&self) -> &FleetSettings {
        &self.settings
    }

    /// Connects to the server on a thread of its own, unless that has begun. The thread ends with the client.
    pub fn start(&self) {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(end) = end {
            link::start(self.settings.clone(), end, self.breakage.clone());
        }
    }

    /// Returns the status of the connection.
    pub fn status(&self) -> LinkStatus {
        self.link.borrow().status()
    }

    /// Sends a command of a plugin once the server is connected and the command has a place, and waits for the answer. All of
    /// that takes at most the timeout. `bytes` is the length of the command and of its answer.
    async fn run<T>(
        &self,
        plugin: &Arc<[u8]>,
        bytes: usize,
        command: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, Failed> {
        // A connection that has not been made is the link's affair.
        let waits_for = AtomicUsize::new(FleetFailure::Away as usize);
        let waits_for_next = |reason: FleetFailure| waits_for.store(reason as usize, Ordering::Relaxed);
        let away = || Failed::because(FleetFailure::Away);
        let answer = timeout(self.settings.timeout, async {
            self.connection().await.ok_or_else(away)?;
            waits_for_next(FleetFailure::Busy);
            let place = self.places.admit(plugin, bytes).await.ok_or_else(away)?;
            waits_for_next(FleetFailure::Away);
            let (connection, number) = self.connection().await.ok_or_else(away)?;
            waits_for_next(FleetFailure::Timeout);
            let late = LateCommand { _place: place, connection: number };
            let sent = SentCommand { late: &self.late, command: Some(late) };
            let result = command(connection).await;
            self.received.settle();
            sent.end();
            result.map_err(|error| self.failed(&error, number))
        });
        let answer = answer.await;
        answer.unwrap_or_else(|_| Err(Failed::because(FleetFailure::ALL[waits_for.into_inner()])))
    }

    /// Waits until the server is connected, and returns the connection with its number; `None` if the server is away.
    async fn connection(&self) -> Option<(MultiplexedConnection, u64)> {
        match self.link.clone().wait_for(|link| !matches!(link, Link::Connecting)).await.as_deref() {
            Ok(Link::Up { connection, number }) => Some((connection.clone(), *number)),
            _ => None,
        }
    }

    fn failed(&self, error: &RedisError, number: u64) -> Failed {
        let reason = match error.kind() {
            redis::ErrorKind::Server(_) | redis::ErrorKind::Extension | redis::ErrorKind::AuthenticationFailed => {
                FleetFailure::Refused
            }
            _ => FleetFailure::Lost,
        };
        // A server that turns into a replica, or that forgets who we are, is to be looked up and greeted anew.
        if reason == FleetFailure::Lost || link::is_unfit(error) {
            self.breakage.report(number);
        }
        Failed { reason, message: Some(one_line(&error.to_string(), MAX_MESSAGE_BYTES).into_owned()) }
    }

    /// Logs a failed command, once a minute. The link logs that the server is away.
    fn log(&self, failed: &Failed) {
        let now = super::now() / 1_000_000 + 1;
        let last = self.logged.load(Ordering::Relaxed);
        let is_due = last == 0 || now.saturating_sub(last) >= LOG_PAUSE_MS;
        let is_ours = || self.logged.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if failed.reason != FleetFailure::Away && is_due && is_ours() {
            let (server, limit) = (&self.settings.name, self.settings.timeout);
            let (reason, message) = (failed.reason.word(), failed.message.as_deref().unwrap_or_default());
            tracing::warn!(%server, reason, message, timeout = ?limit, "call of the shared state on Redis failed");
        }
    }
}

impl SentCommand<'_> {
    /// Returns the place of a command that has been answered.
    fn end(mut self) {
        self.command = None;
    }
}

impl Drop for SentCommand<'_> {
    fn drop(&mut self) {
        if let Some(command) = self.command.take() {
            // There is room for as many as have places; without a thread, the place is returned at once.
            let _ = self.late.try_send(command);
        }
    }
}

impl Breakage {
    /// Says that the connection with this number is of no use.
    fn report(&self, number: u64) {
        self.broken.fetch_max(number, Ordering::Relaxed);
        self.signal.notify_one();
    }

    /// Waits until the connection with this number is said to be of no use.
    async fn of(&self, number: u64) {
        while self.broken.load(Ordering::Relaxed) < number {
            self.signal.notified().await;
        }
    }
}

/// A command without a result.
struct Failed {
    reason: FleetFailure,
    /// The message of the server or the system; `None` if the reason says it all.
    message: Option<String>,
}

impl Failed {
    fn because(reason: FleetFailure) -> Self {
        let message = (reason == FleetFailure::Busy).then(|| NO_PLACE.into());
        Failed { reason, message }
    }
}

impl FleetFailure {
    /// All reasons, each at its own discriminant.
    pub const ALL: [FleetFailure; 5] =
        [FleetFailure::Away, FleetFailure::Busy, FleetFailure::Timeout, FleetFailure::Lost, FleetFailure::Refused];

    /// Returns the reason as a label of metrics.
    pub fn word(self) -> &'static str {
        match self {
            FleetFailure::Away => "away",
            FleetFailure::Busy => "busy",
            FleetFailure::Timeout => "timeout",
            FleetFailure::Lost => "lost",
            FleetFailure::Refused => "refused",
        }
    }
}

// === FleetState ===

impl FleetState {
    /// Returns the state of an owner.
    fn of(client: Arc<FleetClient>, owner: &StateOwner) -> Self {
        // No name of a plugin has a slash then, and all paths have one.
        let name = match owner {
            StateOwner::Plugin(name) => utf8_percent_encode(name, PLAIN).to_string(),
            StateOwner::File(path) => utf8_percent_encode(path, PLAIN_IN_PATHS).to_string(),
        };
        let prefix = format!("{}{name}:", client.settings.prefix).into_bytes().into();
        FleetState { client, prefix, counts: FleetCounts::default() }
    }

    /// Returns the figures of the plugin's calls.
    pub fn usage(&self) -> FleetUse {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let FleetCounts { calls, failures, fallbacks } = &self.counts;
        FleetUse { calls: read(calls), failures: failures.each_ref().map(read), fallbacks: read(fallbacks) }
    }

    /// Whether the state of this process answers where the server can't be asked.
    pub(super) fn falls_back(&self) -> bool {
        self.client.settings.fallback == FleetFallback::Local
    }

    /// Counts a call that the state of this process answers.
    pub(super) fn count_fallback(&self) {
        self.counts.fallbacks.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the value of a key; `None` if there is none.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, SharedError> {
        let mut call = scripts::GET.key(self.key(key)?);
        call.arg(bounds::SHARED_VALUE);
        let (code, value): (i64, Option<Vec<u8>>) = self.invoke(call, key.len() + USUAL_VALUE).await?;
        scripts::checked(code).map(|()| value)
    }

    /// Sets the value of a key, whatever the key had before.
    pub async fn set(&self, key: &[u8], value: &[u8], ttl_ms: Option<u64>) -> Result<(), SharedError> {
        let (key, bytes) = (self.key(key)?, key.len() + value.len());
        check_value(value)?;
        let mut command = match ttl_ms {
            Some(0) => redis::cmd("DEL"),
            _ => redis::cmd("SET"),
        };
        command.arg(key);
        if ttl_ms != Some(0) {
            command.arg(value);
        }
        if let Some(ttl) = ttl_ms.filter(|ttl| *ttl > 0) {
            command.arg("PX").arg(ttl.min(MAX_TTL_MS));
        }
        self.run(bytes, async |mut connection| command.query_async::<()>(&mut connection).await).await
    }

    /// Adds to a counter, and returns its new value.
    pub async fn add(&self, key: &[u8], amount: i64, ttl_ms: Option<u64>) -> Result<i64, SharedError> {
        let mut call = scripts::ADD.key(self.key(key)?);
        call.arg(amount).arg(ttl(ttl_ms));
        // As text: numbers of scripts have 53 bits.
        let (code, sum): (i64, Option<String>) = self.invoke(call, key.len()).await?;
        scripts::checked(code)?;
        sum.and_then(|sum| sum.parse().ok()).ok_or(SharedError::Unavailable)
    }

    /// Sets the value of a key if the key has the expected value, or none if none is expected. Returns whether it had.
    pub async fn compare_and_swap(
        &self,
        key: &[u8],
        expected: Option<&[u8]>,
        value: &[u8],
        ttl_ms: Option<u64>,
    ) -> Result<bool, SharedError> {
        let (key, bytes) = (self.key(key)?, key.len() + expected.map_or(0, <[u8]>::len) + value.len());
        check_value(value)?;
        // No value is as long.
        if expected.is_some_and(|expected| expected.len() > bounds::SHARED_VALUE) {
            return Ok(false);
        }
        let mut call = scripts::COMPARE_AND_SWAP.key(key);
        call.arg(i64::from(expected.is_some())).arg(expected.unwrap_or_default()).arg(value).arg(ttl(ttl_ms));
        let (code, is_swapped): (i64, i64) = self.invoke(call, bytes).await?;
        scripts::checked(code).map(|()| is_swapped == 1)
    }

    /// Removes a key, whatever it has. Returns whether it had a value.
    pub async fn delete(&self, key: &[u8]) -> Result<bool, SharedError> {
        let mut command = redis::cmd("DEL");
        command.arg(self.key(key)?);
        self.run(key.len(), async |mut connection| command.query_async::<bool>(&mut connection).await).await
    }

    /// Takes tokens from the bucket of a key, if it has as many. The time is the server's.
    pub async fn take(&self, key: &[u8], rate: TakeRate, cost: u32) -> Result<Taken, SharedError> {
        let (own_key, limiter) = (self.key(key)?, rate.limiter(cost)?);
        let mut call = scripts::TAKE.key(own_key);
        call.arg(limiter.burst()).arg(limiter.cost());
        let (code, missing, used): (i64, u64, u64) = self.invoke(call, key.len()).await?;
        scripts::checked(code).map(|()| limiter.taken(missing, used))
    }

    /// Returns the keys that have a value or a counter and begin with `prefix`, without the prefix, a part at a time.
    pub async fn keys(&self, prefix: &[u8], cursor: u64) -> Result<KeyPage, SharedError> {
        let whole = [&self.prefix, prefix].concat();
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(scripts::pattern(&whole)).arg("COUNT").arg(MAX_LISTED_KEYS);
        command.arg("TYPE").arg("string");
        let scan = async |mut connection| command.query_async::<(u64, Vec<Vec<u8>>)>(&mut connection).await;
        // The server looks at keys of everybody for it: a plugin has one such command under way at a time.
        let (next, keys) = self.run(MAX_PLUGIN_BYTES, scan).await?;
        let own = |key: Vec<u8>| key.strip_prefix(&*whole).map(<[u8]>::to_vec);
        Ok(KeyPage { keys: keys.into_iter().filter_map(own).collect(), next: (next != 0).then_some(next) })
    }

    /// Returns a key as the server has it.
    fn key(&self, key: &[u8]) -> Result<Vec<u8>, SharedError> {
        if key.len() > bounds::SHARED_KEY {
            return Err(SharedError::KeyTooLong);
        }
        Ok([&self.prefix, key].concat())
    }

    async fn invoke<T: FromRedisValue>(&self, call: ScriptInvocation<'_>, bytes: usize) -> Result<T, SharedError> {
        self.run(bytes, async |mut connection| call.invoke_async(&mut connection).await).await
    }

    /// Runs a command that has so many bytes with its answer, and counts it.
    async fn run<T>(
        &self,
        bytes: usize,
        command: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, SharedError> {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        self.client.run(&self.prefix, bytes, command).await.map_err(|failed| {
            self.counts.failures[failed.reason as usize].fetch_add(1, Ordering::Relaxed);
            self.client.log(&failed);
            SharedError::Unavailable
        })
    }
}

impl FleetUse {
    /// Returns the sum of two figures.
    pub fn and(self, other: FleetUse) -> FleetUse {
        let failures = std::array::from_fn(|reason| self.failures[reason] + other.failures[reason]);
        FleetUse { calls: self.calls + other.calls, failures, fallbacks: self.fallbacks + other.fallbacks }
    }
}

fn check_value(value: &[u8]) -> Result<(), SharedError> {
    if value.len() > bounds::SHARED_VALUE { Err(SharedError::ValueTooLong) } else { Ok(()) }
}

/// Returns a time to live as the argument of a script: empty if there is none.
fn ttl(ttl_ms: Option<u64>) -> String {
    ttl_ms.map(|ttl| ttl.min(MAX_TTL_MS).to_string()).unwrap_or_default()
}
