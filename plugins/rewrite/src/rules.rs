//! Rules with regular expressions, which take linear time.

use plugway_sdk::{ConfigError, Setup};
use regex::bytes::{Regex, RegexBuilder};

use crate::config::{Canonical, RuleConfig};
use crate::location::Location;
use crate::mismatch::mismatch;
use crate::target::{Target, Use};

/// The rules in their order.
#[derive(Default)]
pub struct Rules(Vec<Rule>);

struct Rule {
    /// The index in the configuration.
    index: usize,
    regex: Regex,
    target: Target,
    status: Option<u16>,
}

impl Rules {
    /// Compiles the rules, which paths in their canonical form reach; errors are reported.
    pub fn new(rules: &[RuleConfig], canonical: &Canonical, setup: &mut Setup) -> Self {
        if rules.len() > MOST_RULES {
            let message =
                format!("too many rules: {}; expected at most {MOST_RULES}, and fixed paths in `map`", rules.len());
            setup.report(ConfigError::at("/rules", message));
            return Rules::default();
        }
        let mut compiled = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            match Rule::new(index, rule, canonical) {
                Ok(rule) => compiled.push(rule),
                Err((key, message)) => setup.report(ConfigError::at(format!("/rules/{index}/{key}"), message)),
            }
        }
        Rules(compiled)
    }

    /// Returns the location by the first rule that matches a path, and the status if the rule redirects; `None` if no rule
    /// matches.
    pub fn find(&self, path: &str) -> Option<Result<(Location, Option<u16>), String>> {
        // Groups are looked for in the rule that matches alone: room for them is allocated.
        let rule = self.0.iter().find(|rule| rule.regex.is_match(path.as_bytes()))?;
        let captures = rule.regex.captures(path.as_bytes())?;
        Some(rule.target.fill(Some(&captures)).map(|location| (location, rule.status)))
    }

    /// Returns whether a rule redirects to a site by its name.
    pub fn name_sites(&self) -> bool {
        self.0.iter().any(|rule| rule.target.has_site())
    }

    /// Returns an example of a location of each redirect, with the index of its rule.
    pub fn examples(&self) -> impl Iterator<Item = (usize, Location)> {
        let redirects = self.0.iter().filter(|rule| rule.status.is_some());
        redirects.filter_map(|rule| rule.target.sample("x").ok().map(|location| (rule.index, location)))
    }
}

impl Rule {
    /// Compiles a rule; the error has the key that is wrong.
    fn new(index: usize, rule: &RuleConfig, canonical: &Canonical) -> Result<Self, (&'static str, String)> {
        let regex = RegexBuilder::new(&rule.regex)
            .unicode(false)
            .size_limit(REGEX_SIZE)
            .dfa_size_limit(DFA_SIZE)
            .build()
            .map_err(|error| ("regex", format!("invalid regular expression: {}", reason(&error))))?;
        if let Some(why) = mismatch(&rule.regex, canonical) {
            return Err(("regex", format!("expression that no path matches: `{}`; {why}", rule.regex)));
        }
        if let Some(status) = rule.redirect {
            check_status(status).map_err(|message| ("redirect", message))?;
        }
        let purpose = if rule.redirect.is_some() { Use::Redirect } else { Use::Internal };
        let target = Target::parse(&rule.to, Some(&regex), purpose).map_err(|message| ("to", message))?;
        Ok(Rule { index, regex, target, status: rule.redirect })
    }
}

/// Returns the last line of a parser's message: those before it draw the expression with a caret.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).into()
}

/// Rejects a status that is none of a redirect.
pub fn check_status(status: u16) -> Result<(), String> {
    match status {
        301 | 302 | 303 | 307 | 308 => Ok(()),
        _ => Err(format!("invalid status of a redirect: {status}; expected 301, 302, 303, 307 or 308")),
    }
}

/// Each request that is not in the map is matched by up to this many expressions.
const MOST_RULES: usize = 64;

/// The size of a compiled expression, in bytes.
const REGEX_SIZE: usize = 256 << 10;

/// The memory for the states of an expression while it matches: with all rules a fraction of an instance's memory.
const DFA_SIZE: usize = 64 << 10;
