//! The permit that a body needs to pass through a plugin: each such body holds an instance, or memory. Beyond the limit, or
//! beyond the client's part of it, bodies wait for one that ends.

use std::sync::Arc;

use super::call_error::PluginFailure;
use super::instance_limit::ReservedInstances;
use super::version::{PluginVersion, RESERVED_BODIES};
use crate::system::client_places::{ClientPlace, Entered};
use crate::system::holder_counts::Holder;

/// A body that passes through a plugin, until dropped.
pub struct BodyPermit {
    // Dropped first: the cover counts the bodies that pass without this one.
    _place: ClientPlace,
    _instance: InstancePlace,
}

/// The place of a body's instance.
enum InstancePlace {
    /// The place is one that a generation has reserved.
    OfGeneration { _cover_use: CoverUse },
    /// The place of a body beyond [`RESERVED_BODIES`], or of one that begins after its generation was replaced.
    Own { _reserved: ReservedInstances },
    /// The body has no instance.
    None,
}

/// The use of a place that a generation has reserved for a version, until dropped.
struct CoverUse(Arc<PluginVersion>);

/// The resource that a body holds while it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyResource {
    /// The body has an instance to itself.
    Instance,
    /// The body is gathered in memory, and shares the worker's instance.
    Memory,
}

impl BodyPermit {
    /// Takes a permit for one more body of a client at once; the error is that `limits.bodies` or the client's part of it is
    /// reached, that others of the client wait, or that the bodies of all plugins have no more places.
    pub fn take(version: &Arc<PluginVersion>, held: BodyResource, client: Holder) -> Result<Self, PluginFailure> {
        let place = version.bodies.enter_at_once(client);
        BodyPermit::new(version, held, place.ok_or(PluginFailure::Bodies(version.recipe.limits.bodies))?)
    }

    /// Waits for a permit, at most for `limits.body-wait`.
    pub async fn wait(version: &Arc<PluginVersion>, held: BodyResource, client: Holder) -> Result<Self, PluginFailure> {
        let limits = version.recipe.limits;
        let place = match version.bodies.enter(client) {
            Entered::Place(place) => Some(place),
            Entered::Queued(queued) => tokio::time::timeout(limits.body_wait, queued.turn()).await.ok().flatten(),
            Entered::Full => return Err(PluginFailure::BodyQueue(limits.bodies)),
        };
        BodyPermit::new(version, held, place.ok_or(PluginFailure::Bodies(limits.bodies))?)
    }

    fn new(version: &Arc<PluginVersion>, held: BodyResource, place: ClientPlace) -> Result<Self, PluginFailure> {
        let instance = if place.place.before < RESERVED_BODIES && version.cover.is_there() {
            InstancePlace::OfGeneration { _cover_use: CoverUse(version.clone()) }
        } else if held == BodyResource::Instance {
            let reserved = version.recipe.plugin.places.reserve(1).map_err(|_| PluginFailure::NoPlace)?;
            InstancePlace::Own { _reserved: reserved }
        } else {
            InstancePlace::None
        };
        Ok(BodyPermit { _place: place, _instance: instance })
    }
}

impl Drop for CoverUse {
    fn drop(&mut self) {
        self.0.cover.end_use(1, 0);
    }
}
