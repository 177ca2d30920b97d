//! The declarations of a plugin while it is configured.

use crate::bindings::lifecycle::exports::plugway::plugin::lifecycle;
use crate::bindings::types;

/// The name of a value of an exchange; see `types.value-name` in the WIT for each.
pub use crate::bindings::types::ValueName;

/// The declarations of a plugin: which values it needs and how it is called; passed to
/// [`Plugin::new`](crate::Plugin::new).
#[derive(Debug, Default)]
pub struct Setup {
    /// The values for [`on_request`](crate::RequestFilter::on_request).
    pub request: Inputs,
    /// The values for [`on_response`](crate::ResponseFilter::on_response).
    pub response: Inputs,
    /// The values for [`pick`](crate::Balancer::pick).
    pub balancer: Inputs,
    /// A value whose hash [`pick`](crate::Balancer::pick) receives as [`Values::key`](crate::Values::key).
    pub balancer_key: Option<ValueName>,
    /// The values for [`on_end`](crate::Observer::on_end).
    pub observer: Inputs,
    /// The values for the request hooks of a [`CachePolicy`](crate::CachePolicy).
    pub cache_request: Inputs,
    /// The values for the response hooks of a [`CachePolicy`](crate::CachePolicy).
    pub cache_response: Inputs,
    /// A plan that the host uses for most requests instead of calling [`on_lookup`](crate::CachePolicy::on_lookup).
    pub lookup_plan: Option<LookupPlan>,
    /// The entry of the cache in `Cache-Status`.
    pub cache_status: CacheStatus,
    /// A plan that the host applies to every request, so that `on_request` is never called.
    pub request_plan: Option<EditPlanId>,
    /// A plan that the host applies to every response, so that `on_response` is never called.
    pub response_plan: Option<EditPlanId>,
    /// The values for [`request_body`](crate::RequestBody::request_body), and the way in which request bodies are passed.
    pub request_body: BodySetup,
    /// The values for [`response_body`](crate::ResponseBody::response_body), and the way in which response bodies are
    /// passed.
    pub response_body: BodySetup,
    /// The interval at which [`on_timer`](crate::Timer::on_timer) is called, to within 50 ms.
    pub timer_interval: Option<std::time::Duration>,
    plans: Vec<EditPlan>,
    errors: Vec<ConfigError>,
}

/// A lookup that the host does without calling the plugin, under a key that is a template. The plan applies to GET and
/// HEAD requests without an excepted value. A hit then costs no call at all.
#[derive(Clone, Debug, PartialEq)]
pub struct LookupPlan {
    /// The template of the cache key.
    pub key: Vec<Part>,
    /// The values that make a request an exception, for which [`on_lookup`](crate::CachePolicy::on_lookup) is called.
    pub unless: Vec<ValueName>,
}

/// The entry of a cache in `Cache-Status` (RFC 9211).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheStatus {
    /// The name of the cache, a token; `None` for no entry.
    pub name: Option<String>,
    /// Whether the entry contains the cache key.
    pub key: bool,
}

impl Default for CacheStatus {
    /// Returns the name `plugway`, without the key.
    fn default() -> Self {
        CacheStatus { name: Some("plugway".into()), key: false }
    }
}

/// A list of declared values.
#[derive(Debug, Default)]
pub struct Inputs(Vec<ValueName>);

/// The declarations of a body hook: its values, by the methods of [`Inputs`], and the way in which bodies are passed.
///
/// ```
/// # use plugway_sdk::*;
/// # fn declare(setup: &mut Setup) -> Input {
/// setup.response_body.mode = BodyMode::Buffered(1 << 20, OverLimit::PassThrough);
/// setup.response_body.content.coded = CodedContent::Decode;
/// setup.response_body.response_field("content-type")
/// # }
/// ```
#[derive(Debug, Default)]
pub struct BodySetup {
    /// The way in which bodies are passed; [`BodyMode::Streamed`] by default.
    pub mode: BodyMode,
    /// The departures from the rules for content; none by default.
    pub content: ContentRules,
    values: Inputs,
}

