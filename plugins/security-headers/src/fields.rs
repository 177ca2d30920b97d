//! The fields of a configuration, and the plans that set them.

use plugway_sdk::token::is_token;
use plugway_sdk::{ConfigError, EditPlan, Part, Setup};

use crate::config::{Config, FrameRule, Frames, Hsts, ReferrerPolicies, ReferrerPolicy};
use crate::csp::Policy;
use crate::{hsts, permissions};

/// The scheme that a client uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// The fields that are set and removed.
pub struct Fields {
    hsts: Option<Field>,
    others: Vec<Field>,
    remove: Vec<String>,
    /// The request field that has the nonce; `None` if no policy has nonces.
    pub nonce_field: Option<String>,
}

/// A field, and the treatment of the application's field of that name.
struct Field {
    name: &'static str,
    value: Vec<Part>,
    rule: Rule,
}

/// The treatment of the application's field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The application's field is replaced.
    Replace,
    /// The application's field is kept.
    Keep,
    /// Both are sent: browsers enforce each policy.
    Add,
    /// The application's field is removed, and none is sent.
    Remove,
}

const HSTS: &str = "strict-transport-security";
const CSP: &str = "content-security-policy";
const CSP_REPORT_ONLY: &str = "content-security-policy-report-only";
const CONTENT_TYPE_OPTIONS: &str = "x-content-type-options";
const FRAME_OPTIONS: &str = "x-frame-options";
const NONCE_FIELD: &str = "X-CSP-Nonce";

impl Fields {
    /// Reads the configuration, and reports all errors in it.
    pub fn new(config: &Config, setup: &mut Setup) -> Self {
        // A default never replaces what the application says: only a value that a user has written does.
        let written = if config.overrides.unwrap_or(true) { Rule::Replace } else { Rule::Keep };
        let rule = |is_written| if is_written { written } else { Rule::Keep };
        let hsts = hsts::value(&config.hsts).unwrap_or_else(|error| {
            setup.report(error);
            None
        });
        let hsts_rule = rule(matches!(config.hsts, Hsts::Rules(_)));
        let mut others = Vec::new();
        let sniffing = config.content_type_options.unwrap_or(true).then_some("nosniff");
        others.extend(Field::optional(CONTENT_TYPE_OPTIONS, sniffing, rule(config.content_type_options.is_some())));
        let nonce_field = policies(config, written, &mut others, setup);
        let referrer = referrer_policy(config.referrer_policy.as_ref(), setup);
        others.extend(Field::optional("referrer-policy", referrer.as_deref(), rule(config.referrer_policy.is_some())));
        let permissions = config.permissions_policy.as_ref().map(|policy| permissions::value(policy, setup));
        let words = [
            ("permissions-policy", permissions.as_deref()),
            ("cross-origin-opener-policy", config.cross_origin_opener_policy.map(|policy| policy.word())),
            ("cross-origin-embedder-policy", config.cross_origin_embedder_policy.map(|policy| policy.word())),
            ("cross-origin-resource-policy", config.cross_origin_resource_policy.map(|policy| policy.word())),
        ];
        others.extend(words.into_iter().filter_map(|(name, value)| Some(Field::new(name, value?, written))));
        let remove = config.remove.clone().unwrap_or_else(|| vec!["Server".into(), "X-Powered-By".into()]);
        for (place, name) in remove.iter().enumerate() {
            check_name(name, &format!("/remove/{place}"), setup);
        }
        Fields { hsts: hsts.map(|value| Field::new(HSTS, &value, hsts_rule)), others, remove, nonce_field }
    }

    /// Whether responses over TLS have other fields.
    pub fn depend_on_scheme(&self) -> bool {
        self.hsts.is_some()
    }

    /// Returns the plan for responses by a scheme.
    pub fn plan(&self, scheme: Scheme) -> EditPlan {
        let plan = self.remove.iter().fold(EditPlan::default(), |plan, name| plan.remove_field(name));
        let plan = match (&self.hsts, scheme) {
            (Some(hsts), Scheme::Https) => hsts.apply(plan),
            // A site must not send the field without TLS (RFC 6797 §7.2). That of the application stays, since a proxy that
            // isn't trusted may have ended TLS. Browsers ignore the field without TLS (§8.1).
            (Some(_), Scheme::Http) | (None, _) => plan,
        };
        self.others.iter().fold(plan, |plan, field| field.apply(plan))
    }
}

impl Field {
    fn new(name: &'static str, value: &str, rule: Rule) -> Self {
        Field { name, value: vec![Part::Text(value.into())], rule }
    }

    /// Returns the field with a value. Without a value: the removal of the application's field; `None` if the rule keeps that
    /// field.
    fn optional(name: &'static str, value: Option<&str>, rule: Rule) -> Option<Self> {
        match (value, rule) {
            (Some(value), _) => Some(Field::new(name, value, rule)),
            (None, Rule::Replace) => Some(Field::new(name, "", Rule::Remove)),
            (None, _) => None,
        }
    }

    fn apply(&self, plan: EditPlan) -> EditPlan {
        let value = self.value.clone();
        match self.rule {
            Rule::Replace => plan.set_field(self.name, value),
            Rule::Keep => plan.default_field(self.name, value),
            Rule::Add => plan.append_field(self.name, value),
            Rule::Remove => plan.remove_field(self.name),
        }
    }
}

