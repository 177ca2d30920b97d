//! Tokens (RFC 9110 §5.6.2): names of fields, methods, schemes and cookies.

/// Whether a text is a token.
///
/// ```
/// assert!(plugway_sdk::token::is_token("X-Powered-By"));
/// assert!(!plugway_sdk::token::is_token(""));
/// ```
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// Whether a byte can be a part of a token.
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
