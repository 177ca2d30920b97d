//! The folder of a site, and files opened beneath it: each is opened once, never through a link that leads out of the
//! folder, and what was opened is what is examined and read.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::site_path::SitePath;

/// An open folder that files are opened beneath.
#[derive(Debug)]
pub struct Root {
    folder: File,
    /// The device and the inode of the folder.
    identity: FileIdentity,
    lookup: PathLookup,
}

/// The device and the inode of a file, which no other file has at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

/// The way in which paths are looked up beneath a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathLookup {
    /// By the system, which follows links as long as they stay beneath the root; and without any wait if the names are in
    /// its memory.
    Quick,
    /// By the system, which may wait for a network or a user's file system.
    Beneath,
    /// Name by name, without following links: the system has no better way.
    NameByName,
}

/// Whether an operation may wait for a disk or a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Never,
    Allowed,
}

/// The kind of file at a path.
#[derive(Debug)]
pub enum Opened {
    /// A regular file.
    File(File, Metadata),
    Folder(File),
    /// A named pipe, a device or a socket.
    Other,
}

/// The reason why a path was not opened.
#[derive(Debug)]
pub enum OpenFailure {
    /// The answer needs a wait.
    WouldWait,
    /// There is no such file, or a link on the way leads out of the root.
    Absent,
    /// The user that runs the proxy may not read the file, or may not enter a folder on the way.
    Denied,
    /// The system failed, for lack of descriptors or by a damaged disk.
    Failed(io::Error),
}

/// The maximum number of attempts to open a path while files are renamed just when a link is followed.
const MAX_TRIES: usize = 32;

/// The flags for what is opened: a named pipe must not wait for a writer, nor may a terminal become the process's own.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// The flags for a folder that files are opened beneath. It may be one that can be entered and not be read.
#[cfg(target_os = "linux")]
const OF_FOLDER: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);
#[cfg(not(target_os = "linux"))]
const OF_FOLDER: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);

impl Root {
    /// Opens a folder.
    pub fn open(path: &Path) -> io::Result<Root> {
        let folder = File::from(rustix::fs::open(path, OF_FOLDER, Mode::empty())?);
        let identity = FileIdentity::of(&folder.metadata()?);
        let lookup = PathLookup::of(&folder);
        Ok(Root { folder, identity, lookup })
    }

