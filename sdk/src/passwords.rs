//! Passwords, verified by the host against their hashes. A plugin that uses this module waits while a password is hashed,
//! and its worker serves other requests meanwhile. Such a plugin may have every hook but `Balancer` and `CachePolicy`.
//!
//! ```
//! use plugway_sdk::{Response, Verdict, passwords};
//!
//! fn decide(hash: &str, password: &[u8]) -> Verdict {
//!     match passwords::verify(hash, password) {
//!         Ok(true) => Verdict::proceed(),
//!         Ok(false) => Response::new(401).field("www-authenticate", "Basic realm=\"shop\"").into(),
//!         Err(passwords::VerifyError::Busy) => Response::new(503).into(),
//!         Err(error) => Verdict::Fail(error.to_string()),
//!     }
//! }
//!
//! // In a native test nothing is hashed: the password of a hash is the text after its last `$`.
//! assert_eq!(decide("$2y$10$secret", b"secret"), Verdict::proceed());
//! ```

use std::fmt;
use std::time::Duration;

use crate::bindings::passwords as host;

/// The reason why a password was not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// The hash has an unknown or malformed format.
    BadHash,
    /// The hash costs more than the host allows: bcrypt with a cost above 14, SHA-crypt with more than 1,000,000 rounds,
    /// Argon2 with more than 128 MiB, or with more than 1 GiB for all its passes.
    TooCostly,
    /// Too many passwords wait to be verified. The request is best answered with 503.
    Busy,
}

/// Returns whether a password is the one that a hash was made from. The hash is one of bcrypt, Argon2 or SHA-crypt, as in
/// htpasswd files and from `plugway hash-password`. In [`Plugin::new`](crate::Plugin::new), the password is verified once for
/// each start or reload, and all instances of the plugin get the same answer.
pub fn verify(hash: &str, password: &[u8]) -> Result<bool, VerifyError> {
    verify_once_in(Duration::ZERO, hash, password)
}

/// Returns whether a password is the one that a hash was made from, as [`verify`] does. A password that is right is
/// remembered by the host for a time, of at most an hour: within it, the same call returns at once, for all instances. The
/// host keeps a MAC of the two, under a random key.
pub fn verify_once_in(time: Duration, hash: &str, password: &[u8]) -> Result<bool, VerifyError> {
    #[cfg(target_family = "wasm")]
    let verified = host::verify(hash, password, u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    #[cfg(not(target_family = "wasm"))]
    let verified = crate::testing::passwords::verify(hash, password, time);
    verified.map_err(|error| match error {
        host::VerifyError::BadHash => VerifyError::BadHash,
        host::VerifyError::TooCostly => VerifyError::TooCostly,
        host::VerifyError::Busy => VerifyError::Busy,
    })
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VerifyError::BadHash => "the hash of a password is malformed",
            VerifyError::TooCostly => "the hash of a password costs more than the host allows",
            VerifyError::Busy => "too many passwords wait to be verified",
        })
    }
}

impl std::error::Error for VerifyError {}