/// The departures of a body hook from the rules for content: see `types.content-rules` in the WIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentRules {
    /// Whether the hook receives responses with `Cache-Control: no-transform` as others. For plugins that serve the sender of
    /// the response, or that change no content.
    pub ignore_no_transform: bool,
    /// Whether partial content passes unchanged, without a call of the hook, so that requests keep `Range`.
    pub skip_parts: bool,
    /// The handling of content with a coding.
    pub coded: CodedContent,
}

/// The handling of content with a coding (`Content-Encoding`) before a body hook receives the content: see
/// `types.coded-content` in the WIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodedContent {
    /// Coded content fails the call, and requests ask for responses without a coding.
    #[default]
    Reject,
    /// The host decodes gzip, deflate, br and zstd, so that the hook receives plain content. Other codings fail the call.
    Decode,
    /// The hook receives coded content as it is, so that requests keep `Accept-Encoding`.
    AsIs,
}

/// The handle of a declared value, by which a call finds it in [`Values`](crate::Values).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input(pub(crate) usize);

/// Edits that are known when the plugin is configured, with templates for values. [`Setup::plan`] passes them to the
/// host.
#[derive(Clone, Debug, Default)]
pub struct EditPlan(Vec<types::PlannedEdit>);

/// The handle of a plan, for [`Verdict::EditPlan`](crate::Verdict::Plan) and the plans of [`Setup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EditPlanId(pub(crate) u32);

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A fixed text.
    Text(Vec<u8>),
    /// A value, which is empty if it is absent.
    Value(ValueName),
}

/// The way in which bodies are passed to a [`BodyFilter`](crate::BodyFilter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyMode {
    /// The body is passed chunk by chunk.
    #[default]
    Streamed,
    /// The body passes unchanged, unless a head hook asks for it by [`Verdict::body`](crate::Verdict::body).
    Skipped,
    /// The body is passed as a whole, up to this number of bytes.
    Buffered(u64, OverLimit),
}

/// The handling of a body beyond the limit of [`BodyMode::Buffered`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverLimit {
    /// The body is rejected.
    Reject,
    /// The body passes unchanged.
    PassThrough,
}

/// An error in a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigError {
    /// A JSON pointer to the wrong value, such as `/request/set/Host`; empty for the whole configuration.
    pub path: String,
    /// The message, which says what is wrong and what is expected instead.
    pub message: String,
}

impl Setup {
    /// Passes a plan to the host, which checks it once. A hook applies it by returning
    /// [`Verdict::EditPlan`](crate::Verdict::Plan), at a third of the cost of edits that the hook makes itself.
    ///
    /// ```
    /// # use plugway_sdk::*;
    /// struct Beta { cookie: Input, beta: EditPlanId }
    ///
    /// impl Plugin for Beta {
    ///     type Config = ();
    ///     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
    ///         let plan = EditPlan::default().set_field("x-variant", vec![Part::Text(b"beta".to_vec())]);
    ///         Ok(Beta { cookie: setup.request.cookie("beta"), beta: setup.plan(plan) })
    ///     }
    /// }
    ///
    /// impl RequestFilter for Beta {
    ///     fn on_request(&mut self, request: &Values) -> Verdict {
    ///         if request.bytes(self.cookie).is_some() { self.beta.into() } else { Verdict::proceed() }
    ///     }
    /// }
    /// ```
    pub fn plan(&mut self, plan: EditPlan) -> EditPlanId {
        self.plans.push(plan);
        EditPlanId(self.plans.len() as u32 - 1)
    }

    /// Reports an error in the configuration without ending [`Plugin::new`](crate::Plugin::new), so that a user sees all
    /// errors at once. A reported error prevents the manifest from being served, even if `new` returns a plugin.
    ///
    /// ```
    /// # use plugway_sdk::*;
    /// struct Tags { names: Vec<ValueName> }
    ///
    /// impl Plugin for Tags {
    ///     type Config = std::collections::BTreeMap<String, String>;
    ///     fn new(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError> {
    ///         let mut names = Vec::new();
    ///         for (key, name) in &config {
    ///             match name.parse() {
    ///                 Ok(name) => names.push(name),
    ///                 Err(message) => setup.report(ConfigError::at(format!("/{key}"), message)),
    ///             }
    ///         }
    ///         Ok(Tags { names })
    ///     }
    /// }
    /// ```
    pub fn report(&mut self, error: ConfigError) {
        self.errors.push(error);
    }

