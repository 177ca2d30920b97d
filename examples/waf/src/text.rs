//! Texts in the forms in which an origin may read them: encoding a text again must not hide it from a rule.

use plugway_sdk::percent;

/// The number of times that percent-encoding is decoded. Some origins decode what a framework has decoded already.
const ROUNDS: usize = 3;

/// A value of a request.
pub struct Text {
    /// The value as the origin gets it.
    pub written: Vec<u8>,
    /// The value as it is written and decoded, each in its normal form.
    pub forms: Vec<Vec<u8>>,
}

impl Text {
    pub fn new(written: &[u8]) -> Self {
        let mut forms = Vec::new();
        let mut text = written.to_vec();
        for _ in 0..=ROUNDS {
            forms.push(normal(&text));
            if text.contains(&b'\\') {
                forms.push(normal(&unescaped(&text)));
            }
            let next = decoded(&text);
            if next == text {
                break;
            }
            text = next;
        }
        Text { written: written.into(), forms }
    }
}

/// Returns a parameter without its encoding.
pub fn decoded(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent::decode(&spaced).into_owned()
}

/// Returns a text in lower case, with one space for each run of white space.
pub fn normal(text: &[u8]) -> Vec<u8> {
    let mut normal: Vec<u8> = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            0 | 9..=13 | b' ' if normal.last() == Some(&b' ') => {}
            0 | 9..=13 | b' ' => normal.push(b' '),
            _ => normal.push(byte.to_ascii_lowercase()),
        }
    }
    normal
}

/// Returns a text without the escapes of JSON (RFC 8259 §7). What is no escape stays as it is.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((byte, behind)) = rest.split_first() {
        let escape = (*byte == b'\\').then(|| escape(behind)).flatten();
        match escape {
            Some((letter, length)) => {
                plain.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &behind[length..];
            }
            None => {
                plain.push(*byte);
                rest = behind;
            }
        }
    }
    plain
}

/// Returns the character of the escape behind a backslash, and the length of the escape.
fn escape(behind: &[u8]) -> Option<(char, usize)> {
    let letter = match behind.first()? {
        b'n' | b'r' | b't' => ' ',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        plain @ (b'"' | b'\\' | b'/') => char::from(*plain),
        b'u' => return escaped_unit(behind),
        _ => return None,
    };
    Some((letter, 1))
}

/// Returns the character of `uXXXX`, or of two of them with a backslash between, and the length of the escape.
fn escaped_unit(behind: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = behind.get(at..at + 4)?.iter().map(|digit| char::from(*digit).to_digit(16));
        digits.reduce(|high, low| Some(high? << 4 | low?)).flatten().and_then(|unit| u16::try_from(unit).ok())
    };
    let first = unit(1)?;
    if let Some(letter) = char::from_u32(first.into()) {
        return Some((letter, 5));
    }
    let second = behind.get(5..7).filter(|between| *between == b"\\u").and_then(|_| unit(7));
    let pair = second.and_then(|second| char::decode_utf16([first, second]).next()?.ok());
    Some(pair.map_or((char::REPLACEMENT_CHARACTER, 5), |letter| (letter, 11)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_form(text: &str, wanted: &str) -> bool {
        Text::new(text.as_bytes()).forms.iter().any(|form| form == wanted.as_bytes())
    }

    #[test]
    fn encodings_do_not_hide_a_text() {
        for text in ["Union  SELECT", "union%20select", "union+select", "%75nion\tselect", "%2575nion%2520select"] {
            assert!(has_form(text, "union select"), "{text}");
        }
        for text in [
            r"\u0075nion select",
            r"union\u0020\u0053elect",
            r"union\nselect",
            "union\0select",
            r"uni%5Cu006fn%20select",
        ] {
            assert!(has_form(text, "union select"), "{text}");
        }
        assert!(has_form(r"\ud83d\ude00<\/script>", "\u{1f600}</script>"));
    }

    #[test]
    fn text_that_is_no_escape_stays() {
        for text in [r"\", r"\x", r"\u12", r"\u12g4", "100%", "%zz", r"\u+123"] {
            assert_eq!(unescaped(text.as_bytes()), text.as_bytes(), "{text}");
        }
        assert_eq!(unescaped(br"\ud83d."), "\u{fffd}.".as_bytes());
    }
}
