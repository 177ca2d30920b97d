//! The size of a head or of trailers in HTTP/2 (RFC 9113 §6.5.2). A receiver may end the whole connection for a section that
//! is too long for it.

use http::HeaderMap;

/// The size of a field section, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSectionSize {
    /// The size of the list of fields, as SETTINGS_MAX_HEADER_LIST_SIZE counts it.
    pub list: usize,
    /// The most that the list takes once it is encoded by HPACK. h2 encodes all texts by its Huffman code, in which a byte
    /// beyond ASCII takes up to 30 bits (RFC 7541 Appendix B).
    pub encoded: usize,
}

/// The overhead of a field in a list of fields (RFC 9113 §6.5.2).
pub const FIELD_OVERHEAD: usize = 32;

/// The most that a field takes besides its name and its value once it is encoded: its kind and two lengths.
const ENCODED_OVERHEAD: usize = 11;

impl FieldSectionSize {
    /// Returns the size of a section with these fields.
    pub fn of(fields: &HeaderMap) -> Self {
        let mut size = FieldSectionSize { list: 0, encoded: 0 };
        for (name, value) in fields {
            let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
            size.list += name.len() + value.len() + FIELD_OVERHEAD;
            size.encoded += ENCODED_OVERHEAD + name.iter().chain(value).copied().map(encoded_length).sum::<usize>();
        }
        size
    }
}

/// Returns the length of a byte in the Huffman code of HPACK, rounded up to whole bytes.
fn encoded_length(byte: u8) -> usize {
    match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => 1,
        b' ' | b'%' | b'&' | b'*' | b',' | b'-' | b'.' | b'/' | b':' | b';' | b'=' | b'_' => 1,
        b'\\' => 3,
        b'!'..=b'~' => 2,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_measured_as_lists_and_as_hpack_encodes_them() {
        let mut fields = HeaderMap::new();
        fields.insert("x-plain", "a".repeat(100).parse().unwrap());
        assert_eq!(FieldSectionSize::of(&fields), FieldSectionSize { list: 139, encoded: 118 });
        fields.insert("x-plain", http::HeaderValue::from_bytes(&[0xff; 100]).unwrap());
        assert_eq!(FieldSectionSize::of(&fields), FieldSectionSize { list: 139, encoded: 418 });
    }
}
