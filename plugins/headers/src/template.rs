//! Templates: text with values in braces.

use plugway_sdk::{Need, Needs, Part, ValueName, Values};

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

/// A template whose values are declared.
#[derive(Debug)]
pub struct Declared(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Text(Vec<u8>),
    Value(Need),
}

impl Template {
    /// Parses `text`; the error says what is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err("a `}` closes nothing; write `}}` for a brace".into());
            }
            let Some((name, after)) = rest.split_once('}') else {
                return Err("a `{` is not closed; write `{{` for a brace".into());
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(Part::Value(value_name(name)?));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Template(parts))
    }

    /// The parts, for a plan.
    pub fn parts(&self) -> Vec<Part> {
        self.0.clone()
    }

    /// Declares the values.
    pub fn declare(self, needs: &mut Needs) -> Declared {
        let piece = |part| match part {
            Part::Text(text) => Piece::Text(text),
            Part::Value(name) => Piece::Value(needs.value(name)),
        };
        Declared(self.0.into_iter().map(piece).collect())
    }
}

impl Declared {
    /// The text with the values of an exchange.
    pub fn fill(&self, values: &Values) -> Vec<u8> {
        let piece = |piece| match piece {
            &Piece::Value(need) => values.bytes(need).unwrap_or_default(),
            Piece::Text(text) => text,
        };
        self.0.iter().flat_map(piece).copied().collect()
    }
}

const NAMES: &str = "method, scheme, host, authority, path, query, protocol, client.ip, client.port, listener.address, \
                     route, upstream, endpoint, request-id, forwarded-for, status, tls.version, tls.server-name, \
                     request.header.NAME, response.header.NAME, cookie.NAME, query.NAME, note.NAME";

fn value_name(name: &str) -> Result<ValueName, String> {
    let of = |prefix| name.strip_prefix(prefix).filter(|rest| !rest.is_empty()).map(String::from);
    let named = of("request.header.").map(ValueName::RequestField);
    let named = named.or_else(|| of("response.header.").map(ValueName::ResponseField));
    let named = named.or_else(|| of("cookie.").map(ValueName::Cookie));
    let named = named.or_else(|| of("query.").map(ValueName::QueryParameter));
    if let Some(named) = named.or_else(|| of("note.").map(ValueName::Note)) {
        return Ok(named);
    }
    Ok(match name {
        "method" => ValueName::Method,
        "scheme" => ValueName::Scheme,
        "host" => ValueName::Host,
        "authority" => ValueName::Authority,
        "path" => ValueName::Path,
        "query" => ValueName::Query,
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
        unknown => return Err(format!("there is no value `{{{unknown}}}`; known: {NAMES}")),
    })
}
