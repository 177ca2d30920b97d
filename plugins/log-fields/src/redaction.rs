//! The forms in which a value is logged.

/// The form in which a value is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redaction {
    /// The value as it is.
    None,
    /// Digits that are the same for equal values.
    Hash,
    /// The first bytes.
    First(usize),
    /// The last bytes.
    Last(usize),
    /// A word instead of the value.
    Present,
}

/// The maximum number of bytes that a part of a value shows.
const MAX_SHOWN: usize = 32;

impl std::str::FromStr for Redaction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = |digits: &str| digits.parse().ok().filter(|count| (1..=MAX_SHOWN).contains(count));
        let redaction = match text.split_once(' ') {
            None if text == "none" => Some(Redaction::None),
            None if text == "hash" => Some(Redaction::Hash),
            None if text == "present" => Some(Redaction::Present),
            Some(("first", digits)) => count(digits).map(Redaction::First),
            Some(("last", digits)) => count(digits).map(Redaction::Last),
            _ => None,
        };
        redaction.ok_or_else(|| {
            format!("unknown redaction: `{text}`; expected `hash`, `first 4`, `last 4` (up to {MAX_SHOWN}), `present` or `none`")
        })
    }
}

impl Redaction {
    /// Returns what is logged of a value. A part is never more than half of the value.
    pub fn apply(self, value: &[u8], key: &HashKey) -> Vec<u8> {
        let half = value.len() / 2;
        match self {
            Redaction::None => value.to_vec(),
            Redaction::Hash => key.hash(value),
            Redaction::First(count) => [&value[..count.min(half)], b"..."].concat(),
            Redaction::Last(count) => [b"...", &value[value.len() - count.min(half)..]].concat(),
            Redaction::Present => b"present".to_vec(),
        }
    }
}

/// The key of hashes, made from a secret.
#[derive(Debug)]
pub struct HashKey([u8; 32]);

impl HashKey {
    /// Returns the key for a secret; without a secret it is the same everywhere.
    pub fn new(secret: Option<&str>) -> Self {
        HashKey(blake3::derive_key("plugway log-fields hash v1", secret.unwrap_or_default().as_bytes()))
    }

    /// Returns 64 bits of a keyed hash, in hexadecimal: enough to know values apart in a log.
    fn hash(&self, value: &[u8]) -> Vec<u8> {
        let hash = blake3::keyed_hash(&self.0, value).to_hex();
        hash.as_bytes()[..16].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_value_is_never_shown_by_more_than_half() {
        let key = HashKey::new(None);
        let shown = |redaction: &str, value: &str| {
            let shown = redaction.parse::<Redaction>().unwrap().apply(value.as_bytes(), &key);
            String::from_utf8(shown).unwrap()
        };
        assert_eq!(shown("first 4", "4111111111111111"), "4111...");
        assert_eq!(shown("last 4", "4111111111112222"), "...2222");
        assert_eq!(
            (shown("first 4", "abc"), shown("last 4", "a"), shown("first 4", "")),
            ("a...".into(), "...".into(), "...".into())
        );
        assert_eq!((shown("present", "x"), shown("none", "x")), ("present".into(), "x".into()));
    }

    #[test]
    fn a_hash_depends_on_the_value_and_the_secret() {
        let (none, one, other) = (HashKey::new(None), HashKey::new(Some("one")), HashKey::new(Some("other")));
        let hash = |key: &HashKey, value: &[u8]| Redaction::Hash.apply(value, key);
        assert_eq!(hash(&one, b"a"), hash(&HashKey::new(Some("one")), b"a"));
        assert!(hash(&one, b"a") != hash(&one, b"b") && hash(&one, b"a") != hash(&other, b"a"));
        assert!(hash(&none, b"a") != hash(&one, b"a") && hash(&none, b"a").len() == 16);
    }

    #[test]
    fn unknown_redactions_are_errors() {
        for text in ["", "sha256", "first", "first 0", "first 33", "first -1", "last x", "hash 4"] {
            assert!(text.parse::<Redaction>().unwrap_err().contains("expected `hash`"), "{text}");
        }
    }
}