    /// Returns what `new` returned, or else all errors: those that were reported, then the one that ended `new`.
    pub(crate) fn outcome<P>(&mut self, created: Result<P, ConfigError>) -> Result<P, Vec<ConfigError>> {
        let mut errors = std::mem::take(&mut self.errors);
        match created {
            Ok(plugin) if errors.is_empty() => Ok(plugin),
            Ok(_) => Err(errors),
            Err(error) => {
                errors.push(error);
                Err(errors)
            }
        }
    }

    pub(crate) fn planned(&self, plan: u32) -> &[types::PlannedEdit] {
        self.plans.get(plan as usize).map_or(&[], |plan| &plan.0)
    }

    pub(crate) fn plans(&self) -> Vec<&[types::PlannedEdit]> {
        self.plans.iter().map(|plan| plan.0.as_slice()).collect()
    }

    #[doc(hidden)]
    pub fn into_settings(self) -> lifecycle::Settings {
        lifecycle::Settings {
            request_values: self.request.0,
            response_values: self.response.0,
            request_body_values: self.request_body.values.0,
            response_body_values: self.response_body.values.0,
            balancer_values: self.balancer.0,
            balancer_key: self.balancer_key,
            observer_values: self.observer.0,
            cache_request_values: self.cache_request.0,
            cache_response_values: self.cache_response.0,
            lookup_plan: self.lookup_plan.map(LookupPlan::into_wit),
            cache_status: self.cache_status.into_wit(),
            edit_plans: self.plans.into_iter().map(|plan| plan.0).collect(),
            request_plan: self.request_plan.map(|plan| plan.0),
            response_plan: self.response_plan.map(|plan| plan.0),
            request_body: Some(self.request_body.mode.into_wit()),
            response_body: Some(self.response_body.mode.into_wit()),
            request_content: Some(self.request_body.content.into_wit()),
            response_content: Some(self.response_body.content.into_wit()),
            timer_interval_ms: self.timer_interval.map(|interval| interval.as_millis() as u64),
        }
    }
}

impl std::ops::Deref for BodySetup {
    type Target = Inputs;

    /// Returns the values of the hook.
    fn deref(&self) -> &Inputs {
        &self.values
    }
}

impl std::ops::DerefMut for BodySetup {
    fn deref_mut(&mut self) -> &mut Inputs {
        &mut self.values
    }
}

impl ContentRules {
    fn into_wit(self) -> types::ContentRules {
        let ContentRules { ignore_no_transform, skip_parts, coded } = self;
        let coded = match coded {
            CodedContent::Reject => types::CodedContent::Reject,
            CodedContent::Decode => types::CodedContent::Decode,
            CodedContent::AsIs => types::CodedContent::AsIs,
        };
        types::ContentRules { ignore_no_transform, skip_parts, coded }
    }
}

impl LookupPlan {
    fn into_wit(self) -> lifecycle::LookupPlan {
        lifecycle::LookupPlan { key: wit_parts(self.key), unless: self.unless }
    }
}

impl CacheStatus {
    fn into_wit(self) -> Option<lifecycle::CacheStatus> {
        let key = self.key;
        self.name.map(|name| lifecycle::CacheStatus { name, key })
    }
}

impl Inputs {
    /// Declares a value. A value that is declared twice has one handle.
    pub fn value(&mut self, name: ValueName) -> Input {
        let place = self.0.iter().position(|known| *known == name).unwrap_or_else(|| {
            self.0.push(name);
            self.0.len() - 1
        });
        Input(place)
    }

