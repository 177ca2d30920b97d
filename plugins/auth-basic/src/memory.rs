//! The passwords that were verified lately, so that they are not hashed again for each request. What is kept of a password
//! is a MAC under a random key of the instance: nobody can guess passwords by it, and it is of no use elsewhere.
#![expect(clippy::disallowed_methods, reason = "a plugin has no clock of a worker")]

use std::time::{Duration, Instant};

use blake3::Hash;

/// The memory of an instance.
pub struct Memory {
    key: [u8; 32],
    /// The time for which a password is remembered.
    time: Duration,
    /// By the indexes of users: a user has one password, so that this is bounded.
    verified: Vec<Option<Verified>>,
}

/// A password that was verified.
struct Verified {
    mac: Hash,
    until: Instant,
}

impl Memory {
    /// Returns a memory for so many users; an error if there are no random numbers.
    pub fn new(users: usize, time: Duration) -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Memory { key, time, verified: (0..users).map(|_| None).collect() })
    }

    /// Whether this password of a user was verified lately. The comparison takes the same time for all passwords.
    pub fn knows(&self, user: usize, password: &[u8]) -> bool {
        let verified = self.verified.get(user).and_then(Option::as_ref);
        verified.is_some_and(|verified| verified.mac == self.mac(user, password) && verified.until > Instant::now())
    }

    /// Remembers a password that was verified.
    pub fn remember(&mut self, user: usize, password: &[u8]) {
        let verified = Verified { mac: self.mac(user, password), until: Instant::now() + self.time };
        if let Some(place) = self.verified.get_mut(user).filter(|_| !self.time.is_zero()) {
            *place = Some(verified);
        }
    }

    fn mac(&self, user: usize, password: &[u8]) -> Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(user as u64).to_le_bytes()).update(password);
        hasher.finalize()
    }
}
