//! The proxy's side of a child: starts it, talks with it, and never waits longer than its limits.
#![expect(
    clippy::disallowed_methods,
    reason = "a child is started from this very program, and waited for on a thread without a clock of a worker"
)]

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{LoadFailure, LoadLimits, Stop, confined, messages};

/// A child process that loads a component. It ends when this is dropped.
pub(super) struct Child {
    process: process::Child,
    input: ChildStdin,
    output: ChildStdout,
    limits: LoadLimits,
    stop: Stop,
}

/// The maximum time of an answer, as a multiple of the CPU time: the child has a low priority, so that other processes
/// may keep it from running.
const PATIENCE: u32 = 4;

/// The interval between two checks whether loading is to stop.
const GLANCE: Duration = Duration::from_millis(20);

/// The maximum time that a child which has closed its output may take to end.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// The maximum number of bytes that are read from the end of the child's standard error.
const LAST_WORDS: u64 = 4 << 10;

impl Child {
    /// Starts a child of this program.
    pub fn start(limits: LoadLimits, stop: Stop) -> Result<Self, LoadFailure> {
        let mut command = Command::new(program()?);
        command.arg0("plugway").arg(confined::ARGUMENT).env_clear();
        // Half of the cores at most: the rest serves.
        let threads = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
        command.env("RAYON_NUM_THREADS", threads.to_string());
        // The allocator's first gigabyte is to count when it is used.
        command.env("MIMALLOC_ARENA_EAGER_COMMIT", "0");
        // Signals of a terminal are for the proxy, which decides what becomes of its child.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(explained)?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::Error::other("a child has no pipes").into());
        };
        for pipe in [input.as_fd(), output.as_fd()] {
            rustix::io::ioctl_fionbio(pipe, true).map_err(io::Error::from)?;
        }
        Ok(Child { process, input, output, limits, stop })
    }

    /// Sends a message.
    pub fn send<T: Serialize>(&mut self, content: &T) -> Result<(), LoadFailure> {
        let message = messages::message(content)?;
        self.write(&message).map_err(LoadFailure::from)
    }

    /// Sends bytes. Bytes for a child that has ended are dropped, since the child's answer says why it ended.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = self.deadline();
        while !bytes.is_empty() {
            match self.input.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Direction::Input, deadline).map_err(|failure| io::Error::other(failure.to_string()))?;
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for a message.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T, LoadFailure> {
        let length = self.read(4)?;
        let length = length.try_into().map_or(0, u32::from_le_bytes) as usize;
        if length > messages::MAX_MESSAGE_BYTES {
            return Err(LoadFailure::Crash("its answer is too long".into()));
        }
        let message = self.read(length)?;
        messages::content(&message).map_err(|_| LoadFailure::Crash("its answer makes no sense".into()))
    }

    /// Waits for `length` bytes.
    pub fn read(&mut self, length: usize) -> Result<Vec<u8>, LoadFailure> {
        let deadline = self.deadline();
        let (mut bytes, mut read) = (vec![0; length], 0);
        while read < length {
            match self.output.read(&mut bytes[read..]) {
                Ok(0) => return Err(self.end()),
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(Direction::Output, deadline)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.limits.time * PATIENCE
    }

    /// Waits until a pipe is ready, but not beyond the deadline or an order to stop.
    fn wait(&self, direction: Direction, deadline: Instant) -> Result<(), LoadFailure> {
        let (pipe, wanted): (BorrowedFd<'_>, _) = match direction {
            Direction::Input => (self.input.as_fd(), PollFlags::OUT),
            Direction::Output => (self.output.as_fd(), PollFlags::IN),
        };
        loop {
            if self.stop.is_ordered() {
                return Err(LoadFailure::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(LoadFailure::Time(self.limits));
            }
            let glance = Timespec { tv_sec: 0, tv_nsec: GLANCE.as_nanos() as i64 };
            match poll(&mut [PollFd::from_borrowed_fd(pipe, wanted)], Some(&glance)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    /// Returns the reason why the child has closed its output.
    fn end(&mut self) -> LoadFailure {
        let deadline = Instant::now() + LAST_BREATH;
        let status = loop {
            match self.process.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => return LoadFailure::Crash("it no longer answers".into()),
                Err(error) => return error.into(),
            }
        };
        let mut words = Vec::new();
        if let Some(errors) = self.process.stderr.take() {
            let _ = errors.take(LAST_WORDS).read_to_end(&mut words);
        }
        let words = String::from_utf8_lossy(&words);
        tracing::debug!(%status, words = %crate::system::printable::one_line(&words, usize::MAX), "a plugin's loading ended");
        LoadFailure::of(status, &words, self.limits)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

enum Direction {
    Input,
    Output,
}

/// Returns the error of a start with its remedy, if the program isn't found: its path leads through `/proc`.
fn explained(error: io::Error) -> io::Error {
    let is_missing = error.kind() == io::ErrorKind::NotFound && cfg!(target_os = "linux");
    let message = "there is no /proc/self/exe, by which the program starts the child that loads plugins: mount /proc";
    if is_missing { io::Error::new(error.kind(), message) } else { error }
}

/// Returns the path of the running program, even if its file was replaced.
fn program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}
