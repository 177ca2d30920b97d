//! The import `passwords`: verifies passwords on a few threads of their own, for plugins whose hooks may wait.
//!
//! Hashes come from manifests and from plugins, so their cost is bounded before anything is computed or allocated.

#![expect(clippy::disallowed_methods, reason = "read beside a hash of a password, which costs more")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params};
use bcrypt::HashParts;
use sha_crypt::{PasswordHashRef, ShaCrypt};
use tokio::sync::oneshot;

use super::bindings::passwords::{Host, VerifyError};
use super::early_answers::{EarlyAnswer, password_digest};
use super::host::HostState;
use super::wasi::waits;
use crate::system::fair_queue::GroupedFairQueue;
use crate::system::holder_counts::Holder;
use crate::system::supervise::{Task, guard};

/// The MAC of a hash and a password under a random key.
type Mac = [u8; 32];

/// A password to be verified.
struct UnverifiedPassword {
    /// The client that has sent the password.
    client: Holder,
    hash: String,
    password: Vec<u8>,
}

/// A password that waits for a thread.
struct Verification {
    mac: Mac,
    asked: UnverifiedPassword,
}

/// The passwords that all workers know, and the threads that verify them.
struct Verifier {
    key: [u8; 32],
    known: Mutex<KnownPasswords>,
    /// Signals that a password waits for a thread.
    arrived: Condvar,
}

/// The passwords that were right lately, and those that are being verified.
#[derive(Default)]
struct KnownPasswords {
    remembered: RememberedPasswords,
    /// The requests that wait for each verification.
    waiting: HashMap<Mac, Vec<oneshot::Sender<Verified>>>,
    /// The passwords that wait for a thread, by plugin and client. The threads serve the plugins in turn, and the clients of
    /// each plugin.
    queue: GroupedFairQueue<Arc<str>, Holder, Verification>,
}

/// The passwords that were right lately, by plugin, with the ends of their memory.
#[derive(Default)]
struct RememberedPasswords(HashMap<Arc<str>, HashMap<Mac, Instant>>);

/// The result of a verification.
type Verified = Result<bool, VerifyError>;

/// The answer to a request for a verification.
enum PasswordLookup {
    Remembered(Instant),
    Waiting(oneshot::Receiver<Verified>),
    Full,
}

/// Different passwords of a plugin that may wait for a thread. At 50 ms each, the last one waits for a second and a half.
const QUEUE: usize = 32;

/// Places of [`QUEUE`] for clients that have no other: a client that tries many passwords leaves them to others.
const RESERVED: usize = QUEUE / 4;

/// Passwords of a plugin that are remembered: one for each user of a large list, in less than a MiB.
const MAX_REMEMBERED: usize = 10_000;

/// The time between two warnings of a full queue.
const QUIET: Duration = Duration::from_secs(60);

/// The longest time for which a password is remembered.
const MAX_MEMORY_TIME: Duration = Duration::from_secs(3600);

/// Workers go first where cores are scarce: a thread has a tenth of a worker's weight.
const NICENESS: i32 = 10;

/// Bytes of a hash; those of the known formats have less than 200.
const MAX_HASH_BYTES: usize = 512;

/// Bytes of a password; longer ones are wrong.
const MAX_PASSWORD_BYTES: usize = 4 << 10;

/// Bytes of a password for SHA-crypt, each round of which hashes the password; longer ones are wrong.
const MAX_SHA_CRYPT_PASSWORD_BYTES: usize = 256;

/// The rounds of bcrypt, as a power of two: about a second.
const MAX_BCRYPT_COST: u32 = 14;

/// The rounds of SHA-crypt: about a second.
const MAX_SHA_CRYPT_ROUNDS: u32 = 1_000_000;

/// The memory of Argon2, in KiB. Each thread may use it.
const MAX_ARGON2_MEMORY: u64 = 128 << 10;

/// The memory of Argon2 times its passes, in KiB: about a second.
const MAX_ARGON2_WORK: u64 = 1 << 20;

