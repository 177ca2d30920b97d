//! Templates of the manifest for URIs: text with values of a request in braces, written as in the plugin `headers`. No
//! value can add a line to the field that the URI stands in, nor end the part of the URI that the value stands in.

use http::header::{HeaderName, HeaderValue};

use crate::context::{ExchangeContext, ValueName};
use crate::protocol::authority;
use crate::protocol::path::is_unreserved;

/// The longest URI that is made, in bytes: more than clients accept in a `Location`.
const MAX_URI_BYTES: usize = 64 << 10;

/// A template for a URI.
#[derive(Clone, Debug, Default)]
pub struct UriTemplate(Vec<UriPart>);

#[derive(Clone, Debug, PartialEq)]
enum UriPart {
    Text(String),
    Value(ValueName),
    /// The query with the `?` before it; nothing if there is no query.
    MarkedQuery,
}

/// The target of an example of requests.
#[derive(Clone, Copy, Debug)]
pub struct SampleTarget<'a> {
    pub scheme: &'a str,
    /// The host, without a port.
    pub host: &'a str,
    pub path: &'a str,
}

/// The name of the query with the `?` before it.
const MARKED_QUERY: &str = "?query";

/// The reason why a template makes no URI for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("it would be empty")]
    Empty,
    #[error("it would have no host")]
    NoHost,
    #[error("it would have an invalid host")]
    Host,
    #[error("it would be relative to the path of the request")]
    Relative,
    #[error("it would be longer than 64 KiB")]
    TooLong,
}

impl UriTemplate {
    /// Parses a template. The error says what is wrong and what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                // A URI has no braces but escaped ones.
                plain.push_str(if brace == "{" { "%7B" } else { "%7D" });
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
                parts.push(UriPart::Text(std::mem::take(&mut plain)));
            }
            if name == MARKED_QUERY {
                if plain_text(&parts).any(|text| text.contains('?')) {
                    return Err("`{?query}` after a `?`, which begins the query already; write `&{query}`".into());
                }
                parts.push(UriPart::MarkedQuery);
            } else {
                parts.push(UriPart::Value(value_name(name)?));
            }
            rest = after;
        }
        plain.push_str(rest);
        if let Some(bad) = plain_text(&parts).chain([plain.as_str()]).find_map(unfit) {
            return Err(format!("{bad:?} can't stand in a URI; write it escaped, such as `%20` for a space"));
        }
        if !plain.is_empty() {
            parts.push(UriPart::Text(plain));
        }
        if let Some(name) = continued_host(&parts) {
            return Err(format!(
                "`{{{name}}}` continues the host, so that a client's value such as `.example.net` leads to another host; write a \
                 `/` before it"
            ));
        }
        let template = UriTemplate(parts);
        template.build(|name, uri| uri.extend_from_slice(sample(name))).map_err(|reason| reason.to_string())?;
        Ok(template)
    }

    /// Returns the URI for a request: an absolute one, or one that begins with a single slash.
    pub fn fill(&self, context: &ExchangeContext) -> Result<HeaderValue, TemplateError> {
        self.build(|name, uri| put(name, context, uri))
    }

    /// Returns the URI for a request with a target without a query; `None` if it is none. Other values are replaced by examples.
    pub fn fill_sample(&self, target: &SampleTarget<'_>) -> Option<HeaderValue> {
        let put = |name: &ValueName, uri: &mut Vec<u8>| match name {
            ValueName::Path | ValueName::Uri => uri.extend_from_slice(target.path.as_bytes()),
            ValueName::Scheme => uri.extend_from_slice(target.scheme.as_bytes()),
            ValueName::Host | ValueName::Authority => uri.extend_from_slice(target.host.as_bytes()),
            ValueName::Query => {}
            name => uri.extend_from_slice(sample(name)),
        };
        self.build(put).ok()
    }

    /// Builds a URI, with the value that `put` writes for each name.
    fn build(&self, put: impl Fn(&ValueName, &mut Vec<u8>)) -> Result<HeaderValue, TemplateError> {
        let mut uri = Vec::new();
        for part in &self.0 {
            match part {
                UriPart::Text(text) => uri.extend_from_slice(text.as_bytes()),
                UriPart::Value(name) => put(name, &mut uri),
                UriPart::MarkedQuery => {
                    uri.push(b'?');
                    let start = uri.len();
                    put(&ValueName::Query, &mut uri);
                    uri.truncate(if uri.len() == start { start - 1 } else { uri.len() });
                }
            }
            if uri.len() > MAX_URI_BYTES {
                return Err(TemplateError::TooLong);
            }
        }
        // Clients take `//` at the beginning for another host, which the template names, but no value.
        if uri.starts_with(b"//") && !matches!(self.0.first(), Some(UriPart::Text(text)) if text.starts_with("//")) {
            let slashes = uri.iter().take_while(|byte| **byte == b'/').count();
            uri.drain(..slashes - 1);
        }
        check(&uri)?;
        HeaderValue::try_from(uri).map_err(|_| TemplateError::Host)
    }
}

