//! The access of a plugin to more than computing, clocks and random numbers: what its component wants, by its imports,
//! and what the manifest grants.

use std::sync::Arc;

use super::outgoing_http::HttpDestination;
use crate::shared_state::PluginState;

/// The access that the manifest grants to a plugin.
#[derive(Clone, Default)]
pub struct GrantedAccess {
    /// The state that the plugin's instances share; `None` if it is not granted.
    pub shared: Option<PluginState>,
    /// The variables of the environment that the plugin sees, with their values.
    pub env: Arc<[(String, String)]>,
    /// The destinations of the plugin's own requests.
    pub http: Arc<[HttpDestination]>,
}

/// An access that has to be granted, by the interfaces that a component imports for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantedAccess {
    /// Requests of the plugin's own.
    Http,
    /// The state that the plugin's instances share.
    Shared,
}

impl WantedAccess {
    const ALL: [WantedAccess; 2] = [WantedAccess::Shared, WantedAccess::Http];

    /// Returns the line that grants the access, as it stands in `[plugin.NAME.grants]`.
    pub fn line(self) -> &'static str {
        match self {
            WantedAccess::Http => "http = [\"https://HOST\"]",
            WantedAccess::Shared => "shared = true",
        }
    }

    /// Returns the access that a component with such imports wants, in the order of the manifest's keys.
    pub fn of(imports: &[String]) -> Vec<WantedAccess> {
        let is_wanted = |wanted: &WantedAccess| wanted.import(imports).is_some();
        WantedAccess::ALL.into_iter().filter(is_wanted).collect()
    }

    /// Returns the first of a component's imports that needs the access; `None` if there is none.
    pub fn import(self, imports: &[String]) -> Option<&str> {
        let prefixes: &[&str] = match self {
            WantedAccess::Http => &["wasi:http/outgoing-handler@"],
            WantedAccess::Shared => &["plugway:plugin/shared@", "wasi:keyvalue/"],
        };
        let needs = |import: &&String| prefixes.iter().any(|prefix| import.starts_with(prefix));
        imports.iter().find(needs).map(String::as_str)
    }
}

impl GrantedAccess {
    /// Whether an access is granted.
    pub fn has(&self, wanted: WantedAccess) -> bool {
        match wanted {
            WantedAccess::Http => !self.http.is_empty(),
            WantedAccess::Shared => self.shared.is_some(),
        }
    }

    /// Whether instances with this access can serve where instances with another access are wanted.
    pub fn is_same(&self, other: &GrantedAccess) -> bool {
        let is_state_same = match (&self.shared, &other.shared) {
            (Some(one), Some(other)) => one.is_same(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        self.http == other.http && is_state_same && self.env == other.env
    }
}