impl Host for HostState {
    async fn verify(
        &mut self,
        hash: String,
        password: Vec<u8>,
        remember_ms: u64,
    ) -> wasmtime::Result<Result<bool, VerifyError>> {
        if !self.cpu.has_turns() {
            self.has_asked = true;
            return Err(waits());
        }
        if let Some(known) = known_by_length(&hash, &password) {
            return Ok(known);
        }
        if let Some(answers) = self.http.given() {
            let answer = answers.answer(&password_digest(&hash, &password));
            let Some(EarlyAnswer::Password(verified)) = answer else { return Ok(Err(VerifyError::Busy)) };
            return Ok(verified);
        }
        if let Some(answers) = self.http.kept() {
            if !answers.has_room() {
                return Ok(Err(VerifyError::Busy));
            }
            let question = password_digest(&hash, &password);
            let answers = answers.clone();
            let asked = UnverifiedPassword { client: self.client, hash, password };
            let verified = verify(self.lines.plugin(), asked, Duration::ZERO).await;
            answers.keep(question, EarlyAnswer::Password(verified));
            return Ok(verified);
        }
        let time = Duration::from_millis(remember_ms).min(MAX_MEMORY_TIME);
        let asked = UnverifiedPassword { client: self.client, hash, password };
        Ok(verify(self.lines.plugin(), asked, time).await)
    }
}

/// Verifies a password on another thread, unless it was right within its time of memory.
async fn verify(plugin: &Arc<str>, asked: UnverifiedPassword, time: Duration) -> Verified {
    match Verifier::get() {
        Some(verifier) => verifier.verify(plugin, asked, time).await,
        None => Err(VerifyError::Busy),
    }
}

thread_local! {
    /// The passwords that this worker remembers, so that workers rarely meet at a lock.
    static REMEMBERED: RefCell<RememberedPasswords> = RefCell::default();
}

impl RememberedPasswords {
    /// Returns the end of the memory of a password that was right lately. A MAC can't be guessed, so its comparison tells
    /// nothing.
    fn end_of(&self, plugin: &str, mac: &Mac) -> Option<Instant> {
        self.0.get(plugin)?.get(mac).copied().filter(|until| *until > Instant::now())
    }

    /// Remembers a password, if the plugin has room for it.
    fn remember(&mut self, plugin: &Arc<str>, mac: Mac, until: Instant) {
        if !self.0.contains_key(plugin) {
            // A plugin that is gone leaves what has expired.
            let now = Instant::now();
            self.0.retain(|_, passwords| passwords.values().any(|until| *until > now));
        }
        let passwords = self.0.entry(plugin.clone()).or_default();
        if passwords.len() >= MAX_REMEMBERED {
            let now = Instant::now();
            passwords.retain(|_, until| *until > now);
        }
        if passwords.len() < MAX_REMEMBERED {
            passwords.insert(mac, until);
        }
    }
}

impl KnownPasswords {
    /// Puts a password behind the others of its client at a plugin; `false` if there are too many.
    fn enqueue(&mut self, plugin: &Arc<str>, job: Verification) -> bool {
        let client = job.asked.client;
        let places = if self.queue.count_of(plugin, &client) == 0 { QUEUE } else { QUEUE - RESERVED };
        let has_room = self.queue.count(plugin) < places;
        if has_room {
            self.queue.push(plugin.clone(), client, job);
        }
        has_room
    }

    /// Returns the next password of the client whose turn it is, at the plugin whose turn it is. The passwords of clients that
    /// have left are removed.
    fn dequeue(&mut self) -> Option<Verification> {
        loop {
            let job = self.queue.pop()?;
            let waiting = self.waiting.get(&job.mac);
            if waiting.is_some_and(|waiting| waiting.iter().any(|one| !one.is_closed())) {
                return Some(job);
            }
            self.waiting.remove(&job.mac);
        }
    }
}

