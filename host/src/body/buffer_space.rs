//! The memory and the disk that bodies may occupy while they wait for a slower peer: their use, their limits, and the
//! reservations of single bodies.
#![expect(clippy::disallowed_methods, reason = "the pauses of warnings and files hold over all workers")]

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::net::waiting_bytes::WaitingBytes;
use crate::system::descriptor_shares::{self, DescriptorUse, WorkerDescriptors};
use crate::system::holder_counts::{Holder, HolderCounts};

/// The bytes that waiting bodies occupy, over all workers. It outlives generations.
#[derive(Debug, Default)]
pub struct BufferUse {
    memory: AtomicU64,
    files: AtomicU64,
    /// The bytes of responses that were made here and wait, by route and client.
    made: HolderCounts,
    /// The number of bodies that were put into a file.
    spills: AtomicU64,
    /// The number of bodies that could not be put into a file.
    refusals: AtomicU64,
    /// The time until which no file is written, because a write has failed, in seconds since the first use.
    rests_until: AtomicU64,
    /// The time until which no further warning is logged, in seconds since the first use.
    quiet_until: AtomicU64,
}

/// The limits of waiting bodies, over all workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferLimits {
    /// The maximum number of bytes in memory.
    pub memory: u64,
    /// The maximum number of bytes in files.
    pub disk: u64,
    /// The folder of the files.
    pub folder: Arc<Path>,
}

/// The room for waiting bodies, as a worker sees it in a generation.
#[derive(Debug)]
pub struct BufferSpace {
    usage: Arc<BufferUse>,
    pub limits: BufferLimits,
    /// The descriptors that the worker's exchanges use.
    descriptors: WorkerDescriptors,
}

/// The memory that one body has reserved. Dropping it releases the memory.
#[derive(Debug)]
pub struct MemoryShare {
    space: Rc<BufferSpace>,
    /// The bytes that wait for the client of the body; `None` if the body waits for no client.
    client: Option<Arc<WaitingBytes>>,
    bytes: u64,
}

/// The bytes that one body occupies in its file. Dropping it releases them.
#[derive(Debug)]
pub struct FileShare {
    usage: Arc<BufferUse>,
    bytes: AtomicU64,
}

/// The bytes of a route's responses that were made here and wait for their clients.
#[derive(Clone, Debug, Default)]
pub struct RouteMade(Arc<AtomicU64>);

/// The memory of a response that was made here. Dropping it releases the memory.
#[derive(Debug)]
pub struct MadeMemory {
    usage: Arc<BufferUse>,
    route: RouteMade,
    /// The client, among those of the route.
    client: Holder,
    bytes: u64,
    /// The maximum number of bytes that may wait in memory, of all bodies.
    max: u64,
}

/// The purpose for which memory is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPurpose {
    /// The body waits in memory.
    Wait,
    /// The body passes through memory on its way into a file.
    Pass,
}

/// The part of the memory that a single body may wait in: sixteen slow peers don't keep the memory from others. All uploads
/// of a connection that are read early may wait in this part of memory and disk.
const SHARE: u64 = 16;

/// The part of the memory in which no body waits, so that bodies can always pass to their files.
const PASSAGE: u64 = 4;

/// The memory in which a single body may pass to its file, in bytes: a write, and the bytes that arrive during it.
const MAX_PASSING: u64 = 1 << 20;

/// The cost of a piece besides its bytes, so that a body of many tiny pieces is bounded too.
const PIECE_OVERHEAD: u64 = 64;

/// The part that a route's made responses may take of what everything else leaves, and those of a client of what the route's
/// other clients leave of that: three quarters. However slowly the clients of a route take them, other routes find room, and
/// however slowly one client does, so do other clients.
const MADE_PART: (u64, u64) = (3, 4);

/// The pause after a failed write, during which no file is begun.
const REST: Duration = Duration::from_secs(10);

/// The time between two warnings.
const QUIET: Duration = Duration::from_secs(60);

impl BufferUse {
    /// Returns the number of bytes that wait in memory.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes in files.
    pub fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    /// Returns the number of bodies that were put into a file.
    pub fn spills(&self) -> u64 {
        self.spills.load(Ordering::Relaxed)
    }

    /// Returns the number of bodies that could not be put into a file.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }
}

impl BufferSpace {
    pub fn new(usage: Arc<BufferUse>, limits: BufferLimits, descriptors: WorkerDescriptors) -> Rc<Self> {
        Rc::new(BufferSpace { usage, limits, descriptors })
    }

    /// Counts a response that was made here for a client, of which nothing can wait in a file; `None` if there is no memory
    /// left.
    pub fn count_made(&self, bytes: usize, route: &RouteMade, client: Holder) -> Option<MadeMemory> {
        let mut made = self.made_memory(route, client, self.limits.memory);
        made.grow(bytes).then_some(made)
    }

    /// Returns the memory, which is empty, for a response that will be made here for a client. It leaves bodies the memory in
    /// which they pass to their files.
    pub fn memory_for_made(&self, route: &RouteMade, client: Holder) -> MadeMemory {
        self.made_memory(route, client, self.limits.memory - self.limits.memory / PASSAGE)
    }

