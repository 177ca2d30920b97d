//! Content security policies (CSP Level 3), and the nonces in them.

use std::collections::BTreeMap;

use plugway_sdk::pointer::member;
use plugway_sdk::{ConfigError, Part, Setup, ValueName};

use crate::config::{Csp, DirectiveValue};

/// The place of a nonce in a policy.
const NONCE: &str = "{nonce}";

/// The directives of CSP Level 3 and of specifications that extend it.
const DIRECTIVES: [&str; 29] = [
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
    "webrtc",
    "worker-src",
];

/// The words of `sandbox` (the attribute `sandbox` of HTML).
const SANDBOX: [&str; 14] = [
    "allow-downloads",
    "allow-forms",
    "allow-modals",
    "allow-orientation-lock",
    "allow-pointer-lock",
    "allow-popups",
    "allow-popups-to-escape-sandbox",
    "allow-presentation",
    "allow-same-origin",
    "allow-scripts",
    "allow-storage-access-by-user-activation",
    "allow-top-navigation",
    "allow-top-navigation-by-user-activation",
    "allow-top-navigation-to-custom-protocols",
];

/// The number of letters by which a word may differ from a known one to be a slip. Three would take names that browsers may
/// come to know, such as `model-src` beside `media-src`.
const MAX_SLIPS: usize = 2;

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
            Csp::Directives(table) => of_table(table, pointer, setup),
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
    let mut directives = Vec::new();
    for directive in text.split(';') {
        let words: Vec<&str> = directive.split_ascii_whitespace().collect();
        let Some((name, values)) = words.split_first() else { continue };
        add_directive(name, values, pointer, &mut directives, setup);
    }
    directives
}

/// Returns the directives of a table that are not switched off.
fn of_table(table: &BTreeMap<String, DirectiveValue>, pointer: &str, setup: &mut Setup) -> Vec<String> {
    let mut directives = Vec::new();
    for (name, value) in table {
        let words: Vec<&str> = match value {
            DirectiveValue::Switch(false) => continue,
            DirectiveValue::Switch(true) => Vec::new(),
            DirectiveValue::Text(text) => text.split_ascii_whitespace().collect(),
            DirectiveValue::List(words) => words.iter().flat_map(|word| word.split_ascii_whitespace()).collect(),
        };
        add_directive(name, &words, &member(pointer, name), &mut directives, setup);
    }
    directives
}

/// Adds a directive with its name in lower case, as browsers compare names in any case. Reports the errors in it.
fn add_directive(name: &str, words: &[&str], pointer: &str, directives: &mut Vec<String>, setup: &mut Setup) {
    let name = name.to_ascii_lowercase();
    if directives.iter().any(|known| known.split(' ').next() == Some(name.as_str())) {
        setup.report(ConfigError::at(pointer, format!("`{name}` is there twice: browsers ignore the second one")));
    }
    if let Err(message) = check(&name, words) {
        setup.report(ConfigError::at(pointer, message));
    }
    directives.push([&[name.as_str()], words].concat().join(" "));
}

/// Checks a directive. The error says what is expected.
fn check(name: &str, words: &[&str]) -> Result<(), String> {
    check_name(name)?;
    words.iter().try_for_each(|word| check_word(name, word, words.len()))
}

/// Checks the name of a directive. Browsers ignore a directive that they don't know, and later ones may know it: only a name
/// that is probably a slip is an error, since the policy would protect less than it seems to.
fn check_name(name: &str) -> Result<(), String> {
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    match meant(name, &DIRECTIVES) {
        _ if DIRECTIVES.contains(&name) => Ok(()),
        Some(meant) => Err(format!("unknown directive: `{name}`; did you mean `{meant}`?")),
        None if is_name => Ok(()),
        None => Err(format!("unknown directive: `{name}`; expected one of {}", DIRECTIVES.join(", "))),
    }
}

/// Returns the known word for which a word is probably a slip.
fn meant(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let source = format!("{word}-src");
    let distance = |known: &&str| if *known == source { 0 } else { strsim::damerau_levenshtein(word, known) };
    known
        .iter()
        .map(|known| (distance(known), *known))
        .min()
        .filter(|(slips, _)| *slips <= MAX_SLIPS)
        .map(|(_, known)| known)
}

/// Checks one of the words of a directive; `count` is the number of the words.
fn check_word(name: &str, word: &str, count: usize) -> Result<(), String> {
    if let Some(wrong) = word.chars().find(|letter| !letter.is_ascii_graphic() || ",;".contains(*letter)) {
        return Err(format!("`{word}` in `{name}`: {wrong:?} can't stand in a policy; write it as `%XX`"));
    }
    // The names of groups, and addresses, are no sources.
    if KEYWORDS.contains(&word) && !["report-to", "report-uri"].contains(&name) {
        return Err(format!("`{word}` in `{name}` is a host name to browsers; write `'{word}'`"));
    }
    if word.contains(NONCE) && word != "'nonce-{nonce}'" {
        return Err(format!("invalid nonce: `{word}` in `{name}`; write `'nonce-{NONCE}'`"));
    }
    if word == "'none'" && count > 1 {
        return Err(format!("`'none'` in `{name}` beside other sources is ignored; write it alone, or not at all"));
    }
    if word.starts_with("'nonce-") && word != "'nonce-{nonce}'" {
        return Err(format!("`{word}` in `{name}` is the same for all responses; write `'nonce-{NONCE}'`"));
    }
    if word.starts_with('\'') && has_sources(name) && !is_quoted_source(word) {
        let known = KEYWORDS.map(|keyword| format!("'{keyword}'")).join(", ");
        return Err(format!("unknown keyword: `{word}` in `{name}`; expected one of {known}, or a hash"));
    }
    let lower = word.to_ascii_lowercase();
    if name == "webrtc" && !["'allow'", "'block'"].contains(&lower.as_str()) {
        return Err(format!("unknown word: `{word}` in `webrtc`; expected `'allow'` or `'block'`"));
    }
    match meant(&lower, &SANDBOX).filter(|_| name == "sandbox" && !SANDBOX.contains(&lower.as_str())) {
        Some(meant) => Err(format!("unknown word: `{word}` in `sandbox`; did you mean `{meant}`?")),
        None => Ok(()),
    }
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
