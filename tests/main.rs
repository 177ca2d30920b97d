//! Whole-program tests: the real binary, real sockets, real components.
#![forbid(unsafe_code)]

mod forwarding;
mod framing;
mod hooks;
mod layers;
mod manifests;
mod operating;
mod plugins;
mod streams;
mod support;
mod swap;
mod tls;
