//! The stock plugin `ip-filter`.

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Setup, Values, Verdict, export};

/// The configured plugin.
pub struct IpFilter;

impl Plugin for IpFilter {
    type Config = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(IpFilter)
    }
}

impl RequestFilter for IpFilter {
    fn on_request(&mut self, _: &Values) -> Verdict {
        Verdict::proceed()
    }
}

export!(IpFilter: RequestFilter);
