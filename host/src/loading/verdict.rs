//! The errors that a plugin's schema finds in a configuration, in terms of the manifest.

use jsonschema::error::ValidationErrorKind as Kind;
use jsonschema::{ValidationError, Validator};

use super::messages::{ConfigComplaint, ConfigVerdict, text};
use super::schema_at;
use crate::config::diagnostic::MAX_SHOWN;
use crate::config::serde_messages::meant;

/// A schema that is valid itself.
pub(super) struct Schema {
    validator: Validator,
    schema: serde_json::Value,
}

impl Schema {
    /// Parses a schema.
    pub fn new(schema: &str) -> Result<Self, String> {
        let schema: serde_json::Value =
            serde_json::from_str(schema).map_err(|error| format!("its schema is no JSON: {error}"))?;
        let validator = jsonschema::validator_for(&schema);
        let validator = validator.map_err(|error| text(&format!("its schema is not valid: {error}")))?;
        Ok(Schema { validator, schema })
    }

    /// Checks a configuration; `None` if the schema has nothing against it.
    pub fn check(&self, config: &str) -> Option<ConfigVerdict> {
        let config = match serde_json::from_str(config) {
            Ok(config) => config,
            Err(error) => return Some(ConfigVerdict::Failed(format!("the configuration is no JSON: {error}"))),
        };
        let mut complaints = Complaints { schema: &self.schema, list: Vec::new(), more: 0 };
        self.validator.iter_errors(&config).for_each(|error| complaints.note(&error));
        let Complaints { list, more, .. } = complaints;
        (!list.is_empty()).then_some(ConfigVerdict::Refused { complaints: list, more })
    }
}

struct Complaints<'a> {
    schema: &'a serde_json::Value,
    list: Vec<ConfigComplaint>,
    /// The number of errors that are not in the list.
    more: u64,
}

impl Complaints<'_> {
    fn note(&mut self, error: &ValidationError<'_>) {
        if self.list.len() >= MAX_SHOWN {
            self.more += 1;
            return;
        }
        let pointer = error.instance_path().to_string();
        match error.kind() {
            Kind::AdditionalProperties { unexpected } => {
                let room = MAX_SHOWN - self.list.len();
                self.more += unexpected.len().saturating_sub(room) as u64;
                let known = schema_at::known_keys(self.schema, &pointer);
                for key in unexpected.iter().take(room) {
                    let message = unknown(key, &known);
                    self.push(&pointer, Some(text(key)), &message);
                }
            }
            Kind::AnyOf { context } | Kind::OneOfNotValid { context } => match (words(context), closest(context)) {
                (Some(words), _) => {
                    self.push(&pointer, None, &format!("{} is none of {words}", shown(error.instance())))
                }
                (None, Some(branch)) => branch.iter().for_each(|error| self.note(error)),
                (None, None) => self.push(&pointer, None, &described(error)),
            },
            _ => self.push(&pointer, None, &described(error)),
        }
    }

    fn push(&mut self, pointer: &str, key: Option<String>, message: &str) {
        self.list.push(ConfigComplaint { pointer: text(pointer), key, message: text(message), by_schema: true });
    }
}

/// The longest value that a message repeats, in bytes of JSON. A value is repeated whole or not at all: a part of one
/// could not be told from other text.
const MAX_VALUE_BYTES: usize = 200;

/// The most keys that a message lists.
const MAX_KEYS: usize = 40;

/// Returns a value as a message shows it.
fn shown(value: &serde_json::Value) -> String {
    let json = value.to_string();
    if json.len() <= MAX_VALUE_BYTES { json } else { "the value".into() }
}

/// Returns the message of an error.
fn described(error: &ValidationError<'_>) -> String {
    let value = error.instance().to_string();
    if value.len() <= MAX_VALUE_BYTES { error.to_string() } else { error.masked_with("the value").to_string() }
}

/// Returns the message about a key that is not one of the known keys.
fn unknown(key: &str, known: &[&str]) -> String {
    let hint = meant(key, known.iter().copied()).map_or(String::new(), |meant| format!("; did you mean `{meant}`?"));
    let separator = if hint.is_empty() { "; " } else { " " };
    match known {
        [] => format!("the plugin knows no key `{key}` here"),
        known => {
            let listed: Vec<String> = known.iter().take(MAX_KEYS).map(|key| format!("`{key}`")).collect();
            let more = if known.len() > MAX_KEYS { " and others" } else { "" };
            format!("the plugin knows no key `{key}` here{hint}{separator}expected one of {}{more}", listed.join(", "))
        }
    }
}

/// The words that would have done, if words were wanted: a documented enum is a choice among constants.
fn words(branches: &[Vec<ValidationError<'static>>]) -> Option<String> {
    let word = |branch: &Vec<ValidationError<'static>>| match branch.first()?.kind() {
        Kind::Constant { expected_value } => Some(expected_value.to_string()),
        Kind::Enum { options } => {
            Some(options.as_array()?.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
        _ => None,
    };
    branches.iter().map(word).collect::<Option<Vec<_>>>().map(|words| words.join(", "))
}

/// Returns the branch that fits furthest, which is most likely the intended one.
fn closest<'a>(branches: &'a [Vec<ValidationError<'static>>]) -> Option<&'a Vec<ValidationError<'static>>> {
    let depth = |error: &ValidationError<'_>| error.instance_path().to_string().matches('/').count();
    branches.iter().max_by_key(|branch| branch.iter().map(depth).max())
}
