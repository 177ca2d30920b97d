//! Informational responses (1xx) that an endpoint sends before its response. hyper and h2 read past them without end, on a
//! worker that has others to serve, so bytes are counted until the response has begun.

use std::cell::Cell;
use std::error::Error as _;
use std::io;

/// The bytes that may still be read before a response over HTTP/1 has begun.
#[derive(Default)]
pub struct BeforeResponse {
    limit: Cell<usize>,
    state: Cell<State>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// No response is awaited, or it has begun.
    #[default]
    Unlimited,
    Left(usize),
    /// All was read; whether the response has begun with it is not known yet.
    AllRead,
    /// All was read, and the response has not begun.
    Refused,
}

/// The permission to read.
pub enum Permission {
    Read,
    /// To be asked for again once it is known whether the response has begun.
    Wait,
    Refused(io::Error),
}

/// The kind of the error of a refusal. No socket fails with it, and h2 passes on no more than the kind of an error and its
/// text.
const REFUSED: io::ErrorKind = io::ErrorKind::QuotaExceeded;

impl BeforeResponse {
    /// Limits what is read from now on.
    pub fn begin(&self, limit: usize) {
        self.limit.set(limit);
        self.state.set(State::Left(limit));
    }

    /// Notes that the response has begun, or will not.
    pub fn end(&self) {
        self.state.set(State::Unlimited);
    }

    /// Notes that all that was read has been parsed, and the response has not begun.
    pub fn still_missing(&self) {
        if self.state.get() == State::AllRead {
            self.state.set(State::Refused);
        }
    }

    /// Asks for the permission to read more.
    pub fn permission(&self) -> Permission {
        match self.state.get() {
            State::Unlimited | State::Left(_) => Permission::Read,
            State::AllRead => Permission::Wait,
            State::Refused => Permission::Refused(refused(self.limit.get())),
        }
    }

    /// Counts bytes that were read.
    pub fn read(&self, bytes: usize) {
        if let State::Left(left) = self.state.get() {
            // A head of exactly this length has begun the response.
            let next = left.checked_sub(bytes).map_or(State::AllRead, State::Left);
            self.state.set(next);
        }
    }
}

/// The error of an endpoint that sends more informational responses than the limit of a response's head, in bytes.
pub fn refused(limit: usize) -> io::Error {
    io::Error::new(REFUSED, format!("more than {limit} bytes of informational responses before a response"))
}

/// The text of a refusal if the error is one.
pub fn refusal(error: &hyper::Error) -> Option<String> {
    let source = error.source()?;
    let from_h2 = || source.downcast_ref::<h2::Error>().and_then(h2::Error::get_io);
    let error = source.downcast_ref::<io::Error>().or_else(from_h2)?;
    (error.kind() == REFUSED).then(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_refused_once_it_is_known_to_hold_no_response() {
        let before = BeforeResponse::default();
        let may_read = || matches!(before.permission(), Permission::Read);
        before.read(1 << 30);
        before.still_missing();
        assert!(may_read(), "nothing is limited between responses");
        before.begin(100);
        before.read(100);
        before.still_missing();
        assert!(may_read(), "a head may be as long as the limit");
        before.read(1);
        assert!(matches!(before.permission(), Permission::Wait));
        before.end();
        assert!(may_read(), "the response was among it");
        before.begin(100);
        before.read(101);
        before.still_missing();
        assert!(matches!(before.permission(), Permission::Refused(error) if error.to_string().contains("100 bytes")));
    }
}
