//! The rule for the length of a response's body (RFC 9112 §6.3).

/// The way in which the length of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    None,
    /// The length in bytes.
    Known(u64),
    Chunked,
    /// The close of the connection ends the body.
    UntilClose,
}
