//! The configuration as written in the manifest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// The fields by which browsers protect a site. Without a configuration: HSTS for a year for clients that use `https`,
/// `X-Content-Type-Options`, `X-Frame-Options: SAMEORIGIN` and `Referrer-Policy`, each unless the application sends its
/// own; `Server` and `X-Powered-By` are removed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// `Strict-Transport-Security` (RFC 6797), which is sent to clients that use `https` only, also if a trusted proxy has
    /// ended TLS; `false` for none.
    pub hsts: Hsts,
    /// `Content-Security-Policy`: a text, or a table of directives. `'nonce-{nonce}'` in it is a new nonce for each
    /// response.
    pub content_security_policy: Option<Csp>,
    /// `Content-Security-Policy-Report-Only`, written as `content-security-policy`.
    pub content_security_policy_report_only: Option<Csp>,
    /// The request field by which the upstream learns the nonce; `X-CSP-Nonce` by default.
    pub nonce_field: Option<String>,
    /// `false`: no `X-Content-Type-Options`; that of the application is removed.
    pub content_type_options: Option<bool>,
    /// The pages that may embed this site in a frame: `"none"`, `"same-origin"`, `"any"`, or a list of origins.
    /// `"any"` and a list remove `X-Frame-Options` of the application.
    pub frames: Option<Frames>,
    /// `Referrer-Policy`: a word, or several for older browsers, of which each browser takes the last that it knows.
    /// `"off"` for none: that of the application is removed.
    pub referrer_policy: Option<ReferrerPolicies>,
    /// `Permissions-Policy`: a text, or a table of features.
    pub permissions_policy: Option<Permissions>,
    /// The field `Cross-Origin-Opener-Policy`; none by default.
    pub cross_origin_opener_policy: Option<OpenerPolicy>,
    /// The field `Cross-Origin-Embedder-Policy`; none by default.
    pub cross_origin_embedder_policy: Option<EmbedderPolicy>,
    /// The field `Cross-Origin-Resource-Policy`; none by default.
    pub cross_origin_resource_policy: Option<ResourcePolicy>,
    /// The response fields that are removed; `["Server", "X-Powered-By"]` by default.
    pub remove: Option<Vec<String>>,
    /// `false`: a field that the application sends is kept. By default, what is written here replaces or removes it.
    #[serde(rename = "override")]
    pub overrides: Option<bool>,
}

/// Strict transport security.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Hsts {
    /// `false` for none, `true` for the default.
    Switch(bool),
    /// The rules for browsers.
    Rules(HstsRules),
}

impl Default for Hsts {
    /// Returns the default rules.
    fn default() -> Self {
        Hsts::Switch(true)
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HstsRules {
    /// The time for which browsers use TLS only; `"365d"` by default, `"0s"` ends it.
    #[schemars(extend("examples" = ["365d"]))]
    pub max_age: Option<String>,
    /// `true`: for all names below the host too.
    pub include_subdomains: bool,
    /// `true`: browsers may have the site in their built-in list. Needs `include-subdomains` and at least `"365d"`.
    pub preload: bool,
}

/// A content security policy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Csp {
    /// The policy as in the field; it may have several lines.
    Text(String),
    /// The directives with their values.
    Directives(BTreeMap<String, DirectiveValue>),
}

/// The value of a directive.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum DirectiveValue {
    /// `true` for a directive without a value.
    Switch(bool),
    /// The value as in the field.
    Text(String),
    /// The words of the value.
    List(Vec<String>),
}

/// The pages that may embed this site.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Frames {
    /// A rule by one word.
    Rule(FrameRule),
    /// The origins of the pages, besides this site itself.
    Origins(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FrameRule {
    /// No page may embed this site.
    None,
    /// Pages of this site.
    SameOrigin,
    /// All pages: no `X-Frame-Options` is sent.
    Any,
}

/// A permissions policy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Permissions {
    /// The policy as in the field.
    Text(String),
    /// The features with the pages that may use them: `"*"`, or a list of `"self"` and origins.
    Features(BTreeMap<String, Allowlist>),
}

/// The pages that may use a feature.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Allowlist {
    /// `*` for all, or `self`.
    One(String),
    /// A list; empty for none.
    List(Vec<String>),
}

