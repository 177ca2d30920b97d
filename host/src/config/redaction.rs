//! Keeps values from outside a manifest, such as tokens, out of messages: their references are shown instead.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use super::replaced::{ReferencedValue, Replaced};

/// The values that no message may show.
#[derive(Debug, Default)]
pub struct Redaction {
    values: Vec<SecretValue>,
}

struct SecretValue {
    /// The reference, such as `${env:DB_TOKEN}`.
    reference: Box<str>,
    value: Box<str>,
}

/// The shortest value that is replaced anywhere; a shorter one would be found in ordinary words, and is replaced where
/// it is quoted.
const MIN_VALUE_BYTES: usize = 4;

/// The shortest word of a value that hides a longer quoted text; shorter ones, such as numbers, are in many examples.
const MIN_WORD_BYTES: usize = 4;

/// The shortest beginning of a value that is replaced: messages are truncated.
const MIN_BEGINNING_BYTES: usize = 8;

/// The shortest part of a value, from its beginning, that is replaced if it is half of the value.
const MIN_PART_BYTES: usize = 12;

impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reference)
    }
}

impl Redaction {
    /// Adds the value of a reference.
    pub fn add(&mut self, reference: &str, value: &str) {
        let is_known = |known: &SecretValue| *known.reference == *reference && *known.value == *value;
        // Only the latest values are compared: a reference is often repeated at once.
        if !value.is_empty() && !self.values.iter().rev().take(8).any(is_known) {
            self.values.push(SecretValue { reference: reference.into(), value: value.into() });
        }
    }

    /// Returns a message with references in place of their values. The values of references in `public` are shown.
    pub fn redact<'a>(&self, message: &'a str, public: &HashSet<String>) -> Cow<'a, str> {
        // Longer values first: a shorter one may be a part of them.
        let mut order: Vec<&SecretValue> =
            self.values.iter().filter(|value| !public.contains(&*value.reference)).collect();
        if order.is_empty() {
            return Cow::Borrowed(message);
        }
        order.sort_by_key(|value| std::cmp::Reverse(value.value.len()));
        let mut redacted = message.to_string();
        for SecretValue { reference, value } in order {
            redacted = match is_plain_word(value) {
                // The message may have the word itself.
                true => within_quotes(&redacted, |quoted| quoted.replace(&**value, reference)),
                false => {
                    let found = findable(value, &redacted);
                    forms(found).iter().fold(redacted, |message, form| without(message, form, reference))
                }
            };
        }
        Cow::Owned(redacted)
    }
}

/// Returns the beginning of a value that decides how much of the value a message has: a whole file may be one value, and a
/// message has a line.
fn findable<'a>(value: &'a str, message: &str) -> &'a str {
    &value[..value.floor_char_boundary(2 * message.len() + MIN_PART_BYTES)]
}

/// Whether a value could be an ordinary word of a message.
fn is_plain_word(value: &str) -> bool {
    value.len() >= MIN_VALUE_BYTES && value.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// Returns a message in which each text in quotes is changed by a function.
fn within_quotes(message: &str, change: impl Fn(&str) -> String) -> String {
    let (mut changed, mut rest) = (String::with_capacity(message.len()), message);
    while let Some(at) = rest.find(['`', '"', '\'']) {
        let (before, quote, after) = (&rest[..at], &rest[at..=at], &rest[at + 1..]);
        changed.push_str(before);
        changed.push_str(quote);
        rest = after;
        if is_apostrophe(before, quote) {
            continue;
        }
        // Without an end, the quoted text was cut off.
        let end = after.find(quote).unwrap_or(after.len());
        changed.push_str(&change(&after[..end]));
        changed.push_str(after.get(end..=end).unwrap_or_default());
        rest = after.get(end + 1..).unwrap_or_default();
    }
    changed + rest
}

/// Whether a quote is an apostrophe, by the text before it.
fn is_apostrophe(before: &str, quote: &str) -> bool {
    quote == "'" && before.ends_with(char::is_alphanumeric)
}

/// A text that has the fixed parts of messages, such as the component of a plugin: what is quoted there is no value.
#[derive(Clone, Copy, Default)]
pub struct MessageText<'a>(pub &'a [u8]);

impl MessageText<'_> {
    fn has(self, quoted: &str) -> bool {
        memchr::memmem::find(self.0, quoted.as_bytes()).is_some()
    }
}

