//! The normal form of a path: the form that routes and plugins match, and that the endpoint gets. Different spellings
//! of a path become one, and a path that recipients may parse differently is rejected.
//!
//! - Escapes of unreserved characters are decoded, all others stay, in upper case (RFC 3986 §6.2.2).
//! - An escaped slash and any backslash are rejected: an endpoint that decodes them would see another path than the
//!   route did. (nginx decodes them, Envoy has an option.)
//! - An escape that is escaped once more is rejected if it hides a dot, a slash, a backslash, a semicolon, a percent
//!   sign or a NUL, however its digits are spelled. Other uses of `%25` stay as they are.
//! - Empty segments are merged, as nginx does, so that `//admin` does not bypass the route of `/admin`. They are
//!   removed before dot segments: `/a//../b` is `/b`.
//! - Dot segments are removed (RFC 3986 §5.2.4). Paths that lead above the root are rejected.
//! - `..;x` is rejected, because Tomcat and similar servers drop the parameter and see `..`. Other parameters stay in
//!   their segment, and routes match without them ([`without_parameters`]).
//!
//! - Routes with `path-as-is` accept escaped slashes too ([`readings`]), and forward the path as it was sent.
//! - Requests of a plugin's own may have escaped slashes, but no dot segments ([`of_own_request`]).
//!
//! Queries and the target `*` are not handled here; `*` is forwarded unchanged.

use std::borrow::Cow;

/// The reason why a path has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// The path has a `%` without two hexadecimal digits.
    Escape,
    /// The path has an escaped NUL, which ends the path for some recipients.
    Nul,
    /// The path has an escaped slash or backslash, or any backslash, which divides segments for some recipients.
    Slash,
    /// The path has an escape that is escaped once more: a recipient that decodes twice sees dots or slashes.
    Twice,
    /// The path has `..` or `.` with a parameter, which is a dot segment for some recipients.
    Parameter,
    /// The path has more `..` than other segments.
    AboveRoot,
    /// The path has a dot segment, and would be forwarded as it was sent.
    DotSegment,
}

/// The ways in which recipients read a path that is forwarded as it was sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Readings {
    /// The path for recipients to which an escaped slash divides segments.
    pub divided: String,
    /// The path for recipients to which an escaped slash is a character of a segment.
    pub whole: String,
}

/// Returns the normal form of a path, which begins with `/`.
pub fn normal(path: &str) -> Result<Cow<'_, str>, PathError> {
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    without_dots(&settled(path)?).map(Cow::Owned)
}

/// Returns how recipients may read a path that is forwarded as it was sent. All readings agree about dot segments,
/// since a path with any is rejected; they may only differ about escaped slashes.
pub fn readings(path: &str) -> Result<Readings, PathError> {
    // `normal` keeps escapes of a reserved character as they are: a colon stands in for the slash, since it divides nothing.
    let slash = |with: &str| path.replace("%2F", with).replace("%2f", with);
    let read = |path: String| {
        let settled = settled(&path)?;
        match settled.split('/').any(|segment| begins_with_dots_or_nothing(segment.as_bytes())) {
            true => Err(PathError::DotSegment),
            false => without_dots(&settled),
        }
    };
    Ok(Readings { divided: read(slash("/"))?, whole: read(slash("%3A"))? })
}

/// Returns the path of a plugin's own request as it is sent: in its normal form but for escaped slashes, which stay, since
/// no route protects the destination from them. A path that has a dot segment in one of its [`readings`] is rejected: text
/// of a client that the plugin has put into the path could lead elsewhere.
pub fn of_own_request(path: &str) -> Result<Cow<'_, str>, PathError> {
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    readings(path)?;
    // No path has a control character: one stands in for an escaped slash.
    let held = path.replace("%2F", "\u{1}").replace("%2f", "\u{1}");
    normal(&held).map(|normal| Cow::Owned(normal.replace('\u{1}', "%2F")))
}

