//! The descriptors that exchanges use: their connections to endpoints and their files. Each client may have a part of them,
//! so that none can take the descriptors that others need.

use std::fs::File;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::descriptors::Descriptors;
use super::holder_counts::{Holder, HolderCounts};

/// The descriptors of the process that clients and exchanges use.
#[derive(Debug)]
pub struct DescriptorShares {
    /// The descriptors of the process; unset before it serves, and where nothing is limited.
    limit: OnceLock<Descriptors>,
    /// The number of client connections.
    clients: AtomicUsize,
    workers: Vec<Arc<WorkerCounts>>,
    /// How often a descriptor was missing.
    shortages: AtomicUsize,
}

/// The descriptors of the exchanges of one worker.
#[derive(Clone, Debug)]
pub struct WorkerDescriptors {
    shares: Arc<DescriptorShares>,
    own: Arc<WorkerCounts>,
}

/// The use of a descriptor by an exchange, until dropped.
#[derive(Debug)]
pub struct DescriptorUse {
    counts: Arc<WorkerCounts>,
    holder: Holder,
}

/// An open file whose descriptor counts for a holder.
#[derive(Debug)]
pub struct CountedFile {
    file: File,
    _descriptor: DescriptorUse,
}

// Aligned, so that workers share no line of a cache.
#[derive(Debug, Default)]
#[repr(align(128))]
struct WorkerCounts {
    all: AtomicU64,
    by_holder: HolderCounts,
}

/// The key of the limit in errors.
pub const LIMIT: &str = "descriptors";

/// The cause of an exchange's error if its client has no part of the descriptors left.
pub const PART_IN_USE: &str = "the client's requests use their part of the file descriptors (`ulimit -n`)";

/// The part that a holder may have of what all others leave.
const PART: (u64, u64) = (3, 4);

/// The part of the descriptors that is for holders with few of them, one in `RESERVE`: however many others have taken their
/// parts, a further client is served.
const RESERVE: u64 = 16;

/// The number of descriptors up to which a holder has few: the requests of a page that is loaded.
const FEW: u64 = 4;

/// The part of the descriptors that the workers use without a look at each other, one in `UNCHECKED`: less than what is
/// reserved for other uses.
const UNCHECKED: u64 = 32;

impl DescriptorShares {
    /// Returns the descriptors of a process with this number of workers, of which none is used yet.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(DescriptorShares {
            limit: OnceLock::new(),
            clients: AtomicUsize::new(0),
            workers: (0..workers).map(|_| Arc::default()).collect(),
            shortages: AtomicUsize::new(0),
        })
    }

    /// Sets the descriptors of the process.
    pub fn limit(&self, descriptors: Descriptors) {
        let _ = self.limit.set(descriptors);
    }

    /// Returns the descriptors of the process; `None` before they are set.
    pub fn descriptors(&self) -> Option<Descriptors> {
        self.limit.get().copied()
    }

    /// Returns the part of a worker.
    pub fn worker(self: &Arc<Self>, worker: usize) -> WorkerDescriptors {
        WorkerDescriptors { shares: self.clone(), own: self.workers[worker].clone() }
    }

    /// Counts a client connection.
    pub fn enter_client(&self) {
        self.clients.fetch_add(1, Ordering::Relaxed);
    }

    /// Uncounts a client connection.
    pub fn leave_client(&self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of client connections.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Returns how often a descriptor was missing: idle connections are closed then.
    pub fn shortages(&self) -> usize {
        self.shortages.load(Ordering::Relaxed)
    }

    /// Returns the number of descriptors that exchanges may use; `None` if there is no limit.
    fn room(&self) -> Option<u64> {
        self.limit.get().map(|limit| limit.exchanges(self.clients()) as u64)
    }

    /// Returns the number of descriptors that exchanges use, over all workers.
    fn used(&self) -> u64 {
        self.workers.iter().map(|counts| counts.all.load(Ordering::Relaxed)).sum()
    }

    /// Whether a holder, which `own` has just counted, keeps within its part.
    fn is_within(&self, own: &WorkerCounts, holder: Holder) -> bool {
        let Some(room) = self.room() else { return true };
        if own.all.load(Ordering::Relaxed) * self.workers.len() as u64 <= room / UNCHECKED {
            return true;
        }
        let all = self.used();
        let of_holder: u64 = self.workers.iter().map(|counts| counts.by_holder.of(holder)).sum();
        let left = (room - room / RESERVE).saturating_sub(all.saturating_sub(of_holder));
        of_holder <= (left * PART.0).div_ceil(PART.1) || of_holder <= FEW && all <= room
    }
}

