//! Bounds the exchanges that have ended and wait for an observer on a worker.

use std::cell::Cell;
use std::rc::Rc;

use super::super::instance::Summary;

/// The bytes of the exchanges that wait for an observer.
#[derive(Default)]
pub struct HeldEnds(Rc<Cell<usize>>);

/// An exchange that waits for an observer, until dropped.
pub struct HeldEnd {
    all: Rc<Cell<usize>>,
    bytes: usize,
}

/// The part of an exchange that an observer receives once the exchange has ended.
pub struct ObservedEnd {
    /// The values that the observer has declared.
    pub values: Vec<Option<Vec<u8>>>,
    pub summary: Summary,
}

/// The bytes that an exchange takes besides its values, roughly.
const OWN_BYTES: usize = 1 << 10;

impl HeldEnds {
    /// The maximum number of bytes that wait for an observer on a worker.
    pub const MAX: usize = 4 << 20;

    /// Counts an exchange until the result is dropped; `None` if there is no room for the exchange.
    pub fn hold(&self, bytes: usize) -> Option<HeldEnd> {
        let all = self.0.get() + bytes;
        (all <= Self::MAX).then(|| {
            self.0.set(all);
            HeldEnd { all: self.0.clone(), bytes }
        })
    }
}

impl ObservedEnd {
    /// Returns the size of the exchange in memory, roughly.
    pub fn bytes(&self) -> usize {
        OWN_BYTES + self.values.iter().flatten().map(Vec::len).sum::<usize>()
    }
}

impl Drop for HeldEnd {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_are_held_up_to_the_maximum_and_counted_until_dropped() {
        let ends = HeldEnds::default();
        let first = ends.hold(HeldEnds::MAX - 1);
        assert!(first.is_some() && ends.hold(2).is_none() && ends.hold(1).is_some());
        drop(first);
        assert!(ends.hold(HeldEnds::MAX).is_some());
    }
}