/// Returns a message about strings that have references: nothing in quotes is a part of a value, however short, except
/// what `fixed` quotes too.
pub fn without_parts(message: &str, strings: &[Arc<Replaced>], fixed: MessageText<'_>) -> String {
    let mut message = message.to_string();
    let mut order: Vec<&Arc<Replaced>> = strings.iter().collect();
    order.sort_by_key(|string| std::cmp::Reverse(string.text.len()));
    let texts: Vec<(String, String)> = order
        .iter()
        .flat_map(|string| [string.as_template(), string.text.clone()].map(|text| (text, string.written())))
        .filter(|(text, _)| !text.is_empty())
        .flat_map(|(text, written)| {
            forms(findable(&text, &message)).into_iter().map(move |form| (form, written.clone()))
        })
        .collect();
    // Whole texts before beginnings, which a text may have in common with another form of it.
    for (form, written) in texts.iter().filter(|(form, _)| form.len() >= MIN_VALUE_BYTES) {
        message = message.replace(form, written);
    }
    for (form, written) in &texts {
        message = without(message, form, written);
    }
    let parts = Parts::of_all(strings);
    let (mut shown, mut rest) = (String::with_capacity(message.len()), message.as_str());
    while let Some(at) = rest.find(['`', '"', '\'']) {
        let quote = &rest[at..=at];
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        shown.push_str(before);
        shown.push_str(quote);
        rest = after;
        if is_apostrophe(before, quote) {
            continue;
        }
        let nearest = after.find(quote);
        let is_remedy = before.contains("write ");
        if let Some(end) = nearest.filter(|end| fixed.has(&format!("{quote}{}", &after[..=*end]))) {
            shown.push_str(&after[..=end]);
            rest = &after[end + 1..];
        } else if let Some((end, reference)) = quoted_part(after, quote, &parts, is_remedy) {
            if before.ends_with("write ") {
                shown.truncate(shown.len() - quote.len());
                shown.push_str("another value of ");
                shown.push_str(quote);
            }
            shown.push_str(reference);
            shown.push_str(quote);
            rest = &after[end + 1..];
        } else if let Some(end) = nearest {
            shown.push_str(&after[..=end]);
            rest = &after[end + 1..];
        } else if let Some(part) =
            parts.iter().find(|part| part.has(after.split('…').next().unwrap_or_default(), is_remedy))
        {
            // The end of the quoted text was cut off.
            shown.push_str(part.reference);
            rest = after.split_once('…').map_or("", |(_, rest)| rest);
        }
    }
    shown + rest
}

/// Returns a message without any word of a value. For messages of plugins and libraries, which may write values without
/// quotes.
pub fn without_words(message: &str, strings: &[Arc<Replaced>]) -> String {
    let message = without_parts(message, strings, MessageText::default());
    let parts = Parts::of_all(strings);
    let replace = |piece: &str| {
        let word = piece.trim_end_matches(is_between_words);
        let is_word =
            |part: &&Parts<'_>| [word, word.trim_end_matches('.')].iter().any(|word| part.words.contains(word));
        let part = parts.iter().find(is_word);
        part.map_or(piece.to_string(), |part| format!("{}{}", part.reference, &piece[word.len()..]))
    };
    message.split_inclusive(is_between_words).map(replace).collect()
}

/// A value, for the search for parts of it.
struct Parts<'a> {
    reference: &'a str,
    words: HashSet<&'a str>,
    /// The value in its plain form.
    value: String,
    /// The words of the value in its plain form.
    plain_words: HashSet<String>,
}

impl<'a> Parts<'a> {
    fn of_all(strings: &'a [Arc<Replaced>]) -> Vec<Self> {
        let of = |value: ReferencedValue<'a>| {
            let (words, plain) = (words_of(value.text).collect(), plain(value.text));
            let plain_words = words_of(&plain).map(Into::into).collect();
            Parts { reference: value.reference, words, value: plain, plain_words }
        };
        // A string may repeat a reference hundreds of times.
        let mut seen = HashSet::new();
        let is_new = |value: &ReferencedValue<'a>| seen.insert((value.reference, value.text));
        strings.iter().flat_map(|string| string.values()).filter(is_new).map(of).collect()
    }

    /// Whether a quoted text is a part of the value in any form, or contains a word of it that says much of it. A remedy
    /// may have been made from the value, so any word of the value counts there.
    fn has(&self, quoted: &str, is_remedy: bool) -> bool {
        let unescaped = quoted.replace("{{", "{").replace("}}", "}").replace("\\\"", "\"").replace("\\n", "\n");
        let is_telling = |word: &str| is_remedy || word.len() >= MIN_WORD_BYTES || word.len() * 2 >= self.value.len();
        [quoted, &unescaped].into_iter().map(plain).any(|text| {
            let text = text.trim_end_matches(['…', ' ']);
            let has_word = || words_of(text).any(|word| self.plain_words.contains(word) && is_telling(word));
            !text.is_empty() && (self.contains(text) || has_word())
        })
    }

    /// Whether the value has a text in its plain form.
    fn contains(&self, text: &str) -> bool {
        memchr::memmem::find(self.value.as_bytes(), text.as_bytes()).is_some()
    }
}

