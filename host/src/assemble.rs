//! From a manifest to a generation: names become places, texts become values, plugins are loaded and configured.
//! After this nothing is parsed, looked up by name or checked again. All mistakes are found before any is told.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use crate::access_log::{AccessLog, Format, Target};
use crate::config::manifest::{self, AccessLogFormat, Manifest, OtherPath, PluginRef};
use crate::config::problem::{Problems, Source};
use crate::generation::{Endpoint, Generation, Route, Upstream};
use crate::plugin::binding::{self, BindError, Binding, Limits, OnError};
use crate::plugin::engine::{MOST_MEMORY, Plugin, Runtime};
use crate::router::{HostMatch, Match, PathMatch, Router};
use crate::upstream::{EndpointAddr, InFlight, KeepRules};

/// Makes generations; keeps what outlives them.
pub struct Assembly {
    runtime: Runtime,
    in_flight: HashMap<EndpointAddr, Arc<InFlight>>,
    plugins: HashMap<blake3::Hash, Loaded>,
    /// The log of the last generation: kept while the manifest asks for the same.
    log: Option<((Format, Target), AccessLog)>,
}

/// What a manifest says besides the generation.
pub struct Assembled {
    pub generation: Generation,
    pub listeners: Vec<String>,
    pub workers: Option<usize>,
    pub admin: AdminAddress,
}

/// Where the admin listener is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// At the usual place, if that is free.
    Default,
    At(std::net::SocketAddr),
    Off,
}

#[derive(Clone)]
struct Loaded {
    plugin: Arc<Plugin>,
    schema: Option<Arc<serde_json::Value>>,
}

/// The state of one assembly.
struct Draft<'a> {
    assembly: &'a mut Assembly,
    problems: Problems,
    bindings: Vec<Binding>,
    /// Named plugins, as places in `bindings`; none if theirs failed.
    named: BTreeMap<String, Option<usize>>,
    round_robin: Option<usize>,
}

impl Assembly {
    pub fn new(runtime: Runtime) -> Self {
        Assembly { runtime, in_flight: HashMap::new(), plugins: HashMap::new(), log: None }
    }

