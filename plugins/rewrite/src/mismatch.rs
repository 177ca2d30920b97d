//! Expressions that no path matches, as far as their parts show it. Such an expression is a mistake: it was written for the
//! whole target of a request, or for text that is percent-encoded in paths.

use plugway_sdk::percent::is_unreserved;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Returns why no path matches an expression; `None` if one may. An expression that can't be parsed has an error of its own.
pub fn mismatch(expression: &str) -> Option<&'static str> {
    let parsed = ParserBuilder::new().unicode(false).utf8(false).build().parse(expression);
    parsed.ok().and_then(|parsed| wrong_part(&parsed))
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

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(mismatch(expression), Some(reason), "{expression}");
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
            assert_eq!(mismatch(expression), None, "{expression}");
        }
    }
}