/// Returns a text in lower case, with its percent-encoded bytes decoded: messages show the normal forms of values too.
fn plain(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, after @ ..] = rest {
        let escaped = after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).to_lowercase()
}

/// Returns the end of the quoted text that a message begins with, and the reference whose value has it; the value may
/// have the quote too.
fn quoted_part<'a>(message: &str, quote: &str, parts: &[Parts<'a>], is_remedy: bool) -> Option<(usize, &'a str)> {
    let (mut candidates, mut found): (Vec<&Parts<'a>>, _) = (parts.iter().collect(), None);
    for (index, (end, _)) in message.match_indices(quote).enumerate() {
        let quoted = &message[..end];
        if index > 0 {
            // A value without the text up to one quote doesn't have the text up to a later quote either.
            let text = plain(quoted);
            candidates.retain(|part| part.contains(&text));
        }
        if candidates.is_empty() {
            break;
        }
        if let Some(part) = candidates.iter().find(|part| part.has(quoted, is_remedy)) {
            found = Some((end, part.reference));
        }
    }
    found
}

/// Returns the words of a value or of a message.
fn words_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_between_words).filter(|word| !word.is_empty())
}

/// Whether a character separates the words of a value and of a message.
fn is_between_words(character: char) -> bool {
    character.is_whitespace() || "`\"',;:=(){}[]<>/@&?|".contains(character)
}

/// Returns the ways in which messages write a value: as it is, as Rust quotes it, and as JSON does.
fn forms(value: &str) -> Vec<String> {
    let (debug, json) = (format!("{value:?}"), serde_json::to_string(value).unwrap_or_default());
    let inner = |quoted: String| quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_string();
    let mut forms = vec![value.to_string(), inner(debug), inner(json)];
    forms.dedup();
    forms
}

