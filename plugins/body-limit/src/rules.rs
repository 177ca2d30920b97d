//! The rules: conditions, and the limits that apply where they hold.

use plugway_sdk::path::{never_begins, without_parameters};
use plugway_sdk::token::is_token;
use plugway_sdk::{
    ConfigError, EditPlan, EditPlanId, Input, Response, Setup, ValueName, Values, Verdict, authority, lines, units,
};

use crate::config::{Config, Rule};
use crate::media_type::MediaTypes;

/// The configured rules.
pub struct Rules {
    inputs: Inputs,
    rules: Vec<(Conditions, Limits)>,
    /// The limits where no rule applies.
    others: Limits,
}

/// The handles of the declared values; `None` for those that no rule reads.
struct Inputs {
    content_length: Input,
    content_type: Option<Input>,
    method: Option<Input>,
    path: Option<Input>,
    host: Option<Input>,
}

/// The conditions of a rule; an empty list is no condition.
struct Conditions {
    methods: Vec<String>,
    paths: Vec<String>,
    hosts: Vec<String>,
    types: MediaTypes,
}

/// The limits of a body.
#[derive(Clone)]
struct Limits {
    /// The plan that limits the length.
    max: Option<EditPlanId>,
    accept: MediaTypes,
    require_length: bool,
}

impl Rules {
    /// Reads the configuration, and reports all errors in it. The host applies a limit without conditions by itself.
    pub fn new(config: &Config, setup: &mut Setup) -> Self {
        let others = Limits {
            max: max(config.max.as_ref(), "/max", setup),
            accept: media_types(&config.accept, "/accept", setup),
            require_length: config.require_length,
        };
        let rules: Vec<_> =
            config.rules.iter().enumerate().map(|(place, rule)| rule_of(place, rule, &others, setup)).collect();
        let is_plain = config.rules.is_empty() && config.accept.is_empty() && !config.require_length;
        match others.max {
            Some(max) if is_plain => setup.request_plan = Some(max),
            None if is_plain && config.max.is_none() => {
                let message = "nothing is limited; write `max = \"1 MiB\"`, or `accept = [\"application/json\"]`";
                setup.report(ConfigError::at("", message));
            }
            _ => {}
        }
        Rules { inputs: Inputs::declare(config, setup), rules, others }
    }