    /// Declares the field `name` of the request.
    pub fn field(&mut self, name: &str) -> Input {
        self.value(ValueName::RequestField(name.into()))
    }

    /// Declares the field `name` of the response.
    pub fn response_field(&mut self, name: &str) -> Input {
        self.value(ValueName::ResponseField(name.into()))
    }

    /// Declares a cookie of the request.
    pub fn cookie(&mut self, name: &str) -> Input {
        self.value(ValueName::Cookie(name.into()))
    }

    /// Declares a note.
    pub fn note(&mut self, name: &str) -> Input {
        self.value(ValueName::Note(name.into()))
    }

    /// Returns the declared values, in order.
    pub fn names(&self) -> &[ValueName] {
        &self.0
    }
}

/// Parses a value name as in templates, between braces: `client.ip`, `request.header.NAME`, `cookie.NAME`, …; the error
/// lists all names.
impl std::str::FromStr for ValueName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let of = |prefix| name.strip_prefix(prefix).filter(|rest| !rest.is_empty()).map(String::from);
        let named = of("request.header.").map(ValueName::RequestField);
        let named = named.or_else(|| of("response.header.").map(ValueName::ResponseField));
        let named = named.or_else(|| of("cookie.").map(ValueName::Cookie));
        let named = named.or_else(|| of("query.").map(ValueName::QueryParameter));
        if let Some(named) = named.or_else(|| of("note.").map(ValueName::Note)) {
            return match sign_of_no_name(&named) {
                Some(sign) => Err(format!("`{sign}` in a name stands for itself: `{name}`; write the whole name")),
                None => Ok(named),
            };
        }
        Ok(match name {
            "method" => ValueName::Method,
            "scheme" => ValueName::Scheme,
            "host" => ValueName::Host,
            "authority" => ValueName::Authority,
            "path" => ValueName::Path,
            "query" => ValueName::Query,
            "uri" => ValueName::Uri,
            "protocol" => ValueName::Protocol,
            "client.ip" => ValueName::ClientAddress,
            "client.port" => ValueName::ClientPort,
            "listener.address" => ValueName::ListenerAddress,
            "route" => ValueName::Route,
            "upstream" => ValueName::Upstream,
            "endpoint" => ValueName::Endpoint,
            "request-id" => ValueName::RequestId,
            "forwarded-for" => ValueName::ForwardedFor,
            "status" => ValueName::Status,
            "tls.version" => ValueName::TlsVersion,
            "tls.server-name" => ValueName::TlsServerName,
            "tls.cipher" => ValueName::TlsCipher,
            "tls.client.subject" => ValueName::ClientCertificateSubject,
            "tls.client.issuer" => ValueName::ClientCertificateIssuer,
            "tls.client.serial" => ValueName::ClientCertificateSerial,
            "tls.client.names" => ValueName::ClientCertificateNames,
            "tls.client.fingerprint" => ValueName::ClientCertificateFingerprint,
            "content-length" => ValueName::ContentLength,
            braced if is_braced(braced) => {
                return Err(format!(
                    "a value without braces is expected here; write `{}`",
                    &braced[1..braced.len() - 1]
                ));
            }
            unknown => return Err(format!("there is no value `{{{unknown}}}`; known: {NAMES}")),
        })
    }
}

/// Returns a sign that no message has in such a name; `None` for a usual name. A `*` is allowed by RFC 9110 and RFC 6265,
/// and is meant as a pattern.
fn sign_of_no_name(name: &ValueName) -> Option<char> {
    let (name, signs): (_, &[char]) = match name {
        ValueName::RequestField(name) | ValueName::ResponseField(name) => (name, &['*']),
        ValueName::Cookie(name) => (name, &['*', '=', ';']),
        ValueName::QueryParameter(name) => (name, &['*', '=', '&']),
        _ => return None,
    };
    name.chars().find(|letter| signs.contains(letter))
}

/// Whether a text is the name of a value in braces, as templates have it.
fn is_braced(name: &str) -> bool {
    let inner = name.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
    inner.is_some_and(|inner| inner.parse::<ValueName>().is_ok())
}

