//! From the `maintenance` of a route, or of the manifest, to its switch.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use crate::config::spanned::Spanned;

use super::{Assembly, beside};
use crate::config::diagnostic::Source;
use crate::config::manifest::{self, Manifest};
use crate::generation::Route;
use crate::generation::maintenance::{Maintenance, MaintenanceSwitch};

/// The default of `retry-after`.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The maximum number of files that a manifest names for maintenance: each is looked for twice a second.
const MAX_SWITCHES: usize = 1_000;

impl Assembly<'_> {
    /// Returns the maintenance of the routes without one of their own; `None` if the manifest has none.
    pub(super) fn common_maintenance(&mut self, files: &[(Arc<Source>, Manifest)]) -> Option<Maintenance> {
        // A second one is reported with the other keys that may stand once.
        let mut named = files.iter().filter_map(|(source, file)| Some((source, file.maintenance.as_ref()?)));
        let (source, wanted) = named.next()?;
        self.maintenance(source, wanted)
    }

    /// Returns the maintenance that a key describes; `None` if it has an error.
    pub(super) fn maintenance(
        &mut self,
        source: &Arc<Source>,
        wanted: &Spanned<manifest::MaintenanceEntry>,
    ) -> Option<Maintenance> {
        let (file, span, retry_after, except) = match wanted.get_ref() {
            manifest::MaintenanceEntry::File(file) => (file, wanted.span(), None, &[][..]),
            manifest::MaintenanceEntry::Table(table) => {
                let file = &table.file;
                (file.get_ref(), file.span(), table.retry_after.as_ref(), &table.except[..])
            }
        };
        if file.is_empty() {
            let message = "`maintenance` without a file: found an empty text; expected a path such as \"down\"";
            self.problems.at(source, span, message);
            return None;
        }
        let path = beside(source, file);
        let known = self.assembly.switches.len();
        let new = || Arc::new(MaintenanceSwitch::new(path.clone()));
        let switch = self.assembly.switches.entry(path.clone()).or_insert_with(new).clone();
        if known >= MAX_SWITCHES && self.assembly.switches.len() > known {
            let message = format!("too many files for maintenance: expected {MAX_SWITCHES} at most; share some");
            self.problems.at(source, span, message);
        }
        Some(Maintenance {
            switch,
            retry_after: self.retry_after(source, retry_after),
            except: self.peers(source, except),
        })
    }

    /// Returns the seconds after which clients may ask again, rounded up.
    fn retry_after(&mut self, source: &Arc<Source>, text: Option<&Spanned<String>>) -> NonZero<u32> {
        let after = self.duration(source, text, RETRY_AFTER);
        if let Some(text) = text.filter(|_| after < Duration::from_secs(1)) {
            let message = format!("`retry-after` out of range: `{}`; expected `1s` or more", text.get_ref());
            self.problems.at(source, text.span(), message);
        }
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        u32::try_from(seconds).ok().and_then(NonZero::new).unwrap_or(NonZero::<u32>::MIN)
    }
}

/// Returns the switches of routes, one for each file.
pub(super) fn switches<'r>(routes: impl Iterator<Item = &'r Route>) -> Vec<Arc<MaintenanceSwitch>> {
    let used = routes.filter_map(|route| Some(route.maintenance.as_ref()?.switch.clone()));
    let mut used: Vec<Arc<MaintenanceSwitch>> = used.collect();
    used.sort_by(|one, other| one.path().cmp(other.path()));
    used.dedup_by(|one, other| Arc::ptr_eq(one, other));
    used
}
