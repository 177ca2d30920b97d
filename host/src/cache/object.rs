//! A stored response, with all that decides about its use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, response};

use super::fill::Fill;
use super::vary::Selectors;

/// A stored response. Immutable but for the mark of a soft purge.
#[derive(Debug)]
pub struct Object {
    /// What belongs to another route or upstream is another's, whatever its key.
    pub scope: u64,
    pub selectors: Selectors,
    /// The URI that was asked for, for purging; none where it is the key.
    pub uri: Option<Box<str>>,
    pub status: StatusCode,
    fields: Fields,
    pub content: Content,
    pub rules: Rules,
    /// Milliseconds of Unix time at which it was `rules.initial_age_ms` old.
    pub since_ms: u64,
    purged: AtomicBool,
}

/// How a policy wants it kept.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub lifetime_ms: u64,
    pub initial_age_ms: u64,
    pub stale_while_revalidate_ms: u64,
    pub stale_if_error_ms: u64,
    pub must_revalidate: bool,
    /// For purging.
    pub tags: Box<[Box<str>]>,
}

/// Where the content is.
#[derive(Clone, Debug)]
pub enum Content {
    Whole(Bytes),
    /// More than fits well into one allocation, or with trailers.
    Pieces(Arc<Pieces>),
    /// Still on its way.
    Filling(Arc<Fill>),
}

/// Content in pieces, none of them empty.
#[derive(Debug)]
pub struct Pieces {
    pub list: Vec<Bytes>,
    pub length: u64,
    pub trailers: Option<HeaderMap>,
}

/// The fields of a head; half the size of a map. All values stand in one allocation, which is nobody else's: what was
/// read from a connection holds on to its whole buffer.
#[derive(Clone, Debug)]
struct Fields(Arc<[(HeaderName, HeaderValue)]>);

impl Object {
    pub fn new(key: Key<'_>, head: &response::Parts, content: Content, rules: Rules, since_ms: u64) -> Self {
        let Key { scope, selectors, uri } = key;
        let (status, fields, purged) = (head.status, Fields::of(&head.headers), AtomicBool::new(false));
        Object { scope, selectors, uri: uri.map(Into::into), status, fields, content, rules, since_ms, purged }
    }

    /// The same with another content, such as one that has come to its end.
    pub fn with(&self, content: Content) -> Self {
        Object {
            scope: self.scope,
            selectors: self.selectors.clone(),
            uri: self.uri.clone(),
            status: self.status,
            fields: self.fields.clone(),
            content,
            rules: self.rules.clone(),
            since_ms: self.since_ms,
            purged: AtomicBool::new(self.is_purged()),
        }
    }

    /// Its age (RFC 9111 §4.2.3).
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.since_ms).saturating_add(self.rules.initial_age_ms)
    }

    /// Whether its lifetime lasts.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        !self.is_purged() && self.age_ms(now_ms) < self.rules.lifetime_ms
    }

    /// Makes it stale.
    pub fn purge(&self) {
        self.purged.store(true, Ordering::Relaxed);
    }

    pub fn is_purged(&self) -> bool {
        self.purged.load(Ordering::Relaxed)
    }

    /// A field, if it has one line of it.
    pub fn field(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.fields.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Its head as it was stored.
    pub fn head(&self) -> response::Parts {
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = self.status;
        head.headers.reserve(self.fields.0.len() + 2);
        for (name, value) in self.fields.0.iter() {
            head.headers.append(name.clone(), value.clone());
        }
        head
    }

    /// What it takes of the memory, in bytes, but for content that is still on its way.
    pub fn weight(&self) -> usize {
        let fields: usize = self.fields.0.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum();
        let tags: usize = self.rules.tags.iter().map(|tag| tag.len() + TAG).sum();
        let content = self.content.length().unwrap_or(0) as usize;
        content + fields + tags + self.uri.as_ref().map_or(0, |uri| uri.len()) + self.selectors.weight() + OVERHEAD
    }
}

/// Of what an object takes besides its text: two structs with their counts, and the place in the index.
const OVERHEAD: usize = size_of::<Object>() + 160;
const FIELD: usize = size_of::<(HeaderName, HeaderValue)>();
const TAG: usize = size_of::<Box<str>>();

/// What tells one stored response from others under the same key.
pub struct Key<'a> {
    pub scope: u64,
    pub selectors: Selectors,
    pub uri: Option<&'a str>,
}

impl Content {
    /// Its length, as soon as that is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Content::Whole(content) => Some(content.len() as u64),
            Content::Pieces(pieces) => Some(pieces.length),
            Content::Filling(fill) => fill.length(),
        }
    }
}

impl Fields {
    fn of(fields: &HeaderMap) -> Self {
        let mut text = BytesMut::with_capacity(fields.values().map(HeaderValue::len).sum());
        fields.values().for_each(|value| text.extend_from_slice(value.as_bytes()));
        let mut text = text.freeze();
        let copy = |(name, value): (&HeaderName, &HeaderValue)| {
            let value = HeaderValue::from_maybe_shared(text.split_to(value.len())).ok()?;
            Some((name.clone(), value))
        };
        Fields(fields.iter().filter_map(copy).collect())
    }
}

/// Takes the fields of a 304 into the head of the stored response that it validated (RFC 9111 §3.2).
pub fn freshen(stored: &mut HeaderMap, validated: &HeaderMap) {
    // The length is that of the content which is stored.
    let is_taken = |name: &HeaderName| *name != header::CONTENT_LENGTH;
    for name in validated.keys().filter(|name| is_taken(name)) {
        stored.remove(name);
    }
    for (name, value) in validated.iter().filter(|(name, _)| is_taken(name)) {
        stored.append(name.clone(), value.clone());
    }
}