impl WorkerDescriptors {
    /// Returns descriptors without a limit, for a worker that serves no clients.
    pub fn unlimited() -> Self {
        DescriptorShares::new(1).worker(0)
    }

    /// Takes a descriptor for a holder; `None` if the holder has its part of them.
    pub fn take(&self, holder: Holder) -> Option<DescriptorUse> {
        let taken = self.count(holder);
        self.shares.is_within(&self.own, holder).then_some(taken)
    }

    /// Counts a descriptor that is open already.
    pub fn count(&self, holder: Holder) -> DescriptorUse {
        self.own.all.fetch_add(1, Ordering::Relaxed);
        self.own.by_holder.add(holder, 1);
        DescriptorUse { counts: self.own.clone(), holder }
    }

    /// Whether exchanges use less than half of the descriptors, so that a request may have one that it could do without.
    pub fn has_plenty(&self) -> bool {
        self.shares.room().is_none_or(|room| self.shares.used() < room / 2)
    }

    /// Records that a descriptor was missing.
    pub fn record_shortage(&self) {
        self.shares.shortages.fetch_add(1, Ordering::Relaxed);
    }
}

impl CountedFile {
    pub fn new(file: File, descriptor: DescriptorUse) -> Self {
        CountedFile { file, _descriptor: descriptor }
    }
}

impl Deref for CountedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for DescriptorUse {
    fn drop(&mut self) {
        self.counts.all.fetch_sub(1, Ordering::Relaxed);
        self.counts.by_holder.remove(self.holder, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(worker: &WorkerDescriptors, holder: Holder) -> Vec<DescriptorUse> {
        std::iter::from_fn(|| worker.take(holder)).collect()
    }

    #[test]
    fn a_holder_leaves_a_quarter_to_all_others() {
        let shares = DescriptorShares::new(2);
        shares.limit(Descriptors { limit: 1024, own: 24 });
        let (one, other) = (shares.worker(0), shares.worker(1));
        let room = shares.room().unwrap() as usize;
        let first = take_all(&one, Holder::numbered(1));
        assert!(first.len() <= room * 3 / 4 && first.len() > room / 2, "{} of {room}", first.len());
        assert!(other.take(Holder::numbered(1)).is_some(), "a few are not checked");
        let second = take_all(&other, Holder::numbered(2));
        assert!(second.len() >= room / 8 && first.len() + second.len() <= room, "{} of {room}", second.len());
        let all: Vec<_> = (3..2000).map(|number| take_all(&one, Holder::numbered(number))).collect();
        let used = first.len() + second.len() + all.iter().map(Vec::len).sum::<usize>();
        assert!(used <= room, "{used} of {room}");
        assert!(!one.has_plenty());
        drop((first, second, all));
        assert!(one.has_plenty() && take_all(&one, Holder::numbered(4)).len() > room / 2);
    }

    /// Five clients, each with three quarters of what the others left, left one thousandth to everyone else.
    #[test]
    fn clients_with_few_descriptors_find_some_beside_many_heavy_ones() {
        let shares = DescriptorShares::new(1);
        shares.limit(Descriptors { limit: 1024, own: 24 });
        let worker = shares.worker(0);
        let heavy: Vec<_> = (0..12).map(|number| take_all(&worker, Holder::numbered(number))).collect();
        // Another may be counted with a heavy one.
        let apart = (100..).map(Holder::numbered).filter(|holder| worker.own.by_holder.of(*holder) == 0);
        let light: Vec<_> = apart.take(10).collect();
        let light: Vec<_> = light.into_iter().filter_map(|holder| worker.take(holder)).collect();
        assert_eq!(light.len(), 10);
        drop(heavy);
    }

    #[test]
    fn clients_and_exchanges_share_the_descriptors() {
        let shares = DescriptorShares::new(1);
        shares.limit(Descriptors { limit: 1024, own: 24 });
        let worker = shares.worker(0);
        let before = take_all(&worker, Holder::UNKNOWN).len();
        (0..400).for_each(|_| shares.enter_client());
        let beside_clients = take_all(&worker, Holder::UNKNOWN).len();
        assert!(beside_clients < before - 200, "{before}, {beside_clients}");
        (0..400).for_each(|_| shares.leave_client());
        assert_eq!(take_all(&worker, Holder::UNKNOWN).len(), before);
    }

    #[test]
    fn without_a_limit_there_is_always_another() {
        let worker = WorkerDescriptors::unlimited();
        let uses: Vec<_> = (0..10_000).map(|_| worker.take(Holder::UNKNOWN).unwrap()).collect();
        assert!(worker.has_plenty() && uses.len() == 10_000);
    }
}
