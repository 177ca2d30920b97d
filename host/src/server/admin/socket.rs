//! Unix sockets of the admin listener: the folder and the name by which `plugway reload` finds a proxy, and binding
//! that never replaces the socket of a running proxy.

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

use crate::system::bind_error::BindFailure;

/// A bound unix socket. Dropping it removes its file, unless another process has replaced the file.
pub struct AdminSocket {
    pub listener: UnixListener,
    pub path: PathBuf,
    file: FileId,
}

/// The identity of a file, independent of its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

/// A folder that may hold admin sockets.
struct Candidate {
    folder: PathBuf,
    /// Whether every user can create files in the parent folder.
    is_in_shared_place: bool,
}

/// The folder of a process that runs as root.
const SYSTEM_FOLDER: &str = "/run/plugway";

/// The length of the accept queue: the number of connections that are served at once.
const BACKLOG: i32 = 64;

/// The maximum number of attempts to lock. A process holds the lock for a few system calls; more attempts mean that it
/// was stopped.
const LOCK_ROUNDS: usize = 50;
const LOCK_ROUND: Duration = Duration::from_millis(10);

/// The maximum number of sockets that are examined in a folder. Killed processes leave sockets; a machine runs fewer
/// proxies.
pub const MAX_SOCKETS: usize = 256;

/// The longest extension of a socket's name.
const EXTENSION: &str = "sock";

/// Returns the file name of a proxy's socket: a digest of its manifest's path, or its process id if it has none.
pub fn name_of(manifest: Option<&Path>) -> String {
    let Some(path) = manifest else { return format!("proxy-{}.{EXTENSION}", std::process::id()) };
    let canonical = path.canonicalize();
    let digest = blake3::hash(canonical.as_deref().unwrap_or(path).as_os_str().as_bytes());
    format!("{}.{EXTENSION}", &digest.to_hex()[..16])
}

/// Returns the folders that may hold this user's socket, the likeliest first.
pub fn folders() -> Vec<PathBuf> {
    let usable = candidates().into_iter().filter(|candidate| !candidate.is_in_shared_place || candidate.is_ours());
    let mut folders: Vec<PathBuf> = usable.map(|candidate| candidate.folder).collect();
    // The service may run as another user: its socket rejects us, with a better reason than that the socket is missing.
    if !folders.iter().any(|folder| folder == Path::new(SYSTEM_FOLDER)) {
        folders.push(SYSTEM_FOLDER.into());
    }
    folders
}

/// Returns the admin sockets in a folder, up to a maximum number.
pub fn sockets_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().take(4 * MAX_SOCKETS);
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension() == Some(OsStr::new(EXTENSION)) && is_socket(path)).take(MAX_SOCKETS).collect()
}

/// Binds the socket of this name in the first folder that can be used.
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

/// Whether a process listens at a socket. Never waits: a process whose accept queue is full counts as alive.
pub fn is_live(path: &Path) -> bool {
    let connected = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
        .and_then(|socket| socket.connect(&SockAddr::unix(path)?));
    !connected.is_err_and(|error| matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
}

impl AdminSocket {
    /// Whether the path still leads to this socket: a cleanup of the folder may have removed the file.
    pub fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| FileId::of(&metadata) == self.file)
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Done before the listener is closed: until then no other process takes the socket for a stale one.
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl FileId {
    /// Returns the identity of a file.
    pub fn of(metadata: &Metadata) -> Self {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Returns the candidate folders in order: the service manager's, root's, the session's, and our own in a shared
/// folder.
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
    /// Creates the folder if it is missing; the error says that others could create sockets in it.
    fn prepare(&self) -> anyhow::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        anyhow::ensure!(self.is_ours(), "others can write there, or it is another user's");
        Ok(())
    }

    /// Whether the folder exists and only its owner, which is our user, can create files in it.
    fn is_ours(&self) -> bool {
        // In a shared folder, a link may belong to anyone.
        let shared = self.is_in_shared_place;
        let metadata = if shared { std::fs::symlink_metadata(&self.folder) } else { std::fs::metadata(&self.folder) };
        metadata.is_ok_and(|metadata| {
            metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.permissions().mode() & 0o022 == 0
        })
    }
}

async fn bind_in(folder: &Path, name: &str) -> anyhow::Result<AdminSocket> {
    // Two processes that find the same stale socket at once would remove each other's new one.
    let _lock = lock(folder).await?;
    sockets_in(folder).iter().filter(|path| !is_live(path)).for_each(|path| drop(std::fs::remove_file(path)));
    bind(&folder.join(name)).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!("another process serves the same manifest"),
        _ => BindFailure::unix(&folder.join(name), error).into(),
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
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}
