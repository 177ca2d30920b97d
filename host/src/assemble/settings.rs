//! What a manifest says about the process: listeners, workers, admin, access log.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::{AdminAddress, Draft, head_of};
use crate::access_log::{AccessLog, Format, Target};
use crate::config::manifest::{AccessLogFormat, Manifest};
use crate::config::problem::Source;

impl Draft<'_> {
    /// The addresses to listen at; the first file is the manifest itself.
    pub(super) fn listeners(&mut self, files: &[(Arc<Source>, Manifest)]) -> Vec<Arc<str>> {
        let mut known = HashSet::new();
        let mut addresses = Vec::new();
        for (source, listener) in
            files.iter().flat_map(|(source, file)| file.listener.iter().map(move |one| (source, one)))
        {
            let (address, span) = (listener.address.get_ref().as_str(), listener.address.span());
            if !address.starts_with("unix:/") && address.parse::<std::net::SocketAddr>().is_err() {
                let message =
                    format!("`{address}` is no address to listen at; write `0.0.0.0:80`, `[::]:80` or `unix:/path`");
                self.problems.at(source, span, message);
            } else if !known.insert(address) && !address.ends_with(":0") {
                self.problems.at(source, span, format!("another listener has the address `{address}`"));
            } else {
                addresses.push(address.into());
            }
        }
        if let (Some((source, _)), true) = (files.first(), files.iter().all(|(_, file)| file.listener.is_empty())) {
            let message = "there is no listener; add `[[listener]]` with `address = \"127.0.0.1:8080\"`";
            self.problems.at(source, 0..0, message);
        }
        addresses
    }

    /// Threads that serve, if the manifest says how many.
    pub(super) fn workers(&mut self, files: &[(Arc<Source>, Manifest)]) -> Option<usize> {
        let (source, workers) = files.iter().find_map(|(source, file)| Some((source, file.workers.as_ref()?)))?;
        if !(1..=MOST_WORKERS).contains(workers.get_ref()) {
            let message = format!("workers is a number between 1 and {MOST_WORKERS}; leave it out for one per core");
            self.problems.at(source, workers.span(), message);
        }
        Some(*workers.get_ref())
    }

    pub(super) fn admin(&mut self, files: &[(Arc<Source>, Manifest)]) -> AdminAddress {
        let named = files.iter().find_map(|(source, file)| Some((source, file.admin.as_ref()?)));
        let Some((source, admin)) = named else { return AdminAddress::Default };
        match admin.address.get_ref().as_str() {
            "off" => AdminAddress::Off,
            address => address.parse().map_or_else(
                |_| {
                    let message = format!("`{address}` is no address; write `127.0.0.1:9145` or `off`");
                    self.problems.at(source, admin.address.span(), message);
                    AdminAddress::Off
                },
                AdminAddress::At,
            ),
        }
    }

    pub(super) fn access_log(&mut self, files: &[(Arc<Source>, Manifest)]) -> Option<AccessLog> {
        let named = files.iter().find_map(|(source, file)| Some((source, file.access_log.as_ref()?)));
        let (source, wanted) = named?;
        let format = match wanted.get_ref().format {
            AccessLogFormat::Combined => Format::Combined,
            AccessLogFormat::Json => Format::Json,
            AccessLogFormat::Off => return None,
        };
        let folder = source.path.parent().unwrap_or(Path::new("."));
        let target = wanted.get_ref().file.as_ref().map_or(Target::Stdout, |file| Target::File(folder.join(file)));
        let wanted_log = (format, target);
        if let Some((known, log)) = &self.assembly.log
            && *known == wanted_log
        {
            return Some(log.clone());
        }
        match AccessLog::start(wanted_log.0, wanted_log.1.clone()) {
            Ok(log) => {
                self.assembly.log = Some((wanted_log, log.clone()));
                Some(log)
            }
            Err(error) => {
                self.problems.at(source, head_of(&wanted.span()), format!("the access log can't be opened: {error}"));
                None
            }
        }
    }
}

/// More threads than any machine of today has cores.
const MOST_WORKERS: usize = 1024;
