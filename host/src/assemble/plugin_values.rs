//! Values of references in the configuration of a plugin: templates take them literally, and no message about them shows
//! a part of them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::Assembly;
use crate::config::diagnostic::{Diagnostics, Source};
use crate::config::redaction::{without_parts, without_words};
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
        note_strings(config, "", &mut |pointer, text| {
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

/// Returns the message about an error in a configuration. A value with a reference is not shown in messages of plugins.
pub(super) fn complaint_message(
    problems: &Diagnostics,
    source: &Arc<Source>,
    config: &Value,
    complaint: &ConfigComplaint,
    is_stock: bool,
) -> String {
    let ConfigComplaint { pointer, key, message, by_schema } = complaint;
    let Some(value) = config.pointer(pointer).filter(|_| key.is_none()) else { return message.clone() };
    let strings = strings_in(problems, source, value);
    match strings.first() {
        Some(string) if value.is_string() && !is_stock && !by_schema => format!(
            "the plugin refuses `{}`; its reason may have a part of the value, so it is not shown: try the plugin with \
             another value in the place of the reference",
            string.written()
        ),
        _ => without_values(message, &strings, is_stock || *by_schema),
    }
}

/// Returns the message about a plugin that can't be used with a configuration. The plugin's own text may contain any
/// part of the configuration.
pub(super) fn failure_message(
    problems: &Diagnostics,
    source: &Arc<Source>,
    config: &Value,
    message: &str,
    is_stock: bool,
) -> String {
    without_values(message, &strings_in(problems, source, config), is_stock)
}

fn without_values(message: &str, strings: &[Arc<Replaced>], is_quoting: bool) -> String {
    match strings {
        [] => message.into(),
        strings if is_quoting => without_parts(message, strings),
        strings => without_words(message, strings),
    }
}

/// Returns the strings of a configuration in which references were replaced.
fn strings_in(problems: &Diagnostics, source: &Arc<Source>, config: &Value) -> Vec<Arc<Replaced>> {
    if problems.replaced(source).next().is_none() {
        return Vec::new();
    }
    let mut texts = HashSet::new();
    note_strings(config, "", &mut |_, text| {
        texts.insert(text.to_string());
    });
    problems.replaced(source).filter(|string| texts.contains(&string.text)).cloned().collect()
}

/// Passes each string of a configuration, with its JSON pointer, to a function.
fn note_strings(value: &Value, pointer: &str, note: &mut impl FnMut(&str, &str)) {
    match value {
        Value::String(text) => note(pointer, text),
        Value::Array(list) => {
            for (at, item) in list.iter().enumerate() {
                note_strings(item, &format!("{pointer}/{at}"), note);
            }
        }
        Value::Object(table) => {
            for (key, item) in table {
                note_strings(item, &format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")), note);
            }
        }
        _ => {}
    }
}
