//! Counts and bounds the bytes that the host keeps for an instance outside of its memory: requests until they are sent, and
//! responses until the plugin drops them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::HeaderMap;

/// The bytes that the host keeps for an instance.
#[derive(Clone, Default)]
pub(super) struct HeldBytes(Arc<AtomicUsize>);

/// A count of bytes, which ends when the value is dropped.
pub(super) struct CountedBytes {
    bytes: usize,
    held: HeldBytes,
}

/// Content whose bytes count until the content is dropped.
struct HeldContent {
    content: Bytes,
    _counted: CountedBytes,
}

/// The bytes that the host may keep for an instance, heads included.
const MAX_HELD_BYTES: usize = 4 << 20;

/// The bytes of a response besides its content and its fields.
const OVERHEAD: usize = 1 << 10;

/// The bytes of a field besides its name and its value: about those of its entry in a `HeaderMap`.
const FIELD: usize = 128;

impl HeldBytes {
    /// Returns an empty count for a request or a response.
    pub(super) fn count(&self) -> CountedBytes {
        CountedBytes { bytes: 0, held: self.clone() }
    }

    /// Counts a response until its content is dropped; `None` if the instance would exceed [`MAX_HELD_BYTES`].
    pub(super) fn hold(&self, fields: &HeaderMap, content: Bytes) -> Option<Bytes> {
        let fields: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum();
        let mut counted = self.count();
        counted.add(content.len() + fields + OVERHEAD).then(|| counted.of(content))
    }

    /// Whether the host keeps nothing for the instance.
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl CountedBytes {
    /// Counts more bytes. Returns `false` if the instance exceeds [`MAX_HELD_BYTES`] with them.
    pub(super) fn add(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        self.held.0.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_HELD_BYTES
    }

    /// Returns content that counts as these bytes.
    pub(super) fn of(self, content: Bytes) -> Bytes {
        Bytes::from_owner(HeldContent { content, _counted: self })
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl AsRef<[u8]> for HeldContent {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_holds_a_bounded_number_of_bytes() {
        let held = HeldBytes::default();
        let response = || held.hold(&HeaderMap::new(), Bytes::from_static(&[b'x'; 1 << 20]));
        let kept: Vec<Bytes> = std::iter::from_fn(response).collect();
        assert_eq!((kept.len(), kept[0].len()), (3, 1 << 20));
        drop(kept);
        assert!(held.is_empty() && response().is_some());
    }

    #[test]
    fn requests_and_responses_have_one_bound() {
        let held = HeldBytes::default();
        let mut request = held.count();
        assert!(request.add(3 << 20));
        let request = request.of(Bytes::from_static(b"content"));
        let response = || held.hold(&HeaderMap::new(), Bytes::from_static(&[b'x'; 1 << 20]));
        assert_eq!((&request[..], response()), (&b"content"[..], None));
        drop(request);
        assert!(response().is_some());
    }
}