/// Returns the text of a normalised path that routes match: without the parameters of its segments (`;` and what
/// follows, RFC 3986 §3.3), whether the semicolon is escaped or not. Segments that consist of parameters alone are
/// removed. Servlet containers read `/admin;a=1`, `/;/admin` and, some of them, `/admin%3Ba` as `/admin`.
pub fn without_parameters(path: &str) -> Cow<'_, str> {
    let Some(first) = parameter(path) else { return Cow::Borrowed(path) };
    let (mut plain, mut rest) = (String::with_capacity(path.len()), path);
    let mut next = Some(first);
    while let Some(at) = next {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find('/').unwrap_or(rest.len());
        // The slash before a segment without a name is the slash before the next one.
        rest = if end < rest.len() && plain.ends_with('/') { &rest[end + 1..] } else { &rest[end..] };
        next = parameter(rest);
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// Returns the index of the first semicolon, which may be escaped; `None` if there is none.
fn parameter(path: &str) -> Option<usize> {
    let bytes = path.as_bytes();
    memchr::memchr2_iter(b';', b'%', bytes).find(|at| match &bytes[*at..] {
        [b'%', escaped @ ..] => escaped.starts_with(b"3B") || escaped.starts_with(b"3b"),
        _ => true,
    })
}

impl PathError {
    /// Returns the reason as a text for the log.
    pub fn reason(self) -> &'static str {
        match self {
            PathError::Escape => "the path has a `%` without two hexadecimal digits",
            PathError::Nul => "the path has an escaped NUL",
            PathError::Slash => "the path has a backslash or an escaped slash",
            PathError::Twice => "the path has an escape that is escaped once more",
            PathError::Parameter => "the path has a dot segment with a parameter",
            PathError::AboveRoot => "the path leads above its root",
            PathError::DotSegment => "the path has a dot segment, and its route forwards paths as they are",
        }
    }
}

/// Whether a path is in its normal form, as nearly all are. Returns `true` exactly for the paths that [`normal`] would
/// return unchanged; tests each byte once, and copies nothing.
fn is_normal(path: &[u8]) -> bool {
    path.iter().enumerate().all(|(at, byte)| match byte {
        b'/' => !begins_with_dots_or_nothing(&path[at + 1..]),
        b'%' => is_settled(&path[at + 1..]),
        b'\\' => false,
        _ => true,
    })
}

/// Whether the text behind a slash begins with an empty segment, or a dot segment with or without a parameter. An empty
/// text is the end of a folder's path, which is valid.
fn begins_with_dots_or_nothing(segment: &[u8]) -> bool {
    let Some(after) = segment.strip_prefix(b".") else { return segment.starts_with(b"/") };
    let after = after.strip_prefix(b".").unwrap_or(after);
    matches!(after, [] | [b'/' | b';', ..] | [b'%', b'3', b'B' | b'b', ..])
}

/// Whether an escape, given from its digits on, is kept in the normal form.
fn is_settled(digits: &[u8]) -> bool {
    let is_upper = digits.iter().take(2).all(|digit| !digit.is_ascii_lowercase());
    is_upper
        && escaped(digits).is_ok_and(|byte| match byte {
            0 | b'/' | b'\\' => false,
            b'%' => !is_doubtful_escape(&digits[2..]),
            _ => !is_unreserved(byte),
        })
}

/// Returns the path with normalised escapes.
fn settled(path: &str) -> Result<String, PathError> {
    let mut settled = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        settled.push_str(&rest[..at]);
        let digits = rest[at..].strip_prefix('%').ok_or(PathError::Slash)?;
        match escaped(digits.as_bytes())? {
            0 => return Err(PathError::Nul),
            b'/' | b'\\' => return Err(PathError::Slash),
            byte if is_unreserved(byte) => settled.push(char::from(byte)),
            _ => settled.push_str(&rest[at..at + 3].to_ascii_uppercase()),
        }
        rest = &digits[2..];
    }
    settled.push_str(rest);
    // Tested only after all escapes are normalised: the digits behind a percent sign may have been escaped themselves
    // (`%25%32%65`).
    let hides = |(at, percent): (usize, &str)| is_doubtful_escape(&settled.as_bytes()[at + percent.len()..]);
    if settled.match_indices("%25").any(hides) { Err(PathError::Twice) } else { Ok(settled) }
}

/// Returns the byte of an escape, given from its digits on.
pub fn escaped(digits: &[u8]) -> Result<u8, PathError> {
    let value = |digit: &u8| char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let [high, low, ..] = digits else { return Err(PathError::Escape) };
    value(high).zip(value(low)).map(|(high, low)| high << 4 | low).ok_or(PathError::Escape)
}

/// Whether a byte is an unreserved character (RFC 3986 §2.3).
pub fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether these digits, behind a percent sign, would encode a dot, a slash, a backslash, a semicolon, a percent sign
/// again, or a NUL.
fn is_doubtful_escape(digits: &[u8]) -> bool {
    escaped(digits).is_ok_and(|byte| matches!(byte, b'.' | b'/' | b'\\' | b';' | b'%' | 0))
}

