//! A plugin whose schema a test writes into its file, and which misbehaves in `configure`. It doesn't use the SDK,
//! which would write a schema of its own.
#![cfg(target_family = "wasm")]

#[allow(missing_docs, unsafe_code, clippy::all, unused_qualifications, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "lifecycle-hook", default_bindings_module: "crate::bindings" });
    export!(Loading);

    use super::Loading;
}

use bindings::exports::plugway::plugin::lifecycle::{ConfigError, Description, Guest, Settings};

struct Loading;

/// The space for the schema. The test that writes it knows the first bytes and the size.
static SCHEMA: [u8; 900 << 10] = {
    let (mut schema, marker) = ([b' '; 900 << 10], *b"{}SCHEMA-GOES-HERE");
    let mut at = 0;
    while at < marker.len() {
        schema[at] = marker[at];
        at += 1;
    }
    schema
};

impl Guest for Loading {
    fn describe() -> Description {
        let schema = std::hint::black_box(&SCHEMA).trim_ascii_end();
        let schema = schema.strip_suffix(b"SCHEMA-GOES-HERE").unwrap_or(schema);
        Description {
            name: "loading\u{1b}[2J".into(),
            version: "1\r2".into(),
            summary: "Red \u{1b}[31m and\nhooks: forged".into(),
            config_schema: Some(String::from_utf8_lossy(schema).into_owned()),
        }
    }

    fn configure(config: String) -> Result<Settings, Vec<ConfigError>> {
        let error = |message: String| ConfigError { path: "/do".into(), message };
        if config.contains("spin") {
            loop {
                std::hint::black_box(&config);
            }
        }
        if config.contains("escape") {
            return Err(vec![error("\u{1b}[2J no\nerror: forged".into())]);
        }
        if config.contains("many") {
            return Err((0..20_000).map(|number| error(format!("number {number}"))).collect());
        }
        if config.contains("panic") {
            panic!("\u{1b}[2J told to panic");
        }
        Ok(Settings {
            request_values: Vec::new(),
            response_values: Vec::new(),
            balancer_values: Vec::new(),
            balancer_key: None,
            observer_values: Vec::new(),
            cache_request_values: Vec::new(),
            cache_response_values: Vec::new(),
            lookup_plan: None,
            cache_status: None,
            edit_plans: Vec::new(),
            request_plan: None,
            response_plan: None,
            request_body: None,
            response_body: None,
            request_body_values: Vec::new(),
            response_body_values: Vec::new(),
            request_content: None,
            response_content: None,
            timer_interval_ms: None,
        })
    }
}
