//! The plugin runtime: components, their bindings to configurations, and live instances. Knows nothing of connections.

pub mod artifact;
pub mod binding;
#[allow(unsafe_code, reason = "wasmtime's generated calls are typed once, at load")]
pub mod contract;
pub mod engine;
mod host;
pub mod instance;
mod lines;
pub mod policy;
mod proposals;
pub mod transform;
