//! A plugin that declares, returns and asks for more than the limits allow: in `configure` as its configuration says,
//! in a call as the request says in `x-greedy`. It uses the WIT directly, because the SDK would check the limits.
#![cfg(target_family = "wasm")]
#![allow(unsafe_code, reason = "the canonical ABI's exports are raw")]

mod calls;
mod declared;

use plugway_sdk::bindings::balancer::exports::plugway::plugin::balancer;
use plugway_sdk::bindings::lifecycle::exports::plugway::plugin::lifecycle::{self, Description, Settings};
use plugway_sdk::bindings::request_filter::exports::plugway::plugin::request_filter;
use plugway_sdk::bindings::response_body::exports::plugway::plugin::response_body;
use plugway_sdk::bindings::types::{Edit, Verdict};

/// The configuration of the plugin.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Config {
    /// The name of the excess that `configure` declares.
    declare: String,
    /// The number of bytes that each `push` of a body returns.
    amplify: usize,
    /// The number of lists of edits that `endpoints-changed` returns.
    response_edits: usize,
}

std::thread_local! {
    static CONFIG: std::cell::RefCell<Config> = std::cell::RefCell::default();
}

/// The switch for an excessive `describe`: a test overwrites these bytes in the component with others of the same
/// length.
static DESCRIBE: [u8; 16] = *b"describe:modest!";

struct Glue;

impl lifecycle::Guest for Glue {
    fn describe() -> Description {
        let mark = std::hint::black_box(DESCRIBE);
        let (summary, config_schema) = match &mark {
            b"describe:summary" => ("x".repeat(2_000), None),
            b"describe:schema!" => (String::new(), Some(format!("{{\"title\":\"{}\"}}", "x".repeat(1_100_000)))),
            b"describe:nested!" => (String::new(), Some(format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)))),
            b"describe:values!" => (String::new(), Some(format!("{{\"enum\":[{}0]}}", "0,".repeat(40_000)))),
            _ => ("greedy".into(), None),
        };
        Description { name: "greedy".into(), version: "1".into(), summary, config_schema }
    }

    fn configure(config: String) -> Result<Settings, Vec<lifecycle::ConfigError>> {
        let config: Config = serde_json::from_str(&config).unwrap_or_default();
        let settings = declared::settings(&config.declare);
        CONFIG.set(config);
        settings
    }
}

impl request_filter::Guest for Glue {
    fn on_request(values: Vec<Option<Vec<u8>>>) -> Verdict {
        let what = values.into_iter().next().flatten().unwrap_or_default();
        calls::verdict(&String::from_utf8_lossy(&what))
    }
}

impl balancer::Guest for Glue {
    fn endpoints_changed(_: Vec<balancer::Endpoint>) -> Vec<Vec<Edit>> {
        let plans = CONFIG.with_borrow(|config| config.response_edits);
        vec![vec![Edit::RemoveField("x".into())]; plans]
    }

    fn pick(values: Vec<Option<Vec<u8>>>, _: Option<u64>, _: u32) -> Option<balancer::Choice> {
        let what = values.into_iter().next().flatten().unwrap_or_default();
        if what == b"in-flight-counts" {
            plugway_sdk::bindings::endpoints::in_flight_counts(&vec![0; 1_000_000]);
        }
        assert!(what != b"trap", "told to trap in a pick");
        let endpoint = if what == b"beyond" { 99 } else { 0 };
        Some(balancer::Choice { endpoint, response_edits: (what == b"plan").then_some(7) })
    }
}

struct Body;

impl response_body::GuestTransform for Body {
    fn new(_: Vec<Option<Vec<u8>>>) -> Self {
        Body
    }

    fn push(&self, chunk: Vec<u8>) -> Result<Vec<u8>, String> {
        let amplify = CONFIG.with_borrow(|config| config.amplify);
        Ok(if amplify > 0 { vec![b'x'; amplify] } else { chunk })
    }

    fn finish(&self) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }

    fn trailers(&self, _: Vec<(String, Vec<u8>)>) -> Result<Vec<(String, Vec<u8>)>, String> {
        Ok((0..257).map(|n| (format!("x-{n}"), b"1".to_vec())).collect())
    }
}

impl response_body::Guest for Glue {
    type Transform = Body;
}

plugway_sdk::bindings::lifecycle::export!(Glue with_types_in plugway_sdk::bindings::lifecycle);
plugway_sdk::bindings::request_filter::export!(Glue with_types_in plugway_sdk::bindings::request_filter);
plugway_sdk::bindings::balancer::export!(Glue with_types_in plugway_sdk::bindings::balancer);
plugway_sdk::bindings::response_body::export!(Glue with_types_in plugway_sdk::bindings::response_body);
