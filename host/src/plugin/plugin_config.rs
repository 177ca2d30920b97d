//! A plugin table of the manifest, as the plugin is configured by it.

use std::sync::Arc;

use super::access::GrantedAccess;
use super::engine::Plugin;
use super::settings::{Isolation, OnError, PluginLimits};

/// A plugin table of the manifest: a component with the configuration, limits and rules for it.
pub struct PluginConfig {
    /// The name in the manifest.
    pub name: Arc<str>,
    pub plugin: Arc<Plugin>,
    /// The configuration as JSON.
    pub config: String,
    pub limits: PluginLimits,
    pub on_error: OnError,
    pub isolation: Isolation,
    /// The access that the manifest grants.
    pub access: GrantedAccess,
}

impl PluginConfig {
    /// Returns the table of a plugin that is only examined, and sees variables of the environment.
    pub fn for_examination(
        plugin: Arc<Plugin>,
        config: String,
        limits: PluginLimits,
        env: Vec<(String, String)>,
    ) -> Self {
        let (name, on_error, isolation) = ("examined".into(), OnError::Fail, Isolation::Worker);
        let access = GrantedAccess { env: env.into(), ..GrantedAccess::default() };
        PluginConfig { name, plugin, config, limits, on_error, isolation, access }
    }
}
