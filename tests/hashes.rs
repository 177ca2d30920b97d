//! The commands that hash passwords and keys: what they print can be verified, and what they hash is shown nowhere.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;

use crate::support::plugway;

/// Returns the output of a command that reads these bytes.
fn hashed(args: &[&str], input: &[u8]) -> Output {
    let mut child =
        plugway().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that needs no more closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Returns the hash that a command prints.
fn hash(args: &[&str], input: &[u8]) -> String {
    let Output { status, stdout, stderr } = hashed(args, input);
    assert!(status.success() && stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap().strip_suffix('\n').unwrap().into()
}

fn is_argon2_of(hash: &str, password: &str) -> bool {
    Argon2::default().verify_password(password.as_bytes(), &PasswordHash::new(hash).unwrap()).is_ok()
}

#[test]
fn the_hash_of_a_password_can_be_verified() {
    for input in ["pa55 wörd\n", "pa55 wörd", "pa55 wörd\r\n"] {
        let hash = hash(&["hash-password"], input.as_bytes());
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(is_argon2_of(&hash, "pa55 wörd") && !is_argon2_of(&hash, "pa55 word"), "{hash}");
    }
    let (one, other) = (hash(&["hash-password"], b"x\n"), hash(&["hash-password"], b"x\n"));
    assert_ne!(one, other, "each hash has a salt of its own");
    let hash = hash(&["hash-password", "--bcrypt"], b"pa55word\n");
    assert!(hash.starts_with("$2b$12$") && bcrypt::verify("pa55word", &hash).unwrap(), "{hash}");
}

#[test]
fn the_hash_of_a_key_is_that_of_sha256() {
    // `printf 0123456789abcdef | sha256sum`
    let wanted = "sha256:9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f";
    assert_eq!(hash(&["hash-key"], b"0123456789abcdef\n"), wanted);
}

#[test]
fn unhashable_input_is_an_error_that_does_not_show_it() {
    let long = "s3cret".repeat(1_000);
    for (args, input, wanted) in [
        (&["hash-password"][..], &b"\n"[..], "empty password"),
        (&["hash-password"], b"", "empty password"),
        (&["hash-password"], b"s3cret\xff\n", "the password is no text in UTF-8"),
        (&["hash-password"], long.as_bytes(), "password too long"),
        (&["hash-password", "--bcrypt"], &long.as_bytes()[..73], "bcrypt reads 72 at most"),
        (&["hash-password"], b"s3cret\nanother\n", "more than one line"),
        (&["hash-key"], b"0123456789abcdef\n\n", "more than one line"),
        (&["hash-key"], b"s3cret\n", "key too short: 6 bytes"),
        (&["hash-key"], b" s3cret-0123456789\n", "it has a space or a tab at an end"),
        (&["hash-key"], b"s3cret-0123456789\t\r\n", "it has a space or a tab at an end"),
        (&["hash-key"], b"s3cret-\0-0123456789\n", "it has a control character"),
        (&["hash-key"], b"s3cret-0123456789\r\r\n", "it has a control character"),
        (&["hash-key"], b"\xef\xbb\xbfs3cret-0123456789\n", "it begins with a byte order mark"),
        (&["hash-password", "s3cret"], b"", "unexpected argument"),
    ] {
        let Output { status, stdout, stderr } = hashed(args, input);
        let said = String::from_utf8(stderr).unwrap();
        assert!(!status.success() && stdout.is_empty() && said.contains(wanted), "{args:?}: {said}");
        assert!(args.len() > 1 || !said.contains("s3cret"), "{said}");
    }
}

/// Types at a terminal of its own, and prints what the terminal shows.
const TERMINAL: &str = r#"
import os, pty, sys
answers = [line.encode() for line in sys.argv[1].split(",")]
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[2], ["plugway", "hash-password"])
shown = b""
while True:
    try:
        piece = os.read(terminal, 4096)
    except OSError:
        break
    if not piece:
        break
    shown += piece
    if answers and shown.endswith(b": "):
        os.write(terminal, answers.pop(0) + b"\n")
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

#[test]
fn a_terminal_shows_no_password_and_asks_twice() {
    let typed = |answers: &str| {
        let program = plugway().get_program().to_owned();
        let output = Command::new("python3").args(["-c", TERMINAL, answers]).arg(program).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (is_good, shown) = typed("s3cret pa55,s3cret pa55");
    assert!(is_good && !shown.contains("pa55"), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[..2], ["password: ", "password again: "]);
    assert!(is_argon2_of(lines[2], "s3cret pa55"), "{shown}");
    let (is_good, shown) = typed("s3cret pa55,s3cret pa56");
    assert!(!is_good && shown.contains("the two entries differ") && !shown.contains("pa55"), "{shown}");
}

/// Interrupts at the first question, and prints the exit code and whether the terminal has an echo then.
const INTERRUPTED: &str = r#"
import fcntl, os, pty, signal, subprocess, sys, termios
terminal, side = pty.openpty()
take = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
child = subprocess.Popen([sys.argv[1], "hash-key"], stdin=side, stdout=side, stderr=side, start_new_session=True, preexec_fn=take)
shown = b""
while not shown.endswith(b": "):
    shown += os.read(terminal, 4096)
assert not termios.tcgetattr(side)[3] & termios.ECHO
if sys.argv[2] == "INT":
    os.write(terminal, b"\x03")
else:
    child.send_signal(getattr(signal, "SIG" + sys.argv[2]))
code = child.wait(60)
print(code, bool(termios.tcgetattr(side)[3] & termios.ECHO))
"#;

#[test]
fn an_interrupted_terminal_has_its_echo_again() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let program = plugway().get_program().to_owned();
        let output = Command::new("python3").args(["-c", INTERRUPTED]).arg(program).arg(signal).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(said, format!("{code} True\n"), "{signal}");
    }
}
