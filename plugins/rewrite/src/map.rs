//! The map: fixed paths with their targets, one in each line.

use std::collections::HashMap;

use plugway_sdk::lines::{self, Line};
use plugway_sdk::path::never_requested;
use plugway_sdk::{ConfigError, Setup};

use crate::location::Location;
use crate::rules::check_status;
use crate::target::{Target, Use};

/// The targets by their paths.
#[derive(Default)]
pub struct Map(HashMap<Box<str>, Entry>);

struct Entry {
    target: Location,
    status: Option<u16>,
    line: usize,
}

impl Map {
    /// Parses the lines; errors are reported.
    pub fn new(text: &str, setup: &mut Setup) -> Self {
        let mut map = Map::default();
        let errors = lines::of(text).filter_map(|line| map.add(&line).err());
        errors.take(MOST_ERRORS).for_each(|error| setup.report(error));
        map
    }

    /// Returns the target of a path, and the status if the line redirects; `None` if the path is not in the map.
    pub fn find(&self, path: &str) -> Option<(Location, Option<u16>)> {
        self.0.get(path).map(|entry| (entry.target.clone(), entry.status))
    }

    /// Returns each path with the number of its line and, of a redirect, the target.
    pub fn entries(&self) -> impl Iterator<Item = (&str, usize, Option<&Location>)> {
        self.0.iter().map(|(path, entry)| (&**path, entry.line, entry.status.map(|_| &entry.target)))
    }

    fn add(&mut self, line: &Line<'_>) -> Result<(), ConfigError> {
        let (path, entry) = parse(line).map_err(|message| line.error("/map", message))?;
        if let Some(known) = self.0.get(path) {
            return Err(line.error("/map", format!("`{path}` is in line {} already; remove one of them", known.line)));
        }
        self.0.insert(path.into(), entry);
        Ok(())
    }
}

fn parse<'a>(line: &Line<'a>) -> Result<(&'a str, Entry), String> {
    let words: Vec<&str> = line.text.split_whitespace().collect();
    let (path, target, status) = match words[..] {
        [path, target] => (path, target, None),
        [path, target, status] => (path, target, Some(status)),
        _ => return Err(format!("invalid line: `{}`; expected `/old /new` or `/old /new 301`", line.text)),
    };
    let status = status.map(|status| {
        status
            .trim_end_matches(';')
            .parse::<u16>()
            .map_err(|_| format!("invalid status: `{status}`; expected one such as 301"))
    });
    let status = status.transpose()?;
    status.map_or(Ok(()), check_status)?;
    if let Some(why) = never_requested(path) {
        return Err(why);
    }
    let purpose = if status.is_some() { Use::Redirect } else { Use::Internal };
    let target = Target::parse(target.trim_end_matches(';'), None, purpose)?.fill(None)?;
    Ok((path, Entry { target, status, line: line.number }))
}

/// A file of another kind has an error in each line.
const MOST_ERRORS: usize = 20;
