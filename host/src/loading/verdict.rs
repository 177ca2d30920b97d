//! The errors that a plugin's schema finds in a configuration, in terms of the manifest.

use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use jsonschema::{JsonType, ValidationError, Validator};
use serde_json::Value;

use super::messages::{ConfigComplaint, ConfigVerdict, text};
use super::schema_at;
use crate::config::diagnostic::MAX_SHOWN;
use crate::config::serde_messages::meant;

/// A schema that is valid itself.
pub(super) struct Schema {
    validator: Validator,
    schema: Value,
}

impl Schema {
    /// Parses a schema.
    pub fn new(schema: &str) -> Result<Self, String> {
        let schema: Value = serde_json::from_str(schema).map_err(|error| format!("its schema is no JSON: {error}"))?;
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
    schema: &'a Value,
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
            Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
                let branches = without_null(context, &pointer);
                match (choice(&branches, &pointer), closest(&branches)) {
                    (Some(choice), _) => self.push(&pointer, None, &format!("{} {choice}", shown(error.instance()))),
                    (None, Some(branch)) => branch.iter().for_each(|error| self.note(error)),
                    (None, None) => self.push(&pointer, None, &described(error)),
                }
            }
            Kind::Enum { options } if options.is_array() => {
                let message = format!("{} is none of {}", shown(error.instance()), listed(options).join(", "));
                self.push(&pointer, None, &message);
            }
            Kind::Type { kind } => self.push(&pointer, None, &self.mistyped(error, kind)),
            _ => self.push(&pointer, None, &described(error)),
        }
    }

    /// Returns the message about a value of a wrong type, with an example if the schema has one.
    fn mistyped(&self, error: &ValidationError<'_>, kind: &TypeKind) -> String {
        let types = match kind {
            TypeKind::Single(only) => vec![*only],
            TypeKind::Multiple(types) => types.iter().collect(),
        };
        // A manifest has no `null`.
        let types: Vec<JsonType> = types.into_iter().filter(|of| *of != JsonType::Null).collect();
        let names: Vec<String> = types.iter().map(|of| format!("\"{of}\"")).collect();
        let types_word = if names.len() > 1 { "types" } else { "type" };
        let value = error.instance();
        let found = format!("{} is not of {types_word} {}", shown(value), names.join(", "));
        let schema_path = error.schema_path().to_string();
        let schema = schema_path.rsplit_once('/').and_then(|(above, _)| self.schema.pointer(above));
        let example = schema.and_then(|schema| schema.get("examples")?.get(0));
        match (example, types.as_slice()) {
            (Some(example), _) => format!("{found}; expected one such as {example}"),
            (None, [JsonType::Array]) if value.is_string() && shown(value).starts_with('"') => {
                format!("{found}; write `[{}]`", shown(value))
            }
            _ => found,
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
fn shown(value: &Value) -> String {
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

/// The errors of one alternative of a schema.
type Branch = Vec<ValidationError<'static>>;

/// Returns the alternatives of a schema without the one for an absent value: a manifest has no `null`. All of them if
/// there is no other.
fn without_null<'a>(branches: &'a [Branch], pointer: &str) -> Vec<&'a Branch> {
    let is_null = |branch: &&Branch| match branch.as_slice() {
        [error] if error.instance_path().to_string() == pointer => match error.kind() {
            Kind::Type { kind: TypeKind::Single(only) } => *only == JsonType::Null,
            Kind::Constant { expected_value } => expected_value.is_null(),
            _ => false,
        },
        _ => false,
    };
    let others: Vec<&Branch> = branches.iter().filter(|branch| !is_null(branch)).collect();
    if others.is_empty() { branches.iter().collect() } else { others }
}

/// Returns what a value is none of, if one of some words is expected, or a value of another type; `None` if the value may
/// be wrong in its parts.
fn choice(branches: &[&Branch], pointer: &str) -> Option<String> {
    let (mut accepted, mut types) = (Vec::new(), Vec::new());
    for branch in branches {
        let [error] = branch.as_slice() else { return None };
        match (words_of(error), error.kind()) {
            (Some(words), _) => accepted.extend(words),
            (None, Kind::Type { kind: TypeKind::Single(only) }) if error.instance_path().to_string() == pointer => {
                types.push(format!(", nor of type \"{only}\""));
            }
            _ => return None,
        }
    }
    (!accepted.is_empty()).then(|| format!("is none of {}{}", accepted.join(", "), types.concat()))
}

/// The words that would have done, if words were wanted: a documented enum is a choice among constants.
fn words(branches: &[&Branch]) -> Option<Vec<String>> {
    let word = |branch: &&Branch| match branch.as_slice() {
        [error] => words_of(error),
        _ => None,
    };
    branches.iter().map(word).collect::<Option<Vec<_>>>().map(|words| words.concat())
}

fn words_of(error: &ValidationError<'static>) -> Option<Vec<String>> {
    match error.kind() {
        Kind::Constant { expected_value } => Some(vec![expected_value.to_string()]),
        Kind::Enum { options } => options.is_array().then(|| listed(options)),
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            words(&without_null(context, &error.instance_path().to_string()))
        }
        _ => None,
    }
}

