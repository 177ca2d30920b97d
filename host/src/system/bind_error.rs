//! The reasons why the system refuses to bind an address, each with a remedy.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::files;

/// An address that can't be bound, with the reason.
#[derive(Debug, thiserror::Error)]
pub struct BindFailure {
    /// The reason, without the address, which the caller names.
    reason: String,
    source: io::Error,
}

/// The maximum length of a path in the address of a unix socket, in bytes, without the byte that ends it.
#[cfg(target_os = "linux")]
pub const MAX_SOCKET_PATH_BYTES: usize = 107;
#[cfg(not(target_os = "linux"))]
pub const MAX_SOCKET_PATH_BYTES: usize = 103;

impl BindFailure {
    /// Explains why a TCP address can't be bound.
    pub fn tcp(address: SocketAddr, source: io::Error) -> Self {
        let port = address.port();
        let reason = match source.raw_os_error() {
            Some(libc::EADDRINUSE) => format!(
                "port {port} is in use: stop the process that listens there (`ss -ltnp 'sport = :{port}'` shows it), or choose \
                 another port"
            ),
            Some(libc::EACCES) if port < FIRST_FREE_PORT => format!(
                "port {port} needs a privilege: add `AmbientCapabilities=CAP_NET_BIND_SERVICE` to the systemd unit, run \
                 `setcap cap_net_bind_service=+ep` on the program, or choose a port from {FIRST_FREE_PORT} on"
            ),
            Some(libc::EACCES | libc::EPERM) => format!(
                "a rule of this system forbids it ({source}): look for it in SELinux, AppArmor or the container's profile"
            ),
            Some(libc::EADDRNOTAVAIL) => format!(
                "this machine has no address {}: choose one that `ip address` shows, or {} for all",
                address.ip(),
                if address.is_ipv4() { "0.0.0.0" } else { "[::]" }
            ),
            Some(libc::EAFNOSUPPORT) => {
                let (family, other) = if address.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
                format!("this machine has no {family}: choose an address of {other}")
            }
            Some(libc::EINVAL) if address.is_ipv6() => {
                "an address of one link needs the number of its interface, as in `[fe80::1%2]:80`".into()
            }
            _ => of_any(&source),
        };
        BindFailure { reason, source }
    }

    /// Explains why the path of a unix socket can't be bound.
    pub fn unix(path: &Path, source: io::Error) -> Self {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let in_folder = folder.display();
        let length = path.as_os_str().len();
        let reason = match source.raw_os_error() {
            _ if length > MAX_SOCKET_PATH_BYTES => format!(
                "the path has {length} bytes, and that of a unix socket has at most {MAX_SOCKET_PATH_BYTES}: choose a shorter one"
            ),
            Some(libc::EADDRINUSE | libc::EISDIR) => in_the_way(path),
            Some(libc::ENOENT) => match files::missing(folder) {
                Some(missing) => format!("there is no folder `{}`: create it", missing.display()),
                None => of_any(&source),
            },
            Some(libc::ENOTDIR) => format!("`{in_folder}` is no folder, or leads through a file: choose another path"),
            Some(libc::EACCES | libc::EPERM) if is_socket(path) => format!(
                "a socket is there, and the user that runs the proxy may not use or replace it: remove it, or allow that \
                 user to write in `{in_folder}`"
            ),
            Some(libc::EACCES | libc::EPERM) => format!(
                "the user that runs the proxy may not create files in `{in_folder}`: allow it, or choose another folder"
            ),
            Some(libc::EROFS) => format!("`{in_folder}` is read-only: choose another folder, such as one below `/run`"),
            Some(libc::ENOSPC | libc::EDQUOT) => format!("there is no room in `{in_folder}`: free some"),
            Some(libc::ELOOP) => format!("the links in `{}` lead in a circle: choose another path", path.display()),
            _ => of_any(&source),
        };
        BindFailure { reason, source }
    }
}

