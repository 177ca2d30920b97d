//! Keeps values from outside a manifest, such as tokens, out of messages: their references are shown instead.

use std::borrow::Cow;
use std::collections::HashMap;

/// The values that no message may show.
#[derive(Debug, Default)]
pub struct Redaction {
    values: Vec<Value>,
    /// The words of the values, with the index of a value that has the word.
    words: HashMap<Box<str>, usize>,
    /// The number of values whose words are known.
    split: usize,
}

struct Value {
    /// The reference, such as `${env:DB_TOKEN}`.
    reference: Box<str>,
    value: Box<str>,
}

/// The shortest value that is replaced anywhere; a shorter one would be found in ordinary words, and is replaced where
/// it is quoted.
const MIN_VALUE_BYTES: usize = 4;

/// The shortest word of a value that is replaced by itself: a message may be about one line of a list.
const MIN_WORD_BYTES: usize = 6;

/// The shortest beginning of a value that is replaced: messages are truncated.
const MIN_BEGINNING_BYTES: usize = 8;

/// The shortest part of a value, from its beginning, that is replaced if it is half of the value.
const MIN_PART_BYTES: usize = 12;

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reference)
    }
}

impl Redaction {
    /// Adds the value of a reference.
    pub fn add(&mut self, reference: &str, value: &str) {
        let is_known = |known: &Value| *known.reference == *reference && *known.value == *value;
        // Only the latest values are compared: a reference is often repeated at once.
        if !value.is_empty() && !self.values.iter().rev().take(8).any(is_known) {
            self.values.push(Value { reference: reference.into(), value: value.into() });
        }
    }

    /// Returns a message with references in place of their values.
    pub fn redact<'a>(&mut self, message: &'a str) -> Cow<'a, str> {
        if self.values.is_empty() {
            return Cow::Borrowed(message);
        }
        self.split_values();
        let mut redacted = message.to_string();
        // Longer values first: a shorter one may be a part of them.
        let mut order: Vec<&Value> = self.values.iter().collect();
        order.sort_by_key(|value| std::cmp::Reverse(value.value.len()));
        for Value { reference, value } in order {
            for form in forms(value) {
                redacted = without(redacted, &form, reference);
            }
        }
        Cow::Owned(self.without_words(&redacted))
    }

    /// Records the words of values that were added since the last call.
    fn split_values(&mut self) {
        for (index, value) in self.values.iter().enumerate().skip(self.split) {
            for word in value.value.split(is_between_words).filter(|word| word.len() >= MIN_WORD_BYTES) {
                self.words.entry(word.into()).or_insert(index);
            }
        }
        self.split = self.values.len();
    }

    fn without_words(&self, message: &str) -> String {
        let replace = |piece: &str| {
            let word = piece.trim_end_matches(is_between_words);
            let trimmed = word.trim_end_matches('.');
            let index = self.words.get(word).or_else(|| self.words.get(trimmed));
            match index.and_then(|index| self.values.get(*index)) {
                Some(value) => format!("{}{}", value.reference, &piece[word.len()..]),
                None => piece.to_string(),
            }
        };
        message.split_inclusive(is_between_words).map(replace).collect()
    }
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
        let is_cut = ["", " …", "…", "..."]
            .iter()
            .any(|mark| if mark.is_empty() { after.is_empty() } else { after.starts_with(mark) });
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
    use super::*;

    fn redacted(values: &[&str], message: &str) -> String {
        let mut redaction = Redaction::default();
        values.iter().enumerate().for_each(|(at, value)| redaction.add(&format!("${{env:V{at}}}"), value));
        redaction.redact(message).into_owned()
    }

    #[test]
    fn references_stand_in_place_of_their_values() {
        for (values, message, wanted) in [
            (&["s3cret"][..], "invalid size: `s3cret`; expected", "invalid size: `${env:V0}`; expected"),
            (&["s3cret", "s3cret-and-more"], "`s3cret-and-more`", "`${env:V1}`"),
            (&["a"], "a size: `a`, \"a\"", "a size: `${env:V0}`, \"${env:V0}\""),
            (&["two\nlines"], "found \"two\\nlines\"", "found \"${env:V0}\""),
            (&["quo\"te"], "found \"quo\\\"te\"", "found \"${env:V0}\""),
            (&["alice:pa55word\nbob:hunter22"], "line 2: bob:hunter22 is odd.", "line 2: bob:${env:V0} is odd."),
            (&["alice:pa55word"], "no hash: pa55word.", "no hash: ${env:V0}"),
            (&["0123456789abcdef0123456789abcdef"], "found `0123456789ab … (40 bytes", "found `${env:V0} … (40 bytes"),
            (&["0123456789abcdef"], "found 0123456789abc of it", "found ${env:V0} of it"),
            (&[""], "nothing", "nothing"),
            (&["expect value"], "expected a number", "expected a number"),
        ] {
            assert_eq!(redacted(values, message), wanted, "{values:?}");
        }
    }
}
