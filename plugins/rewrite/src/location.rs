//! Paths and redirect targets: checked, so that a result is one that the host accepts and that leads to no host but those
//! of the configuration.

use plugway_sdk::percent;

/// A place that a request is sent to, or redirected to.
#[derive(Clone, Debug, PartialEq)]
pub struct Location {
    /// The scheme and authority, such as `https://example.org`; `None` for those of the request.
    pub site: Option<String>,
    pub path: String,
    /// The query without its `?`; `None` for that of the request.
    pub query: Option<String>,
    /// The fragment without its `#`.
    pub fragment: Option<String>,
}

impl Location {
    /// Returns the location of a path on the site of the request; an error if the path is none that a client could send.
    pub fn path(path: &str) -> Result<Self, String> {
        Ok(Location { site: None, path: checked(path)?, query: None, fragment: None })
    }

    /// Returns the location that results from two redirects in sequence.
    pub fn then(self, next: Location) -> Location {
        Location {
            site: next.site.or(self.site),
            path: next.path,
            query: next.query.or(self.query),
            fragment: next.fragment.or(self.fragment),
        }
    }

    /// Returns the value of `Location` for a request with a query.
    pub fn text(&self, query: Option<&str>) -> String {
        let mut text = self.site.clone().unwrap_or_default();
        text.push_str(&self.path);
        if let Some(query) = self.query.as_deref().or(query).filter(|query| !query.is_empty()) {
            text.push('?');
            push_escaped(&mut text, query.as_bytes(), b"#");
        }
        if let Some(fragment) = &self.fragment {
            text.push('#');
            text.push_str(fragment);
        }
        text
    }
}

/// Returns a path in the form in which a client could have sent it: with single slashes, as `//host` would be another
/// host to a client, and without bytes that must be escaped.
pub fn checked(path: &str) -> Result<String, String> {
    if path.len() > LONGEST {
        return Err(format!("a path of {} bytes; expected at most {LONGEST}", path.len()));
    }
    let invalid = |why: &str| Err(format!("invalid path: `{path}` {why}"));
    if !path.starts_with('/') {
        return invalid("does not begin with `/`");
    }
    if path.contains(['?', '#', '\\']) {
        return invalid("has a `?`, `#` or backslash");
    }
    let mut checked = String::with_capacity(path.len());
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        if [".", ".."].contains(&segment.split(';').next().unwrap_or_default()) {
            return invalid("has a dot segment");
        }
        checked.push('/');
        push_escaped(&mut checked, segment.as_bytes(), b"");
    }
    if path.ends_with('/') {
        checked.push('/');
    }
    if has_broken_escape(&checked) {
        return invalid("has a `%` without two hexadecimal digits");
    }
    Ok(checked)
}

/// Appends text, with bytes that must be escaped in a URI and the bytes of `others` percent-encoded.
pub fn push_escaped(into: &mut String, text: &[u8], others: &[u8]) {
    let is_kept = |byte: u8| byte.is_ascii_graphic() && !b"\"<>`{}".contains(&byte) && !others.contains(&byte);
    percent::push_encoded(into, text, is_kept);
}

fn has_broken_escape(path: &str) -> bool {
    let is_broken = |(at, _): (usize, &str)| {
        let digits = path.as_bytes().get(at + 1..at + 3).unwrap_or_default();
        digits.len() < 2 || !digits.iter().all(u8::is_ascii_hexdigit)
    };
    path.match_indices('%').any(is_broken)
}

/// Longer results are errors; a listener accepts targets of 8 KiB by default.
const LONGEST: usize = 16 << 10;
