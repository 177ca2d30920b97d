//! One part of a shared state: a hash table over slots, which a list links in the order of their last use.

use std::borrow::Cow;

use hashbrown::HashTable;

use super::{ENTRY_OVERHEAD, MAX_LISTED_KEYS, NEVER, SharedError, SharedLimits, SharedUse};

/// The entries of one part, within its limits.
pub(super) struct SharedPart {
    /// The slots of keys, by the hashes of these.
    table: HashTable<u32>,
    slots: Vec<Slot>,
    /// The first of the free slots, which are linked by `older`.
    free: u32,
    /// The ends of the list of used slots.
    newest: u32,
    oldest: u32,
    /// The slot at which the search for expired entries continues.
    hand: u32,
    limits: SharedLimits,
    usage: SharedUse,
}

/// A place for an entry. A free one has an entry without key and value, which never expires.
struct Slot {
    entry: SharedEntry,
    newer: u32,
    older: u32,
}

/// A key with its value.
pub(super) struct SharedEntry {
    pub hash: u64,
    pub key: Box<[u8]>,
    pub value: SharedValue,
    /// The time from which on the entry counts as absent.
    pub expires: u64,
}

/// The value of a key.
pub(super) enum SharedValue {
    Bytes(Box<[u8]>),
    Count(i64),
    /// A token bucket, which is full at the time at which the entry expires.
    Bucket,
}

/// A used slot that a search has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId(u32);

/// The end of a list.
const NONE: u32 = u32::MAX;

/// The slots that each new entry looks at for expired entries: more than one, so that these go sooner than they come.
const SWEPT: usize = 2;

/// The longest decimal number of a counter, in bytes.
const MAX_DIGITS: usize = 20;

impl SharedPart {
    pub fn new(limits: SharedLimits) -> Self {
        let (table, slots) = (HashTable::new(), Vec::new());
        let usage = SharedUse::default();
        SharedPart { table, slots, free: NONE, newest: NONE, oldest: NONE, hand: 0, limits, usage }
    }

    /// Sets the limits, and evicts what exceeds them.
    pub fn resize(&mut self, limits: SharedLimits) {
        self.limits = limits;
        self.make_room(0, 0);
    }

    /// Finds the entry of a key that has not expired, which counts as a use of it.
    pub fn find(&mut self, hash: u64, key: &[u8], now: u64) -> Option<SlotId> {
        let is_it = |slot: &u32| {
            let entry = &self.slots[*slot as usize].entry;
            entry.hash == hash && *entry.key == *key
        };
        let slot = *self.table.find(hash, is_it)?;
        if self.slots[slot as usize].is_expired(now) {
            self.remove(SlotId(slot));
            return None;
        }
        if self.newest != slot {
            self.unlink(slot);
            self.link(slot);
        }
        Some(SlotId(slot))
    }

    /// Returns an entry that was found, whose value must keep its size.
    pub fn entry(&mut self, found: SlotId) -> &mut SharedEntry {
        &mut self.slots[found.0 as usize].entry
    }

    /// Replaces the value of an entry that was found. Returns the old value.
    pub fn replace(&mut self, found: SlotId, value: SharedValue, expires: u64) -> SharedValue {
        let entry = self.entry(found);
        let before = entry.bytes();
        entry.expires = expires;
        let old = std::mem::replace(&mut entry.value, value);
        let after = entry.bytes();
        self.usage.bytes = self.usage.bytes - before + after;
        // It was used last, and fits alone: others leave.
        self.make_room(0, 0);
        old
    }

    /// Inserts an entry, whose key has none.
    pub fn insert(&mut self, entry: SharedEntry, now: u64) {
        self.sweep(now);
        let bytes = entry.bytes();
        self.make_room(1, bytes);
        self.usage.entries += 1;
        self.usage.bytes += bytes;
        let hash = entry.hash;
        let slot = self.place(entry);
        self.link(slot);
        let slots = &self.slots;
        self.table.insert_unique(hash, slot, |slot| slots[*slot as usize].entry.hash);
    }

    /// Removes an entry that was found.
    pub fn remove(&mut self, SlotId(slot): SlotId) {
        self.unlink(slot);
        let place = &mut self.slots[slot as usize];
        place.older = std::mem::replace(&mut self.free, slot);
        let entry = std::mem::replace(&mut place.entry, SharedEntry::none());
        if let Ok(known) = self.table.find_entry(entry.hash, |known| *known == slot) {
            known.remove();
        }
        self.usage.entries -= 1;
        self.usage.bytes -= entry.bytes();
    }

