//! Finds the place of a value of a plugin's configuration in the manifest, for messages about it.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The positions of a plugin's configuration, which is in the table with the `use` at a given position of a text. The
/// text is parsed once for all values.
pub struct ValueSpans<'a> {
    /// The table of the plugin; `None` if it wasn't found.
    plugin: Option<DeTable<'a>>,
    plugin_span: Range<usize>,
}

impl<'a> ValueSpans<'a> {
    /// Parses the text of a manifest.
    pub fn new(text: &'a str, plugin_span: &Range<usize>) -> Self {
        let document = DeTable::parse(text).ok();
        let plugin = document.and_then(|document| beside(document.into_inner(), plugin_span));
        ValueSpans { plugin, plugin_span: plugin_span.clone() }
    }

    /// Returns the place of the value at a JSON pointer (RFC 6901), or of the nearest around it that there is.
    pub fn value(&self, pointer: &str) -> Range<usize> {
        self.find(pointer, None).unwrap_or_else(|| self.plugin_span.clone())
    }

    /// Returns the place of a key in the table at a JSON pointer.
    pub fn key(&self, pointer: &str, key: &str) -> Range<usize> {
        self.find(pointer, Some(key)).unwrap_or_else(|| self.plugin_span.clone())
    }

    fn find(&self, pointer: &str, key: Option<&str>) -> Option<Range<usize>> {
        let (name, config) = self.plugin.as_ref()?.get_key_value("config")?;
        // A table that is written in pieces has no good place of its own; the key in front of it has.
        let (mut at, mut value) = (name.span(), config);
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            let next = match value.get_ref() {
                DeValue::Table(table) => table.get_key_value(step.as_str()).map(|(name, value)| (name.span(), value)),
                DeValue::Array(array) => {
                    step.parse().ok().and_then(|index: usize| Some((array.get(index)?.span(), array.get(index)?)))
                }
                _ => None,
            };
            let Some(next) = next else { break };
            (at, value) = next;
        }
        if let (Some(key), DeValue::Table(table)) = (key, value.get_ref()) {
            return table.get_key_value(key).map(|(name, _)| name.span());
        }
        Some(if matches!(value.get_ref(), DeValue::Table(_)) { at } else { value.span() })
    }
}

/// Returns the place of a key at the top of a manifest.
pub fn key(text: &str, name: &str) -> Option<Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    document.get_ref().get_key_value(name).map(|(key, _)| key.span())
}

/// Returns the table whose `use` is at a position.
fn beside<'i>(table: DeTable<'i>, plugin_span: &Range<usize>) -> Option<DeTable<'i>> {
    fn below<'i>(node: Spanned<DeValue<'i>>, plugin_span: &Range<usize>) -> Option<DeTable<'i>> {
        match node.into_inner() {
            DeValue::Table(table) => beside(table, plugin_span),
            DeValue::Array(array) => array.into_iter().find_map(|node| below(node, plugin_span)),
            _ => None,
        }
    }
    if table.get("use").is_some_and(|name| name.span() == *plugin_span) {
        return Some(table);
    }
    table.into_iter().find_map(|(_, node)| below(node, plugin_span))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[plugin.a]
use = "x"
config.set.one = 1

[[route]]
plugins = ["b", { use = "y", config = { list = [1, "two"], "a/b" = 3 } }]
"#;

    fn found(name: &str, pointer: &str) -> &'static str {
        let start = TEXT.find(name).unwrap();
        &TEXT[ValueSpans::new(TEXT, &(start..start + name.len())).value(pointer)]
    }

    #[test]
    fn values_are_found_where_they_stand() {
        assert_eq!(found("\"x\"", "/set/one"), "1");
        assert_eq!(found("\"x\"", "/set"), "set");
        assert_eq!(found("\"x\"", "/set/none"), "set");
        assert_eq!(found("\"y\"", "/list/1"), "\"two\"");
        assert_eq!(found("\"y\"", "/a~1b"), "3");
        let start = TEXT.find("\"x\"").unwrap();
        assert_eq!(&TEXT[ValueSpans::new(TEXT, &(start..start + 3)).key("/set", "one")], "one");
    }
}
