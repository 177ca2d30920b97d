//! The bodies of requests, on their way from a client to an endpoint.

pub mod backlog;
pub mod replay;
pub mod upload;