    /// Whether the root is still the folder at this path: a folder, or a link to one, may have been put in its place.
    pub fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|found| FileIdentity::of(&found) == self.identity)
    }

    /// Opens what is at a path.
    pub fn find(&self, path: &SitePath, wait: Wait) -> Result<Opened, OpenFailure> {
        self.find_named(path.as_os_str(), wait)
    }

    /// Opens what is at a relative path.
    pub fn find_named(&self, path: &OsStr, wait: Wait) -> Result<Opened, OpenFailure> {
        if wait == Wait::Never && self.lookup != PathLookup::Quick {
            return Err(OpenFailure::WouldWait);
        }
        let file = self.open_beneath(path, wait).map_err(|error| OpenFailure::of(error, wait))?;
        let metadata = file.metadata().map_err(OpenFailure::Failed)?;
        Ok(match metadata.file_type() {
            found if found.is_file() => Opened::File(file, metadata),
            found if found.is_dir() => Opened::Folder(file),
            _ => Opened::Other,
        })
    }

    #[cfg(target_os = "linux")]
    fn open_beneath(&self, path: &OsStr, wait: Wait) -> Result<File, Errno> {
        use rustix::fs::{ResolveFlags, openat2};

        if self.lookup == PathLookup::NameByName {
            return self.open_by_names(path);
        }
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        if wait == Wait::Never {
            // Another file system may be mounted below, whose files can't be opened without a wait.
            let quick = beneath | ResolveFlags::CACHED | ResolveFlags::NO_XDEV;
            return openat2(&self.folder, path, FLAGS, Mode::empty(), quick).map(File::from);
        }
        let mut tries = 1;
        loop {
            match openat2(&self.folder, path, FLAGS, Mode::empty(), beneath) {
                Err(Errno::AGAIN) if tries < MAX_TRIES => tries += 1,
                opened => return opened.map(File::from),
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn open_beneath(&self, path: &OsStr, _: Wait) -> Result<File, Errno> {
        self.open_by_names(path)
    }

    /// Opens one folder after the other, none of which may be a link.
    fn open_by_names(&self, path: &OsStr) -> Result<File, Errno> {
        let mut names = path.as_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
        let is_folder = path.as_bytes().ends_with(b"/");
        let mut opened = File::from(openat(&self.folder, c".", OF_FOLDER, Mode::empty())?);
        while let Some(name) = names.next() {
            let flags = if names.peek().is_some() { OF_FOLDER } else { FLAGS };
            let flags = if is_folder { flags | OFlags::DIRECTORY } else { flags };
            opened = File::from(openat(&opened, OsStr::from_bytes(name), flags | OFlags::NOFOLLOW, Mode::empty())?);
        }
        Ok(opened)
    }
}

impl PathLookup {
    /// Tries how paths can be looked up beneath a folder: older systems lack a way, and some sandboxes forbid one.
    #[cfg(target_os = "linux")]
    fn of(folder: &File) -> PathLookup {
        use rustix::fs::{ResolveFlags, openat2};

        let works = |resolve| openat2(folder, c".", OF_FOLDER, Mode::empty(), resolve).is_ok();
        if !works(ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
            return PathLookup::NameByName;
        }
        let is_quick = works(ResolveFlags::BENEATH | ResolveFlags::CACHED) && is_on_local_disk(folder);
        if is_quick { PathLookup::Quick } else { PathLookup::Beneath }
    }

    #[cfg(not(target_os = "linux"))]
    fn of(_: &File) -> PathLookup {
        PathLookup::NameByName
    }
}

/// Whether a file is in a file system that asks no network and no other process: opening a file there, whose names are in
/// memory, doesn't wait.
#[cfg(target_os = "linux")]
fn is_on_local_disk(file: &File) -> bool {
    /// The numbers of ext4, XFS, Btrfs, F2FS, bcachefs, overlayfs, tmpfs, ramfs, SquashFS and EROFS, as `statfs(2)` has
    /// them.
    const LOCAL: [u32; 10] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0xf2f5_2010,
        0xca45_1a4e,
        0x794c_7630,
        0x0102_1994,
        0x8584_58f6,
        0x7371_7368,
        0xe0f5_e1e2,
    ];
    rustix::fs::fstatfs(file).is_ok_and(|found| LOCAL.contains(&(found.f_type as u32)))
}

impl FileIdentity {
    fn of(metadata: &Metadata) -> Self {
        FileIdentity { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl OpenFailure {
    fn of(error: Errno, wait: Wait) -> Self {
        match error {
            Errno::AGAIN | Errno::XDEV if wait == Wait::Never => OpenFailure::WouldWait,
            // A socket is no such device or address. A link that leads out is a path across devices, or a loop where no
            // link is followed.
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::NAMETOOLONG
            | Errno::LOOP
            | Errno::XDEV
            | Errno::NXIO
            | Errno::NODEV
            | Errno::ILSEQ
            | Errno::INVAL => OpenFailure::Absent,
            Errno::ACCESS | Errno::PERM => OpenFailure::Denied,
            other => OpenFailure::Failed(other.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Returns what a path leads to, as a word, however it is looked up.
    fn found(root: &Root, path: &str) -> &'static str {
        match root.find_named(OsStr::new(path), Wait::Allowed) {
            Ok(Opened::File(..)) => "file",
            Ok(Opened::Folder(_)) => "folder",
            Ok(Opened::Other) => "other",
            Err(OpenFailure::Absent) => "absent",
            Err(failure) => panic!("{path}: {failure:?}"),
        }
    }

    fn site() -> tempfile::TempDir {
        let site = tempfile::tempdir().unwrap();
        let at = |name: &str| site.path().join(name);
        std::fs::create_dir_all(at("root/folder")).unwrap();
        std::fs::write(at("secret"), "secret").unwrap();
        std::fs::write(at("root/file"), "file").unwrap();
        std::fs::write(at("root/folder/inner"), "inner").unwrap();
        symlink("folder/inner", at("root/inside")).unwrap();
        symlink("../secret", at("root/outside")).unwrap();
        symlink(at("secret"), at("root/absolute")).unwrap();
        symlink("..", at("root/above")).unwrap();
        symlink("loop", at("root/loop")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("root/pipe")).status().unwrap().success());
        site
    }

    #[test]
    fn nothing_is_opened_outside_the_root() {
        let site = site();
        let mut root = Root::open(&site.path().join("root")).unwrap();
        assert_ne!(root.lookup, PathLookup::NameByName, "the system has a better way");
        for lookup in [PathLookup::Beneath, PathLookup::NameByName] {
            root.lookup = lookup;
            let inside = if lookup == PathLookup::NameByName { "absent" } else { "file" };
            let cases = [
                (".", "folder"),
                ("file", "file"),
                ("folder", "folder"),
                ("folder/", "folder"),
                ("folder/inner", "file"),
                ("inside", inside),
                ("pipe", "other"),
                ("outside", "absent"),
                ("absolute", "absent"),
                ("above/secret", "absent"),
                ("above/root/file", "absent"),
                ("loop", "absent"),
                ("file/", "absent"),
                ("file/x", "absent"),
                ("none", "absent"),
            ];
            for (path, wanted) in cases {
                assert_eq!(found(&root, path), wanted, "{path} by {lookup:?}");
            }
        }
    }

    #[test]
    fn a_folder_that_becomes_a_link_never_leads_out() {
        let site = site();
        let (root, over) = (Root::open(&site.path().join("root")).unwrap(), AtomicBool::new(false));
        let (spare, place) = (site.path().join("root/spare"), site.path().join("root/place"));
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("secret"), "mine").unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::fs::rename(&place, &spare).unwrap();
                    symlink("..", &place).unwrap();
                    std::fs::remove_file(&place).unwrap();
                    std::fs::rename(&spare, &place).unwrap();
                }
            });
            let mut served = 0;
            while served < 2_000 {
                let Ok(Opened::File(file, _)) = root.find_named(OsStr::new("place/secret"), Wait::Allowed) else {
                    continue;
                };
                assert_eq!(io::read_to_string(file).unwrap(), "mine");
                served += 1;
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_folder_in_the_place_of_the_root_is_noticed() {
        let site = site();
        let path = site.path().join("root");
        let root = Root::open(&path).unwrap();
        assert!(root.is_at(&path));
        std::fs::rename(&path, site.path().join("old")).unwrap();
        assert!(!root.is_at(&path), "none is there");
        std::fs::create_dir(&path).unwrap();
        assert!(!root.is_at(&path), "another is there");
        assert_eq!(found(&root, "file"), "file", "a root stays open");
    }
}
