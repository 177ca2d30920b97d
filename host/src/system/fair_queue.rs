//! A queue whose owners are served in turn, however many items each of them has in it.

use std::collections::VecDeque;

/// The items of owners.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    /// The owners that have items, in the order in which they are served.
    owners: VecDeque<OwnerItems<K, T>>,
}

/// The items of one owner, the first one first.
#[derive(Debug)]
struct OwnerItems<K, T> {
    owner: K,
    items: VecDeque<T>,
}

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        FairQueue { owners: VecDeque::new() }
    }
}

impl<K: PartialEq, T> FairQueue<K, T> {
    /// Puts an item behind the others of its owner.
    pub fn push(&mut self, owner: K, item: T) {
        match self.owners.iter_mut().find(|known| known.owner == owner) {
            Some(known) => known.items.push_back(item),
            None => self.owners.push_back(OwnerItems { owner, items: [item].into() }),
        }
    }

    /// Removes the first item of the owner whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let mut next = self.owners.pop_front()?;
        let item = next.items.pop_front();
        if !next.items.is_empty() {
            self.owners.push_back(next);
        }
        item
    }

    /// Returns the number of an owner's items.
    pub fn count(&self, owner: &K) -> usize {
        self.owners.iter().find(|known| known.owner == *owner).map_or(0, |known| known.items.len())
    }

    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_served_in_turn() {
        let mut queue = FairQueue::default();
        (0..4).for_each(|item| queue.push("a", item));
        (10..12).for_each(|item| queue.push("b", item));
        assert_eq!([queue.count(&"a"), queue.count(&"b"), queue.count(&"c")], [4, 2, 0]);
        let items: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(items, [0, 10, 1, 11, 2, 3]);
        assert!(queue.is_empty());
    }
}
