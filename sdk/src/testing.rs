//! A harness that runs a plugin natively on test messages: no wasm, no host, plain `cargo test`.
//!
//! The harness resolves declared values, and checks and applies edits and plans as the host does, within the same
//! [`bounds`](crate::bounds). A test can therefore check what the upstream or the client would receive. The harness knows no
//! manifest, so it accepts an upstream of any name; and it doesn't know which hooks the plugin exports. See the example of
//! the crate.

mod bodies;
mod checks;
pub mod clock;
pub(crate) mod current;
mod edits;
pub mod http;
pub mod passwords;
mod paths;
mod rules;
#[cfg(not(target_family = "wasm"))]
pub mod shared;

pub use bodies::{every_split, transform};

use crate::bindings::types::{PlannedEdit, TemplatePart};
use crate::cache::key::origin;
use crate::query::Parameters;
use crate::{
    Balancer, BodyMode, CacheKey, CachePolicy, Choice, ConfigError, Edit, Endpoint, Endpoints, FetchTimes, Inputs,
    Lookup, Part, Plugin, RequestFilter, Response, ResponseEdits, ResponseFilter, Reuse, Setup, StoreDecision,
    StoredResponse, ValueName, Values, Verdict, cookie,
};

/// A configured plugin with its declarations.
#[derive(Debug)]
pub struct Harness<P> {
    /// The plugin itself, for hooks that the harness doesn't run, such as those of a body.
    pub plugin: P,
    /// The declarations of the plugin.
    pub setup: Setup,
    decided: Decided,
}

/// The decisions of head hooks about bodies.
#[derive(Debug, Default)]
struct Decided {
    /// The decision of the last request hook.
    request: Option<BodyMode>,
    /// The decision of the last response hook.
    response: Option<BodyMode>,
    /// The decision of the last hook of both.
    last: Option<BodyMode>,
}

/// A request, made by a test or edited by a filter.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    scheme: String,
    path: String,
    query: Option<String>,
    client: String,
    /// The field lines. The authority is the field `host`.
    fields: Vec<(String, Vec<u8>)>,
    notes: Vec<(String, Vec<u8>)>,
    upstream: Option<String>,
    /// The value `content-length`.
    content: Option<String>,
    max_body: Option<u64>,
}

/// The result of running a filter on a message.
#[derive(Debug)]
pub enum Outcome<M> {
    /// The filter passed the message on, with its edits applied.
    Passed(M),
    /// The filter responded.
    Answered(Response),
    /// The filter failed with this text.
    Failed(String),
}

impl<P: Plugin> Harness<P> {
    /// Configures the plugin from JSON, as the host does from the manifest. Of several errors the first is returned; see
    /// [`Harness::errors`].
    pub fn new(config: serde_json::Value) -> Result<Self, ConfigError> {
        Harness::configured(config).map_err(|mut errors| errors.swap_remove(0))
    }

    /// Returns all errors in a configuration, in the order in which the plugin reported them.
    pub fn errors(config: serde_json::Value) -> Vec<ConfigError> {
        Harness::<P>::configured(config).err().unwrap_or_default()
    }

    /// Configures the plugin; there is at least one error in the list of errors.
    fn configured(config: serde_json::Value) -> Result<Self, Vec<ConfigError>> {
        let config = crate::glue::parse(&config.to_string()).map_err(|error| vec![error])?;
        let mut setup = Setup::default();
        let created = P::new(config, &mut setup);
        let plugin = setup.outcome(created)?;
        let declared = |refused| vec![ConfigError::at("", format!("the plugin declared {refused}"))];
        checks::setup(&setup).map_err(declared)?;
        Ok(Harness { plugin, setup, decided: Decided::default() })
    }

    /// Runs the request hook, or the plan that replaces it.
    pub fn request(&mut self, request: Request) -> Outcome<Request>
    where
        P: RequestFilter,
    {
        let verdict = match self.setup.request_plan {
            Some(plan) => Verdict::Plan(plan),
            None => self.called_request(&request),
        };
        let made = match edits(verdict) {
            Ok(edits) => self.head_request_edits(edits, request),
            Err(outcome) => return outcome,
        };
        made.map_or_else(Outcome::Failed, |(request, _)| Outcome::Passed(request))
    }

    /// Runs the response hook, or the plan that replaces it.
    pub fn response(&mut self, request: &Request, response: Response) -> Outcome<Response>
    where
        P: ResponseFilter,
    {
        let verdict = match self.setup.response_plan {
            Some(plan) => Verdict::Plan(plan),
            None => self.called_response(request, &response),
        };
        let made = match edits(verdict) {
            Ok(edits) => self.head_response_edits(edits, request, response),
            Err(outcome) => return outcome,
        };
        made.map_or_else(Outcome::Failed, |(response, _)| Outcome::Passed(response))
    }
}

