//! Unix sockets of the admin listener: the folder and the name by which `plugway reload` finds a proxy, and binding
//! them without taking the place of a proxy that runs.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::process::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use crate::bind_error::BindError;

/// A bound unix socket. Its file is removed when this is dropped, unless another process has replaced it.
pub struct AdminSocket {
    pub listener: UnixListener,
    pub path: PathBuf,
    file: FileId,
}

/// The identity of a file, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// A folder where admin sockets may be.
struct Candidate {
    folder: PathBuf,
    /// Whether every user can create files beside the folder.
    is_in_shared_place: bool,
}

/// The folder of a process that runs as root.
const SYSTEM_FOLDER: &str = "/run/plugway";

/// Connections that wait to be accepted; as many as are served at once.
const BACKLOG: i32 = 64;

/// Another process holds the lock for a few system calls; more than this many rounds means that it was stopped.
const LOCK_ROUNDS: usize = 50;
const LOCK_ROUND: Duration = Duration::from_millis(10);

/// Sockets of the folder that are looked at, for those of processes that were killed. A machine runs fewer proxies.
pub const MOST_SOCKETS: usize = 256;

/// The longest extension that a socket's name has.
const EXTENSION: &str = "sock";

/// Returns the file name of the socket of a proxy: a digest of its manifest's path, or its process if it has none.
pub fn name_of(manifest: Option<&Path>) -> String {
    let Some(path) = manifest else { return format!("proxy-{}.{EXTENSION}", std::process::id()) };
    let canonical = path.canonicalize();
    let digest = blake3::hash(canonical.as_deref().unwrap_or(path).as_os_str().as_bytes());
    format!("{}.{EXTENSION}", &digest.to_hex()[..16])
}

/// Returns the folders where a proxy of this user may have its socket, the likeliest first.
pub fn folders() -> Vec<PathBuf> {
    let usable = candidates().into_iter().filter(|candidate| !candidate.is_in_shared_place || candidate.is_ours());
    let mut folders: Vec<PathBuf> = usable.map(|candidate| candidate.folder).collect();
    // The service of another user: its socket refuses us, with a better reason than that it isn't there.
    if !folders.iter().any(|folder| folder == Path::new(SYSTEM_FOLDER)) {
        folders.push(SYSTEM_FOLDER.into());
    }
    folders
}

/// Returns the admin sockets in a folder, a bounded number of them.
pub fn sockets_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().take(4 * MOST_SOCKETS);
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension() == Some(OsStr::new(EXTENSION)) && is_socket(path)).take(MOST_SOCKETS).collect()
}

/// Binds the socket of that name in the first folder that can be had.
pub async fn bind_default(name: &str) -> anyhow::Result<AdminSocket> {
    let mut reasons = Vec::new();
    for candidate in candidates() {
        let Candidate { folder, .. } = &candidate;
        match candidate.prepare() {
            Ok(()) => return bind_in(folder, name).await.with_context(|| folder.display().to_string()),
            Err(error) => reasons.push(format!("{}: {error:#}", folder.display())),
        }
    }
    Err(anyhow::anyhow!("there is no folder for it: {}", reasons.join("; ")))
}

/// Binds a path, replacing the socket of a process that has ended. Only the owner may connect.
pub fn bind(path: &Path) -> io::Result<AdminSocket> {
    if is_socket(path) && !is_live(path) {
        std::fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    // On Linux the file gets the mode of the socket, so that it is never open to others; elsewhere it is set below.
    let _ = rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let file = FileId::of(&std::fs::symlink_metadata(path)?);
    socket.listen(BACKLOG)?;
    Ok(AdminSocket { listener: UnixListener::from_std(socket.into())?, path: path.into(), file })
}

/// Whether a process listens at a socket. Never waits: one whose queue is full is alive.
pub fn is_live(path: &Path) -> bool {
    let connected = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
        .and_then(|socket| socket.connect(&SockAddr::unix(path)?));
    !connected.is_err_and(|error| matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
}

impl AdminSocket {
    /// Whether the path still leads to this socket: those who clean folders may have removed it.
    pub fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|found| FileId::of(&found) == self.file)
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Before the listener is closed: until then no other process takes the socket for a stale one.
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl FileId {
    fn of(found: &Metadata) -> Self {
        FileId { device: found.dev(), inode: found.ino() }
    }
}

/// The folders in their order: what the service manager made, root's, the session's, and one of our own among others'.
fn candidates() -> Vec<Candidate> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // systemd lists several folders with colons between them.
    let first = |path: PathBuf| path.as_os_str().as_bytes().split(|byte| *byte == b':').next().map(path_of);
    let own = |folder| Candidate { folder, is_in_shared_place: false };
    let managed = absolute("RUNTIME_DIRECTORY").and_then(first).map(own);
    let system = geteuid().is_root().then(|| own(SYSTEM_FOLDER.into()));
    let session = absolute("XDG_RUNTIME_DIR").map(|folder| own(folder.join("plugway")));
    let temporary = std::env::temp_dir().join(format!("plugway-{}", geteuid().as_raw()));
    let temporary = Candidate { folder: temporary, is_in_shared_place: true };
    managed.into_iter().chain(system).chain(session).chain([temporary]).collect()
}

fn path_of(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}

impl Candidate {
    /// Makes the folder if it isn't there; an error if others could put sockets into it.
    fn prepare(&self) -> anyhow::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        anyhow::ensure!(self.is_ours(), "others can write there, or it is another user's");
        Ok(())
    }

    /// Whether the folder is there and only its owner, which is us, can put files into it.
    fn is_ours(&self) -> bool {
        // In a place where everyone may put links, a link may be anyone's.
        let shared = self.is_in_shared_place;
        let found = if shared { std::fs::symlink_metadata(&self.folder) } else { std::fs::metadata(&self.folder) };
        found.is_ok_and(|found| {
            found.is_dir() && found.uid() == geteuid().as_raw() && found.permissions().mode() & 0o022 == 0
        })
    }
}

async fn bind_in(folder: &Path, name: &str) -> anyhow::Result<AdminSocket> {
    // Two processes that find the same stale socket at once would remove each other's new one.
    let _lock = lock(folder).await?;
    sockets_in(folder).iter().filter(|path| !is_live(path)).for_each(|path| drop(std::fs::remove_file(path)));
    bind(&folder.join(name)).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!("another process serves the same manifest"),
        _ => BindError::unix(&folder.join(name), error).into(),
    })
}

async fn lock(folder: &Path) -> anyhow::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let file = file.open(folder.join("lock"))?;
    for _ in 0..LOCK_ROUNDS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_ROUND).await,
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    Err(anyhow::anyhow!("another process holds the lock of the folder"))
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}
