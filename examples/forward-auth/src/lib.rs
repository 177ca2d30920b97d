//! A filter that asks another service about each request: with a 2xx the request passes, with fields of the answer; any
//! other answer is the client's. Answers with a 2xx are remembered for a time, by all workers.

mod answers;

use std::time::Duration;

use plugway_sdk::cache::CREDENTIALS;
use plugway_sdk::{
    ConfigError, Input, Plugin, RequestFilter, Response, Setup, ValueName, Values, Verdict, export, http, units,
};

use crate::answers::{Answers, Question};

/// Where the service is, and what goes there and back.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-plugway-guard" = true))]
pub struct Config {
    /// The URL of the service, which `grants.http` allows.
    url: String,
    /// The fields of the request that the service gets.
    ask: Vec<String>,
    /// The fields of its answer that the upstream gets.
    copy: Vec<String>,
    /// The answers that are remembered; none if absent.
    cache: Option<CacheConfig>,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CacheConfig {
    /// The time for which a request like one that passed isn't asked about, such as `30s`.
    ttl: String,
    /// Whether requests are alike only if their method and URI are the same, besides the fields that the service gets.
    #[serde(default = "yes")]
    per_uri: bool,
}

fn yes() -> bool {
    true
}

pub struct ForwardAuth {
    url: String,
    method: Input,
    uri: Input,
    ask: Vec<(String, Input)>,
    copy: Vec<String>,
    answers: Option<Answers>,
}

/// The longest time that a client waits for the service.
const TIME: Duration = Duration::from_secs(2);

/// The fields of a refusal that a client needs.
const OF_REFUSAL: [&str; 4] = ["content-type", "location", "set-cookie", "www-authenticate"];

impl Plugin for ForwardAuth {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let Config { url, ask, copy, cache } = config;
        let answers = cache.map(|cache| {
            let ttl = units::duration(&cache.ttl).map_err(|error| ConfigError::at("/cache/ttl", error))?;
            Ok(Answers { ttl, per_uri: cache.per_uri })
        });
        let answers = answers.transpose()?;
        let request = &mut setup.request;
        let (method, uri) = (request.value(ValueName::Method), request.value(ValueName::Uri));
        let ask = ask.into_iter().map(|name| (name.clone(), request.field(&name))).collect();
        Ok(ForwardAuth { url, method, uri, ask, copy, answers })
    }
}

impl RequestFilter for ForwardAuth {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let target = [("x-forwarded-method", self.method), ("x-forwarded-uri", self.uri)];
        let target = target.map(|(name, value)| (name, request.bytes(value).unwrap_or_default()));
        let fields: Vec<_> =
            self.ask.iter().filter_map(|(name, value)| Some((name.as_str(), request.bytes(*value)?))).collect();
        let question = Question { url: &self.url, target: &target, fields: &fields, copy: &self.copy };
        if let Some(copied) = self.answers.as_ref().and_then(|answers| answers.known(&question)) {
            return self.pass(copied);
        }
        let request = target
            .iter()
            .chain(&fields)
            .fold(http::get(&self.url), |request, (name, value)| request.header(name, *value));
        match request.timeout(TIME).send() {
            Ok(answer) if (200..300).contains(&answer.status) => {
                let copied = self.copy.iter().map(|name| answer.text(name).map(String::from)).collect();
                if let Some(answers) = &self.answers {
                    answers.remember(&question, &copied);
                }
                self.pass(copied)
            }
            Ok(answer) => refuse(answer),
            // `on-error` decides; the default refuses the request.
            Err(error) => Verdict::Fail(error.to_string()),
        }
    }
}

impl ForwardAuth {
    /// Passes a request with the copied fields of an answer in place of the client's.
    fn pass(&self, copied: Vec<Option<String>>) -> Verdict {
        // A cache below knows credentials in `Authorization` only, and the service may have asked for others.
        let passed = Verdict::proceed().set_note(CREDENTIALS, "forward-auth");
        self.copy.iter().zip(copied).fold(passed, |verdict, (name, value)| match value {
            Some(value) => verdict.set_field(name, value),
            None => verdict.remove_field(name),
        })
    }
}

/// Returns the answer of the service as the response to the client.
fn refuse(answer: Response) -> Verdict {
    let is_shown = |(name, _): &(String, Vec<u8>)| OF_REFUSAL.iter().any(|shown| name.eq_ignore_ascii_case(shown));
    let fields = answer.fields.into_iter().filter(is_shown).collect();
    Response { fields, ..answer }.field("cache-control", "no-store").into()
}

export!(ForwardAuth: RequestFilter);

#[cfg(test)]
mod tests;
