//! The keys of a route that change the request target which an endpoint, or a folder of files, is asked for. Plugins see
//! the client's target; these rules apply when the request is forwarded.

use std::borrow::Cow;

use http::Uri;
use http::uri::PathAndQuery;
use regex::Regex;

use crate::protocol::path;

/// The longest target that a rewrite makes, in bytes: more than endpoints accept, and less than a `Uri` may have.
const MAX_TARGET_BYTES: usize = 32 << 10;

/// The rules of a route for the target that is forwarded.
#[derive(Debug, Default)]
pub struct UriRules {
    /// The segments that are removed from the beginning of the path; `None` if none are.
    pub prefix: Option<Vec<String>>,
    /// The rewrite of the path; `None` if there is none.
    pub rewrite: Option<Rewrite>,
    /// Whether the path is forwarded as the client has sent it, rather than in its normal form.
    pub is_as_sent: bool,
}

/// A rewrite of paths that a regular expression is found in.
#[derive(Debug)]
pub struct Rewrite {
    pub regex: Regex,
    pub to: Replacement,
}

/// The target that a rewrite makes.
#[derive(Debug)]
pub struct Replacement {
    path: Vec<ReplacementPart>,
    /// The query; `None` if the client's query is forwarded alone.
    query: Option<Vec<ReplacementPart>>,
    /// Whether the client's query is appended.
    keeps_query: bool,
}

/// A part of a replacement.
#[derive(Debug, PartialEq)]
enum ReplacementPart {
    Text(String),
    /// The text of a group of the expression, by its index.
    Group(usize),
}

/// The reason for which no target can be made for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    #[error("the rewritten path is none: {}", .0.reason())]
    Path(path::PathError),
    #[error("the rewritten target is longer than 32 KiB")]
    TooLong,
    #[error("the rewritten target can't stand in a request")]
    Malformed,
}

impl UriRules {
    /// Returns the target for an endpoint; `None` if it is that of the request. `sent` is the path as the client has sent
    /// it, if that differs from the request's and no plugin has changed the path.
    pub fn apply(&self, target: &Uri, sent: Option<&str>) -> Result<Option<PathAndQuery>, RewriteError> {
        let path = match sent.filter(|_| self.is_as_sent) {
            Some(sent) => sent,
            None if self.prefix.is_none() && self.rewrite.is_none() => return Ok(None),
            None => target.path(),
        };
        // `*` is the server as a whole, which has no prefix.
        if path == "*" {
            return Ok(None);
        }
        if let Some(rewrite) = &self.rewrite {
            return rewrite.apply(path, target.query());
        }
        let path = self.prefix.as_ref().map_or(path, |prefix| without_prefix(path, prefix));
        if path == target.path() {
            return Ok(None);
        }
        whole(Cow::Borrowed(path), target.query()).map(Some)
    }
}

impl Rewrite {
    fn apply(&self, path: &str, client_query: Option<&str>) -> Result<Option<PathAndQuery>, RewriteError> {
        let Some(groups) = self.regex.captures(path) else { return Ok(None) };
        let group = |index| groups.get(index).map_or("", |group| group.as_str());
        let mut new = String::new();
        put(&self.to.path, |index| Cow::Borrowed(group(index)), &mut new)?;
        let normal = path::normal(&new).map_err(RewriteError::Path)?;
        let Some(query) = &self.to.query else { return whole(normal, client_query).map(Some) };
        let mut own = String::new();
        put(query, |index| escaped_for_query(group(index)), &mut own)?;
        if let Some(client_query) = client_query.filter(|query| self.to.keeps_query && !query.is_empty()) {
            if !own.is_empty() {
                own.push('&');
            }
            own.push_str(client_query);
        }
        whole(normal, Some(own.as_str()).filter(|query| !query.is_empty())).map(Some)
    }
}

impl Replacement {
    /// Parses a replacement for an expression; the error says what is wrong and what is expected.
    pub fn parse(text: &str, regex: &Regex) -> Result<Self, String> {
        if text.contains("://") {
            return Err("it has a host; write `redirect` for clients to go there, or name another upstream".into());
        }
        if text.is_empty() {
            return Err("it is empty; write the rest of the path as a group, such as `{ regex = \"^/v1/(.*)$\", to = \"/$1\" }`, \
                        or `/` for the root alone"
                .into());
        }
        if !text.starts_with('/') {
            return Err(format!("it does not begin with `/`; write `/{text}`"));
        }
        let path_length = text.find('?').unwrap_or(text.len());
        if let Some((_, bad)) = text.char_indices().find(|(at, letter)| !is_of_target(*letter, *at > path_length)) {
            return Err(format!(
                "{bad:?} can't stand in a request target; write it escaped, such as `%20` for a space"
            ));
        }
        // As in nginx, a `?` at the end forwards no query of the client.
        let (text, keeps_query) = text.strip_suffix('?').map_or((text, true), |text| (text, false));
        let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
        let query = query.or((!keeps_query).then_some(""));
        let query = query.map(|query| parts(query, regex)).transpose()?;
        let replacement = Replacement { path: parts(path, regex)?, query, keeps_query };
        match replacement.path_error() {
            Some(error) => Err(format!("{}; write a path that requests may have, such as `/new/$1`", error.reason())),
            None => Ok(replacement),
        }
    }

