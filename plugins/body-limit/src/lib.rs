//! The stock plugin `body-limit`, which limits request bodies by method, path, host and media type.
//!
//! The limit of the length is an edit: the host enforces it while the body arrives, in whatever way the body is framed. The
//! plugin itself answers only what the head of a request shows: a wrong media type, and a missing length.

mod config;
mod media_type;
mod rules;

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Setup, Values, Verdict, export};

use config::Config;
use rules::Rules;

/// The configured plugin.
pub struct BodyLimit(Rules);

impl Plugin for BodyLimit {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(BodyLimit(Rules::new(&config, setup)))
    }
}

impl RequestFilter for BodyLimit {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.0.decide(request)
    }
}

export!(BodyLimit: RequestFilter);

#[cfg(test)]
mod tests;