impl<P> Harness<P> {
    /// Returns the decision of the last head hook about its body, made by [`Verdict::body`] or a plan; `None` if it made none.
    pub fn decided_body(&self) -> Option<BodyMode> {
        self.decided.last
    }
}

/// Methods that call a cache policy on test messages, at times that the test sets:
///
/// ```
/// # use plugway_sdk::cache::{Options, Standard};
/// # use plugway_sdk::*;
/// # struct Cache(Standard);
/// # impl Plugin for Cache {
/// #     type Config = ();
/// #     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
/// #         Ok(Cache(Standard::new(setup, Options::default())))
/// #     }
/// # }
/// # impl CachePolicy for Cache {
/// #     fn on_lookup(&mut self, request: &Values) -> Lookup { self.0.lookup(request) }
/// #     fn on_stored(&mut self, request: &Values, stored: &StoredResponse) -> Reuse { self.0.stored(request, stored) }
/// #     fn on_fetched(&mut self, response: &Values, times: &FetchTimes) -> StoreDecision {
/// #         self.0.fetched(response, times)
/// #     }
/// #     fn on_invalidate(&mut self, response: &Values) -> Vec<Vec<u8>> { self.0.invalidated_keys(response) }
/// #     fn on_upstream_error(&mut self, request: &Values, stored: &StoredResponse, status: Option<u16>) -> bool {
/// #         self.0.upstream_error(request, stored, status)
/// #     }
/// # }
/// use plugway_sdk::testing::{Harness, Request};
///
/// let mut cache = Harness::<Cache>::new(serde_json::json!({})).unwrap();
/// let response = Response::new(200).field("cache-control", "max-age=60").field("age", "10");
/// let times = FetchTimes { received_ms: 1_700_000_000_000, delay_ms: 0 };
/// let StoreDecision::Store(storage) = cache.fetched(&Request::get("/"), &response, &times) else { panic!("refused") };
/// assert_eq!((storage.lifetime_ms, storage.initial_age_ms), (60_000, 10_000));
/// ```
impl<P: CachePolicy> Harness<P> {
    /// Returns the decision about a request, by the lookup plan or by the hook.
    pub fn lookup(&mut self, request: &Request) -> Lookup {
        if let Some(plan) = &self.setup.lookup_plan
            && ["GET", "HEAD"].contains(&request.method.as_str())
            && !plan.unless.iter().any(|name| request.value(name, None).is_some())
        {
            let part = |part: &Part| match part {
                Part::Text(text) => text.clone(),
                Part::Value(name) => request.value(name, None).unwrap_or_default(),
            };
            let key = plan.key.iter().flat_map(part).collect();
            return checks::lookup(Lookup::UseCache(CacheKey { key, allow_fresh: true, only_if_cached: false }));
        }
        self.called_lookup(request)
    }

    /// Returns the decision about a request by the hook alone. A lookup plan has to agree with it.
    pub fn called_lookup(&mut self, request: &Request) -> Lookup {
        checks::lookup(self.plugin.on_lookup(&resolve(&self.setup.cache_request, request, None)))
    }

    /// Returns the decision about a stored response.
    pub fn stored(&mut self, request: &Request, stored: &StoredResponse) -> Reuse {
        self.plugin.on_stored(&resolve(&self.setup.cache_request, request, None), stored)
    }

    /// Returns the decision about storing a response that arrived at a given time.
    ///
    /// # Panics
    ///
    /// Panics if the host would reject the result because of one of the [`bounds`](crate::bounds).
    pub fn fetched(&mut self, request: &Request, response: &Response, times: &FetchTimes) -> StoreDecision {
        let decision = self.plugin.on_fetched(&resolve(&self.setup.cache_response, request, Some(response)), times);
        checks::accepted(checks::decision(&decision));
        decision
    }

    /// Returns the cache keys that a request invalidates.
    ///
    /// # Panics
    ///
    /// Panics if the host would reject the result because of one of the [`bounds`](crate::bounds).
    pub fn invalidated_keys(&mut self, request: &Request, response: &Response) -> Vec<Vec<u8>> {
        let keys = self.plugin.on_invalidate(&resolve(&self.setup.cache_response, request, Some(response)));
        checks::accepted(checks::keys(&keys));
        keys
    }

