//! A plugin's own metrics as one instance sees them. The first instance of a configured plugin defines the metrics;
//! other instances get the same ones, so that their number is bounded however many instances there are.

use std::sync::Arc;

use super::bindings::metrics::DefineError;
use crate::context::bounds;
use crate::telemetry::metrics::{PluginMetric, PluginMetricDefinition};

/// The metrics of an instance.
#[derive(Default)]
pub struct InstanceMetrics {
    defined: Defined,
    /// Whether `configure` is being called: at no other time may a metric be defined.
    pub is_configuring: bool,
}

enum Defined {
    /// Defined by the first instance, whose values are not reported.
    First(Vec<PluginMetricDefinition>),
    /// Defined by the first instance, and used by the others.
    Known(Arc<[Arc<PluginMetric>]>),
}

impl Default for Defined {
    fn default() -> Self {
        Defined::First(Vec::new())
    }
}

impl InstanceMetrics {
    /// Metrics that a first instance has defined.
    pub fn known(figures: Arc<[Arc<PluginMetric>]>) -> Self {
        InstanceMetrics { defined: Defined::Known(figures), is_configuring: false }
    }

    /// Counts for a worker from now on, including the amounts that were counted before.
    pub fn adopt(&mut self, own: Arc<[Arc<PluginMetric>]>) {
        if let Defined::Known(loose) = &self.defined {
            loose.iter().zip(own.iter()).for_each(|(before, custom)| custom.add(before.value()));
        }
        self.defined = Defined::Known(own);
    }

    /// Returns the definitions of a first instance.
    pub fn first(&mut self) -> Vec<PluginMetricDefinition> {
        match &mut self.defined {
            Defined::First(defined) => std::mem::take(defined),
            Defined::Known(_) => Vec::new(),
        }
    }

    /// Defines a metric, and returns its handle.
    pub fn define(&mut self, new: PluginMetricDefinition) -> Result<u32, DefineError> {
        if !self.is_configuring {
            return Err(DefineError::TooMany);
        }
        if !is_name(&new.name) || new.help.len() > bounds::NAME {
            return Err(DefineError::BadName);
        }
        if let Some((handle, known)) = self.definitions().enumerate().find(|(_, known)| known.name == new.name) {
            return if known.kind == new.kind { Ok(handle as u32) } else { Err(DefineError::OtherKind) };
        }
        match &mut self.defined {
            Defined::First(defined) if defined.len() < bounds::METRICS => {
                defined.push(new);
                Ok(defined.len() as u32 - 1)
            }
            Defined::First(_) | Defined::Known(_) => Err(DefineError::TooMany),
        }
    }

    /// Adds an amount to a metric; does nothing if no metric has this handle.
    pub fn add(&self, handle: u32, amount: f64) {
        if let Defined::Known(figures) = &self.defined
            && let Some(custom) = figures.get(handle as usize)
        {
            custom.add(amount);
        }
    }

    fn definitions(&self) -> impl Iterator<Item = &PluginMetricDefinition> {
        let (first, known): (&[PluginMetricDefinition], &[Arc<PluginMetric>]) = match &self.defined {
            Defined::First(defined) => (defined, &[]),
            Defined::Known(figures) => (&[], figures),
        };
        first.iter().chain(known.iter().map(|custom| &custom.definition))
    }
}

fn is_name(name: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_lowercase();
    let later = |byte: u8| first(byte) || byte.is_ascii_digit() || byte == b'_';
    name.len() <= bounds::METRIC_NAME && name.bytes().next().is_some_and(first) && name.bytes().all(later)
}
