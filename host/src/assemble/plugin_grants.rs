//! The grants of plugins: from `[plugin.NAME.grants]` and `[shared]` to the access of a configured plugin.

use std::ops::Range;
use std::sync::Arc;

use super::{Assembly, beside};
use crate::config::diagnostic::Source;
use crate::config::load::ManifestFile;
use crate::config::manifest::PluginTable;
use crate::config::plugin_grants::PluginGrants;
use crate::plugin::access::{GrantedAccess, WantedAccess};
use crate::plugin::engine::Plugin;
use crate::shared_state::{MAX_ENTRIES, MIN_BYTES, MIN_ENTRIES, PluginState, SharedLimits, StateOwner};

impl Assembly<'_> {
    /// Returns the limits of the state that each plugin shares.
    pub(super) fn shared_limits(&mut self, files: &[ManifestFile]) -> SharedLimits {
        let defaults = SharedLimits::default();
        let named = files.iter().find_map(|file| Some((&file.source, file.manifest.shared.as_ref()?)));
        let Some((source, shared)) = named else { return defaults };
        let bytes = self.bytes(source, shared.memory.as_ref(), defaults.bytes);
        if let Some(text) = shared.memory.as_ref().filter(|_| bytes < MIN_BYTES) {
            let min = MIN_BYTES >> 20;
            let message = format!("`memory` too small: `{}`; expected at least `{min} MiB`", text.get_ref());
            self.problems.at(source, text.span(), message);
        }
        let entries = self.up_to(source, shared.entries.as_ref(), defaults.entries, MIN_ENTRIES..=MAX_ENTRIES);
        SharedLimits { bytes, entries }
    }

    /// Returns the access that a plugin's table grants.
    pub(super) fn access(&mut self, source: &Arc<Source>, name: &str, table: &PluginTable) -> GrantedAccess {
        let PluginGrants { shared, env, http } = &table.grants;
        let shared = shared.unwrap_or(false).then(|| {
            let file = table.r#use.get_ref();
            // Plugins in the lists of routes have no names of their own: those of one file are one plugin.
            let owner = match name == file {
                true => StateOwner::File(beside(source, file).display().to_string().into()),
                false => StateOwner::Plugin(name.into()),
            };
            let local = self.assembly.shared_states.of(&owner, self.shared);
            let fleet = self.fleet.as_ref().map(|client| self.assembly.fleet_states.of(client, &owner));
            PluginState { local, fleet }
        });
        let mut variables = Vec::new();
        for name in env {
            match self.problems.granted_variable(name.get_ref()) {
                Ok(value) => variables.push((name.get_ref().clone(), value)),
                Err(message) => self.problems.at(source, name.span(), message),
            }
        }
        GrantedAccess { shared, env: variables.into(), http: self.http_destinations(source, http) }
    }

    /// Reports the access that a component wants and is not granted, with the lines that grant it. Of a component that is
    /// to replace another, the access is shown that the other one doesn't want.
    pub(super) fn check_access(
        &mut self,
        source: &Arc<Source>,
        use_span: &Range<usize>,
        name: &str,
        plugin: &Plugin,
        access: &GrantedAccess,
    ) {
        let wanted = WantedAccess::of(plugin.imports());
        let missing: Vec<WantedAccess> = wanted.into_iter().filter(|wanted| !access.has(*wanted)).collect();
        if missing.is_empty() {
            return;
        }
        let imports: Vec<String> = missing
            .iter()
            .filter_map(|wanted| wanted.import(plugin.imports()))
            .map(|import| format!("`{import}`"))
            .collect();
        let lines: Vec<String> = missing.iter().map(|wanted| format!("`grants.{}`", wanted.line())).collect();
        let running = self.assembly.versions.in_use(name);
        let is_more = |running: &Arc<Plugin>| {
            let known = WantedAccess::of(running.imports());
            missing.iter().any(|wanted| !known.contains(wanted))
        };
        let than = match running.filter(is_more) {
            Some(running) => format!(
                "version {} wants more than version {}, which runs, and more than it is granted",
                plugin.version(),
                running.version()
            ),
            None => "it wants more than it is granted".into(),
        };
        let message = format!(
            "{than}: found the import of {}; if it may do that, add {} to the keys of this plugin",
            imports.join(" and "),
            lines.join(" and ")
        );
        self.problems.at(source, use_span.clone(), message);
    }
}
