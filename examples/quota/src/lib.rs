//! A filter that allows each tenant so many requests in a time, counted over all workers. A plugin above notes the tenant.

use std::collections::BTreeMap;
use std::time::Duration;

use plugway_sdk::shared::{self, Rate, Taken};
use plugway_sdk::{
    ConfigError, EditPlan, Input, Part, Plugin, RequestFilter, Response, ResponseFilter, Setup, ValueName, Values,
    Verdict, export, units,
};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The note that names the tenant.
    note: String,
    /// The quota of tenants without one of their own, and the one that all requests without a tenant share.
    default: Quota,
    /// The quotas of tenants.
    #[serde(default)]
    tenants: BTreeMap<String, Quota>,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Quota {
    /// The requests that are allowed in each period.
    requests: u32,
    /// The period, such as `1s`, `1m` or `1h`.
    per: String,
    /// The most requests at once; those of a period if absent.
    burst: Option<u32>,
}

pub struct PerTenant {
    tenant: Input,
    default: Rate,
    tenants: BTreeMap<String, Rate>,
}

/// The note for the response.
const REMAINING: &str = "quota-remaining";

/// The field that tells clients how many requests they may still make at once.
const FIELD: &str = "ratelimit-remaining";

impl Quota {
    /// Returns the rate of a quota; `pointer` is the JSON pointer to the quota.
    fn rate(&self, pointer: &str) -> Result<Rate, ConfigError> {
        let wrong = |key: &str, message: String| Err(ConfigError::at(format!("{pointer}/{key}"), message));
        let period = match units::duration(&self.per) {
            Ok(period) if period >= Duration::from_millis(1) => period,
            Ok(_) => return wrong("per", "too short; expected `1ms` at least".into()),
            Err(message) => return wrong("per", message),
        };
        let burst = self.burst.unwrap_or(self.requests);
        match (self.requests, burst) {
            (0, _) => wrong("requests", "expected 1 at least".into()),
            (_, 0) => wrong("burst", "expected 1 at least".into()),
            (requests, burst) => Ok(Rate::per(requests, period).burst(burst)),
        }
    }
}

impl Plugin for PerTenant {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let own = |(name, quota): (&String, &Quota)| Ok((name.clone(), quota.rate(&format!("/tenants/{name}"))?));
        let tenants = config.tenants.iter().map(own).collect::<Result<_, ConfigError>>()?;
        // The host adds the field to each response, without a call.
        let tell = EditPlan::default().set_field(FIELD, vec![Part::Value(ValueName::Note(REMAINING.into()))]);
        setup.response_plan = Some(setup.plan(tell));
        Ok(PerTenant { tenant: setup.request.note(&config.note), default: config.default.rate("/default")?, tenants })
    }
}

impl RequestFilter for PerTenant {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let tenant = request.text(self.tenant).unwrap_or_default();
        let rate = self.tenants.get(tenant).unwrap_or(&self.default);
        match shared::take(tenant, *rate, 1) {
            Ok(Taken { allowed: true, remaining, .. }) => Verdict::proceed().set_note(REMAINING, remaining.to_string()),
            Ok(Taken { retry_after, .. }) => {
                // Whole seconds (RFC 9110 §10.2.3), rounded up.
                let seconds = retry_after.as_millis().div_ceil(1000);
                Response::new(429)
                    .field("retry-after", seconds.to_string())
                    .field(FIELD, "0")
                    .body("text/plain", "too many requests\n")
                    .into()
            }
            Err(error) => Verdict::Fail(format!("no quota for this tenant: {error}")),
        }
    }
}

impl ResponseFilter for PerTenant {
    /// This hook is never called: the host makes the edits of the response plan.
    fn on_response(&mut self, _: &Values) -> Verdict {
        Verdict::proceed()
    }
}

export!(PerTenant: RequestFilter, ResponseFilter);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plugway_sdk::testing::{self, Harness, Request};
    use plugway_sdk::{Response, shared};
    use serde_json::json;

    use super::PerTenant;

    fn filter() -> Harness<PerTenant> {
        let config = json!({
            "note": "key-owner",
            "default": { "requests": 1, "per": "1s" },
            "tenants": { "shop": { "requests": 60, "per": "1m", "burst": 3 } },
        });
        Harness::new(config).unwrap()
    }

    fn ask(filter: &mut Harness<PerTenant>, tenant: &str) -> Result<u32, Response> {
        let outcome = filter.request(Request::get("/").note("key-owner", tenant));
        match outcome.passed() {
            Some(passed) => Ok(passed.noted("quota-remaining").unwrap().parse().unwrap()),
            None => Err(filter.request(Request::get("/").note("key-owner", tenant)).answered().unwrap()),
        }
    }

    #[test]
    fn each_tenant_has_a_quota_over_all_workers() {
        // Two harnesses are two workers.
        let (mut one, mut other) = (filter(), filter());
        assert_eq!([ask(&mut one, "shop"), ask(&mut other, "shop"), ask(&mut one, "shop")], [Ok(2), Ok(1), Ok(0)]);
        let refused = ask(&mut other, "shop").unwrap_err();
        let field = |name: &str| refused.fields.iter().find(|(known, _)| known == name).map(|(_, value)| &value[..]);
        assert_eq!((refused.status, field("retry-after")), (429, Some(&b"1"[..])));
        // Others have quotas of their own.
        assert_eq!((ask(&mut one, "bank"), ask(&mut one, "")), (Ok(0), Ok(0)));
        testing::clock::advance(Duration::from_secs(2));
        assert_eq!([ask(&mut one, "shop"), ask(&mut other, "shop")], [Ok(1), Ok(0)]);
    }

    #[test]
    fn responses_tell_what_is_left() {
        let mut filter = filter();
        let passed = filter.request(Request::get("/").note("key-owner", "shop")).passed().unwrap();
        let response = filter.response(&passed, Response::new(200)).passed().unwrap();
        assert_eq!(response.fields, [("ratelimit-remaining".into(), b"2".to_vec())]);
    }

    #[test]
    fn a_quota_that_can_not_be_looked_up_is_a_failure() {
        let mut filter = filter();
        testing::shared::fail(Some(shared::Error::OtherKind));
        assert!(matches!(filter.request(Request::get("/")), testing::Outcome::Failed(_)));
    }

    #[test]
    fn wrong_quotas_are_errors_at_their_places() {
        for (quota, place) in [
            (json!({ "requests": 0, "per": "1s" }), "/tenants/a/requests"),
            (json!({ "requests": 1, "per": "1 day" }), "/tenants/a/per"),
            (json!({ "requests": 1, "per": "0s" }), "/tenants/a/per"),
            (json!({ "requests": 1, "per": "1s", "burst": 0 }), "/tenants/a/burst"),
        ] {
            let good = json!({ "requests": 1, "per": "1s" });
            let config = json!({ "note": "n", "default": good, "tenants": { "a": quota } });
            assert_eq!(Harness::<PerTenant>::errors(config)[0].path, place);
        }
    }
}
