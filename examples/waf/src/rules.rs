//! The rules of the configuration.

use memchr::memmem::Finder;
use plugway_sdk::{ConfigError, token};

use crate::text::{Text, normal};

/// A rule; it needs one of `contains`, `only` and `max-length`.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RuleConfig {
    /// The identifier, which refusals and the log show: a token.
    id: String,
    /// The part of requests that the rule is about.
    r#in: Place,
    /// The names of the parameters, cookies or fields; all if absent. In a body, those of a form.
    #[serde(default)]
    names: Vec<String>,
    /// A value that has one of these texts meets the rule, in any case and with any white space.
    #[serde(default)]
    contains: Vec<String>,
    /// A value other than these meets the rule.
    only: Option<Vec<String>>,
    /// A value of more bytes meets the rule.
    max_length: Option<usize>,
}

/// A part of requests.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    Method,
    Path,
    Query,
    Cookies,
    Fields,
    Body,
}

/// A rule that has been checked.
pub struct Rule {
    pub id: String,
    pub place: Place,
    pub names: Vec<String>,
    contains: Vec<Finder<'static>>,
    only: Option<Vec<String>>,
    max_length: Option<usize>,
}

impl Rule {
    /// Checks a rule. The path of an error is that within the rule.
    pub fn new(config: RuleConfig) -> Result<Self, ConfigError> {
        let RuleConfig { id, r#in: place, names, contains, only, max_length } = config;
        if !token::is_token(&id) {
            return Err(ConfigError::at("/id", format!("`{id}` is no token; expected one such as `sql-union`")));
        }
        if contains.is_empty() && only.is_none() && max_length.is_none() {
            return Err(ConfigError::at("", "the rule has no condition; add `contains`, `only` or `max-length`"));
        }
        if let Some(empty) = contains.iter().position(|text| text.trim().is_empty()) {
            return Err(ConfigError::at(format!("/contains/{empty}"), "expected a text such as `union select`"));
        }
        if !names.is_empty() && matches!(place, Place::Method | Place::Path) {
            return Err(ConfigError::at("/names", "expected no names here: a method and a path have none"));
        }
        let finder = |text: &String| Finder::new(&normal(text.as_bytes())).into_owned();
        Ok(Rule { id, place, names, contains: contains.iter().map(finder).collect(), only, max_length })
    }

    /// Whether a value meets the rule.
    pub fn is_met(&self, value: &Text) -> bool {
        let has = |text: &Finder<'_>| value.forms.iter().any(|form| text.find(form).is_some());
        self.max_length.is_some_and(|max| value.written.len() > max)
            || self.only.as_ref().is_some_and(|only| !only.iter().any(|known| known.as_bytes() == value.written))
            || self.contains.iter().any(has)
    }
}
