//! The trivial filter of the `chain` scenarios: sets one request field, by a call for each request.

use plugway_sdk::{ConfigError, EditPlan, EditPlanId, Part, Plugin, RequestFilter, Setup, Values, Verdict, export};

#[derive(serde::Deserialize, schemars::JsonSchema)]
pub struct Config {
    /// The field to set to `1`.
    field: String,
    /// Makes the edit anew each time, in place of naming a plan.
    #[serde(default)]
    edit: bool,
}

pub struct AddHeader {
    field: String,
    plan: Option<EditPlanId>,
}

impl Plugin for AddHeader {
    type Config = Config;

    fn new(Config { field, edit }: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let plan = EditPlan::default().set_field(&field, vec![Part::Text(b"1".to_vec())]);
        Ok(AddHeader { field, plan: (!edit).then(|| setup.plan(plan)) })
    }
}

impl RequestFilter for AddHeader {
    fn on_request(&mut self, _: &Values) -> Verdict {
        match self.plan {
            Some(plan) => plan.into(),
            None => Verdict::proceed().set_field(&self.field, "1"),
        }
    }
}

export!(AddHeader: RequestFilter);
