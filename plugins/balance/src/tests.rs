//! Native tests of the plugin `balance`: configuration, sticky sessions and picks.

use plugway_sdk::EndpointState::{Down, Draining, Up};
use plugway_sdk::testing::{Harness, Request};
use plugway_sdk::{Edit, EndpointState, ValueName};
use serde_json::{Value, json};

use super::*;

/// The plugin with the edits that it has prepared.
struct Played {
    harness: Harness<Balance>,
    plans: ResponseEdits,
}

/// A choice, with the `Set-Cookie` line that it adds.
#[derive(Clone, Debug, PartialEq)]
struct Picked {
    endpoint: u32,
    cookie: Option<String>,
}

fn balance(config: Value) -> Played {
    Played { harness: Harness::new(config).unwrap(), plans: ResponseEdits::default() }
}

impl Played {
    fn told(&mut self, endpoints: Vec<Endpoint>) {
        self.plans = self.harness.endpoints_changed(endpoints);
    }
}

fn endpoints(states: &[EndpointState]) -> Vec<Endpoint> {
    let endpoint = |(state, place): (&EndpointState, u32)| Endpoint {
        address: format!("10.0.0.{place}:80"),
        weight: 1,
        state: *state,
        tier: 0,
        zone: String::new(),
    };
    states.iter().zip(0..).map(endpoint).collect()
}

/// Picks an endpoint for a request whose cookie `plugway` has this value.
fn pick(balance: &mut Played, value: Option<&str>, tried: &[u32]) -> Option<Picked> {
    pick_by(balance, value.map(|value| format!("plugway={value}")), tried)
}

/// Picks an endpoint for a request with this field `Cookie`.
fn pick_by(balance: &mut Played, field: Option<String>, tried: &[u32]) -> Option<Picked> {
    let values = Values::new(vec![field.map(Into::into)]);
    let choice = balance.harness.plugin.pick(&values, tried, &Endpoints::default())?;
    let cookie = match balance.plans.edits(&choice) {
        [] => None,
        [Edit::AppendField((name, value))] if name == "set-cookie" => Some(String::from_utf8(value.clone()).unwrap()),
        other => panic!("{other:?}"),
    };
    Some(Picked { endpoint: choice.endpoint, cookie })
}

/// Returns the cookie's value from a choice that sets the cookie.
fn token(choice: &Picked) -> String {
    let line = choice.cookie.as_ref().expect("a new cookie");
    line.split(['=', ';']).nth(1).unwrap().into()
}

// === Configuration ===

