//! The answers that a plugin got while its first instance was configured. The other instances of a version are configured
//! with the same answers, so that they are alike, and ask no service themselves.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};

use super::bindings::passwords::VerifyError;
use crate::error::FailureKind;

/// The answers to the questions of one configuration, by the digests of the questions.
#[derive(Default)]
// Locked while an instance is configured, which no request waits for on its worker.
pub(super) struct EarlyAnswers(Mutex<HashMap<blake3::Hash, EarlyAnswer>>);

/// An answer to a plugin that is configured.
#[derive(Clone)]
pub(super) enum EarlyAnswer {
    /// The response to a request, or the reason why there was none.
    Response(Result<Response<Bytes>, FailureKind>),
    /// Whether a password was right.
    Password(Result<bool, VerifyError>),
}

/// The answers that are kept for a version. Each has at most 1 MiB of content.
const MAX_ANSWERS: usize = 16;

impl EarlyAnswers {
    /// Whether there is room for one more answer.
    pub(super) fn has_room(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() < MAX_ANSWERS
    }

    /// Keeps an answer.
    pub(super) fn keep(&self, question: blake3::Hash, answer: EarlyAnswer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(question, answer);
    }

    /// Returns the answer to a question; `None` if the first instance has not asked it.
    pub(super) fn answer(&self, question: &blake3::Hash) -> Option<EarlyAnswer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(question).cloned()
    }
}

/// Returns the digest of a request to a destination.
pub(super) fn request_digest(destination: usize, request: &Request<Bytes>) -> blake3::Hash {
    let (method, uri) = (request.method().as_str(), request.uri().to_string());
    let fields = request.headers().iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
    let destination = destination.to_le_bytes();
    digest([&destination[..], method.as_bytes(), uri.as_bytes()].into_iter().chain(fields).chain([&request.body()[..]]))
}

/// Returns the digest of a password and the hash that it is compared with.
pub(super) fn password_digest(hash: &str, password: &[u8]) -> blake3::Hash {
    digest([hash.as_bytes(), password])
}

/// Returns the digest of texts, whose borders count.
fn digest<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_answers_are_kept_and_each_belongs_to_its_question() {
        let answers = EarlyAnswers::default();
        let question = |number: usize| password_digest(&number.to_string(), b"x");
        for number in 0..MAX_ANSWERS {
            assert!(answers.has_room());
            answers.keep(question(number), EarlyAnswer::Password(Ok(number == 1)));
        }
        assert!(!answers.has_room());
        let is_right = |number| matches!(answers.answer(&question(number)), Some(EarlyAnswer::Password(Ok(true))));
        assert!(is_right(1) && !is_right(2) && answers.answer(&question(MAX_ANSWERS)).is_none());
    }

    #[test]
    fn requests_that_differ_in_one_place_are_other_questions() {
        let digest = |destination, method, uri, field: &str, body: &'static [u8]| {
            let request = Request::builder().method(method).uri(uri).header("x-a", field);
            request_digest(destination, &request.body(Bytes::from_static(body)).unwrap())
        };
        let one = digest(0, "GET", "http://auth/a", "1", b"");
        assert_eq!(one, digest(0, "GET", "http://auth/a", "1", b""));
        for other in [
            digest(1, "GET", "http://auth/a", "1", b""),
            digest(0, "PUT", "http://auth/a", "1", b""),
            digest(0, "GET", "http://auth/b", "1", b""),
            digest(0, "GET", "http://auth/a", "2", b""),
            digest(0, "GET", "http://auth/a", "1", b"x"),
        ] {
            assert_ne!(one, other);
        }
        assert_ne!(password_digest("ab", b"c"), password_digest("a", b"bc"));
    }
}