/// Returns an example of a value, by which a template is checked.
fn sample(name: &ValueName) -> &'static [u8] {
    match name {
        ValueName::Scheme => b"https",
        ValueName::Host | ValueName::Authority => b"example.org",
        ValueName::Path | ValueName::Uri => b"/",
        ValueName::ClientAddress => b"192.0.2.1",
        _ => b"x",
    }
}

/// Returns the texts of a template.
fn plain_text(parts: &[UriPart]) -> impl Iterator<Item = &str> {
    parts.iter().filter_map(|part| match part {
        UriPart::Text(text) => Some(text.as_str()),
        UriPart::Value(_) | UriPart::MarkedQuery => None,
    })
}

/// Returns the value that ends a host whose beginning stands in a template; `None` if there is none. A host of the request
/// and a path may stand there.
fn continued_host(parts: &[UriPart]) -> Option<&ValueName> {
    let mut before = String::new();
    for (at, part) in parts.iter().enumerate() {
        match part {
            UriPart::Text(text) => before.push_str(text),
            UriPart::MarkedQuery => before.push('?'),
            UriPart::Value(ValueName::Path | ValueName::Uri) => before.push('/'),
            UriPart::Value(ValueName::Host | ValueName::Authority | ValueName::TlsServerName) => before.push('h'),
            UriPart::Value(name) => {
                let authority = before.strip_prefix("//").or_else(|| Some(before.split_once("://")?.1));
                // A port ends no host: only digits are valid there.
                let is_host = authority.is_some_and(|text| !text.is_empty() && !text.contains(['/', '?', '#', ':']));
                let ends_host = match parts.get(at + 1) {
                    Some(UriPart::Text(text)) => text.starts_with(['/', '?', '#', ':']),
                    _ => true,
                };
                if is_host && ends_host {
                    return Some(name);
                }
                before.push('v');
            }
        }
    }
    None
}

/// Returns the first character of a text that no URI has.
fn unfit(text: &str) -> Option<char> {
    text.chars().find(|letter| !letter.is_ascii_graphic() || matches!(letter, '"' | '<' | '>' | '\\' | '^' | '`' | '|'))
}

/// Checks the start of a URI.
fn check(uri: &[u8]) -> Result<(), TemplateError> {
    if uri.is_empty() {
        return Err(TemplateError::Empty);
    }
    let colon = uri.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"+-.".contains(byte));
    let (scheme, rest) = match colon {
        Some(colon) if colon > 0 && uri[colon] == b':' => (&uri[..colon], &uri[colon + 1..]),
        _ => (&b""[..], uri),
    };
    let Some(after) = rest.strip_prefix(b"//") else {
        return match scheme {
            b"" if rest.starts_with(b"/") => Ok(()),
            b"" => Err(TemplateError::Relative),
            // Clients read a host into what follows these schemes.
            scheme if scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https") => {
                Err(TemplateError::NoHost)
            }
            _ => Ok(()),
        };
    };
    let end = after.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(after.len());
    match &after[..end] {
        [] => Err(TemplateError::NoHost),
        host => authority::normal(host, None).map(drop).map_err(|_| TemplateError::Host),
    }
}

