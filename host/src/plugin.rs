//! The plugin runtime: components, their bindings to configurations, and live instances. Knows nothing of connections.

pub mod artifact;
pub mod binding;
pub mod breaker;
#[allow(unsafe_code, reason = "wasmtime's generated calls are typed once, at load")]
pub mod contract;
mod cpu;
pub mod declared;
pub mod engine;
pub mod failure;
mod figures;
mod host;
pub mod instance;
mod lines;
pub mod maker;
mod memory;
pub mod places;
pub mod policy;
mod proposals;
pub mod share;
pub mod slot;
pub mod supply;
pub mod transform;
mod wasi;
