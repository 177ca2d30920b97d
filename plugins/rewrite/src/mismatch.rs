//! Expressions that no path matches, as far as their parts show it. Such an expression is a mistake: it was written for the
//! whole target of a request, for text that is percent-encoded in paths, or for another spelling than the canonical one.

use plugway_sdk::percent::is_unreserved;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind, Look};

use crate::config::{Canonical, TrailingSlash};

/// Returns why no path in its canonical form matches an expression; `None` if one may. An expression that can't be parsed
/// has an error of its own.
pub fn mismatch(expression: &str, canonical: &Canonical) -> Option<&'static str> {
    let parsed = ParserBuilder::new().unicode(false).utf8(false).build().parse(expression).ok()?;
    wrong_part(&parsed).or_else(|| uncanonical(&parsed, canonical))
}

/// Returns why no path in its canonical form matches an expression that other paths may match; `None` if one may.
fn uncanonical(expression: &Hir, canonical: &Canonical) -> Option<&'static str> {
    if canonical.lower_case && has_capital(expression) {
        return Some(LOWER_CASE);
    }
    let HirKind::Concat(parts) = expression.kind() else { return None };
    let [.., part, end] = &parts[..] else { return None };
    let (HirKind::Literal(text), HirKind::Look(Look::End)) = (part.kind(), end.kind()) else { return None };
    let segment = text.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    match canonical.trailing_slash? {
        // The path `/` keeps its slash.
        TrailingSlash::Remove => {
            (segment.is_empty() && expression.properties().minimum_len() > Some(1)).then_some(WITHOUT_SLASH)
        }
        TrailingSlash::Add => {
            let is_whole = segment.len() < text.0.len();
            (is_whole && !segment.is_empty() && !segment.contains(&b'.')).then_some(WITH_SLASH)
        }
    }
}

/// Whether each match of an expression has a capital letter, except for the digits of escapes.
fn has_capital(part: &Hir) -> bool {
    match part.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(_) => false,
        HirKind::Literal(text) => text.0.iter().enumerate().any(|(at, byte)| {
            // The percent sign of a digit may stand in the part before.
            let may_be_digit = byte.is_ascii_hexdigit() && (at < 2 || text.0[at - 2..at].contains(&b'%'));
            byte.is_ascii_uppercase() && !may_be_digit
        }),
        HirKind::Repetition(repetition) => repetition.min > 0 && has_capital(&repetition.sub),
        HirKind::Capture(group) => has_capital(&group.sub),
        HirKind::Concat(parts) => parts.iter().any(has_capital),
        HirKind::Alternation(parts) => parts.iter().all(has_capital),
    }
}

/// Returns why no path has a text that matches a part of an expression; `None` if one may.
fn wrong_part(part: &Hir) -> Option<&'static str> {
    match part.kind() {
        HirKind::Empty | HirKind::Look(_) => None,
        HirKind::Literal(literal) => wrong_text(&literal.0),
        HirKind::Class(class) => (!has(class, is_of_path)).then_some(ENCODED),
        HirKind::Repetition(repetition) if repetition.min == 0 => None,
        HirKind::Repetition(repetition) => wrong_part(&repetition.sub),
        HirKind::Capture(group) => wrong_part(&group.sub),
        HirKind::Concat(parts) => {
            let starts = parts.iter().enumerate().filter(|(_, part)| is_start(part));
            let mut begins_elsewhere = starts.map(|(at, _)| &parts[at + 1..]).filter(|rest| !may_begin_path(rest));
            parts.iter().find_map(wrong_part).or_else(|| begins_elsewhere.next().map(|_| START))
        }
        HirKind::Alternation(parts) => {
            let wrong: Option<Vec<_>> = parts.iter().map(wrong_part).collect();
            wrong.and_then(|wrong| wrong.first().copied())
        }
    }
}

/// Returns why no path contains a text; `None` if one may.
fn wrong_text(text: &[u8]) -> Option<&'static str> {
    if text.iter().any(|byte| b"?#".contains(byte)) {
        return Some(END);
    }
    if !text.iter().all(|byte| is_of_path(*byte)) {
        return Some(ENCODED);
    }
    if text.windows(2).any(|two| two == b"//") {
        return Some("paths have single slashes");
    }
    text.windows(3).any(is_unsettled).then_some(UNSETTLED)
}

/// Whether three bytes begin with a percent sign and are no escape that paths have.
fn is_unsettled(three: &[u8]) -> bool {
    let [b'%', digits @ ..] = three else { return false };
    let value = std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let is_upper = digits.iter().all(|digit| digit.is_ascii_digit() || digit.is_ascii_uppercase());
    !is_upper || value.is_none_or(is_unreserved)
}

/// Whether a path may begin with a match of these parts, one after the other.
fn may_begin_path(parts: &[Hir]) -> bool {
    // Parts that may be empty leave the beginning to those after them.
    let consuming = parts.iter().take_while(|part| part.properties().minimum_len() == Some(0));
    let count = consuming.clone().count();
    consuming.chain(parts.get(count)).any(may_begin_with_slash) || count == parts.len()
}