/// Adds a value to a URI. Parts of the request's own URI keep their escapes; each other value is escaped, so that it
/// stays in the segment or parameter that it is put in.
fn put(name: &ValueName, context: &ExchangeContext, uri: &mut Vec<u8>) {
    // In an absolute URI the absence of a path stands for `*` (RFC 9112 §3.2.4).
    let is_asterisk = context.request.uri.path() == "*";
    match name {
        ValueName::Path | ValueName::Uri if is_asterisk => {}
        ValueName::Path | ValueName::Uri => {
            let target = &context.request.uri;
            // A route with `path-as-is` keeps the client's spelling.
            put_escaped(context.unchanged_sent_path().unwrap_or(target.path()).as_bytes(), is_of_uri, uri);
            if let (ValueName::Uri, Some(query)) = (name, target.query()) {
                uri.push(b'?');
                put_escaped(query.as_bytes(), is_of_uri, uri);
            }
        }
        _ => {
            let Some(value) = context.value(name) else { return };
            match name {
                ValueName::Query => put_escaped(value.bytes(), is_of_uri, uri),
                // Both were validated, or are validated with the whole URI.
                ValueName::Host | ValueName::Authority => put_escaped(value.bytes(), is_of_authority, uri),
                // A parameter is escaped already.
                ValueName::QueryParameter(_) => put_escaped(value.bytes(), is_of_parameter, uri),
                _ => put_escaped(value.bytes(), is_unreserved, uri),
            }
        }
    }
}

