//! The passwords of native tests: nothing is hashed, and a test can have verifications fail.

use std::cell::Cell;
use std::time::Duration;

use crate::bindings::passwords::VerifyError as WitError;
use crate::passwords::VerifyError;

thread_local! {
    static ERROR: Cell<Option<VerifyError>> = const { Cell::new(None) };
    static CALLS: Cell<u32> = const { Cell::new(0) };
    static TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Makes all verifications on this thread fail with an error, or succeed again with `None`.
pub fn fail(error: Option<VerifyError>) {
    ERROR.set(error);
}

/// Returns how many passwords were verified on this thread so far.
pub fn calls() -> u32 {
    CALLS.get()
}

/// Returns the time for which the host was to remember the password that was verified last on this thread.
pub fn remembered_for() -> Duration {
    TIME.get()
}

/// Whether a password is the text after the last `$` of a hash.
#[cfg_attr(target_family = "wasm", expect(dead_code, reason = "the host verifies passwords"))]
pub(crate) fn verify(hash: &str, password: &[u8], time: Duration) -> Result<bool, WitError> {
    CALLS.set(CALLS.get() + 1);
    TIME.set(time);
    match ERROR.get() {
        Some(VerifyError::BadHash) => Err(WitError::BadHash),
        Some(VerifyError::TooCostly) => Err(WitError::TooCostly),
        Some(VerifyError::Busy) => Err(WitError::Busy),
        None => {
            let (_, expected) = hash.rsplit_once('$').ok_or(WitError::BadHash)?;
            Ok(expected.as_bytes() == password)
        }
    }
}