/// Whether a match of a part may begin with a slash.
fn may_begin_with_slash(part: &Hir) -> bool {
    match part.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => literal.0.first() == Some(&b'/'),
        HirKind::Class(class) => has(class, |byte| byte == b'/'),
        HirKind::Repetition(repetition) => may_begin_with_slash(&repetition.sub),
        HirKind::Capture(group) => may_begin_with_slash(&group.sub),
        HirKind::Concat(parts) => may_begin_path(parts),
        HirKind::Alternation(parts) => parts.iter().any(may_begin_with_slash),
    }
}

fn is_start(part: &Hir) -> bool {
    matches!(part.kind(), HirKind::Look(Look::Start | Look::StartLF | Look::StartCRLF))
}

/// Whether a class has an ASCII character for which `is_meant` holds.
fn has(class: &Class, is_meant: impl Fn(u8) -> bool) -> bool {
    let is_in = |byte: u8| match class {
        Class::Bytes(class) => class.iter().any(|range| (range.start()..=range.end()).contains(&byte)),
        Class::Unicode(class) => class.iter().any(|range| (range.start()..=range.end()).contains(&char::from(byte))),
    };
    (0..128).any(|byte| is_meant(byte) && is_in(byte))
}

/// Whether paths may have a byte.
fn is_of_path(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"?#<>`\\".contains(&byte)
}

const END: &str = "a path ends before `?` and `#`; a query stays by itself, or is edited by `query`";
const START: &str = "a path begins with `/`: write `^/`";
const ENCODED: &str = "paths have such characters percent-encoded, such as `%20` for a space";
const UNSETTLED: &str = "escapes in paths have upper-case digits, and letters, digits and `-._~` are no escapes";
const LOWER_CASE: &str = "paths are in lower case here, by `canonical`: write that, or `(?i)`";
const WITHOUT_SLASH: &str = "paths end without a slash here, by `canonical`";
const WITH_SLASH: &str = "paths end with a slash here, by `canonical`";

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Canonical = Canonical { host: None, trailing_slash: None, lower_case: false, redirect: None };

    #[test]
    fn expressions_for_another_spelling_than_the_canonical_one_have_a_reason() {
        let lower = Canonical { lower_case: true, ..ANY };
        let remove = Canonical { trailing_slash: Some(TrailingSlash::Remove), ..ANY };
        let add = Canonical { trailing_slash: Some(TrailingSlash::Add), ..ANY };
        for (canonical, expression, reason) in [
            (&lower, "^/Old$", Some(LOWER_CASE)),
            (&lower, "^/(Old|New)/", Some(LOWER_CASE)),
            (&lower, "^/x(?:/Old)+", Some(LOWER_CASE)),
            (&lower, "^/(?:Old|new)/", None),
            (&lower, "^/x(?:/Old)*$", None),
            (&lower, "(?i)^/Old$", None),
            (&lower, "^/[A-Za-z]+$", None),
            (&lower, "^/caf%C3%A9$", None),
            (&lower, "%(C3)", None),
            (&remove, "^/old/$", Some(WITHOUT_SLASH)),
            (&remove, "^/(.+)/$", Some(WITHOUT_SLASH)),
            (&remove, "^/$", None),
            (&remove, "/$", None),
            (&remove, "^/old/", None),
            (&remove, "^/old/?$", None),
            (&add, "^/old$", Some(WITH_SLASH)),
            (&add, "^/a.b/old$", Some(WITH_SLASH)),
            (&add, r"^/old\.html$", None),
            (&add, "^/old/$", None),
            (&add, "old$", None),
            (&add, "^/old", None),
        ] {
            assert_eq!(mismatch(expression, canonical), reason, "{expression}");
            assert_eq!(mismatch(expression, &ANY), None, "{expression}");
        }
    }

    #[test]
    fn expressions_that_no_path_matches_have_a_reason() {
        for (expression, reason) in [
            (r"^/index\.php\?id=(\d+)$", END),
            ("^/a#b", END),
            ("[?]", END),
            ("^old/", START),
            ("^(?:old|new)/", START),
            ("^(old)", START),
            ("^[a-z]+/", START),
            ("^x*old", START),
            (r"(?i)^\w", START),
            ("^/gr\u{f6}\u{df}e", ENCODED),
            ("^/a b", ENCODED),
            (r"^/a\\b", ENCODED),
            ("a( )+b", ENCODED),
            (r"[^\s\S]", ENCODED),
            ("^/%7Euser", UNSETTLED),
            ("^/caf%c3%a9", UNSETTLED),
            ("^/100%/x", UNSETTLED),
            ("^/a//b", "paths have single slashes"),
            ("a b|c d", ENCODED),
        ] {
            assert_eq!(mismatch(expression, &ANY), Some(reason), "{expression}");
        }
    }

    #[test]
    fn expressions_that_a_path_may_match_have_none() {
        for expression in [
            "",
            "^",
            "$",
            "^$",
            "a",
            "^/",
            "^/old/(.*)$",
            "^(/[^/]+){3}$",
            "^.*old",
            "^.old",
            "^(?:/old|new)",
            "^/?old",
            "^(?:old)?/a",
            r"^/a\??",
            "(?i)^/PRICE$",
            "(?i)%c3%a9",
            "^/caf%C3%A9",
            "^/a;x=1$",
            r"^/a b|^/c",
            r"[^ ]",
            "%",
            "/+",
            r"\A/",
            "(?m)^/a$",
            "(?x) ^ / a # a comment?",
        ] {
            assert_eq!(mismatch(expression, &ANY), None, "{expression}");
        }
    }
}
