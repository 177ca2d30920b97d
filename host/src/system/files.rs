//! Files that a manifest names: each is opened once, has to be a regular file, and is read up to a maximum size of its
//! kind. Other types of file (a named pipe, a device, a folder) are an error: a reader would wait endlessly for a
//! pipe's writer, and a device such as `/dev/zero` never ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(target_os = "linux")]
use rustix::io::{ReadWriteFlags, preadv2};

/// A kind of file, with its maximum size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileKind {
    name: &'static str,
    max_bytes: u64,
}

/// The identity and the times of a file. A file in an equal state has not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileState {
    device: u64,
    number: u64,
    length: u64,
    /// The times of the last change of the content and of the file, in seconds and nanoseconds.
    times: [(i64, i64); 2],
}

/// A manifest. With 20,000 routes, it has some 2 MiB.
pub const MANIFEST: FileKind = FileKind { name: "a manifest", max_bytes: 4 << 20 };
/// A list of endpoints. With 50,000 endpoints, it has some 2 MiB.
pub const ENDPOINTS: FileKind = FileKind { name: "a list of endpoints", max_bytes: 4 << 20 };
/// A component. Components of JavaScript and Python contain their interpreters, with 12 to 20 MB.
pub const COMPONENT: FileKind = FileKind { name: "a component", max_bytes: 64 << 20 };
/// The compiled form of a component; see `MAX_SEALED_BYTES`.
pub const ARTIFACT: FileKind = FileKind { name: "a compiled component", max_bytes: 128 << 20 };
/// A file of certificates or keys; a system's whole list of authorities has some 220 KiB.
pub const PEM: FileKind = FileKind { name: "a file of certificates or keys", max_bytes: 1 << 20 };
/// A value that a string of a manifest refers to, such as a token or a list of networks.
pub const VALUE: FileKind = FileKind { name: "a value", max_bytes: 1 << 20 };
/// The file that marks a folder as that of a cache.
pub const MARKER: FileKind = FileKind { name: "the marker of a cache", max_bytes: 4 << 10 };
/// A stored response, whose size `[cache.disk] size` bounds.
pub const STORED: FileKind = FileKind { name: "a stored response", max_bytes: u64::MAX };
/// The body of a route's own response, which is held in memory and sent whole.
pub const RESPONSE: FileKind = FileKind { name: "the body of a response", max_bytes: 1 << 20 };
/// An error page, which is held in memory and sent whole.
pub const PAGE: FileKind = FileKind { name: "an error page", max_bytes: 1 << 20 };

/// The number of bytes that are read at once if a file isn't kept in memory.
const PIECE: usize = 64 << 10;

impl FileState {
    /// Returns the state of the file at a path, behind links.
    pub fn of(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = std::fs::metadata(path)?;
        let times = [(file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec())];
        Ok(FileState { device: file.dev(), number: file.ino(), length: file.len(), times })
    }
}

/// Opens a regular file for reading. Never waits for a writer of a named pipe.
pub fn open(path: &Path, kind: FileKind) -> io::Result<File> {
    let file = open_regular(OpenOptions::new().read(true), path)?;
    let metadata = file.metadata()?;
    if metadata.len() > kind.max_bytes { Err(kind.too_large()) } else { Ok(file) }
}

/// Opens or creates a regular file that is to be locked.
pub fn open_lock(path: &Path) -> io::Result<File> {
    open_regular(OpenOptions::new().create(true).truncate(false).read(true).write(true), path)
}

fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    match other_kind(file.metadata()?.file_type()) {
        Some(name) => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {name}, not a regular file"))),
        None => Ok(file),
    }
}

/// Returns the bytes of a file.
pub fn read(path: &Path, kind: FileKind) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed: a file may grow after its size was read.
    open(path, kind)?.take(kind.max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > kind.max_bytes { Err(kind.too_large()) } else { Ok(bytes) }
}

/// Returns the text of a file, which has to be UTF-8.
pub fn read_text(path: &Path, kind: FileKind) -> io::Result<String> {
    let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "it is no text in UTF-8");
    String::from_utf8(read(path, kind)?).map_err(invalid)
}