    /// Adds the keys with a prefix of some slots, from `place` on, to `keys`. Returns the place of the next ones; `None` at
    /// the end.
    pub fn list_keys(&self, prefix: &[u8], place: usize, now: u64, keys: &mut Vec<Vec<u8>>) -> Option<usize> {
        let end = place.saturating_add(MAX_LISTED_KEYS).min(self.slots.len());
        for (slot, Slot { entry, .. }) in self.slots.iter().enumerate().take(end).skip(place) {
            let is_value = !matches!(entry.value, SharedValue::Bucket) && entry.expires > now;
            let key = entry.key.strip_prefix(prefix).filter(|_| is_value);
            // A free slot is in no table.
            let is_used = || self.table.find(entry.hash, |known| *known as usize == slot).is_some();
            keys.extend(key.filter(|_| is_used()).map(<[u8]>::to_vec));
        }
        (end < self.slots.len()).then_some(end)
    }

    pub fn usage(&self) -> SharedUse {
        self.usage
    }

    /// Evicts the entries that were not used for the longest time, until as many more have room.
    fn make_room(&mut self, entries: usize, bytes: usize) {
        while self.oldest != NONE
            && (self.usage.entries + entries > self.limits.entries || self.usage.bytes + bytes > self.limits.bytes)
        {
            self.remove(SlotId(self.oldest));
            self.usage.evicted += 1;
        }
    }

    /// Removes expired entries among the next slots.
    fn sweep(&mut self, now: u64) {
        for _ in 0..SWEPT.min(self.slots.len()) {
            self.hand = if self.hand as usize + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            if self.slots[self.hand as usize].is_expired(now) {
                self.remove(SlotId(self.hand));
            }
        }
    }

    /// Puts an entry into a free slot, which is linked nowhere.
    fn place(&mut self, entry: SharedEntry) -> u32 {
        match self.free {
            NONE => {
                self.slots.push(Slot { entry, newer: NONE, older: NONE });
                self.slots.len() as u32 - 1
            }
            slot => {
                let place = &mut self.slots[slot as usize];
                self.free = place.older;
                place.entry = entry;
                slot
            }
        }
    }

    /// Links a slot as the one that was used last.
    fn link(&mut self, slot: u32) {
        let older = std::mem::replace(&mut self.newest, slot);
        let place = &mut self.slots[slot as usize];
        (place.newer, place.older) = (NONE, older);
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = slot,
            None => self.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { newer, older, .. } = self.slots[slot as usize];
        match self.slots.get_mut(newer as usize) {
            Some(place) => place.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older as usize) {
            Some(place) => place.newer = newer,
            None => self.oldest = newer,
        }
    }
}

impl Slot {
    fn is_expired(&self, now: u64) -> bool {
        self.entry.expires <= now && self.entry.expires != NEVER
    }
}

impl SharedEntry {
    /// Returns the entry of a free slot.
    fn none() -> Self {
        SharedEntry { hash: 0, key: Box::default(), value: SharedValue::Count(0), expires: NEVER }
    }

    /// Returns the part of the limit that the entry uses, in bytes.
    fn bytes(&self) -> usize {
        let value = match &self.value {
            SharedValue::Bytes(bytes) => bytes.len(),
            SharedValue::Count(_) | SharedValue::Bucket => 0,
        };
        self.key.len() + value + ENTRY_OVERHEAD
    }
}

impl SharedValue {
    /// Returns the value as bytes; an error if it is a bucket.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>, SharedError> {
        match self {
            SharedValue::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            SharedValue::Count(count) => Ok(Cow::Owned(count.to_string().into_bytes())),
            SharedValue::Bucket => Err(SharedError::OtherKind),
        }
    }

    /// Returns the value as a counter; an error if it is no integer as counters write it.
    pub fn count(&self) -> Result<i64, SharedError> {
        match self {
            SharedValue::Count(count) => Ok(*count),
            SharedValue::Bytes(bytes) if bytes.len() <= MAX_DIGITS => {
                let text = std::str::from_utf8(bytes).map_err(|_| SharedError::OtherKind)?;
                let count: i64 = text.parse().map_err(|_| SharedError::OtherKind)?;
                if count.to_string() == text { Ok(count) } else { Err(SharedError::OtherKind) }
            }
            SharedValue::Bytes(_) | SharedValue::Bucket => Err(SharedError::OtherKind),
        }
    }
}
