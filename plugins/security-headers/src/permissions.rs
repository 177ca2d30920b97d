//! `Permissions-Policy`, a structured field (RFC 9651 §3.2).

use plugway_sdk::{ConfigError, Setup, pointer};

use crate::config::{Allowlist, Permissions};

/// Returns the value of the field, and reports all errors in it.
pub fn value(permissions: &Permissions, setup: &mut Setup) -> String {
    match permissions {
        Permissions::Text(text) => {
            if let Err(wrong) = check(text) {
                let message = format!(
                    "invalid permissions policy: `{wrong}`; expected one such as `camera=(), microphone=(self)`, since browsers \
                     ignore the whole field otherwise"
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

/// Checks the text of a field: features with lists, separated by commas. The error is the part that browsers can't read.
fn check(text: &str) -> Result<(), &str> {
    text.split(',').map(str::trim).try_for_each(|member| {
        let is_fit = member.split_once('=').is_some_and(|(name, list)| {
            // Parameters follow, such as `;report-to=endpoint`.
            let list = list.split(';').next().unwrap_or_default().trim_end();
            let inner = list.strip_prefix('(').and_then(|list| list.strip_suffix(')'));
            is_feature(name) && inner.map_or(is_item(list), |inner| inner.split_ascii_whitespace().all(is_item))
        });
        if is_fit { Ok(()) } else { Err(member) }
    })
}

/// Whether a text is a member of a list: a word, or an origin in quotation marks.
fn is_item(text: &str) -> bool {
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    ["*", "self", "src"].contains(&text)
        || quoted.is_some_and(|origin| origin.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte)))
}

fn is_feature(name: &str) -> bool {
    let is_key = |byte: u8| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit();
    name.bytes().all(is_key) && name.starts_with(|first: char| first.is_ascii_lowercase())
}

fn of_feature(name: &str, allowed: &Allowlist) -> Result<String, String> {
    if !is_feature(name) {
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