/// Adds bytes to a URI, and escapes those that are not allowed there.
fn put_escaped(bytes: &[u8], may_stand: fn(u8) -> bool, uri: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        if may_stand(*byte) {
            uri.push(*byte);
        } else {
            uri.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

fn is_of_parameter(byte: u8) -> bool {
    is_unreserved(byte) || byte == b'%' || byte == b'+'
}

fn is_of_authority(byte: u8) -> bool {
    is_unreserved(byte) || b"[]:".contains(&byte)
}

/// Whether a byte can stand in a path and query (RFC 3986 §3.3, §3.4).
fn is_of_uri(byte: u8) -> bool {
    is_unreserved(byte) || b"%/?!$&'()*+,;=:@".contains(&byte)
}

/// Returns the first value in braces of a text that is no template; `None` if it has none.
pub fn first_value(text: &str) -> Option<String> {
    let mut names = text.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
    let is_value = |name: &&str| value_name(name).is_ok() || [MARKED_QUERY, "status"].contains(name);
    names.find(is_value).map(|name| format!("{{{name}}}"))
}

/// Parses the name of a value that a request has; the error lists all names.
fn value_name(name: &str) -> Result<ValueName, String> {
    let of = |prefix| name.strip_prefix(prefix).filter(|rest: &&str| !rest.is_empty());
    if let Some(field) = of("request.header.") {
        let invalid = |_| format!("invalid field name `{field}` in a template");
        return HeaderName::from_bytes(field.as_bytes()).map(ValueName::RequestField).map_err(invalid);
    }
    let text = of("cookie.").map(|name| ValueName::Cookie(name.into()));
    let text = text.or_else(|| of("query.").map(|name| ValueName::QueryParameter(name.into())));
    if let Some(named) = text.or_else(|| of("note.").map(|name| ValueName::Note(name.into()))) {
        return Ok(named);
    }
    let found = PLAIN.iter().find(|value| value.to_string() == name).cloned();
    found.ok_or_else(|| {
        let known: Vec<String> = PLAIN.iter().map(ValueName::to_string).collect();
        let known = known.join(", ");
        format!(
            "there is no value `{{{name}}}` here; known: {known}, ?query, request.header.NAME, cookie.NAME, query.NAME, note.NAME"
        )
    })
}

/// The values without a name of their own that are known before there is a response.
const PLAIN: [ValueName; 22] = [
    ValueName::Method,
    ValueName::Scheme,
    ValueName::Host,
    ValueName::Authority,
    ValueName::Path,
    ValueName::Query,
    ValueName::Uri,
    ValueName::Protocol,
    ValueName::ClientAddress,
    ValueName::ClientPort,
    ValueName::ListenerAddress,
    ValueName::Route,
    ValueName::RequestId,
    ValueName::ForwardedFor,
    ValueName::TlsVersion,
    ValueName::TlsServerName,
    ValueName::TlsCipher,
    ValueName::ClientCertificateSubject,
    ValueName::ClientCertificateIssuer,
    ValueName::ClientCertificateSerial,
    ValueName::ClientCertificateNames,
    ValueName::ClientCertificateFingerprint,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, target: &str, host: &str) -> Result<String, TemplateError> {
        let mut context = ExchangeContext::empty();
        context.request.uri = target.parse().unwrap();
        if !host.is_empty() {
            context.request.headers.insert(http::header::HOST, host.parse().unwrap());
        }
        UriTemplate::parse(template).unwrap().fill(&context).map(|uri| uri.to_str().unwrap().to_string())
    }

    #[test]
    fn values_keep_to_their_part_of_the_uri() {
        let cases = [
            ("https://{host}{uri}", "/a%2Cb?c=%26", "e:81", "https://e/a%2Cb?c=%26"),
            ("https://{authority}{path}?{query}", "/a?b", "e:81", "https://e:81/a?b"),
            ("https://[::1]{uri}", "/", "", "https://[::1]/"),
            ("https://{host}{uri}", "*", "e", "https://e"),
            ("/x/{query.a}/{{}}", "/?a=b%2Fc/d&e", "", "/x/b%2Fc%2Fd/%7B%7D"),
            ("/x/{query.none}", "/", "", "/x/"),
            ("mailto:{query.a}@example.org", "/?a=b", "", "mailto:b@example.org"),
            ("//e{uri}", "/a", "", "//e/a"),
            ("/{uri}", "/a.example", "", "/a.example"),
            ("/ui/{?query}", "/ui?x=1&y=%26", "", "/ui/?x=1&y=%26"),
            ("/ui/{?query}", "/ui", "", "/ui/"),
            ("/ui/{?query}#a", "/ui?", "", "/ui/#a"),
            ("/a?b=1&{query}", "/ui?x=1", "", "/a?b=1&x=1"),
        ];
        for (template, target, host, wanted) in cases {
            assert_eq!(filled(template, target, host).as_deref(), Ok(wanted), "{template} of {target}");
        }
    }

    #[test]
    fn no_value_continues_the_host_of_a_template() {
        for template in [
            "https://example.org{query.next}",
            "https://example.org{query}",
            "https://example.org{cookie.c}/x",
            "//example.org{request.header.x}:8443/",
            "{scheme}://{host}{query.next}?a",
            "https://a{query.a}{note.b}",
            "https://www.{note.zone}/",
        ] {
            let error = UriTemplate::parse(template).unwrap_err();
            assert!(
                error.contains("continues the host") && error.contains("write a `/` before it"),
                "{template}: {error}"
            );
        }
        for template in [
            "https://example.org{uri}",
            "https://example.org{path}{query.next}",
            "https://www.{host}{uri}",
            "https://{query.shard}.example.org{uri}",
            "https://{note.host}{uri}",
            "https://example.org{?query}",
            "https://example.org/{query.next}",
            "/login?next={query.next}",
        ] {
            UriTemplate::parse(template).expect(template);
        }
    }

    #[test]
    fn invalid_location_has_a_reason() {
        let long = format!("/?{}", "a".repeat(20_000));
        let cases = [
            ("https://{host}/", "/", "", TemplateError::NoHost),
            ("https://{query.a}.e/", "/?a=b/c", "", TemplateError::Host),
            ("https://{query.a}/", "/?a=b%2Fc", "", TemplateError::Host),
            ("{uri}", "*", "e", TemplateError::Empty),
            ("{uri}a", "*", "e", TemplateError::Relative),
            ("/{uri}{uri}{uri}{uri}", &long, "", TemplateError::TooLong),
        ];
        for (template, target, host, wanted) in cases {
            assert_eq!(filled(template, target, host), Err(wanted), "{template}");
        }
    }

    #[test]
    fn a_location_has_one_query() {
        assert!(UriTemplate::parse("/a?b={host}{?query}").unwrap_err().contains("write `&{query}`"));
    }

    #[test]
    fn the_names_of_values_are_those_of_templates() {
        for name in PLAIN {
            assert_eq!(value_name(&name.to_string()), Ok(name.clone()), "{name}");
        }
        for bad in ["status", "endpoint", "upstream", "response.header.x", "request.header.", "request.header.a b", ""]
        {
            assert!(value_name(bad).is_err(), "{bad}");
        }
    }
}
