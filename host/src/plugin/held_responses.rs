//! The responses to requests of an instance that the plugin has not dropped, and the bound on their bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::HeaderMap;

/// The bytes of the responses that a plugin holds.
#[derive(Clone, Default)]
pub(super) struct HeldResponses(Arc<AtomicUsize>);

/// The content of a response, which counts as held until it is dropped.
struct HeldContent {
    content: Bytes,
    /// The bytes that count, with those of the head.
    bytes: usize,
    held: HeldResponses,
}

/// The bytes of responses, with their heads, that an instance may hold.
const MAX_HELD_BYTES: usize = 4 << 20;

/// The bytes of a response besides its content and its fields.
const OVERHEAD: usize = 1 << 10;

impl HeldResponses {
    /// Counts a response as held until its content is dropped; `None` if the plugin holds too many.
    pub(super) fn hold(&self, fields: &HeaderMap, content: Bytes) -> Option<Bytes> {
        let fields: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let bytes = content.len() + fields + OVERHEAD;
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        let held = HeldContent { content, bytes, held: self.clone() };
        (before + bytes <= MAX_HELD_BYTES).then(|| Bytes::from_owner(held))
    }

    /// Whether the plugin holds no response.
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl AsRef<[u8]> for HeldContent {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for HeldContent {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_holds_a_bounded_number_of_bytes() {
        let held = HeldResponses::default();
        let response = || held.hold(&HeaderMap::new(), Bytes::from_static(&[b'x'; 1 << 20]));
        let kept: Vec<Bytes> = std::iter::from_fn(response).collect();
        assert_eq!((kept.len(), kept[0].len()), (3, 1 << 20));
        drop(kept);
        assert!(held.is_empty() && response().is_some());
    }
}