/// Configurations with a mistake, with the path and the message of its error.
const MISTAKES: [(&str, &str, &str); 20] = [
    (
        r#"{ "policy": "consistent-hash" }"#,
        "/key",
        "`consistent-hash` needs a key, such as `request.header.x-tenant`, `cookie.session` or `path`",
    ),
    (
        r#"{ "policy": "source-hash", "key": "path" }"#,
        "/key",
        "only `consistent-hash` has a key; leave it out, or write that policy",
    ),
    (
        r#"{ "policy": "consistent-hash", "key": "response.header.etag" }"#,
        "/key",
        "`response.header.etag` isn't known before an endpoint is chosen; write one like \
         `request.header.x-tenant`, `cookie.session` or `path`",
    ),
    (
        r#"{ "bounded-load": 125 }"#,
        "/bounded-load",
        "only `source-hash` and `consistent-hash` bound the load; leave it out",
    ),
    (
        r#"{ "policy": "source-hash", "bounded-load": 100 }"#,
        "/bounded-load",
        "100 is out of range; write a percentage from 101 to 1000",
    ),
    (
        r#"{ "policy": "source-hash", "bounded-load": 1001 }"#,
        "/bounded-load",
        "1001 is out of range; write a percentage from 101 to 1000",
    ),
    (r#"{ "overflow": 99 }"#, "/overflow", "99 is out of range; write a percentage from 100 to 1000"),
    (r#"{ "overflow": 1001 }"#, "/overflow", "1001 is out of range; write a percentage from 100 to 1000"),
    (r#"{ "zone": "" }"#, "/zone", "a zone has a name; leave it out to prefer none"),
    (
        r#"{ "sticky": { "secret": "äöüäöüäöüäöüäöü" } }"#,
        "/sticky/secret",
        "is too short to keep the cookie from being forged; write at least 16 random characters",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "cookie": "a b" } }"#,
        "/sticky/cookie",
        "invalid name of a cookie: `a b`; expected letters, digits, `-` and `_`",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "cookie": "" } }"#,
        "/sticky/cookie",
        "invalid name of a cookie: ``; expected letters, digits, `-` and `_`",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "path": "app" } }"#,
        "/sticky/path",
        "invalid path of a cookie: `app`; expected one such as `/app`, without `;`",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "path": "/a;b" } }"#,
        "/sticky/path",
        "invalid path of a cookie: `/a;b`; expected one such as `/app`, without `;`",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "path": "/\n" } }"#,
        "/sticky/path",
        "invalid path of a cookie: `/\n`; expected one such as `/app`, without `;`",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "domain": "a.org; x" } }"#,
        "/sticky/domain",
        "invalid domain: `a.org; x`; expected one such as `example.org`",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "max-age": 0 } }"#,
        "/sticky/max-age",
        "0 would delete the cookie; write at least 1, or leave it out",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "same-site": "none" } }"#,
        "/sticky/same-site",
        "browsers refuse \"none\" without `secure = true`",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "cookie": "__Secure-x" } }"#,
        "/sticky/cookie",
        "browsers refuse `__Secure-x` without `secure = true`",
    ),
    (
        r#"{ "sticky": { "secret": "0123456789abcdef", "cookie": "__Host-x", "secure": true, "path": "/app" } }"#,
        "/sticky/cookie",
        "browsers refuse `__Host-x` with a domain, or a path other than `/`",
    ),
];

#[test]
fn mistakes_are_named_with_their_place() {
    for (config, path, message) in MISTAKES {
        let error = Harness::<Balance>::new(serde_json::from_str::<Value>(config).unwrap()).err().unwrap();
        assert_eq!((&*error.path, &*error.message), (path, message), "{config}");
    }
}

#[test]
fn an_unknown_key_is_answered_with_the_known() {
    let error = Harness::<Balance>::new(json!({ "policy": "consistent-hash", "key": "header.x" })).err().unwrap();
    assert_eq!(error.path, "/key");
    assert!(error.message.starts_with("there is no value `{header.x}`; known: method, "), "{}", error.message);
}

#[test]
fn configuration_rejected_by_the_schema_does_not_parse() {
    for config in [
        json!({ "policy": "ring" }),
        json!({ "overflows": 1 }),
        json!({ "overflow": -1 }),
        json!({ "overflow": "never" }),
        json!({ "sticky": {} }),
        json!({ "sticky": { "secret": "0123456789abcdef", "same-site": "Lax" } }),
    ] {
        assert!(Harness::<Balance>::new(config.clone()).is_err(), "{config}");
    }
}

#[test]
fn only_what_a_policy_needs_is_declared() {
    let names = |config| {
        let setup = balance(config).harness.setup;
        (setup.balancer_key.clone(), setup.balancer.names().to_vec())
    };
    assert_eq!(names(json!({})), (None, vec![]));
    let source = Some(ValueName::ClientAddress);
    assert_eq!(names(json!({ "policy": "source-hash", "bounded-load": 125 })), (source, vec![]));
    let tenant = Some(ValueName::RequestField("x-tenant".into()));
    assert_eq!(names(json!({ "policy": "consistent-hash", "key": "request.header.x-tenant" })), (tenant, vec![]));
    let cookie = ValueName::RequestField("cookie".into());
    assert_eq!(names(json!({ "sticky": { "secret": "0123456789abcdef" } })), (None, vec![cookie]));
}

#[test]
fn the_key_decides() {
    let mut balance = balance(json!({ "policy": "consistent-hash", "key": "query.user" }));
    balance.told(endpoints(&[Up; 20]));
    let mut at = |target: &str| balance.harness.pick(&Request::get(target), &[], &Endpoints::default()).unwrap();
    let alice = at("/?user=alice");
    assert!((0..50).all(|_| at("/?user=alice") == alice));
    assert!((0..50).any(|_| at("/") != alice));
    assert_eq!(alice.response_edits, None);
}

