//! Templates: text with values in braces.

use plugway_sdk::{Part, ValueName};

/// Parses `text`; the error says what is wrong and what would be right.
pub fn parse(text: &str) -> Result<Vec<Part>, String> {
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
    Ok(parts)
}

const NAMES: &str = "method, scheme, host, authority, path, query, protocol, client.ip, client.port, listener.address, \
                     route, upstream, endpoint, request-id, forwarded-for, status, tls.version, tls.server-name, \
                     tls.cipher, tls.client.subject, tls.client.issuer, tls.client.serial, tls.client.names, \
                     tls.client.fingerprint, \
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
        "tls.cipher" => ValueName::TlsCipher,
        "tls.client.subject" => ValueName::ClientCertificateSubject,
        "tls.client.issuer" => ValueName::ClientCertificateIssuer,
        "tls.client.serial" => ValueName::ClientCertificateSerial,
        "tls.client.names" => ValueName::ClientCertificateNames,
        "tls.client.fingerprint" => ValueName::ClientCertificateFingerprint,
        unknown => return Err(format!("there is no value `{{{unknown}}}`; known: {NAMES}")),
    })
}
