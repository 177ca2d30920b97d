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
}
