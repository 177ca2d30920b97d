//! The permit that a body needs to pass through a plugin: each such body holds an instance, or memory. Beyond the limit,
//! bodies wait for one that ends, in the order of their arrival.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::body_counts::RESERVED_BODIES;
use super::call_error::PluginFailure;
use super::instance_limit::ReservedInstances;
use super::version::PluginVersion;

/// A body that passes through a plugin, until dropped.
pub struct BodyPermit {
    version: Arc<PluginVersion>,
    place: BodyPlace,
}

/// The place of a body's instance.
enum BodyPlace {
    /// The place is one that a generation has reserved.
    OfGeneration,
    /// The place of a body beyond [`RESERVED_BODIES`], or of one that begins after its generation was replaced.
    Own { _reserved: ReservedInstances },
    /// The body has no instance.
    None,
}

/// The resource that a body holds while it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyResource {
    /// The body has an instance to itself.
    Instance,
    /// The body is gathered in memory, and shares the worker's instance.
    Memory,
}

impl BodyPermit {
    /// Takes a permit for one more body at once; the error is that `limits.bodies` is reached or that others wait, or that
    /// the bodies of all plugins have no more places.
    pub fn take(version: &Arc<PluginVersion>, held: BodyResource) -> Result<Self, PluginFailure> {
        if version.bodies.waiting.load(Ordering::SeqCst) > 0 {
            return Err(PluginFailure::Bodies(version.recipe.limits.bodies));
        }
        BodyPermit::take_free(version, held)
    }

    /// Waits for a permit, at most for `limits.body-wait`; as many bodies wait as may pass.
    pub async fn wait(version: &Arc<PluginVersion>, held: BodyResource) -> Result<Self, PluginFailure> {
        let limits = version.recipe.limits;
        let _waiting = version.bodies.wait(limits.bodies).ok_or(PluginFailure::BodyQueue(limits.bodies))?;
        let taking = async {
            loop {
                let mut ended = pin!(version.bodies.ended.notified());
                // A body that ends from here on is noticed.
                ended.as_mut().enable();
                match BodyPermit::take_free(version, held) {
                    Err(PluginFailure::Bodies(_)) => ended.await,
                    taken => return taken,
                }
            }
        };
        tokio::time::timeout(limits.body_wait, taking).await.unwrap_or(Err(PluginFailure::Bodies(limits.bodies)))
    }

    fn take_free(version: &Arc<PluginVersion>, held: BodyResource) -> Result<Self, PluginFailure> {
        let most = version.recipe.limits.bodies;
        let add = |count: u32| (count < most).then_some(count + 1);
        let passing = &version.bodies.passing;
        let before =
            passing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).map_err(|_| PluginFailure::Bodies(most))?;
        let mut permit = BodyPermit { version: version.clone(), place: BodyPlace::None };
        if before < RESERVED_BODIES && version.cover.is_there() {
            permit.place = BodyPlace::OfGeneration;
        } else if held == BodyResource::Instance {
            let reserved = version.recipe.plugin.places.reserve(1).map_err(|_| PluginFailure::NoPlace)?;
            permit.place = BodyPlace::Own { _reserved: reserved };
        }
        Ok(permit)
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        let bodies = &self.version.bodies;
        bodies.passing.fetch_sub(1, Ordering::SeqCst);
        if matches!(self.place, BodyPlace::OfGeneration) {
            self.version.cover.end_use(1, 0);
        }
        // Only where some wait: to wake one takes a lock.
        if bodies.waiting.load(Ordering::SeqCst) > 0 {
            bodies.ended.notify_one();
        }
    }
}
