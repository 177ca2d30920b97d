//! The normal form of the names and values in a query: the form that routes match. Queries are forwarded as they were sent.
//!
//! - Escapes of unreserved characters are decoded, all others are in upper case (RFC 3986 §6.2.2).
//! - A `%` without two hexadecimal digits stays, and so does `+`, which means a space in forms only.

use std::borrow::Cow;

use crate::protocol::path::{escaped, is_unreserved};

/// Returns the normal form of a name or value.
pub fn normal(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find('%') else { return Cow::Borrowed(text) };
    let (mut normal, mut rest) = (String::from(&text[..first]), &text[first..]);
    while let Some(at) = rest.find('%') {
        normal.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match escaped(&rest.as_bytes()[1..]) {
            Ok(byte) if is_unreserved(byte) => {
                normal.push(char::from(byte));
                3
            }
            Ok(_) => {
                normal.push_str(&rest[..3].to_ascii_uppercase());
                3
            }
            Err(_) => {
                normal.push('%');
                1
            }
        };
        rest = &rest[length..];
    }
    normal.push_str(rest);
    Cow::Owned(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_unreserved_characters_are_decoded_once() {
        let cases = [
            ("admin", "admin"),
            ("%61dmin", "admin"),
            ("a%2d%2D%7E", "a--~"),
            ("%c3%a9", "%C3%A9"),
            ("a%26b+c", "a%26b+c"),
            ("%2561", "%2561"),
            ("%", "%"),
            ("%6", "%6"),
            ("%zz%31", "%zz1"),
            ("é%31", "é1"),
            ("", ""),
        ];
        for (text, wanted) in cases {
            assert_eq!(normal(text), wanted, "{text}");
            assert_eq!(normal(&normal(wanted)), wanted, "{text}");
        }
    }
}
