//! A stored response, with everything that decides about its use.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, response};

use super::disk::reader::OpenFile;
use super::index::IndexedVariant;
use super::memory_content::{MemoryContent, Pieces};
use super::shared_body::SharedBody;
use super::variant::VariantInfo;
use crate::context::bounds;

/// A stored response.
#[derive(Debug)]
pub struct StoredResponse {
    pub variant: Arc<VariantInfo>,
    pub status: StatusCode,
    fields: StoredFields,
    pub content: Content,
    pub freshness: Freshness,
    /// The Unix time in milliseconds at which the response was `freshness.initial_age_ms` old.
    pub since_ms: u64,
    /// The sequence number of the file, if there is a disk store; a newer file has a greater number.
    pub sequence: u64,
}

/// The freshness rules of a stored response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    pub lifetime_ms: u64,
    pub initial_age_ms: u64,
    pub stale_while_revalidate_ms: u64,
    pub stale_if_error_ms: u64,
    pub must_revalidate: bool,
}

/// The place where the content is.
#[derive(Clone, Debug)]
pub enum Content {
    Whole(Bytes),
    /// Content that is too long for one allocation, or has trailers.
    Pieces(Arc<Pieces>),
    /// Content in a file, because it is too long for memory.
    File(Arc<OpenFile>),
    /// Content that is still arriving.
    Filling(Arc<SharedBody>),
}

/// The fields of a head; half the size of a map. All values are in one allocation of their own, because a value that was
/// read from a connection keeps its whole buffer alive.
#[derive(Clone, Debug)]
struct StoredFields(Arc<[(HeaderName, HeaderValue)]>);

impl StoredResponse {
    pub fn new(
        variant_info: VariantInfo,
        head: &response::Parts,
        content: Content,
        rules: Freshness,
        since_ms: u64,
    ) -> Self {
        let (status, fields) = (head.status, StoredFields::of(&head.headers));
        StoredResponse {
            variant: Arc::new(variant_info),
            status,
            fields,
            content,
            freshness: rules,
            since_ms,
            sequence: 0,
        }
    }

    /// Returns the response with another variant and sequence number.
    pub fn with_variant(self, variant_info: Arc<VariantInfo>, number: u64) -> Self {
        StoredResponse { variant: variant_info, sequence: number, ..self }
    }

    /// Returns the response with a sequence number.
    pub fn with_sequence(self, number: u64) -> Self {
        StoredResponse { sequence: number, ..self }
    }

    /// Returns a copy with other content, such as content that is complete.
    pub fn with_content(&self, content: Content) -> Self {
        StoredResponse { variant: self.variant.clone(), fields: self.fields.clone(), content, ..*self }
    }

    /// Returns the age (RFC 9111 §4.2.3), in milliseconds.
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.since_ms).saturating_add(self.freshness.initial_age_ms)
    }

    /// Whether the response is fresh.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        !self.variant.is_purged() && self.age_ms(now_ms) < self.freshness.lifetime_ms
    }

    /// Returns the value of a field; `None` unless the response has exactly one line of the field.
    pub fn field(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.fields.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Returns the head as it was stored.
    pub fn head(&self) -> response::Parts {
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = self.status;
        head.headers.reserve(self.fields.0.len() + 2);
        for (name, value) in self.fields.0.iter() {
            head.headers.append(name.clone(), value.clone());
        }
        head
    }
}

impl IndexedVariant for StoredResponse {
    fn variant_info(&self) -> &VariantInfo {
        &self.variant
    }

    /// Returns the memory that the response takes; content in a file counts too, because such a response does not stay.
    fn weight(&self) -> usize {
        let fields: usize = self.fields.0.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum();
        let content = self.content.length().unwrap_or(0) as usize;
        content + fields + self.variant.weight() + OVERHEAD
    }

    fn number(&self) -> u64 {
        self.sequence
    }

