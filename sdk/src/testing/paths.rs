//! The host's rules for paths of requests of a plugin's own, enforced in native tests.

use crate::path::is_hidden;
use crate::percent;

/// Whether the host sends a path in a request of a plugin's own, where it accepts escaped slashes but no dot segments.
pub fn is_sent(path: &str) -> bool {
    // A colon divides nothing, and stays escaped.
    ["/", "%3A"].iter().all(|read_as| {
        let settled = settled(&path.replace("%2F", read_as).replace("%2f", read_as));
        settled.is_ok_and(|path| !path.split('/').any(has_dots))
    })
}

/// Returns a path with its escapes in their normal form.
fn settled(path: &str) -> Result<String, &'static str> {
    const SLASH: &str = "the path has a backslash or an escaped slash";
    let (mut settled, mut rest) = (String::new(), path);
    while let Some(at) = rest.find(['%', '\\']) {
        settled.push_str(&rest[..at]);
        if rest[at..].starts_with('\\') {
            return Err(SLASH);
        }
        let digits = rest.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let escape = &rest[at..digits.map(|_| at + 3).ok_or("the path has a `%` without two hexadecimal digits")?];
        match *percent::decode(escape.as_bytes()) {
            [0] => return Err("the path has an escaped NUL"),
            [b'/' | b'\\'] => return Err(SLASH),
            [byte] if percent::is_unreserved(byte) => settled.push(char::from(byte)),
            _ => settled.push_str(&escape.to_ascii_uppercase()),
        }
        rest = &rest[at + 3..];
    }
    settled.push_str(rest);
    let hides = |(at, _): (usize, &str)| {
        let digits = settled.as_bytes().get(at + 3..at + 5);
        digits.is_some_and(|digits| is_hidden(&[b"%", digits].concat()))
    };
    match settled.match_indices("%25").any(hides) {
        true => Err("the path has an escape that is escaped once more"),
        false => Ok(settled),
    }
}

/// Whether a segment is `.` or `..`, with or without a parameter.
fn has_dots(segment: &str) -> bool {
    let name = segment.split(';').next().and_then(|name| name.split("%3B").next());
    name.is_some_and(|name| name == "." || name == "..")
}
