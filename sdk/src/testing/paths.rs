//! The host's normal form of paths, which native tests need for edits and for requests of a plugin's own.

use crate::path::is_hidden;
use crate::percent;

/// Returns the normal form of a path, or the reason why the host rejects the path.
pub fn normal(path: &str) -> Result<String, &'static str> {
    let settled = settled(path)?;
    let mut segments = Vec::new();
    for segment in settled.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop().ok_or("the path leads above its root")?),
            segment if has_dots(segment) => return Err("the path has a dot segment with a parameter"),
            segment => segments.push(segment),
        }
    }
    let is_folder = ["/", "/.", "/.."].iter().any(|end| settled.ends_with(end));
    let end = if is_folder && !segments.is_empty() { "/" } else { "" };
    Ok(format!("/{}{end}", segments.join("/")))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_the_normal_form_of_the_host() {
        for (path, wanted) in [
            ("/", Ok("/")),
            ("//", Ok("/")),
            ("/a/./%7eb/../c//d", Ok("/a/c/d")),
            ("/a/..", Ok("/")),
            ("/a/b/..", Ok("/a/")),
            ("/a/", Ok("/a/")),
            ("/a%2c;x", Ok("/a%2C;x")),
            ("/100%2541", Ok("/100%2541")),
            ("/..", Err("the path leads above its root")),
            ("/%2E%2e;x", Err("the path has a dot segment with a parameter")),
            ("/a%2fb", Err("the path has a backslash or an escaped slash")),
            ("/a\\b", Err("the path has a backslash or an escaped slash")),
            ("/%00", Err("the path has an escaped NUL")),
            ("/%\u{e9}", Err("the path has a `%` without two hexadecimal digits")),
            ("/%25%32%65", Err("the path has an escape that is escaped once more")),
        ] {
            assert_eq!(normal(path), wanted.map(String::from), "{path}");
        }
    }
}
