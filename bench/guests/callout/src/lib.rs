//! The filter of `platform` that asks a service about each request, and rejects the request unless the answer is 200.

use std::time::Duration;

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Response, Setup, Values, Verdict, export, http};

pub struct Callout;

impl Plugin for Callout {
    type Config = ();

    fn new((): (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Callout)
    }
}

impl RequestFilter for Callout {
    fn on_request(&mut self, _: &Values) -> Verdict {
        match http::get("http://origin/auth").timeout(Duration::from_secs(5)).send() {
            Ok(answer) if answer.status == 200 => Verdict::proceed(),
            _ => Response::new(503).into(),
        }
    }
}

export!(Callout: RequestFilter);
