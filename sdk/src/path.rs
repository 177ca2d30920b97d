//! Paths of requests, as conditions have to read them.

use std::borrow::Cow;

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
