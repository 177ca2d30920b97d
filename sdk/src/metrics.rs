//! The plugin's own metrics, shown on the admin listener. In native tests they are discarded.

use crate::ConfigError;
use crate::bindings::metrics as host;
#[cfg(not(target_family = "wasm"))]
use crate::bounds;

/// A metric that only increases.
#[derive(Clone, Copy, Debug)]
pub struct Counter(u32);

/// A metric that increases and decreases.
#[derive(Clone, Copy, Debug)]
pub struct Gauge(u32);

/// Defines a counter with a name `[a-z][a-z0-9_]*` of at most 64 characters and a help text of at most 1,024 bytes. A
/// plugin has at most 64 metrics. It defines all of them in [`Plugin::new`](crate::Plugin::new), the same in each of
/// its instances.
pub fn counter(name: &str, help: &str) -> Result<Counter, ConfigError> {
    define(name, host::Kind::Counter, help).map(Counter)
}

/// Defines a gauge, under the rules of [`counter`].
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
    /// Increases the gauge or, by a negative amount, decreases it.
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
