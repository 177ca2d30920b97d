//! Percent-encoding (RFC 3986 §2.1), as filters meet it in paths, queries and cookies.

use std::borrow::Cow;

/// Decodes percent-encoding. A `%` without two hexadecimal digits stays as it is.
///
/// ```
/// assert_eq!(*plugway_sdk::percent::decode(b"a%20b%"), *b"a b%");
/// ```
pub fn decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let digit = |at: usize| text.get(at).and_then(|digit| char::from(*digit).to_digit(16));
    let (mut decoded, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(byte) = text.get(at) {
        let escaped = (*byte == b'%').then(|| digit(at + 1).zip(digit(at + 2))).flatten();
        decoded.push(escaped.map_or(*byte, |(high, low)| (high << 4 | low) as u8));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    Cow::Owned(decoded)
}

/// Encodes a text so that it can be a segment of a path, or a name or value of a query: only unreserved characters
/// (RFC 3986 §2.3) stay as they are.
///
/// ```
/// assert_eq!(plugway_sdk::percent::encode("a/b c~\u{e9}"), "a%2Fb%20c~%C3%A9");
/// ```
pub fn encode(text: impl AsRef<[u8]>) -> String {
    let text = text.as_ref();
    let mut encoded = String::with_capacity(text.len());
    push_encoded(&mut encoded, text, is_unreserved);
    encoded
}

/// Appends a text, with percent-encoding for every byte but those that `is_kept` accepts. Bytes that are not ASCII are
/// always encoded.
///
/// ```
/// let mut path = String::from("/files");
/// plugway_sdk::percent::push_encoded(&mut path, b"/a/b c", |byte| byte == b'/' || byte.is_ascii_alphanumeric());
/// assert_eq!(path, "/files/a/b%20c");
/// ```
pub fn push_encoded(into: &mut String, text: &[u8], is_kept: impl Fn(u8) -> bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text {
        if byte.is_ascii() && is_kept(*byte) {
            into.push(char::from(*byte));
        } else {
            into.push('%');
            into.push(char::from(DIGITS[usize::from(byte >> 4)]));
            into.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// Whether a byte is an unreserved character (RFC 3986 §2.3), which has the same meaning with and without
/// percent-encoding.
pub fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_escapes_are_decoded() {
        let cases: [(&str, &[u8]); 6] =
            [("", b""), ("a", b"a"), ("%41%4a%4A", b"AJJ"), ("%", b"%"), ("%4", b"%4"), ("%zz%e9", b"%zz\xe9")];
        for (text, wanted) in cases {
            assert_eq!(*decode(text.as_bytes()), *wanted, "{text}");
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself_and_has_no_reserved_character() {
        let all: Vec<u8> = (0..=255).collect();
        let encoded = encode(&all);
        assert_eq!(*decode(encoded.as_bytes()), *all);
        assert!(encoded.bytes().all(|byte| byte == b'%' || is_unreserved(byte)), "{encoded}");
    }
}
