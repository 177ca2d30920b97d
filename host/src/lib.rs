//! The proxy: a library, so that its parts can be tested and linked to; the program is a thin end of it.
//!
//! The life of a request, with the module that each step is in:
//!
//! - [`worker`] accepts a connection, [`arrival`] brings it to HTTP, through [`proxy_protocol`] and [`tls`] where its
//!   [`listener`] wants them, and [`connection`] serves it, through [`tcp`], [`metered`], [`wire`] and hyper;
//!   [`framing`] looks through what comes in HTTP/1 first
//! - [`exchange`] takes each request on its way: [`target`] and [`path`] bring it into form, [`router`] finds its
//!   route, [`forwarding`] removes what is of one hop, [`chain`] runs the request hooks
//! - [`forward`] chooses an endpoint by [`balance`], and makes an [`attempt`], or several: it gets a connection from
//!   [`upstream`], and sends the request with its [`upload`], which [`resend`] keeps where it may be sent again
//! - where the chain has a cache, [`caching`] looks in [`cache`], its store, and stores there what comes; long content
//!   lies in [`pages`]
//! - what hooks ask for is carried out by [`edit`], within [`bounds`]: [`edit_plan`] has the edits that are known
//!   beforehand, [`edit_room`] what a message has room for
//! - [`chain`] runs the response hooks, and [`body`] streams to the client; bodies pass plugins by [`passage`]
//! - [`ending`] tells [`metrics`], [`access_log`] and observers
//!
//! [`supervise`] catches panics of tasks, [`process_log`] and [`access_log`] write through [`output`] without making any
//! other thread wait; [`failure_log`] limits what failures say there; [`printable`] escapes text from outside.
//!
//! [`bind_error`] says why an address can't be bound. [`apart`] keeps what few exchanges need out of the way of the others.
//!
//! All that decides about a request is a [`generation`], which [`assemble`] makes of a manifest ([`config`]), with components
//! that a child process has examined ([`loading`]), but for who
//! is in an upstream's set and well, which [`keeper`] sees to. Plugins run in [`plugin`]. Modules import in one direction;
//! `tests/layers.rs` has the table.

pub mod access_log;
pub mod admin;
pub mod admission;
pub mod apart;
pub mod arrival;
pub mod assemble;
pub mod attempt;
pub mod authority;
mod background;
pub mod backlog;
pub mod balance;
mod bind_error;
pub mod body;
pub mod bounds;
pub mod cache;
pub mod caching;
pub mod census;
pub mod chain;
pub mod cli;
pub mod client_address;
pub mod clock;
pub mod config;
pub mod connection;
mod demo;
pub mod descriptors;
pub mod edit;
pub mod edit_plan;
pub mod edit_room;
pub mod ending;
pub mod error;
pub mod exchange;
mod failure_log;
pub mod field_alias;
mod files;
pub mod forward;
pub mod forwarding;
pub mod frames;
pub mod framing;
pub mod generation;
pub mod head;
pub mod keeper;
mod listen;
pub mod listener;
pub mod loading;
pub mod metered;
pub mod metrics;
pub mod output;
pub mod pages;
pub mod passage;
pub mod path;
pub mod plugin;
pub mod printable;
pub mod process_log;
pub mod proxy_protocol;
pub mod resend;
pub mod respond;
pub mod router;
mod serve;
pub mod supervise;
pub mod target;
pub mod tcp;
pub mod tls;
pub mod transformed;
pub mod trust;
pub mod upload;
pub mod upstream;
mod watch;
mod watchdog;
pub mod websocket;
pub mod wire;
pub mod worker;