    /// Returns why the path is none, whatever the text of groups is; `None` if it may be one.
    fn path_error(&self) -> Option<path::PathError> {
        let error = |group: &'static str| {
            let mut path = String::new();
            // The length depends on the request.
            let _ = put(&self.path, |_| Cow::Borrowed(group), &mut path);
            path::normal(&path).err()
        };
        // A group may be the digits of an escape.
        error("a").filter(|_| error("20").is_some())
    }
}

/// Whether a character can stand in a target as it is, in the path or in the query.
fn is_of_target(letter: char, is_in_query: bool) -> bool {
    let target = if is_in_query { format!("/?{letter}") } else { format!("/{letter}") };
    letter.is_ascii_graphic() && letter != '#' && PathAndQuery::try_from(target).is_ok()
}

/// Parses a text with `$1`, `${1}`, `$name` and `${name}` for groups, and `$$` for a dollar sign.
fn parts(text: &str, regex: &Regex) -> Result<Vec<ReplacementPart>, String> {
    let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        plain.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            plain.push('$');
            rest = after;
            continue;
        }
        let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let (name, next) = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}').ok_or("a `${` is not closed; write `$$` for a dollar sign")?,
            // Digits end before letters: `$1x` is the first group and an `x`.
            None if after.starts_with(|letter: char| letter.is_ascii_digit()) => {
                after.split_at(after.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(after.len()))
            }
            None => after.split_at(after.bytes().position(|byte| !is_of_name(byte)).unwrap_or(after.len())),
        };
        let by_number = name.parse::<usize>().ok().filter(|index| *index < regex.captures_len());
        let by_name = || regex.capture_names().position(|known| known == Some(name));
        let group = by_number.or_else(by_name).ok_or_else(|| {
            let last = regex.captures_len() - 1;
            format!("the expression has no group `{name}`: it has {last}, besides `$0` for all of the match")
        })?;
        if !plain.is_empty() {
            parts.push(ReplacementPart::Text(std::mem::take(&mut plain)));
        }
        parts.push(ReplacementPart::Group(group));
        rest = next;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(ReplacementPart::Text(plain));
    }
    Ok(parts)
}

/// Adds the text of parts, within the bound of a target.
fn put<'a>(
    parts: &[ReplacementPart],
    group: impl Fn(usize) -> Cow<'a, str>,
    text: &mut String,
) -> Result<(), RewriteError> {
    for part in parts {
        match part {
            ReplacementPart::Text(plain) => text.push_str(plain),
            ReplacementPart::Group(index) => text.push_str(&group(*index)),
        }
        if text.len() > MAX_TARGET_BYTES {
            return Err(RewriteError::TooLong);
        }
    }
    Ok(())
}

/// Escapes the part of a path that goes into a query, where it must not begin another parameter, as nginx does.
fn escaped_for_query(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '=', '+', ';']) {
        return Cow::Borrowed(text);
    }
    let escape = |letter: char| match letter {
        '&' => "%26".into(),
        '=' => "%3D".into(),
        '+' => "%2B".into(),
        ';' => "%3B".into(),
        other => other.to_string(),
    };
    Cow::Owned(text.chars().map(escape).collect())
}

/// Returns a path without the segments of a prefix, or the whole path if it does not begin with them. Parameters of the
/// segments, and segments that are empty or consist of parameters, are no obstacle: routes match without them.
fn without_prefix<'a>(path: &'a str, prefix: &[String]) -> &'a str {
    let mut rest = path;
    let mut left = prefix.iter();
    let mut wanted = left.next();
    while let Some(segment) = wanted {
        let Some(after) = rest.strip_prefix('/') else { return path };
        let end = after.find('/').unwrap_or(after.len());
        let Ok(normal) = path::normal(&rest[..=end]) else { return path };
        let plain = path::without_parameters(&normal);
        rest = &after[end..];
        match plain.trim_start_matches('/') {
            "" => {}
            found if found == segment => wanted = left.next(),
            _ => return path,
        }
    }
    if rest.is_empty() { "/" } else { rest }
}