    /// Limits the body of a request, or answers the request.
    pub fn decide(&self, request: &Values) -> Verdict {
        let Some(length) = request.bytes(self.inputs.content_length) else { return Verdict::proceed() };
        let text = |input: Option<Input>| input.and_then(|input| request.text(input)).unwrap_or_default();
        let content_type = text(self.inputs.content_type);
        let path = without_parameters(text(self.inputs.path));
        let (method, host) = (text(self.inputs.method), text(self.inputs.host));
        let rule = self.rules.iter().find(|(conditions, _)| conditions.hold(method, &path, host, content_type));
        let limits = rule.map_or(&self.others, |(_, limits)| limits);
        if !limits.accept.is_empty() && !limits.accept.contain(content_type) {
            let accepted = limits.accept.list();
            let words = format!("415 Unsupported Media Type\naccepted is content of these types: {accepted}\n");
            // The field tells the client what it may send (RFC 9110 §15.5.16).
            return Response::new(415).field("accept", accepted).body(TEXT, words).into();
        }
        if limits.require_length && length.is_empty() {
            let words = "411 Length Required\nthe length of the content has to be announced in Content-Length\n";
            return Response::new(411).body(TEXT, words).into();
        }
        limits.max.map_or_else(Verdict::proceed, Verdict::from)
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

impl Inputs {
    fn declare(config: &Config, setup: &mut Setup) -> Self {
        let reads = |is_read: &dyn Fn(&Rule) -> bool| config.rules.iter().any(is_read);
        let needs_type = !config.accept.is_empty() || reads(&|rule| !rule.types.is_empty() || rule.accept.is_some());
        let request = &mut setup.request;
        Inputs {
            content_length: request.value(ValueName::ContentLength),
            content_type: needs_type.then(|| request.field("content-type")),
            method: reads(&|rule| !rule.methods.is_empty()).then(|| request.value(ValueName::Method)),
            path: reads(&|rule| !rule.paths.is_empty()).then(|| request.value(ValueName::Path)),
            host: reads(&|rule| !rule.hosts.is_empty()).then(|| request.value(ValueName::Host)),
        }
    }
}

impl Conditions {
    fn hold(&self, method: &str, path: &str, host: &str, content_type: &str) -> bool {
        let has_host = |wanted: &String| match wanted.strip_prefix('*') {
            Some(domain) => host.len() > domain.len() && host.ends_with(domain),
            None => host == wanted,
        };
        (self.methods.is_empty() || self.methods.iter().any(|wanted| wanted == method))
            && (self.paths.is_empty() || self.paths.iter().any(|wanted| path.starts_with(wanted.as_str())))
            && (self.hosts.is_empty() || self.hosts.iter().any(has_host))
            && (self.types.is_empty() || self.types.contain(content_type))
    }
}

/// Returns a rule; limits that it does not have are those of the others.
fn rule_of(place: usize, rule: &Rule, others: &Limits, setup: &mut Setup) -> (Conditions, Limits) {
    let at = |key: &str| format!("/rules/{place}/{key}");
    if rule.max.is_none() && rule.accept.is_none() && rule.require_length.is_none() {
        let message = "the rule limits nothing; write `max`, `accept` or `require-length` in it";
        setup.report(ConfigError::at(format!("/rules/{place}"), message));
    }
    if [&rule.methods, &rule.paths, &rule.hosts, &rule.types].iter().all(|list| list.is_empty()) {
        let message = "the rule has no condition; write `methods`, `paths`, `hosts` or `types`, or its limits above";
        setup.report(ConfigError::at(format!("/rules/{place}"), message));
    }
    let conditions = Conditions {
        methods: checked(&rule.methods, &at("methods"), setup, method),
        paths: checked(&rule.paths, &at("paths"), setup, |path| never_begins(path).map_or(Ok(()), Err)),
        hosts: checked(&rule.hosts, &at("hosts"), setup, |host| authority::never_requested(host).map_or(Ok(()), Err)),
        types: media_types(&rule.types, &at("types"), setup),
    };
    let limits = Limits {
        max: max(rule.max.as_ref(), &at("max"), setup).or(others.max),
        accept: match &rule.accept {
            Some(accept) => media_types(accept, &at("accept"), setup),
            None => others.accept.clone(),
        },
        require_length: rule.require_length.unwrap_or(others.require_length),
    };
    (conditions, limits)
}

/// Returns the plan for a limit; an invalid size is reported.
fn max(text: Option<&String>, pointer: &str, setup: &mut Setup) -> Option<EditPlanId> {
    match units::bytes(text?) {
        Ok(bytes) => Some(setup.plan(EditPlan::default().max_body(bytes))),
        Err(message) => {
            setup.report(ConfigError::at(pointer, message));
            None
        }
    }
}

fn media_types(texts: &[String], pointer: &str, setup: &mut Setup) -> MediaTypes {
    MediaTypes::parse(texts).unwrap_or_else(|(place, message)| {
        setup.report(ConfigError::at(format!("{pointer}/{place}"), message));
        MediaTypes::default()
    })
}

/// Returns the entries of a list, of which each may have many lines; invalid ones are reported.
fn checked(
    list: &[String],
    pointer: &str,
    setup: &mut Setup,
    check: impl Fn(&str) -> Result<(), String>,
) -> Vec<String> {
    let mut entries = Vec::new();
    for (place, entry) in list.iter().enumerate() {
        for line in lines::of(entry) {
            match check(line.text) {
                Ok(()) => entries.push(line.text.to_string()),
                Err(message) => setup.report(line.error(format!("{pointer}/{place}"), message)),
            }
        }
    }
    entries
}

fn method(method: &str) -> Result<(), String> {
    // The star is a token.
    if method == "*" {
        return Err("`*` is no method; remove `methods` for any method".into());
    }
    if !is_token(method) {
        return Err(format!("invalid method: `{method}`; expected one such as `POST`"));
    }
    let upper = method.to_ascii_uppercase();
    if method == upper { Ok(()) } else { Err(format!("`{method}`: methods are in capitals; write `{upper}`")) }
}
