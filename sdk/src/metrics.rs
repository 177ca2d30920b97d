//! The plugin's own figures, shown on the admin listener. In native tests they go nowhere.

use crate::ConfigError;
use crate::bindings::metrics as host;

/// A figure that only grows.
#[derive(Clone, Copy, Debug)]
pub struct Counter(u32);

/// A figure that goes up and down.
#[derive(Clone, Copy, Debug)]
pub struct Gauge(u32);

/// Names a counter, `[a-z][a-z0-9_]*`; to be called in [`Plugin::new`](crate::Plugin::new).
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
fn define(_: &str, _: host::Kind, _: &str) -> Result<u32, ConfigError> {
    Ok(0)
}

fn add(metric: u32, amount: f64) {
    #[cfg(target_family = "wasm")]
    host::add(metric, amount);
    #[cfg(not(target_family = "wasm"))]
    let _ = (metric, amount);
}
