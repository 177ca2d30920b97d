//! The decision about a path: what the upstream gets, or where the client is redirected to. Redirects are followed here
//! before they are sent, so that a loop is an error, and no client is redirected forever.

use plugway_sdk::{ConfigError, Setup};

use crate::canonical::Canonical;
use crate::config::Config;
use crate::location::Location;
use crate::map::Map;
use crate::rules::Rules;

/// The rules for paths.
pub struct Rewriter {
    pub canonical: Canonical,
    map: Map,
    rules: Rules,
}

/// The decision about a path.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// The path stays as it is.
    Stay,
    /// The upstream gets another path, and another query if the location has one.
    Internal(Location),
    /// The client is redirected.
    Redirect(Location, u16),
}

/// The reason why there is no decision about a path.
#[derive(Debug, PartialEq)]
pub enum Failure {
    /// The client's path makes a result of a rule that no request can have, such as one with a dot segment.
    Path(String),
    /// The configuration redirects without an end, or too often.
    Loop(String),
}

impl Rewriter {
    /// Parses the rules, and checks that redirects end; errors are reported.
    pub fn new(config: &Config, setup: &mut Setup) -> Self {
        let rewriter = Rewriter {
            canonical: Canonical::new(&config.canonical, setup),
            map: Map::new(config.map.as_deref().unwrap_or_default(), setup),
            rules: Rules::new(&config.rules, &config.canonical, setup),
        };
        rewriter.errors().into_iter().take(MOST_ERRORS).for_each(|error| setup.report(error));
        rewriter
    }

    /// Returns the decision about a path that a client has requested; `site` returns the site of the request, such as
    /// `https://example.org`. Redirects within the site that follow one another with the same status become one.
    pub fn decide(&self, path: &str, site: impl Fn() -> String) -> Result<Decision, Failure> {
        let (mut location, status) = match self.step(path)? {
            Decision::Redirect(location, status) => (location, status),
            decision => return Ok(decision),
        };
        let site = site();
        let is_here = |location: &Location| location.site.as_ref().is_none_or(|other| *other == site);
        let (mut is_joined, mut trail) = (true, vec![path.to_string()]);
        let (mut is_followed, mut at) = (is_here(&location), location.path.clone());
        while is_followed {
            let is_circle = trail.contains(&at);
            trail.push(at.clone());
            if is_circle || trail.len() > MOST_REDIRECTS + 1 {
                return Err(Failure::Loop(endless(is_circle, &trail)));
            }
            let Decision::Redirect(next, other) = self.step(&at)? else { break };
            is_followed = is_here(&next);
            at.clone_from(&next.path);
            is_joined &= other == status;
            if is_joined {
                location = location.then(next);
            }
        }
        Ok(Decision::Redirect(location, status))
    }

    /// Returns whether a redirect leads to a site by its name, so that the site of the request must be known.
    pub fn names_sites(&self) -> bool {
        self.rules.name_sites()
            || self.map.entries().any(|(_, _, target)| target.is_some_and(|target| target.site.is_some()))
    }

    /// Returns the decision about a path, without regard to what happens to a redirected request.
    fn step(&self, path: &str) -> Result<Decision, Failure> {
        let canonical = self.canonical.path(path);
        if let Some(status) = self.canonical.status.filter(|_| *canonical != *path) {
            return Ok(Decision::Redirect(Location::path(&canonical).map_err(Failure::Path)?, status));
        }
        let found = match self.map.find(&canonical) {
            Some(found) => Some(found),
            None => self.rules.find(&canonical).transpose().map_err(Failure::Path)?,
        };
        Ok(match found {
            Some((location, Some(status))) => Decision::Redirect(location, status),
            Some((location, None)) => Decision::Internal(location),
            None if *canonical != *path => Decision::Internal(Location::path(&canonical).map_err(Failure::Path)?),
            None => Decision::Stay,
        })
    }

    /// Returns an error for each line of the map that no request reaches, and for each redirect that doesn't end.
    fn errors(&self) -> Vec<ConfigError> {
        let mut errors: Vec<(usize, ConfigError)> = Vec::new();
        for (path, number, target) in self.map.entries() {
            let mut wrong = |message: String| {
                errors.push((number, ConfigError::at("/map", format!("line {number}: {message}"))));
            };
            let canonical = self.canonical.path(path);
            if *canonical != *path {
                wrong(format!(
                    "no request has the path `{path}` here: its canonical form is `{canonical}`; write that"
                ));
            } else if let Some(Err(failure)) = target.map(|_| self.decide(path, String::new)) {
                wrong(failure.message());
            }
        }
        errors.sort_by_key(|(number, _)| *number);
        let errors = errors.into_iter().map(|(_, error)| error);
        let loops = self.rules.examples().filter_map(|(place, example)| {
            let message = self.ends(&example).err()?.message();
            Some(ConfigError::at(format!("/rules/{place}/to"), message))
        });
        errors.chain(loops).collect()
    }

    /// Checks that a client which is redirected to a location is not redirected forever.
    fn ends(&self, location: &Location) -> Result<(), Failure> {
        // The redirect to another site leaves the rules, as far as they know before there is a request.
        if location.site.is_some() { Ok(()) } else { self.decide(&location.path, String::new).map(drop) }
    }
}

impl Failure {
    fn message(self) -> String {
        match self {
            Failure::Path(message) | Failure::Loop(message) => message,
        }
    }
}

/// Returns the message about the paths of redirects that are in a circle, or too many.
fn endless(is_circle: bool, trail: &[String]) -> String {
    let what = match is_circle {
        true => "redirects without an end".to_string(),
        false => format!("more than {MOST_REDIRECTS} redirects in sequence"),
    };
    format!("{what}: {}; expected a target that is not redirected again", shown(trail))
}

/// Returns the beginning of a trail of paths.
fn shown(trail: &[String]) -> String {
    let paths: Vec<String> = trail.iter().take(4).map(|path| path.chars().take(64).collect()).collect();
    let more = if trail.len() > paths.len() { " -> ..." } else { "" };
    format!("`{}`{more}", paths.join("` -> `"))
}

/// A page that moves gets a further line in a map, and clients get one redirect for all of them. Rules whose results grow come
/// to this number, and are evaluated as often for a request.
const MOST_REDIRECTS: usize = 64;

/// The maximum number of errors about redirects that are reported.
const MOST_ERRORS: usize = 20;
