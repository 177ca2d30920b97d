//! What plugins may do beyond computing: from `[plugin.NAME.grants]` to the access of a configured plugin.

use std::ops::Range;
use std::sync::Arc;

use super::Assembly;
use crate::config::diagnostic::Source;
use crate::config::manifest::PluginTable;
use crate::config::plugin_grants::PluginGrants;
use crate::plugin::access::{GrantedAccess, WantedAccess};
use crate::plugin::engine::Plugin;

impl Assembly<'_> {
    /// Returns the access that a plugin's table grants.
    pub(super) fn access(&mut self, source: &Arc<Source>, table: &PluginTable) -> GrantedAccess {
        let PluginGrants { http } = &table.grants;
        GrantedAccess { http: self.http_destinations(source, http) }
    }

    /// Reports the access that a component wants and is not granted, with the lines that grant it.
    pub(super) fn check_access(
        &mut self,
        source: &Arc<Source>,
        use_span: &Range<usize>,
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
        let message = format!(
            "it wants more than it is granted: found the import of {}; if it may do that, add {} to the keys of this plugin",
            imports.join(" and "),
            lines.join(" and ")
        );
        self.problems.at(source, use_span.clone(), message);
    }
}
