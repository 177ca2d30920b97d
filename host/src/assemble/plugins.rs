//! From a plugin's table to a binding: load the component, check its configuration, configure it.

use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;

use super::misfit::{self, pointed};
use super::values::bytes;
use super::{Assembly, Draft, Loaded, beside};
use crate::config::locate;
use crate::config::manifest::{self, PluginRef};
use crate::config::problem::Source;
use crate::plugin::binding::{self, BindError, Binding, Isolation, Limits, OnError};
use crate::plugin::engine::{MOST_BODIES, MOST_MEMORY};

impl Assembly {
    /// Loads a component and asks it who it is; the same bytes are compiled once.
    fn load(&mut self, bytes: &[u8]) -> Result<Loaded, String> {
        let digest = blake3::hash(bytes);
        if let Some(known) = self.plugins.get(&digest) {
            return Ok(known.clone());
        }
        let plugin = Arc::new(self.runtime.load(bytes).map_err(|error| error.to_string())?);
        let description = binding::describe(&plugin).map_err(|trap| format!("it fails to describe itself: {trap}"))?;
        let schema = description.config_schema.map(|schema| serde_json::from_str(&schema)).transpose();
        let schema = schema.map_err(|error| format!("its schema is no JSON: {error}"))?.map(Arc::new);
        let loaded = Loaded { plugin, schema };
        self.plugins.insert(digest, loaded.clone());
        Ok(loaded)
    }
}

impl Draft<'_> {
    pub(super) fn bind(&mut self, source: &Arc<Source>, name: &str, plugin: &manifest::Plugin) -> Option<usize> {
        let before = self.problems.list.len();
        let limits = self.limits(source, &plugin.limits);
        let on_error = self.on_error(source, plugin.on_error.as_ref());
        let isolation = self.isolation(source, plugin.isolation.as_ref());
        let place = plugin.r#use.span();
        let loaded = component(source, plugin.r#use.get_ref()).and_then(|bytes| {
            self.used.insert(blake3::hash(&bytes));
            self.assembly.load(&bytes)
        });
        let loaded = loaded.map_err(|message| self.problems.at(source, place.clone(), message)).ok()?;
        let config = plugin.config.as_ref().map(|config| serde_json::to_value(config).unwrap_or_default());
        let config = config.unwrap_or_else(|| serde_json::json!({}));
        if let Some(schema) = &loaded.schema {
            match jsonschema::validator_for(schema) {
                Ok(validator) => {
                    validator
                        .iter_errors(&config)
                        .for_each(|error| misfit::tell(&mut self.problems, source, &place, &error));
                }
                Err(error) => self.problems.at(source, place.clone(), format!("its schema is not valid: {error}")),
            }
        }
        if self.problems.list.len() > before {
            return None;
        }
        match Binding::new(name.into(), loaded.plugin, config.to_string(), limits, on_error, isolation) {
            Ok(binding) => {
                self.bindings.push(Arc::new(binding));
                return Some(self.bindings.len() - 1);
            }
            Err(BindError::Config(errors)) => {
                for (pointer, message) in errors {
                    let span = locate::config(&source.text, &place, &pointer);
                    self.problems.at(source, span, format!("config{}: {message}", pointed(&pointer)));
                }
            }
            Err(error) => self.problems.at(source, place, error.to_string()),
        }
        None
    }

    pub(super) fn reference(&mut self, source: &Arc<Source>, reference: &Spanned<PluginRef>) -> Option<usize> {
        match reference.get_ref() {
            PluginRef::Inline(plugin) => self.bind(source, plugin.r#use.get_ref(), plugin),
            PluginRef::Name(name) => {
                if let Some(known) = self.named.get(name) {
                    return *known;
                }
                let stock = plugway_plugins::STOCK.iter().map(|(name, _)| *name);
                let known: Vec<&str> = self.named.keys().map(String::as_str).chain(stock.clone()).collect();
                if stock.clone().any(|stock| stock == name) {
                    let plain = manifest::Plugin {
                        r#use: Spanned::new(reference.span(), name.clone()),
                        config: None,
                        limits: Default::default(),
                        on_error: None,
                        isolation: None,
                    };
                    return self.bind(source, name, &plain);
                }
                let message = format!(
                    "there is no plugin `{name}`; known here: {}; or add it as [plugin.{name}]",
                    known.join(", ")
                );
                self.problems.at(source, reference.span(), message);
                None
            }
        }
    }

    pub(super) fn round_robin(&mut self, source: &Arc<Source>, span: Range<usize>) -> Option<usize> {
        if self.round_robin.is_none() {
            self.round_robin = self.reference(source, &Spanned::new(span, PluginRef::Name("balance".into())));
        }
        self.round_robin
    }

    fn limits(&mut self, source: &Arc<Source>, limits: &manifest::Limits) -> Limits {
        let defaults = Limits::default();
        let memory = limits.memory.as_ref().map(|text| match bytes(text.get_ref()) {
            Some(bytes) if (64 << 10..=MOST_MEMORY).contains(&bytes) => bytes,
            _ => {
                self.problems.at(
                    source,
                    text.span(),
                    "memory is a size between `64 KiB` and `256 MiB`, such as `16 MiB`",
                );
                defaults.memory
            }
        });
        let cpu = self.duration(source, limits.cpu.as_ref(), defaults.cpu);
        let share = self.count(source, limits.share.as_ref(), defaults.share.into(), 100) as u8;
        let bodies = self.count(source, limits.bodies.as_ref(), defaults.bodies as usize, MOST_BODIES as usize) as u32;
        Limits { memory: memory.unwrap_or(defaults.memory), cpu, share, bodies }
    }

    fn on_error(&mut self, source: &Arc<Source>, on_error: Option<&Spanned<manifest::OnError>>) -> OnError {
        let Some(on_error) = on_error else { return OnError::Fail };
        match on_error.get_ref() {
            manifest::OnError::Word(word) if word == "fail" => OnError::Fail,
            manifest::OnError::Word(word) if word == "skip" => OnError::Skip,
            manifest::OnError::Status(code) if (200..600).contains(code) => {
                http::StatusCode::from_u16(*code).map_or(OnError::Fail, OnError::Respond)
            }
            _ => {
                self.problems.at(
                    source,
                    on_error.span(),
                    "on-error is \"fail\", \"skip\" or a status between 200 and 599",
                );
                OnError::Fail
            }
        }
    }

    fn isolation(&mut self, source: &Arc<Source>, isolation: Option<&Spanned<String>>) -> Isolation {
        match isolation.map(|word| (word.get_ref().as_str(), word.span())) {
            None | Some(("worker", _)) => Isolation::Worker,
            Some(("request", _)) => Isolation::Request,
            Some((_, span)) => {
                self.problems.at(source, span, "isolation is \"worker\" or \"request\"");
                Isolation::Worker
            }
        }
    }
}

/// The bytes of a component by what `use` says.
fn component(source: &Source, name: &str) -> Result<Vec<u8>, String> {
    if let Some((_, bytes)) = plugway_plugins::STOCK.iter().find(|(stock, _)| *stock == name) {
        return Ok(bytes.to_vec());
    }
    let stock: Vec<&str> = plugway_plugins::STOCK.iter().map(|(name, _)| *name).collect();
    if !name.ends_with(".wasm") {
        return Err(format!("`{name}` is neither a stock plugin ({}) nor a `.wasm` file", stock.join(", ")));
    }
    let path = beside(source, name);
    std::fs::read(&path).map_err(|error| format!("the plugin `{}` can't be read: {error}", path.display()))
}
