//! A filter that sends clients with a cookie `variant=b` to another upstream, and notes the variant of each exchange.

use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Setup, Values, Verdict, export};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The upstream of variant b.
    upstream: String,
}

pub struct Split {
    upstream: String,
    variant: Input,
}

impl Plugin for Split {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Split { upstream: config.upstream, variant: setup.request.cookie("variant") })
    }
}

impl RequestFilter for Split {
    fn on_request(&mut self, request: &Values) -> Verdict {
        match request.text(self.variant) {
            Some("b") => Verdict::proceed().set_note("variant", "b").set_upstream(&self.upstream),
            _ => Verdict::proceed().set_note("variant", "a"),
        }
    }
}

export!(Split: RequestFilter);

#[cfg(test)]
mod tests {
    use plugway_sdk::testing::{Harness, Request};

    use super::Split;

    #[test]
    fn the_cookie_decides() {
        let mut filter = Harness::<Split>::new(serde_json::json!({ "upstream": "beta" })).unwrap();
        let b = filter.request(Request::get("/").field("cookie", "x=1; variant=b")).passed().unwrap();
        assert_eq!((b.upstream(), b.noted("variant")), (Some("beta"), Some("b")));
        let a = filter.request(Request::get("/").field("cookie", "variant=c")).passed().unwrap();
        assert_eq!((a.upstream(), a.noted("variant")), (None, Some("a")));
    }
}
