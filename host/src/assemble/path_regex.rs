//! The reason for which no request ever has a path that a regular expression matches. Routes match paths in their normal
//! form and without parameters ([`crate::protocol::path`]), and such paths are a regular language themselves: an expression that has
//! no text in common with that language is a mistake of the manifest.

use std::collections::HashSet;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};

type Dfa = dense::DFA<Vec<u32>>;

/// The bytes of an automaton. The expression of a larger one is taken as one that matches.
const MAX_AUTOMATON_BYTES: usize = 1 << 20;

/// The pairs of states that are looked at; beyond that, an expression is taken as one that matches.
const MAX_STATE_PAIRS: usize = 100_000;

/// The paths that routes see.
pub struct Paths {
    language: Option<Dfa>,
}

impl Paths {
    /// Builds the automaton of the language.
    pub fn new() -> Self {
        Paths { language: automaton(&paths()) }
    }

    /// Returns the reason for which no path matches an expression; `None` if one does, or if the expression is too large
    /// to be looked at.
    pub fn mismatch(&self, regex: &str) -> Option<&'static str> {
        let regex = automaton(regex)?;
        if have_common_text(&regex, self.language.as_ref()?) {
            return None;
        }
        let larger = LARGER
            .iter()
            .find(|(language, _)| automaton(language).is_some_and(|language| have_common_text(&regex, &language)));
        Some(larger.map_or("it matches no text at all", |(_, reason)| *reason))
    }
}

/// The paths of a route.
#[derive(Clone, Copy)]
pub enum RoutePaths<'a> {
    /// The route matches one path.
    Exactly(&'a str),
    /// The route matches a path, and all paths below it.
    Below(&'a str),
}

impl RoutePaths<'_> {
    /// Whether one of the paths may contain a match of an expression. Segments may have parameters, which routes ignore.
    pub fn may_match(self, regex: &str) -> bool {
        let (RoutePaths::Exactly(path) | RoutePaths::Below(path)) = self;
        let segment = |text| format!(r"/{}(?:;[\x00-\x2E\x30-\x7F]*)?", regex::escape(text));
        let segments: String = path.split('/').filter(|segment| !segment.is_empty()).map(segment).collect();
        let rest = match self {
            RoutePaths::Exactly(path) if path.ends_with('/') => "/",
            RoutePaths::Exactly(_) => "",
            RoutePaths::Below(_) => r"(?:/[\x00-\x7F]*)?",
        };
        let language = automaton(&format!(r"(?s-u)\A{segments}{rest}\z"));
        match (automaton(regex), language) {
            (Some(regex), Some(language)) => have_common_text(&regex, &language),
            _ => true,
        }
    }
}

/// Languages that are larger than that of paths, each with the error of an expression that only matches there. Each
/// contains the previous one, so that the first with a match names the error.
const LARGER: [(&str, &str); 5] = [
    (
        r"(?s-u)\A/[\x00-\x22\x24-\x3A\x3C-\x3E\x40-\x7F]*\z",
        "paths are matched in their normal form: no empty segments, no `.` or `..`, escapes in upper case such as \
         `%C3`, a space as `%20`, and letters, digits and `-._~` unescaped",
    ),
    (
        r"(?s-u)\A/[\x00-\x22\x24-\x3E\x40-\x7F]*\z",
        "parameters (`;` and what follows it in a segment) are removed before routes are matched",
    ),
    (r"(?s-u)\A/[\x00-\x7F]*\z", "a path ends before `?` and `#`: match a query with `query = { name = \"value\" }`"),
    (r"(?s-u)\A[\x00-\x7F]*\z", "a path begins with `/`"),
    (r"(?s)\A.*\z", "characters beyond ASCII are escaped in paths, such as `%C3%A9` for `é`"),
];

/// Returns the expression of all paths. A segment is not empty, and neither `.` nor `..`; escapes are those that
/// [`crate::protocol::path::normal`] keeps. `*` is the target of `OPTIONS *`.
fn paths() -> String {
    let is_kept = |byte: &u8| {
        let is_unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        !is_unreserved && !matches!(byte, 0 | b'/' | b'\\' | b';')
    };
    let escapes: Vec<String> = (0..=u8::MAX).filter(is_kept).map(|byte| format!("%{byte:02X}")).collect();
    let is_plain =
        |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#' | b';' | b'/' | b'\\' | b'.');
    let plain: Vec<String> = (0..=u8::MAX).filter(is_plain).map(|byte| format!(r"\x{byte:02X}")).collect();
    let other = format!("(?:[{}]|{})", plain.concat(), escapes.join("|"));
    let any = format!(r"(?:\.|{other})");
    format!(r"(?s-u)\A(?:\*|/|(?:/(?:{other}{any}*|\.{other}{any}*|\.\.{any}+))+/?)\z")
}

