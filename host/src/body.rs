//! The bodies of requests, on their way from a client to an endpoint.

pub mod backlog;
pub mod replay;
pub mod upload;

/// The error that ends a body before its end.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
