//! Paths of requests: as conditions have to read them, and built from segments.

use std::borrow::Cow;
use std::fmt;

use crate::percent;

/// Returns a path as routes match it: without path parameters, and without segments that consist only of parameters.
/// Origins read `/admin;a=1` as `/admin`, so a condition has to do the same.
///
/// ```
/// use plugway_sdk::path::without_parameters;
///
/// assert_eq!(without_parameters("/a/b"), "/a/b");
/// assert_eq!(without_parameters("/;x/admin;y/b%3Bz"), "/admin/b");
/// ```
pub fn without_parameters(path: &str) -> Cow<'_, str> {
    if !path.contains(';') && !path.contains("%3B") {
        return path.into();
    }
    let segments: Vec<&str> = path.split('/').collect();
    let last = segments.len() - 1;
    let name = |segment: &&str| segment.split(';').next().and_then(|name| name.split("%3B").next()).unwrap_or("").len();
    let kept = segments.iter().enumerate().filter(|(at, segment)| *at == 0 || *at == last || name(segment) > 0);
    let kept: Vec<&str> = kept.map(|(_, segment)| &segment[..name(segment)]).collect();
    kept.join("/").into()
}

/// Returns the segments of a path, decoded. The path `/` has none; a slash at the end adds none.
///
/// ```
/// use plugway_sdk::path::segments;
///
/// let segments: Vec<_> = segments("/files/a%20b/").collect();
/// assert_eq!(segments, [&b"files"[..], b"a b"]);
/// ```
pub fn segments(path: &str) -> impl Iterator<Item = Cow<'_, [u8]>> {
    path.split('/').filter(|segment| !segment.is_empty()).map(|segment| percent::decode(segment.as_bytes()))
}

/// A path that is built from segments, which are percent-encoded.
///
/// A segment is one level of the path, whatever it contains: a `?`, a `#`, a space. A segment that no path can have as one
/// level is an error, so that text of a client can't lead to another folder.
///
/// ```
/// use plugway_sdk::path::PathBuilder;
/// use plugway_sdk::testing::{Harness, Request};
/// use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Response, Setup, Values, Verdict};
///
/// /// A filter that serves each tenant from a folder of its name.
/// struct Tenants {
///     path: Input,
///     tenant: Input,
/// }
///
/// impl Plugin for Tenants {
///     type Config = ();
///
///     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
///         let path = setup.request.value(plugway_sdk::ValueName::Path);
///         Ok(Tenants { path, tenant: setup.request.field("x-tenant") })
///     }
/// }
///
/// impl RequestFilter for Tenants {
///     fn on_request(&mut self, request: &Values) -> Verdict {
///         let (path, tenant) = (request.text(self.path), request.bytes(self.tenant));
///         let folder = PathBuilder::new().segment("tenants").segment(tenant.unwrap_or(b"none"));
///         match folder.path(path.unwrap_or("/")).build() {
///             Ok(path) => Verdict::proceed().set_path(path),
///             Err(_) => Response::new(400).into(),
///         }
///     }
/// }
///
/// let mut filter = Harness::<Tenants>::new(serde_json::json!({})).unwrap();
/// let mut path = |tenant: &str| {
///     let outcome = filter.request(Request::get("/a%20b/").field("x-tenant", tenant));
///     outcome.passed().map(|passed| passed.path().to_string())
/// };
/// assert_eq!(path("The Shop").as_deref(), Some("/tenants/The%20Shop/a%20b/"));
/// for hostile in ["..", "../admin", ""] {
///     assert_eq!(path(hostile), None, "{hostile}");
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathBuilder {
    path: String,
    error: Option<PathError>,
}

/// A segment that no path can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// The segment is empty: origins read `//` as `/`.
    Empty,
    /// The segment is `.` or `..`, which means another folder even if it is encoded.
    Dots,
    /// The segment has a slash or a backslash, which origins take for two segments even if it is encoded.
    Slash,
    /// The segment has a NUL, at which some origins end the path.
    Nul,
    /// The segment has percent-encoding of its own that hides one of these characters, a semicolon or a percent sign:
    /// some origins decode twice.
    Escape,
}

