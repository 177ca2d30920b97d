//! A limit of what a worker holds of something at a time. It is not shared with other threads.

use std::cell::Cell;
use std::rc::Rc;

/// The limit, with the amount that is held.
pub struct LocalLimit {
    max: usize,
    held: Rc<Cell<usize>>,
}

/// An amount that is held, until dropped.
pub struct LocalHold {
    held: Rc<Cell<usize>>,
    amount: usize,
}

impl LocalLimit {
    pub fn new(max: usize) -> Self {
        LocalLimit { max, held: Rc::default() }
    }

    /// Holds an amount until the result is dropped; `None` if that would be too much.
    pub fn hold(&self, amount: usize) -> Option<LocalHold> {
        let all = self.held.get().checked_add(amount).filter(|all| *all <= self.max)?;
        self.held.set(all);
        Some(LocalHold { held: self.held.clone(), amount })
    }
}

impl Drop for LocalHold {
    fn drop(&mut self) {
        self.held.set(self.held.get() - self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_held_up_to_the_maximum_and_until_dropped() {
        let limit = LocalLimit::new(10);
        let first = limit.hold(9);
        assert!(first.is_some() && limit.hold(2).is_none() && limit.hold(usize::MAX).is_none());
        assert!(limit.hold(1).is_some());
        drop(first);
        assert!(limit.hold(10).is_some());
    }
}
