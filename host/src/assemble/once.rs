//! Keys of the process as a whole that stand in several files of a manifest: only one of them would be obeyed.

use std::collections::HashMap;
use std::sync::Arc;

use super::Assembly;
use crate::config::diagnostic::Source;
use crate::config::manifest::Manifest;
use crate::config::spans;

impl Assembly<'_> {
    /// Reports keys that may stand once, and stand in another file too.
    pub(super) fn once(&mut self, files: &[(Arc<Source>, Manifest)]) {
        let mut known: HashMap<&str, String> = HashMap::new();
        for (source, file) in files {
            let keys = [
                ("workers", file.workers.is_some()),
                ("drain-timeout", file.drain_timeout.is_some()),
                ("access-log", file.access_log.is_some()),
                ("maintenance", file.maintenance.is_some()),
                ("admin", file.admin.is_some()),
                ("load", file.load.is_some()),
                ("resolver", file.resolver.is_some()),
                ("buffers", file.buffers.is_some()),
                ("cache", file.cache.is_some()),
                ("shared", file.shared.is_some()),
            ];
            for (key, _) in keys.into_iter().filter(|(_, is_set)| *is_set) {
                let span = spans::key(&source.text, key).unwrap_or(0..0);
                if let Some(location) = known.get(key) {
                    let message = format!("`{key}` set twice: {location} sets it too; keep one of them");
                    self.problems.at(source, span, message);
                } else {
                    known.insert(key, source.location(&span));
                }
            }
        }
        let mut pages: HashMap<&str, String> = HashMap::new();
        for (source, codes) in
            files.iter().flat_map(|(source, file)| file.error_page.keys().map(move |key| (source, key)))
        {
            if let Some(location) = pages.get(codes.get_ref().as_str()) {
                let message =
                    format!("error page set twice: {location} has one for `{}` too; keep one", codes.get_ref());
                self.problems.at(source, codes.span(), message);
            } else {
                pages.insert(codes.get_ref(), source.location(&codes.span()));
            }
        }
    }
}
