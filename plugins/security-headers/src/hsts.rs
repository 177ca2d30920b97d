//! `Strict-Transport-Security` (RFC 6797).

use plugway_sdk::{ConfigError, units};

use crate::config::{Hsts, HstsRules};

/// Browsers accept a site in their built-in list from this time on, in seconds: a year (hstspreload.org).
const YEAR: u64 = 365 * 24 * 3600;

/// Returns the value of the field; `None` for no field. The error names the wrong key.
pub fn value(hsts: &Hsts) -> Result<Option<String>, ConfigError> {
    let default = HstsRules::default();
    let rules = match hsts {
        Hsts::Switch(false) => return Ok(None),
        Hsts::Switch(true) => &default,
        Hsts::Rules(rules) => rules,
    };
    let max_age = match &rules.max_age {
        Some(text) => seconds(text).map_err(|message| ConfigError::at("/hsts/max-age", message))?,
        None => YEAR,
    };
    if rules.preload && !rules.include_subdomains {
        let message = "`preload` needs `include-subdomains = true`: the built-in list has no other sites";
        return Err(ConfigError::at("/hsts/preload", message));
    }
    if rules.preload && max_age < YEAR {
        let message = "`preload` needs a `max-age` of at least `365d`: the built-in list has no other sites";
        return Err(ConfigError::at("/hsts/preload", message));
    }
    let subdomains = if rules.include_subdomains { "; includeSubDomains" } else { "" };
    let preload = if rules.preload { "; preload" } else { "" };
    Ok(Some(format!("max-age={max_age}{subdomains}{preload}")))
}

/// Returns the seconds of a duration. Less than a second would be 0, with which browsers end the use of TLS only.
fn seconds(text: &str) -> Result<u64, String> {
    let duration = units::duration(text)?;
    if duration.subsec_nanos() > 0 {
        return Err(format!("`{text}`: browsers count whole seconds; expected a duration such as `365d`, or `0s`"));
    }
    Ok(duration.as_secs())
}
