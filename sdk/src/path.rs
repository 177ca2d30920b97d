//! Paths of requests: as conditions have to read and to write them, and built from segments.

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

/// Returns why no request has a path; `None` if requests may have it. Meant for the check of a configuration.
///
/// The proxy gives paths a normal form before filters see them: single slashes, no dot segments, and escapes in upper case,
/// of no letters, digits and `-._~`.
///
/// ```
/// use plugway_sdk::path::never_requested;
///
/// assert_eq!(never_requested("/caf%C3%A9/a.b"), None);
/// assert!(never_requested("/caf\u{e9}").unwrap().ends_with("write `/caf%C3%A9`"));
/// assert!(never_requested("/a//b").is_some() && never_requested("/a/../b").is_some());
/// assert!(never_requested("/a/*").is_some() && never_requested("/wiki/*NSYNC").is_none());
/// ```
pub fn never_requested(path: &str) -> Option<String> {
    mistake(path, Extent::Whole)
}

/// Returns why the path of no request begins with a text; `None` if paths may begin with it. Meant for the check of
/// conditions that compare a text with the beginning of [`without_parameters`].
///
/// The last segment of the text may be incomplete, and so may an escape at its end.
///
/// ```
/// use plugway_sdk::path::never_begins;
///
/// assert_eq!(never_begins("/a/.well"), None);
/// assert_eq!(never_begins("/a/."), None, "the beginning of `/a/.well-known`");
/// assert!(never_begins("/a/./b").is_some() && never_begins("/a;b").is_some());
/// assert!(never_begins("/a/*").unwrap().contains("write `/a/`"));
/// ```
pub fn never_begins(beginning: &str) -> Option<String> {
    if beginning.contains(';') || beginning.contains("%3B") {
        return Some(format!(
            "path that no request has: `{beginning}`; parameters (`;` and what follows it in a segment) are not compared"
        ));
    }
    mistake(beginning, Extent::Beginning)
}

/// The part of a path that a text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    Beginning,
}

fn mistake(path: &str, extent: Extent) -> Option<String> {
    if !path.starts_with('/') {
        return Some(format!("invalid path: `{path}` does not begin with `/`; write `/{path}`"));
    }
    if path.contains(['?', '#']) {
        return Some(format!("invalid path: `{path}`; a path ends before `?` and `#`"));
    }
    let mut encoded = String::with_capacity(path.len());
    percent::push_encoded(&mut encoded, path.as_bytes(), |byte| byte.is_ascii_graphic() && !b"<>`".contains(&byte));
    let has = |why: &str| Some(format!("path that no request has: `{path}` has {why}"));
    if encoded != path {
        return has(&format!("characters that requests have percent-encoded; write `{encoded}`"));
    }
    // A star is allowed in a path (RFC 3986 §3.3), and at the end of one it is meant as a pattern.
    let beginning = path.trim_end_matches('*');
    match extent {
        Extent::Whole if beginning.ends_with('/') && beginning != path => {
            return Some(format!("`*` in a path stands for itself: `{path}`; a pattern is a regular expression"));
        }
        Extent::Beginning if beginning != path => {
            return Some(format!(
                "`*` in a path stands for itself: `{path}`; write `{beginning}` for all that begins so"
            ));
        }
        Extent::Whole | Extent::Beginning => {}
    }
    if path.contains('\\') {
        return has("a backslash, and requests with one are rejected");
    }
    if path.contains("//") {
        return has("an empty segment; expected single slashes");
    }
    let complete = if extent == Extent::Whole { path } else { &path[..path.rfind('/').unwrap_or(0)] };
    if complete.split('/').any(is_dots) {
        return has("a dot segment, which requests have no longer when filters see them");
    }
    path.match_indices('%').find_map(|(at, _)| wrong_escape(&path.as_bytes()[at..], extent)).and_then(has)
}

/// Whether a segment is `.` or `..`, with or without a parameter.
fn is_dots(segment: &str) -> bool {
    let name = segment.split(';').next().and_then(|name| name.split("%3B").next()).unwrap_or(segment);
    matches!(name, "." | "..")
}

/// Returns why the escape at the beginning of a text is none that requests have; `None` if they may have it.
fn wrong_escape(text: &[u8], extent: Extent) -> Option<&'static str> {
    let digits = &text[1..text.len().min(3)];
    let is_incomplete = digits.len() < 2 && extent == Extent::Beginning;
    if !digits.iter().all(u8::is_ascii_hexdigit) || digits.len() < 2 && !is_incomplete {
        return Some("a `%` without two hexadecimal digits");
    }
    let unsettled = "an escape that requests don't have; expected upper-case digits, and letters as they are";
    if digits.iter().any(u8::is_ascii_lowercase) {
        return Some(unsettled);
    }
    match *percent::decode(&text[..=digits.len()]) {
        [b'%'] if text.get(3..5).is_some_and(|more| is_hidden(&[&b"%"[..], more].concat())) => {
            Some("an escape that is escaped once more, and requests with one are rejected")
        }
        [0 | b'/' | b'\\'] => Some("an escape for which requests are rejected"),
        [byte] if !is_incomplete && percent::is_unreserved(byte) => Some(unsettled),
        _ => None,
    }
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
pub(crate) fn is_hidden(escape: &[u8]) -> bool {
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
    fn paths_that_requests_can_have_are_told_from_others() {
        for good in
            ["/", "/a", "/a/b.c/", "/caf%C3%A9", "/a%20b", "/a;x=1", "/...", "/a{b}", "/100%25", "/%2541", "/.a"]
        {
            assert_eq!(never_requested(good), None, "{good}");
        }
        for (bad, reason) in [
            ("", "write `/`"),
            ("a", "write `/a`"),
            ("/a?b", "ends before `?`"),
            ("/a#b", "ends before `?`"),
            ("/a b", "write `/a%20b`"),
            ("/caf\u{e9}", "write `/caf%C3%A9`"),
            ("/<a>", "write `/%3Ca%3E`"),
            ("/a\\b", "backslash"),
            ("/a//b", "empty segment"),
            ("/a/./b", "dot segment"),
            ("/a/..", "dot segment"),
            ("/a/..;x/b", "dot segment"),
            ("/.%3Bx", "dot segment"),
            ("/%", "two hexadecimal digits"),
            ("/%4", "two hexadecimal digits"),
            ("/%4g", "two hexadecimal digits"),
            ("/%e9", "upper-case digits"),
            ("/%7Euser", "letters as they are"),
            ("/%2F", "rejected"),
            ("/%5C", "rejected"),
            ("/%00", "rejected"),
            ("/%252F", "once more"),
        ] {
            let found = never_requested(bad);
            assert!(found.as_ref().is_some_and(|found| found.contains(reason)), "{bad}: {found:?}");
        }
    }

    #[test]
    fn the_end_of_a_beginning_may_be_incomplete() {
        for good in ["/", "/a/", "/a/.", "/a/..", "/caf%C3%A9/", "/caf%", "/caf%4", "/caf%C", "/a%25"] {
            assert_eq!(never_begins(good), None, "{good}");
        }
        for bad in [
            "",
            "a",
            "/a b",
            "/gr\u{f6}\u{df}e/",
            "/%7Euser/",
            "/%c3%a9/",
            "/%c",
            "//a/",
            "/a/../b/",
            "/./",
            "/a;",
            "/a%3Bb",
            "/a?",
            "/%g",
        ] {
            assert!(never_begins(bad).is_some(), "{bad}");
        }
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
