//! The demand of a request on the protocol of its connection.

/// The protocol that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredProtocol {
    Any,
    /// Any version is possible, and no other exchange may use the connection at the same time: the endpoint may end it
    /// for the head of the request.
    Unshared,
    /// HTTP/1.1 is required, because the request asks for an upgrade (RFC 9110 §7.8).
    Http1,
}