const NAMES: &str = "method, scheme, host, authority, path, query, uri, protocol, client.ip, client.port, listener.address, \
                     route, upstream, endpoint, request-id, forwarded-for, status, tls.version, tls.server-name, \
                     tls.cipher, tls.client.subject, tls.client.issuer, tls.client.serial, tls.client.names, \
                     tls.client.fingerprint, content-length, \
                     request.header.NAME, response.header.NAME, cookie.NAME, query.NAME, note.NAME";

impl EditPlan {
    /// Replaces all lines of a field by one line.
    pub fn set_field(self, name: &str, template: Vec<Part>) -> Self {
        self.with(types::PlannedEdit::SetField((name.into(), wit_parts(template))))
    }

    /// Adds a line to a field.
    pub fn append_field(self, name: &str, template: Vec<Part>) -> Self {
        self.with(types::PlannedEdit::AppendField((name.into(), wit_parts(template))))
    }

    /// Adds a line if the field is absent.
    pub fn default_field(self, name: &str, template: Vec<Part>) -> Self {
        self.with(types::PlannedEdit::DefaultField((name.into(), wit_parts(template))))
    }

    /// Removes all lines of a field.
    pub fn remove_field(self, name: &str) -> Self {
        self.with(types::PlannedEdit::RemoveField(name.into()))
    }

    /// Renames all lines of `from` to `to`, and removes any older lines of `to`.
    pub fn rename_field(self, from: &str, to: &str) -> Self {
        self.with(types::PlannedEdit::RenameField((from.into(), to.into())))
    }

    /// Sets a note.
    pub fn set_note(self, name: &str, template: Vec<Part>) -> Self {
        self.with(types::PlannedEdit::SetNote((name.into(), wit_parts(template))))
    }

    /// Limits the content of a request to this number of bytes, whether its client announces the length or not. The
    /// lowest limit applies: of the route and of all plugins.
    pub fn max_body(self, bytes: u64) -> Self {
        self.with(types::PlannedEdit::MaxBody(bytes))
    }

    /// Decides how this plugin's own body hook receives the content, in place of the mode that was declared.
    pub fn body(self, mode: BodyMode) -> Self {
        self.with(types::PlannedEdit::Body(mode.into_wit()))
    }

    /// Returns whether the plan has no edits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn with(mut self, edit: types::PlannedEdit) -> Self {
        self.0.push(edit);
        self
    }
}

impl BodyMode {
    pub(crate) fn from_wit(mode: types::BodyMode) -> Self {
        match mode {
            types::BodyMode::Skipped => BodyMode::Skipped,
            types::BodyMode::Streamed => BodyMode::Streamed,
            types::BodyMode::Buffered(types::BufferLimit { bytes, over_limit }) => {
                let over_limit = match over_limit {
                    types::OverLimit::Reject => OverLimit::Reject,
                    types::OverLimit::PassThrough => OverLimit::PassThrough,
                };
                BodyMode::Buffered(bytes, over_limit)
            }
        }
    }

    pub(crate) fn into_wit(self) -> types::BodyMode {
        match self {
            BodyMode::Skipped => types::BodyMode::Skipped,
            BodyMode::Streamed => types::BodyMode::Streamed,
            BodyMode::Buffered(bytes, over_limit) => types::BodyMode::Buffered(types::BufferLimit {
                bytes,
                over_limit: match over_limit {
                    OverLimit::Reject => types::OverLimit::Reject,
                    OverLimit::PassThrough => types::OverLimit::PassThrough,
                },
            }),
        }
    }
}

impl ConfigError {
    /// Returns an error about the value at a JSON pointer.
    pub fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        ConfigError { path: path.into(), message: message.into() }
    }
}

fn wit_parts(template: Vec<Part>) -> Vec<types::TemplatePart> {
    let part = |part| match part {
        Part::Text(text) => types::TemplatePart::Text(text),
        Part::Value(name) => types::TemplatePart::Value(name),
    };
    template.into_iter().map(part).collect()
}
