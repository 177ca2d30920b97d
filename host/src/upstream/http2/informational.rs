//! The refusal of an endpoint that sends informational responses (1xx) over HTTP/2 without end. h2 reads past them, on a
//! worker that has others to serve.

use std::error::Error as _;
use std::io;

/// The kind of the error of a refusal. No socket fails with it, and h2 passes on no more than the kind of an error and its
/// text.
const REFUSED: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// The error of an endpoint that sends more informational responses than the limit of a response's head, in bytes.
pub fn refused(limit: usize) -> io::Error {
    io::Error::new(REFUSED, format!("more than {limit} bytes of informational responses before a response"))
}

/// Returns the message of a rejection if the error is one.
pub fn refusal(error: &hyper::Error) -> Option<String> {
    let source = error.source()?;
    let from_h2 = || source.downcast_ref::<h2::Error>().and_then(h2::Error::get_io);
    let error = source.downcast_ref::<io::Error>().or_else(from_h2)?;
    (error.kind() == REFUSED).then(|| error.to_string())
}
