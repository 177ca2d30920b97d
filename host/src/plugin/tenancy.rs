//! The use of a generation's places for instances by its workers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::instance_limit::ReservedInstances;

/// The places of a generation, released when the last worker has dropped its instances or the generation is dropped.
#[derive(Debug)]
pub struct Tenancy {
    reserved: Mutex<Option<ReservedInstances>>,
    /// Workers that may still use the generation.
    workers: AtomicU32,
}

impl Tenancy {
    /// Returns the tenancy of a generation that this number of workers use.
    pub fn new(reserved: ReservedInstances, workers: u32) -> Self {
        Tenancy { reserved: Mutex::new(Some(reserved)), workers: AtomicU32::new(workers) }
    }

    /// Records that a worker has dropped all its instances.
    pub fn leave(&self) {
        if self.workers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.reserved.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance_limit::InstanceLimit;
    use super::*;

    #[test]
    fn a_generation_gives_its_places_back_with_the_last_worker() {
        let all = InstanceLimit::new(10, 0);
        let tenancy = Tenancy::new(all.reserve(10).unwrap(), 2);
        tenancy.leave();
        assert!(all.reserve(1).is_err());
        tenancy.leave();
        assert!(all.reserve(10).is_ok());
        drop(tenancy);
    }
}