/// Returns the value of `Referrer-Policy`; `None` for no field. Reports a word that is no policy.
fn referrer_policy(policies: Option<&ReferrerPolicies>, setup: &mut Setup) -> Option<String> {
    let Some(policies) = policies else {
        return ReferrerPolicy::StrictOriginWhenCrossOrigin.word().map(String::from);
    };
    policies.value().unwrap_or_else(|unknown| {
        let known: Vec<&str> = ReferrerPolicy::ALL.iter().filter_map(|policy| policy.word()).collect();
        let message = format!("{unknown:?} is none of \"{}\"; \"off\" stands alone", known.join("\", \""));
        setup.report(ConfigError::at("/referrer-policy", message));
        None
    })
}

/// Adds the content security policies and the rule for frames. Returns the request field with the nonce, if there is one.
fn policies(config: &Config, written: Rule, fields: &mut Vec<Field>, setup: &mut Setup) -> Option<String> {
    let mut enforced =
        config.content_security_policy.as_ref().map(|csp| Policy::new(csp, "/content-security-policy", setup));
    let reported = config
        .content_security_policy_report_only
        .as_ref()
        .map(|csp| Policy::new(csp, "/content-security-policy-report-only", setup));
    frames(config, written, enforced.as_mut(), fields, setup);
    let nonce_field = config.nonce_field.clone().unwrap_or_else(|| NONCE_FIELD.into());
    for (name, policy) in [(CSP, &enforced), (CSP_REPORT_ONLY, &reported)] {
        let template = policy.as_ref().map(|policy| policy.template(&nonce_field));
        fields.extend(template.map(|value| Field { name, value, rule: written }));
    }
    let has_nonce = [enforced, reported].iter().flatten().any(Policy::has_nonce);
    check_name(&nonce_field, "/nonce-field", setup);
    if config.nonce_field.is_some() && !has_nonce {
        let message = "no policy has a nonce; write `'nonce-{nonce}'` in one, or remove this key";
        setup.report(ConfigError::at("/nonce-field", message));
    }
    has_nonce.then_some(nonce_field)
}

/// Adds the rule for pages that embed this site.
fn frames(config: &Config, written: Rule, csp: Option<&mut Policy>, fields: &mut Vec<Field>, setup: &mut Setup) {
    let (word, ancestors) = match &config.frames {
        None => return fields.push(Field::new(FRAME_OPTIONS, "SAMEORIGIN", Rule::Keep)),
        Some(Frames::Rule(FrameRule::Any)) => return fields.extend(Field::optional(FRAME_OPTIONS, None, written)),
        Some(Frames::Rule(FrameRule::None)) => ("DENY", "'none'"),
        Some(Frames::Rule(FrameRule::SameOrigin)) => ("SAMEORIGIN", "'self'"),
        Some(Frames::Origins(origins)) => return ancestors(origins, written, csp, fields, setup),
    };
    let other = csp.as_ref().and_then(|policy| policy.value("frame-ancestors"));
    if let Some(other) = other.filter(|other| !other.eq_ignore_ascii_case(ancestors)) {
        let message = format!(
            "`frame-ancestors {other}` stands in `content-security-policy`, and browsers ignore `X-Frame-Options` beside it; \
             write one of both, or `frame-ancestors {ancestors}`"
        );
        setup.report(ConfigError::at("/frames", message));
    }
    fields.push(Field::new(FRAME_OPTIONS, word, written));
}

/// Adds the origins of pages that embed this site. They need `frame-ancestors`, as `X-Frame-Options` has no origins.
fn ancestors(origins: &[String], written: Rule, csp: Option<&mut Policy>, fields: &mut Vec<Field>, setup: &mut Setup) {
    for (place, origin) in origins.iter().enumerate() {
        let is_source = origin.bytes().all(|byte| byte.is_ascii_graphic() && !b",;'\"".contains(&byte));
        let (_, authority) = origin.split_once("://").unwrap_or_default();
        let path = authority.find('/').map(|at| &authority[at..]);
        // The URL of a page's origin has the path `/`, which no other matches (CSP Level 3, "frame-ancestors").
        let hint = if path.is_some_and(|path| path != "/") { "an origin has no path; " } else { "" };
        if !is_source || authority.is_empty() || !hint.is_empty() {
            let message =
                format!("invalid origin: `{origin}`; {hint}expected one such as `https://portal.example.org`");
            setup.report(ConfigError::at(format!("/frames/{place}"), message));
        }
    }
    let directive = format!("frame-ancestors 'self' {}", origins.join(" ")).trim_end().to_string();
    match csp {
        Some(policy) if policy.has("frame-ancestors") => {
            let message = "`frame-ancestors` stands in `content-security-policy` already; write one of both";
            setup.report(ConfigError::at("/frames", message));
        }
        Some(policy) => policy.add(&directive),
        None => fields.push(Field::new(CSP, &directive, if written == Rule::Replace { Rule::Add } else { written })),
    }
    fields.extend(Field::optional(FRAME_OPTIONS, None, written));
}

fn check_name(name: &str, pointer: &str, setup: &mut Setup) {
    if !is_token(name) {
        let message = format!("invalid name of a field: `{name}`; expected one such as `X-Powered-By`");
        setup.report(ConfigError::at(pointer, message));
    }
}
