//! The stock plugin `headers`, which edits fields as the manifest says.
//!
//! All edits are plans that are passed to the host once. If the edits apply to every message, the host applies them by
//! itself; conditions and `forwarded` need a call per message.

mod config;
mod forwarded;
mod rules;
mod template;

use plugway_sdk::{
    ConfigError, EditPlan, EditPlanId, Plugin, RequestFilter, ResponseFilter, Setup, Values, Verdict, export,
};

use config::Config;
use forwarded::Forwarding;
use rules::Conditions;

/// The configured plugin.
pub struct Headers {
    request: Option<EditPlanId>,
    response: Option<EditPlanId>,
    request_if: Conditions,
    response_if: Conditions,
    forwarding: Option<Forwarding>,
}

impl Plugin for Headers {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let (request, response) =
            (rules::request_plan(&config.request, setup), rules::response_plan(&config.response, setup));
        let mut planned = |plan: EditPlan| (!plan.is_empty()).then(|| setup.plan(plan));
        let (request, response) = (planned(request), planned(response));
        if config.when.is_none() && !config.evaluate_each {
            let nothing = setup.plan(EditPlan::default());
            setup.request_plan = config.forwarded.is_none().then_some(request.unwrap_or(nothing));
            setup.response_plan = Some(response.unwrap_or(nothing));
        }
        let when = config.when.unwrap_or_default();
        rules::check_conditions(&when)?;
        if request.is_some() && response.is_none() && !when.statuses.is_empty() {
            let message =
                "no edits of responses, and requests have no status; remove `statuses`, or write edits in `response`";
            return Err(ConfigError::at("/when/statuses", message));
        }
        Ok(Headers {
            request,
            response,
            request_if: Conditions::declare(&when, None, &mut setup.request),
            response_if: Conditions::declare(&when, Some(&when.statuses), &mut setup.response),
            forwarding: config.forwarded.map(|forwarded| Forwarding::new(&forwarded, setup)),
        })
    }
}

impl RequestFilter for Headers {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let plan = self.request.filter(|_| self.request_if.hold(request));
        match (self.forwarding.as_ref().map(|forwarding| forwarding.apply(request)), plan) {
            (Some(forwarded), Some(plan)) => forwarded.plan(plan),
            (Some(forwarded), None) => forwarded,
            (None, Some(plan)) => plan.into(),
            (None, None) => Verdict::proceed(),
        }
    }
}

impl ResponseFilter for Headers {
    fn on_response(&mut self, response: &Values) -> Verdict {
        match self.response.filter(|_| self.response_if.hold(response)) {
            Some(plan) => plan.into(),
            None => Verdict::proceed(),
        }
    }
}

export!(Headers: RequestFilter, ResponseFilter);

#[cfg(test)]
mod tests;
