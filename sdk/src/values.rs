//! The values that are passed to a call.

use crate::Input;

/// The declared values of a plugin at the time of the call.
#[derive(Debug)]
pub struct Values {
    values: Vec<Option<Vec<u8>>>,
    key: Option<u64>,
}

impl Values {
    /// Returns the bytes of a value; `None` if it is absent.
    pub fn bytes(&self, need: Input) -> Option<&[u8]> {
        self.values.get(need.0)?.as_deref()
    }

    /// Returns a value as text; `None` if it is absent or not UTF-8.
    pub fn text(&self, need: Input) -> Option<&str> {
        std::str::from_utf8(self.bytes(need)?).ok()
    }

    /// Returns the hash of the value that a balancer declared as its [`key`](crate::Setup::balancer_key); `None` if it
    /// is absent.
    pub fn key(&self) -> Option<u64> {
        self.key
    }

    #[doc(hidden)]
    pub fn new(values: Vec<Option<Vec<u8>>>) -> Self {
        Values { values, key: None }
    }

    #[doc(hidden)]
    pub fn with_key(self, key: Option<u64>) -> Self {
        Values { key, ..self }
    }
}
