//! The plugin runtime: components, their bindings to configurations, and live instances. Knows nothing of connections.

mod artifact;
pub mod binding;
pub mod breaker;
#[allow(unsafe_code, reason = "wasmtime's generated calls are typed once, at load")]
pub mod contract;
mod cpu;
pub mod engine;
mod host;
pub mod instance;
mod lines;
pub mod maker;
pub mod policy;
mod share;
pub mod slot;
pub mod supply;
pub mod transform;
