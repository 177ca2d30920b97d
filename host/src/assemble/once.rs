//! Keys of the process as a whole that are in several files of a manifest, though only one of them would be used.

use std::collections::HashMap;

use super::Assembly;
use crate::config::load::ManifestFile;
use crate::config::spans;

impl Assembly<'_> {
    /// Reports keys that are allowed once, and are in another file too.
    pub(super) fn once(&mut self, files: &[ManifestFile]) {
        let mut known: HashMap<&str, String> = HashMap::new();
        for ManifestFile { source, manifest } in files {
            let keys = [
                ("workers", manifest.workers.is_some()),
                ("drain-timeout", manifest.drain_timeout.is_some()),
                ("access-log", manifest.access_log.is_some()),
                ("maintenance", manifest.maintenance.is_some()),
                ("admin", manifest.admin.is_some()),
                ("load", manifest.load.is_some()),
                ("resolver", manifest.resolver.is_some()),
                ("buffers", manifest.buffers.is_some()),
                ("cache", manifest.cache.is_some()),
                ("shared", manifest.shared.is_some()),
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
            files.iter().flat_map(|file| file.manifest.error_page.keys().map(move |key| (&file.source, key)))
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
