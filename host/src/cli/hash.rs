//! Hashes of passwords and of keys, for the configurations of plugins. What is hashed is never an argument of a command,
//! since all users of a machine can read those.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use anyhow::{Context, bail, ensure};
use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

/// The longest password or key. Longer input is a file that was passed by mistake.
const MAX_BYTES: u64 = 4 << 10;

/// The longest password that bcrypt reads: it would ignore the rest.
const MAX_BCRYPT_BYTES: usize = 72;

/// The rounds of bcrypt, as a power of two: about a quarter of a second.
const BCRYPT_COST: u32 = 12;

/// The shortest key that a fast hash protects. Shorter ones can be guessed.
const MIN_KEY_BYTES: usize = 16;

/// The function that hashes a password.
#[derive(Clone, Copy)]
pub enum PasswordHash {
    Argon2id,
    Bcrypt,
}

/// Reads a password, and returns its hash.
pub fn password(hash: PasswordHash) -> anyhow::Result<String> {
    let password = secret("password")?;
    ensure!(!password.is_empty(), "empty password: expected at least one character");
    match hash {
        PasswordHash::Argon2id => {
            let hashed = Argon2::default().hash_password(password.as_bytes());
            Ok(hashed.map_err(anyhow::Error::msg).context("the password can't be hashed")?.to_string())
        }
        PasswordHash::Bcrypt => {
            let bytes = password.len();
            ensure!(
                bytes <= MAX_BCRYPT_BYTES,
                "password too long: {bytes} bytes; bcrypt reads {MAX_BCRYPT_BYTES} at most, so leave out --bcrypt"
            );
            bcrypt::hash(password, BCRYPT_COST).context("the password can't be hashed")
        }
    }
}

/// Reads a key of a client, and returns its hash, such as `sha256:…`. The hash is fast, which is enough for keys that
/// can't be guessed.
pub fn key() -> anyhow::Result<String> {
    let key = secret("key")?;
    ensure!(
        key.len() >= MIN_KEY_BYTES,
        "key too short: {} bytes; expected a random one of at least {MIN_KEY_BYTES}, such as from `openssl rand -hex 32`",
        key.len()
    );
    if let Some(found) = uncarried(&key) {
        bail!("key that no request can have: {found}; expected a random one, such as from `openssl rand -hex 32`");
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

/// Returns what keeps a field from carrying a key: each request with the key would be refused. `None` if nothing does.
fn uncarried(key: &str) -> Option<&'static str> {
    match key {
        // Editors of Windows write it.
        _ if key.starts_with('\u{feff}') => Some("it begins with a byte order mark"),
        // They are no part of a field's value (RFC 9110 §5.5).
        _ if key.trim_matches([' ', '\t']) != key => Some("it has a space or a tab at an end"),
        _ if key.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') => Some("it has a control character"),
        _ => None,
    }
}

/// Reads a secret from standard input: twice and without an echo from a terminal, or one line from a pipe or a file.
fn secret(what: &'static str) -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        let mut text = Vec::new();
        // With room for the end of the line, and for a byte too many.
        let read = std::io::stdin().lock().take(MAX_BYTES + 3).read_to_end(&mut text);
        read.with_context(|| format!("the {what} can't be read from standard input"))?;
        return line(&text, what);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let typed = runtime.block_on(typed(what));
    // A thread may still wait for a line.
    runtime.shutdown_background();
    match typed? {
        Typed::Secret(secret) => Ok(secret),
        Typed::Interrupted(signal) => {
            let _ = writeln!(std::io::stderr());
            std::process::exit(128 + signal.as_raw_value())
        }
    }
}

/// The result of asking at a terminal.
enum Typed {
    Secret(String),
    Interrupted(SignalKind),
}

/// Asks twice at the terminal, whose echo is on again at the end, whether the user types the secret or interrupts.
async fn typed(what: &'static str) -> anyhow::Result<Typed> {
    let [mut interrupt, mut terminate, mut hangup, mut quit] = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
        signal(SignalKind::quit())?,
    ];
    let _silent = SilentTerminal::new()?;
    let asking = tokio::task::spawn_blocking(move || {
        let (first, again) = (ask(&format!("{what}: "), what)?, ask(&format!("{what} again: "), what)?);
        if first == again { Ok(first) } else { bail!("the two entries differ: type the {what} again") }
    });
    tokio::select! {
        asked = asking => Ok(Typed::Secret(asked??)),
        _ = interrupt.recv() => Ok(Typed::Interrupted(SignalKind::interrupt())),
        _ = terminate.recv() => Ok(Typed::Interrupted(SignalKind::terminate())),
        _ = hangup.recv() => Ok(Typed::Interrupted(SignalKind::hangup())),
        _ = quit.recv() => Ok(Typed::Interrupted(SignalKind::quit())),
    }
}

/// Asks a question at the terminal, and returns the line that the user types.
fn ask(question: &str, what: &str) -> anyhow::Result<String> {
    let mut terminal = std::io::stderr();
    // Standard output is for the hash alone.
    let _ = terminal.write_all(question.as_bytes()).and_then(|()| terminal.flush());
    let mut text = Vec::new();
    let read = std::io::stdin().lock().take(MAX_BYTES + 2).read_until(b'\n', &mut text);
    read.with_context(|| format!("the {what} can't be read from the terminal"))?;
    line(&text, what)
}

/// Returns the only line of a text without its end.
fn line(text: &[u8], what: &str) -> anyhow::Result<String> {
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    ensure!(line.len() as u64 <= MAX_BYTES, "{what} too long: expected at most {MAX_BYTES} bytes");
    ensure!(
        !line.contains(&b'\n'),
        "more than one line: expected the {what} alone; select its line, such as by `head -n 1`"
    );
    std::str::from_utf8(line).map(String::from).with_context(|| format!("the {what} is no text in UTF-8"))
}

/// A terminal whose echo is off until the value is dropped.
struct SilentTerminal {
    before: Termios,
}

impl SilentTerminal {
    fn new() -> anyhow::Result<Self> {
        let input = std::io::stdin();
        let before = tcgetattr(input.as_fd()).context("the terminal can't be read")?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // The end of the line is shown, so that the next question begins a line.
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(input.as_fd(), OptionalActions::Flush, &silent).context("the echo can't be turned off")?;
        Ok(SilentTerminal { before })
    }
}

impl Drop for SilentTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}