    /// Makes a generation of a manifest's files.
    pub fn assemble(&mut self, files: &[(Arc<Source>, Manifest)]) -> Result<Assembled, Problems> {
        let (bindings, named) = (Vec::new(), BTreeMap::new());
        let mut draft = Draft { assembly: self, problems: Problems::default(), bindings, named, round_robin: None };
        for (source, file) in files {
            for (name, plugin) in &file.plugin {
                let binding = draft.bind(source, name.get_ref(), plugin);
                if draft.named.insert(name.get_ref().clone(), binding).is_some() {
                    draft.problems.at(source, name.span(), "this plugin name is taken by another file");
                }
            }
        }
        let mut upstreams: Vec<Upstream> = Vec::new();
        let mut upstream_places = HashMap::new();
        for (source, file) in files {
            for (name, upstream) in &file.upstream {
                let made = draft.upstream(source, name, upstream);
                if upstream_places.insert(made.name.clone(), upstreams.len()).is_some() {
                    draft.problems.at(source, name.span(), "this upstream name is taken by another file");
                }
                upstreams.push(made);
            }
        }
        let (mut routes, mut matches, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (source, route) in
            files.iter().flat_map(|(source, file)| file.route.iter().map(move |route| (source, route)))
        {
            let matching = draft.matching(source, route.get_ref());
            routes.push(draft.route(source, route.get_ref(), &upstream_places));
            matches.push(matching);
            places.push((source, route.span()));
        }
        let router = Router::new(matches);
        if let Err((first, second)) = &router {
            let (source, span) = &places[*second];
            let (other, at) = &places[*first];
            let line =
                other.text.as_bytes()[..at.start.min(other.text.len())].iter().filter(|byte| **byte == b'\n').count()
                    + 1;
            let message = format!(
                "no request can tell this route from the one at {}:{line}; change or remove one",
                other.path.display()
            );
            draft.problems.at(source, head_of(span), message);
        }
        let listeners: Vec<_> =
            files.iter().flat_map(|(source, file)| file.listener.iter().map(move |one| (source, one))).collect();
        for (source, listener) in &listeners {
            let address = listener.address.get_ref();
            if !address.starts_with("unix:") && address.parse::<std::net::SocketAddr>().is_err() {
                let message =
                    format!("`{address}` is no address to listen at; write `0.0.0.0:80`, `[::]:80` or `unix:/path`");
                draft.problems.at(source, listener.address.span(), message);
            }
        }
        let admin = draft.admin(files);
        let access_log = draft.access_log(files);
        let (problems, bindings) = (draft.problems, draft.bindings);
        let router = match router {
            Ok(router) if problems.0.is_empty() => router,
            _ => return Err(problems),
        };
        Ok(Assembled {
            generation: Generation { router, routes, upstreams, upstream_places, bindings, access_log },
            admin,
            listeners: listeners.iter().map(|(_, listener)| listener.address.get_ref().clone()).collect(),
            workers: files.iter().find_map(|(_, file)| file.workers.as_ref()).map(|workers| *workers.get_ref()),
        })
    }

    /// Loads a component and asks it who it is; the same bytes are compiled once.
    fn load(&mut self, bytes: &[u8]) -> Result<Loaded, String> {
        let digest = blake3::hash(bytes);
        if let Some(known) = self.plugins.get(&digest) {
            return Ok(known.clone());
        }
        let plugin = Arc::new(self.runtime.load(bytes).map_err(|error| error.to_string())?);
        let description = binding::describe(&plugin).map_err(|trap| format!("it fails to describe itself: {trap}"))?;
        let schema = description.config_schema.map(|schema| serde_json::from_str(&schema)).transpose();
        let schema = schema.map_err(|error| format!("its schema is no JSON: {error}"))?.map(Arc::new);
        let loaded = Loaded { plugin, schema };
        self.plugins.insert(digest, loaded.clone());
        Ok(loaded)
    }
}

impl Draft<'_> {
    fn admin(&mut self, files: &[(Arc<Source>, Manifest)]) -> AdminAddress {
        let named = files.iter().find_map(|(source, file)| Some((source, file.admin.as_ref()?)));
        let Some((source, admin)) = named else { return AdminAddress::Default };
        match admin.address.get_ref().as_str() {
            "off" => AdminAddress::Off,
            address => address.parse().map_or_else(
                |_| {
                    let message = format!("`{address}` is no address; write `127.0.0.1:9145` or `off`");
                    self.problems.at(source, admin.address.span(), message);
                    AdminAddress::Off
                },
                AdminAddress::At,
            ),
        }
    }

    fn access_log(&mut self, files: &[(Arc<Source>, Manifest)]) -> Option<AccessLog> {
        let named = files.iter().find_map(|(source, file)| Some((source, file.access_log.as_ref()?)));
        let (source, wanted) = named?;
        let format = match wanted.get_ref().format {
            AccessLogFormat::Combined => Format::Combined,
            AccessLogFormat::Json => Format::Json,
            AccessLogFormat::Off => return None,
        };
        let folder = source.path.parent().unwrap_or(Path::new("."));
        let target = wanted.get_ref().file.as_ref().map_or(Target::Stdout, |file| Target::File(folder.join(file)));
        let wanted_log = (format, target);
        if let Some((known, log)) = &self.assembly.log
            && *known == wanted_log
        {
            return Some(log.clone());
        }
        match AccessLog::start(wanted_log.0, wanted_log.1.clone()) {
            Ok(log) => {
                self.assembly.log = Some((wanted_log, log.clone()));
                Some(log)
            }
            Err(error) => {
                self.problems.at(source, head_of(&wanted.span()), format!("the access log can't be opened: {error}"));
                None
            }
        }
    }

