//! The stock plugin `log-fields`, which adds chosen values of requests and responses to the access log.
//!
//! Values become notes, which the JSON lines of the access log contain. Values that are logged as they are need no call:
//! they are plans. Redacted values need a call for each message.

mod config;
mod fields;
mod redaction;

use plugway_sdk::{ConfigError, Plugin, RequestFilter, ResponseFilter, Setup, Values, Verdict, export};

use config::Config;
use fields::{Fields, Side};

/// The configured plugin.
pub struct LogFields {
    request: Side,
    response: Side,
}

impl Plugin for LogFields {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let Fields { request, response } = Fields::new(&config, setup);
        let (request, request_plan) = Side::declare(request, |setup| &mut setup.request, setup);
        let (response, response_plan) = Side::declare(response, |setup| &mut setup.response, setup);
        (setup.request_plan, setup.response_plan) = (request_plan, response_plan);
        Ok(LogFields { request, response })
    }
}

impl RequestFilter for LogFields {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.request.notes(request)
    }
}

impl ResponseFilter for LogFields {
    fn on_response(&mut self, response: &Values) -> Verdict {
        self.response.notes(response)
    }
}

export!(LogFields: RequestFilter, ResponseFilter);

#[cfg(test)]
mod tests;