/// Returns a message in which `shown` stands for a value, and for the beginning of it at the end of a truncated text.
fn without(message: String, value: &str, shown: &str) -> String {
    if value.len() < MIN_VALUE_BYTES {
        let quoted = ["`", "\""].into_iter().fold(message, |message, quote| {
            message.replace(&format!("{quote}{value}{quote}"), &format!("{quote}{shown}{quote}"))
        });
        return quoted;
    }
    let message = if message.contains(value) { message.replace(value, shown) } else { message };
    let beginning = &value[..value.floor_char_boundary(MIN_BEGINNING_BYTES)];
    if beginning.len() == value.len() || !message.contains(beginning) {
        return message;
    }
    let (mut redacted, mut rest) = (String::with_capacity(message.len()), message.as_str());
    while let Some(at) = rest.find(beginning) {
        let alike = |(one, other): &(char, char)| one == other;
        let common =
            rest[at..].chars().zip(value.chars()).take_while(alike).map(|(one, _)| one.len_utf8()).sum::<usize>();
        let after = &rest[at + common..];
        let is_cut = after.is_empty() || [" …", "…", "..."].iter().any(|mark| after.starts_with(mark));
        redacted.push_str(&rest[..at]);
        // Half of a value must not be shown either, wherever the message ends.
        let is_most = common >= MIN_PART_BYTES && common * 2 >= value.len();
        redacted.push_str(if is_cut || is_most { shown } else { &rest[at..at + common] });
        rest = after;
    }
    redacted + rest
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::system::thread_time::timed;

    fn redacted(values: &[&str], message: &str) -> String {
        let mut redaction = Redaction::default();
        values.iter().enumerate().for_each(|(at, value)| redaction.add(&format!("${{env:V{at}}}"), value));
        redaction.redact(message, &HashSet::new()).into_owned()
    }

    #[test]
    fn a_message_about_a_string_has_no_part_of_its_values() {
        let string = |value: &str| {
            let mut string = Replaced::default();
            string.push_plain("Bearer ");
            string.push_value("${env:V}", value);
            [Arc::new(string)]
        };
        for (value, message, wanted) in [
            ("s3cr{et}", "there is no value `{et}`; known: a", "there is no value `${env:V}`; known: a"),
            ("s3cr{et}", "found `Bearer s3cr{{et}}`", "found `Bearer ${env:V}`"),
            ("ab", "found \"Bearer ab\", can't be", "found \"Bearer ${env:V}\", can't be"),
            ("ab", "write `/ab`", "write another value of `${env:V}`"),
            ("10 kb", "`10 kb` is none; write `10 KiB`", "`${env:V}` is none; write another value of `${env:V}`"),
            ("s\"ö", "found `s%22%C3%B6`; expected `%26`", "found `${env:V}`; expected `%26`"),
            ("%7Eto", "found `~to`, `~TO`", "found `${env:V}`, `${env:V}`"),
            (
                "get",
                "method in lower case: `get`; write `GET`",
                "method in lower case: `${env:V}`; write another value of `${env:V}`",
            ),
            ("a|b", "'|' can't stand in a URI", "'${env:V}' can't stand in a URI"),
            ("a`b", "found `a`b`; expected `c`", "found `${env:V}`; expected `c`"),
            ("zz", "the plugin's `x`, `y`", "the plugin's `x`, `y`"),
            ("10 parsecs", "found `10 parsecs`; expected `10 MiB`", "found `${env:V}`; expected `10 MiB`"),
        ] {
            let shown = without_parts(message, &string(value), MessageText::default());
            assert_eq!(shown, wanted, "{value}");
        }
        let fixed = MessageText(b"expected `sha256:` and digits, which `printf %s KEY | sha256sum` prints");
        for (value, wanted) in [
            (
                "a:sha256:12\nb:top",
                "`${env:V}`; expected `sha256:` and digits, which `printf %s KEY | sha256sum` prints",
            ),
            ("KEY", "`b:top`; expected `sha256:` and digits, which `printf %s KEY | sha256sum` prints"),
        ] {
            let message = "`b:top`; expected `sha256:` and digits, which `printf %s KEY | sha256sum` prints";
            assert_eq!(without_parts(message, &string(value), fixed), wanted);
        }
        assert_eq!(without_words("begins with ab.", &string("ab/cd")), "begins with ${env:V}");
        assert_eq!(without_words("ends with ab. or", &string("cd/ab.")), "ends with ${env:V} or");
    }

    /// Texts in quotes were looked for in the values up to each later quote: a message of a plugin took an hour.
    #[test]
    fn a_message_of_quotes_and_words_takes_little_time() {
        let mut string = Replaced::default();
        string.push_value("${file:list}", &"one\"two\"".repeat(10_000));
        for message in ["`".repeat(4 << 10), "`a`".repeat(1 << 10), format!("`{}`", "a ".repeat(2 << 10))] {
            let (shown, time) = timed(|| without_words(&message, &[Arc::new(string.clone())]));
            assert_eq!(shown, message);
            assert!(time < Duration::from_secs(5), "{time:?}: {}", &message[..4]);
        }
    }

    #[test]
    fn references_stand_in_place_of_their_values() {
        for (values, message, wanted) in [
            (&["s3cret"][..], "invalid size: `s3cret`; expected", "invalid size: `${env:V0}`; expected"),
            (&["s3cret", "s3cret-and-more"], "`s3cret-and-more`", "`${env:V1}`"),
            (&["a"], "a size: `a`, \"a\"", "a size: `${env:V0}`, \"${env:V0}\""),
            (&["two\nlines"], "found \"two\\nlines\"", "found \"${env:V0}\""),
            (&["quo\"te"], "found \"quo\\\"te\"", "found \"${env:V0}\""),
            (
                &["alice:pa55word\nexpected by"],
                "expected a line, pa55word by pa55word",
                "expected a line, pa55word by pa55word",
            ),
            (&["expected"], "found `the expected`; expected a number", "found `the ${env:V0}`; expected a number"),
            (&["path"], "its paths: 'path', `a path", "its paths: '${env:V0}', `a ${env:V0}"),
            (&["0123456789abcdef0123456789abcdef"], "found `0123456789ab … (40 bytes", "found `${env:V0} … (40 bytes"),
            (&["0123456789abcdef"], "found 0123456789abc of it", "found ${env:V0} of it"),
            (&[""], "nothing", "nothing"),
            (&["expect value"], "expected a number", "expected a number"),
            (&[&"0123456789abcdef".repeat(1 << 16)], "found `0123456789ab … (1 MiB)", "found `${env:V0} … (1 MiB)"),
        ] {
            assert_eq!(redacted(values, message), wanted, "{values:?}");
        }
    }
}
