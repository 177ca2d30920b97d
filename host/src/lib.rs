//! Plugway as a library, so that its parts can be tested and linked to; the program only calls [`cli`].
//!
//! The life of a request, with the module of each step:
//!
//! - [`server::worker`] accepts a connection, [`downstream::admission`] admits it, [`downstream::handshake`] reads the
//!   PROXY header, does the TLS handshake and chooses the HTTP version; [`downstream::http1`] and [`downstream::http2`]
//!   serve it. [`protocol::framing`] checks every byte of HTTP/1 before hyper parses it.
//! - [`exchange`] has the steps of one request in order: [`protocol::request_target`] normalises the target,
//!   [`generation::router`] finds the route, [`protocol::hop_by_hop`] removes what concerns one connection, and
//!   [`exchange::chain`] runs the request hooks.
//! - [`exchange::forward`] chooses an endpoint by [`exchange::balance`] and makes an [`exchange::attempt`], or several,
//!   over a connection of [`upstream`], with a [`body`] that can be sent again.
//! - [`exchange::cache`] answers from [`store`], or fetches a response and stores it.
//! - [`exchange::chain`] runs the response hooks, [`exchange::response_body`] streams the body to the client, and
//!   [`exchange::record`] reports the exchange to [`telemetry`].
//!
//! Everything that decides about a request is a [`generation`], which [`assemble`] builds from a manifest ([`config`])
//! and from components that a child process has examined ([`loading`]). Plugins run in [`plugin`].
//! `ARCHITECTURE.md` has the layers, which `tests/layers.rs` checks.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "unit tests choose their times"))]

pub mod assemble;
pub mod body;
pub mod cli;
pub mod config;
pub mod context;
pub mod downstream;
pub mod error;
pub mod exchange;
pub mod generation;
pub mod loading;
pub mod net;
pub mod plugin;
pub mod protocol;
pub mod server;
pub mod shared_state;
pub mod static_files;
pub mod store;
pub mod system;
pub mod telemetry;
pub mod tls;
pub mod upstream;
