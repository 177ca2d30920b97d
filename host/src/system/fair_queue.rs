//! Queues whose owners are served in turn, however many items each of them has in it.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// The items of owners. There may be thousands of owners: no operation searches for one among the others.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    /// The owners that have items, in the order in which they are served.
    turns: VecDeque<K>,
    /// The items of each owner in `turns`, the first one first.
    items: HashMap<K, VecDeque<T>>,
    /// The number of all items.
    len: usize,
}

/// The items of the owners of each group. Groups are served in turn, and so are the owners of a group.
#[derive(Debug)]
pub struct GroupedFairQueue<G, K, T> {
    /// The groups that have items, in the order in which they are served.
    turns: VecDeque<G>,
    /// The items of each group in `turns`.
    groups: HashMap<G, FairQueue<K, T>>,
}

// === FairQueue ===

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        FairQueue { turns: VecDeque::new(), items: HashMap::new(), len: 0 }
    }
}

impl<K: Clone + Eq + Hash, T> FairQueue<K, T> {
    /// Puts an item behind the others of its owner.
    pub fn push(&mut self, owner: K, item: T) {
        self.len += 1;
        match self.items.get_mut(&owner) {
            Some(items) => items.push_back(item),
            None => {
                self.turns.push_back(owner.clone());
                self.items.insert(owner, [item].into());
            }
        }
    }

    /// Removes the first item of the owner whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        self.pop_if(|_| true, |_| true).map(|(_, item)| item)
    }

    /// Removes the first item to be kept of the next owner that may be served, and returns it with its owner. The owner's
    /// items before it are dropped.
    pub fn pop_if(&mut self, may_be_served: impl Fn(&K) -> bool, is_kept: impl Fn(&T) -> bool) -> Option<(K, T)> {
        for _ in 0..self.turns.len() {
            let owner = self.turns.pop_front()?;
            if !may_be_served(&owner) {
                self.turns.push_back(owner);
                continue;
            }
            let items = self.items.get_mut(&owner)?;
            let before = items.len();
            let item = std::iter::from_fn(|| items.pop_front()).find(|item| is_kept(item));
            self.len -= before - items.len();
            if items.is_empty() {
                self.items.remove(&owner);
            } else {
                self.turns.push_back(owner.clone());
            }
            if let Some(item) = item {
                return Some((owner, item));
            }
        }
        None
    }

    /// Removes the items that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.items.values_mut().for_each(|items| items.retain(&keep));
        self.items.retain(|_, items| !items.is_empty());
        let FairQueue { turns, items, len } = self;
        turns.retain(|owner| items.contains_key(owner));
        *len = items.values().map(VecDeque::len).sum();
    }

    /// Returns the number of all items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns the number of an owner's items.
    fn count(&self, owner: &K) -> usize {
        self.items.get(owner).map_or(0, VecDeque::len)
    }

    fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

// === GroupedFairQueue ===

impl<G, K, T> Default for GroupedFairQueue<G, K, T> {
    fn default() -> Self {
        GroupedFairQueue { turns: VecDeque::new(), groups: HashMap::new() }
    }
}

impl<G: Clone + Eq + Hash, K: Clone + Eq + Hash, T> GroupedFairQueue<G, K, T> {
    /// Puts an item behind the others of its owner in a group.
    pub fn push(&mut self, group: G, owner: K, item: T) {
        if !self.groups.contains_key(&group) {
            self.turns.push_back(group.clone());
        }
        self.groups.entry(group).or_default().push(owner, item);
    }

    /// Returns the number of a group's items.
    pub fn count(&self, group: &G) -> usize {
        self.groups.get(group).map_or(0, |owners| owners.len)
    }

    /// Returns the number of an owner's items in a group.
    pub fn count_of(&self, group: &G, owner: &K) -> usize {
        self.groups.get(group).map_or(0, |owners| owners.count(owner))
    }

    /// Removes the first item of the owner whose turn it is in the group whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let group = self.turns.pop_front()?;
        let owners = self.groups.get_mut(&group)?;
        let item = owners.pop();
        if owners.is_empty() {
            self.groups.remove(&group);
        } else {
            self.turns.push_back(group);
        }
        item
    }

    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
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

    #[test]
    fn an_owner_that_may_not_be_served_keeps_its_items() {
        let mut queue = FairQueue::default();
        (0..4).for_each(|item| queue.push("a", item));
        (10..12).for_each(|item| queue.push("b", item));
        let mut pop = || queue.pop_if(|owner| *owner != "a", |_| true);
        assert_eq!([pop(), pop(), pop()], [Some(("b", 10)), Some(("b", 11)), None]);
        queue.retain(|item| item % 2 == 1);
        assert_eq!((queue.len(), queue.pop(), queue.pop(), queue.pop()), (2, Some(1), Some(3), None));
    }

    #[test]
    fn an_item_that_is_not_kept_takes_no_turn() {
        let mut queue = FairQueue::default();
        (0..3).for_each(|item| queue.push("a", item));
        (10..12).for_each(|item| queue.push("b", item));
        let mut pop = || queue.pop_if(|_| true, |item| !matches!(item, 0 | 1 | 10)).map(|(_, item)| item);
        assert_eq!([pop(), pop(), pop()], [Some(2), Some(11), None]);
        assert_eq!((queue.is_empty(), queue.len()), (true, 0));
    }

    #[test]
    fn groups_are_served_in_turn_however_many_owners_they_have() {
        let mut queue = GroupedFairQueue::default();
        (0..3).for_each(|item| queue.push("many", "a", item));
        queue.push("many", "b", 10);
        queue.push("many", "c", 20);
        (30..33).for_each(|item| queue.push("one", "a", item));
        assert_eq!([queue.count(&"many"), queue.count_of(&"many", &"a"), queue.count(&"none")], [5, 3, 0]);
        let items: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(items, [0, 30, 10, 31, 20, 32, 1, 2]);
        assert!(queue.is_empty());
    }
}
