//! The known keys, as hashes. Messages never contain a hash or any other text that may be a key.

use std::collections::{HashMap, HashSet};

use plugway_sdk::{ConfigError, Setup, lines};
use sha2::{Digest, Sha256};

use crate::config::{Entry, List};

/// The known keys with their owners.
#[derive(Default)]
pub struct Keys {
    hashes: Vec<(Hash, usize)>,
    owners: Vec<String>,
    /// The owners' indexes by their names.
    indexes: HashMap<String, usize>,
}

/// A SHA-256 hash, in four pieces, which are compared without a branch.
type Hash = [u64; 4];

/// The state while the list is parsed.
#[derive(Default)]
struct Parser {
    keys: Keys,
    known: HashSet<Hash>,
    errors: Vec<ConfigError>,
}

impl Keys {
    /// Parses the list; errors are reported.
    pub fn new(list: &List, setup: &mut Setup) -> Self {
        let mut parser = Parser::default();
        match list {
            List::Lines(text) => parser.lines(text, "/keys"),
            List::Entries(entries) => {
                for (place, entry) in entries.iter().enumerate() {
                    parser.entry(entry, &format!("/keys/{place}"));
                }
            }
        }
        let Parser { keys, mut errors, .. } = parser;
        if keys.hashes.is_empty() && errors.is_empty() {
            errors.push(ConfigError::at("/keys", "no key, so that every request would be refused; add one"));
        }
        errors.into_iter().take(MOST_ERRORS).for_each(|error| setup.report(error));
        keys
    }

    /// Returns the owner of a key; `None` if the key is unknown. The time depends on the number of keys and the length of
    /// `key` alone.
    pub fn owner(&self, key: &[u8]) -> Option<usize> {
        if key.is_empty() || key.len() > LONGEST_KEY {
            return None;
        }
        let hash = hash(key);
        let mut found = 0;
        for (known, owner) in &self.hashes {
            let differs = known.iter().zip(&hash).fold(0, |differs, (one, other)| differs | (one ^ other));
            // All bits of the mask are set if nothing differs, else none.
            let mask = ((differs | differs.wrapping_neg()) >> 63).wrapping_sub(1);
            found |= mask & (*owner as u64 + 1);
        }
        // The optimiser must not learn that the loop could end early.
        std::hint::black_box(found).checked_sub(1).map(|owner| owner as usize)
    }

    /// Returns the index of an owner by name.
    pub fn index(&self, owner: &str) -> Option<usize> {
        self.indexes.get(owner).copied()
    }

    /// Returns the name of an owner.
    pub fn name(&self, owner: usize) -> &str {
        self.owners.get(owner).map_or("", String::as_str)
    }
}

impl Parser {
    fn entry(&mut self, entry: &Entry, pointer: &str) {
        match entry {
            Entry::Lines(text) => self.lines(text, pointer),
            Entry::Key(key) if !key.others.is_empty() => {
                let names = key.others.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                let message = format!("unknown keys: {names}; expected `name` and `hash`");
                self.errors.push(ConfigError::at(pointer, message));
            }
            Entry::Key(key) => {
                let (name, hash) = (key.name.as_deref().unwrap_or_default(), key.hash.as_deref().unwrap_or_default());
                if let Err(Wrong { key, message }) = self.add(name, hash) {
                    self.errors.push(ConfigError::at(format!("{pointer}{key}"), message));
                }
            }
        }
    }

    fn lines(&mut self, text: &str, pointer: &str) {
        for line in lines::of(text) {
            let (name, hash) = line.text.split_once(':').unwrap_or((line.text, ""));
            if let Err(Wrong { message, .. }) = self.add(name.trim(), hash.trim()) {
                self.errors.push(line.error(pointer, message));
            }
        }
    }

    fn add(&mut self, name: &str, hash: &str) -> Result<(), Wrong> {
        if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(is_name_byte) {
            return Err(Wrong { key: "/name", message: INVALID_NAME });
        }
        let hash = parse(hash).ok_or(Wrong { key: "/hash", message: INVALID_HASH })?;
        if !self.known.insert(hash) {
            return Err(Wrong { key: "/hash", message: "a key that is in the list already; expected each key once" });
        }
        let Keys { hashes, owners, indexes } = &mut self.keys;
        if hashes.len() == MOST_KEYS {
            return Err(Wrong { key: "", message: "too many keys; expected at most 10,000" });
        }
        let owner = *indexes.entry(name.into()).or_insert_with(|| {
            owners.push(name.into());
            owners.len() - 1
        });
        hashes.push((hash, owner));
        Ok(())
    }
}

/// An error in an entry.
struct Wrong {
    /// The JSON pointer below the entry.
    key: &'static str,
    message: &'static str,
}

const INVALID_NAME: &str = "invalid name of an owner; expected up to 64 letters, digits, `-`, `_`, `.` and `@`, such as \
                            `shop`; in a line: `shop:sha256:DIGITS`";

const INVALID_HASH: &str = "invalid hash; expected `sha256:` and 64 hexadecimal digits, which `printf %s KEY | sha256sum` \
                            prints; in a line: `shop:sha256:DIGITS`";

/// A file of another kind has an error in each line.
const MOST_ERRORS: usize = 20;

/// Each request is compared with all keys, which takes some 20 µs for this many.
const MOST_KEYS: usize = 10_000;

/// A longer key is unknown: hashing must not cost more than a request does.
const LONGEST_KEY: usize = 512;

/// The owner's name is a field value, a note and a word in logs.
const LONGEST_NAME: usize = 64;

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte)
}

fn hash(key: &[u8]) -> Hash {
    let digest = Sha256::digest(key);
    let mut hash = Hash::default();
    for (piece, bytes) in hash.iter_mut().zip(digest.chunks_exact(8)) {
        *piece = bytes.iter().fold(0, |piece, byte| piece << 8 | u64::from(*byte));
    }
    hash
}

fn parse(text: &str) -> Option<Hash> {
    let digits = text.strip_prefix("sha256:")?.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut hash = Hash::default();
    for (piece, digits) in hash.iter_mut().zip(digits.chunks_exact(16)) {
        for digit in digits {
            *piece = *piece << 4 | u64::from(char::from(*digit).to_digit(16)?);
        }
    }
    Some(hash)
}
