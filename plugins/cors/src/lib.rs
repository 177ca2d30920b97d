//! The stock plugin `cors`, which lets pages of chosen other origins read responses (Fetch standard, "CORS protocol").
//!
//! The request hook answers preflights, and leaves the allowed origin of other requests in a note. The response hook
//! chooses between two plans by that note.

mod config;
mod origins;
mod policy;
mod preflight;

use plugway_sdk::{ConfigError, Plugin, RequestFilter, ResponseFilter, Setup, Values, Verdict, export};

use config::Config;
use policy::{Inputs, Policy};

/// The configured plugin.
pub struct Cors {
    inputs: Inputs,
    policy: Policy,
}

impl Plugin for Cors {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Cors { inputs: Inputs::declare(&config, setup), policy: Policy::new(config, setup) })
    }
}

impl RequestFilter for Cors {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.policy.request(&self.inputs.request(request))
    }
}

impl ResponseFilter for Cors {
    fn on_response(&mut self, response: &Values) -> Verdict {
        self.policy.response(self.inputs.is_allowed(response), self.inputs.has_own(response))
    }
}

export!(Cors: RequestFilter, ResponseFilter);

#[cfg(test)]
mod tests;