    fn made_memory(&self, route: &RouteMade, client: Holder, max: u64) -> MadeMemory {
        let client = client.within(Arc::as_ptr(&route.0) as u64);
        MadeMemory { usage: self.usage.clone(), route: route.clone(), client, bytes: 0, max }
    }

    /// Returns the number of bytes that may be read early of all uploads of one client connection.
    pub fn connection_share(&self) -> u64 {
        self.limits.memory.saturating_add(self.limits.disk) / SHARE
    }

    /// Whether a file may be begun.
    pub fn may_spill(&self) -> bool {
        self.limits.disk > 0 && self.usage.rests_until.load(Ordering::Relaxed) <= seconds()
    }

    /// Takes the descriptor of a file; `None` if bodies have their part of the descriptors.
    pub fn descriptor(&self) -> Option<DescriptorUse> {
        let taken = self.descriptors.take(Holder::BUFFERS);
        if taken.is_none() {
            self.usage.refusals.fetch_add(1, Ordering::Relaxed);
            if self.may_warn() {
                let limit = descriptor_shares::LIMIT;
                warn!(limit, "files of bodies for slow peers use their part: endpoints wait for slow clients");
            }
        }
        taken
    }

    /// Counts a body that is put into a file from now on.
    pub fn record_spill(&self) {
        self.usage.spills.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that there is no room for files.
    pub fn record_full(&self) {
        self.usage.refusals.fetch_add(1, Ordering::Relaxed);
        if self.may_warn() {
            let (limit, bytes) = ("buffers.disk", self.limits.disk);
            warn!(limit, bytes, "bodies for slow peers fill all room on disk: endpoints wait for slow clients");
        }
    }

    /// Records that a file can't be written or read, and suspends writing for a while.
    pub fn record_failure(&self, error: &io::Error) {
        self.usage.refusals.fetch_add(1, Ordering::Relaxed);
        self.usage.rests_until.store(seconds() + REST.as_secs(), Ordering::Relaxed);
        if self.may_warn() {
            let (limit, folder) = ("buffers.folder", self.limits.folder.display());
            warn!(limit, %folder, %error, "bodies can't be buffered on disk: endpoints wait for slow clients");
        }
    }

    /// Records that a write has taken too long.
    pub fn record_slow_write(&self, took: Duration) {
        if self.may_warn() {
            let (limit, folder) = ("buffers.folder", self.limits.folder.display());
            warn!(limit, %folder, ?took, "the disk for buffered bodies is slow: endpoints wait for slow clients");
        }
    }

    fn may_warn(&self) -> bool {
        let now = seconds();
        let quiet = &self.usage.quiet_until;
        let until = quiet.load(Ordering::Relaxed);
        until <= now
            && quiet.compare_exchange(until, now + QUIET.as_secs(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl MemoryShare {
    /// Returns an empty share.
    pub fn new(space: &Rc<BufferSpace>) -> Self {
        MemoryShare { space: space.clone(), client: None, bytes: 0 }
    }

    /// Counts the share among the bytes that wait for a client. Requires that the share is empty.
    pub fn count_for(&mut self, client: &Arc<WaitingBytes>) {
        self.client = Some(client.clone());
    }

    /// Returns the space that the share is a part of.
    pub fn space(&self) -> &Rc<BufferSpace> {
        &self.space
    }

    /// Whether a piece of this many bytes fits into the memory that the body may use.
    pub fn has_room(&self, piece: usize, purpose: MemoryPurpose) -> bool {
        let (bytes, max) = (cost(piece), self.space.limits.memory);
        let (own, all) = match purpose {
            MemoryPurpose::Wait => (max / SHARE, max - max / PASSAGE),
            MemoryPurpose::Pass => (MAX_PASSING, max),
        };
        let is_within = self.bytes + bytes <= own && self.space.usage.memory() + bytes <= all;
        let of_client = self.client.as_ref().filter(|_| purpose == MemoryPurpose::Wait);
        is_within && of_client.is_none_or(|client| client.has_room(bytes))
    }

    /// Counts a piece that was put into the memory.
    pub fn add(&mut self, piece: usize) {
        self.count(cost(piece));
    }

    /// Counts bytes that make a piece longer.
    pub fn extend(&mut self, bytes: usize) {
        self.count(bytes as u64);
    }

    fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.space.usage.memory.fetch_add(bytes, Ordering::Relaxed);
        self.client.iter().for_each(|client| client.add(bytes));
    }

    /// Counts a piece that has left the memory.
    pub fn remove(&mut self, piece: usize) {
        self.remove_all(1, piece as u64);
    }

    /// Counts pieces that have left the memory, with their bytes in all.
    pub fn remove_all(&mut self, pieces: usize, bytes: u64) {
        let bytes = (bytes + pieces as u64 * PIECE_OVERHEAD).min(self.bytes);
        self.release(bytes);
    }

    fn release(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.space.usage.memory.fetch_sub(bytes, Ordering::Relaxed);
        self.client.iter().for_each(|client| client.remove(bytes));
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

impl MadeMemory {
    /// Counts more bytes. Returns whether there is memory for them, in the parts of the route and of the client.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let all = self.usage.memory.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let route = self.route.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let client = self.usage.made.add(self.client, bytes);
        self.bytes += bytes;
        let part = |left: u64| left / MADE_PART.1 * MADE_PART.0;
        let of_route = part(self.max.saturating_sub(all.saturating_sub(route)));
        let of_client = part(of_route.saturating_sub(route.saturating_sub(client)));
        let is_within = route <= of_route && client <= of_client;
        if !is_within {
            self.release(bytes);
        }
        is_within
    }

    /// Releases all memory but that of `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        self.release(self.bytes.saturating_sub(bytes as u64));
    }

    fn release(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.usage.memory.fetch_sub(bytes, Ordering::Relaxed);
        self.route.0.fetch_sub(bytes, Ordering::Relaxed);
        self.usage.made.remove(self.client, bytes);
    }
}

impl Drop for MadeMemory {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

impl FileShare {
    /// Returns an empty share.
    pub fn new(space: &BufferSpace) -> Self {
        FileShare { usage: space.usage.clone(), bytes: AtomicU64::new(0) }
    }

    /// Reserves more bytes. Returns whether that was possible.
    pub fn grow(&self, bytes: u64, limits: &BufferLimits) -> bool {
        let is_within = self.usage.files.fetch_add(bytes, Ordering::Relaxed) + bytes <= limits.disk;
        if is_within {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.usage.files.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_within
    }
}

impl Drop for FileShare {
    fn drop(&mut self) {
        self.usage.files.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// Returns the number of seconds since the first call.
fn seconds() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    BEGIN.get_or_init(Instant::now).elapsed().as_secs()
}

/// Returns the memory that a piece of this many bytes costs.
fn cost(piece: usize) -> u64 {
    piece as u64 + PIECE_OVERHEAD
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Returns a space with 16 MiB of memory and 16 MiB of files in a folder.
    pub fn space(folder: &Path) -> (Arc<BufferUse>, Rc<BufferSpace>) {
        let usage = Arc::new(BufferUse::default());
        let limits = BufferLimits { memory: 16 << 20, disk: 16 << 20, folder: folder.into() };
        (usage.clone(), BufferSpace::new(usage, limits, WorkerDescriptors::unlimited()))
    }

    #[test]
    fn bodies_share_the_memory_and_return_all_of_it() {
        let (usage, space) = space(Path::new("/"));
        let mut shares: Vec<MemoryShare> = (0..20).map(|_| MemoryShare::new(&space)).collect();
        for share in &mut shares {
            while share.has_room(100_000, MemoryPurpose::Wait) {
                share.add(100_000);
            }
            assert!(share.bytes <= 1 << 20);
        }
        assert!(usage.memory() <= 12 << 20 && usage.memory() > 11 << 20);
        assert!(shares[19].has_room(100_000, MemoryPurpose::Pass), "room to pass into files is left");
        shares[0].remove(100_000);
        shares[0].remove(100_000);
        assert!(shares[0].has_room(100_000, MemoryPurpose::Wait));
        drop(shares);
        assert_eq!(usage.memory(), 0);
    }

    #[test]
    fn responses_that_are_made_share_the_memory_and_return_all_of_it() {
        let (usage, space) = space(Path::new("/"));
        let (route, other) = (RouteMade::default(), RouteMade::default());
        let [client, second, third] = [1, 2, 3].map(Holder::numbered);
        let made: Vec<MadeMemory> = std::iter::from_fn(|| space.count_made(3 << 20, &route, client)).collect();
        assert_eq!((made.len(), usage.memory()), (3, 9 << 20));
        assert!(space.count_made(3 << 20, &route, second).is_none());
        let of_second = space.count_made(9 << 18, &route, second).expect("a client leaves others a part");
        let of_third = space.count_made(9 << 16, &route, third).expect("and so do two of them");
        assert!(space.count_made(4 << 20, &other, client).is_none());
        let of_other = space.count_made(2 << 20, &other, client).expect("a route leaves others a part");
        drop((made, of_second, of_third, of_other));
        let mut growing = space.memory_for_made(&route, client);
        assert!(growing.grow(1 << 20) && growing.grow(5 << 20) && !growing.grow(1 << 20), "bodies pass in the rest");
        growing.shrink(1 << 20);
        assert_eq!(usage.memory(), 1 << 20);
        drop(growing);
        assert_eq!(usage.memory(), 0);
    }

    #[test]
    fn files_share_the_disk_and_return_all_of_it() {
        let (usage, space) = space(Path::new("/"));
        let (one, other) = (FileShare::new(&space), FileShare::new(&space));
        assert!(one.grow(10 << 20, &space.limits) && !other.grow(7 << 20, &space.limits));
        assert!(other.grow(6 << 20, &space.limits));
        drop((one, other));
        assert_eq!(usage.files(), 0);
    }
}
