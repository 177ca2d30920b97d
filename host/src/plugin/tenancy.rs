//! The use of a generation's places for instances by its workers. A client can keep an exchange of a generation waiting for
//! hours, and must not keep the places that a later generation needs: once another generation has replaced it, a generation
//! keeps no more of them than its exchanges use.

use std::sync::{Arc, Mutex, PoisonError};

use super::instance_limit::ReservedInstances;
use super::version::PluginVersion;

/// The places of a generation, released step by step as workers leave it, or when it is dropped.
pub struct Tenancy(Mutex<Holdings>);

/// The places that a generation has, and who uses them.
struct Holdings {
    /// The places of the workers' own instances and, before all workers have replaced the generation, those of bodies and
    /// calls.
    reserved: Option<ReservedInstances>,
    /// The versions of the plugins, one for each binding. Empty once all workers have replaced the generation.
    covered: Vec<Arc<PluginVersion>>,
    /// The instances that workers have for themselves.
    own: u32,
    /// The number of these instances whose calls may wait, each of which has a stack.
    own_stacks: u32,
    /// Workers whose exchanges begin with the generation.
    serving: u32,
    /// Workers that may still use an instance of the generation.
    workers: u32,
}

/// The instances that each worker has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnInstances {
    pub places: u32,
    /// The number of these instances whose calls may wait.
    pub stacks: u32,
}

impl Tenancy {
    /// Returns the tenancy of a generation that this number of workers use, each with instances of its own. While they
    /// serve, the places of bodies and calls of these versions are reserved.
    pub fn new(
        reserved: ReservedInstances,
        covered: Vec<Arc<PluginVersion>>,
        workers: u32,
        each: OwnInstances,
    ) -> Self {
        covered.iter().for_each(|version| version.cover.begin());
        Tenancy(Mutex::new(Holdings {
            reserved: Some(reserved),
            covered,
            own: each.places.saturating_mul(workers),
            own_stacks: each.stacks.saturating_mul(workers),
            serving: workers,
            workers,
        }))
    }

    /// Records that a worker begins no more exchanges with the generation. After the last one, the generation keeps the
    /// workers' own instances, and bodies and calls that are under way keep their places.
    pub fn retire(&self) {
        self.change(|holdings| {
            holdings.serving -= 1;
            if holdings.serving == 0 {
                holdings.end_cover();
            }
        });
    }

    /// Records that a worker has dropped its own instance of a plugin.
    pub fn release(&self, instance: OwnInstances) {
        self.change(|holdings| {
            holdings.own = holdings.own.saturating_sub(instance.places);
            holdings.own_stacks = holdings.own_stacks.saturating_sub(instance.stacks);
        });
    }

    /// Records that a worker has dropped all its instances.
    pub fn leave(&self) {
        self.change(|holdings| {
            holdings.workers -= 1;
            if holdings.workers == 0 {
                holdings.end_cover();
                holdings.reserved = None;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Holdings)) {
        // A worker takes it a few times after a reload, never for an exchange of the generation that serves.
        let mut holdings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut holdings);
        let Holdings { reserved, covered, own, own_stacks, .. } = &mut *holdings;
        if let Some(reserved) = reserved.as_mut().filter(|_| covered.is_empty()) {
            reserved.shrink(*own, *own_stacks);
        }
    }
}

impl Holdings {
    fn end_cover(&mut self) {
        for version in self.covered.drain(..) {
            version.end_cover(self.reserved.as_mut());
        }
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).end_cover();
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance_limit::InstanceLimit;
    use super::*;

    fn tenancy(all: &Arc<InstanceLimit>, places: u32) -> Tenancy {
        Tenancy::new(all.reserve(places).unwrap(), Vec::new(), 2, OwnInstances { places: 2, stacks: 0 })
    }

    #[test]
    fn a_generation_gives_its_places_back_with_the_last_worker() {
        let all = InstanceLimit::new(10, 0);
        let tenancy = tenancy(&all, 10);
        tenancy.leave();
        assert!(all.reserve(7).is_err());
        tenancy.leave();
        assert!(all.reserve(10).is_ok());
        drop(tenancy);
    }

    #[test]
    fn a_generation_that_is_replaced_keeps_the_instances_that_workers_use() {
        let all = InstanceLimit::new(10, 0);
        let tenancy = tenancy(&all, 10);
        tenancy.retire();
        tenancy.retire();
        assert!(all.reserve(6).is_ok() && all.reserve(7).is_err(), "two instances of each worker are left");
        tenancy.release(OwnInstances { places: 1, stacks: 0 });
        assert!(all.reserve(7).is_ok() && all.reserve(8).is_err());
        drop(tenancy);
        assert!(all.reserve(10).is_ok());
    }
}
