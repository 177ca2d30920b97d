//! Targets of the configuration: a path with the captures of a regular expression in it, or a URI of another site.

use plugway_sdk::authority::is_authority;
use regex::bytes::{Captures, Regex};

use crate::location::{Location, checked, push_escaped};

/// A parsed target.
#[derive(Debug)]
pub struct Target {
    site: Option<String>,
    path: Vec<Piece>,
    query: Option<Vec<Piece>>,
    fragment: Option<String>,
}

#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    /// The group of the expression with this index.
    Group(usize),
}

/// Whether a target is one of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Redirect,
    Internal,
}

impl Target {
    /// Parses a target. Without an expression, `$` is an ordinary character. The error says what is wrong and what is
    /// expected.
    pub fn parse(text: &str, regex: Option<&Regex>, purpose: Use) -> Result<Self, String> {
        if let Some(bad) = text.chars().find(|letter| !letter.is_ascii_graphic() || *letter == '\\') {
            return Err(format!("invalid target: `{text}` has the character {bad:?}; write it percent-encoded"));
        }
        let (site, rest) = split_site(text)?;
        let (rest, fragment) = rest.split_once('#').map_or((rest, None), |(rest, fragment)| (rest, Some(fragment)));
        if purpose == Use::Internal && (site.is_some() || fragment.is_some()) {
            return Err(format!("invalid target: `{text}` is for clients; expected a path, or a redirect status too"));
        }
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let path = if path.is_empty() && site.is_some() { "/" } else { path };
        if !path.starts_with('/') {
            return Err(format!("invalid target: `{text}`; expected a path such as `/new`, or `https://` and a host"));
        }
        if regex.is_none() {
            checked(path)?;
        }
        Ok(Target {
            site: site.map(String::from),
            path: pieces(path, regex)?,
            query: query.map(|query| pieces(query, regex)).transpose()?,
            fragment: fragment.map(String::from),
        })
    }

    /// Returns whether the target names a site.
    pub fn has_site(&self) -> bool {
        self.site.is_some()
    }

    /// Returns the location for the captures of a path; an error if the host would reject it.
    pub fn fill(&self, captures: Option<&Captures<'_>>) -> Result<Location, String> {
        let group =
            |index| captures.and_then(|captures| captures.get(index)).map_or(&b""[..], |found| found.as_bytes());
        self.fill_with(group)
    }

    /// Returns the location for groups that all have the same text.
    pub fn sample(&self, text: &str) -> Result<Location, String> {
        self.fill_with(|_| text.as_bytes())
    }

    fn fill_with<'a>(&self, group: impl Fn(usize) -> &'a [u8]) -> Result<Location, String> {
        let filled = |pieces: &[Piece], escaped: &[u8]| {
            let mut text = String::new();
            for piece in pieces {
                match piece {
                    Piece::Text(piece) => text.push_str(piece),
                    Piece::Group(index) if text.len() <= LONGEST => push_escaped(&mut text, group(*index), escaped),
                    Piece::Group(_) => return Err(format!("a result of more than {LONGEST} bytes")),
                }
            }
            Ok(text)
        };
        Ok(Location {
            site: self.site.clone(),
            path: checked(&filled(&self.path, b"?#")?)?,
            // A part of a path must not become several parameters.
            query: self.query.as_ref().map(|query| filled(query, b"?#&=+;")).transpose()?,
            fragment: self.fragment.clone(),
        })
    }
}

/// Returns the scheme and authority of a target, and the rest. Groups in an authority would let a client choose it.
fn split_site(text: &str) -> Result<(Option<&str>, &str), String> {
    if text.starts_with("//") {
        return Err(format!("invalid target: `{text}` begins with two slashes; write the scheme too: `https:{text}`"));
    }
    let Some(scheme) = ["https://", "http://"].into_iter().find(|scheme| text.starts_with(scheme)) else {
        return Ok((None, text));
    };
    let length = text[scheme.len()..].find(['/', '?', '#']).unwrap_or(text.len() - scheme.len());
    let (site, rest) = text.split_at(scheme.len() + length);
    if !is_authority(&site[scheme.len()..]) {
        return Err(format!(
            "invalid host: `{site}`; expected a fixed host such as `https://example.org/`, since a request must not choose it"
        ));
    }
    Ok((Some(site), rest))
}

/// Parses text with groups: `$1`, `${name}`, and `$$` for a dollar sign.
fn pieces(text: &str, regex: Option<&Regex>) -> Result<Vec<Piece>, String> {
    let Some(regex) = regex else { return Ok(vec![Piece::Text(text.into())]) };
    let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        plain.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            plain.push('$');
            rest = after;
            continue;
        }
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        let (name, after) = match after.strip_prefix('{') {
            Some(named) => named.split_once('}').ok_or("a `${` that is not closed; expected one such as `${name}`")?,
            None if digits == 0 && after.starts_with(|letter: char| letter.is_ascii_lowercase()) => {
                return Err("a `$` without a group; the path is in groups such as `$1`, the client's query stays by itself, and \
                            `$$` is a dollar sign: a target has no variables as in nginx"
                    .into());
            }
            None if digits == 0 => {
                return Err("a `$` without a group; expected `$1` or `${name}`, or `$$` for a dollar sign".into());
            }
            None => after.split_at(digits),
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Group(group(name, regex)?));
        rest = after;
    }
    plain.push_str(rest);
    pieces.push(Piece::Text(plain));
    Ok(pieces)
}

fn group(name: &str, regex: &Regex) -> Result<usize, String> {
    let found = match name.parse::<usize>() {
        Ok(index) => Some(index).filter(|index| *index < regex.captures_len()),
        Err(_) => regex.capture_names().position(|known| known == Some(name)),
    };
    found.ok_or_else(|| {
        let groups = regex.captures_len() - 1;
        format!("unknown group: `{name}`; the expression has {groups}, and `$1` is the first of them")
    })
}

/// The length of a result beyond which no group is added.
const LONGEST: usize = 16 << 10;
