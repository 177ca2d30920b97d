//! The JSON Schema of a manifest, for editors. It is made from the types of [`super::manifest`] and from the comments of
//! their fields, whose last paragraph has the type, the default and examples of a value.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::manifest::{
    EndpointEntry, EndpointTable, MaintenanceEntry, MaintenanceTable, Manifest, OnErrorValue, Path, PathTable,
    PluginRef, PluginTable, RedirectToHttps, SizeOrOff, StatusWord, StripPrefix, TableOrOff,
};

/// The schema of a stock plugin's configuration.
pub struct PluginSchema<'a> {
    /// The name of the plugin, as the key `use` has it.
    pub name: &'a str,
    pub schema: Value,
}

/// A text with a reference, which may have any value.
const REFERENCE: &str = r"\$\{(env|file|credential):";

/// The texts of the types that a comment names, as regular expressions.
const PATTERNS: [(&str, &str); 2] = [("duration", "^[0-9]+ *(ms|s|m|h|d)$"), ("size", "^[0-9]+ *(B|KiB|MiB|GiB)$")];

/// Returns the schema of a manifest, with those of stock plugins for their configurations.
pub fn schema(plugins: Vec<PluginSchema<'_>>) -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Manifest>().to_value();
    simplify(&mut schema);
    schema["title"] = "A manifest of Plugway".into();
    for PluginSchema { name, schema: of_plugin } in plugins {
        add_plugin(&mut schema, name, of_plugin);
    }
    schema
}

/// Adds the schema of a plugin's configuration, which holds where `use` names the plugin.
fn add_plugin(schema: &mut Value, name: &str, mut of_plugin: Value) {
    let Some(definitions) = schema.get_mut("$defs").and_then(Value::as_object_mut) else { return };
    rename_references(&mut of_plugin, &format!("#/$defs/{name}."));
    let mut own = Map::new();
    if let Some(object) = of_plugin.as_object_mut() {
        object.remove("$schema");
        if let Some(Value::Object(nested)) = object.remove("$defs") {
            own = nested.into_iter().map(|(key, nested)| (format!("{name}.{key}"), nested)).collect();
        }
    }
    definitions.extend(own);
    definitions.insert(name.into(), of_plugin);
    let rule = json!({
        "if": { "properties": { "use": { "const": name } }, "required": ["use"] },
        "then": { "properties": { "config": { "$ref": format!("#/$defs/{name}") } } },
    });
    if let Some(rules) = definitions.get_mut("PluginTable").and_then(Value::as_object_mut) {
        let rules = rules.entry("allOf").or_insert_with(|| json!([]));
        if let Some(rules) = rules.as_array_mut() {
            rules.push(rule);
        }
    }
}

/// Adds a prefix to the references of a schema to its own definitions.
fn rename_references(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("$ref", Value::String(path)) => *path = path.replace("#/$defs/", prefix),
                    (_, value) => rename_references(value, prefix),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| rename_references(item, prefix)),
        _ => {}
    }
}

/// Removes parts of a schema that no manifest can have, such as `null`, and adds the texts of the comments.
fn simplify(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                match value {
                    // Their keys are names that have schemas, not words of the schema itself.
                    Value::Object(named) if key == "properties" || key == "$defs" => {
                        named.values_mut().for_each(simplify);
                    }
                    value => simplify(value),
                }
            }
            without_null(object);
            object.remove("format");
            // Defaults of types in Rust: the comment has the default of the key.
            object.remove("default");
            with_reference(object);
            with_comment(object);
        }
        Value::Array(list) => list.iter_mut().for_each(simplify),
        _ => {}
    }
}

/// Removes `null` from the types of a value: TOML has none.
fn without_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".into(), only);
        }
    }
    let is_null = |schema: &Value| schema.get("type").is_some_and(|name| name == "null");
    let Some(Value::Array(choices)) = object.get_mut("anyOf") else { return };
    choices.retain(|choice| !is_null(choice));
    if let [Value::Object(only)] = choices.as_slice() {
        let only = only.clone();
        object.remove("anyOf");
        for (key, value) in only {
            object.entry(key).or_insert(value);
        }
    }
}

