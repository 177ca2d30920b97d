//! The edits of a request and its response.

use std::time::UNIX_EPOCH;

use plugway_sdk::token::is_token;
use plugway_sdk::{ConfigError, EditPlan, EditPlanId, Input, Part, Setup, ValueName, Values, Verdict, clock};

use crate::config::{Config, Format, Traceparent};
use crate::format;

/// The rules of a configuration.
pub struct Policy {
    format: Format,
    note: String,
    /// The edits that set the field from the note.
    plan: EditPlanId,
    random: Input,
    trusted: Option<Trusted>,
    traceparent: Traceparent,
    is_sampled: bool,
}

/// The values of a client that are kept if they are valid.
struct Trusted {
    identifier: Input,
    traceparent: Input,
    max_length: usize,
}

impl Policy {
    /// Checks the configuration, and declares the values and plans. If the host's own identifier is the one to be set, the
    /// host makes all edits, and no request needs a call.
    pub fn new(config: &Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let field = config.field.as_deref().unwrap_or("x-request-id");
        let note = config.note.clone().unwrap_or_else(|| "request-id".into());
        let max_length = config.max_length.unwrap_or(128);
        if !(1..=1024).contains(&max_length) {
            let message = format!("invalid length: {max_length}; expected 1 to 1024");
            return Err(ConfigError::at("/max-length", message));
        }
        if note.is_empty() {
            return Err(ConfigError::at("/note", "empty name of a note; expected one such as `request-id`"));
        }
        if !is_token(field) {
            return Err(ConfigError::at(
                "/field",
                format!("invalid name: `{field}`; expected one such as `X-Request-ID`"),
            ));
        }
        if field.eq_ignore_ascii_case("host") {
            let message = "`Host` names the site that is requested; expected a field of its own such as `X-Request-ID`";
            return Err(ConfigError::at("/field", message));
        }
        let noted = || vec![Part::Value(ValueName::Note(note.clone()))];
        let has_no_choice = config.format == Format::Hex && !config.trust && config.traceparent == Traceparent::Pass;
        if has_no_choice {
            let own = EditPlan::default().set_note(&note, vec![Part::Value(ValueName::RequestId)]);
            setup.request_plan = Some(setup.plan(own.set_field(field, noted())));
        }
        let response = EditPlan::default();
        let response = if config.response == Some(false) { response } else { response.set_field(field, noted()) };
        setup.response_plan = Some(setup.plan(response));
        let plan = setup.plan(EditPlan::default().set_field(field, noted()));
        let needs = &mut setup.request;
        let trusted = |needs: &mut plugway_sdk::Inputs| Trusted {
            identifier: needs.field(field),
            traceparent: needs.field("traceparent"),
            max_length,
        };
        Ok(Policy {
            format: config.format,
            plan,
            random: needs.value(ValueName::RequestId),
            trusted: config.trust.then(|| trusted(needs)),
            traceparent: config.traceparent,
            is_sampled: config.sampled,
            note,
        })
    }

    /// Returns the edits of a request.
    pub fn decide(&self, request: &Values) -> Verdict {
        let random = request.text(self.random).unwrap_or_default();
        let received = self.trusted.as_ref().and_then(|trusted| {
            request.text(trusted.identifier).filter(|text| format::is_valid(text, trusted.max_length))
        });
        let verdict = match received {
            Some(received) => Verdict::proceed().set_note(&self.note, received),
            None => Verdict::proceed().set_note(&self.note, format::identifier(self.format, random, self.now_ms())),
        };
        let verdict = verdict.plan(self.plan);
        if self.traceparent == Traceparent::Pass || self.has_traceparent(request) {
            return verdict;
        }
        // A `tracestate` belongs to the `traceparent` that it came with.
        verdict.set_field("traceparent", format::traceparent(random, self.is_sampled)).remove_field("tracestate")
    }

    fn has_traceparent(&self, request: &Values) -> bool {
        let received = self.trusted.as_ref().and_then(|trusted| request.text(trusted.traceparent));
        received.is_some_and(format::is_traceparent)
    }

    /// Returns the Unix time in milliseconds; 0 if the form has no time.
    fn now_ms(&self) -> u64 {
        if self.format == Format::Hex {
            return 0;
        }
        let now = clock::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_millis() as u64 & ((1 << 48) - 1))
    }
}
