//! The decisions about requests and responses.

use plugway_sdk::{ConfigError, EditPlan, EditPlanId, Input, Part, Setup, ValueName, Values, Verdict, lines};

use crate::config::{Config, UpstreamFields};
use crate::origins::Origins;
use crate::preflight::{Asked, Preflight, check_names};

/// The handles of the declared values.
pub struct Inputs {
    method: Input,
    origin: Input,
    wanted_method: Input,
    wanted_headers: Input,
    wanted_network: Option<Input>,
    /// The note with the allowed origin, in responses.
    allowed: Input,
    /// The upstream's own field, if that is kept.
    own: Option<Input>,
}

/// The values of a request that decide about it.
pub struct Request<'a> {
    /// Whether the request is a preflight.
    pub is_preflight: bool,
    pub origin: Option<&'a str>,
    pub asked: Asked<'a>,
}

/// The configured decisions.
pub struct Policy {
    origins: Origins,
    /// Whether all responses have the same fields, because all origins may read them without credentials.
    is_constant: bool,
    preflight: Preflight,
    /// Leaves the allowed origin for the response.
    note: EditPlanId,
    allowed: EditPlanId,
    /// For other responses: removes the upstream's own fields, unless they are kept.
    others: EditPlanId,
}

/// The note that has the origin of a request, if the origin is allowed.
const NOTE: &str = "cors-origin";

const ALLOW_ORIGIN: &str = "access-control-allow-origin";

/// The fields of the upstream that are replaced.
const OWN_FIELDS: [&str; 7] = [
    ALLOW_ORIGIN,
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-private-network",
    "access-control-expose-headers",
    "access-control-max-age",
];

impl Inputs {
    /// Declares the values.
    pub fn declare(config: &Config, setup: &mut Setup) -> Self {
        let request = &mut setup.request;
        let keeps = config.upstream_fields == UpstreamFields::Keep;
        Inputs {
            method: request.value(ValueName::Method),
            origin: request.field("origin"),
            wanted_method: request.field("access-control-request-method"),
            wanted_headers: request.field("access-control-request-headers"),
            wanted_network: config.private_network.then(|| request.field("access-control-request-private-network")),
            allowed: setup.response.note(NOTE),
            own: keeps.then(|| setup.response.response_field(ALLOW_ORIGIN)),
        }
    }

    /// Returns the values of a request.
    pub fn request<'a>(&self, values: &'a Values) -> Request<'a> {
        let origin = values.text(self.origin);
        let is_preflight = origin.is_some()
            && values.bytes(self.wanted_method).is_some()
            && values.bytes(self.method) == Some(b"OPTIONS");
        let private_network = self.wanted_network.is_some_and(|wanted| values.text(wanted) == Some("true"));
        Request { is_preflight, origin, asked: Asked { headers: values.text(self.wanted_headers), private_network } }
    }

    /// Whether the origin of a response's request is allowed.
    pub fn is_allowed(&self, response: &Values) -> bool {
        response.bytes(self.allowed).is_some()
    }

    /// Whether a response has fields of the upstream that are kept.
    pub fn has_own(&self, response: &Values) -> bool {
        self.own.is_some_and(|own| response.bytes(own).is_some())
    }
}

impl Policy {
    /// Reads the configuration, reports errors in it, and declares the plans.
    pub fn new(config: Config, setup: &mut Setup) -> Self {
        let origins = origins(&config, setup);
        let preflight = Preflight::new(&config, setup);
        check_names(&config.expose, "/expose", config.credentials, setup);
        let is_constant = origins.is_any && !config.credentials;
        let plans = Plans { is_constant, config: &config };
        let note = EditPlan::default().set_note(NOTE, vec![Part::Value(ValueName::RequestField("origin".into()))]);
        let policy = Policy {
            origins,
            is_constant,
            preflight,
            note: setup.plan(note),
            allowed: setup.plan(plans.allowed()),
            others: setup.plan(plans.varying(plans.cleared())),
        };
        if is_constant && config.upstream_fields == UpstreamFields::Replace {
            setup.response_plan = Some(policy.allowed);
        }
        policy
    }

    /// Answers a preflight, and leaves the origin of another request for its response.
    pub fn request(&self, request: &Request<'_>) -> Verdict {
        let allowed = request.origin.filter(|origin| self.origins.allow(origin));
        match allowed {
            _ if request.is_preflight => {
                let shown = if self.is_constant { Some("*") } else { allowed };
                self.preflight.answer(shown, request.asked).into()
            }
            Some(_) if !self.is_constant => self.note.into(),
            _ => Verdict::proceed(),
        }
    }

    /// Chooses the fields of a response.
    pub fn response(&self, is_allowed: bool, has_own: bool) -> Verdict {
        // Where the upstream's own fields are kept, the other plan changes none of them.
        let is_shown = (is_allowed || self.is_constant) && !has_own;
        if is_shown { self.allowed.into() } else { self.others.into() }
    }
}

/// The plans for responses.
struct Plans<'a> {
    is_constant: bool,
    config: &'a Config,
}

impl Plans<'_> {
    fn allowed(&self) -> EditPlan {
        let text = |text: &str| vec![Part::Text(text.into())];
        let origin = match self.is_constant {
            true => text("*"),
            false => vec![Part::Value(ValueName::Note(NOTE.into()))],
        };
        let mut plan = self.cleared().set_field(ALLOW_ORIGIN, origin);
        if self.config.credentials {
            plan = plan.set_field("access-control-allow-credentials", text("true"));
        }
        if !self.config.expose.is_empty() {
            plan = plan.set_field("access-control-expose-headers", text(&self.config.expose.join(", ")));
        }
        self.varying(plan)
    }

    /// Removes the upstream's own fields.
    fn cleared(&self) -> EditPlan {
        match self.config.upstream_fields {
            UpstreamFields::Replace => {
                OWN_FIELDS.iter().fold(EditPlan::default(), |plan, name| plan.remove_field(name))
            }
            UpstreamFields::Keep => EditPlan::default(),
        }
    }

    /// Tells caches that a response depends on the origin, where it does.
    fn varying(&self, plan: EditPlan) -> EditPlan {
        if self.is_constant { plan } else { plan.append_field("vary", vec![Part::Text("Origin".into())]) }
    }
}

fn origins(config: &Config, setup: &mut Setup) -> Origins {
    let mut origins = Origins::default();
    for (place, entry) in config.origins.iter().enumerate() {
        let pointer = || format!("/origins/{place}");
        for line in lines::of(entry) {
            if line.text == "*" && config.credentials {
                let message = "`*` with `credentials`: browsers reject it; name the origins, such as \
                               `https://app.example.org`";
                setup.report(line.error(pointer(), message));
            }
            if let Err(message) = origins.add(line.text) {
                setup.report(line.error(pointer(), message));
            }
        }
    }
    if config.origins.iter().all(|entry| lines::of(entry).next().is_none()) {
        let message = "no origin is allowed; write `origins = [\"https://app.example.org\"]`, or `[\"*\"]` for all";
        setup.report(ConfigError::at("", message));
    }
    origins
}
