//! A small web application firewall: rules for the parts of requests and for their bodies; a request that meets one gets 403.

mod rules;
mod text;

use plugway_sdk::{
    BodyMode, BodyVerdict, BufferedRequestBody, ConfigError, OverLimit, Plugin, RequestFilter, Response, Setup,
    ValueName, Values, Verdict, cookie, exchange, export, form, log, query::Parameters, units,
};

use crate::rules::{Place, Rule, RuleConfig};
use crate::text::{Text, decoded};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The longest body; longer ones get 413, as no rule can see them.
    #[serde(default = "default_max_body")]
    max_body: String,
    /// The rules; the first one that a request meets refuses it.
    rules: Vec<RuleConfig>,
}

pub struct Waf {
    /// The rules for the heads of requests.
    head: Vec<Rule>,
    /// The rules for bodies.
    body: Vec<Rule>,
}

/// The field of a refusal that has the identifier of the rule.
const FIELD: &str = "x-waf-rule";

fn default_max_body() -> String {
    "64 KiB".into()
}

impl Plugin for Waf {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let max_body = units::bytes(&config.max_body).map_err(|error| ConfigError::at("/max-body", error))?;
        let mut waf = Waf { head: Vec::new(), body: Vec::new() };
        for (place, rule) in config.rules.into_iter().enumerate() {
            match Rule::new(rule) {
                Ok(rule) if rule.place == Place::Body => waf.body.push(rule),
                Ok(rule) => waf.head.push(rule),
                Err(error) => setup.report(ConfigError::at(format!("/rules/{place}{}", error.path), error.message)),
            }
        }
        setup.request_body.mode = match waf.body.is_empty() {
            true => BodyMode::Skipped,
            false => BodyMode::Buffered(max_body, OverLimit::Reject),
        };
        Ok(waf)
    }
}

impl RequestFilter for Waf {
    fn on_request(&mut self, _: &Values) -> Verdict {
        let is_met = |rule: &&Rule| values(rule).iter().any(|value| rule.is_met(value));
        match self.head.iter().find(is_met) {
            Some(rule) => refusal(rule).into(),
            None => Verdict::proceed(),
        }
    }
}

impl BufferedRequestBody for Waf {
    fn on_request_body(&mut self, _: &Values, content: Vec<u8>) -> BodyVerdict {
        let parameters = form::parse(&content);
        let whole = Text::new(&content);
        let is_met = |rule: &&Rule| match &rule.names[..] {
            [] => rule.is_met(&whole),
            names => names.iter().flat_map(|name| parameters.all(name)).any(|value| rule.is_met(&Text::new(&value))),
        };
        match self.body.iter().find(is_met) {
            Some(rule) => refusal(rule).into(),
            None => BodyVerdict::proceed(),
        }
    }
}

/// Returns the values that a rule for heads is about. A client may repeat a name, so that each value is checked.
fn values(rule: &Rule) -> Vec<Text> {
    let all =
        |name: fn(String) -> ValueName| rule.names.iter().flat_map(move |known| exchange::values(&name(known.clone())));
    let one = |name: ValueName| exchange::value(&name).into_iter();
    let texts = |values: &mut dyn Iterator<Item = Vec<u8>>| values.map(|value| Text::new(&value)).collect();
    match (rule.place, rule.names.is_empty()) {
        (Place::Method, _) => texts(&mut one(ValueName::Method)),
        (Place::Path, _) => texts(&mut one(ValueName::Path)),
        (Place::Query, false) => texts(&mut all(ValueName::QueryParameter).map(|value| decoded(&value))),
        (Place::Query, true) => {
            let query = exchange::value(&ValueName::Query).unwrap_or_default();
            let parameters = Parameters::parse(&query);
            let parts = parameters.iter().flat_map(|(name, value)| [name.into_owned(), value.into_owned()]);
            texts(&mut parts.chain([query.clone()]))
        }
        (Place::Cookies, false) => texts(&mut all(ValueName::Cookie)),
        (Place::Cookies, true) => {
            let lines = exchange::values(&ValueName::RequestField("cookie".into()));
            let values = lines.iter().flat_map(|line| cookie::pairs(line)).map(|(_, value)| value.to_vec());
            texts(&mut values.chain(lines.iter().cloned()))
        }
        (Place::Fields, false) => texts(&mut all(ValueName::RequestField)),
        (Place::Fields, true) => texts(&mut exchange::request_fields().into_iter().map(|(_, value)| value)),
        (Place::Body, _) => Vec::new(),
    }
}

/// Returns the response to a request that meets a rule.
fn refusal(rule: &Rule) -> Response {
    log::info(&format!("refused by the rule `{}`", rule.id));
    Response::new(403).field(FIELD, rule.id.as_str()).body("text/plain", format!("refused by the rule {}\n", rule.id))
}

export!(Waf: RequestFilter, BufferedRequestBody);

#[cfg(test)]
mod tests;