/// Returns the options of an enum as JSON, without `null`.
fn listed(options: &Value) -> Vec<String> {
    let options = options.as_array().into_iter().flatten().filter(|option| !option.is_null());
    options.map(ToString::to_string).collect()
}

/// Returns the branch that fits furthest, which is most likely the intended one.
fn closest<'a>(branches: &[&'a Branch]) -> Option<&'a Branch> {
    let depth = |error: &ValidationError<'_>| error.instance_path().to_string().matches('/').count();
    branches.iter().copied().max_by_key(|branch| branch.iter().map(depth).max())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_optional_value_has_the_message_of_a_required_one() {
        let schema = json!({
            "properties": {
                "plain": { "enum": ["a", "b"] },
                "optional-plain": { "enum": ["a", "b", null] },
                "referred": { "anyOf": [{ "$ref": "#/$defs/Word" }, { "type": "null" }] },
                "documented": { "anyOf": [{ "$ref": "#/$defs/Documented" }, { "type": "null" }] },
                "text": { "type": ["string", "null"] },
                "time": { "type": ["null", "string"], "examples": ["1h"] },
                "number-or-text": { "type": ["integer", "string", "null"] },
                "list": { "type": ["array", "null"] },
                "either": { "anyOf": [{ "type": "string" }, { "$ref": "#/$defs/Table" }, { "type": "null" }] },
                "word-or-list": { "anyOf": [{ "$ref": "#/$defs/WordOrList" }, { "type": "null" }] },
                "nothing": { "anyOf": [{ "type": "null" }] },
            },
            "$defs": {
                "WordOrList": { "anyOf": [{ "$ref": "#/$defs/Documented" }, { "type": "array" }] },
                "Word": { "type": "string", "enum": ["a", "b"] },
                "Documented": { "oneOf": [{ "const": "a" }, { "const": "b" }, { "enum": ["c", "d"] }] },
                "Table": { "type": "object", "additionalProperties": { "type": "string" } },
            },
        });
        let schema = Schema::new(&schema.to_string()).unwrap();
        for (config, wanted) in [
            (json!({ "plain": "x" }), "\"x\" is none of \"a\", \"b\""),
            (json!({ "optional-plain": "x" }), "\"x\" is none of \"a\", \"b\""),
            (json!({ "referred": "x" }), "\"x\" is none of \"a\", \"b\""),
            (json!({ "documented": "x" }), "\"x\" is none of \"a\", \"b\", \"c\", \"d\""),
            (json!({ "text": 1 }), "1 is not of type \"string\""),
            (json!({ "time": 60 }), "60 is not of type \"string\"; expected one such as \"1h\""),
            (json!({ "number-or-text": true }), "true is not of types \"integer\", \"string\""),
            (json!({ "list": "x" }), "\"x\" is not of type \"array\"; write `[\"x\"]`"),
            (json!({ "either": { "k": 2 } }), "2 is not of type \"string\""),
            (json!({ "word-or-list": "x" }), "\"x\" is none of \"a\", \"b\", \"c\", \"d\", nor of type \"array\""),
            (json!({ "nothing": 1 }), "1 is not of type "),
        ] {
            let Some(ConfigVerdict::Refused { complaints, .. }) = schema.check(&config.to_string()) else {
                panic!("{config} is accepted")
            };
            let messages: Vec<&str> = complaints.iter().map(|complaint| complaint.message.as_str()).collect();
            assert_eq!(messages, [wanted], "{config}");
        }
    }
}