/// Returns what is at the path of a unix socket, if it is no socket, so that binding would fail; `None` if there is
/// nothing else.
pub fn obstacle(path: &Path) -> Option<String> {
    let folder = path.parent()?;
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => Some(in_the_way(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            files::missing(folder).map(|missing| format!("there is no folder `{}`: create it", missing.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Some(BindFailure::unix(path, error).reason),
        _ => None,
    }
}

impl fmt::Display for BindFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Returns a reason that is independent of the address.
fn of_any(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            "this process has no file descriptor left: raise LimitNOFILE= of the systemd unit, or `ulimit -n`".into()
        }
        Some(libc::ENFILE) => "this machine has no file descriptor left: raise `fs.file-max`".into(),
        Some(libc::ENOBUFS | libc::ENOMEM) => "this machine has no memory left for a socket: free some".into(),
        _ => error.to_string(),
    }
}

/// Returns the reason for a path that exists already.
fn in_the_way(path: &Path) -> String {
    let metadata = std::fs::symlink_metadata(path).map(|metadata| metadata.file_type());
    match metadata {
        Ok(kind) if kind.is_socket() => {
            "another process listens there: stop it, or choose another path for one of the two".into()
        }
        Ok(kind) if kind.is_dir() => "a folder is there: choose the path of a file in it".into(),
        Ok(kind) if kind.is_symlink() => "a link is there, and no socket: remove it, or choose another path".into(),
        Ok(_) => "a file is there that is no socket: remove it if nothing needs it, or choose another path".into(),
        Err(error) => format!("something is there that can't be looked at ({error}): choose another path"),
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// The first port that needs no privilege, unless `net.ipv4.ip_unprivileged_port_start` is different.
const FIRST_FREE_PORT: u16 = 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn tcp(address: &str, errno: i32) -> String {
        BindFailure::tcp(address.parse().unwrap(), io::Error::from_raw_os_error(errno)).to_string()
    }

    #[test]
    fn each_errno_of_tcp_has_its_reason_and_remedy() {
        for (address, errno, what) in [
            ("0.0.0.0:80", libc::EADDRINUSE, "port 80 is in use: stop the process"),
            ("0.0.0.0:80", libc::EACCES, "port 80 needs a privilege: add `AmbientCapabilities="),
            ("0.0.0.0:8080", libc::EACCES, "a rule of this system forbids it (Permission denied"),
            ("192.0.2.1:80", libc::EADDRNOTAVAIL, "this machine has no address 192.0.2.1: choose one"),
            ("[2001:db8::1]:80", libc::EADDRNOTAVAIL, "or [::] for all"),
            ("[::]:80", libc::EAFNOSUPPORT, "this machine has no IPv6: choose an address of IPv4"),
            ("[fe80::1]:80", libc::EINVAL, "as in `[fe80::1%2]:80`"),
            ("0.0.0.0:80", libc::EMFILE, "this process has no file descriptor left: raise LimitNOFILE="),
        ] {
            assert!(tcp(address, errno).contains(what), "{address}, {errno}: {}", tcp(address, errno));
        }
    }

    #[test]
    fn each_obstacle_of_a_path_has_its_reason_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        let _live = UnixListener::bind(at("live")).unwrap();
        let long = "x".repeat(120);
        for (name, what) in [
            ("file", "a file is there that is no socket: remove it"),
            ("folder", "a folder is there: choose the path of a file in it"),
            ("link", "a link is there, and no socket"),
            ("live", "another process listens there"),
            ("missing/deep/a.sock", "/missing`: create it"),
            ("file/a.sock", "is no folder, or leads through a file"),
            (long.as_str(), "and that of a unix socket has at most"),
        ] {
            let error = UnixListener::bind(at(name)).unwrap_err();
            let reason = BindFailure::unix(&at(name), error).to_string();
            assert!(reason.contains(what), "{name}: {reason}");
        }
    }
}
