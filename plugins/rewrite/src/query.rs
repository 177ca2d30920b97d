//! Edits to the query. Names are compared without percent-encoding; parameters that no edit names stay as they are.

use plugway_sdk::query::Parameters;
use plugway_sdk::{ConfigError, Setup};

use crate::config::QueryConfig;

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

    /// Returns the query after the edits; empty if nothing is left of it.
    pub fn apply(&self, query: &str) -> String {
        let is_named = |patterns: &[Pattern], name: &[u8]| patterns.iter().any(|pattern| pattern.matches(name));
        let mut edited = Parameters::parse(query).retain(|name, _| {
            self.keep.as_ref().is_none_or(|keep| is_named(keep, name)) && !is_named(&self.remove, name)
        });
        // Names as they were received: what one rename makes is not renamed by another.
        edited =
            edited.rename(|name| self.rename.iter().find(|(from, _)| from.as_bytes() == name).map(|(_, to)| &**to));
        for (name, value) in &self.set {
            edited = edited.set(name, value);
        }
        if self.is_sorted {
            edited = edited.sort();
        }
        edited.to_string()
    }
}

impl Pattern {
    fn new(name: &str) -> Self {
        match name.strip_suffix('*') {
            Some(begin) => Pattern { begin: begin.into(), is_whole: false },
            None => Pattern { begin: name.into(), is_whole: true },
        }
    }

    fn matches(&self, name: &[u8]) -> bool {
        let begin = self.begin.as_bytes();
        if self.is_whole { name == begin } else { name.starts_with(begin) }
    }
}
