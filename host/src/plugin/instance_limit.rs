//! The places for instances. The engine has a fixed number of places, and each generation reserves those that it needs
//! before it makes an instance: no plugin takes the places of another, and a manifest that is rejected takes none.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The places of a process.
#[derive(Debug)]
pub struct InstanceLimit {
    all: u32,
    taken: AtomicU32,
}

/// A number of reserved places, which are released on drop.
#[derive(Debug)]
pub struct ReservedInstances {
    of: Arc<InstanceLimit>,
    places: u32,
}

/// The places of a generation, released when the last worker has dropped its instances or the generation is dropped.
#[derive(Debug)]
pub struct Tenancy {
    reserved: Mutex<Option<ReservedInstances>>,
    /// Workers that may still use the generation.
    workers: AtomicU32,
}

/// The error for a generation that needs more places for instances than are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many plugin instances: {wanted} places needed, and {free} of {all} are free for one manifest; {REMEDY}")]
pub struct InstanceShortage {
    wanted: u32,
    free: u32,
    all: u32,
}

const REMEDY: &str = "use fewer plugins or workers, or wait until exchanges of earlier manifests have ended";

impl InstanceLimit {
    /// Returns a limit of this many places, all of them free.
    pub fn new(all: u32) -> Arc<Self> {
        Arc::new(InstanceLimit { all, taken: AtomicU32::new(0) })
    }

    /// Reserves the places of a generation, all or none of them. A generation gets half of all places at most, since
    /// the next one needs places beside it.
    pub fn reserve_for_generation(self: &Arc<Self>, places: u32) -> Result<ReservedInstances, InstanceShortage> {
        let half = self.all / 2;
        if places > half {
            return Err(InstanceShortage { wanted: places, free: half, all: self.all });
        }
        self.reserve(places)
    }

    /// Reserves places, all or none of them.
    pub fn reserve(self: &Arc<Self>, places: u32) -> Result<ReservedInstances, InstanceShortage> {
        self.take(places)?;
        Ok(ReservedInstances { of: self.clone(), places })
    }

    fn take(&self, wanted: u32) -> Result<(), InstanceShortage> {
        let take = |taken: u32| taken.checked_add(wanted).filter(|taken| *taken <= self.all);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let shortage = |taken| InstanceShortage { wanted, free: self.all.saturating_sub(taken), all: self.all };
        taken.map(drop).map_err(shortage)
    }
}

impl ReservedInstances {
    /// Reserves further places, all or none of them.
    pub fn extend(&mut self, places: u32) -> Result<(), InstanceShortage> {
        self.of.take(places)?;
        self.places += places;
        Ok(())
    }

    /// Returns the tenancy of a generation that this number of workers use.
    pub fn into_tenancy(self, workers: u32) -> Tenancy {
        Tenancy { reserved: Mutex::new(Some(self)), workers: AtomicU32::new(workers) }
    }
}

impl Drop for ReservedInstances {
    fn drop(&mut self) {
        self.of.taken.fetch_sub(self.places, Ordering::Relaxed);
    }
}

impl Tenancy {
    /// Records that a worker has dropped all its instances.
    pub fn leave(&self) {
        if self.workers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.reserved.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_all_or_none_and_come_back() {
        let all = InstanceLimit::new(10);
        let mut first = all.reserve(4).unwrap();
        assert_eq!(all.reserve(7).unwrap_err(), InstanceShortage { wanted: 7, free: 6, all: 10 });
        first.extend(6).unwrap();
        assert!(first.extend(1).is_err() && all.reserve(u32::MAX).is_err());
        drop(first);
        assert!(all.reserve(10).is_ok());
        assert!(all.reserve_for_generation(5).is_ok() && all.reserve_for_generation(6).is_err());
    }

    #[test]
    fn a_generation_gives_its_places_back_with_the_last_worker() {
        let all = InstanceLimit::new(10);
        let tenancy = all.reserve(10).unwrap().into_tenancy(2);
        tenancy.leave();
        assert!(all.reserve(1).is_err());
        tenancy.leave();
        assert!(all.reserve(10).is_ok());
        drop(tenancy);
    }
}
