//! The excessive declarations of `configure`.

use plugway_sdk::bindings::lifecycle::exports::plugway::plugin::lifecycle::{ConfigError, LookupPlan, Settings};
use plugway_sdk::bindings::metrics::{self, Kind};
use plugway_sdk::bindings::types::{PlannedEdit, TemplatePart, ValueName};

fn value(name: &str) -> TemplatePart {
    TemplatePart::Value(ValueName::RequestField(name.into()))
}

fn text(length: usize) -> TemplatePart {
    TemplatePart::Text(vec![b'x'; length])
}

fn append(name: &str, parts: Vec<TemplatePart>) -> PlannedEdit {
    PlannedEdit::AppendField((name.into(), parts))
}

/// Returns plans that are each within the limits, but together more than one call may apply.
fn plans() -> Vec<Vec<PlannedEdit>> {
    let fields = (0..200).map(|n| append(&format!("x-{n}"), vec![text(1)])).collect();
    let long = (0..200).map(|_| append("x-a", vec![text(1_000)])).collect();
    let template = vec![append("x-b", vec![value("x-long"); 64])];
    // Doubles a field until its value is too long.
    let double = |_| PlannedEdit::SetField(("x-c".into(), vec![value("x-c"); 2]));
    let chained = (0..30).map(double).collect();
    let notes = (0..60).map(|n| PlannedEdit::SetNote((format!("n{n}"), vec![text(3_000)]))).collect();
    vec![fields, long, template, chained, notes]
}

pub fn settings(what: &str) -> Result<Settings, Vec<ConfigError>> {
    let mut settings = Settings {
        request_values: vec![ValueName::RequestField("x-greedy".into())],
        response_values: Vec::new(),
        request_body_values: Vec::new(),
        response_body_values: Vec::new(),
        balancer_values: vec![ValueName::RequestField("x-greedy".into())],
        balancer_key: None,
        observer_values: Vec::new(),
        cache_request_values: Vec::new(),
        cache_response_values: Vec::new(),
        lookup_plan: None,
        cache_status: None,
        edit_plans: plans(),
        request_plan: None,
        response_plan: None,
        request_body: None,
        response_body: None,
        request_content: None,
        response_content: None,
        timer_interval_ms: None,
    };
    let names = |count: usize| vec![ValueName::Path; count];
    match what {
        "plans" => settings.edit_plans = vec![Vec::new(); 257],
        "edits" => settings.edit_plans = vec![vec![PlannedEdit::RemoveField("x".into()); 257]],
        "fields" => settings.edit_plans = vec![(0..33_000).map(|n| append(&format!("x-{n}"), Vec::new())).collect()],
        "parts" => settings.edit_plans = vec![vec![append("x", vec![text(1); 65])]],
        "template-values" => settings.edit_plans = vec![vec![append("x", vec![value("x"); 60]); 5]],
        "text" => settings.edit_plans = vec![vec![append("x", vec![text(40_000); 2])]],
        "name" => settings.edit_plans = vec![vec![append(&"x".repeat(2_000), Vec::new())]],
        "note" => settings.edit_plans = vec![vec![PlannedEdit::SetNote(("x".repeat(2_000), Vec::new()))]],
        "response-limit" => {
            settings.edit_plans = vec![vec![PlannedEdit::MaxBody(1)]];
            settings.response_plan = Some(0);
        }
        "declared" => settings.edit_plans = vec![vec![append("x", vec![text(1)]); 100]; 200],
        "values" => settings.request_values = names(129),
        "body" => settings.response_body_values = names(129),
        "observer" => settings.balancer_values = names(129),
        "cookie" => settings.request_values = vec![ValueName::Cookie("x".repeat(2_000))],
        "lookup-key" => settings.lookup_plan = Some(LookupPlan { key: vec![text(1); 257], unless: Vec::new() }),
        "errors" => {
            let error =
                |n: usize| ConfigError { path: format!("/{n}"), message: "x".repeat(if n == 0 { 9_000 } else { 9 }) };
            return Err((0..50_000).map(error).collect());
        }
        "metrics" => return metrics(65).map(|()| settings),
        "metric-help" => {
            let defined = metrics::define("a", Kind::Counter, &"x".repeat(2_000));
            return defined.map(|_| settings).map_err(refused);
        }
        // The name differs in each instance.
        "metric-names" => {
            let name = format!("m{}", wasip2::random::random::get_random_u64());
            let defined = metrics::define(&name, Kind::Counter, "");
            defined.map(|handle| metrics::add(handle, 1.0)).unwrap_or_default();
        }
        _ => {}
    }
    Ok(settings)
}

fn metrics(count: usize) -> Result<(), Vec<ConfigError>> {
    (0..count).try_for_each(|n| metrics::define(&format!("m{n}"), Kind::Counter, "").map(|_| ()).map_err(refused))
}

fn refused(error: metrics::DefineError) -> Vec<ConfigError> {
    vec![ConfigError { path: String::new(), message: format!("{error:?}") }]
}
