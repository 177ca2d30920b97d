//! Memory that the kernel can send without copying it: the pages of a file without a name. What lies there is written
//! once, read where it is mapped, and sent from the file; its pages are given back when nobody has it any more.
//!
//! A page that still waits in a socket is the socket's own by then: giving it back takes it out of the file, and what is
//! written to the same place later gets another page.

use bytes::Bytes;
#[cfg(not(target_os = "linux"))]
use elsewhere as system;
#[cfg(target_os = "linux")]
use linux as system;
pub use system::{place_of, send};

/// Shorter content is copied more cheaply than it is sent by a call of its own.
#[cfg(target_os = "linux")]
const LEAST: usize = 32 << 10;

/// Pieces put together, to stay: there if they are long enough.
pub fn joined(pieces: &[Bytes]) -> Bytes {
    system::keep(pieces).unwrap_or_else(|| pieces.concat().into())
}

/// Where the kernel has nothing of the kind, all is copied.
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

    /// All such memory of the process.
    struct Pages {
        file: File,
        /// Where it is mapped, all the time that the process lives.
        base: usize,
        free: Mutex<Free>,
    }

    #[derive(Default)]
    struct Free {
        /// Places that were given back, by the power of two of their length.
        places: [Vec<u64>; CLASSES],
        /// Beyond it nothing was ever used.
        end: u64,
    }

    /// A place in it, which is nobody else's.
    struct Extent {
        pages: &'static Pages,
        at: u64,
        class: usize,
        length: usize,
    }

    /// Addresses only: what isn't used takes no memory.
    const SPACE: usize = 64 << 30;

    /// The shortest places, and the longest: twice that of each class before.
    const SHORTEST: usize = super::LEAST;
    const CLASSES: usize = 6;

    /// Puts pieces together there; none where that can't be, or their length is of no use there.
    pub fn keep(pieces: &[Bytes]) -> Option<Bytes> {
        let length = pieces.iter().map(Bytes::len).sum();
        let class = (0..CLASSES).find(|class| length <= SHORTEST << class).filter(|_| length >= SHORTEST)?;
        let extent = pages()?.take(class, length)?;
        let mut at = extent.at;
        for piece in pieces {
            extent.pages.file.write_all_at(piece, at).ok()?;
            at += piece.len() as u64;
        }
        Some(Bytes::from_owner(extent))
    }

    /// Where bytes lie in it, if they do, and are more than is copied.
    pub fn place_of(bytes: &[u8]) -> Option<u64> {
        if bytes.len() < super::LEAST {
            return None;
        }
        // Nobody has been given any before it was made.
        let pages = PAGES.get()?.as_ref()?;
        let at = (bytes.as_ptr() as usize).checked_sub(pages.base)?;
        (at < SPACE).then_some(at as u64)
    }

    /// Sends so many bytes from a place.
    pub fn send(socket: impl AsFd, at: u64, length: usize) -> io::Result<usize> {
        let pages = PAGES.get().and_then(Option::as_ref).ok_or(io::ErrorKind::Unsupported)?;
        let mut at = at;
        Ok(sendfile(socket, &pages.file, Some(&mut at), length)?)
    }

    static PAGES: OnceLock<Option<Pages>> = OnceLock::new();

    fn pages() -> Option<&'static Pages> {
        let made = PAGES.get_or_init(|| {
            let made = Pages::new();
            made.inspect_err(|error| tracing::info!(%error, "stored content is copied when it is sent")).ok()
        });
        made.as_ref()
    }

    impl Pages {
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
            // SAFETY: nothing is mapped over, and the mapping stays for as long as the process lives.
            let base = unsafe { mmap(std::ptr::null_mut(), SPACE, ProtFlags::READ, flags, &file, 0) }?;
            Ok(Pages { file, base: base as usize, free: Mutex::default() })
        }

        fn take(&'static self, class: usize, length: usize) -> Option<Extent> {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let at = match free.places[class].pop() {
                Some(at) => at,
                None => {
                    let (at, end) = (free.end, free.end + (SHORTEST << class) as u64);
                    if end > SPACE as u64 {
                        return None;
                    }
                    free.end = end;
                    at
                }
            };
            Some(Extent { pages: self, at, class, length })
        }
    }

    /// Whether a page lies in one place only. A part of a larger one would be overwritten while it waits in a socket.
    fn are_pages_small() -> bool {
        let of_all = Path::new("/sys/kernel/mm/transparent_hugepage");
        let mut of_each_size = std::fs::read_dir(of_all).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_off = |folder: &Path| {
            // Where there is no such file, there are no such pages.
            let setting = std::fs::read_to_string(folder.join("shmem_enabled")).unwrap_or_default();
            ["[always]", "[within_size]", "[force]"].iter().all(|on| !setting.contains(on))
        };
        rustix::param::page_size() <= SHORTEST && is_off(of_all) && of_each_size.all(|size| is_off(&size))
    }

    impl AsRef<[u8]> for Extent {
        fn as_ref(&self) -> &[u8] {
            let start = (self.pages.base + self.at as usize) as *const u8;
            #[expect(
                unsafe_code,
                reason = "the place is this extent's alone, and isn't written to once it is given out"
            )]
            // SAFETY: it lies within the mapping, which is never undone, and its bytes stay as they are until the drop.
            unsafe {
                std::slice::from_raw_parts(start, self.length)
            }
        }
    }

    impl Drop for Extent {
        fn drop(&mut self) {
            let length = (SHORTEST << self.class) as u64;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A place whose pages the file still has must not be used again: sockets may have them too.
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
            let kept = keep(&pieces).unwrap();
            assert!(kept[..40_000].iter().all(|byte| *byte == 1) && kept[40_000..].iter().all(|byte| *byte == 2));
            let at = place_of(&kept).unwrap();
            assert_eq!(place_of(&kept[100..]), Some(at + 100));
            assert_eq!((kept.len(), place_of(&pieces[0])), (70_000, None));
            let part = kept.slice(50_000..);
            drop(kept);
            assert!(part.iter().all(|byte| *byte == 2), "a part keeps all of it");
            assert!(keep(&[Bytes::from(vec![0; 100])]).is_none(), "too short");
            assert!(keep(&[Bytes::from(vec![0; 2 << 20])]).is_none(), "too long");
        }

        #[test]
        fn what_waits_in_a_socket_outlasts_its_place() {
            use std::io::Read;
            use std::os::unix::net::UnixStream;
            let (sender, mut receiver) = UnixStream::pair().unwrap();
            let length = 64 << 10;
            let first = keep(&[Bytes::from(vec![1; length])]).unwrap();
            let sent = send(&sender, place_of(&first).unwrap(), length).unwrap();
            drop(first);
            // More than enough for the same place to be taken again.
            let others: Vec<Bytes> = (0..64).map(|_| keep(&[Bytes::from(vec![2; length])]).unwrap()).collect();
            let mut came = vec![0; sent];
            receiver.read_exact(&mut came).unwrap();
            assert!(sent > 0 && came.iter().all(|byte| *byte == 1));
            drop(others);
        }
    }
}
