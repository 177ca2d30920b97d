//! The request target: rejects ambiguous targets, and normalises the others into the one form that routes and plugins
//! match and the endpoint gets.

use std::borrow::Cow;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version};

use crate::error::{Error, FailureKind};
use crate::protocol::authority;
use crate::protocol::path::{self, PathError};

/// The way by which a request arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Whether the request came over TLS.
    pub is_secure: bool,
    /// Whether the peer is a trusted proxy, which may have ended TLS.
    pub is_trusted: bool,
}

/// The path of an accepted request, beside the normal form that the request has from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptedPath {
    /// The client has sent the normal form.
    Normal,
    /// The client has sent another spelling.
    Spelt(Uri),
    /// The path has no normal form. The request has the path of [`path::Readings::divided`], and only routes that
    /// forward paths as they are accept it.
    Doubtful(Uri, PathError),
}

/// Normalises the target of a request.
pub fn accept(request: &mut Parts, arrival: Arrival) -> Result<AcceptedPath, Error> {
    if request.method == Method::CONNECT {
        return refused("this is no forward proxy: CONNECT is not served");
    }
    let port = scheme_port(request, arrival)?;
    settle_authority(request, port)?;
    settle_path(request)
}

/// Returns the error for a path that a route doesn't accept.
pub fn rejected_path(why: PathError) -> Error {
    Error::new(FailureKind::RequestError, why.reason())
}

/// Returns the port of the scheme of a target. A request for an `https` resource is rejected unless it was secured on its
/// way (RFC 9110 §7.4). Over HTTP/2, which has a scheme in each request, gateways that end TLS pass the client's on.
fn scheme_port(request: &Parts, arrival: Arrival) -> Result<u16, Error> {
    match request.uri.scheme_str() {
        None | Some("http") => Ok(if arrival.is_secure { 443 } else { 80 }),
        Some("https") if arrival.is_secure || arrival.is_trusted || request.version == Version::HTTP_2 => Ok(443),
        Some("https") => {
            let cause = "an https URI in clear, from a peer that isn't in `trusted-proxies`";
            let error = Error::new(FailureKind::RequestError, cause);
            Err(Error { status: Some(StatusCode::MISDIRECTED_REQUEST), ..error })
        }
        Some(_) => refused("the scheme of the target is neither http nor https"),
    }
}

/// Returns the location of a request's target with `https` (RFC 9110 §4.2.2); `None` if the request names no host.
pub fn with_https(request: &Parts, target: &Uri, port: u16) -> Option<HeaderValue> {
    let host = request.headers.get(header::HOST)?;
    let host = authority::without_port(host.as_bytes());
    let host = std::str::from_utf8(&host).ok().filter(|host| !host.is_empty())?;
    let target = match target.path_and_query().map_or("/", PathAndQuery::as_str) {
        // In an absolute URI the absence of a path says that (RFC 9112 §3.2.4).
        "*" => "",
        target => target,
    };
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    HeaderValue::from_str(&format!("https://{host}{port}{target}")).ok()
}

/// Writes the target's authority into `Host`, in its normal form (RFC 9112 §3.2.2, RFC 9113 §8.3.1); all later steps
/// read `Host`.
fn settle_authority(request: &mut Parts, scheme_port: u16) -> Result<(), Error> {
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    let lacks_host = match request.version {
        Version::HTTP_10 => false,
        Version::HTTP_11 => host.is_none(),
        _ => host.is_none() && request.uri.authority().is_none(),
    };
    if second.is_some() || lacks_host {
        return refused("a request has one Host (RFC 9112 §3.2)");
    }
    let normal = |authority| authority::normal(authority, Some(scheme_port)).or_else(|why| refused(why.reason()));
    let settled = match (request.uri.authority(), host) {
        (Some(authority), host) => {
            let settled = normal(authority.as_str().as_bytes())?;
            // In HTTP/1.1 the target's authority replaces Host, whatever its value; in HTTP/2 both have to be equal.
            if let Some(host) = host.filter(|_| request.version == Version::HTTP_2)
                && normal(host.as_bytes())? != settled
            {
                return refused("Host is another than `:authority`");
            }
            settled
        }
        (None, Some(host)) => match normal(host.as_bytes())? {
            Cow::Borrowed(same) if same.len() == host.len() => return Ok(()),
            settled => settled,
        },
        (None, None) => return Ok(()),
    };
    match HeaderValue::from_bytes(&settled) {
        Ok(host) => request.headers.insert(header::HOST, host),
        Err(_) => return refused("the authority can't stand in Host"),
    };
    Ok(())
}

fn settle_path(request: &mut Parts) -> Result<AcceptedPath, Error> {
    let target = &request.uri;
    if target.path() == "*" {
        let is_fit = request.method == Method::OPTIONS;
        return if is_fit { Ok(AcceptedPath::Normal) } else { refused("`*` is a target for OPTIONS alone") };
    }
    let path_and_query = target.path_and_query().map_or("/", PathAndQuery::as_str);
    if request.method == Method::OPTIONS && request.version != Version::HTTP_2 && has_no_path(target) {
        // RFC 9112 §3.2.4: it asks the server as a whole, which another form says in HTTP/1.1 to an origin.
        request.uri = Uri::from_static("*");
        return Ok(AcceptedPath::Normal);
    }
    if path_and_query.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return refused("the target has bytes that a URI can't have");
    }
    let (path, doubt) = match path::normal(target.path()) {
        Ok(Cow::Borrowed(_)) if path_and_query.starts_with('/') => return Ok(AcceptedPath::Normal),
        Ok(path) => (path.into_owned(), None),
        Err(why) => match path::readings(target.path()) {
            Ok(readings) => (readings.divided, Some(why)),
            Err(_) => return Err(rejected_path(why)),
        },
    };
    let path_and_query = target.query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    let Ok(normal) = PathAndQuery::try_from(path_and_query) else {
        return refused("the path has bytes that a URI can't have");
    };
    let sent = std::mem::replace(&mut request.uri, Uri::from(normal));
    Ok(match doubt {
        Some(why) => AcceptedPath::Doubtful(sent, why),
        None => AcceptedPath::Spelt(sent),
    })
}

/// Whether a target in absolute form, as it was received in HTTP/1, has neither path nor query. `Uri` reads such a
/// target as `/`: only a path that was received is behind the authority in memory.
fn has_no_path(target: &Uri) -> bool {
    let (Some(authority), Some(rest)) = (target.authority(), target.path_and_query()) else { return false };
    rest.as_str() == "/" && rest.as_str().as_ptr() != authority.as_str().as_bytes().as_ptr_range().end
}

fn refused<T>(why: &'static str) -> Result<T, Error> {
    Err(Error::new(FailureKind::RequestError, why))
}
