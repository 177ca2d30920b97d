//! The stock plugin `request-id`.

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Setup, Values, Verdict, export};

/// The configured plugin.
pub struct RequestId;

impl Plugin for RequestId {
    type Config = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(RequestId)
    }
}

impl RequestFilter for RequestId {
    fn on_request(&mut self, _: &Values) -> Verdict {
        Verdict::proceed()
    }
}

export!(RequestId: RequestFilter);
