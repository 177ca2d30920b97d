//! The values that arrive with a call.

use crate::Need;

/// The values that a plugin declared, as they are at the moment of the call.
#[derive(Debug)]
pub struct Values(Vec<Option<Vec<u8>>>);

impl Values {
    /// The bytes of a value, if it is there.
    pub fn bytes(&self, need: Need) -> Option<&[u8]> {
        self.0.get(need.0)?.as_deref()
    }

    /// The value as text, if it is there and is UTF-8.
    pub fn text(&self, need: Need) -> Option<&str> {
        std::str::from_utf8(self.bytes(need)?).ok()
    }

    #[doc(hidden)]
    pub fn new(values: Vec<Option<Vec<u8>>>) -> Self {
        Values(values)
    }
}
