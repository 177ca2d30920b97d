//! The answers with a 2xx that all workers remember, under a hash of the question: the shared state has no credentials.
//! Refusals and errors are never remembered, so that a login takes effect at once, and so does the return of the service.

use std::time::Duration;

use plugway_sdk::shared;
use sha2::{Digest, Sha256};

/// A question to the service.
pub struct Question<'a> {
    pub url: &'a str,
    /// The method and the URI of the request.
    pub target: &'a [(&'a str, &'a [u8])],
    /// The fields of the request, with the credentials.
    pub fields: &'a [(&'a str, &'a [u8])],
    /// The fields of the answer that are copied.
    pub copy: &'a [String],
}

/// The memory of answers.
pub struct Answers {
    pub ttl: Duration,
    /// Whether the answer depends on the target.
    pub per_uri: bool,
}

impl Answers {
    /// Returns the copied fields of a remembered answer, in the order of the configuration; `None` if there is none.
    pub fn known(&self, question: &Question) -> Option<Vec<Option<String>>> {
        // Without shared state the service is asked.
        serde_json::from_slice(&shared::get(self.key(question)).ok()??).ok()
    }

    /// Remembers the copied fields of an answer.
    pub fn remember(&self, question: &Question, copied: &Vec<Option<String>>) {
        if let Ok(value) = serde_json::to_vec(copied) {
            // An answer that can't be stored is asked for again.
            _ = shared::set(self.key(question), value, Some(self.ttl));
        }
    }

    /// Returns the hash of a question. Each part has its length before it, so that no two questions have the same parts.
    fn key(&self, question: &Question) -> [u8; 32] {
        let Question { url, target, fields, copy } = question;
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(url.as_bytes());
        copy.iter().for_each(|name| add(name.as_bytes()));
        for (name, value) in if self.per_uri { *target } else { &[] } {
            add(name.as_bytes());
            add(value);
        }
        // An empty part divides the lists: no name is empty.
        add(b"");
        for (name, value) in *fields {
            add(name.as_bytes());
            add(value);
        }
        hash.finalize().into()
    }
}