impl PathBuilder {
    /// Creates the path `/`.
    pub fn new() -> Self {
        PathBuilder::default()
    }

    /// Adds a segment, which is encoded.
    pub fn segment(mut self, segment: impl AsRef<[u8]>) -> Self {
        let segment = segment.as_ref();
        self.error = self.error.or(check(segment).err());
        // A slash at the end of the path is the slash before the segment.
        let mut joined = self.slash();
        joined.path.push_str(&percent::encode(segment));
        joined
    }

    /// Adds segments, which are encoded.
    pub fn segments(self, segments: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        segments.into_iter().fold(self, PathBuilder::segment)
    }

    /// Adds a path that is encoded already, such as that of a request; a slash at its end stays.
    pub fn path(self, path: &str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        let mut joined = self.slash();
        joined.path.push_str(path);
        joined
    }

    /// Adds a slash at the end, unless there is one.
    pub fn slash(mut self) -> Self {
        if !self.path.ends_with('/') {
            self.path.push('/');
        }
        self
    }

    /// Returns the path; an error if one of the segments is none.
    pub fn build(self) -> Result<String, PathError> {
        match self.error {
            Some(error) => Err(error),
            None if self.path.is_empty() => Ok("/".into()),
            None => Ok(self.path),
        }
    }
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathError::Empty => "an empty segment of a path",
            PathError::Dots => "a segment of a path that is `.` or `..`",
            PathError::Slash => "a segment of a path with a slash or a backslash",
            PathError::Nul => "a segment of a path with a NUL",
            PathError::Escape => "a segment of a path with an escape that is escaped once more",
        })
    }
}

impl std::error::Error for PathError {}

fn check(segment: &[u8]) -> Result<(), PathError> {
    match segment {
        b"" => Err(PathError::Empty),
        // Some origins drop what follows a semicolon before they resolve the dots.
        _ if [&b"."[..], b".."].contains(&segment.split(|byte| *byte == b';').next().unwrap_or_default()) => {
            Err(PathError::Dots)
        }
        _ if segment.iter().any(|byte| b"/\\".contains(byte)) => Err(PathError::Slash),
        _ if segment.contains(&0) => Err(PathError::Nul),
        _ if segment.windows(3).any(is_hidden) => Err(PathError::Escape),
        _ => Ok(()),
    }
}

/// Whether three bytes are an escape of a character that the host accepts in no escape which is escaped once more.
fn is_hidden(escape: &[u8]) -> bool {
    escape.starts_with(b"%") && matches!(*percent::decode(escape), [b'.' | b'/' | b'\\' | b';' | b'%' | 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_with_one_slash() {
        let build = |path: PathBuilder| path.build().unwrap();
        let new = PathBuilder::new;
        assert_eq!((build(new()), build(new().slash()), build(new().path("/"))), ("/".into(), "/".into(), "/".into()));
        assert_eq!(build(new().segment("a").path("/b/").segment("c").slash().slash()), "/a/b/c/");
        assert_eq!(build(new().path("/a%2C/").path("/b")), "/a%2C/b");
        assert_eq!(build(new().path("a").path("b").segments(["c", "?#"])), "/a/b/c/%3F%23");
    }

    #[test]
    fn a_segment_that_is_not_one_level_is_an_error() {
        let cases = [
            ("", PathError::Empty),
            (".", PathError::Dots),
            ("..", PathError::Dots),
            ("..;a=1", PathError::Dots),
            ("a/b", PathError::Slash),
            ("a\\b", PathError::Slash),
            ("a\0", PathError::Nul),
            ("%2e%2e", PathError::Escape),
            ("a%252f", PathError::Escape),
        ];
        for (segment, error) in cases {
            let path = PathBuilder::new().segment(segment).segment("ok");
            assert_eq!(path.build(), Err(error), "{segment:?}");
        }
        assert!(PathBuilder::new().segment("...").segment("..a").segment(".a;..").segment("%41 %2").build().is_ok());
    }
}
