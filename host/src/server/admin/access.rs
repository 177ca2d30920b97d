//! The access rules of the admin listener: decides which requests are rejected before anything is done for them. Pure.

use std::net::IpAddr;

use http::header::{self, HeaderName};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode, Version};

use crate::assemble::admin::AdminToken;

/// The kind of connection of a client, which decides which commands need a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminTransport {
    /// A unix socket, connected by a process of our own user or of root.
    Owner,
    /// A unix socket, connected by a process of another user.
    OtherUser,
    /// TCP at a loopback address.
    Loopback,
    /// TCP at an address that other machines reach.
    Network,
}

/// A rejected request: its status, and the reason as a text.
#[derive(Debug, PartialEq, Eq)]
pub struct AccessRefusal {
    pub status: StatusCode,
    pub reason: &'static str,
}

/// The field by which browsers say which kind of page a request comes from (Fetch Metadata Request Headers, W3C).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

const FOREIGN_HOST: AccessRefusal = forbidden(
    "use the address of the admin listener, not another host name; or send the token of its token-file, as \
     Authorization: Bearer",
);
const NO_HOST: AccessRefusal = AccessRefusal {
    status: StatusCode::BAD_REQUEST,
    reason: "one field `Host` is needed, with the address of the admin listener, such as Host: 127.0.0.1:9145",
};
const FOREIGN_PAGE: AccessRefusal = forbidden("requests of web pages are refused");
const NO_TOKEN: AccessRefusal = forbidden(
    "changes over TCP need a token: use the admin socket, as plugway reload, purge and drain do by default, or set \
     token-file in [admin] and send its content with --token-file or as Authorization: Bearer",
);
const OTHER_USER: AccessRefusal = forbidden("this socket obeys the proxy's own user and root only");
const WRONG_TOKEN: AccessRefusal = AccessRefusal {
    status: StatusCode::UNAUTHORIZED,
    reason: "the token of the proxy's token-file is needed, as Authorization: Bearer; plugway sends it with \
             --token-file",
};
const CONTENT: AccessRefusal = AccessRefusal {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    reason: "no content is taken; send parameters in the query",
};

const fn forbidden(reason: &'static str) -> AccessRefusal {
    AccessRefusal { status: StatusCode::FORBIDDEN, reason }
}

/// Rejects requests that a web page could have sent, and requests that this client may not send without the token.
pub fn check<B>(
    request: &Request<B>,
    transport: AdminTransport,
    token: Option<&AdminToken>,
) -> Result<(), AccessRefusal> {
    let fields = request.headers();
    let has_token = token.zip(shown(fields)).is_some_and(|(token, shown)| token.matches(shown));
    // A page that resolves its own name to loopback (DNS rebinding) still sends that name, and doesn't know the token.
    let is_own = |host: &str| has_token || is_own_address(host);
    let host = match one(fields, header::HOST) {
        Some(host) if is_own(host) => Some(host),
        Some(_) => return Err(FOREIGN_HOST),
        None if may_lack_host(request, transport) => None,
        None => return Err(NO_HOST),
    };
    if request.uri().authority().is_some_and(|authority| !is_own(authority.as_str())) {
        return Err(FOREIGN_HOST);
    }
    if !is_own_origin(fields, host) || !is_own_site(fields) {
        return Err(FOREIGN_PAGE);
    }
    if !has_token && !is_greeting(request) {
        check_token(request, transport, token.is_some())?;
    }
    let has_length = fields.get_all(header::CONTENT_LENGTH).iter().any(|length| length != "0");
    if has_length || fields.contains_key(header::TRANSFER_ENCODING) { Err(CONTENT) } else { Ok(()) }
}

/// Whether a request needs no `Host`: one of HTTP/1.0 from this machine, as monitors send it. No page can send such a
/// request, since browsers send HTTP/1.1 with `Host`.
fn may_lack_host<B>(request: &Request<B>, transport: AdminTransport) -> bool {
    let is_local = transport != AdminTransport::Network;
    is_local && request.version() <= Version::HTTP_10 && !request.headers().contains_key(header::HOST)
}

/// Whether a request is `OPTIONS *`, by which commands ask what a server is before they send the token.
pub fn is_greeting<B>(request: &Request<B>) -> bool {
    *request.method() == Method::OPTIONS && request.uri().path() == "*"
}

/// Checks a request that has not shown the right token.
fn check_token<B>(request: &Request<B>, transport: AdminTransport, is_token_set: bool) -> Result<(), AccessRefusal> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match transport {
        AdminTransport::Owner => Ok(()),
        AdminTransport::Loopback if reads => Ok(()),
        _ if is_token_set => Err(WRONG_TOKEN),
        AdminTransport::OtherUser => Err(OTHER_USER),
        AdminTransport::Loopback | AdminTransport::Network => Err(NO_TOKEN),
    }
}

/// Returns the token that a client sends (RFC 6750 §2.1); the scheme's name is compared without case (RFC 9110 §11.1).
fn shown(fields: &HeaderMap) -> Option<&[u8]> {
    let value = one(fields, header::AUTHORIZATION)?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' ').as_bytes())
}

/// Returns the value of a field; `None` if the field is missing or repeated.
fn one(fields: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = fields.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether an authority is `localhost` or an address, which a page's owner can't resolve elsewhere. `0.0.0.0` is not
/// accepted: some systems connect it to loopback, and browsers once sent such requests without the page's knowledge.
fn is_own_address(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_address = address.is_ok_and(|address| !address.to_canonical().is_unspecified());
    !text.contains('@') && (name.eq_ignore_ascii_case("localhost") || is_address)
}

/// Whether a request has no `Origin`, or the origin of the admin listener's own documents.
fn is_own_origin(fields: &HeaderMap, host: Option<&str>) -> bool {
    let is_own = |origin: &str| {
        origin.strip_prefix("http://").zip(host).is_some_and(|(own, host)| own.eq_ignore_ascii_case(host))
    };
    !fields.contains_key(header::ORIGIN) || one(fields, header::ORIGIN).is_some_and(is_own)
}

/// Whether a browser says that a person typed the address, or that an admin document sent the request.
fn is_own_site(fields: &HeaderMap) -> bool {
    let site = one(fields, SEC_FETCH_SITE);
    !fields.contains_key(SEC_FETCH_SITE) || matches!(site, Some("none" | "same-origin"))
}

#[cfg(test)]
mod tests;