    fn on_removed(&self) {
        if let Content::Pieces(pieces) = &self.content {
            pieces.leave();
        }
    }
}

/// The memory that a stored response takes besides its text: itself, its allocations, and its entry in the index.
const OVERHEAD: usize = size_of::<StoredResponse>() + 176;
const FIELD: usize = size_of::<(HeaderName, HeaderValue)>();

impl From<MemoryContent> for Content {
    fn from(content: MemoryContent) -> Self {
        match content {
            MemoryContent::Whole(content) => Content::Whole(content),
            MemoryContent::Pieces(pieces) => Content::Pieces(pieces),
        }
    }
}

impl Content {
    /// Returns the length, in bytes; `None` while it is unknown.
    pub fn length(&self) -> Option<u64> {
        match self {
            Content::Whole(content) => Some(content.len() as u64),
            Content::Pieces(pieces) => Some(pieces.length),
            Content::File(file) => Some(file.length()),
            Content::Filling(fill) => fill.length(),
        }
    }

    /// Returns the trailers, if they are known.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        match self {
            Content::Whole(_) | Content::Filling(_) => None,
            Content::Pieces(pieces) => pieces.trailers.as_ref(),
            Content::File(file) => file.trailers(),
        }
    }
}

impl StoredFields {
    fn of(fields: &HeaderMap) -> Self {
        let mut text = BytesMut::with_capacity(fields.values().map(HeaderValue::len).sum());
        fields.values().for_each(|value| text.extend_from_slice(value.as_bytes()));
        let mut text = text.freeze();
        let copy = |(name, value): (&HeaderName, &HeaderValue)| {
            let value = HeaderValue::from_maybe_shared(text.split_to(value.len())).ok()?;
            Some((name.clone(), value))
        };
        StoredFields(fields.iter().filter_map(copy).collect())
    }
}

/// Takes the fields of a 304 into the head of the stored response that it validated (RFC 9111 §3.2). Returns `false`, and
/// leaves the head as it is, if that could become too large: each 304 may bring other fields.
pub fn freshen(stored: &mut HeaderMap, validated: &HeaderMap) -> bool {
    let bytes = |fields: &HeaderMap| -> usize {
        fields.iter().map(|(name, value)| name.as_str().len() + value.len() + bounds::FIELD_OVERHEAD).sum()
    };
    if stored.len() + validated.len() > MAX_FIELDS || bytes(stored) + bytes(validated) > bounds::FIELD_BYTES {
        return false;
    }
    // Both are of the moment when the stored response came, which is over.
    stored.remove(header::AGE);
    stored.remove(header::DATE);
    // The length is that of the content which is stored.
    let is_taken = |name: &HeaderName| *name != header::CONTENT_LENGTH;
    for name in validated.keys().filter(|name| is_taken(name)) {
        stored.remove(name);
    }
    let mut taken = validated.iter().filter(|(name, _)| is_taken(name));
    taken.all(|(name, value)| stored.try_append(name.clone(), value.clone()).is_ok())
}

/// Fields of a stored response after a validation: those of the longest head that an endpoint may send, twice.
const MAX_FIELDS: usize = 4_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validations_cannot_make_a_head_grow_for_ever() {
        let fields = |turn: usize| -> HeaderMap {
            let name = |n| HeaderName::try_from(format!("x-{turn}-{n}")).unwrap();
            (0..90).map(|n| (name(n), HeaderValue::from_static("1"))).collect()
        };
        let mut stored = fields(0);
        // Each 304 has other fields. A map panics behind the 273rd.
        let taken = (1..400).take_while(|turn| freshen(&mut stored, &fields(*turn))).count();
        assert!((10..50).contains(&taken) && stored.len() <= MAX_FIELDS, "{taken}");
        let long = HeaderMap::from_iter([(header::LINK, HeaderValue::try_from("x".repeat(300_000)).unwrap())]);
        assert!(!freshen(&mut fields(0), &long));
    }
}
