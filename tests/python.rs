//! Programs of the test's own in Python, where a real peer is wanted that Rust doesn't have.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// A program that runs until dropped.
pub struct Python {
    child: Child,
    /// The first line that the program printed, most often a port.
    pub first_line: String,
}

/// Returns the interpreter that `tests/run` sets up.
fn interpreter() -> Command {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-venv/bin/python");
    assert!(std::path::Path::new(path).exists(), "run the tests by tests/run, which sets up Python");
    Command::new(path)
}

impl Python {
    /// Starts a program, and waits for its first line.
    pub fn start(program: &str) -> Python {
        let mut child =
            interpreter().args(["-uc", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut first_line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first_line).unwrap();
        Python { child, first_line: first_line.trim().into() }
    }

    /// Writes a text to the program's standard input.
    pub fn write(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end; returns its output, and fails if the program fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = interpreter().args(["-c", program]).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    text
}
