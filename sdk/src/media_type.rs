//! Media types (RFC 9110 §8.3.1), as `Content-Type` has them.

/// Returns the type of a `Content-Type` value without its parameters. Letters keep their case, which has no meaning.
///
/// ```
/// assert_eq!(plugway_sdk::media_type::without_parameters("Text/HTML ; charset=utf-8"), "Text/HTML");
/// ```
pub fn without_parameters(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether a `Content-Type` value has this type, with or without parameters.
///
/// ```
/// use plugway_sdk::media_type;
///
/// assert!(media_type::is("Text/HTML; charset=utf-8", "text/html"));
/// assert!(!media_type::is("text/html5", "text/html"));
/// assert!(!media_type::is("text/html, text/plain", "text/html"), "two types are none");
/// ```
pub fn is(content_type: &str, wanted: &str) -> bool {
    without_parameters(content_type).eq_ignore_ascii_case(wanted)
}
