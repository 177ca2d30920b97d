//! The values that arrive with a call.

use crate::Need;

/// The values that a plugin declared, as they are at the moment of the call.
#[derive(Debug)]
pub struct Values {
    values: Vec<Option<Vec<u8>>>,
    key: Option<u64>,
}

impl Values {
    /// The bytes of a value, if it is there.
    pub fn bytes(&self, need: Need) -> Option<&[u8]> {
        self.values.get(need.0)?.as_deref()
    }

    /// The value as text, if it is there and is UTF-8.
    pub fn text(&self, need: Need) -> Option<&str> {
        std::str::from_utf8(self.bytes(need)?).ok()
    }

    /// The hash of the value that a balancer declared as its [`key`](crate::Setup::balancer_key), if it is there.
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
