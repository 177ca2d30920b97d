//! The known users, with the hashes of their passwords. Messages never contain a hash or any other text that may be a
//! password.

use std::collections::HashMap;

use plugway_sdk::{ConfigError, Setup, lines};

use crate::config::{Entry, List};
use crate::hashes::{self, WrongHash};

/// The known users.
#[derive(Default)]
pub struct Users {
    list: Vec<User>,
    /// The indexes of users by their names.
    indexes: HashMap<String, usize>,
}

/// A user with the hash of the password.
pub struct User {
    pub name: String,
    pub hash: String,
}

/// The state while the list is parsed.
#[derive(Default)]
struct Parser {
    users: Users,
    errors: Vec<ConfigError>,
}

/// An error in an entry.
struct Wrong {
    /// The JSON pointer below the entry.
    key: &'static str,
    message: &'static str,
}

/// A file of another kind has an error in each line.
const MOST_ERRORS: usize = 20;

/// Each instance keeps them in its memory.
const MOST_USERS: usize = 10_000;

/// The user's name is a field value, a note and a word in logs.
const LONGEST_NAME: usize = 128;

const INVALID_NAME: &str = "invalid name of a user; expected up to 128 bytes of text without colons and control \
                            characters, such as `alice`; in a line: `alice:HASH`";

impl Users {
    /// Parses the list; errors are reported.
    pub fn new(list: &List, setup: &mut Setup) -> Self {
        let mut parser = Parser::default();
        match list {
            List::Lines(text) => parser.lines(text, "/users"),
            List::Entries(entries) => {
                for (place, entry) in entries.iter().enumerate() {
                    parser.entry(entry, &format!("/users/{place}"));
                }
            }
        }
        let Parser { users, mut errors } = parser;
        if users.list.is_empty() && errors.is_empty() {
            errors.push(ConfigError::at("/users", "no user, so that every request would be refused; add one"));
        }
        errors.into_iter().take(MOST_ERRORS).for_each(|error| setup.report(error));
        users
    }

    /// Returns the index of a user by name; `None` if the name is unknown.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.indexes.get(name).copied()
    }

    /// Returns a user by index; `None` if there is none with this index.
    pub fn get(&self, index: usize) -> Option<&User> {
        self.list.get(index)
    }
}

impl Parser {
    fn entry(&mut self, entry: &Entry, pointer: &str) {
        match entry {
            Entry::Lines(text) => self.lines(text, pointer),
            Entry::User(user) if !user.others.is_empty() => {
                let names = user.others.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                let message = format!("unknown keys: {names}; expected `name` and `hash`");
                self.errors.push(ConfigError::at(pointer, message));
            }
            Entry::User(user) => {
                let (name, hash) = (user.name.as_deref().unwrap_or_default(), user.hash.as_deref().unwrap_or_default());
                if let Err(Wrong { key, message }) = self.add(name, hash) {
                    self.errors.push(ConfigError::at(format!("{pointer}{key}"), message));
                }
            }
        }
    }

    fn lines(&mut self, text: &str, pointer: &str) {
        for line in lines::of(text) {
            let (name, rest) = line.text.split_once(':').unwrap_or((line.text, ""));
            // A comment may follow, as in the files of nginx and Apache; no hash has a colon.
            let hash = rest.split(':').next().unwrap_or_default();
            if let Err(Wrong { message, .. }) = self.add(name.trim(), hash.trim()) {
                self.errors.push(line.error(pointer, message));
            }
        }
    }

    fn add(&mut self, name: &str, hash: &str) -> Result<(), Wrong> {
        let is_name_byte = |byte: u8| byte != b':' && !byte.is_ascii_control();
        if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(is_name_byte) {
            return Err(Wrong { key: "/name", message: INVALID_NAME });
        }
        hashes::check(hash).map_err(|WrongHash(message)| Wrong { key: "/hash", message })?;
        if self.users.list.len() == MOST_USERS {
            return Err(Wrong { key: "", message: "too many users; expected at most 10,000" });
        }
        if self.users.indexes.insert(name.into(), self.users.list.len()).is_some() {
            let message = "a user who is in the list already; expected each name once";
            return Err(Wrong { key: "/name", message });
        }
        self.users.list.push(User { name: name.into(), hash: hash.into() });
        Ok(())
    }
}
