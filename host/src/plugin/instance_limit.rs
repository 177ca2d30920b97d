//! The places for instances. The engine has a fixed number of places, and each generation reserves those that it needs
//! before it makes an instance: no plugin takes the places of another, and a manifest that is rejected takes none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The places of a process, and the stacks of those whose instances may wait.
#[derive(Debug)]
pub struct InstanceLimit {
    places: PlaceCount,
    stacks: PlaceCount,
}

/// A number of things, some of which are taken.
#[derive(Debug)]
struct PlaceCount {
    what: &'static str,
    all: u32,
    taken: AtomicU32,
}

/// A number of reserved places and stacks, which are released on drop.
#[derive(Debug)]
pub struct ReservedInstances {
    of: Arc<InstanceLimit>,
    places: u32,
    stacks: u32,
}

/// The error for a generation that needs more places for instances than are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many plugin instances: {wanted} {what} needed, and {free} of {all} are free for one manifest; {REMEDY}")]
pub struct InstanceShortage {
    what: &'static str,
    wanted: u32,
    free: u32,
    all: u32,
}

const REMEDY: &str = "use fewer plugins or workers, or wait until exchanges of earlier manifests have ended";

impl PlaceCount {
    fn new(what: &'static str, all: u32) -> Self {
        PlaceCount { what, all, taken: AtomicU32::new(0) }
    }

    fn take(&self, wanted: u32) -> Result<(), InstanceShortage> {
        let take = |taken: u32| taken.checked_add(wanted).filter(|taken| *taken <= self.all);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|taken| self.shortage(wanted, self.all.saturating_sub(taken)))
    }

    /// Returns an error if a generation wants more than half of all, since the next one needs as many beside it.
    fn check_generation(&self, wanted: u32) -> Result<(), InstanceShortage> {
        let half = self.all / 2;
        if wanted > half { Err(self.shortage(wanted, half)) } else { Ok(()) }
    }

    fn shortage(&self, wanted: u32, free: u32) -> InstanceShortage {
        InstanceShortage { what: self.what, wanted, free, all: self.all }
    }

    fn give_back(&self, count: u32) {
        self.taken.fetch_sub(count, Ordering::Relaxed);
    }
}

impl InstanceLimit {
    /// Returns a limit of so many places and stacks, all of them free.
    pub fn new(places: u32, stacks: u32) -> Arc<Self> {
        let (places, stacks) =
            (PlaceCount::new("places", places), PlaceCount::new("stacks for calls that wait", stacks));
        Arc::new(InstanceLimit { places, stacks })
    }

    /// Reserves the places of a generation, all or none of them. A generation gets half of all places at most, since
    /// the next one needs places beside it.
    pub fn reserve_for_generation(self: &Arc<Self>, places: u32) -> Result<ReservedInstances, InstanceShortage> {
        self.places.check_generation(places)?;
        self.reserve(places)
    }

    /// Reserves places, all or none of them.
    pub fn reserve(self: &Arc<Self>, places: u32) -> Result<ReservedInstances, InstanceShortage> {
        self.take(places, 0)?;
        Ok(ReservedInstances { of: self.clone(), places, stacks: 0 })
    }

    /// Reserves a place with a stack, for an instance whose calls may wait.
    pub fn reserve_waiting(self: &Arc<Self>) -> Result<ReservedInstances, InstanceShortage> {
        self.take(1, 1)?;
        Ok(ReservedInstances { of: self.clone(), places: 1, stacks: 1 })
    }

    fn take(&self, places: u32, stacks: u32) -> Result<(), InstanceShortage> {
        self.places.take(places)?;
        self.stacks.take(stacks).inspect_err(|_| self.places.give_back(places))
    }
}

impl ReservedInstances {
    /// Reserves further places and stacks of a generation, all or none of them.
    pub fn extend(&mut self, places: u32, stacks: u32) -> Result<(), InstanceShortage> {
        self.of.stacks.check_generation(self.stacks.saturating_add(stacks))?;
        self.of.take(places, stacks)?;
        self.places += places;
        self.stacks += stacks;
        Ok(())
    }

    /// Releases what is beyond a number of places and of stacks.
    pub fn shrink(&mut self, places: u32, stacks: u32) {
        drop(self.split(self.places.saturating_sub(places), self.stacks.saturating_sub(stacks)));
    }

    /// Separates a number of places and stacks, as far as there are so many.
    pub fn split(&mut self, places: u32, stacks: u32) -> ReservedInstances {
        let (places, stacks) = (places.min(self.places), stacks.min(self.stacks));
        self.places -= places;
        self.stacks -= stacks;
        ReservedInstances { of: self.of.clone(), places, stacks }
    }
}

impl Drop for ReservedInstances {
    fn drop(&mut self) {
        self.of.places.give_back(self.places);
        self.of.stacks.give_back(self.stacks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_all_or_none_and_come_back() {
        let all = InstanceLimit::new(10, 0);
        let mut first = all.reserve(4).unwrap();
        let shortage = InstanceShortage { what: "places", wanted: 7, free: 6, all: 10 };
        assert_eq!(all.reserve(7).unwrap_err(), shortage);
        first.extend(6, 0).unwrap();
        assert!(first.extend(1, 0).is_err() && all.reserve(u32::MAX).is_err());
        drop(first);
        assert!(all.reserve(10).is_ok());
        assert!(all.reserve_for_generation(5).is_ok() && all.reserve_for_generation(6).is_err());
    }

    #[test]
    fn stacks_are_taken_with_their_places() {
        let all = InstanceLimit::new(10, 6);
        let mut generation = all.reserve_for_generation(1).unwrap();
        generation.extend(2, 2).unwrap();
        // Half of all are for the next generation.
        assert!(generation.extend(2, 2).is_err() && generation.extend(0, u32::MAX).is_err());
        let waiting: Vec<_> = std::iter::from_fn(|| all.reserve_waiting().ok()).collect();
        assert_eq!(waiting.len(), 4);
        // No place was taken without its stack.
        let others = all.reserve(3).unwrap();
        assert!(all.reserve(1).is_err());
        drop((generation, waiting));
        let mut next = all.reserve_for_generation(5).unwrap();
        assert!(next.extend(1, 3).is_ok() && next.extend(2, 0).is_err());
        drop(others);
    }
}
