//! The trivial filter of the `chain` scenarios: sets one request field, by a call for each request.

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Setup, Values, Verdict, export};

#[derive(serde::Deserialize, schemars::JsonSchema)]
pub struct AddHeader {
    /// The field to set to `1`.
    field: String,
}

impl Plugin for AddHeader {
    type Config = AddHeader;

    fn new(config: AddHeader, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(config)
    }
}

impl RequestFilter for AddHeader {
    fn on_request(&mut self, _: &Values) -> Verdict {
        Verdict::proceed().set_field(&self.field, "1")
    }
}

export!(AddHeader: RequestFilter);
