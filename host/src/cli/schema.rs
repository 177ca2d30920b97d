//! The JSON Schema of manifests, with those of the stock plugins' configurations.

use std::path::Path;

use anyhow::Context;

use crate::config::schema::{self, PluginSchema};
use crate::loading::{self, Component, Loader, Stop};
use crate::plugin::engine::Runtime;

/// Returns the schema as a text. The stock plugins are compiled unless the folder `cache` has them.
pub fn text(cache: Option<&Path>) -> anyhow::Result<String> {
    let (runtime, loader) = (Runtime::start(cache)?, Loader::in_children(Stop::default()));
    let described = |(name, bytes): &(&'static str, &'static [u8])| -> anyhow::Result<PluginSchema<'static>> {
        let config = config_schema(&runtime, &loader, bytes).with_context(|| format!("the plugin `{name}`"))?;
        Ok(PluginSchema { name, schema: serde_json::from_str(&config).context("its schema is no JSON")? })
    };
    let plugins = plugway_plugins::STOCK.iter().map(described).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(serde_json::to_string_pretty(&schema::schema(plugins))? + "\n")
}

/// Returns the schema of a stock plugin's configuration, as the plugin describes it.
fn config_schema(runtime: &Runtime, loader: &Loader, bytes: &'static [u8]) -> anyhow::Result<String> {
    let mut component = Component::stock(bytes);
    let seal = runtime.seal(&component.digest);
    let known = runtime.load_compiled(&seal).and_then(|(about, _)| loading::config_schema(&about));
    if let Some(schema) = known {
        return Ok(schema);
    }
    let examination =
        loader.start(&mut component, None, seal).map_err(|failure| anyhow::Error::msg(failure.to_string()))?;
    examination.about.schema.context("it describes no configuration")
}
