//! `Permissions-Policy`, a structured field (RFC 9651 §3.2).

use plugway_sdk::{ConfigError, Setup, pointer};

use crate::config::{Allowlist, Permissions};

/// Returns the value of the field, and reports all errors in it.
pub fn value(permissions: &Permissions, setup: &mut Setup) -> String {
    match permissions {
        Permissions::Text(text) => {
            let is_fit = text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && text.contains('=');
            if !is_fit {
                let message = format!(
                    "invalid permissions policy: `{text}`; expected one such as `camera=(), microphone=(self)`"
                );
                setup.report(ConfigError::at("/permissions-policy", message));
            }
            text.clone()
        }
        Permissions::Features(features) => {
            let mut feature = |(name, allowed): (&String, &Allowlist)| match of_feature(name, allowed) {
                Ok(text) => Some(text),
                Err(message) => {
                    setup.report(ConfigError::at(pointer::member("/permissions-policy", name), message));
                    None
                }
            };
            let features: Vec<String> = features.iter().filter_map(&mut feature).collect();
            features.join(", ")
        }
    }
}

fn of_feature(name: &str, allowed: &Allowlist) -> Result<String, String> {
    let is_key =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit());
    if !is_key(name) || !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Err(format!("invalid feature: `{name}`; expected one such as `camera`"));
    }
    let list = match allowed {
        Allowlist::One(one) if one == "*" => return Ok(format!("{name}=*")),
        Allowlist::One(one) => std::slice::from_ref(one),
        Allowlist::List(list) => list,
    };
    let item = |item: &String| match item.as_str() {
        "self" | "src" => Ok(item.clone()),
        origin
            if origin.contains("://")
                && origin.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte)) =>
        {
            Ok(format!("\"{origin}\""))
        }
        other => Err(format!("invalid origin: `{other}`; expected `self`, or one such as `https://maps.example.org`")),
    };
    let items: Vec<String> = list.iter().map(item).collect::<Result<_, _>>()?;
    Ok(format!("{name}=({})", items.join(" ")))
}
