//! The state that plugins share over a fleet of proxies, on a Redis or Valkey server: the operations of
//! [`SharedState`](super::SharedState), each of which waits for the server.
//!
//! One connection of the process carries the commands of all workers. Each command has a time limit, and a server that
//! doesn't answer is not asked again before it has answered a ping.

mod link;
mod scripts;
mod settings;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisError, RedisResult, ScriptInvocation};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::{KeyPage, MAX_LISTED_KEYS, SharedError, StateOwner, TakeRate, Taken};
use crate::context::bounds;
use crate::system::printable::one_line;

pub use link::LinkStatus;
pub use settings::{FleetFallback, FleetSettings, FleetTls, InvalidFleetUrl};

use link::Link;

/// The client of a server, which all plugins of a generation use.
pub struct FleetClient {
    settings: Arc<FleetSettings>,
    link: watch::Receiver<Link>,
    /// The other end of `link`, until the thread of the connection has started.
    sender: Mutex<Option<watch::Sender<Link>>>,
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

/// The state that one plugin shares over a fleet.
pub struct FleetState {
    client: Arc<FleetClient>,
    /// The beginning of the plugin's keys on the server.
    prefix: Box<[u8]>,
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
        let (sender, logged) = (Mutex::new(Some(sender)), AtomicU64::new(0));
        FleetClient { settings: Arc::new(settings), link, sender, breakage: Arc::default(), logged }
    }

    pub fn settings(&self) -> &FleetSettings {
        &self.settings
    }

    /// Connects to the server on a thread of its own, unless that has begun. The thread ends with the client.
    pub fn start(&self) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            link::start(self.settings.clone(), sender, self.breakage.clone());
        }
    }

    /// Returns the status of the connection.
    pub fn status(&self) -> LinkStatus {
        self.link.borrow().status()
    }

    /// Sends a command once the server is connected, and waits for the answer. All of that takes at most the timeout.
    async fn run<T>(&self, command: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>) -> Result<T, Failed> {
        let mut link = self.link.clone();
        let used = AtomicU64::new(0);
        let answer = timeout(self.settings.timeout, async {
            let connection = match link.wait_for(|link| !matches!(link, Link::Connecting)).await.as_deref() {
                Ok(Link::Up { connection, number }) => {
                    used.store(*number, Ordering::Relaxed);
                    connection.clone()
                }
                _ => return None,
            };
            Some(command(connection).await)
        });
        let answer = answer.await;
        let used = used.into_inner();
        match answer {
            Ok(Some(Ok(result))) => Ok(result),
            Ok(Some(Err(error))) => Err(self.failed(&error, used)),
            Ok(None) => Err(Failed::because(FleetFailure::Away)),
            // A connection that has not been made is the link's affair.
            Err(_) if used == 0 => Err(Failed::because(FleetFailure::Away)),
            Err(_) => {
                self.breakage.report(used);
                Err(Failed::because(FleetFailure::Timeout))
            }
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
        Failed { reason, message: None }
    }
}

impl FleetFailure {
    /// All reasons, each at its own discriminant.
    pub const ALL: [FleetFailure; 4] =
        [FleetFailure::Away, FleetFailure::Timeout, FleetFailure::Lost, FleetFailure::Refused];

    /// Returns the reason as a label of metrics.
    pub fn word(self) -> &'static str {
        match self {
            FleetFailure::Away => "away",
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
        let (code, value): (i64, Option<Vec<u8>>) = self.invoke(call).await?;
        scripts::checked(code).map(|()| value)
    }

    /// Sets the value of a key, whatever the key had before.
    pub async fn set(&self, key: &[u8], value: &[u8], ttl_ms: Option<u64>) -> Result<(), SharedError> {
        let key = self.key(key)?;
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
        self.run(async |mut connection| command.query_async::<()>(&mut connection).await).await
    }

    /// Adds to a counter, and returns its new value.
    pub async fn add(&self, key: &[u8], amount: i64, ttl_ms: Option<u64>) -> Result<i64, SharedError> {
        let mut call = scripts::ADD.key(self.key(key)?);
        call.arg(amount).arg(ttl(ttl_ms));
        // As text: numbers of scripts have 53 bits.
        let (code, sum): (i64, Option<String>) = self.invoke(call).await?;
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
        let key = self.key(key)?;
        check_value(value)?;
        // No value is as long.
        if expected.is_some_and(|expected| expected.len() > bounds::SHARED_VALUE) {
            return Ok(false);
        }
        let mut call = scripts::COMPARE_AND_SWAP.key(key);
        call.arg(i64::from(expected.is_some())).arg(expected.unwrap_or_default()).arg(value).arg(ttl(ttl_ms));
        let (code, is_swapped): (i64, i64) = self.invoke(call).await?;
        scripts::checked(code).map(|()| is_swapped == 1)
    }

    /// Removes a key, whatever it has. Returns whether it had a value.
    pub async fn delete(&self, key: &[u8]) -> Result<bool, SharedError> {
        let mut command = redis::cmd("DEL");
        command.arg(self.key(key)?);
        self.run(async |mut connection| command.query_async::<bool>(&mut connection).await).await
    }

    /// Takes tokens from the bucket of a key, if it has as many. The time is the server's.
    pub async fn take(&self, key: &[u8], rate: TakeRate, cost: u32) -> Result<Taken, SharedError> {
        let key = self.key(key)?;
        let limiter = rate.limiter(cost)?;
        let mut call = scripts::TAKE.key(key);
        call.arg(limiter.burst()).arg(limiter.cost());
        let (code, missing, used): (i64, u64, u64) = self.invoke(call).await?;
        scripts::checked(code).map(|()| limiter.taken(missing, used))
    }

    /// Returns the keys that have a value or a counter and begin with `prefix`, without the prefix, a part at a time.
    pub async fn keys(&self, prefix: &[u8], cursor: u64) -> Result<KeyPage, SharedError> {
        let whole = [&self.prefix, prefix].concat();
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(scripts::pattern(&whole)).arg("COUNT").arg(MAX_LISTED_KEYS);
        command.arg("TYPE").arg("string");
        let scan = async |mut connection| command.query_async::<(u64, Vec<Vec<u8>>)>(&mut connection).await;
        let (next, keys) = self.run(scan).await?;
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

    async fn invoke<T: FromRedisValue>(&self, call: ScriptInvocation<'_>) -> Result<T, SharedError> {
        self.run(async |mut connection| call.invoke_async(&mut connection).await).await
    }

    /// Runs a command, and counts it.
    async fn run<T>(
        &self,
        command: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, SharedError> {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        self.client.run(command).await.map_err(|failed| {
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
