//! The request fields that never reach a route: each listener removes or rejects them.

use crate::config::load::ManifestFile;
use crate::config::manifest::ListenerTable;
use crate::config::structure::LeftOut;
use crate::protocol::authority;
use crate::protocol::client_address::tells_way;
use crate::protocol::field_alias::{is_ambiguous, is_plain};

/// The treatment of fields by all listeners together.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// Whether a listener has `field-aliases = "pass"`.
    aliases_pass: bool,
    /// Whether a listener has trusted proxies.
    trusts_proxies: bool,
    /// Whether a listener has no TLS.
    has_clear: bool,
    /// Whether a listener has TLS.
    has_tls: bool,
}

/// The reason for which requests don't have a value of `Host`.
pub struct UnusualHost {
    pub message: String,
    /// Whether no request has it at all.
    pub is_certain: bool,
}

impl Reach {
    /// Reads what the listeners of a manifest say. Listeners that could not be understood may let any field pass.
    pub fn of(files: &[ManifestFile], left_out: &LeftOut) -> Self {
        let is_unknown = left_out.has_any("listener");
        let any = |holds: fn(&ListenerTable) -> bool| files.iter().flat_map(|file| &file.manifest.listener).any(holds);
        let passes =
            |listener: &ListenerTable| listener.field_aliases.as_ref().is_some_and(|word| word.get_ref() == "pass");
        Reach {
            aliases_pass: is_unknown || any(passes),
            trusts_proxies: is_unknown || any(|listener| !listener.trusted_proxies.is_empty()),
            has_clear: is_unknown || any(|listener| listener.tls.is_none()),
            has_tls: is_unknown || any(|listener| listener.tls.is_some()),
        }
    }

    /// Returns the reason for which hardly any request that reaches a route, or none, has a value of `Host`; `None` if
    /// requests have it.
    pub fn unusual_host(self, value: &str) -> Option<UnusualHost> {
        let is_normal =
            |port| authority::normal(value.as_bytes(), Some(port)).is_ok_and(|normal| *normal == *value.as_bytes());
        let has_it = [(80, self.has_clear), (443, self.has_tls || self.trusts_proxies)];
        if has_it.into_iter().any(|(port, is_served)| is_served && is_normal(port)) {
            return None;
        }
        // Over HTTP/2, a gateway may say `https` in clear.
        let is_certain = !is_normal(80) && !is_normal(443);
        let port = if self.has_clear { 80 } else { 443 };
        let message = match authority::normal(value.as_bytes(), Some(port)) {
            Ok(normal) => {
                let host = authority::without_port(&normal);
                let (wanted, host) = (String::from_utf8_lossy(&normal), String::from_utf8_lossy(&host));
                let remedy = match wanted == host {
                    true => format!("hosts = [\"{host}\"]"),
                    false => format!("Host = \"{wanted}\""),
                };
                format!(
                    "requests have `Host` in its normal form: found `{value}`; letters are in lower case, and the port of \
                     the scheme is left out, so write `{remedy}`"
                )
            }
            Err(error) => format!("no request has the Host `{value}`: {}", error.reason()),
        };
        Some(UnusualHost { message, is_certain })
    }

    /// Returns the reason for which no request that reaches a route has a field; `None` if requests may have it.
    pub fn obstacle(self, name: &str) -> Option<String> {
        let lower = name.to_ascii_lowercase();
        if lower.contains('*') {
            return Some(format!("no request has the field `{name}`: a `*` stands for itself; name each field"));
        }
        if is_ambiguous(&lower) {
            let is_removed_always = tells_way(&lower);
            if self.aliases_pass && !is_removed_always {
                return None;
            }
            let cause = if is_removed_always { "" } else { ", unless a listener has `field-aliases = \"pass\"`" };
            let remedy = if is_plain(&lower) { String::new() } else { format!("; write `{}`", plain(name)) };
            return Some(format!("requests never have the field `{name}` here: listeners remove it{cause}{remedy}"));
        }
        (tells_way(&lower) && !self.trusts_proxies).then(|| {
            format!(
                "requests never have the field `{name}` here: it is removed unless a trusted proxy sends it, and no \
                 listener has any; add `trusted-proxies = [\"10.0.0.0/8\"]` to the listener"
            )
        })
    }
}

/// Returns the name that origins confuse with an alias.
fn plain(name: &str) -> String {
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect()
}
