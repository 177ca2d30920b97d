//! Parsing of edits and conditions.

use plugway_sdk::path::{never_begins, without_parameters};
use plugway_sdk::pointer;
use plugway_sdk::token::is_token;
use plugway_sdk::{ConfigError, EditPlan, Input, Inputs, Part, Setup, ValueName, Values};

use crate::config::{Edits, When};
use crate::template;

/// Returns the plan for the edits to requests. Each template that no request can fill is reported.
pub fn request_plan(edits: &Edits, setup: &mut Setup) -> EditPlan {
    plan(edits, "/request", setup, |text| {
        let parts = template::parse(text)?;
        match parts.iter().find_map(template::of_response) {
            None => Ok(parts),
            Some(name) => Err(format!(
                "no request has `{{{name}}}`, which is known with the response only; remove it, or set the field in \
                 `response`"
            )),
        }
    })
}

/// Returns the plan for the edits to responses. Each template that can't be parsed is reported.
pub fn response_plan(edits: &Edits, setup: &mut Setup) -> EditPlan {
    plan(edits, "/response", setup, template::parse)
}

/// Returns the plan for the edits of one kind of message; `at` is the JSON pointer to the edits.
fn plan(edits: &Edits, at: &str, setup: &mut Setup, parse: impl Fn(&str) -> Result<Vec<Part>, String>) -> EditPlan {
    report_names(edits, at, setup);
    for (kind, fields) in [("set", &edits.set), ("default", &edits.default)] {
        report_repeated(fields.keys(), &format!("{at}/{kind}"), setup);
    }
    let mut parsed = |kind: &str, name: &str, text: &str| {
        parse(text).unwrap_or_else(|error| {
            setup.report(ConfigError::at(pointer::member(&format!("{at}/{kind}"), name), error));
            Vec::new()
        })
    };
    let mut plan = EditPlan::default();
    for (from, to) in &edits.rename {
        plan = plan.rename_field(from, to);
    }
    for name in &edits.remove {
        plan = plan.remove_field(name);
    }
    for (name, text) in &edits.set {
        plan = plan.set_field(name, parsed("set", name, &text.0));
    }
    for (name, text) in &edits.append {
        plan = plan.append_field(name, parsed("append", name, &text.0));
    }
    for (name, text) in &edits.default {
        plan = plan.default_field(name, parsed("default", name, &text.0));
    }
    plan
}

/// Reports names that no field can have. The host would find them in the plan, which has no places in the configuration.
fn report_names(edits: &Edits, at: &str, setup: &mut Setup) {
    let mut check = |name: &str, pointer: String| {
        if !is_token(name) {
            let message = format!("invalid name of a field: `{name}`; expected one such as `X-Request-ID`");
            setup.report(ConfigError::at(pointer, message));
        }
    };
    for (from, to) in &edits.rename {
        let pointer = pointer::member(&format!("{at}/rename"), from);
        check(from, pointer.clone());
        check(to, pointer);
    }
    for (place, name) in edits.remove.iter().enumerate() {
        check(name, format!("{at}/remove/{place}"));
    }
    for (kind, fields) in [("set", &edits.set), ("append", &edits.append), ("default", &edits.default)] {
        fields.keys().for_each(|name| check(name, pointer::member(&format!("{at}/{kind}"), name)));
    }
}

/// Reports fields whose name differs from another by its case alone: the value of one of the two would be lost.
fn report_repeated<'a>(names: impl Iterator<Item = &'a String>, at: &str, setup: &mut Setup) {
    let mut known: Vec<&String> = Vec::new();
    for name in names {
        if let Some(other) = known.iter().find(|other| other.eq_ignore_ascii_case(name)) {
            let message = format!("field named twice: `{name}` and `{other}` are one field; remove one of them");
            setup.report(ConfigError::at(pointer::member(at, name), message));
        }
        known.push(name);
    }
}

/// Checks that messages can meet each condition; the error names the first one that none meets.
pub fn check_conditions(when: &When) -> Result<(), ConfigError> {
    let wrong = |list: &str, at: usize, why: String| Err(ConfigError::at(format!("/when/{list}/{at}"), why));
    for (at, method) in when.methods.iter().enumerate() {
        // The star is a token.
        if method == "*" {
            return wrong("methods", at, "`*` is no method; remove `methods` for any method".into());
        }
        let upper = method.to_ascii_uppercase();
        if !is_token(method) {
            return wrong("methods", at, format!("invalid method: `{method}`; expected one such as `GET`"));
        }
        if *method != upper && METHODS.contains(&upper.as_str()) {
            return wrong("methods", at, format!("method in lower case: `{method}`; write `{upper}`"));
        }
    }
    for (at, path) in when.paths.iter().enumerate() {
        if let Some(why) = never_begins(path) {
            return wrong("paths", at, why);
        }
    }
    match when.statuses.iter().enumerate().find(|(_, status)| !(100..1000).contains(*status)) {
        Some((at, status)) => wrong("statuses", at, format!("invalid status: {status}; expected a code such as 200")),
        None => Ok(()),
    }
}

/// The methods of RFC 9110 and RFC 5789, which are in capitals; methods have a case.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// The conditions for edits.
pub struct Conditions {
    methods: Option<(Input, Vec<String>)>,
    paths: Option<(Input, Vec<String>)>,
    statuses: Option<(Input, Vec<String>)>,
}

impl Conditions {
    /// Declares the values that the conditions need; `statuses` is given for responses only.
    pub fn declare(when: &When, statuses: Option<&Vec<u16>>, needs: &mut Inputs) -> Self {
        let mut asked = |name, allowed: Vec<String>| (!allowed.is_empty()).then(|| (needs.value(name), allowed));
        let codes = |codes: &Vec<u16>| codes.iter().map(u16::to_string).collect();
        Conditions {
            methods: asked(ValueName::Method, when.methods.clone()),
            paths: asked(ValueName::Path, when.paths.clone()),
            statuses: asked(ValueName::Status, statuses.map(codes).unwrap_or_default()),
        }
    }

    /// Returns whether all conditions hold.
    pub fn hold(&self, values: &Values) -> bool {
        let text = |need| values.text(need).unwrap_or_default();
        let is_one = |(need, allowed): &(Input, Vec<String>)| allowed.iter().any(|one| one == text(*need));
        let begins = |(need, allowed): &(Input, Vec<String>)| {
            let path = without_parameters(text(*need));
            allowed.iter().any(|one| path.starts_with(one))
        };
        self.methods.as_ref().is_none_or(is_one)
            && self.paths.as_ref().is_none_or(begins)
            && self.statuses.as_ref().is_none_or(is_one)
    }
}
