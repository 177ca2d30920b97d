//! Zones of endpoints that no balancer prefers, and preferred zones without an endpoint: warnings, since all requests are served.

use std::collections::HashMap;
use std::ops::Range;

use super::Assembly;
use crate::config::diagnostic::Doubt;
use crate::config::load::ManifestFile;
use crate::config::manifest::{EndpointEntry, EndpointTable, PluginRef, PluginTable, UpstreamTable};
use crate::config::spanned::Spanned;

/// The stock balancer, which prefers a zone.
const BALANCE: &str = "balance";

impl Assembly<'_> {
    /// Warns of upstreams whose endpoints and balancer name no zone in common. Balancers of the user's own may use zones in
    /// other ways.
    pub(super) fn warn_of_zones(&mut self, files: &[ManifestFile]) {
        let named = files.iter().flat_map(|file| &file.manifest.plugin);
        let named: HashMap<&str, &PluginTable> = named.map(|(name, table)| (name.get_ref().as_str(), table)).collect();
        let upstreams =
            files.iter().flat_map(|file| file.manifest.upstream.values().map(move |one| (&file.source, one)));
        for (source, upstream) in upstreams {
            if let Some((span, part)) = unused_zone(upstream, &named) {
                self.problems.warn(Doubt::NoEffect, source, span, &part);
            }
        }
    }
}

/// The use that a balancer makes of the zones of endpoints.
enum ZoneUse<'a> {
    /// No zone is preferred.
    None,
    /// Endpoints of this zone are preferred.
    Prefers(&'a str),
    /// The balancer is a plugin of the user's own.
    Unknown,
}

/// Returns the place of a zone without effect in an upstream, with the reason; `None` if there is none.
fn unused_zone(upstream: &UpstreamTable, named: &HashMap<&str, &PluginTable>) -> Option<(Range<usize>, String)> {
    let tables = || {
        upstream.endpoints.iter().filter_map(|endpoint| match endpoint.get_ref() {
            EndpointEntry::Table(table) => Some((endpoint.span(), &**table)),
            EndpointEntry::Address(_) => None,
        })
    };
    let preferred = match zone_use(upstream.balancer.as_ref().map(Spanned::get_ref), named) {
        ZoneUse::Prefers(zone) => zone,
        ZoneUse::Unknown => return None,
        ZoneUse::None => {
            let (span, zone) = tables().find_map(|(span, table)| Some((span, table.zone.as_ref()?)))?;
            let part = format!(
                "`zone` of endpoints: the balancer of the upstream prefers none; write `balancer = {{ use = \"balance\", config \
                 = {{ zone = {zone:?} }} }}`, or remove it"
            );
            return Some((span, part));
        }
    };
    // Further endpoints are in other files, or the value is not known yet.
    let may_be_there = |table: &EndpointTable| table.file.is_some() || table.zone.as_deref() == Some(preferred);
    if preferred.contains("${") || tables().any(|(_, table)| may_be_there(table)) {
        return None;
    }
    let part = format!(
        "`zone` of the balancer: no endpoint of the upstream is in {preferred:?}; write `zone` in endpoints, such as `{{ address = \
         \"10.0.0.1:8000\", zone = {preferred:?} }}`, or remove it"
    );
    Some((upstream.balancer.as_ref()?.span(), part))
}

/// Returns what a balancer does with zones.
fn zone_use<'a>(balancer: Option<&'a PluginRef>, named: &HashMap<&str, &'a PluginTable>) -> ZoneUse<'a> {
    let table: &PluginTable = match balancer {
        None => return ZoneUse::None,
        Some(PluginRef::Inline(table)) => table,
        Some(PluginRef::Name(name)) => match named.get(name.as_str()) {
            Some(table) => table,
            None if name == BALANCE => return ZoneUse::None,
            None => return ZoneUse::Unknown,
        },
    };
    let zone = table.config.as_ref().and_then(|config| config.get("zone")?.as_str());
    match zone {
        _ if table.r#use.get_ref() != BALANCE => ZoneUse::Unknown,
        Some(zone) => ZoneUse::Prefers(zone),
        None => ZoneUse::None,
    }
}
