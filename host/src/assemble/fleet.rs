//! The server that has the state of plugins: from the keys of `[shared]` to its client.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;

use super::Assembly;
use super::upstream_tls::digest;
use crate::config::diagnostic::Source;
use crate::config::load::ManifestFile;
use crate::config::manifest::SharedTable;
use crate::config::spanned::Spanned;
use crate::shared_state::fleet::{FleetClient, FleetFallback, FleetSettings, FleetTls};
use crate::tls;
use crate::tls::client::{ClientFiles, Verify};

/// The allowed timeouts of a call.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

/// The most commands that may wait for the server: each holds a key and a value.
const MAX_COMMANDS: usize = 10_000;

/// The longest beginning of keys, in bytes.
const MAX_PREFIX_BYTES: usize = 256;

impl Assembly<'_> {
    /// Returns the client of the server that has the state of plugins; `None` if each process has its own.
    pub(super) fn fleet(&mut self, files: &[ManifestFile]) -> Option<Arc<FleetClient>> {
        let (source, table) = files.iter().find_map(|file| Some((&file.source, file.manifest.shared.as_ref()?)))?;
        let Some(url) = &table.redis else {
            self.reject_keys_without_server(source, table);
            return None;
        };
        let (mut settings, proven) = match FleetSettings::of_url(url.get_ref()) {
            Ok(settings) => settings,
            Err(error) => {
                let message = format!(
                    "invalid URL of a server: {error}; expected one such as `redis://cache.internal:6379/0`, \
                     `rediss://cache.internal` or `unix:///run/redis.sock`"
                );
                self.problems.at(source, url.span(), message);
                return None;
            }
        };
        if let Some(host) = proven {
            settings.tls = Some(self.fleet_tls(source, url, table, host)?);
        } else if let Some(ca) = &table.ca {
            let message =
                "key without effect: `ca` is for a URL with TLS; write `rediss` as its scheme, or remove `ca`";
            self.problems.at(source, ca.span(), message);
        }
        table.user.iter().for_each(|user| settings.set_user(user.get_ref()));
        table.password.iter().for_each(|password| settings.set_password(password.get_ref()));
        self.limit_fleet(source, table, &mut settings);
        Some(self.assembly.fleet_states.client(settings))
    }

    /// Sets what bounds each call, and the answer in place of the server's.
    fn limit_fleet(&mut self, source: &Arc<Source>, table: &SharedTable, settings: &mut FleetSettings) {
        settings.timeout = self.duration(source, table.timeout.as_ref(), settings.timeout);
        if let Some(text) = table.timeout.as_ref().filter(|_| !TIMEOUTS.contains(&settings.timeout)) {
            let message = format!("duration out of range: `{}`; expected `1ms` to `1m`", text.get_ref());
            self.problems.at(source, text.span(), message);
        }
        settings.commands = self.count(source, table.commands.as_ref(), settings.commands, MAX_COMMANDS);
        if let Some(prefix) = &table.prefix {
            if prefix.get_ref().len() > MAX_PREFIX_BYTES {
                let found = prefix.get_ref().len();
                let message = format!("`prefix` too long: {found} bytes; at most {MAX_PREFIX_BYTES} are allowed");
                self.problems.at(source, prefix.span(), message);
            }
            settings.prefix.clone_from(prefix.get_ref());
        }
        settings.fallback = match table.fallback.as_ref().map(|word| (word.get_ref().as_str(), word.span())) {
            None | Some(("error", _)) => FleetFallback::Error,
            Some(("local", _)) => FleetFallback::Local,
            Some((word, span)) => {
                let message = format!("unknown value: `{word}`; expected \"error\" or \"local\"");
                self.problems.at(source, span, message);
                FleetFallback::Error
            }
        };
    }

    /// Returns the TLS to a server; `None` if it has an error.
    fn fleet_tls(
        &mut self,
        source: &Arc<Source>,
        url: &Spanned<String>,
        table: &SharedTable,
        host: String,
    ) -> Option<FleetTls> {
        let Ok(name) = ServerName::try_from(host) else {
            let message = "invalid host of a URL with TLS; expected one that a certificate can name";
            self.problems.at(source, url.span(), message);
            return None;
        };
        let roots = self.roots(source, table.ca.as_ref());
        let files = ClientFiles { roots, certificate: None, verify: Verify::Always, http2: false };
        match tls::client::client(&files) {
            Ok(config) => Some(FleetTls::new(&config, name, digest(&files))),
            Err(mistakes) => {
                let span = table.ca.as_ref().map_or_else(|| url.span(), Spanned::span);
                for mistake in mistakes {
                    self.problems.at(source, span.clone(), mistake.message);
                }
                None
            }
        }
    }

    /// Reports keys that mean nothing without a server.
    fn reject_keys_without_server(&mut self, source: &Arc<Source>, table: &SharedTable) {
        let texts = [
            ("user", &table.user),
            ("password", &table.password),
            ("ca", &table.ca),
            ("prefix", &table.prefix),
            ("timeout", &table.timeout),
            ("fallback", &table.fallback),
        ];
        let spans = texts.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?.span())));
        let commands = table.commands.as_ref().map(|commands| ("commands", commands.span()));
        for (key, span) in spans.chain(commands) {
            let message = format!("key without effect: `{key}` is for the server of `redis`, which is not set");
            self.problems.at(source, span, message);
        }
    }
}
