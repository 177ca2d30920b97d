//! The import `passwords`: verifies passwords on a few threads of their own, for plugins whose hooks may wait.
//!
//! Hashes come from manifests and from plugins, so their cost is bounded before anything is computed or allocated.

#![expect(clippy::disallowed_methods, reason = "read beside a hash of a password, which costs more")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params};
use bcrypt::HashParts;
use sha_crypt::{PasswordHashRef, ShaCrypt};
use tokio::sync::oneshot;

use super::bindings::passwords::{Host, VerifyError};
use super::host::HostState;
use super::wasi::waits;
use crate::system::supervise::{Task, guard};

/// A password to be verified, and the receiver of the answer.
struct Verification {
    hash: String,
    password: Vec<u8>,
    reply: oneshot::Sender<Result<bool, VerifyError>>,
}

/// The threads that verify passwords, which all plugins share.
struct VerifierThreads(SyncSender<Verification>);

/// Passwords that may wait for a thread. At 50 ms each, the last one waits for a second and a half.
const QUEUE: usize = 32;

/// Passwords that a worker remembers: one for each user of a large list, in less than a MiB.
const MAX_REMEMBERED: usize = 10_000;

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
            return Err(waits());
        }
        let time = Duration::from_millis(remember_ms).min(MAX_MEMORY_TIME);
        let mac = (!time.is_zero()).then(|| Memory::mac(&hash, &password)).flatten();
        if mac.is_some_and(|mac| Memory::knows(&mac)) {
            return Ok(Ok(true));
        }
        let verified = verify(hash, password).await;
        if let (Some(mac), Ok(true)) = (mac, verified) {
            Memory::remember(mac, time);
        }
        Ok(verified)
    }
}

/// The passwords that were right lately, as a worker remembers them: MACs under a random key, with their ends.
struct Memory {
    key: [u8; 32],
    until: HashMap<[u8; 32], Instant>,
}

thread_local! {
    /// The memory of this worker; `None` without random numbers.
    static MEMORY: RefCell<Option<Memory>> = RefCell::new(Memory::new());
}

impl Memory {
    fn new() -> Option<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).ok().map(|()| Memory { key, until: HashMap::new() })
    }

    /// Returns the MAC of a hash and a password.
    fn mac(hash: &str, password: &[u8]) -> Option<[u8; 32]> {
        MEMORY.with_borrow(|memory| {
            let mut hasher = blake3::Hasher::new_keyed(&memory.as_ref()?.key);
            hasher.update(&(hash.len() as u64).to_le_bytes()).update(hash.as_bytes()).update(password);
            Some(*hasher.finalize().as_bytes())
        })
    }

    /// Whether a password was right lately. A MAC can't be guessed, so its comparison tells nothing.
    fn knows(mac: &[u8; 32]) -> bool {
        let known = |memory: &Option<Memory>| memory.as_ref()?.until.get(mac).copied();
        MEMORY.with_borrow(known).is_some_and(|until| until > Instant::now())
    }

    /// Remembers a password, if there is room.
    fn remember(mac: [u8; 32], time: Duration) {
        MEMORY.with_borrow_mut(|memory| {
            let (Some(memory), now) = (memory, Instant::now()) else { return };
            if memory.until.len() >= MAX_REMEMBERED {
                memory.until.retain(|_, until| *until > now);
            }
            if memory.until.len() < MAX_REMEMBERED {
                memory.until.insert(mac, now + time);
            }
        });
    }
}

/// Verifies a password on another thread. If the future is dropped, the password is not verified unless that has begun.
async fn verify(hash: String, password: Vec<u8>) -> Result<bool, VerifyError> {
    let (reply, answer) = oneshot::channel();
    let threads = VerifierThreads::get().ok_or(VerifyError::Busy)?;
    match threads.0.try_send(Verification { hash, password, reply }) {
        Ok(()) => answer.await.unwrap_or(Err(VerifyError::Busy)),
        Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(VerifyError::Busy),
    }
}

impl VerifierThreads {
    /// Returns the threads, which start when they are first needed; `None` if the system has no room for them.
    fn get() -> Option<&'static Self> {
        static THREADS: OnceLock<Option<VerifierThreads>> = OnceLock::new();
        THREADS.get_or_init(|| VerifierThreads::start().inspect_err(log_start_error).ok()).as_ref()
    }

    /// Starts a thread for every second core.
    fn start() -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let (sender, receiver) = sync_channel(QUEUE);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..(cores / 2).max(1) {
            let receiver = receiver.clone();
            std::thread::Builder::new().name("passwords".into()).spawn(move || run(&receiver))?;
        }
        Ok(VerifierThreads(sender))
    }
}

fn log_start_error(error: &std::io::Error) {
    tracing::error!(%error, "the threads that verify passwords don't start");
}

/// Verifies passwords until the process ends.
fn run(queue: &Mutex<Receiver<Verification>>) {
    // On Linux, the priority is the thread's own.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a thread that verifies passwords has the priority of workers");
    }
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Verification { hash, password, reply }) = next else { return };
        // The client has left.
        if reply.is_closed() {
            continue;
        }
        let verified = guard(Task::Other, || verified(&hash, &password));
        let _ = reply.send(verified.unwrap_or(Err(VerifyError::BadHash)));
    }
}

/// Whether a password is the one of a hash.
fn verified(hash: &str, password: &[u8]) -> Result<bool, VerifyError> {
    if hash.len() > MAX_HASH_BYTES {
        return Err(VerifyError::BadHash);
    }
    if password.len() > MAX_PASSWORD_BYTES {
        return Ok(false);
    }
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
            for wrong in [&b""[..], b"Password", b"password ", &[b's'; 5000]] {
                assert_eq!(verified(hash, wrong), Ok(false), "{hash}");
            }
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
        let mac = |hash, password: &str| Memory::mac(hash, password.as_bytes()).unwrap();
        let known = mac("hash", "password");
        assert!(!Memory::knows(&known));
        Memory::remember(known, Duration::from_secs(60));
        assert!(Memory::knows(&known) && known == mac("hash", "password"));
        for other in [mac("hash", "passwor"), mac("has", "hpassword"), mac("other", "password")] {
            assert!(!Memory::knows(&other));
        }
        Memory::remember(mac("brief", "x"), Duration::ZERO);
        assert!(!Memory::knows(&mac("brief", "x")));
        let many = |number: usize| mac("hash", &number.to_string());
        (0..2 * MAX_REMEMBERED).for_each(|number| Memory::remember(many(number), Duration::from_secs(60)));
        let count = (0..2 * MAX_REMEMBERED).filter(|number| Memory::knows(&many(*number))).count();
        assert!(count < MAX_REMEMBERED && Memory::knows(&known), "{count}");
    }

    #[test]
    fn other_texts_are_no_hashes() {
        let long = format!("$6${}", "a".repeat(600));
        for hash in
            ["", "$", "password", "$apr1$salt$x", "{SHA}x", "$2y$", "$5$", "$6$rounds=x$a$b", "$argon2id$", &long]
        {
            assert_eq!(verified(hash, b"password"), Err(VerifyError::BadHash), "{hash}");
        }
    }
}
