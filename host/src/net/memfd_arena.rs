//! An arena in a memfd, for bodies that the kernel sends without copying. An extent is written once, read through a
//! mapping, and sent from the file; its pages are freed when the last reference is dropped. A page that still waits in
//! a socket belongs to the socket by then: freeing the page removes it from the file, and later writes at the same
//! offset get another page.

use bytes::Bytes;
#[cfg(not(target_os = "linux"))]
use elsewhere as system;
#[cfg(target_os = "linux")]
use linux as system;
pub use system::{offset_of, send};

/// The minimum length of a body in the arena, in bytes: copying shorter ones costs less than a system call of their
/// own.
#[cfg(target_os = "linux")]
const MIN_BODY_BYTES: usize = 32 << 10;

/// Joins pieces for storage: in the arena if they are long enough.
pub fn join(pieces: &[Bytes]) -> Bytes {
    system::allocate(pieces).unwrap_or_else(|| pieces.concat().into())
}

/// The fallback for kernels without such files: all bytes are copied.
#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use std::io;

    use bytes::Bytes;

    pub fn keep(_: &[Bytes]) -> Option<Bytes> {
        None
    }

    pub fn place_of(_: &[u8]) -> Option<u64> {
        None
    }

    pub fn send<S>(_: S, _: u64, _: usize) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use bytes::Bytes;
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create, sendfile};
    use rustix::mm::{MapFlags, ProtFlags, mmap};

    /// The arena of the process.
    struct Arena {
        file: File,
        /// The address of the mapping, which lives as long as the process.
        base: usize,
        free: Mutex<Free>,
    }

    #[derive(Default)]
    struct Free {
        /// The offsets of freed extents, by the power of two of their length.
        places: [Vec<u64>; CLASSES],
        /// The end of the used part of the file, as an offset.
        end: u64,
    }

    /// A part of the file with one owner.
    struct ArenaExtent {
        pages: &'static Arena,
        at: u64,
        class: usize,
        length: usize,
    }

    /// The size of the mapping, in bytes. It reserves addresses only: unused parts take no memory.
    const SPACE: usize = 64 << 30;

    /// The length of the shortest extents, in bytes; each class is twice as long as the one before.
    const MIN_EXTENT_BYTES: usize = super::MIN_BODY_BYTES;
    const CLASSES: usize = 6;

    /// Joins pieces in the arena; `None` if that fails, or if their length does not fit the arena.
    pub fn allocate(pieces: &[Bytes]) -> Option<Bytes> {
        let length = pieces.iter().map(Bytes::len).sum();
        let class =
            (0..CLASSES).find(|class| length <= MIN_EXTENT_BYTES << class).filter(|_| length >= MIN_EXTENT_BYTES)?;
        let extent = pages()?.take(class, length)?;
        let mut at = extent.at;
        for piece in pieces {
            extent.pages.file.write_all_at(piece, at).ok()?;
            at += piece.len() as u64;
        }
        Some(Bytes::from_owner(extent))
    }

    /// Returns the offset of bytes in the file; `None` if they are not in the arena, or are so few that they are
    /// copied.
    pub fn offset_of(bytes: &[u8]) -> Option<u64> {
        if bytes.len() < super::MIN_BODY_BYTES {
            return None;
        }
        // Before the arena is created, no bytes are in it.
        let pages = PAGES.get()?.as_ref()?;
        let at = (bytes.as_ptr() as usize).checked_sub(pages.base)?;
        (at < SPACE).then_some(at as u64)
    }

    /// Sends `length` bytes of the file, beginning at the offset `at`.
    pub fn send(socket: impl AsFd, at: u64, length: usize) -> io::Result<usize> {
        let pages = PAGES.get().and_then(Option::as_ref).ok_or(io::ErrorKind::Unsupported)?;
        let mut at = at;
        Ok(sendfile(socket, &pages.file, Some(&mut at), length)?)
    }

    static PAGES: OnceLock<Option<Arena>> = OnceLock::new();

    fn pages() -> Option<&'static Arena> {
        let made = PAGES.get_or_init(|| {
            let made = Arena::new();
            made.inspect_err(|error| tracing::info!(%error, "stored content is copied when it is sent")).ok()
        });
        made.as_ref()
    }

    impl Arena {
        fn new() -> io::Result<Self> {
            if !are_pages_small() {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "the system's pages are too large"));
            }
            let file = File::from(memfd_create("plugway-cache", MemfdFlags::CLOEXEC)?);
            ftruncate(&file, SPACE as u64)?;
            let flags = MapFlags::SHARED | MapFlags::NORESERVE;
            #[expect(
                unsafe_code,
                reason = "a new mapping at a place of the kernel's choice, of a file that nobody shortens"
            )]
            // SAFETY: the mapping replaces no other, and stays for as long as the process lives.
            let base = unsafe { mmap(std::ptr::null_mut(), SPACE, ProtFlags::READ, flags, &file, 0) }?;
            Ok(Arena { file, base: base as usize, free: Mutex::default() })
        }

        fn take(&'static self, class: usize, length: usize) -> Option<ArenaExtent> {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let at = match free.places[class].pop() {
                Some(at) => at,
                None => {
                    let (at, end) = (free.end, free.end + (MIN_EXTENT_BYTES << class) as u64);
                    if end > SPACE as u64 {
                        return None;
                    }
                    free.end = end;
                    at
                }
            };
            Some(ArenaExtent { pages: self, at, class, length })
        }
    }

    /// Whether each page is freed on its own. A part of a larger page would be overwritten while it waits in a socket.
    fn are_pages_small() -> bool {
        let of_all = Path::new("/sys/kernel/mm/transparent_hugepage");
        let mut of_each_size = std::fs::read_dir(of_all).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_off = |folder: &Path| {
            // Without the setting, the kernel has no larger pages.
            let setting = std::fs::read_to_string(folder.join("shmem_enabled")).unwrap_or_default();
            ["[always]", "[within_size]", "[force]"].iter().all(|on| !setting.contains(on))
        };
        rustix::param::page_size() <= MIN_EXTENT_BYTES && is_off(of_all) && of_each_size.all(|size| is_off(&size))
    }

    impl AsRef<[u8]> for ArenaExtent {
        fn as_ref(&self) -> &[u8] {
            let start = (self.pages.base + self.at as usize) as *const u8;
            #[expect(
                unsafe_code,
                reason = "the place is this extent's alone, and isn't written to once it is given out"
            )]
            // SAFETY: the range is within the mapping, which is never undone, and its bytes don't change until the
            // drop.
            unsafe {
                std::slice::from_raw_parts(start, self.length)
            }
        }
    }

    impl Drop for ArenaExtent {
        fn drop(&mut self) {
            let length = (MIN_EXTENT_BYTES << self.class) as u64;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // An extent whose pages the file still has must not be reused: sockets may have these pages too.
            if fallocate(&self.pages.file, flags, self.at, length).is_ok() {
                let mut free = self.pages.free.lock().unwrap_or_else(PoisonError::into_inner);
                free.places[self.class].push(self.at);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_kept_is_read_and_given_back() {
            let pieces = [Bytes::from(vec![1; 40_000]), Bytes::from(vec![2; 30_000])];
            let extent = allocate(&pieces).unwrap();
            assert!(extent[..40_000].iter().all(|byte| *byte == 1) && extent[40_000..].iter().all(|byte| *byte == 2));
            let at = offset_of(&extent).unwrap();
            assert_eq!(offset_of(&extent[100..]), Some(at + 100));
            assert_eq!((extent.len(), offset_of(&pieces[0])), (70_000, None));
            let part = extent.slice(50_000..);
            drop(extent);
            assert!(part.iter().all(|byte| *byte == 2), "a part keeps all of it");
            assert!(allocate(&[Bytes::from(vec![0; 100])]).is_none(), "too short");
            assert!(allocate(&[Bytes::from(vec![0; 2 << 20])]).is_none(), "too long");
        }

        #[test]
        fn what_waits_in_a_socket_outlasts_its_place() {
            use std::io::Read;
            use std::os::unix::net::UnixStream;
            let (sender, mut receiver) = UnixStream::pair().unwrap();
            let length = 64 << 10;
            let first = allocate(&[Bytes::from(vec![1; length])]).unwrap();
            let sent = send(&sender, offset_of(&first).unwrap(), length).unwrap();
            drop(first);
            // Enough extents for the same offset to be reused.
            let others: Vec<Bytes> = (0..64).map(|_| allocate(&[Bytes::from(vec![2; length])]).unwrap()).collect();
            let mut came = vec![0; sent];
            receiver.read_exact(&mut came).unwrap();
            assert!(sent > 0 && came.iter().all(|byte| *byte == 1));
            drop(others);
        }
    }
}