// === Sticky ===

fn sticky(with: Value) -> Played {
    let mut config = json!({ "sticky": { "secret": "correct horse battery" } });
    let table = config["sticky"].as_object_mut().unwrap();
    table.extend(with.as_object().unwrap().clone());
    balance(config)
}

#[test]
fn a_client_comes_back_to_its_endpoint_by_every_policy() {
    for policy in ["round-robin", "least-connections", "random-two-choices", "peak-ewma", "source-hash"] {
        let mut balance = balance(json!({ "policy": policy, "sticky": { "secret": "correct horse battery" } }));
        balance.told(endpoints(&[Up; 5]));
        let first = pick(&mut balance, None, &[]).unwrap();
        let cookie = token(&first);
        for _ in 0..20 {
            let again = pick(&mut balance, Some(&cookie), &[]).unwrap();
            assert_eq!((again.endpoint, again.cookie), (first.endpoint, None), "the same endpoint, and no new cookie");
        }
    }
}

#[test]
fn the_cookie_is_the_same_everywhere_and_gives_nothing_away() {
    let tokens = |secret: &str| -> Vec<String> {
        let mut balance = balance(json!({ "sticky": { "secret": secret } }));
        balance.told(endpoints(&[Up, Up]));
        let mut choices = [0, 1].map(|_| pick(&mut balance, None, &[]).unwrap());
        choices.sort_by_key(|choice| choice.endpoint);
        choices.iter().map(token).collect()
    };
    let ours = tokens("correct horse battery");
    assert_eq!(ours, tokens("correct horse battery"));
    assert_ne!(ours[0], ours[1]);
    assert!(ours.iter().all(|token| token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit())));
    assert!(tokens("another secret of 16").iter().all(|theirs| !ours.contains(theirs)));
}

#[test]
fn a_cookie_that_names_no_endpoint_is_replaced() {
    let mut balance = sticky(json!({}));
    balance.told(endpoints(&[Up, Up]));
    let good = token(&pick(&mut balance, None, &[]).unwrap());
    let forged = [&good[1..], &good.to_uppercase(), &format!("{good}0"), "", "10.0.0.0:80", "0"];
    for cookie in forged.into_iter().filter(|forged| *forged != good) {
        let choice = pick(&mut balance, Some(cookie), &[]).unwrap();
        assert_eq!(token(&choice).len(), 32, "{cookie}");
    }
}

#[test]
fn other_cookies_of_the_name_hide_none() {
    let mut balance = sticky(json!({}));
    balance.told(endpoints(&[Up, Up, Up]));
    let first = pick(&mut balance, None, &[]).unwrap();
    let good = token(&first);
    let fields = [
        format!("plugway=of-another-path; plugway={good}"),
        format!("a=1; plugway={good}; plugway=2"),
        format!("plugway=; xplugway=3, plugway={good}"),
    ];
    for field in fields {
        let again = pick_by(&mut balance, Some(field.clone()), &[]).unwrap();
        assert_eq!((again.endpoint, again.cookie), (first.endpoint, None), "{field}");
    }
    let second = pick(&mut balance, None, &[first.endpoint]).unwrap();
    let both = format!("plugway={good}; plugway={}", token(&second));
    let again = pick_by(&mut balance, Some(both), &[first.endpoint]).unwrap();
    assert_eq!((again.endpoint, again.cookie), (second.endpoint, None), "the one that may be chosen");
}

#[test]
fn an_endpoint_that_may_not_be_chosen_is_left_for_another() {
    let mut balance = sticky(json!({}));
    balance.told(endpoints(&[Up, Up]));
    let first = pick(&mut balance, None, &[]).unwrap();
    let cookie = token(&first);

    let other = pick(&mut balance, Some(&cookie), &[first.endpoint]).unwrap();
    assert_ne!(other.endpoint, first.endpoint);
    assert_ne!(token(&other), cookie);

    for state in [Down, Draining] {
        let mut states = [Up, Up];
        states[first.endpoint as usize] = state;
        balance.told(endpoints(&states));
        let other = pick(&mut balance, Some(&cookie), &[]).unwrap();
        assert_ne!(other.endpoint, first.endpoint);
        assert_ne!(token(&other), cookie);
    }

    balance.told(endpoints(&[Up, Up]));
    let again = pick(&mut balance, Some(&cookie), &[]).unwrap();
    assert_eq!((again.endpoint, again.cookie), (first.endpoint, None));
    balance.told(endpoints(&[Down, Draining]));
    assert_eq!(pick(&mut balance, Some(&cookie), &[]), None);
}

