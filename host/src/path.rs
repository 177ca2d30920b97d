//! The normal form of a path: what routes and plugins match, and what the endpoint gets. Two spellings of the same path
//! become one, and a path that some would understand otherwise than others is refused.

use std::borrow::Cow;

/// Why a path has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `%` without two hexadecimal digits.
    Escape,
    /// An escaped NUL: to some it ends the path.
    Nul,
    /// A slash or backslash that is escaped, or any backslash: to some it divides segments.
    Slash,
    /// An escape that is escaped once more: whoever decodes twice sees dots or slashes.
    Twice,
    /// `..` or `.` with a parameter: to some it is a dot segment.
    Parameter,
    /// More `..` than there are segments.
    AboveRoot,
}

/// Brings a path, which begins with `/`, into its normal form: escapes of unreserved characters decoded, others in upper
/// case, dot segments and empty segments removed (RFC 3986 §6.2.2).
pub fn normal(path: &str) -> Result<Cow<'_, str>, Refused> {
    if is_plain(path) {
        return Ok(Cow::Borrowed(path));
    }
    let normal = without_dots(&settled(path)?)?;
    Ok(if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) })
}

impl Refused {
    /// For the log.
    pub fn reason(self) -> &'static str {
        match self {
            Refused::Escape => "the path has a `%` without two hexadecimal digits",
            Refused::Nul => "the path has an escaped NUL",
            Refused::Slash => "the path has a backslash or an escaped slash",
            Refused::Twice => "the path has an escape that is escaped once more",
            Refused::Parameter => "the path has a dot segment with a parameter",
            Refused::AboveRoot => "the path leads above its root",
        }
    }
}

/// Whether there is nothing to do, as with nearly all: no escape, no dot or slash behind a slash, no backslash, no
/// parameter.
fn is_plain(path: &str) -> bool {
    let is_doubtful = |pair: &[u8]| pair[0] == b'/' && (pair[1] == b'.' || pair[1] == b'/');
    !path.bytes().any(|byte| byte == b'%' || byte == b'\\' || byte == b';')
        && !path.as_bytes().windows(2).any(is_doubtful)
}

/// Settles the escapes.
fn settled(path: &str) -> Result<String, Refused> {
    let mut settled = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        settled.push_str(&rest[..at]);
        let byte = rest[at..].strip_prefix('%').ok_or(Refused::Slash).and_then(escaped)?;
        let after = &rest[at + 3..];
        match byte {
            0 => return Err(Refused::Nul),
            b'/' | b'\\' => return Err(Refused::Slash),
            b'%' if is_doubtful_escape(after) => return Err(Refused::Twice),
            b'-' | b'.' | b'_' | b'~' => settled.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => settled.push(char::from(byte)),
            _ => settled.push_str(&rest[at..at + 3].to_ascii_uppercase()),
        }
        rest = after;
    }
    settled.push_str(rest);
    Ok(settled)
}

/// The byte of an escape, given from its digits on.
fn escaped(digits: &str) -> Result<u8, Refused> {
    let digits = digits.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or(Refused::Escape)
}

/// Whether these digits, behind a percent sign, would be a dot, a slash, a backslash, or a percent sign again.
fn is_doubtful_escape(digits: &str) -> bool {
    escaped(digits).is_ok_and(|byte| matches!(byte, b'.' | b'/' | b'\\' | b'%' | 0))
}

/// Removes dot segments and empty ones, after the escapes are settled (RFC 3986 §5.2.4).
fn without_dots(path: &str) -> Result<String, Refused> {
    let mut segments: Vec<&str> = Vec::new();
    let is_folder = path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..");
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop().ok_or(Refused::AboveRoot)?),
            _ if is_dots_with_parameter(segment) => return Err(Refused::Parameter),
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

fn is_dots_with_parameter(segment: &str) -> bool {
    let end = segment.find(';').or_else(|| segment.find("%3B"));
    end.is_some_and(|end| matches!(&segment[..end], "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ];
        for (path, wanted) in cases {
            assert_eq!(normal(path).as_deref(), Ok(wanted), "{path}");
        }
        assert!(matches!(normal("/a/b"), Ok(Cow::Borrowed(_))), "nothing is copied where nothing changes");
        assert!(matches!(normal("/.well-known/x"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn doubt_is_refused() {
        let cases = [
            ("/%", Refused::Escape),
            ("/%4", Refused::Escape),
            ("/%zz", Refused::Escape),
            ("/%+1", Refused::Escape),
            ("/%\u{e9}", Refused::Escape),
            ("/a%00b", Refused::Nul),
            ("/a%2Fb", Refused::Slash),
            ("/a%5cb", Refused::Slash),
            ("/a\\b", Refused::Slash),
            ("/%252e%252e/", Refused::Twice),
            ("/%252f", Refused::Twice),
            ("/%25252e", Refused::Twice),
            ("/a/..;/b", Refused::Parameter),
            ("/a/.;x=1/b", Refused::Parameter),
            ("/a/%2e%2e%3b/b", Refused::Parameter),
            ("/..", Refused::AboveRoot),
            ("/a/../../b", Refused::AboveRoot),
            ("/%2e%2e/a", Refused::AboveRoot),
        ];
        for (path, wanted) in cases {
            assert_eq!(normal(path), Err(wanted), "{path}");
        }
    }

    #[test]
    fn the_normal_form_of_anything_is_its_own() {
        const PIECES: [&str; 16] =
            ["/", "/", ".", "..", "%2e", "%2E", "%2f", "%25", "a", "b", ";", "%3b", "%c3", "\\", "%", "~"];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize
        };
        let mut good = 0;
        for _ in 0..200_000 {
            let path: String = std::iter::once("/").chain((0..next() % 12).map(|_| PIECES[next() % 16])).collect();
            let Ok(once) = normal(&path) else { continue };
            good += 1;
            assert_eq!(normal(&once).as_deref(), Ok(&*once), "{path}");
            let looks = |part: &str| once.contains(part);
            assert!(once.starts_with('/') && !looks("//") && !looks("/./") && !looks("/../"), "{path} became {once}");
            assert!(!once.ends_with("/..") && !looks("%2E") && !looks("%2F"), "{path} became {once}");
        }
        assert!(good > 10_000, "{good}");
    }
}
