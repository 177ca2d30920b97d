//! The permit that a body needs to pass through a plugin: each such body holds an instance.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::call_error::PluginFailure;
use super::instance_limit::ReservedInstances;
use super::version::PluginVersion;

/// A body that passes through a plugin, until dropped.
pub struct BodyPermit {
    version: Arc<PluginVersion>,
    /// The place of a body beyond [`RESERVED_BODIES`].
    _place: Option<ReservedInstances>,
}

/// Bodies at a time that a plugin has places for, whatever others do. More take what is free.
pub const RESERVED_BODIES: u32 = 32;

impl BodyPermit {
    /// Reserves a place for one more body; the error is that `limits.bodies` is reached, or that the bodies of all plugins
    /// have no more places.
    pub(super) fn new(version: &Arc<PluginVersion>) -> Result<Self, PluginFailure> {
        let (bodies, most) = (&version.bodies, version.recipe.limits.bodies);
        let add = |count: u32| (count < most).then_some(count + 1);
        let before =
            bodies.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map_err(|_| PluginFailure::Bodies(most))?;
        let mut permit = BodyPermit { version: version.clone(), _place: None };
        if before >= RESERVED_BODIES {
            permit._place = Some(version.recipe.plugin.places.reserve(1).map_err(|_| PluginFailure::NoPlace)?);
        }
        Ok(permit)
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        self.version.bodies.fetch_sub(1, Ordering::Relaxed);
    }
}
