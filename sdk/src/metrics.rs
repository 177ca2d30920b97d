//! The plugin's own figures, shown on the admin listener. In native tests they go nowhere.

use crate::ConfigError;
use crate::bindings::metrics as host;
#[cfg(not(target_family = "wasm"))]
use crate::bounds;

/// A figure that only grows.
#[derive(Clone, Copy, Debug)]
pub struct Counter(u32);

/// A figure that goes up and down.
#[derive(Clone, Copy, Debug)]
pub struct Gauge(u32);

/// Names a counter, `[a-z][a-z0-9_]*` with at most 64 characters; its help has at most 1,024 bytes. A plugin has at most
/// 64 metrics, all of which it defines in [`Plugin::new`](crate::Plugin::new), the same in each of its instances.
pub fn counter(name: &str, help: &str) -> Result<Counter, ConfigError> {
    define(name, host::Kind::Counter, help).map(Counter)
}

/// Names a gauge, under the rules for [`counter`].
pub fn gauge(name: &str, help: &str) -> Result<Gauge, ConfigError> {
    define(name, host::Kind::Gauge, help).map(Gauge)
}

impl Counter {
    /// Adds to the counter.
    pub fn add(self, amount: u64) {
        add(self.0, amount as f64);
    }
}

impl Gauge {
    /// Moves the gauge up or, by a negative amount, down.
    pub fn add(self, amount: f64) {
        add(self.0, amount);
    }
}

#[cfg(target_family = "wasm")]
fn define(name: &str, kind: host::Kind, help: &str) -> Result<u32, ConfigError> {
    host::define(name, kind, help).map_err(|error| ConfigError::at("", format!("metric `{name}`: {error:?}")))
}

#[cfg(not(target_family = "wasm"))]
fn define(name: &str, _: host::Kind, help: &str) -> Result<u32, ConfigError> {
    let later = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let is_name = name.len() <= bounds::METRIC_NAME && name.bytes().all(later);
    if is_name && name.starts_with(|first: char| first.is_ascii_lowercase()) && help.len() <= bounds::NAME {
        return Ok(0);
    }
    Err(ConfigError::at("", format!("metric `{name}`: {:?}", host::DefineError::BadName)))
}

fn add(metric: u32, amount: f64) {
    #[cfg(target_family = "wasm")]
    host::add(metric, amount);
    #[cfg(not(target_family = "wasm"))]
    let _ = (metric, amount);
}