/// Returns a target of a path and a query.
fn whole(path: Cow<'_, str>, query: Option<&str>) -> Result<PathAndQuery, RewriteError> {
    let target = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    PathAndQuery::try_from(target).map_err(|_| RewriteError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(regex: &str, to: &str) -> UriRules {
        let regex = Regex::new(regex).unwrap();
        let to = Replacement::parse(to, &regex).unwrap();
        UriRules { rewrite: Some(Rewrite { regex, to }), ..UriRules::default() }
    }

    fn strip(prefix: &str) -> UriRules {
        let prefix = prefix.split('/').filter(|segment| !segment.is_empty()).map(String::from).collect();
        UriRules { prefix: Some(prefix), ..UriRules::default() }
    }

    fn applied(rules: &UriRules, target: &str) -> String {
        let uri: Uri = target.parse().unwrap();
        let new = rules.apply(&uri, None).unwrap();
        new.map_or_else(|| target.to_string(), |new| new.as_str().to_string())
    }

    #[test]
    fn prefixes_end_at_segments() {
        let cases = [
            ("/api", "/api", "/"),
            ("/api", "/api/", "/"),
            ("/api", "/api/users?a=1", "/users?a=1"),
            ("/api", "/api?a=1", "/?a=1"),
            ("/api", "/apis/users", "/apis/users"),
            ("/api", "/other", "/other"),
            ("/api/v1", "/api/v1/x%20y", "/x%20y"),
            ("/api", "/api;v=1/users;x", "/users;x"),
            ("/api", "/;a/api/users", "/users"),
            ("/api/", "/api/users", "/users"),
            ("/a", "/a/%C3%A9/", "/%C3%A9/"),
        ];
        for (prefix, target, wanted) in cases {
            assert_eq!(applied(&strip(prefix), target), wanted, "{prefix} of {target}");
        }
        assert_eq!(strip("/a").apply(&Uri::from_static("*"), None), Ok(None));
    }

    #[test]
    fn paths_as_sent_lose_their_prefix_too() {
        let rules = UriRules { is_as_sent: true, ..strip("/api") };
        let uri = Uri::from_static("/api/a/b?c");
        let cases = [
            ("/api/a%2Fb", "/a%2Fb?c"),
            ("/%61pi/a%2fb", "/a%2fb?c"),
            ("//api//a//b", "//a//b?c"),
            ("/api;x/a%2Fb", "/a%2Fb?c"),
        ];
        for (sent, wanted) in cases {
            let target = rules.apply(&uri, Some(sent)).unwrap().unwrap();
            assert_eq!(target.as_str(), wanted, "{sent}");
        }
    }

    #[test]
    fn a_rewrite_is_the_whole_new_target() {
        let cases = [
            ("^/old/(.*)$", "/new/$1", "/old/a/b?c=1", "/new/a/b?c=1"),
            ("^/old/(.*)$", "/new/$1", "/other", "/other"),
            ("^/u/(?<id>[0-9]+)", "/user?id=${id}", "/u/7?x=1", "/user?id=7&x=1"),
            ("^/u/([0-9]+)", "/user?id=$1", "/u/7", "/user?id=7"),
            ("^/u/([0-9]+)", "/user?", "/u/7?x=1", "/user"),
            ("^/u/([0-9]+)", "/user?id=$1?", "/u/7?x=1", "/user?id=7"),
            ("^/s/(.*)$", "/search?q=$1", "/s/a&admin=1+2;b", "/search?q=a%26admin%3D1%2B2%3Bb"),
            ("^/a/(.*)$", "/$1", "/a/", "/"),
            ("^/(a)", "/$1b$$$0", "/a", "/ab$/a"),
            ("^/a(.*)$", "/b/$1", "/a/x", "/b/x"),
        ];
        for (regex, to, target, wanted) in cases {
            assert_eq!(applied(&rewrite(regex, to), target), wanted, "{regex} to {to} of {target}");
        }
    }

    #[test]
    fn targets_that_no_request_may_have_are_errors() {
        let failed = |regex, to, target: &str| rewrite(regex, to).apply(&target.parse().unwrap(), None).unwrap_err();
        assert!(matches!(failed("^/(.)/(.)$", "/$1$2", "/./."), RewriteError::Path(_)));
        assert!(matches!(failed("^/([0-9a-f]*)$", "/%$1", "/2f"), RewriteError::Path(_)));
        let long = format!("/{}", "a".repeat(8_000));
        assert_eq!(failed("^(.*)$", "/$1$1$1$1$1", &long), RewriteError::TooLong);
    }

    #[test]
    fn targets_that_no_request_can_have_are_refused() {
        let regex = Regex::new("^/a/(.*)$").unwrap();
        let bad = ["/b\\$1", "/x%2F$1", "/../$1", "/%zz", "/%00$1", "/<$1>", "/`", "/find?q=\"$1\"", "/?<", "/?a>?"];
        for bad in bad {
            assert!(Replacement::parse(bad, &regex).is_err(), "{bad}");
        }
        for good in ["/%$1", "/%2$1", "/%C3%A9", "/{a}", "/?{\\`}", "/a/../$1", "/$1/..", "/\"", "/??", "/?a?b"] {
            assert!(Replacement::parse(good, &regex).is_ok(), "{good}");
        }
        assert!(Replacement::parse("/x%2F$1", &regex).unwrap_err().contains("escaped slash"));
        assert!(Replacement::parse("/?q='$1'<", &regex).unwrap_err().starts_with("'<'"));
    }

    #[test]
    fn groups_that_an_expression_lacks_are_named() {
        let regex = Regex::new("^/(a)(?<b>c)").unwrap();
        for bad in ["/$3", "/${x}", "/$x", "/${1", "a", "/a b", "/a#b", "/é"] {
            assert!(Replacement::parse(bad, &regex).is_err(), "{bad}");
        }
        for good in ["/$1", "/${1}", "/$b/$2", "/$1x", "/$$", "/?$1", "/a?"] {
            assert!(Replacement::parse(good, &regex).is_ok(), "{good}");
        }
    }
}