/// Two endpoints of the first tier in these states, and one of the next.
fn with_backup(states: [EndpointState; 2]) -> Vec<Endpoint> {
    let mut endpoints = endpoints(&[states[0], states[1], Up]);
    endpoints[2].tier = 1;
    endpoints
}

#[test]
fn a_cookie_leads_to_no_tier_that_other_requests_do_not_get() {
    for overflow in [json!(140), json!("when-all-down")] {
        let mut balance = balance(json!({ "overflow": overflow, "sticky": { "secret": "correct horse battery" } }));
        balance.told(with_backup([Down, Down]));
        let backup = pick(&mut balance, None, &[]).unwrap();
        let cookie = token(&backup);
        let again = pick(&mut balance, Some(&cookie), &[]).unwrap();
        assert_eq!([(2, true), (2, false)], [&backup, &again].map(|picked| (picked.endpoint, picked.cookie.is_some())));

        balance.told(with_backup([Up, Up]));
        let back = pick(&mut balance, Some(&cookie), &[]).unwrap();
        assert!(back.endpoint < 2 && token(&back) != cookie, "{back:?}");
        let own = token(&back);
        let retried = pick(&mut balance, Some(&own), &[0, 1]).unwrap();
        assert_eq!((retried.endpoint, retried.cookie), (2, None), "the client keeps its cookie");
    }
}

#[test]
fn a_cookie_leads_to_a_tier_that_gets_the_overflow() {
    let mut balance = sticky(json!({}));
    balance.told(with_backup([Up, Down]));
    let overflow = (0..1000).find_map(|_| pick(&mut balance, None, &[]).filter(|picked| picked.endpoint == 2)).unwrap();
    let cookie = token(&overflow);
    for _ in 0..20 {
        assert_eq!(pick(&mut balance, Some(&cookie), &[]), Some(Picked { endpoint: 2, cookie: None }));
    }
}

#[test]
fn a_cookie_leads_to_another_zone_of_its_tier() {
    let zoned = |zone: &str| {
        let mut balance = balance(json!({ "zone": zone, "sticky": { "secret": "correct horse battery" } }));
        let mut endpoints = endpoints(&[Up, Up]);
        endpoints.iter_mut().zip(["a", "b"]).for_each(|(endpoint, zone)| endpoint.zone = zone.into());
        balance.told(endpoints);
        balance
    };
    let cookie = token(&pick(&mut zoned("b"), None, &[]).unwrap());
    assert_eq!(pick(&mut zoned("a"), Some(&cookie), &[]), Some(Picked { endpoint: 1, cookie: None }));
}

#[test]
fn the_cookie_has_the_attributes_that_are_wanted() {
    let table = [
        (json!({}), "plugway=TOKEN; Path=/; HttpOnly; SameSite=Lax"),
        (
            json!({ "cookie": "back", "path": "/app", "domain": "example.org", "max-age": 3600, "secure": true,
                    "same-site": "none" }),
            "back=TOKEN; Path=/app; Domain=example.org; Max-Age=3600; Secure; HttpOnly; SameSite=None",
        ),
        (
            json!({ "cookie": "__Host-x", "secure": true, "http-only": false, "same-site": "strict" }),
            "__Host-x=TOKEN; Path=/; Secure; SameSite=Strict",
        ),
    ];
    for (config, expected) in table {
        let mut balance = sticky(config);
        balance.told(endpoints(&[Up]));
        let choice = pick(&mut balance, None, &[]).unwrap();
        assert_eq!(choice.cookie.clone().unwrap(), expected.replace("TOKEN", &token(&choice)));
    }
}