/// Removes dot segments and empty ones, after the escapes are normalised.
fn without_dots(path: &str) -> Result<String, PathError> {
    let mut segments: Vec<&str> = Vec::new();
    let is_folder = path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..");
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop().ok_or(PathError::AboveRoot)?),
            // Segments of dots alone are handled above.
            _ if begins_with_dots_or_nothing(segment.as_bytes()) => return Err(PathError::Parameter),
            _ => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if is_folder && !normal.ends_with('/') || normal.is_empty() {
        normal.push('/');
    }
    Ok(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_request_may_have_escaped_slashes_but_no_dot_segments() {
        for (path, sent) in [
            ("/", Ok("/")),
            ("/a%2Fb", Ok("/a%2Fb")),
            ("/a%2fb//%7e", Ok("/a%2Fb/~")),
            ("//a%2F%2Fb/", Ok("/a%2F%2Fb/")),
            ("/a/../b", Err(PathError::DotSegment)),
            ("/a%2F..%2fb", Err(PathError::DotSegment)),
            ("/..%2Fb", Err(PathError::DotSegment)),
            ("/%2e;x%2Fb", Err(PathError::DotSegment)),
            ("/a%5Cb", Err(PathError::Slash)),
            ("/a%252Fb", Err(PathError::Twice)),
            ("/a%%2Fb", Err(PathError::Escape)),
            ("/%00", Err(PathError::Nul)),
        ] {
            assert_eq!(of_own_request(path).as_deref(), sent.as_ref().map(|sent| *sent), "{path}");
        }
    }

    #[test]
    fn a_path_has_one_form() {
        let cases = [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/", "/a/"),
            ("/a//b///", "/a/b/"),
            ("//", "/"),
            ("/./a/./b/.", "/a/b/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/%61%7e%2D", "/a~-"),
            ("/a/%2e%2e/b", "/b"),
            ("/a%3ab%c3%a9", "/a%3Ab%C3%A9"),
            ("/.well-known/x", "/.well-known/x"),
            ("/...", "/..."),
            ("/a..b/.c", "/a..b/.c"),
            ("/a;b=1/c", "/a;b=1/c"),
            ("/100%25", "/100%25"),
            ("/%2541", "/%2541"),
            ("/%25%34%31", "/%2541"),
            ("/%25", "/%25"),
            ("*", "*"),
            ("/a//../b", "/b"),
            ("/a/./", "/a/"),
            ("/..a/.a/..", "/..a/"),
            ("/...;x", "/...;x"),
            ("/a/..b;x", "/a/..b;x"),
            ("/%2E%2E%2E", "/..."),
            ("/a%20b%3Fc%23", "/a%20b%3Fc%23"),
            ("/\u{e9}/%C3%A9", "/\u{e9}/%C3%A9"),
        ];
        for (path, wanted) in cases {
            assert_eq!(normal(path).as_deref(), Ok(wanted), "{path}");
        }
    }

    #[test]
    fn routes_match_without_parameters() {
        let cases = [
            ("/admin", "/admin"),
            ("/admin;a=1", "/admin"),
            ("/admin;a=1/x;b/y", "/admin/x/y"),
            ("/;/admin", "/admin"),
            ("/;a=1;b/;c/admin", "/admin"),
            ("/admin/;x/;y", "/admin/"),
            ("/admin;x/", "/admin/"),
            ("/admin/;x/", "/admin/"),
            ("/admin%3Ba=1/x", "/admin/x"),
            ("/%3B/admin", "/admin"),
            ("/;", "/"),
            ("/;/", "/"),
            ("/a;b%3Bc;d", "/a"),
            ("/a%3A;b", "/a%3A"),
            ("/a%20b", "/a%20b"),
            ("*", "*"),
        ];
        for (path, wanted) in cases {
            assert_eq!(without_parameters(path), wanted, "{path}");
            let plain = normal(wanted).expect(wanted);
            assert_eq!((&*plain, &*without_parameters(wanted)), (wanted, wanted), "{path}");
        }
        assert!(matches!(without_parameters("/a%20b/c"), Cow::Borrowed(_)));
    }

    #[test]
    fn paths_as_sent_are_read_in_two_ways() {
        let cases = [
            ("/a%2Fb", "/a/b", "/a%3Ab"),
            ("/a%2fb//c", "/a/b/c", "/a%3Ab/c"),
            ("//a", "/a", "/a"),
            ("/%61%2F", "/a/", "/a%3A"),
            ("/a;x%2Fb", "/a;x/b", "/a;x%3Ab"),
        ];
        for (path, divided, whole) in cases {
            assert_eq!(readings(path), Ok(Readings { divided: divided.into(), whole: whole.into() }), "{path}");
        }
        let bad = [
            "/a/../b",
            "/a/./b",
            "/a%2F..%2Fb",
            "/a/%2e%2E/b",
            "/a/..",
            "/..%2Fa",
            "/.%2Fa",
            "/a%2F.",
            "/a%5Cb",
            "/a\\b",
            "/a%00",
            "/a%252Fb",
            "/a%252e%252e/b",
            "/a/..;x/b",
            "/a%2F..%3Bx",
            "/%",
        ];
        for path in bad {
            assert!(readings(path).is_err(), "{path}");
        }
    }

    #[test]
    fn nothing_is_copied_where_nothing_changes() {
        let paths = ["*", "/", "/a/b/", "/.well-known/x", "/caf%C3%A9", "/a;b=1", "/100%25", "/a..", "/...", "/..a;b"];
        for path in paths {
            assert!(matches!(normal(path), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    #[test]
    fn doubt_is_refused() {
        let cases = [
            ("/%", PathError::Escape),
            ("/%4", PathError::Escape),
            ("/%zz", PathError::Escape),
            ("/%+1", PathError::Escape),
            ("/%\u{e9}", PathError::Escape),
            ("/a%00b", PathError::Nul),
            ("/a%2Fb", PathError::Slash),
            ("/a%5cb", PathError::Slash),
            ("/a\\b", PathError::Slash),
            ("/%252e%252e/", PathError::Twice),
            ("/%252f", PathError::Twice),
            ("/%25252e", PathError::Twice),
            ("/admin%253Ba", PathError::Twice),
            ("/admin%25%33b", PathError::Twice),
            ("/%255C", PathError::Twice),
            ("/%2500", PathError::Twice),
            ("/%25%32%65", PathError::Twice),
            ("/%252%65", PathError::Twice),
            ("/%25%32e%25%32e/", PathError::Twice),
            ("/a%5C", PathError::Slash),
            ("/..;", PathError::Parameter),
            ("/..%3Bx;y/b", PathError::Parameter),
            ("/.%3Bx", PathError::Parameter),
            ("/.%2e;/", PathError::Parameter),
            ("//..", PathError::AboveRoot),
            ("/./../a", PathError::AboveRoot),
            ("/a/..;/b", PathError::Parameter),
            ("/a/.;x=1/b", PathError::Parameter),
            ("/a/%2e%2e%3b/b", PathError::Parameter),
            ("/..", PathError::AboveRoot),
            ("/a/../../b", PathError::AboveRoot),
            ("/%2e%2e/a", PathError::AboveRoot),
        ];
        for (path, wanted) in cases {
            assert_eq!(normal(path), Err(wanted), "{path}");
        }
    }

    #[test]
    fn the_normal_form_of_anything_is_its_own() {
        // Single digits too, so that escapes are formed of escaped parts.
        const PIECES: [&str; 24] = [
            "/", "/", ".", "..", "%2e", "%2E", "%2f", "%25", "a", "b", ";", "%3b", "%c3", "\\", "%", "~", "2", "5",
            "e", "%32", "%35", "%65", "%41", "\u{e9}",
        ];
        const NEVER: [&str; 12] =
            ["//", "/./", "/../", "/.;", "/..;", "/..%3B", "%2E", "%2F", "%5C", "%00", "%252e", "%2525"];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize
        };
        let mut good = 0;
        for _ in 0..400_000 {
            let path: String = std::iter::once("/").chain((0..next() % 12).map(|_| PIECES[next() % 24])).collect();
            let Ok(once) = normal(&path) else { continue };
            good += 1;
            assert!(matches!(normal(&once), Ok(Cow::Borrowed(same)) if same == once), "{path} became {once}");
            assert_eq!(matches!(once, Cow::Borrowed(_)), once == path, "{path} was copied");
            let plain = without_parameters(&once);
            assert_eq!(normal(&plain).as_deref(), Ok(&*plain), "{path} became {once}");
            assert!(!plain.contains(';') && !plain.contains("%3B"), "{path} became {plain}");
            let never = NEVER.iter().find(|part| once.contains(**part));
            assert!(once.starts_with('/') && never.is_none(), "{path} became {once}");
            assert!(!once.ends_with("/.") && !once.ends_with("/.."), "{path} became {once}");
        }
        assert!(good > 10_000, "{good}");
    }
}
