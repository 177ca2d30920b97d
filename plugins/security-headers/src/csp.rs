//! Content security policies (CSP Level 3), and the nonces in them.

use plugway_sdk::pointer::member;
use plugway_sdk::{ConfigError, Part, Setup, ValueName};

use crate::config::{Csp, DirectiveValue};

/// The place of a nonce in a policy.
const NONCE: &str = "{nonce}";

/// The directives of CSP Level 3 and of specifications that extend it.
const DIRECTIVES: [&str; 27] = [
    "base-uri",
    "block-all-mixed-content",
    "child-src",
    "connect-src",
    "default-src",
    "fenced-frame-src",
    "font-src",
    "form-action",
    "frame-ancestors",
    "frame-src",
    "img-src",
    "manifest-src",
    "media-src",
    "object-src",
    "prefetch-src",
    "report-to",
    "report-uri",
    "require-trusted-types-for",
    "sandbox",
    "script-src",
    "script-src-attr",
    "script-src-elem",
    "style-src",
    "style-src-attr",
    "style-src-elem",
    "trusted-types",
    "upgrade-insecure-requests",
];

/// Words that browsers know only in quotation marks.
const KEYWORDS: [&str; 14] = [
    "none",
    "self",
    "strict-dynamic",
    "unsafe-inline",
    "unsafe-eval",
    "unsafe-hashes",
    "wasm-unsafe-eval",
    "report-sample",
    "inline-speculation-rules",
    "unsafe-webtransport-hashes",
    "report-sha256",
    "report-sha384",
    "report-sha512",
    "trusted-types-eval",
];

/// The beginnings of words in quotation marks besides the keywords.
const QUOTED: [&str; 10] = [
    "nonce-",
    "sha256-",
    "sha384-",
    "sha512-",
    "url-sha256-",
    "url-sha384-",
    "url-sha512-",
    "eval-sha256-",
    "eval-sha384-",
    "eval-sha512-",
];

/// A checked policy.
#[derive(Debug)]
pub struct Policy {
    text: String,
}

impl Policy {
    /// Reads a policy, and reports all errors in it; `pointer` is the JSON pointer to the policy.
    pub fn new(csp: &Csp, pointer: &str, setup: &mut Setup) -> Self {
        let directives = match csp {
            Csp::Text(text) => of_text(text, pointer, setup),
            Csp::Directives(table) => {
                table.iter().filter_map(|(name, value)| of_table(name, value, pointer, setup)).collect()
            }
        };
        if directives.is_empty() {
            setup.report(ConfigError::at(pointer, "the policy is empty; write one such as `default-src 'self'`"));
        }
        Policy { text: directives.join("; ") }
    }

    /// Whether the policy has nonces.
    pub fn has_nonce(&self) -> bool {
        self.text.contains(NONCE)
    }

    /// Whether the policy has a directive.
    pub fn has(&self, directive: &str) -> bool {
        self.text.split("; ").any(|known| known.split(' ').next() == Some(directive))
    }

    /// Returns the value of a directive; `None` if the policy has no such directive.
    pub fn value(&self, directive: &str) -> Option<&str> {
        self.text.split("; ").find_map(|known| known.strip_prefix(directive)?.strip_prefix(' '))
    }

    /// Adds a directive.
    pub fn add(&mut self, directive: &str) {
        self.text = format!("{}; {directive}", self.text);
    }

    /// Returns the policy as a template that reads the nonce from a request field.
    pub fn template(&self, nonce_field: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        for (index, text) in self.text.split(NONCE).enumerate() {
            if index > 0 {
                parts.push(Part::Value(ValueName::RequestField(nonce_field.into())));
            }
            if !text.is_empty() {
                parts.push(Part::Text(text.into()));
            }
        }
        parts
    }
}

/// Returns 128 random bits in hexadecimal; `None` if the system has no random numbers.
pub fn nonce() -> Option<String> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).ok()?;
    Some(format!("{:032x}", u128::from_be_bytes(bits)))
}

/// Returns the directives of a text, each with one space between its words.
fn of_text(text: &str, pointer: &str, setup: &mut Setup) -> Vec<String> {
    let mut directives: Vec<String> = Vec::new();
    for directive in text.split(';') {
        let words: Vec<&str> = directive.split_ascii_whitespace().collect();
        let Some((name, values)) = words.split_first() else { continue };
        if directives.iter().any(|known| known.split(' ').next() == Some(name)) {
            setup.report(ConfigError::at(pointer, format!("`{name}` is there twice: browsers ignore the second one")));
        }
        if let Err(message) = check(name, values) {
            setup.report(ConfigError::at(pointer, message));
        }
        directives.push(words.join(" "));
    }
    directives
}

/// Returns a directive of a table; `None` if it is switched off.
fn of_table(name: &str, value: &DirectiveValue, pointer: &str, setup: &mut Setup) -> Option<String> {
    let words: Vec<&str> = match value {
        DirectiveValue::Switch(false) => return None,
        DirectiveValue::Switch(true) => Vec::new(),
        DirectiveValue::Text(text) => text.split_ascii_whitespace().collect(),
        DirectiveValue::List(words) => words.iter().flat_map(|word| word.split_ascii_whitespace()).collect(),
    };
    if let Err(message) = check(name, &words) {
        setup.report(ConfigError::at(member(pointer, name), message));
    }
    Some([&[name], &words[..]].concat().join(" "))
}

/// Checks a directive. The error says what is expected.
fn check(name: &str, words: &[&str]) -> Result<(), String> {
    if !DIRECTIVES.contains(&name) {
        return Err(format!("unknown directive: `{name}`; expected one of {}", DIRECTIVES.join(", ")));
    }
    for word in words {
        if let Some(wrong) = word.chars().find(|letter| !letter.is_ascii_graphic() || ",;".contains(*letter)) {
            return Err(format!("`{word}` in `{name}`: {wrong:?} can't stand in a policy; write it as `%XX`"));
        }
        if KEYWORDS.contains(word) {
            return Err(format!("`{word}` in `{name}` is a host name to browsers; write `'{word}'`"));
        }
        if word.contains(NONCE) && *word != "'nonce-{nonce}'" {
            return Err(format!("invalid nonce: `{word}` in `{name}`; write `'nonce-{NONCE}'`"));
        }
        if *word == "'none'" && words.len() > 1 {
            return Err(format!("`'none'` in `{name}` beside other sources is ignored; write it alone, or not at all"));
        }
        if word.starts_with("'nonce-") && *word != "'nonce-{nonce}'" {
            return Err(format!("`{word}` in `{name}` is the same for all responses; write `'nonce-{NONCE}'`"));
        }
        if word.starts_with('\'') && has_sources(name) && !is_quoted_source(word) {
            let known = KEYWORDS.map(|keyword| format!("'{keyword}'")).join(", ");
            return Err(format!("unknown keyword: `{word}` in `{name}`; expected one of {known}, or a hash"));
        }
    }
    Ok(())
}

/// Whether the words of a directive are sources, and not names or URIs.
fn has_sources(directive: &str) -> bool {
    directive.ends_with("-src")
        || directive.contains("-src-")
        || ["base-uri", "form-action", "frame-ancestors"].contains(&directive)
}

/// Whether browsers know a word that begins with a quotation mark. They compare keywords in any letter case.
fn is_quoted_source(word: &str) -> bool {
    let Some(inner) = word.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) else { return false };
    let inner = inner.to_ascii_lowercase();
    KEYWORDS.contains(&inner.as_str()) || QUOTED.iter().any(|beginning| inner.starts_with(beginning))
}
