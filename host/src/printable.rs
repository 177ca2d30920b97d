//! Text from plugins and manifests made safe for terminals and logs: nothing in it moves a cursor, changes colours,
//! reverses the order of letters, or looks like a line of the proxy's own.

use std::borrow::Cow;
use std::fmt::Write;

/// Escapes control characters and those that change the direction of text; a line after a line break is indented.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |letter| match letter {
        '\n' => Some("\n    "),
        '\t' => Some(" "),
        _ => None,
    })
}

/// Escapes line breaks and tabs, too: the result is one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |letter| match letter {
        '\n' => Some("\\n"),
        '\t' => Some("\\t"),
        _ => None,
    })
}

/// Cuts a text to so many bytes at most, and says so.
pub fn cut(text: &str, most_bytes: usize) -> Cow<'_, str> {
    if text.len() <= most_bytes {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{} … ({} bytes in all)", &text[..text.floor_char_boundary(most_bytes)], text.len()))
}

fn escaped(text: &str, instead: impl Fn(char) -> Option<&'static str>) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match instead(letter) {
            Some(known) => escaped.push_str(known),
            None if is_unsafe(letter) => drop(write!(escaped, "\\u{{{:x}}}", letter as u32)),
            None => escaped.push(letter),
        }
    }
    Cow::Owned(escaped)
}

/// Whether a character is a control character, a line separator, or one that is invisible and changes what others mean.
fn is_unsafe(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_but_letters() {
        let cases = [
            ("plain – ünï", "plain – ünï"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\rb\u{7}\u{9b}", "a\\u{d}b\\u{7}\\u{9b}"),
            ("a\nerror: b", "a\n    error: b"),
            ("\u{202e}gnp.exe", "\\u{202e}gnp.exe"),
        ];
        for (text, wanted) in cases {
            assert_eq!(printable(text), wanted);
        }
        assert_eq!(one_line("a\nb\tc\u{0}"), "a\\nb\\tc\\u{0}");
    }

    #[test]
    fn a_long_text_is_cut_between_letters() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("ééé", 3), "é … (6 bytes in all)");
    }
}
