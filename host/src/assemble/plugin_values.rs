//! Values of references in the configuration of a plugin: templates take them literally, and no message about them shows
//! a part of them.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::Assembly;
use crate::config::diagnostic::{Diagnostics, Source};
use crate::config::redaction::{MessageText, without_parts, without_words};
use crate::config::replaced::Replaced;
use crate::config::spans::ValueSpans;
use crate::loading::{Component, ConfigComplaint, LoadFailure, schema_at};

impl Assembly<'_> {
    /// Doubles the braces of values where the plugin's schema says that a string is a template.
    pub(super) fn take_literally(
        &mut self,
        source: &Arc<Source>,
        use_span: &Range<usize>,
        component: &mut Component,
        config: &mut Value,
    ) -> Result<(), LoadFailure> {
        let braced: Vec<Arc<Replaced>> =
            self.problems.replaced(source).filter(|string| string.has_braces()).cloned().collect();
        if braced.is_empty() {
            return Ok(());
        }
        let texts: HashSet<&str> = braced.iter().map(|string| string.text.as_str()).collect();
        let mut pointers = Vec::new();
        note_strings(config, &mut String::new(), &mut |pointer, text| {
            if texts.contains(text) {
                pointers.push(pointer.to_string());
            }
        });
        if pointers.is_empty() {
            return Ok(());
        }
        let Some(schema) = self.schema(component)? else { return Ok(()) };
        let schema: Value = serde_json::from_str(&schema).unwrap_or_default();
        pointers.retain(|pointer| schema_at::is_template(&schema, pointer));
        if pointers.is_empty() {
            return Ok(());
        }
        // By their places: the same text may be written elsewhere as a template.
        let places = ValueSpans::new(&source.text, use_span);
        for pointer in &pointers {
            let span = places.value(pointer);
            let string = braced.iter().find(|string| string.span == span);
            if let (Some(string), Some(value)) = (string, config.pointer_mut(pointer)) {
                *value = string.as_template().into();
            }
        }
        Ok(())
    }
}

/// The plugin and the configuration that a message is about.
pub(super) struct MessageOrigin<'a> {
    pub source: &'a Arc<Source>,
    pub config: &'a Value,
    /// The component, if it is that of a stock plugin: stock plugins quote what they repeat.
    pub stock: Option<&'static [u8]>,
    /// The schema of the configuration, or an empty text.
    pub schema: &'a str,
    /// The parsed schema, once a message needs it: one schema for all messages.
    pub parsed_schema: OnceCell<Value>,
    /// The variables that the plugin can read.
    pub env: &'a [(String, String)],
}

/// Returns the message about an error in a configuration, with the references in it whose values may be shown. A value
/// with another reference is not shown in messages of plugins.
pub(super) fn complaint_message(
    problems: &Diagnostics,
    origin: &MessageOrigin<'_>,
    complaint: &ConfigComplaint,
) -> (String, HashSet<String>) {
    let ConfigComplaint { pointer, key, message, by_schema } = complaint;
    let value = origin.config.pointer(pointer).filter(|_| key.is_none());
    let Some(value) = value else { return (message.clone(), HashSet::new()) };
    let strings = strings_in(problems, origin.source, value);
    if strings.is_empty() && origin.env.is_empty() {
        return (message.clone(), HashSet::new());
    }
    if strings.iter().all(|string| is_of_files(string)) && origin.is_public(pointer) {
        let public = strings.iter().flat_map(|string| string.values()).map(|value| value.reference.into());
        return (message.clone(), public.collect());
    }
    let message = match (strings.first(), origin.stock) {
        (Some(string), None) if value.is_string() && !by_schema => format!(
            "the plugin refuses `{}`; its reason may have a part of the value, so it is not shown: try the plugin with \
             another value in the place of the reference",
            string.written()
        ),
        (Some(_), _) if *by_schema => without_parts(message, &strings, MessageText(origin.schema.as_bytes())),
        (Some(_), Some(stock)) => without_parts(message, &strings, MessageText(stock)),
        (Some(_), None) => without_words(message, &strings),
        (None, _) => message.clone(),
    };
    (origin.without_variables(&message), HashSet::new())
}

/// Returns the message about a plugin that can't be used with a configuration. The plugin's own text may contain any
/// part of the configuration.
pub(super) fn failure_message(problems: &Diagnostics, origin: &MessageOrigin<'_>, message: &str) -> String {
    let strings = strings_in(problems, origin.source, origin.config);
    let message = match (strings.as_slice(), origin.stock) {
        ([], _) => message.into(),
        (strings, Some(stock)) => without_parts(message, strings, MessageText(stock)),
        (strings, None) => without_words(message, strings),
    };
    origin.without_variables(&message)
}

impl MessageOrigin<'_> {
    /// Whether the plugin says that the value at a JSON pointer is no secret.
    fn is_public(&self, pointer: &str) -> bool {
        let schema = self.parsed_schema.get_or_init(|| serde_json::from_str(self.schema).unwrap_or_default());
        schema_at::is_public(schema, pointer)
    }

    /// Returns a message without any word of the variables that the plugin can read.
    fn without_variables(&self, message: &str) -> String {
        let string = |(name, value): &(String, String)| {
            let mut string = Replaced::default();
            string.push_value(&format!("${{env:{name}}}"), value);
            Arc::new(string)
        };
        let strings: Vec<_> = self.env.iter().map(string).collect();
        if strings.is_empty() { message.into() } else { without_words(message, &strings) }
    }
}

/// Whether all values in a string are texts of files that the manifest names. Lists are kept in files; variables and
/// credentials are secrets more often, wherever they are named.
fn is_of_files(string: &Replaced) -> bool {
    string.values().all(|value| value.reference.starts_with("${file:"))
}

/// Returns the strings of a configuration in which references were replaced.
fn strings_in(problems: &Diagnostics, source: &Arc<Source>, config: &Value) -> Vec<Arc<Replaced>> {
    if problems.replaced(source).next().is_none() {
        return Vec::new();
    }
    let mut texts = HashSet::new();
    note_strings(config, &mut String::new(), &mut |_, text| {
        texts.insert(text.to_string());
    });
    problems.replaced(source).filter(|string| texts.contains(&string.text)).cloned().collect()
}

/// Passes each string of a configuration, with its JSON pointer, to a function.
pub(super) fn note_strings(value: &Value, pointer: &mut String, note: &mut impl FnMut(&str, &str)) {
    match value {
        Value::String(text) => note(pointer, text),
        Value::Array(list) => {
            for (at, item) in list.iter().enumerate() {
                with_step(pointer, &at.to_string(), |pointer| note_strings(item, pointer, note));
            }
        }
        Value::Object(table) => {
            for (key, item) in table {
                with_step(pointer, key, |pointer| note_strings(item, pointer, note));
            }
        }
        _ => {}
    }
}

/// Does work with a JSON pointer that has one more step. The pointer is not copied for each value: a key may be long.
pub(super) fn with_step<R>(pointer: &mut String, step: &str, work: impl FnOnce(&mut String) -> R) -> R {
    let length = pointer.len();
    pointer.push('/');
    pointer.push_str(&step.replace('~', "~0").replace('/', "~1"));
    let result = work(pointer);
    pointer.truncate(length);
    result
}
