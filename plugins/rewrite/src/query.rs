//! Edits to the query. Names are compared without percent-encoding; parameters that no edit names stay as they are.

use std::borrow::Cow;

use plugway_sdk::{ConfigError, Setup, percent};

use crate::config::QueryConfig;
use crate::location::push_byte;

/// The edits, in their order.
#[derive(Debug, Default)]
pub struct QueryEdits {
    keep: Option<Vec<Pattern>>,
    remove: Vec<Pattern>,
    rename: Vec<(String, String)>,
    set: Vec<(String, String)>,
    is_sorted: bool,
}

/// A name, or the beginning of one.
#[derive(Debug)]
struct Pattern {
    begin: String,
    is_whole: bool,
}

impl QueryEdits {
    /// Checks the edits; errors are reported.
    pub fn new(config: &QueryConfig, setup: &mut Setup) -> Self {
        let mut check = |key: &str, name: &str| {
            if name.is_empty() {
                setup.report(ConfigError::at(format!("/query/{key}"), "empty name; expected one such as `page`"));
            }
        };
        config.keep.iter().flatten().for_each(|name| check("keep", name));
        config.remove.iter().for_each(|name| check("remove", name));
        config.rename.iter().for_each(|(from, to)| [from, to].into_iter().for_each(|name| check("rename", name)));
        config.set.keys().for_each(|name| check("set", name));
        let pairs = |table: &std::collections::BTreeMap<String, String>| {
            table.iter().map(|(from, to)| (from.clone(), to.clone())).collect()
        };
        QueryEdits {
            keep: config.keep.as_ref().map(|names| names.iter().map(|name| Pattern::new(name)).collect()),
            remove: config.remove.iter().map(|name| Pattern::new(name)).collect(),
            rename: pairs(&config.rename),
            set: pairs(&config.set),
            is_sorted: config.sort,
        }
    }

    /// Whether there is no edit.
    pub fn is_empty(&self) -> bool {
        self.keep.is_none()
            && self.remove.is_empty()
            && self.rename.is_empty()
            && self.set.is_empty()
            && !self.is_sorted
    }

    /// Returns the query after the edits; `None` if nothing is left of it.
    pub fn apply(&self, query: Option<&str>) -> Option<String> {
        let mut pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let name = decoded(pair.split('=').next().unwrap_or_default());
            let is_kept = self.keep.as_ref().is_none_or(|keep| keep.iter().any(|pattern| pattern.matches(&name)));
            if !is_kept || self.remove.iter().any(|pattern| pattern.matches(&name)) {
                continue;
            }
            match self.rename.iter().find(|(from, _)| *from == name) {
                Some((_, to)) => pairs.push((Cow::Borrowed(to), Cow::Owned(encoded(to) + value(pair)))),
                None => pairs.push((name, Cow::Borrowed(pair))),
            }
        }
        pairs.retain(|(name, _)| !self.set.iter().any(|(set, _)| set == name));
        for (name, value) in &self.set {
            pairs.push((Cow::Borrowed(name), Cow::Owned(format!("{}={}", encoded(name), encoded(value)))));
        }
        if self.is_sorted {
            pairs.sort_by(|one, other| one.0.cmp(&other.0));
        }
        let query = pairs.iter().map(|(_, pair)| &**pair).collect::<Vec<_>>().join("&");
        Some(query).filter(|query| !query.is_empty())
    }
}

impl Pattern {
    fn new(name: &str) -> Self {
        match name.strip_suffix('*') {
            Some(begin) => Pattern { begin: begin.into(), is_whole: false },
            None => Pattern { begin: name.into(), is_whole: true },
        }
    }

    fn matches(&self, name: &str) -> bool {
        if self.is_whole { name == self.begin } else { name.starts_with(&self.begin) }
    }
}

/// Returns the value of a parameter with its `=`; empty if it has none.
fn value(pair: &str) -> &str {
    pair.find('=').map_or("", |at| &pair[at..])
}

/// Decodes a name as forms encode it.
fn decoded(name: &str) -> Cow<'_, str> {
    if !name.contains(['%', '+']) {
        return Cow::Borrowed(name);
    }
    let spaced = name.replace('+', " ");
    Cow::Owned(String::from_utf8_lossy(&percent::decode(spaced.as_bytes())).into_owned())
}

fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => encoded.push(char::from(byte)),
            false => push_byte(&mut encoded, byte),
        }
    }
    encoded
}
