//! The path of a file below the root of a site, from the path of a request.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::protocol::path;

/// The maximum length of a path below the root, in bytes: that of `PATH_MAX` on Linux, less its end.
const MAX_BYTES: usize = 4095;

/// The maximum length of a name in a path, in bytes: that of `NAME_MAX`.
const MAX_NAME_BYTES: usize = 255;

/// The only name with a dot at its beginning that is served, at the top of a site (RFC 8615).
const WELL_KNOWN: &[u8] = b".well-known";

/// A path below the root of a site, without a slash at its beginning. Its names have no special meaning for any file
/// system or shell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SitePath {
    /// The decoded bytes of the path. Paths of folders end with a slash, and the root's path is empty.
    bytes: Vec<u8>,
}

impl SitePath {
    /// Decodes the path of a request once. `None` if no served file can have the path: it is malformed, or it has dot
    /// names, control characters, backslashes, or escaped slashes.
    pub fn parse(path: &str) -> Option<SitePath> {
        let path = path.strip_prefix('/')?;
        let mut bytes = Vec::with_capacity(path.len());
        let mut segments = path.split('/').peekable();
        while let Some(segment) = segments.next() {
            let begin = bytes.len();
            decode(segment, &mut bytes)?;
            let (name, is_last) = (&bytes[begin..], segments.peek().is_none());
            let level = if begin == 0 { PathLevel::Top } else { PathLevel::Below };
            // Only the end of a folder's path has no name.
            if name.is_empty() && !is_last || !is_served(name, level) {
                return None;
            }
            if !is_last {
                bytes.push(b'/');
            }
        }
        (bytes.len() <= MAX_BYTES).then_some(SitePath { bytes })
    }

    /// Whether the path is that of a folder: it ends with a slash, or is the root's.
    pub fn is_folder(&self) -> bool {
        self.bytes.last().is_none_or(|last| *last == b'/')
    }

    /// Whether the path is the root's.
    pub fn is_root(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the path of an entry of this folder by its name. The path of a file is returned with the text appended.
    pub fn join(&self, name: &[u8]) -> SitePath {
        SitePath { bytes: [&self.bytes, name].concat() }
    }

    /// Returns the last name in the path as text, with replacements for bytes that are not UTF-8.
    pub fn name(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes.rsplit(|byte| *byte == b'/').next().unwrap_or_default())
    }

    /// Returns the path for the file system.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(if self.bytes.is_empty() { b"." } else { &self.bytes })
    }

    /// Returns the path as text, with replacements for bytes that are not UTF-8.
    pub fn to_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

/// The level of a name in a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathLevel {
    /// The name is at the top of the site.
    Top,
    Below,
}

/// Whether a file or a folder of this name is served. Files whose names begin with a dot are not for clients, such as
/// `.git` and `.htpasswd`.
pub fn is_served(name: &[u8], level: PathLevel) -> bool {
    let is_hidden = name.starts_with(b".") && !(level == PathLevel::Top && name == WELL_KNOWN);
    let is_doubtful = |byte: &u8| matches!(byte, b'/' | b'\\') || byte.is_ascii_control();
    !is_hidden && name.len() <= MAX_NAME_BYTES && !name.iter().any(is_doubtful)
}

/// Appends a segment without its escapes; `None` if one is malformed.
fn decode(segment: &str, bytes: &mut Vec<u8>) -> Option<()> {
    let mut rest = segment.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        bytes.push(path::escaped(rest).ok()?);
        rest = &rest[2..];
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_once() {
        let long = "a".repeat(255);
        let cases: [(&str, &[u8]); 14] = [
            ("/", b""),
            ("/a", b"a"),
            ("/a/b.html", b"a/b.html"),
            ("/a/b/", b"a/b/"),
            ("/a%20b", b"a b"),
            ("/%61%2Ehtml", b"a.html"),
            ("/100%25", b"100%"),
            ("/%252e%252e", b"%2e%2e"),
            ("/%C3%A9", "\u{e9}".as_bytes()),
            ("/\u{e9}", "\u{e9}".as_bytes()),
            ("/%ff%fe", b"\xff\xfe"),
            ("/.well-known/acme-challenge/x", b".well-known/acme-challenge/x"),
            ("/a..b/c.", b"a..b/c."),
            (&format!("/{long}"), long.as_bytes()),
        ];
        for (path, wanted) in cases {
            assert_eq!(SitePath::parse(path).map(|path| path.bytes).as_deref(), Some(wanted), "{path}");
        }
    }

    #[test]
    fn paths_of_no_served_file_are_rejected() {
        let (long_name, long_path) = (format!("/{}", "a".repeat(256)), "/aaaa".repeat(820));
        let cases = [
            "",
            "a",
            "*",
            "//",
            "//a",
            "/a//b",
            "/.",
            "/..",
            "/../a",
            "/a/../b",
            "/a/..",
            "/%2e%2e/a",
            "/.%2e/a",
            "/%2E",
            "/a%2fb",
            "/a%2Fb",
            "/%2e%2e%2fa",
            "/a\\b",
            "/a%5cb",
            "/..%5c",
            "/a%00",
            "/%00",
            "/a%0ab",
            "/a%7f",
            "/%",
            "/%4",
            "/%zz",
            "/%+1",
            "/.git/config",
            "/.htpasswd",
            "/a/.env",
            "/%2egit/config",
            "/a/.well-known/x",
            "/.well-known2/x",
            "/.well-known/.x",
            "/...",
            "/..;/a",
            &long_name,
            &long_path,
        ];
        for path in cases {
            assert_eq!(SitePath::parse(path), None, "{path}");
        }
    }
}