/// Creates a file that has no name: its bytes are freed when it is closed, however the process ends.
pub fn unlinked(folder: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    #[cfg(target_os = "linux")]
    match options.clone().custom_flags(libc::O_TMPFILE).open(folder) {
        // Some file systems have no such files.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {}
        created => return created,
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = folder.join(format!(".plugway-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let file = options.create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Fills a block from a file if the system has these bytes in memory, so that the read can't wait for a disk. Returns
/// whether the block was filled.
#[cfg(target_os = "linux")]
pub fn read_cached(file: &File, block: &mut [u8], at: u64) -> bool {
    let length = block.len();
    preadv2(file, &mut [io::IoSliceMut::new(block)], at, ReadWriteFlags::NOWAIT) == Ok(length)
}

/// Returns `false`, because this system can't read without waiting.
#[cfg(not(target_os = "linux"))]
pub fn read_cached(_: &File, _: &mut [u8], _: u64) -> bool {
    false
}

/// Explains why a file that a manifest names can't be read, and what to do.
pub fn unreadable(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("no such file: `{shown}`; paths are relative to the file that names them"),
        io::ErrorKind::PermissionDenied => no_permission(path),
        io::ErrorKind::NotADirectory => {
            format!("no such file: `{shown}`; its path leads through a file, where a folder is expected")
        }
        _ => format!("cannot read `{shown}`: {error}"),
    }
}

/// Explains a denied permission: of the file, or of a folder on the way to it, as Certbot creates them.
pub fn no_permission(path: &Path) -> String {
    let shown = path.display();
    let barred = path.ancestors().skip(1).filter(|folder| is_barred(folder)).last();
    match barred.filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => format!(
            "no permission to read `{shown}`: the user that runs plugway may not enter `{}`; allow it, such as by `chmod a+x`",
            folder.display()
        ),
        None => format!("no permission to read `{shown}`: allow it to the user that runs plugway"),
    }
}

/// Explains why a path is no folder, and what to do; `None` if it is one.
pub fn no_folder(path: &Path) -> Option<String> {
    let shown = path.display();
    match path.metadata() {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some(format!("`{shown}`: it is a file; expected a folder")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(no_permission(path)),
        Err(_) => Some(format!("`{shown}`: it does not exist; expected a folder")),
    }
}

/// Whether the user that runs the proxy may not enter a folder, so that no file in it can be opened.
pub fn is_barred(folder: &Path) -> bool {
    is_denied(std::fs::metadata(folder.join(".")))
}

fn is_denied(found: io::Result<std::fs::Metadata>) -> bool {
    found.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Explains why a file can't be written or created, or a folder, and what to do.
pub fn unwritable(path: &Path, error: &io::Error) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (shown, in_folder) = (path.display(), folder.display());
    match error.kind() {
        io::ErrorKind::NotFound => match missing(folder) {
            Some(missing) => format!("there is no folder `{}`: create it", missing.display()),
            None => format!("`{shown}` leads to a file that does not exist: correct the link"),
        },
        io::ErrorKind::PermissionDenied if path.exists() => format!(
            "the user that runs plugway may not write to `{shown}`: allow it, such as by `chown`, or choose another path"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "the user that runs plugway may not create files in `{in_folder}`: allow it, or choose another folder"
        ),
        io::ErrorKind::IsADirectory => {
            format!("a folder is there: expected a file, such as `{}`", path.join("access.log").display())
        }
        io::ErrorKind::NotADirectory => {
            format!("`{in_folder}` is no folder, or leads through a file: choose another path")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("`{in_folder}` is read-only: choose another folder, such as one below `/var`")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("there is no room in `{in_folder}`: free some")
        }
        _ => error.to_string(),
    }
}

/// Returns the uppermost missing folder on the way to a folder; `None` if all exist.
pub fn missing(folder: &Path) -> Option<&Path> {
    folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).last()
}

/// Checks without a change whether this process may create files in a folder.
pub fn check_writable(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)?)
}

/// Passes a file's bytes to `each` in pieces, and returns their number.
pub fn pieces(file: &mut File, kind: FileKind, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let (mut piece, mut total) = (vec![0; PIECE], 0);
    loop {
        let read = match file.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            return Ok(total);
        }
        total += read as u64;
        if total > kind.max_bytes {
            return Err(kind.too_large());
        }
        each(&piece[..read])?;
    }
}

/// Adds a file's bytes to a digest, or the error's text if the file can't be read.
pub fn update_digest(digest: &mut blake3::Hasher, path: &Path, kind: FileKind) {
    let read = open(path, kind).and_then(|mut file| {
        pieces(&mut file, kind, |piece| {
            digest.update(piece);
            Ok(())
        })
    });
    if let Err(error) = read {
        digest.update(error.to_string().as_bytes());
    }
    digest.update(&[0]);
}

impl FileKind {
    fn too_large(self) -> io::Error {
        let max = self.max_bytes >> 20;
        io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {max} MiB, the most for {}", self.name))
    }
}

/// Returns the name of a file's type; `None` if it is a regular file.
fn other_kind(file_type: std::fs::FileType) -> Option<&'static str> {
    if file_type.is_file() {
        None
    } else if file_type.is_dir() {
        Some("a folder")
    } else if file_type.is_fifo() {
        Some("a named pipe")
    } else if file_type.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: FileKind = FileKind { name: "a test file", max_bytes: 1 << 20 };

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let zero = folder.path().join("zero");
        std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, wanted) in [(&pipe, "a named pipe"), (&zero, "a device"), (&folder.path().to_path_buf(), "a folder")]
        {
            let error = read(path, SMALL).unwrap_err().to_string();
            assert_eq!(error, format!("it is {wanted}, not a regular file"));
        }
        read(&socket, SMALL).unwrap_err();
    }

    #[test]
    fn a_file_may_have_so_many_bytes_and_no_more() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        assert_eq!(read(file.path(), SMALL).unwrap().len(), 1 << 20);
        file.as_file().set_len((1 << 20) + 1).unwrap();
        assert_eq!(
            read(file.path(), SMALL).unwrap_err().to_string(),
            "it has more than 1 MiB, the most for a test file"
        );
    }

    #[test]
    fn a_file_that_grows_is_read_up_to_its_bound() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut opened = open(file.path(), SMALL).unwrap();
        file.as_file().set_len(2 << 20).unwrap();
        let mut read = 0;
        let error = pieces(&mut opened, SMALL, |piece| {
            read += piece.len();
            Ok(())
        });
        assert!(error.unwrap_err().to_string().starts_with("it has more than 1 MiB"));
        assert_eq!(read, 1 << 20);
    }
}
