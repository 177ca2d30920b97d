//! A plugin that sets the method of requests and the status of responses to those of its configuration.

use plugway_sdk::{ConfigError, Edit, Plugin, RequestFilter, ResponseFilter, Setup, Values, Verdict, export};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The method of forwarded requests; `None` for that of the client.
    method: Option<String>,
    /// The status of responses; `None` for that of the endpoint.
    status: Option<u16>,
}

pub struct Overrides(Config);

impl Plugin for Overrides {
    type Config = Config;

    fn new(config: Config, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Overrides(config))
    }
}

impl RequestFilter for Overrides {
    fn on_request(&mut self, _: &Values) -> Verdict {
        let edit = self.0.method.clone().map(Edit::SetMethod);
        edit.map_or_else(Verdict::proceed, |edit| Verdict::proceed().edit(edit))
    }
}

impl ResponseFilter for Overrides {
    fn on_response(&mut self, _: &Values) -> Verdict {
        let edit = self.0.status.map(Edit::SetStatus);
        edit.map_or_else(Verdict::proceed, |edit| Verdict::proceed().edit(edit))
    }
}

export!(Overrides: RequestFilter, ResponseFilter);