    fn bind(&mut self, source: &Arc<Source>, name: &str, plugin: &manifest::Plugin) -> Option<usize> {
        let before = self.problems.0.len();
        let limits = self.limits(source, &plugin.limits);
        let on_error = self.on_error(source, plugin.on_error.as_ref());
        let loaded = component(source, plugin.r#use.get_ref()).and_then(|bytes| self.assembly.load(&bytes));
        let loaded = loaded.map_err(|message| self.problems.at(source, plugin.r#use.span(), message)).ok()?;
        let (config, span) = match &plugin.config {
            Some(config) => (serde_json::to_value(config.get_ref()).unwrap_or_default(), head_of(&config.span())),
            None => (serde_json::json!({}), plugin.r#use.span()),
        };
        if let Some(schema) = &loaded.schema {
            match jsonschema::validator_for(schema) {
                Ok(validator) => validator.iter_errors(&config).for_each(|error| {
                    let message = format!("config{}: {error}", pointed(&error.instance_path().to_string()));
                    self.problems.at(source, span.clone(), message);
                }),
                Err(error) => {
                    self.problems.at(source, plugin.r#use.span(), format!("its schema is not valid: {error}"))
                }
            }
        }
        if self.problems.0.len() > before {
            return None;
        }
        match Binding::new(name.into(), loaded.plugin, config.to_string(), limits, on_error) {
            Ok(binding) => {
                self.bindings.push(binding);
                Some(self.bindings.len() - 1)
            }
            Err(BindError::Config(errors)) => {
                for (path, message) in errors {
                    self.problems.at(source, span.clone(), format!("config{}: {message}", pointed(&path)));
                }
                None
            }
            Err(error) => {
                self.problems.at(source, span, error.to_string());
                None
            }
        }
    }

    fn reference(&mut self, source: &Arc<Source>, reference: &Spanned<PluginRef>) -> Option<usize> {
        match reference.get_ref() {
            PluginRef::Inline(plugin) => self.bind(source, plugin.r#use.get_ref(), plugin),
            PluginRef::Name(name) => {
                if let Some(known) = self.named.get(name) {
                    return *known;
                }
                let stock = plugway_plugins::STOCK.iter().map(|(name, _)| *name);
                let known: Vec<&str> = self.named.keys().map(String::as_str).chain(stock.clone()).collect();
                if stock.clone().any(|stock| stock == name) {
                    let plain = manifest::Plugin {
                        r#use: Spanned::new(reference.span(), name.clone()),
                        config: None,
                        limits: Default::default(),
                        on_error: None,
                    };
                    return self.bind(source, name, &plain);
                }
                let message = format!(
                    "there is no plugin `{name}`; known here: {}; or add it as [plugin.{name}]",
                    known.join(", ")
                );
                self.problems.at(source, reference.span(), message);
                None
            }
        }
    }

    fn upstream(&mut self, source: &Arc<Source>, name: &Spanned<String>, upstream: &manifest::Upstream) -> Upstream {
        let mut endpoints = Vec::new();
        for endpoint in &upstream.endpoints {
            let (text, weight) = match endpoint.get_ref() {
                manifest::Endpoint::Address(address) => (address, 1),
                manifest::Endpoint::Weighted(endpoint) => (&endpoint.address, endpoint.weight.into()),
            };
            match endpoint_address(text) {
                Some(address) => {
                    let in_flight = self.assembly.in_flight.entry(address.clone()).or_default().clone();
                    endpoints.push(Endpoint { text: address.text(), address, weight, in_flight });
                }
                None => {
                    let message =
                        format!("`{text}` is no endpoint; write `127.0.0.1:8000`, `app.internal:8000` or `unix:/path`");
                    self.problems.at(source, endpoint.span(), message);
                }
            }
        }
        if upstream.endpoints.is_empty() {
            self.problems.at(source, name.span(), "an upstream needs at least one endpoint");
        }
        let balancer = match &upstream.balancer {
            Some(reference) => {
                let place = self.reference(source, reference);
                if place.is_some_and(|place| !self.bindings[place].balances()) {
                    self.problems.at(
                        source,
                        reference.span(),
                        "this plugin is no balancer: it doesn't export that hook",
                    );
                }
                place
            }
            None if endpoints.len() > 1 => self.round_robin(source, name.span()),
            None => None,
        };
        let rules = KeepRules {
            connect_timeout: self.duration(source, upstream.connect_timeout.as_ref(), Duration::from_secs(5)),
            response_timeout: self.duration(source, upstream.response_timeout.as_ref(), Duration::from_secs(60)),
            idle_timeout: self.duration(source, upstream.idle_timeout.as_ref(), Duration::from_secs(60)),
            idle_connections: upstream.idle_connections.unwrap_or(128),
        };
        Upstream { name: name.get_ref().as_str().into(), endpoints, balancer, rules }
    }

    fn round_robin(&mut self, source: &Arc<Source>, span: Range<usize>) -> Option<usize> {
        if self.round_robin.is_none() {
            self.round_robin = self.reference(source, &Spanned::new(span, PluginRef::Name("balance".into())));
        }
        self.round_robin
    }

    fn route(&mut self, source: &Arc<Source>, route: &manifest::Route, upstreams: &HashMap<Arc<str>, usize>) -> Route {
        let place = upstreams.get(route.upstream.get_ref().as_str()).copied();
        if place.is_none() {
            let mut known: Vec<&str> = upstreams.keys().map(|name| &**name).collect();
            known.sort_unstable();
            let message = format!("there is no upstream `{}`; known: {}", route.upstream.get_ref(), known.join(", "));
            self.problems.at(source, route.upstream.span(), message);
        }
        let chain = route.plugins.iter().filter_map(|plugin| self.reference(source, plugin)).collect();
        let made = || {
            let host = route.hosts.first().map_or("*", |host| host.get_ref());
            let path = route.path.as_ref().map(|path| match path.get_ref() {
                manifest::Path::Below(path) => path.clone(),
                manifest::Path::Other(OtherPath::Exact(path) | OtherPath::Prefix(path) | OtherPath::Regex(path)) => {
                    path.clone()
                }
            });
            format!("{host}{}", path.unwrap_or_default())
        };
        Route { name: route.name.clone().unwrap_or_else(made).into(), upstream: place.unwrap_or(0), chain }
    }

    fn matching(&mut self, source: &Arc<Source>, route: &manifest::Route) -> Match {
        let mut matching = Match::default();
        for host in &route.hosts {
            let name = host.get_ref().to_ascii_lowercase();
            matching.hosts.push(match name.strip_prefix('*') {
                Some(below) if below.starts_with('.') => HostMatch::Below(below.into()),
                _ => {
                    if name.contains(['*', ':', '/']) {
                        let message =
                            format!("`{name}` is no host; write `example.org` or `*.example.org`, without a port");
                        self.problems.at(source, host.span(), message);
                    }
                    HostMatch::Exact(name)
                }
            });
        }
        if let Some(path) = &route.path {
            let text = match path.get_ref() {
                manifest::Path::Below(text) => text,
                manifest::Path::Other(OtherPath::Exact(text) | OtherPath::Prefix(text) | OtherPath::Regex(text)) => {
                    text
                }
            };
            matching.path = match path.get_ref() {
                manifest::Path::Other(OtherPath::Regex(text)) => match regex::Regex::new(text) {
                    Ok(regex) => PathMatch::Regex(regex),
                    Err(error) => {
                        self.problems.at(source, path.span(), format!("this is no regular expression: {error}"));
                        PathMatch::Any
                    }
                },
                _ if !text.starts_with('/') => {
                    self.problems.at(source, path.span(), format!("a path begins with `/`: write `/{text}`"));
                    PathMatch::Any
                }
                manifest::Path::Other(OtherPath::Exact(text)) => PathMatch::Exact(text.clone()),
                _ if text == "/" => PathMatch::Any,
                _ => PathMatch::Prefix(text.clone()),
            };
        }
        for method in &route.methods {
            match http::Method::from_bytes(method.get_ref().as_bytes()) {
                Ok(method) => matching.methods.push(method),
                Err(_) => self.problems.at(source, method.span(), format!("`{}` is no method", method.get_ref())),
            }
        }
        let wanted = |value: &String| (value != "*").then(|| value.clone());
        for (name, value) in &route.fields {
            match http::HeaderName::from_bytes(name.get_ref().as_bytes()) {
                Ok(name) => matching.fields.push((name, wanted(value))),
                Err(_) => self.problems.at(source, name.span(), format!("`{}` is no field name", name.get_ref())),
            }
        }
        matching.query = route.query.iter().map(|(name, value)| (name.clone(), wanted(value))).collect();
        matching
    }

    fn limits(&mut self, source: &Arc<Source>, limits: &manifest::Limits) -> Limits {
        let defaults = Limits::default();
        let memory = limits.memory.as_ref().map(|text| match bytes(text.get_ref()) {
            Some(bytes) if (64 << 10..=MOST_MEMORY).contains(&bytes) => bytes,
            _ => {
                self.problems.at(
                    source,
                    text.span(),
                    "memory is a size between `64 KiB` and `256 MiB`, such as `16 MiB`",
                );
                defaults.memory
            }
        });
        let cpu = self.duration(source, limits.cpu.as_ref(), defaults.cpu);
        Limits { memory: memory.unwrap_or(defaults.memory), cpu }
    }

    fn on_error(&mut self, source: &Arc<Source>, on_error: Option<&Spanned<manifest::OnError>>) -> OnError {
        let Some(on_error) = on_error else { return OnError::Fail };
        match on_error.get_ref() {
            manifest::OnError::Word(word) if word == "fail" => OnError::Fail,
            manifest::OnError::Word(word) if word == "skip" => OnError::Skip,
            manifest::OnError::Status(code) if (200..600).contains(code) => {
                http::StatusCode::from_u16(*code).map_or(OnError::Fail, OnError::Respond)
            }
            _ => {
                self.problems.at(
                    source,
                    on_error.span(),
                    "on-error is \"fail\", \"skip\" or a status between 200 and 599",
                );
                OnError::Fail
            }
        }
    }

    fn duration(&mut self, source: &Arc<Source>, text: Option<&Spanned<String>>, default: Duration) -> Duration {
        let Some(text) = text else { return default };
        duration(text.get_ref()).unwrap_or_else(|| {
            let message = format!("`{}` is no time; write `50ms`, `10s`, `5m` or `1h`", text.get_ref());
            self.problems.at(source, text.span(), message);
            default
        })
    }
}

/// The bytes of a component by what `use` says.
fn component(source: &Source, name: &str) -> Result<Vec<u8>, String> {
    if let Some((_, bytes)) = plugway_plugins::STOCK.iter().find(|(stock, _)| *stock == name) {
        return Ok(bytes.to_vec());
    }
    let stock: Vec<&str> = plugway_plugins::STOCK.iter().map(|(name, _)| *name).collect();
    if !name.ends_with(".wasm") {
        return Err(format!("`{name}` is neither a stock plugin ({}) nor a `.wasm` file", stock.join(", ")));
    }
    let path = source.path.parent().unwrap_or(Path::new(".")).join(name);
    std::fs::read(&path).map_err(|error| format!("the plugin `{}` can't be read: {error}", path.display()))
}

fn endpoint_address(text: &str) -> Option<EndpointAddr> {
    if text.strip_prefix("unix:").is_some_and(|path| path.starts_with('/')) {
        return Some(EndpointAddr::Unix(text.into()));
    }
    let (host, port) = text.rsplit_once(':')?;
    let is_host = !host.is_empty() && !host.contains(['/', ' ', '@']) && (!host.contains(':') || host.starts_with('['));
    (is_host && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| EndpointAddr::Tcp(text.into()))
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok().filter(|number| (1..=1 << 32).contains(number))?;
    match text[digits..].trim_start() {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number * 60)),
        "h" => Some(Duration::from_secs(number * 3600)),
        _ => None,
    }
}

fn bytes(text: &str) -> Option<usize> {
    let digits = text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let number: usize = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim_start() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// A JSON pointer as people write keys.
fn pointed(pointer: &str) -> String {
    pointer.replace('/', ".").replace("~1", "/").replace("~0", "~")
}

/// The beginning of a table, to be shown in its place.
fn head_of(span: &Range<usize>) -> Range<usize> {
    span.start..span.start + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!(duration("50ms"), Some(Duration::from_millis(50)));
        assert_eq!(duration("2 h"), Some(Duration::from_secs(7200)));
        assert_eq!((duration("5"), duration("s"), duration("0s"), duration("1d")), (None, None, None, None));
        assert_eq!(
            (bytes("16 MiB"), bytes("1KiB"), bytes("16"), bytes("16 MB")),
            (Some(16 << 20), Some(1024), None, None)
        );
    }

    #[test]
    fn endpoints_have_a_port_or_a_path() {
        for good in ["127.0.0.1:80", "[::1]:80", "app.internal:8000", "unix:/run/app.sock"] {
            assert!(endpoint_address(good).is_some(), "{good}");
        }
        for bad in ["127.0.0.1", "::1:80", ":80", "a:0", "a:99999", "http://a:80", "unix:relative"] {
            assert!(endpoint_address(bad).is_none(), "{bad}");
        }
    }
}
