//! Finds the parts of a plugin's schema that describe a position in its configuration.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::Value;

/// The `format` of strings that a plugin uses as templates.
const TEMPLATE: &str = "plugway-template";

/// The key by which a schema says that a value, with all values in it, is no secret.
const PUBLIC: &str = "x-plugway-public";

/// The key by which a schema says that the plugin protects what is behind it from clients.
const GUARD: &str = "x-plugway-guard";

/// The part of a schema that has [`GUARD`]. Nothing else of the schema is kept in memory.
#[derive(Deserialize)]
struct GuardMark {
    #[serde(rename = "x-plugway-guard")]
    is_guard: bool,
}

/// The maximum number of subschemas that are examined for one position. Far more than a schema has for one; each step of
/// the position may examine all of a schema, as schemas may refer to themselves.
const MAX_SUBSCHEMAS: usize = 10_000;

/// Whether a schema says that the string at a JSON pointer is a template.
pub fn is_template(schema: &Value, pointer: &str) -> bool {
    at(schema, pointer).iter().any(|part| part.get("format").and_then(Value::as_str) == Some(TEMPLATE))
}

/// Whether a schema says that the value at a JSON pointer, or one that contains it, is no secret.
pub fn is_public(schema: &Value, pointer: &str) -> bool {
    let parts = on_the_way(schema, pointer);
    parts.iter().flatten().any(|part| part.get(PUBLIC).and_then(Value::as_bool) == Some(true))
}

/// Whether the text of a schema says that the plugin decides which clients get the responses behind it.
pub fn is_guard(schema: &str) -> bool {
    // Most schemas need not be parsed.
    schema.contains(GUARD) && serde_json::from_str(schema).is_ok_and(|mark: GuardMark| mark.is_guard)
}

/// Returns the keys that a schema knows in the table at a JSON pointer.
pub fn known_keys<'a>(schema: &'a Value, pointer: &str) -> Vec<&'a str> {
    let properties = at(schema, pointer).into_iter().filter_map(|part| part.get("properties")?.as_object());
    let mut keys: Vec<&str> = properties.flat_map(|properties| properties.keys().map(String::as_str)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Returns all parts of a schema that may be about the value at a JSON pointer (RFC 6901).
fn at<'a>(schema: &'a Value, pointer: &str) -> Vec<&'a Value> {
    on_the_way(schema, pointer).pop().unwrap_or_default()
}

/// Returns the parts of a schema that may be about a configuration, then those about the value at each step of a JSON
/// pointer: [`MAX_SUBSCHEMAS`] at most in all.
fn on_the_way<'a>(schema: &'a Value, pointer: &str) -> Vec<Vec<&'a Value>> {
    let mut fuel = MAX_SUBSCHEMAS;
    let mut parts = alternatives(schema, [schema], &mut fuel);
    let mut all = Vec::new();
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        let next = alternatives(schema, parts.iter().flat_map(|part| below(part, &step)), &mut fuel);
        all.push(std::mem::replace(&mut parts, next));
    }
    all.push(parts);
    all
}

/// Returns schemas with those that they refer to, and those that they consist of, each once: a schema may refer to one of
/// its parts in any number of places.
fn alternatives<'a>(root: &'a Value, first: impl IntoIterator<Item = &'a Value>, fuel: &mut usize) -> Vec<&'a Value> {
    let (mut all, mut seen) = (Vec::new(), HashSet::new());
    let mut add = |all: &mut Vec<&'a Value>, part: &'a Value| {
        if *fuel > 0 && seen.insert(std::ptr::from_ref(part)) {
            *fuel -= 1;
            all.push(part);
        }
    };
    first.into_iter().for_each(|part| add(&mut all, part));
    let mut examined = 0;
    while let Some(part) = all.get(examined).copied() {
        examined += 1;
        let referred = part.get("$ref").and_then(Value::as_str).and_then(|name| root.pointer(name.strip_prefix('#')?));
        let composed = ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|key| part.get(key)?.as_array());
        referred.into_iter().chain(composed.flatten()).for_each(|part| add(&mut all, part));
    }
    all
}

/// Returns the schemas of a key of a table, or of an item of a list.
fn below<'a>(part: &'a Value, step: &str) -> Vec<&'a Value> {
    let named = part.get("properties").and_then(|properties| properties.get(step));
    if named.is_some() {
        return named.into_iter().collect();
    }
    let index = step.parse::<usize>().ok();
    let item = index.and_then(|index| {
        let own = part.get("prefixItems").and_then(|items| items.get(index));
        own.or_else(|| part.get("items"))
    });
    part.get("additionalProperties").into_iter().chain(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_through_references_and_alternatives() {
        let schema = serde_json::json!({
            "properties": {
                "set": { "additionalProperties": { "$ref": "#/$defs/Template" } },
                "list": { "anyOf": [{ "type": "null" }, { "items": { "$ref": "#/$defs/Template" } }] },
                "plain": { "type": "string" },
                "self": { "$ref": "#" },
                "a/b": { "allOf": [{ "$ref": "#/$defs/Template" }] },
            },
            "$defs": { "Template": { "type": "string", "format": "plugway-template" }, "loop": { "$ref": "#/$defs/loop" } },
        });
        for pointer in ["/set/X-A", "/list/3", "/self/self/set/x", "/a~1b"] {
            assert!(is_template(&schema, pointer), "{pointer}");
        }
        for pointer in ["", "/set", "/plain", "/plain/x", "/list", "/none", "/list/x"] {
            assert!(!is_template(&schema, pointer), "{pointer}");
        }
        assert_eq!(known_keys(&schema, "/self"), ["a/b", "list", "plain", "self", "set"]);
        let schema = serde_json::json!({
            "properties": {
                "deny": { "anyOf": [{ "$ref": "#/$defs/List" }, { "type": "null" }] },
                "keys": { "items": { "type": "string" } },
            },
            "$defs": { "List": { "x-plugway-public": true, "items": { "type": "string" } } },
        });
        for pointer in ["/deny", "/deny/0"] {
            assert!(is_public(&schema, pointer), "{pointer}");
        }
        for pointer in ["", "/keys", "/keys/0", "/none"] {
            assert!(!is_public(&schema, pointer), "{pointer}");
        }
        assert!(is_guard(r#"{ "x-plugway-guard": true }"#));
        assert!(!is_guard(r#"{ "properties": { "x-plugway-guard": true } }"#) && !is_guard("{}"));
        let endless = serde_json::json!({ "$ref": "#", "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] });
        assert!(!is_template(&endless, "/a/b"));
    }

    /// A part that refers to the schema again and again was examined as often, and its references took gigabytes.
    #[test]
    fn each_part_is_examined_once_for_a_position() {
        let referring = |times| serde_json::json!({ "anyOf": vec![serde_json::json!({ "$ref": "#" }); times] });
        assert_eq!(at(&referring(1_000), "").len(), 1_001);
        assert_eq!(at(&referring(2 * MAX_SUBSCHEMAS), "").len(), MAX_SUBSCHEMAS);
        let below = serde_json::json!({
            "properties": { "a": { "oneOf": [{ "format": "plugway-template" }, { "$ref": "#/properties/a" }] } },
            "allOf": [{ "$ref": "#" }, { "additionalProperties": { "$ref": "#" } }],
        });
        assert_eq!(at(&below, "/a").len(), 7);
        assert!(is_template(&below, "/a/b/c/a"));
    }
}
