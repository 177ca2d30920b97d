//! Responses that are whole in memory before a client takes them: the content that plugins make, and long heads. Their
//! bytes are counted until they are sent or dropped, however long the client leaves them unread.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::exchange::response_body::ResponseBody;

/// Bytes with the share of memory that they are counted in.
struct CountedBytes<T> {
    bytes: Bytes,
    _share: Arc<T>,
}

/// The counted length of a response, which is among its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedLength(pub usize);

/// The length up to which content and heads are not counted, in bytes: as much as every stream may hold.
pub const SHORT: usize = 8 << 10;

/// The memory of a field beside its name and its value, in bytes.
const FIELD_OVERHEAD: usize = 32;

impl<T> AsRef<[u8]> for CountedBytes<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Returns the bytes of a response that have to be counted; 0 if its content and its head are short.
pub fn counted_length(fields: &HeaderMap, body: &ResponseBody) -> usize {
    let content = match body {
        // Error pages and the like are shared by all responses that have them.
        ResponseBody::Full(content) if content.is_unique() => content.len(),
        _ => 0,
    };
    let head = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD).sum();
    [content, head].into_iter().filter(|length| *length > SHORT).sum()
}

/// Makes the content and the head of a response keep a share of memory until both are sent or dropped.
pub fn attach<T: Send + Sync + 'static>(share: T, fields: &mut HeaderMap, body: &mut ResponseBody) {
    let share = Arc::new(share);
    if let ResponseBody::Full(content) = body
        && content.len() > SHORT
    {
        *content = counted(std::mem::take(content), &share);
    }
    // The fields are dropped together once the head is encoded.
    if let Some(longest) = fields.values_mut().max_by_key(|value| value.len()) {
        let bytes = counted(Bytes::copy_from_slice(longest.as_bytes()), &share);
        if let Ok(mut value) = HeaderValue::from_maybe_shared(bytes) {
            value.set_sensitive(longest.is_sensitive());
            *longest = value;
        }
    }
}

fn counted<T: Send + Sync + 'static>(bytes: Bytes, share: &Arc<T>) -> Bytes {
    Bytes::from_owner(CountedBytes { bytes, _share: share.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_is_kept_until_content_and_head_are_dropped() {
        let (share, mut fields) = (Arc::new(()), HeaderMap::new());
        fields.insert("x-long", HeaderValue::try_from("x".repeat(9_000)).unwrap());
        let mut body = ResponseBody::Full(Bytes::from(vec![7; 9_000]));
        assert_eq!(counted_length(&fields, &body), 9_000 + 9_006 + FIELD_OVERHEAD);
        attach(share.clone(), &mut fields, &mut body);
        assert_eq!(fields["x-long"].len(), 9_000);
        let ResponseBody::Full(mut content) = body else { unreachable!() };
        let piece = content.split_to(10);
        drop(content);
        assert_eq!(Arc::strong_count(&share), 2);
        drop(fields);
        assert_eq!(Arc::strong_count(&share), 2, "a piece of the content is left");
        drop(piece);
        assert_eq!(Arc::strong_count(&share), 1);
    }

    #[test]
    fn short_and_shared_content_is_not_counted() {
        let fields = HeaderMap::new();
        assert_eq!(counted_length(&fields, &ResponseBody::Full(Bytes::from(vec![7; SHORT]))), 0);
        let page = Bytes::from(vec![7; 9_000]);
        assert_eq!(counted_length(&fields, &ResponseBody::Full(page.clone())), 0);
        drop(page);
    }
}