impl Verifier {
    /// Returns the verifier, whose threads start when they are first needed; `None` if the system has no room for them, or
    /// no random numbers.
    fn get() -> Option<&'static Self> {
        static VERIFIER: OnceLock<Option<Arc<Verifier>>> = OnceLock::new();
        VERIFIER.get_or_init(|| Verifier::start().inspect_err(log_start_error).ok()).as_deref()
    }

    /// Starts a thread for every second core.
    fn start() -> std::io::Result<Arc<Self>> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(std::io::Error::other)?;
        let verifier = Arc::new(Verifier { key, known: Mutex::default(), arrived: Condvar::new() });
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..(cores / 2).max(1) {
            let verifier = verifier.clone();
            std::thread::Builder::new().name("passwords".into()).spawn(move || verifier.run())?;
        }
        Ok(verifier)
    }

    /// Verifies a password, unless it was right lately. Requests with the same password wait for one verification.
    async fn verify(&self, plugin: &Arc<str>, asked: UnverifiedPassword, time: Duration) -> Verified {
        let mac = self.mac(&asked.hash, &asked.password);
        if REMEMBERED.with_borrow(|remembered| remembered.end_of(plugin, &mac)).is_some() {
            return Ok(true);
        }
        let verified = match self.admit(plugin, Verification { mac, asked }) {
            PasswordLookup::Remembered(until) => {
                REMEMBERED.with_borrow_mut(|remembered| remembered.remember(plugin, mac, until));
                return Ok(true);
            }
            PasswordLookup::Waiting(answer) => answer.await.unwrap_or(Err(VerifyError::Busy)),
            PasswordLookup::Full => {
                log_full(plugin);
                Err(VerifyError::Busy)
            }
        };
        if !time.is_zero() && verified == Ok(true) {
            let until = Instant::now() + time;
            REMEMBERED.with_borrow_mut(|remembered| remembered.remember(plugin, mac, until));
            self.known().remembered.remember(plugin, mac, until);
        }
        verified
    }

    /// Returns the MAC of a hash and a password.
    fn mac(&self, hash: &str, password: &[u8]) -> Mac {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(hash.len() as u64).to_le_bytes()).update(hash.as_bytes()).update(password);
        *hasher.finalize().as_bytes()
    }

    /// Has a password verified by another thread, if no thread does so for another request.
    fn admit(&self, plugin: &Arc<str>, job: Verification) -> PasswordLookup {
        let mut known = self.known();
        if let Some(until) = known.remembered.end_of(plugin, &job.mac) {
            return PasswordLookup::Remembered(until);
        }
        let (sender, answer) = oneshot::channel();
        let mac = job.mac;
        if let Some(others) = known.waiting.get_mut(&mac) {
            others.push(sender);
            return PasswordLookup::Waiting(answer);
        }
        if !known.enqueue(plugin, job) {
            return PasswordLookup::Full;
        }
        known.waiting.insert(mac, vec![sender]);
        self.arrived.notify_one();
        PasswordLookup::Waiting(answer)
    }

    /// Verifies passwords until the process ends.
    fn run(&self) {
        // On Linux, the priority is the thread's own.
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, "a thread that verifies passwords has the priority of workers");
        }
        loop {
            let Verification { mac, asked: UnverifiedPassword { hash, password, .. } } = self.next();
            let verified = guard(Task::Other, || verified(&hash, &password));
            self.answer(&mac, verified.unwrap_or(Err(VerifyError::BadHash)));
        }
    }

    /// Waits for a password that a request waits for.
    fn next(&self) -> Verification {
        let mut known = self.known();
        loop {
            if let Some(job) = known.dequeue() {
                return job;
            }
            known = self.arrived.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tells the requests that wait for a verification what it has shown.
    fn answer(&self, mac: &Mac, verified: Verified) {
        let waiting = self.known().waiting.remove(mac).unwrap_or_default();
        for one in waiting {
            let _ = one.send(verified);
        }
    }

    fn known(&self) -> MutexGuard<'_, KnownPasswords> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs that a password finds no room in the queue, at most once a minute.
fn log_full(plugin: &str) {
    static LOGGED: Mutex<Option<Instant>> = Mutex::new(None);
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if logged.is_none_or(|at| at.elapsed() >= QUIET) {
        *logged = Some(Instant::now());
        let remedy = "choose hashes that cost less, or limit the requests of a client";
        tracing::warn!(
            plugin,
            queue = QUEUE,
            remedy,
            "too many passwords wait to be verified: the plugin gets the error `busy`"
        );
    }
}

fn log_start_error(error: &std::io::Error) {
    tracing::error!(%error, "the threads that verify passwords don't start");
}

/// Returns the result for a hash or a password that is too long, which is neither kept in memory nor hashed.
fn known_by_length(hash: &str, password: &[u8]) -> Option<Verified> {
    if hash.len() > MAX_HASH_BYTES {
        return Some(Err(VerifyError::BadHash));
    }
    (password.len() > MAX_PASSWORD_BYTES).then_some(Ok(false))
}

/// Whether a password is the one of a hash; neither is too long.
fn verified(hash: &str, password: &[u8]) -> Verified {
    match hash.get(..3) {
        Some("$2a" | "$2b" | "$2y") => verified_by_bcrypt(hash, password),
        Some("$5$" | "$6$") => verified_by_sha_crypt(hash, password),
        Some("$ar") => verified_by_argon2(hash, password),
        _ => Err(VerifyError::BadHash),
    }
}

fn verified_by_bcrypt(hash: &str, password: &[u8]) -> Result<bool, VerifyError> {
    let parts: HashParts = hash.parse().map_err(|_| VerifyError::BadHash)?;
    if parts.get_cost() > MAX_BCRYPT_COST {
        return Err(VerifyError::TooCostly);
    }
    bcrypt::verify(password, hash).map_err(|_| VerifyError::BadHash)
}

fn verified_by_sha_crypt(hash: &str, password: &[u8]) -> Result<bool, VerifyError> {
    let rounds = hash.split('$').nth(2).and_then(|field| field.strip_prefix("rounds="));
    if let Some(rounds) = rounds
        && rounds.parse::<u32>().map_err(|_| VerifyError::BadHash)? > MAX_SHA_CRYPT_ROUNDS
    {
        return Err(VerifyError::TooCostly);
    }
    if password.len() > MAX_SHA_CRYPT_PASSWORD_BYTES {
        return Ok(false);
    }
    let hash = PasswordHashRef::new(hash).map_err(|_| VerifyError::BadHash)?;
    answer(ShaCrypt::default().verify_password(password, hash))
}

fn verified_by_argon2(hash: &str, password: &[u8]) -> Result<bool, VerifyError> {
    let hash = PasswordHash::new(hash).map_err(|_| VerifyError::BadHash)?;
    let params = Params::try_from(&hash).map_err(|_| VerifyError::BadHash)?;
    let (memory, passes) = (u64::from(params.m_cost()), u64::from(params.t_cost()));
    if memory > MAX_ARGON2_MEMORY || memory.saturating_mul(passes) > MAX_ARGON2_WORK {
        return Err(VerifyError::TooCostly);
    }
    answer(Argon2::default().verify_password(password, &hash))
}

fn answer(verified: argon2::password_hash::Result<()>) -> Result<bool, VerifyError> {
    match verified {
        Ok(()) => Ok(true),
        Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
        Err(_) => Err(VerifyError::BadHash),
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::GrantedAccess;
    use super::super::log_lines::PluginLog;
    use super::*;

    /// Hashes of `password`, by crypt(3) (libxcrypt), `openssl passwd` and the test vectors of Argon2.
    const HASHES: [&str; 5] = [
        "$2y$05$abcdefghijklmnopqrstuuWG29KuyeAicPCJODk1zjyGvyQUU2awu",
        "$5$saltsalt$gOjOtoMpVhru2uyjeJSEc/JaLQWOXMNmlOnj6T4AtC.",
        "$5$rounds=1000$saltsalt$azOwbpkvuuBKkE82dQPwTsQE8JyT9Fflpr9aKid3aT9",
        "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/",
        "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
    ];

    #[test]
    fn each_format_knows_its_password() {
        for hash in HASHES {
            assert_eq!(verified(hash, b"password"), Ok(true), "{hash}");
            for wrong in [&b""[..], b"Password", b"password ", &[b's'; MAX_PASSWORD_BYTES]] {
                assert_eq!(verified(hash, wrong), Ok(false), "{hash}");
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn long_passwords_and_hashes_wait_for_no_thread() {
        let access = GrantedAccess::default();
        let mut state = HostState::new(1 << 20, PluginLog::new("staff".into()), &access);
        state.cpu.begin_turns(Duration::from_secs(1));
        let (long, longer) = (vec![b'x'; MAX_PASSWORD_BYTES + 1], "$6$".repeat(MAX_HASH_BYTES));
        for (hash, password, wanted) in [
            (HASHES[0].to_string(), long.clone(), Ok(false)),
            (longer.clone(), b"password".to_vec(), Err(VerifyError::BadHash)),
            (longer, long, Err(VerifyError::BadHash)),
        ] {
            let mut verified = Box::pin(Host::verify(&mut state, hash, password, 0));
            let polled = verified.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            assert!(matches!(polled, std::task::Poll::Ready(Ok(verified)) if verified == wanted));
        }
    }

    #[test]
    fn what_would_cost_too_much_is_not_computed() {
        for hash in [
            "$2y$15$abcdefghijklmnopqrstuuWG29KuyeAicPCJODk1zjyGvyQUU2awu",
            "$6$rounds=1000001$saltsalt$0",
            "$argon2id$v=19$m=4194304,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=131072,t=9,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(verified(hash, b"password"), Err(VerifyError::TooCostly), "{hash}");
        }
    }

    #[test]
    fn a_password_is_remembered_for_its_time_and_its_hash() {
        let verifier = Verifier::get().unwrap();
        let mac = |hash, password: &str| verifier.mac(hash, password.as_bytes());
        let (mut remembered, later) = (RememberedPasswords::default(), Instant::now() + Duration::from_secs(60));
        let (staff, other): (Arc<str>, Arc<str>) = ("staff".into(), "other".into());
        let known = mac("hash", "password");
        assert_eq!(remembered.end_of(&staff, &known), None);
        remembered.remember(&staff, known, later);
        assert!(remembered.end_of(&staff, &known) == Some(later) && known == mac("hash", "password"));
        for wrong in [mac("hash", "passwor"), mac("has", "hpassword"), mac("other", "password")] {
            assert_eq!(remembered.end_of(&staff, &wrong), None);
        }
        remembered.remember(&staff, mac("brief", "x"), Instant::now());
        assert_eq!(remembered.end_of(&staff, &mac("brief", "x")), None);
        let many = |number: usize| mac("hash", &number.to_string());
        (0..2 * MAX_REMEMBERED).for_each(|number| remembered.remember(&staff, many(number), later));
        let count =
            (0..2 * MAX_REMEMBERED).filter(|number| remembered.end_of(&staff, &many(*number)).is_some()).count();
        remembered.remember(&other, known, later);
        assert!(remembered.end_of(&other, &known).is_some(), "another plugin has room of its own");
        assert!(count < MAX_REMEMBERED && remembered.end_of(&staff, &known).is_some(), "{count}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn requests_with_one_password_wait_for_one_verification() {
        let verifier = Verifier::get().unwrap();
        let plugin: Arc<str> = "staff".into();
        let verify = |password: &str| {
            let asked =
                UnverifiedPassword { client: Holder::UNKNOWN, hash: HASHES[0].into(), password: password.into() };
            verifier.verify(&plugin, asked, Duration::ZERO)
        };
        let right: Vec<_> = (0..10 * QUEUE).map(|_| Box::pin(verify("password"))).collect();
        let wrong: Vec<_> = (0..10 * QUEUE).map(|_| Box::pin(verify("Password"))).collect();
        for (verifications, wanted) in [(right, true), (wrong, false)] {
            for verified in futures_of(verifications).await {
                assert_eq!(verified, Ok(wanted));
            }
        }
        assert!(verifier.known().waiting.is_empty());
    }

    #[test]
    fn plugins_and_their_clients_are_served_in_turn() {
        let mut known = KnownPasswords::default();
        let mut receivers = Vec::new();
        let mut enqueue = |plugin: &str, client: u64, number: usize| {
            let mut mac = [0; 32];
            (mac[0], mac[1], mac[2]) = (plugin.as_bytes()[0], client as u8, number as u8);
            let hash = format!("{plugin}{client}");
            let asked = UnverifiedPassword { client: Holder::numbered(client), hash, password: Vec::new() };
            let is_queued = known.enqueue(&plugin.into(), Verification { mac, asked });
            let (sender, receiver) = oneshot::channel();
            receivers.push(receiver);
            known.waiting.insert(mac, vec![sender]);
            is_queued
        };
        assert_eq!((0..2 * QUEUE).filter(|number| enqueue("a", 1, *number)).count(), QUEUE - RESERVED);
        assert!(enqueue("b", 1, 0) && enqueue("b", 1, 1));
        assert!(enqueue("a", 2, 0) && !enqueue("a", 2, 1), "the last places are for clients that have none");
        let next: Vec<String> = std::iter::from_fn(|| known.dequeue()).map(|job| job.asked.hash).collect();
        assert_eq!((next[..5].join(" "), next.len()), ("a1 b1 a2 b1 a1".into(), QUEUE - RESERVED + 3));
        assert!(known.queue.is_empty());
    }

    /// Polls all futures until each has its output.
    async fn futures_of<F: Future + Unpin>(mut futures: Vec<F>) -> Vec<F::Output> {
        let mut outputs = Vec::new();
        std::future::poll_fn(|cx| {
            futures.retain_mut(|future| match std::pin::Pin::new(future).poll(cx) {
                std::task::Poll::Ready(output) => {
                    outputs.push(output);
                    false
                }
                std::task::Poll::Pending => true,
            });
            if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        outputs
    }

    #[test]
    fn other_texts_are_no_hashes() {
        for hash in ["", "$", "password", "$apr1$salt$x", "{SHA}x", "$2y$", "$5$", "$6$rounds=x$a$b", "$argon2id$"] {
            assert_eq!(verified(hash, b"password"), Err(VerifyError::BadHash), "{hash}");
        }
    }
}
