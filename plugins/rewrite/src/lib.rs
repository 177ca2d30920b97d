//! The stock plugin `rewrite`.

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Setup, Values, Verdict, export};

/// The configured plugin.
pub struct Rewrite;

impl Plugin for Rewrite {
    type Config = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Rewrite)
    }
}

impl RequestFilter for Rewrite {
    fn on_request(&mut self, _: &Values) -> Verdict {
        Verdict::proceed()
    }
}

export!(Rewrite: RequestFilter);
