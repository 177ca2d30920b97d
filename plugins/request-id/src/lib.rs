//! The stock plugin `request-id`, which gives each request an identifier that client, upstream and logs share.

mod config;
mod format;
mod policy;

use plugway_sdk::{ConfigError, Plugin, RequestFilter, ResponseFilter, Setup, Values, Verdict, export};

use config::Config;
use policy::Policy;

/// The configured plugin.
pub struct RequestId(Policy);

impl Plugin for RequestId {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Policy::new(&config, setup).map(RequestId)
    }
}

impl RequestFilter for RequestId {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.0.decide(request)
    }
}

impl ResponseFilter for RequestId {
    /// This hook is never called: the host makes the edits of the response plan.
    fn on_response(&mut self, _: &Values) -> Verdict {
        Verdict::proceed()
    }
}

export!(RequestId: RequestFilter, ResponseFilter);

#[cfg(test)]
mod tests;
