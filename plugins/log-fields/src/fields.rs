//! The values to log, apart for requests and responses, and the notes that they become.

use std::sync::Arc;

use plugway_sdk::{ConfigError, EditPlan, EditPlanId, Input, Inputs, Part, Setup, ValueName, Values, Verdict, pointer};

use crate::config::{Config, Entry};
use crate::redaction::{HashKey, Redaction};

/// The values to log.
pub struct Fields {
    /// Values that are known with the request.
    pub request: SideFields,
    /// Values that are known with the response only.
    pub response: SideFields,
}

/// The values of one side.
pub struct SideFields {
    fields: Vec<Field>,
    key: Arc<HashKey>,
}

/// A note and the value that it gets.
struct Field {
    note: String,
    value: ValueName,
    redaction: Redaction,
}

/// The declared values of one side.
pub struct Side {
    /// The plan for the values that are logged as they are.
    whole: EditPlanId,
    redacted: Vec<(String, Input, Redaction)>,
    key: Arc<HashKey>,
}

/// The fields that hold credentials, or whatever else a user may want to keep out of a log.
const SECRET_FIELDS: [&str; 6] =
    ["authorization", "cookie", "proxy-authorization", "set-cookie", "authentication-info", "x-api-key"];

impl Fields {
    /// Reads the configuration, and reports all errors in it.
    pub fn new(config: &Config, setup: &mut Setup) -> Self {
        let key = Arc::new(HashKey::new(config.hash_key.as_deref()));
        let (mut request, mut response) = (Vec::new(), Vec::new());
        for (note, entry) in &config.log {
            let pointer = pointer::member("/log", note);
            match field(note, entry, &pointer) {
                Ok(field) if is_of_response(&field.value) => response.push(field),
                Ok(field) => request.push(field),
                Err(error) => setup.report(error),
            }
        }
        if config.log.is_empty() {
            let message = "no value is logged; write `log = { tenant = \"request.header.x-tenant\" }`";
            setup.report(ConfigError::at("", message));
        }
        if config.hash_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
            setup.report(ConfigError::at("/hash-key", "the secret is empty; write at least 16 random characters"));
        }
        Fields {
            request: SideFields { fields: request, key: key.clone() },
            response: SideFields { fields: response, key },
        }
    }
}

impl Side {
    /// Declares the values of one side. Returns the plan that replaces the hook; `None` if the hook has to be called.
    pub fn declare(
        side: SideFields,
        inputs: impl Fn(&mut Setup) -> &mut Inputs,
        setup: &mut Setup,
    ) -> (Self, Option<EditPlanId>) {
        let SideFields { fields, key } = side;
        let (whole, redacted): (Vec<Field>, Vec<Field>) =
            fields.into_iter().partition(|field| field.redaction == Redaction::None);
        let note = |plan: EditPlan, Field { note, value, .. }| plan.set_note(&note, vec![Part::Value(value)]);
        let whole = setup.plan(whole.into_iter().fold(EditPlan::default(), note));
        let declared = |field: Field| (field.note, inputs(setup).value(field.value), field.redaction);
        let redacted: Vec<_> = redacted.into_iter().map(declared).collect();
        let plan = redacted.is_empty().then_some(whole);
        (Side { whole, redacted, key }, plan)
    }

    /// Returns the notes of a message.
    pub fn notes(&self, values: &Values) -> Verdict {
        let present = self.redacted.iter().filter_map(|(note, input, redaction)| {
            Some((note, redaction.apply(values.bytes(*input).filter(|value| !value.is_empty())?, &self.key)))
        });
        present.fold(Verdict::proceed().plan(self.whole), |verdict, (note, value)| verdict.set_note(note, value))
    }
}

fn field(note: &str, entry: &Entry, pointer: &str) -> Result<Field, ConfigError> {
    let (name, redact, at) = match entry {
        Entry::Value(name) => (name, None, pointer.to_string()),
        Entry::Table(table) => (&table.value, table.redact.as_deref(), format!("{pointer}/value")),
    };
    let value: ValueName = name.parse().map_err(|message: String| ConfigError::at(&at, message))?;
    let redaction = redact.map(str::parse).transpose();
    let redaction = redaction.map_err(|message: String| ConfigError::at(format!("{pointer}/redact"), message))?;
    if redaction.is_none() && is_secret(&value) {
        let message = format!(
            "`{name}` holds credentials; write `{note} = {{ value = \"{name}\", redact = \"hash\" }}`, or \
             `redact = \"none\"` to log it whole"
        );
        return Err(ConfigError::at(at, message));
    }
    if let ValueName::Note(_) = value
        && redaction.is_none()
    {
        let message = format!("the access log shows the note of `{name}` already; remove this line");
        return Err(ConfigError::at(at, message));
    }
    Ok(Field { note: note.into(), value, redaction: redaction.unwrap_or(Redaction::None) })
}

/// Whether a value is known with the response only. Notes may be set until then.
fn is_of_response(value: &ValueName) -> bool {
    matches!(value, ValueName::ResponseField(_) | ValueName::Status | ValueName::Endpoint | ValueName::Note(_))
}

fn is_secret(value: &ValueName) -> bool {
    match value {
        ValueName::RequestField(name) | ValueName::ResponseField(name) => {
            SECRET_FIELDS.contains(&name.to_ascii_lowercase().as_str())
        }
        _ => false,
    }
}
