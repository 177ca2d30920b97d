//! The stock plugin `auth-key`.

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Setup, Values, Verdict, export};

/// The configured plugin.
pub struct AuthKey;

impl Plugin for AuthKey {
    type Config = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(AuthKey)
    }
}

impl RequestFilter for AuthKey {
    fn on_request(&mut self, _: &Values) -> Verdict {
        Verdict::proceed()
    }
}

export!(AuthKey: RequestFilter);