    /// Returns whether the policy serves a stored response instead of an error.
    pub fn upstream_error(&mut self, request: &Request, stored: &StoredResponse, status: Option<u16>) -> bool {
        self.plugin.on_upstream_error(&resolve(&self.setup.cache_request, request, None), stored, status)
    }
}

impl<P: Balancer> Harness<P> {
    /// Passes the endpoints to the plugin. Returns the edits to responses that the plugin has prepared.
    pub fn endpoints_changed(&mut self, endpoints: Vec<Endpoint>) -> ResponseEdits {
        let mut plans = ResponseEdits::default();
        self.plugin.endpoints_changed(endpoints, &mut plans);
        plans
    }

    /// Picks an endpoint for a request that has failed at the endpoints in `tried`. Call `endpoints_changed` first.
    pub fn pick(&mut self, request: &Request, tried: &[u32], endpoints: &Endpoints) -> Option<Choice> {
        let key = self.setup.balancer_key.as_ref().and_then(|name| request.value(name, None));
        let key = key.map(|value| xxhash_rust::xxh3::xxh3_64(&value));
        self.plugin.pick(&resolve(&self.setup.balancer, request, None).with_key(key), tried, endpoints)
    }
}

impl Request {
    /// Creates a GET request for a path and an optional query, to `example.org` from 192.0.2.1.
    pub fn get(target: &str) -> Self {
        Request::new("GET", target)
    }

    /// Creates a request with another method. The path is shown to filters as it is written here, as on a route with
    /// `path-as-is`. On other routes the host shows its normal form: `/a/b` for `//a/%62`.
    pub fn new(method: &str, target: &str) -> Self {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        Request {
            method: method.into(),
            scheme: "http".into(),
            path: path.into(),
            query: query.map(Into::into),
            client: "192.0.2.1".into(),
            fields: vec![("host".into(), "example.org".into())],
            notes: Vec::new(),
            upstream: None,
            content: None,
            max_body: None,
        }
    }

