//! Whole-program tests: the real binary, real sockets, real components.
#![forbid(unsafe_code)]

mod admin;
mod backend;
mod balance;
mod cache_disk;
mod caching;
mod client_address;
mod discovery;
mod failing_plugins;
mod floods;
mod forwarding;
mod framing;
mod hooks;
mod http2;
mod http2_endpoint;
mod idle_streams;
mod layers;
mod limits;
mod loading;
mod logs;
mod manifests;
mod name_server;
mod operating;
mod places;
mod plugin_bounds;
mod plugins;
mod python;
mod response_heads;
mod slow_clients;
mod streams;
mod support;
mod swap;
mod tls;
mod transformed;
mod tunnels;
mod upstreams;
