//! The length of a message as its `Content-Length` says it (RFC 9110 §8.6).

use http::header::{self, HeaderMap};

/// The lines of `Content-Length` in a message, read as one number, which may be repeated (RFC 9110 §8.6).
#[derive(Debug, Default)]
pub struct ContentLengthLines {
    value: Option<u64>,
    /// Whether the number is repeated, or written in a form that others may not read.
    is_unusual: bool,
}

impl ContentLengthLines {
    /// Adds a line; returns `false` if it is no number, or another one.
    pub fn add(&mut self, line: &[u8]) -> bool {
        for member in line.split(|byte| *byte == b',') {
            let text = member.trim_ascii();
            let is_plain = text.len() == line.len() && (text.len() == 1 || text.first() != Some(&b'0'));
            self.is_unusual |= self.value.is_some() || !is_plain;
            match number(text) {
                Some(length) if self.value.is_none_or(|before| before == length) => self.value = Some(length),
                _ => return false,
            }
        }
        true
    }

    /// Returns the number; `None` if there is no line.
    pub fn value(&self) -> Option<u64> {
        self.value
    }

    /// Returns the number if the lines must be replaced by one that has it alone.
    pub fn rewritten(&self) -> Option<u64> {
        self.value.filter(|_| self.is_unusual)
    }
}

/// Writes the length of a response as one number in one line; returns `false` unless it is one number, once or repeated
/// (RFC 9110 §8.6). The length also matters without a body, as in the response to HEAD.
pub fn settle_length(fields: &mut HeaderMap) -> bool {
    let mut settled = ContentLengthLines::default();
    if !fields.get_all(header::CONTENT_LENGTH).iter().all(|line| settled.add(line.as_bytes())) {
        return false;
    }
    if let Some(length) = settled.rewritten() {
        fields.insert(header::CONTENT_LENGTH, length.into());
    }
    true
}

/// Returns the number that decimal digits stand for; `None` if there is another byte, no digit, or too large a number.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_length_is_one_number_or_the_response_is_refused() {
        let cases: [(&[&str], Option<&[&str]>); 16] = [
            (&[], Some(&[])),
            (&["5"], Some(&["5"])),
            (&["0"], Some(&["0"])),
            (&["5, 5"], Some(&["5"])),
            (&["5,\t5 ", "5"], Some(&["5"])),
            (&["5", "5"], Some(&["5"])),
            (&["007"], Some(&["7"])),
            (&["18446744073709551615"], Some(&["18446744073709551615"])),
            (&["18446744073709551616"], None),
            (&["5, 6"], None),
            (&["5", "6"], None),
            (&["+5"], None),
            (&["-5"], None),
            (&["5,"], None),
            (&[""], None),
            (&["0x5"], None),
        ];
        for (lines, wanted) in cases {
            let mut fields = HeaderMap::new();
            for line in lines {
                fields.append(header::CONTENT_LENGTH, HeaderValue::from_static(line));
            }
            let is_settled = settle_length(&mut fields);
            assert_eq!(is_settled, wanted.is_some(), "{lines:?}");
            let left: Vec<&[u8]> = fields.get_all(header::CONTENT_LENGTH).iter().map(HeaderValue::as_bytes).collect();
            let wanted: Vec<&[u8]> = wanted.unwrap_or(lines).iter().map(|line| line.as_bytes()).collect();
            assert_eq!(left, wanted, "{lines:?}");
        }
    }
}