    /// Adds a field line, without spaces around its value. A line of `Host` replaces the authority, since a request has one.
    pub fn field(mut self, name: &str, value: &str) -> Self {
        let value = value.trim_matches([' ', '\t']);
        if name.eq_ignore_ascii_case("host") {
            return self.authority(value);
        }
        self.fields.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// Gives the request content of this length, which is announced.
    pub fn content(mut self, bytes: u64) -> Self {
        self.content = Some(bytes.to_string());
        self
    }

    /// Gives the request content whose length is unknown until its end, as with chunks.
    pub fn chunked_content(mut self) -> Self {
        self.content = Some(String::new());
        self
    }

    /// Sets the authority of the request, which is the field `Host`. It gets the normal form in which the host shows it to
    /// filters: `A.Example.` becomes `a.example`. The host removes the port of the scheme too, so don't write one.
    pub fn authority(mut self, authority: &str) -> Self {
        let normal = rules::authority(authority, None).unwrap_or_else(|| authority.into());
        self.apply(Edit::SetAuthority(normal));
        self
    }

    /// Sets the scheme to `https`.
    pub fn secure(mut self) -> Self {
        self.scheme = "https".into();
        self
    }

    /// Sets the address of the client.
    pub fn from(mut self, client: &str) -> Self {
        self.client = client.into();
        self
    }

    /// Sets a note.
    pub fn note(mut self, name: &str, value: &str) -> Self {
        self.notes.push((name.into(), value.into()));
        self
    }

    /// Returns the first line of a field; `None` if the field is absent or not UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// Returns all lines of a field.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let lines = self.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        lines.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// Returns a note; `None` if absent or not UTF-8.
    pub fn noted(&self, name: &str) -> Option<&str> {
        let (_, value) = self.notes.iter().find(|(known, _)| known == name)?;
        std::str::from_utf8(value).ok()
    }

    /// Returns the path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the query without its `?`; `None` if there is none.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Returns the authority, which a filter may have set; an empty text if a filter removed the field `Host`.
    pub fn host(&self) -> &str {
        self.text("host").unwrap_or_default()
    }

    /// Returns the upstream that a filter selected; `None` if it selected none.
    pub fn upstream(&self) -> Option<&str> {
        self.upstream.as_deref()
    }

    /// Returns the lowest limit of the content that a filter set, in bytes; `None` if it set none.
    pub fn max_body(&self) -> Option<u64> {
        self.max_body
    }

    fn apply(&mut self, edit: Edit) {
        match edit {
            Edit::MaxBody(bytes) => self.max_body = Some(self.max_body.map_or(bytes, |max| max.min(bytes))),
            Edit::SetMethod(method) => self.method = method,
            Edit::SetPath(path) => self.path = lossy(&path),
            Edit::SetQuery(query) => self.query = query.as_deref().map(lossy),
            Edit::SetAuthority(authority) => {
                edit_fields(&mut self.fields, Edit::SetField(("host".into(), authority.into_bytes())));
            }
            Edit::SetUpstream(upstream) => self.upstream = Some(upstream),
            Edit::SetNote((name, value)) => {
                self.notes.retain(|(known, _)| *known != name);
                self.notes.push((name, value));
            }
            edit => {
                self.remove_aliases(&edit);
                edit_fields(&mut self.fields, edit);
            }
        }
    }

    /// Removes fields that an origin may take for the field of an edit, such as `X_User` for `X-User`, because the edit
    /// applies to them too.
    fn remove_aliases(&mut self, edit: &Edit) {
        let names = match edit {
            Edit::SetField((name, _)) | Edit::AppendField((name, _)) | Edit::DefaultField((name, _)) => [name, name],
            Edit::RemoveField(name) => [name, name],
            Edit::RenameField((from, to)) if self.fields.iter().any(|line| line.0.eq_ignore_ascii_case(from)) => {
                [from, to]
            }
            Edit::RenameField((from, _)) => [from, from],
            _ => return,
        };
        let normal =
            |name: &str| name.to_ascii_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        let is_alias = |known: &str, name: &str| !known.eq_ignore_ascii_case(name) && normal(known) == normal(name);
        // Neither name of a rename is removed as an alias of the other.
        self.fields.retain(|(known, _)| {
            !names.iter().any(|name| is_alias(known, name)) || names.iter().any(|name| known.eq_ignore_ascii_case(name))
        });
    }

    fn value(&self, name: &ValueName, response: Option<&Response>) -> Option<Vec<u8>> {
        let text = |text: &str| Some(text.as_bytes().to_vec());
        match name {
            ValueName::Method => text(&self.method),
            ValueName::Scheme => text(&self.scheme),
            ValueName::Authority => self.text("host").and_then(text),
            ValueName::Host => self.text("host").map(|host| without_port(host).to_ascii_lowercase().into_bytes()),
            ValueName::Path => text(&self.path),
            ValueName::Query => self.query.as_deref().and_then(text),
            ValueName::Uri => {
                let mut uri = Vec::new();
                origin(self.scheme.as_bytes(), self.host().as_bytes(), &mut uri);
                uri.extend(self.path.bytes());
                uri.extend(self.query.iter().flat_map(|query| ["?", query.as_str()]).flat_map(str::bytes));
                Some(uri)
            }
            ValueName::Protocol => text("HTTP/1.1"),
            ValueName::ClientAddress => text(&self.client),
            ValueName::Upstream => self.upstream.as_deref().and_then(text),
            ValueName::RequestId => text("0123456789abcdef0123456789abcdef"),
            ValueName::ForwardedFor => {
                let received = joined(&self.fields, "x-forwarded-for").map(|list| [&list[..], b", "].concat());
                Some([received.unwrap_or_default(), self.client.as_bytes().to_vec()].concat())
            }
            ValueName::Status => response.map(|response| response.status.to_string().into_bytes()),
            ValueName::RequestField(name) => joined(&self.fields, name),
            ValueName::ResponseField(name) => joined(&response?.fields, name),
            ValueName::Cookie(_) | ValueName::QueryParameter(_) => self.values(name, response).into_iter().next(),
            ValueName::Note(name) => self.noted(name).and_then(text),
            ValueName::ContentLength => self.content.as_deref().and_then(text),
            ValueName::ClientPort | ValueName::ListenerAddress | ValueName::Route | ValueName::Endpoint => None,
            ValueName::TlsVersion
            | ValueName::TlsServerName
            | ValueName::TlsCipher
            | ValueName::ClientCertificateSubject
            | ValueName::ClientCertificateIssuer
            | ValueName::ClientCertificateSerial
            | ValueName::ClientCertificateNames
            | ValueName::ClientCertificateFingerprint => None,
        }
    }
}

impl Request {
    /// Returns all values of a name, in order.
    fn values(&self, name: &ValueName, response: Option<&Response>) -> Vec<Vec<u8>> {
        match name {
            ValueName::RequestField(name) => lines(&self.fields, name),
            ValueName::ResponseField(name) => {
                response.map(|response| lines(&response.fields, name)).unwrap_or_default()
            }
            ValueName::Cookie(name) => {
                let cookies = lines(&self.fields, "cookie");
                let cookies = cookies.iter().flat_map(|line| cookie::pairs(line));
                cookies.filter(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value.to_vec()).collect()
            }
            ValueName::QueryParameter(name) => {
                let query = Parameters::parse(self.query.as_deref().unwrap_or_default());
                query.written(name).map(<[u8]>::to_vec).collect()
            }
            name => self.value(name, response).into_iter().collect(),
        }
    }
}

impl<M> Outcome<M> {
    /// Returns the message if the filter passed it on; otherwise `None`.
    pub fn passed(self) -> Option<M> {
        match self {
            Outcome::Passed(message) => Some(message),
            _ => None,
        }
    }

