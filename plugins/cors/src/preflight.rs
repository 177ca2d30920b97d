//! The answers to preflights: whether a page may send the request that it is about to send.

use plugway_sdk::token::{is_token, is_token_byte};
use plugway_sdk::{ConfigError, Response, Setup, units};

use crate::config::{Config, Headers};

/// The values of a preflight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// The value of `Access-Control-Request-Headers`.
    pub headers: Option<&'a str>,
    /// Whether the page is on a public site and this site in a private network.
    pub private_network: bool,
}

/// The parts of the answers that are the same for all pages.
#[derive(Debug)]
pub struct Preflight {
    credentials: bool,
    methods: String,
    /// The allowed fields; `None` if a page may set what it asks for.
    headers: Option<String>,
    /// The value of `Access-Control-Max-Age`, in seconds.
    max_age: Option<String>,
    private_network: bool,
    vary: &'static str,
}

impl Preflight {
    /// Reads the configuration, and reports errors in it.
    pub fn new(config: &Config, setup: &mut Setup) -> Self {
        let named = config.methods.as_deref().unwrap_or_default();
        check_methods(named, config.credentials, setup);
        let methods = if config.methods.is_some() { named.join(", ") } else { "GET, HEAD, POST".into() };
        let headers = match &config.headers {
            Headers::Reflect(_) => None,
            Headers::List(names) => {
                check_names(names, "/headers", config.credentials, setup);
                Some(names.join(", "))
            }
        };
        let max_age = config.max_age.as_deref().and_then(|text| match units::duration(text) {
            Ok(time) => Some(time.as_secs().to_string()),
            Err(message) => {
                setup.report(ConfigError::at("/max-age", message));
                None
            }
        });
        let vary = match (headers.is_none(), config.private_network) {
            (_, true) => WITH_NETWORK,
            (true, false) => WITH_HEADERS,
            (false, false) => "Origin, Access-Control-Request-Method",
        };
        let (credentials, private_network) = (config.credentials, config.private_network);
        Preflight { credentials, methods, headers, max_age, private_network, vary }
    }

    /// Returns the answer to a preflight. `origin` is the value of `Access-Control-Allow-Origin`; `None` if the origin is
    /// not allowed, so that the browser blocks the request.
    pub fn answer(&self, origin: Option<&str>, asked: Asked<'_>) -> Response {
        let answer = Response::new(204).field("vary", self.vary);
        let Some(origin) = origin else { return answer };
        let headers = match &self.headers {
            Some(headers) => Some(headers.as_str()),
            None => asked.headers.filter(|headers| headers.bytes().all(is_of_list)),
        };
        let fields = [
            ("access-control-allow-origin", Some(origin)),
            ("access-control-allow-credentials", self.credentials.then_some("true")),
            ("access-control-allow-methods", Some(self.methods.as_str())),
            ("access-control-allow-headers", headers),
            ("access-control-max-age", self.max_age.as_deref()),
            ("access-control-allow-private-network", (asked.private_network && self.private_network).then_some("true")),
        ];
        let sent =
            fields.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
        sent.fold(answer, |answer, (name, value)| answer.field(name, value))
    }
}

const WITH_HEADERS: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
const WITH_NETWORK: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                            Access-Control-Request-Private-Network";

/// Reports names that are no names of fields, and a `*` that browsers take for a name because of credentials.
pub fn check_names(names: &[String], path: &str, credentials: bool, setup: &mut Setup) {
    for (place, name) in names.iter().enumerate() {
        if name == "*" && credentials {
            setup.report(ConfigError::at(format!("{path}/{place}"), STAR));
        } else if !is_token(name) {
            let message = format!("invalid name of a field: `{name}`; expected one such as `X-Total-Count`");
            setup.report(ConfigError::at(format!("{path}/{place}"), message));
        }
    }
}

fn check_methods(methods: &[String], credentials: bool, setup: &mut Setup) {
    for (place, method) in methods.iter().enumerate() {
        let upper = method.to_ascii_uppercase();
        let message = match method.as_str() {
            "*" if credentials => STAR.into(),
            method if !is_token(method) => format!("invalid method: `{method}`; expected one such as `PUT`"),
            method if *method != upper => format!("`{method}`: methods are in capitals; write `{upper}`"),
            _ => continue,
        };
        setup.report(ConfigError::at(format!("/methods/{place}"), message));
    }
}

const STAR: &str = "`*` with `credentials`: browsers take it for a name; write the names";

/// Whether a byte can stand in a list of names.
fn is_of_list(byte: u8) -> bool {
    is_token_byte(byte) || b", \t".contains(&byte)
}