/// One or several referrer policies.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ReferrerPolicies {
    /// A policy by one word.
    One(ReferrerPolicy),
    /// Several policies, separated by commas as in the field.
    Text(String),
    /// A list of several policies.
    List(Vec<String>),
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReferrerPolicy {
    /// No field is sent.
    Off,
    NoReferrer,
    NoReferrerWhenDowngrade,
    Origin,
    OriginWhenCrossOrigin,
    SameOrigin,
    StrictOrigin,
    StrictOriginWhenCrossOrigin,
    UnsafeUrl,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OpenerPolicy {
    UnsafeNone,
    SameOriginAllowPopups,
    SameOrigin,
    NoopenerAllowPopups,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EmbedderPolicy {
    UnsafeNone,
    RequireCorp,
    Credentialless,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ResourcePolicy {
    SameSite,
    SameOrigin,
    CrossOrigin,
}

impl ReferrerPolicies {
    /// Returns the value of the field; `None` for no field. The error is a word that is no policy.
    pub fn value(&self) -> Result<Option<String>, String> {
        let words: Vec<&str> = match self {
            ReferrerPolicies::One(policy) => return Ok(policy.word().map(String::from)),
            ReferrerPolicies::Text(text) => text.split(',').map(str::trim).collect(),
            ReferrerPolicies::List(words) => words.iter().map(|word| word.trim()).collect(),
        };
        if words.is_empty() {
            return Err(String::new());
        }
        // Browsers compare the words in any letter case.
        let known = |word: &str| {
            let mut known = ReferrerPolicy::ALL.iter().filter_map(|policy| policy.word());
            known.find(|known| known.eq_ignore_ascii_case(word)).ok_or_else(|| word.to_string())
        };
        words.into_iter().map(known).collect::<Result<Vec<_>, _>>().map(|words| Some(words.join(", ")))
    }
}

impl ReferrerPolicy {
    /// The policies that browsers know.
    pub const ALL: [ReferrerPolicy; 8] = [
        ReferrerPolicy::NoReferrer,
        ReferrerPolicy::NoReferrerWhenDowngrade,
        ReferrerPolicy::Origin,
        ReferrerPolicy::OriginWhenCrossOrigin,
        ReferrerPolicy::SameOrigin,
        ReferrerPolicy::StrictOrigin,
        ReferrerPolicy::StrictOriginWhenCrossOrigin,
        ReferrerPolicy::UnsafeUrl,
    ];

    /// Returns the value of the field; `None` for no field.
    pub fn word(self) -> Option<&'static str> {
        match self {
            ReferrerPolicy::Off => None,
            ReferrerPolicy::NoReferrer => Some("no-referrer"),
            ReferrerPolicy::NoReferrerWhenDowngrade => Some("no-referrer-when-downgrade"),
            ReferrerPolicy::Origin => Some("origin"),
            ReferrerPolicy::OriginWhenCrossOrigin => Some("origin-when-cross-origin"),
            ReferrerPolicy::SameOrigin => Some("same-origin"),
            ReferrerPolicy::StrictOrigin => Some("strict-origin"),
            ReferrerPolicy::StrictOriginWhenCrossOrigin => Some("strict-origin-when-cross-origin"),
            ReferrerPolicy::UnsafeUrl => Some("unsafe-url"),
        }
    }
}

impl OpenerPolicy {
    /// Returns the value of the field.
    pub fn word(self) -> &'static str {
        match self {
            OpenerPolicy::UnsafeNone => "unsafe-none",
            OpenerPolicy::SameOriginAllowPopups => "same-origin-allow-popups",
            OpenerPolicy::SameOrigin => "same-origin",
            OpenerPolicy::NoopenerAllowPopups => "noopener-allow-popups",
        }
    }
}

impl EmbedderPolicy {
    /// Returns the value of the field.
    pub fn word(self) -> &'static str {
        match self {
            EmbedderPolicy::UnsafeNone => "unsafe-none",
            EmbedderPolicy::RequireCorp => "require-corp",
            EmbedderPolicy::Credentialless => "credentialless",
        }
    }
}

impl ResourcePolicy {
    /// Returns the value of the field.
    pub fn word(self) -> &'static str {
        match self {
            ResourcePolicy::SameSite => "same-site",
            ResourcePolicy::SameOrigin => "same-origin",
            ResourcePolicy::CrossOrigin => "cross-origin",
        }
    }
}