    /// Returns the response if the filter responded; otherwise `None`.
    pub fn answered(self) -> Option<Response> {
        match self {
            Outcome::Answered(response) => Some(response),
            _ => None,
        }
    }
}

fn resolve(needs: &Inputs, request: &Request, response: Option<&Response>) -> Values {
    Values::new(needs.names().iter().map(|name| request.value(name, response)).collect())
}

fn edits<M>(verdict: Verdict) -> Result<Vec<Edit>, Outcome<M>> {
    match verdict {
        Verdict::Proceed(edits) => Ok(edits),
        Verdict::Plan(plan) => Ok(vec![Edit::Plan(plan.0)]),
        Verdict::Respond(response) => Err(checks::response(response).map_or_else(Outcome::Failed, Outcome::Answered)),
        Verdict::Fail(reason) => Err(Outcome::Failed(reason)),
    }
}

/// Returns the edit that results from an edit of a plan; `None` if the edit does nothing.
fn planned(edit: &PlannedEdit, request: &Request, response: Option<&Response>) -> Option<Edit> {
    let fill = |template: &[TemplatePart]| -> Vec<u8> {
        let part = |part: &TemplatePart| match part {
            TemplatePart::Text(text) => text.clone(),
            TemplatePart::Value(name) => request.value(name, response).unwrap_or_default(),
        };
        template.iter().flat_map(part).collect()
    };
    let filled = |name: &String, template: &[TemplatePart]| {
        let value = fill(template);
        (!value.is_empty()).then(|| (name.clone(), value))
    };
    match edit {
        PlannedEdit::SetField((name, template)) => {
            Some(filled(name, template).map_or_else(|| Edit::RemoveField(name.clone()), Edit::SetField))
        }
        PlannedEdit::AppendField((name, template)) => filled(name, template).map(Edit::AppendField),
        PlannedEdit::DefaultField((name, template)) => filled(name, template).map(Edit::DefaultField),
        PlannedEdit::RemoveField(name) => Some(Edit::RemoveField(name.clone())),
        PlannedEdit::RenameField(names) => Some(Edit::RenameField(names.clone())),
        PlannedEdit::SetNote((name, template)) => filled(name, template).map(Edit::SetNote),
        PlannedEdit::MaxBody(bytes) => Some(Edit::MaxBody(*bytes)),
        PlannedEdit::Body(mode) => Some(Edit::Body(*mode)),
    }
}

fn edit_fields(fields: &mut Vec<(String, Vec<u8>)>, edit: Edit) {
    let is = |name: &str| {
        let name = name.to_ascii_lowercase();
        move |line: &(String, Vec<u8>)| line.0.eq_ignore_ascii_case(&name)
    };
    match edit {
        Edit::SetField((name, value)) => {
            let same = is(&name);
            fields.retain(|line| !same(line));
            fields.push((name, value));
        }
        Edit::AppendField(line) => fields.push(line),
        Edit::DefaultField(line) if !fields.iter().any(is(&line.0)) => {
            fields.push(line);
        }
        Edit::RemoveField(name) => {
            let same = is(&name);
            fields.retain(|line| !same(line));
        }
        Edit::RenameField((from, to)) => {
            let (from, same) = (is(&from), is(&to));
            if fields.iter().any(&from) {
                fields.retain(|line| !same(line));
            }
            fields.iter_mut().filter(|line| from(line)).for_each(|line| line.0 = to.clone());
        }
        _ => {}
    }
}

/// Returns the host of an authority, without the port.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

fn joined(fields: &[(String, Vec<u8>)], name: &str) -> Option<Vec<u8>> {
    let lines = lines(fields, name);
    (!lines.is_empty()).then(|| lines.join(&b", "[..]))
}

fn lines(fields: &[(String, Vec<u8>)], name: &str) -> Vec<Vec<u8>> {
    let lines = fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    lines.map(|(_, value)| value.clone()).collect()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
