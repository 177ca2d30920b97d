//! A file, pipe or socket that a log is written to by a thread of its own, even if its reader is slow or stops.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The destination of a log.
pub struct Output {
    file: File,
    /// Whether the destination is a regular file, so that writes never wait for a reader.
    is_regular: bool,
    /// Whether a failed write has left a partial line.
    is_within_line: bool,
}

/// The number of bytes that a pipe accepts at once when it reports room (`PIPE_BUF` of POSIX on Linux).
const CHUNK: usize = 4096;

/// The time between two checks whether to continue waiting.
pub const LOOK_TIME: Duration = Duration::from_millis(100);
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: LOOK_TIME.subsec_nanos() as i64 };

/// The pause before a retry. A non-blocking pipe can report room that it doesn't have.
const PAUSE: Duration = Duration::from_millis(10);

impl Output {
    /// Wraps an open file.
    pub fn new(file: File) -> Self {
        let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Output { file, is_regular, is_within_line: false }
    }

    /// Writes whole lines. Waits for a reader that does not read as long as `may_wait` returns `true`. The error has
    /// the number of bytes that were written.
    pub fn write(&mut self, lines: &[u8], may_wait: impl Fn() -> bool) -> Result<(), (usize, io::Error)> {
        if self.is_within_line {
            // The rest of the partial line is lost, and the next line must not continue it.
            self.write_some(b"\n", &may_wait).map_err(|error| (0, error))?;
            self.is_within_line = false;
        }
        self.write_all(lines, &may_wait)
    }

    fn write_all(&mut self, bytes: &[u8], may_wait: &impl Fn() -> bool) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while written < bytes.len() {
            let rest = &bytes[written..];
            match self.write_some(rest, may_wait) {
                Ok(more) => written += more,
                Err(error) => {
                    self.is_within_line = written > 0 && bytes[written - 1] != b'\n';
                    return Err((written, error));
                }
            }
        }
        Ok(())
    }

    fn write_some(&mut self, bytes: &[u8], may_wait: &impl Fn() -> bool) -> io::Result<usize> {
        let bytes = if self.is_regular { bytes } else { &bytes[..bytes.len().min(CHUNK)] };
        loop {
            if !self.is_regular {
                self.wait(may_wait)?;
            }
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
                done => return done,
            }
        }
    }

    /// Waits until the destination has room.
    fn wait(&self, may_wait: &impl Fn() -> bool) -> io::Result<()> {
        loop {
            match poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&LOOK)) {
                Ok(0) if !may_wait() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                // The next write returns the error of the file.
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }
}

/// Prints to standard output, for commands that serve nothing yet. The error is that of a closed pipe or a full disk.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    fn pipe() -> (io::PipeReader, Output) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, Output::new(File::from(OwnedFd::from(writer))))
    }

    #[test]
    fn a_reader_that_stands_still_is_left() {
        let (_reader, mut output) = pipe();
        let looks = Cell::new(3);
        let may_wait = || looks.replace(looks.get() - 1) > 0;
        let (written, error) = output.write(&[b'x'; 1 << 20], may_wait).unwrap_err();
        assert!(error.kind() == io::ErrorKind::TimedOut && written > 0 && written < 1 << 20, "{written} {error}");
    }

    #[test]
    fn a_line_after_a_lost_one_begins_anew() {
        let (mut reader, mut output) = pipe();
        let first = [b'x'; 1 << 20];
        let (written, _) = output.write(&first, || false).unwrap_err();
        let mut got = vec![0; written];
        reader.read_exact(&mut got).unwrap();
        output.write(b"next\n", || false).unwrap();
        drop(output);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "\nnext\n");
    }

    #[test]
    fn a_closed_pipe_is_an_error() {
        let (reader, mut output) = pipe();
        drop(reader);
        assert_eq!(output.write(b"line\n", || true).unwrap_err().1.kind(), io::ErrorKind::BrokenPipe);
    }
}