fn automaton(regex: &str) -> Option<Dfa> {
    let config = dense::Config::new()
        .match_kind(MatchKind::All)
        .start_kind(StartKind::Unanchored)
        .unicode_word_boundary(true)
        .dfa_size_limit(Some(MAX_AUTOMATON_BYTES))
        .determinize_size_limit(Some(MAX_AUTOMATON_BYTES));
    dense::Builder::new()
        .configure(config)
        .syntax(syntax::Config::new())
        .thompson(thompson::Config::new().nfa_size_limit(Some(MAX_AUTOMATON_BYTES)))
        .build(regex)
        .ok()
}

/// Whether a text of a language may contain a match of an expression.
fn have_common_text(regex: &Dfa, language: &Dfa) -> bool {
    let start = start::Config::new().anchored(Anchored::No);
    let (Ok(one), Ok(other)) = (regex.start_state(&start), language.start_state(&start)) else { return true };
    let first = (one, other, false);
    let (mut known, mut next) = (HashSet::from([first]), vec![first]);
    while let Some((one, other, is_found)) = next.pop() {
        // A state says of the text before its last byte whether it matches.
        let is_found_here = is_found || regex.is_match_state(regex.next_eoi_state(one));
        if is_found_here && language.is_match_state(language.next_eoi_state(other)) || known.len() > MAX_STATE_PAIRS {
            return true;
        }
        for byte in 0..=u8::MAX {
            let (one, other) = (regex.next_state(one, byte), language.next_state(other, byte));
            if regex.is_quit_state(one) || language.is_quit_state(other) {
                return true;
            }
            let pair = (one, other, is_found || regex.is_match_state(one));
            let is_hopeless = language.is_dead_state(other) || regex.is_dead_state(one) && !pair.2;
            if !is_hopeless && known.insert(pair) {
                next.push(pair);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_that_some_path_matches_are_good() {
        let paths = Paths::new();
        for regex in [
            "^/api",
            "",
            "api",
            "^",
            "$",
            "^/$",
            "^/x[0-9]",
            r"\.php$",
            "^/caf%C3%A9$",
            "(?i)^/API/",
            r"^/[^/]+/edit$",
            "^/%20",
            r"/\.well-known/",
            r"^/\.\.\.",
            r"^\*$",
            "^/a|^b",
            r"\bapi\b",
            "^/(a|b);?",
            "[a-z;]+",
            "%3A",
            "^.api",
            r"^/\p{L}",
            r"^/\w+@",
            "^(/[^/]+){3}$",
            "^/~user",
            "/$",
            "(?:)",
            r"^/a{1000}$",
            "^/\\d{1,300}$",
        ] {
            assert_eq!(paths.mismatch(regex), None, "{regex}");
        }
    }

    #[test]
    fn expressions_match_paths_of_a_route_or_none() {
        let below = RoutePaths::Below("/api/v1");
        for regex in ["^/api/(.*)$", "^/api/v1/users", "/users$", "v1", "^/api/v1$", "^/api;a=1/v1", "^/a", "", "1/?$"]
        {
            assert!(below.may_match(regex), "{regex}");
        }
        for regex in ["^/b/", "^/api/v2", "^/api/?$", "^/v1", "^/api/v1x"] {
            assert!(!below.may_match(regex), "{regex}");
        }
        let exactly = RoutePaths::Exactly("/api/v1");
        assert_eq!(["^/api/(.*)$", "v1$", "v1/$"].map(|regex| exactly.may_match(regex)), [true, true, false]);
        assert!(RoutePaths::Exactly("/a/").may_match("^/a/$") && !RoutePaths::Exactly("/a/").may_match("^/a$"));
    }

    #[test]
    fn expressions_that_no_path_matches_have_a_reason() {
        let paths = Paths::new();
        for (regex, reason) in [
            ("^api", "begins with `/`"),
            ("^$", "begins with `/`"),
            ("a;b", "parameters"),
            ("^/a;v=1$", "parameters"),
            (r"^/a\?b=1", "a path ends before"),
            ("^/a#b", "a path ends before"),
            ("^/a b", "normal form"),
            ("^/%61", "normal form"),
            ("^/caf%c3%a9", "normal form"),
            ("^/a//b", "normal form"),
            ("^//", "normal form"),
            (r"/\.\./", "normal form"),
            (r"/\.$", "normal form"),
            (r"a\\b", "normal form"),
            ("%2F", "normal form"),
            ("^/é", "beyond ASCII"),
            (r"[^\s\S]", "no text at all"),
            ("$/^", "no text at all"),
        ] {
            let mismatch = paths.mismatch(regex);
            assert!(mismatch.is_some_and(|mismatch| mismatch.contains(reason)), "{regex}: {mismatch:?}");
        }
    }
}
