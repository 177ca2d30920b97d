//! A string of a manifest in which references were replaced, with the parts of it that are values. Templates take these
//! parts literally, and messages about the string show the references instead.

use std::fmt;
use std::ops::Range;

/// A string in which references were replaced.
#[derive(Clone, Default)]
pub struct Replaced {
    /// The place of the string in its file.
    pub span: Range<usize>,
    /// The string with the values.
    pub text: String,
    /// The values, from first to last.
    parts: Vec<ValuePart>,
}

/// A part of a string that is the value of a reference.
#[derive(Clone)]
struct ValuePart {
    range: Range<usize>,
    reference: Box<str>,
}

/// A value in a string.
#[derive(Clone, Copy)]
pub struct ReferencedValue<'a> {
    /// The reference, such as `${env:DB_TOKEN}`.
    pub reference: &'a str,
    pub text: &'a str,
}

impl fmt::Debug for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written())
    }
}

impl Replaced {
    /// Returns an empty string at a place.
    pub fn at(span: Range<usize>) -> Self {
        Replaced { span, ..Replaced::default() }
    }

    /// Adds text that is no value.
    pub fn push_plain(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds the value of a reference.
    pub fn push_value(&mut self, reference: &str, value: &str) {
        let start = self.text.len();
        self.text.push_str(value);
        self.parts.push(ValuePart { range: start..self.text.len(), reference: reference.into() });
    }

    /// Whether the string has the value of a reference.
    pub fn has_values(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Returns the values with their references.
    pub fn values(&self) -> impl Iterator<Item = ReferencedValue<'_>> {
        self.parts
            .iter()
            .map(|part| ReferencedValue { reference: &part.reference, text: &self.text[part.range.clone()] })
    }

    /// Returns the string with its references in place of their values.
    pub fn written(&self) -> String {
        self.with(|reference, _| reference.into())
    }

    /// Returns the string as a template that takes the values literally.
    pub fn as_template(&self) -> String {
        self.with(|_, value| doubled(value))
    }

    /// Returns the string without the values.
    pub fn without_values(&self) -> String {
        self.with(|_, _| String::new())
    }

    /// Whether a template would take a part of a value for something else than text.
    pub fn has_braces(&self) -> bool {
        self.values().any(|value| value.text.contains(['{', '}']))
    }

    /// Returns the string with another text in place of each value; the function gets the reference and the value.
    fn with(&self, text_for: impl Fn(&str, &str) -> String) -> String {
        let (mut text, mut end) = (String::new(), 0);
        for ValuePart { range, reference } in &self.parts {
            text.push_str(&self.text[end..range.start]);
            text.push_str(&text_for(reference, &self.text[range.clone()]));
            end = range.end;
        }
        text + &self.text[end..]
    }
}

/// Returns a text with its braces doubled, as templates write braces that are text.
pub fn doubled(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_from_what_is_written_around_them() {
        let mut string = Replaced::default();
        string.push_plain("{host} ");
        string.push_value("${env:A}", "a{b}");
        string.push_plain("-");
        string.push_value("${env:B}", "");
        assert_eq!(string.text, "{host} a{b}-");
        assert_eq!(string.as_template(), "{host} a{{b}}-");
        assert_eq!(string.written(), "{host} ${env:A}-${env:B}");
        assert_eq!(string.without_values(), "{host} -");
        assert_eq!(format!("{string:?}"), string.written());
        assert!(string.has_braces());
    }
}
