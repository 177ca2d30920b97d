//! The places that generations have for the bodies and calls of a version of a plugin.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::instance_limit::ReservedInstances;

/// The count of the generations that have places for a version's bodies and calls, and the places of those that outlive
/// them all.
#[derive(Default)]
pub(super) struct Cover {
    generations: AtomicU32,
    /// Whether there were generations, and none is left.
    has_ended: AtomicBool,
    // Taken when a generation begins or is replaced, and at the end of what outlives it.
    outliving: Mutex<Option<ReservedInstances>>,
}

impl Cover {
    /// Records one more generation that has places.
    pub fn begin(&self) {
        self.generations.fetch_add(1, Ordering::SeqCst);
        self.has_ended.store(false, Ordering::SeqCst);
        // The generation has places for what is under way, too.
        drop(self.lock().take());
    }

    /// Whether a generation has places.
    pub fn is_there(&self) -> bool {
        self.generations.load(Ordering::SeqCst) > 0
    }

    /// Records that a generation has no places any more. If it was the last one, those that `in_use` counts are separated
    /// from what the generation had reserved.
    pub fn end(&self, reserved: Option<&mut ReservedInstances>, in_use: impl FnOnce() -> (u32, u32)) {
        let mut outliving = self.lock();
        // Counted before: a use that ends meanwhile leaves a place reserved for too long, and none is given back in use.
        let (places, stacks) = in_use();
        if self.generations.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.has_ended.store(true, Ordering::SeqCst);
            *outliving = reserved.map(|reserved| reserved.split(places, stacks));
        }
    }

    /// Whether there were generations that had places, and none is left.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Releases the places and stacks of a use that has ended, if no generation has them.
    pub fn end_use(&self, places: u32, stacks: u32) {
        if !self.is_there()
            && let Some(outliving) = &mut *self.lock()
        {
            drop(outliving.split(places, stacks));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<ReservedInstances>> {
        self.outliving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance_limit::InstanceLimit;
    use super::*;

    #[test]
    fn what_outlives_all_generations_keeps_its_places_until_it_ends() {
        let all = InstanceLimit::new(10, 10);
        let mut generations = [all.reserve(4).unwrap(), all.reserve(4).unwrap()];
        let cover = Cover::default();
        (0..2).for_each(|_| cover.begin());
        for reserved in &mut generations {
            assert!(cover.is_there());
            cover.end(Some(reserved), || (3, 0));
        }
        assert!(!cover.is_there() && cover.has_ended());
        drop(generations);
        assert!(all.reserve(7).is_ok() && all.reserve(8).is_err());
        cover.end_use(1, 0);
        assert!(all.reserve(8).is_ok() && all.reserve(9).is_err());
        cover.begin();
        assert!(!cover.has_ended());
        assert!(all.reserve(10).is_ok(), "the next generation has places for them");
    }
}
