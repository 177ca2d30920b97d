//! A filter that asks another service about each request: with a 2xx the request passes, with fields of the answer; any
//! other answer is the client's.

use std::time::Duration;

use plugway_sdk::{
    ConfigError, Input, Plugin, RequestFilter, Response, Setup, ValueName, Values, Verdict, export, http,
};

/// Where the service is, and what goes there and back.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The URL of the service, which `grants.http` allows.
    url: String,
    /// The fields of the request that the service gets.
    ask: Vec<String>,
    /// The fields of its answer that the upstream gets.
    copy: Vec<String>,
}

pub struct ForwardAuth {
    url: String,
    method: Input,
    uri: Input,
    ask: Vec<(String, Input)>,
    copy: Vec<String>,
}

/// The longest time that a client waits for the service.
const TIME: Duration = Duration::from_secs(2);

/// The fields of a refusal that a client needs.
const OF_REFUSAL: [&str; 4] = ["content-type", "location", "set-cookie", "www-authenticate"];

impl Plugin for ForwardAuth {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let Config { url, ask, copy } = config;
        let request = &mut setup.request;
        let (method, uri) = (request.value(ValueName::Method), request.value(ValueName::Uri));
        let ask = ask.into_iter().map(|name| (name.clone(), request.field(&name))).collect();
        Ok(ForwardAuth { url, method, uri, ask, copy })
    }
}

impl RequestFilter for ForwardAuth {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let mut question = http::get(&self.url).timeout(TIME);
        for (name, value) in [("x-forwarded-method", self.method), ("x-forwarded-uri", self.uri)] {
            question = question.header(name, request.bytes(value).unwrap_or_default());
        }
        for (name, value) in &self.ask {
            if let Some(value) = request.bytes(*value) {
                question = question.header(name, value);
            }
        }
        match question.send() {
            Ok(answer) if (200..300).contains(&answer.status) => self.pass(&answer),
            Ok(answer) => refuse(answer),
            // `on-error` decides; the default refuses the request.
            Err(error) => Verdict::Fail(error.to_string()),
        }
    }
}

impl ForwardAuth {
    /// Passes a request with fields of the answer in place of the client's.
    fn pass(&self, answer: &Response) -> Verdict {
        self.copy.iter().fold(Verdict::proceed(), |verdict, name| match answer.text(name) {
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
mod tests {
    use plugway_sdk::Response;
    use plugway_sdk::http::Error;
    use plugway_sdk::testing::http::answer;
    use plugway_sdk::testing::{Harness, Outcome, Request};

    use super::ForwardAuth;

    fn filter() -> Harness<ForwardAuth> {
        let config = serde_json::json!({ "url": "http://auth/verify", "ask": ["cookie"], "copy": ["x-user"] });
        Harness::new(config).unwrap()
    }

    #[test]
    fn the_service_sees_the_request_and_names_the_user() {
        answer(|question| {
            assert_eq!(question.url, "http://auth/verify");
            let asked = |name: &str, value: &str| question.fields.contains(&(name.into(), value.into()));
            assert!(asked("cookie", "session=1") && asked("x-forwarded-method", "GET"), "{question:?}");
            Ok(Response::new(204).field("x-user", "alice"))
        });
        let request = Request::get("/a").field("cookie", "session=1").field("x-user", "root");
        let passed = filter().request(request).passed().unwrap();
        assert_eq!(passed.lines("x-user"), ["alice"]);
        answer(|_| Ok(Response::new(204)));
        let passed = filter().request(Request::get("/a").field("x-user", "root")).passed().unwrap();
        assert_eq!(passed.text("x-user"), None);
    }

    #[test]
    fn any_other_answer_is_that_of_the_client() {
        answer(|_| Ok(Response::new(302).field("location", "/login").field("server", "auth")));
        let refused = filter().request(Request::get("/a")).answered().unwrap();
        assert_eq!((refused.status, refused.text("location")), (302, Some("/login")));
        assert_eq!(refused.text("server"), None);
    }

    #[test]
    fn without_an_answer_no_request_passes() {
        answer(|_| Err(Error::Timeout));
        assert!(matches!(filter().request(Request::get("/a")), Outcome::Failed(_)));
    }
}
