//! Edits and conditions, parsed, and carried out on one message.

use plugway_sdk::{ConfigError, Edit, Need, Needs, Plan, ValueName, Values, Verdict};

use crate::config::{Edits, When};
use crate::template::{Declared, Template};

/// The edits of one kind of message; `T` is what stands for a value.
pub struct Rules<T = Declared>(Vec<Rule<T>>);

enum Rule<T> {
    Rename(String, String),
    Remove(String),
    Set(String, T),
    Append(String, T),
    Default(String, T),
}

/// When to make them.
pub struct Conditions {
    methods: Option<(Need, Vec<String>)>,
    paths: Option<(Need, Vec<String>)>,
    statuses: Option<(Need, Vec<String>)>,
}

// === Rules ===

impl Rules<Template> {
    /// Parses the edits that stand at the JSON pointer `at`.
    pub fn parse(edits: &Edits, at: &str) -> Result<Self, ConfigError> {
        let template = |kind: &str, name: &str, text: &str| {
            let pointer = || format!("{at}/{kind}/{}", name.replace('~', "~0").replace('/', "~1"));
            Template::parse(text).map_err(|error| ConfigError::at(pointer(), error))
        };
        let mut rules = Vec::new();
        rules.extend(edits.rename.iter().map(|(from, to)| Rule::Rename(from.clone(), to.clone())));
        rules.extend(edits.remove.iter().cloned().map(Rule::Remove));
        for (name, text) in &edits.set {
            rules.push(Rule::Set(name.clone(), template("set", name, text)?));
        }
        for (name, text) in &edits.append {
            rules.push(Rule::Append(name.clone(), template("append", name, text)?));
        }
        for (name, text) in &edits.default {
            rules.push(Rule::Default(name.clone(), template("default", name, text)?));
        }
        Ok(Rules(rules))
    }

    /// The same as a plan for the host.
    pub fn plan(&self) -> Plan {
        self.0.iter().fold(Plan::default(), |plan, rule| match rule {
            Rule::Rename(from, to) => plan.rename_field(from, to),
            Rule::Remove(name) => plan.remove_field(name),
            Rule::Set(name, template) => plan.set_field(name, template.parts()),
            Rule::Append(name, template) => plan.append_field(name, template.parts()),
            Rule::Default(name, template) => plan.default_field(name, template.parts()),
        })
    }

    /// The same with their values declared.
    pub fn declare(self, needs: &mut Needs) -> Rules {
        let declare = |rule: Rule<Template>| match rule {
            Rule::Rename(from, to) => Rule::Rename(from, to),
            Rule::Remove(name) => Rule::Remove(name),
            Rule::Set(name, template) => Rule::Set(name, template.declare(needs)),
            Rule::Append(name, template) => Rule::Append(name, template.declare(needs)),
            Rule::Default(name, template) => Rule::Default(name, template.declare(needs)),
        };
        Rules(self.0.into_iter().map(declare).collect())
    }
}

impl Rules {
    /// Adds the edits for a message to a verdict.
    pub fn apply(&self, values: &Values, verdict: Verdict) -> Verdict {
        self.0.iter().fold(verdict, |verdict, rule| match rule {
            Rule::Rename(from, to) => verdict.edit(Edit::RenameField((from.clone(), to.clone()))),
            Rule::Remove(name) => verdict.remove_field(name),
            Rule::Set(name, template) => match template.fill(values) {
                empty if empty.is_empty() => verdict.remove_field(name),
                value => verdict.set_field(name, value),
            },
            Rule::Append(name, template) => match template.fill(values) {
                empty if empty.is_empty() => verdict,
                value => verdict.append_field(name, value),
            },
            Rule::Default(name, template) => match template.fill(values) {
                empty if empty.is_empty() => verdict,
                value => verdict.edit(Edit::DefaultField((name.clone(), value))),
            },
        })
    }
}

// === Conditions ===

impl Conditions {
    /// Declares the values that the conditions ask about; of `statuses` only in responses.
    pub fn declare(when: &When, statuses: Option<&Vec<u16>>, needs: &mut Needs) -> Self {
        let mut asked = |name, allowed: Vec<String>| (!allowed.is_empty()).then(|| (needs.value(name), allowed));
        let codes = |codes: &Vec<u16>| codes.iter().map(u16::to_string).collect();
        Conditions {
            methods: asked(ValueName::Method, when.methods.clone()),
            paths: asked(ValueName::Path, when.paths.clone()),
            statuses: asked(ValueName::Status, statuses.map(codes).unwrap_or_default()),
        }
    }

    /// Whether all conditions hold.
    pub fn hold(&self, values: &Values) -> bool {
        let text = |need| values.text(need).unwrap_or_default();
        let is_one = |(need, allowed): &(Need, Vec<String>)| allowed.iter().any(|one| one == text(*need));
        let begins = |(need, allowed): &(Need, Vec<String>)| allowed.iter().any(|one| text(*need).starts_with(one));
        self.methods.as_ref().is_none_or(is_one)
            && self.paths.as_ref().is_none_or(begins)
            && self.statuses.as_ref().is_none_or(is_one)
    }
}