/// Allows a reference instead of a word.
fn with_reference(object: &mut Map<String, Value>) {
    let is_text = object.get("type").is_some_and(|name| name == "string");
    if is_text && let Some(words) = object.remove("enum") {
        object.remove("type");
        let reference = json!({ "type": "string", "pattern": REFERENCE });
        object.insert("anyOf".into(), json!([{ "enum": words }, reference]));
    }
}

/// Adds the format of a text, and the words that are allowed, from the last paragraph of the comment.
fn with_comment(object: &mut Map<String, Value>) {
    let description = object.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
    let Some((_, facts)) = description.rsplit_once("Type: ") else { return };
    let kind = facts.split(['.', ';']).next().unwrap_or(facts);
    let kind = if facts.starts_with("`\"") { words_of(facts) } else { Vec::from([kind.to_string()]) };
    if object.get("type").is_none_or(|name| name != "string") {
        return;
    }
    if let [_, _, ..] = kind.as_slice() {
        object.insert("enum".into(), kind.into());
        with_reference(object);
    } else if let Some((_, pattern)) = PATTERNS.iter().find(|(known, _)| kind.iter().any(|kind| kind == known)) {
        object.insert("pattern".into(), format!("{pattern}|{REFERENCE}").into());
    }
}

/// Returns the words of a type such as `` `"1.2"` or `"1.3"` ``; an empty list if the type has other values too.
fn words_of(facts: &str) -> Vec<String> {
    let end = [". Default:", ". Required", ". Example:"].into_iter().filter_map(|mark| facts.find(mark)).min();
    let kind = &facts[..end.unwrap_or(facts.len())];
    let parts: Vec<&str> = kind.split(", ").flat_map(|part| part.split(" or ")).collect();
    let word = |part: &&str| part.strip_prefix("`\"")?.strip_suffix("\"`").map(String::from);
    parts.iter().map(word).collect::<Option<Vec<_>>>().unwrap_or_default()
}

// === Values of several types ===

/// Implements a schema that is written in place.
macro_rules! inline_schema {
    ($type:ty, $generator:ident => $schema:expr) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

inline_schema!(EndpointEntry, generator => text_or(generator.subschema_for::<EndpointTable>()));
inline_schema!(PluginRef, generator => text_or(generator.subschema_for::<PluginTable>()));
inline_schema!(MaintenanceEntry, generator => text_or(generator.subschema_for::<MaintenanceTable>()));
inline_schema!(SizeOrOff, _generator => json_schema!({ "anyOf": [{ "type": "boolean" }, { "type": "string" }] }));
inline_schema!(StripPrefix, _generator => json_schema!({ "anyOf": [{ "type": "boolean" }, { "type": "string" }] }));
inline_schema!(Path, generator => {
    let table = generator.subschema_for::<PathTable>();
    text_or(json_schema!({ "allOf": [table, { "minProperties": 1, "maxProperties": 1 }] }))
});
inline_schema!(StatusWord, _generator => json_schema!({
    "anyOf": [{ "type": "integer", "minimum": 100, "maximum": 599 }, { "type": "string" }]
}));
inline_schema!(OnErrorValue, _generator => json_schema!({
    "anyOf": [
        { "enum": ["fail", "skip"] },
        { "type": "integer", "minimum": 200, "maximum": 599 },
        { "type": "string", "pattern": REFERENCE },
    ]
}));
inline_schema!(RedirectToHttps, _generator => json_schema!({
    "anyOf": [{ "type": "boolean" }, { "type": "integer", "minimum": 1, "maximum": 65535 }]
}));

impl<T: JsonSchema> JsonSchema for TableOrOff<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let table = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [table, { "type": "boolean" }] })
    }
}

fn text_or(table: Schema) -> Schema {
    json_schema!({ "anyOf": [{ "type": "string" }, table] })
}
