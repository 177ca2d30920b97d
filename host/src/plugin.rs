//! The plugin runtime: components, configured plugins, and live instances. It does not depend on connections.

pub mod access;
#[allow(unsafe_code, reason = "wasmtime's generated calls are typed once, at load")]
pub mod bindings;
mod body_counts;
pub mod body_filter;
pub mod body_permit;
pub mod breaker;
pub mod cache_policy;
pub mod call_error;
pub mod caller;
pub mod compiled_cache;
pub mod configured;
mod cpu_time;
pub mod engine;
pub mod failure;
mod function_names;
mod host;
mod http_linker;
pub mod instance;
pub mod instance_limit;
mod instance_maker;
pub mod instance_orders;
mod key_value;
pub mod key_value_bucket;
pub mod load_error;
mod log_lines;
mod memory_limit;
mod metrics;
pub mod outgoing_http;
mod passwords;
mod proposals;
pub mod settings;
mod shared;
pub mod time_share;
pub mod version;
pub mod waiting_limit;
mod wasi;
