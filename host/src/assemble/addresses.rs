//! The addresses of listeners, compared by their meaning, because one address can be written in several ways.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::config::diagnostic::{Diagnostics, Source};
use crate::system::bind_error::MAX_SOCKET_PATH_BYTES;

/// An address of a listener, as the manifest has it.
#[derive(Clone, Debug)]
pub struct ListenerAddress {
    /// The address as it is written.
    pub text: Arc<str>,
    /// Whether the listener speaks TLS.
    pub is_tls: bool,
    /// The mode of the file of a unix socket; `None` if the manifest has none.
    pub mode: Option<u32>,
    /// The place of the address in the manifest.
    pub place: ManifestPlace,
}

/// A position in a manifest, for errors that are found after the assembly.
#[derive(Clone, Debug)]
pub struct ManifestPlace {
    pub(super) source: Arc<Source>,
    pub(super) span: Range<usize>,
}

/// An address that a socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl ManifestPlace {
    /// Returns an error at this position; without the position if the manifest is no file, as on a command line.
    pub fn error(&self, message: &str) -> String {
        if !self.source.is_file {
            return message.into();
        }
        let mut problems = Diagnostics::default();
        problems.at(&self.source, self.span.clone(), message);
        problems.to_string()
    }
}

impl Address {
    /// Parses an address of a listener; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = "expected one such as `0.0.0.0:80`, `[::]:80` or `unix:/run/plugway.sock`";
        let Some(path) = text.strip_prefix("unix:") else {
            let address: SocketAddr = text.parse().map_err(|_| {
                let hint = hint(text).map_or(String::new(), |hint| format!("; write `{hint}`"));
                format!("invalid address to listen at: `{text}`; {expected}{hint}")
            })?;
            if address.ip().to_canonical() != address.ip() {
                let plain = SocketAddr::new(address.ip().to_canonical(), address.port());
                return Err(format!("invalid address to listen at: `{text}` is an address of IPv4; write `{plain}`"));
            }
            return Ok(Address::Tcp(address));
        };
        if !path.starts_with('/') {
            return Err(format!("invalid address to listen at: the path in `{text}` is relative; {expected}"));
        }
        if path.len() > MAX_SOCKET_PATH_BYTES {
            return Err(format!(
                "path of a unix socket too long: found {} bytes; expected {MAX_SOCKET_PATH_BYTES} at most, so choose a shorter one",
                path.len()
            ));
        }
        if path.ends_with(['/', '.']) && Path::new(path).file_name().is_none()
            || path.ends_with('/')
            || path.contains('\0')
        {
            return Err(format!("invalid address to listen at: `{text}` names no file; {expected}"));
        }
        // What `.` and empty segments mean is known without a look at the file system.
        let plain = Path::new(path).components().filter(|part| *part != Component::CurDir).collect();
        Ok(Address::Unix(plain))
    }

    /// Whether a connection to an address of an endpoint arrives at this listener, as far as the addresses tell.
    pub fn accepts(&self, endpoint: &Address) -> bool {
        match (self, endpoint) {
            (Address::Tcp(listener), Address::Tcp(endpoint)) => {
                let is_here =
                    listener.ip() == endpoint.ip() || listener.ip().is_unspecified() && endpoint.ip().is_loopback();
                is_here && listener.port() == endpoint.port() && listener.is_ipv4() == endpoint.is_ipv4()
            }
            _ => self == endpoint,
        }
    }

    /// Whether a socket at this address would receive connections that another one at the other address should get.
    pub fn overlaps(&self, other: &Address) -> bool {
        match (self, other) {
            (Address::Tcp(one), Address::Tcp(other)) => {
                let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
                let is_same_family = one.is_ipv4() == other.is_ipv4();
                one.port() != 0 && one.port() == other.port() && is_same_family && (is_any || one.ip() == other.ip())
            }
            (Address::Unix(one), Address::Unix(other)) => one == other,
            _ => false,
        }
    }
}

/// Returns the address that is probably meant by a text that is no address.
fn hint(text: &str) -> Option<String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text);
    let rest = rest.trim_end_matches('/');
    let (host, port) = rest.rsplit_once(':').unwrap_or(("", rest));
    let port: u16 = port.parse().ok()?;
    let host = match host {
        "" | "*" => "0.0.0.0",
        "localhost" => "127.0.0.1",
        "::" | "[::]" => "[::]",
        host if host.parse::<std::net::Ipv4Addr>().is_ok() => host,
        _ => return None,
    };
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_address_are_equal() {
        let parsed = |text| Address::parse(text).unwrap();
        assert_eq!(parsed("[::1]:80"), parsed("[0:0::1]:80"));
        assert_eq!(parsed("unix:/run/a.sock"), parsed("unix:/run/.//a.sock"));
        assert!(parsed("0.0.0.0:80").overlaps(&parsed("127.0.0.1:80")));
        assert!(!parsed("[::]:80").overlaps(&parsed("127.0.0.1:80")));
        assert!(!parsed("127.0.0.1:0").overlaps(&parsed("127.0.0.1:0")));
        assert!(parsed("0.0.0.0:80").accepts(&parsed("127.0.0.1:80")));
        assert!(!parsed("0.0.0.0:80").accepts(&parsed("192.0.2.1:80")));
        assert!(!parsed("0.0.0.0:80").accepts(&parsed("127.0.0.1:81")));
    }

    #[test]
    fn an_address_that_is_none_has_a_reason() {
        for (text, what) in [
            ("*:80", "write `0.0.0.0:80`"),
            (":80", "write `0.0.0.0:80`"),
            ("80", "write `0.0.0.0:80`"),
            ("localhost:80", "write `127.0.0.1:80`"),
            ("http://127.0.0.1:80/", "write `127.0.0.1:80`"),
            ("example.org:80", "`example.org:80`; expected one such as"),
            ("[::ffff:127.0.0.1]:80", "write `127.0.0.1:80`"),
            ("unix:a.sock", "is relative"),
            ("unix:/run/", "names no file"),
            ("unix:/", "names no file"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
