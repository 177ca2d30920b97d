//! Finds the parts of a plugin's schema that describe a position in its configuration.

use serde_json::Value;

/// The `format` of strings that a plugin uses as templates.
const TEMPLATE: &str = "plugway-template";

/// The key by which a schema says that a value, with all values in it, is no secret.
const PUBLIC: &str = "x-plugway-public";

/// The key by which a schema says that the plugin protects what is behind it from clients.
const GUARD: &str = "x-plugway-guard";

/// The maximum number of subschemas that are examined for one position: a schema may refer to itself.
const MAX_SUBSCHEMAS: usize = 10_000;

/// Whether a schema says that the string at a JSON pointer is a template.
pub fn is_template(schema: &Value, pointer: &str) -> bool {
    at(schema, pointer).iter().any(|part| part.get("format").and_then(Value::as_str) == Some(TEMPLATE))
}

/// Whether a schema says that the value at a JSON pointer, or one that contains it, is no secret.
pub fn is_public(schema: &Value, pointer: &str) -> bool {
    let ends = pointer.match_indices('/').map(|(end, _)| end).chain([pointer.len()]);
    let mut values = ends.flat_map(|end| at(schema, &pointer[..end]));
    values.any(|part| part.get(PUBLIC).and_then(Value::as_bool) == Some(true))
}

/// Whether the text of a schema says that the plugin decides which clients get the responses behind it.
pub fn is_guard(schema: &str) -> bool {
    let is_guard = |schema: Value| schema.get(GUARD).and_then(Value::as_bool) == Some(true);
    // Most schemas need not be parsed.
    schema.contains(GUARD) && serde_json::from_str(schema).is_ok_and(is_guard)
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
    let mut fuel = MAX_SUBSCHEMAS;
    let mut parts = alternatives(schema, vec![schema], &mut fuel);
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        let below = parts.iter().flat_map(|part| below(part, &step)).collect();
        parts = alternatives(schema, below, &mut fuel);
    }
    parts
}

/// Returns schemas with those that they refer to, and those that they consist of.
fn alternatives<'a>(root: &'a Value, mut pending: Vec<&'a Value>, fuel: &mut usize) -> Vec<&'a Value> {
    let mut all = Vec::new();
    while let Some(part) = pending.pop() {
        if *fuel == 0 {
            break;
        }
        *fuel -= 1;
        let referred = part.get("$ref").and_then(Value::as_str).and_then(|name| root.pointer(name.strip_prefix('#')?));
        pending.extend(referred);
        let composed = ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|key| part.get(key)?.as_array());
        pending.extend(composed.flatten());
        all.push(part);
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
}
