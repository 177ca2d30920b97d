//! The stock plugin `headers`: what the manifest says about fields, carried out.
//!
//! Where nothing depends on the exchange but the values in templates, the host gets the edits once, as a plan;
//! conditions and a list of trusted proxies need a call per message.

mod config;
mod forwarded;
mod rules;
mod template;

use plugway_sdk::{ConfigError, Plugin, RequestFilter, ResponseFilter, Setup, Values, Verdict, export};

use config::Config;
use forwarded::Forwarding;
use rules::{Conditions, Rules};

/// The configured plugin.
pub struct Headers {
    request: Rules,
    response: Rules,
    request_if: Conditions,
    response_if: Conditions,
    forwarding: Option<Forwarding>,
}

impl Plugin for Headers {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let request = Rules::parse(&config.request, "/request")?;
        let response = Rules::parse(&config.response, "/response")?;
        if config.when.is_none() && config.forwarded.is_none() && !config.evaluate_each {
            setup.request_plan = Some(request.plan());
        }
        if config.when.is_none() && !config.evaluate_each {
            setup.response_plan = Some(response.plan());
        }
        let when = config.when.unwrap_or_default();
        Ok(Headers {
            request: request.declare(&mut setup.request),
            response: response.declare(&mut setup.response),
            request_if: Conditions::declare(&when, None, &mut setup.request),
            response_if: Conditions::declare(&when, Some(&when.statuses), &mut setup.response),
            forwarding: config.forwarded.map(|forwarded| Forwarding::new(forwarded, setup)).transpose()?,
        })
    }
}

impl RequestFilter for Headers {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let forwarded = self.forwarding.as_ref().map_or(Verdict::proceed(), |forwarding| forwarding.apply(request));
        if self.request_if.hold(request) { self.request.apply(request, forwarded) } else { forwarded }
    }
}

impl ResponseFilter for Headers {
    fn on_response(&mut self, response: &Values) -> Verdict {
        if !self.response_if.hold(response) {
            return Verdict::proceed();
        }
        self.response.apply(response, Verdict::proceed())
    }
}

export!(Headers: RequestFilter, ResponseFilter);

#[cfg(test)]
mod tests;
