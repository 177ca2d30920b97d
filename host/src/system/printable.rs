//! Text from plugins, clients and files as a log shows it: one line, truncated, with control characters escaped.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The mark at the end of a truncated text.
pub const TRUNCATED: &str = "...";

/// Escapes line breaks, control characters and bidirectional controls, and truncates the text to a length in bytes.
pub fn one_line(text: &str, max: usize) -> Cow<'_, str> {
    let beginning = truncated(text, max);
    let mark = if beginning.len() < text.len() { TRUNCATED } else { "" };
    if mark.is_empty() && !beginning.chars().any(is_hostile) {
        return Cow::Borrowed(beginning);
    }
    let mut line = String::with_capacity(beginning.len() + 16);
    beginning.chars().for_each(|character| escape(&mut line, character));
    line.push_str(mark);
    Cow::Owned(line)
}

/// Escapes the control characters of several lines, and indents all lines but the first, so that no line looks like the
/// beginning of another record.
pub fn record(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut record = String::with_capacity(text.len() + 64);
    for character in text.chars() {
        match character {
            '\n' => record.push_str("\n    "),
            other => escape(&mut record, other),
        }
    }
    Cow::Owned(record)
}

/// Truncates a text to `max` bytes, and appends the original length.
pub fn cut(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{} … ({} bytes in all)", truncated(text, max), text.len()))
}

/// Returns the longest beginning of a text that has at most `max` bytes and ends with a whole character.
pub fn truncated(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// Whether a character can break a line, control a terminal, change the order in which a line is shown, or is
/// invisible.
pub fn is_hostile(character: char) -> bool {
    // Control characters of ASCII and Latin-1 (C0, DEL, C1), Unicode's line breaks, its bidirectional controls, and marks of
    // no width.
    character.is_control()
        || matches!(
            character,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

fn escape(line: &mut String, character: char) {
    match character {
        '\n' => line.push_str("\\n"),
        '\r' => line.push_str("\\r"),
        '\t' => line.push_str("\\t"),
        hostile if is_hostile(hostile) => drop(write!(line, "\\u{{{:x}}}", u32::from(hostile))),
        plain => line.push(plain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, shown) in [
            ("plain text: äöü 漢字", "plain text: äöü 漢字"),
            ("two\nlines\r\n\tend", "two\\nlines\\r\\n\\tend"),
            ("\x1b[2J\x07\x7f", "\\u{1b}[2J\\u{7}\\u{7f}"),
            ("c1 \u{9b}31m \u{85}", "c1 \\u{9b}31m \\u{85}"),
            ("bidi \u{202e}x\u{2066}\u{200f}", "bidi \\u{202e}x\\u{2066}\\u{200f}"),
            ("\u{2028}\u{2029}\0", "\\u{2028}\\u{2029}\\u{0}"),
        ] {
            assert_eq!(one_line(text, 100), shown);
        }
    }

    #[test]
    fn long_text_is_truncated_at_a_character() {
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("abcdefg", 6), "abcdef...");
        assert_eq!(one_line("ääää", 5), "ää...");
        assert!(one_line(&"\u{202e}".repeat(1000), 300).len() <= 300 / 3 * 8 + 3);
    }

    #[test]
    fn a_long_text_is_cut_between_letters() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("ééé", 3), "é … (6 bytes in all)");
    }

    #[test]
    fn later_lines_of_a_record_are_indented() {
        assert_eq!(record("one line"), "one line");
        assert_eq!(record("first\n2026-01-01 ERROR forged\x1b"), "first\n    2026-01-01 ERROR forged\\u{1b}");
    }
}
