//! The assembly of an upstream's list of endpoints: addresses, names to look up, and files with more endpoints.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::route_conditions::{is_literal, is_name};
use super::upstream_tls::EndpointPlace;
use super::{Assembly, beside};
use crate::config::diagnostic::Source;
use crate::config::load;
use crate::config::manifest::{self, EndpointTable};
use crate::config::spanned::Spanned;
use crate::system::bind_error::MAX_SOCKET_PATH_BYTES;
use crate::upstream::discovery::{DnsName, NameKind};
use crate::upstream::endpoint_set::{EndpointSpec, MAX_ENDPOINTS};
use crate::upstream::{EndpointAddr, EndpointProtocol, SocketName};

/// The endpoints of a list that were read so far.
#[derive(Default)]
pub(super) struct ListedEndpoints {
    pub list: Vec<EndpointSpec>,
    /// The addresses and names in the list, without their schemes, each in one spelling.
    known: HashSet<String>,
    pub names: Vec<DnsName>,
}

/// A list of endpoints in a manifest or a file, and their upstream.
struct List<'a> {
    source: &'a Arc<Source>,
    /// The source of the upstream's table.
    owner: &'a Arc<Source>,
    upstream: &'a manifest::UpstreamTable,
}

/// An endpoint as a list names it.
struct NamedEndpoint<'a> {
    text: &'a str,
    span: Range<usize>,
    scheme: EndpointScheme,
    /// The text without its scheme.
    rest: &'a str,
    protocol: EndpointProtocol,
    settings: EndpointSettings,
}

/// The settings of an endpoint besides its address.
struct EndpointSettings {
    weight: u32,
    tier: u32,
    zone: Arc<str>,
    draining: bool,
}

impl ListedEndpoints {
    /// Returns the number of members and names.
    pub fn count(&self) -> usize {
        self.list.len() + self.names.len()
    }

    /// Returns what each member or name speaks.
    pub fn speak(&self) -> impl Iterator<Item = &EndpointProtocol> {
        let listed = self.list.iter().map(|member| &member.address.protocol);
        listed.chain(self.names.iter().map(|name| &name.protocol))
    }
}

impl Assembly<'_> {
    /// The endpoints of an upstream.
    pub(super) fn members(&mut self, source: &Arc<Source>, upstream: &manifest::UpstreamTable) -> ListedEndpoints {
        let mut members = ListedEndpoints::default();
        for endpoint in &upstream.endpoints {
            let is_file = endpoint.get_ref().file().is_some();
            if !is_file && !self.has_room(source, endpoint.span(), members.count() + 1) {
                break;
            }
            match endpoint.get_ref().file() {
                Some(_) if !endpoint.get_ref().is_file_alone() => {
                    let message =
                        "`file` beside other keys: expected it alone; write weights and other keys in the file";
                    self.problems.at(source, endpoint.span(), message);
                }
                Some(file) => self.listed(source, file, upstream, &mut members),
                None => self.member(&List { source, owner: source, upstream }, endpoint, &mut members),
            }
        }
        members
    }

    /// The endpoints in a file.
    fn listed(
        &mut self,
        owner: &Arc<Source>,
        file: &Spanned<String>,
        upstream: &manifest::UpstreamTable,
        members: &mut ListedEndpoints,
    ) {
        let path = beside(owner, file.get_ref());
        let named_at = (owner, file.span());
        let Some((source, listed)) = load::endpoints(&path, named_at, &mut self.problems) else { return };
        if !self.has_room(owner, file.span(), members.count() + listed.endpoints.len()) {
            return;
        }
        for endpoint in &listed.endpoints {
            match endpoint.get_ref().file() {
                Some(further) => {
                    self.problems.at(
                        &source,
                        further.span(),
                        "`file` in a file of endpoints: expected addresses or names there, such as \"127.0.0.1:8000\"",
                    );
                }
                None => self.member(&List { source: &source, owner, upstream }, endpoint, members),
            }
        }
    }

    /// Whether an upstream may have `count` endpoints; an error if not.
    fn has_room(&mut self, source: &Arc<Source>, span: Range<usize>, count: usize) -> bool {
        if count > MAX_ENDPOINTS {
            let message = format!(
                "too many endpoints: {count} up to here; expected {MAX_ENDPOINTS} at most in an upstream; divide them \
                 among several upstreams, or name a load balancer in their place"
            );
            self.problems.at(source, span, message);
        }
        count <= MAX_ENDPOINTS
    }

    /// Reads an endpoint of a list, and adds it to the members.
    fn member(&mut self, list: &List<'_>, endpoint: &Spanned<manifest::EndpointEntry>, members: &mut ListedEndpoints) {
        let plain = EndpointTable::default();
        let (table, text, span) = match endpoint.get_ref() {
            manifest::EndpointEntry::Address(address) => (&plain, address.as_str(), endpoint.span()),
            manifest::EndpointEntry::Table(table) => match [&table.address, &table.dns, &table.srv] {
                [Some(text), None, None] | [None, Some(text), None] | [None, None, Some(text)] => {
                    (&**table, text.get_ref().as_str(), text.span())
                }
                _ => {
                    let message = "invalid endpoint: expected one of `address`, `dns`, `srv` and `file`, such as { address = \"127.0.0.1:8000\" }";
                    return self.problems.at(list.source, endpoint.span(), message);
                }
            },
        };
        let (scheme, rest) = scheme(text);
        let settings = self.endpoint_settings(list, table);
        // A certificate bears the name without `_service._protocol`.
        let domain = || rest.splitn(3, '.').nth(2).unwrap_or(rest);
        let certified = if table.srv.is_some() { domain() } else { host(rest) };
        let Some(protocol) = self.speaks(list, span.clone(), scheme, certified) else { return };
        let named = NamedEndpoint { text, span, scheme, rest, protocol, settings };
        let kind = match (&table.dns, &table.srv) {
            (None, None) => return self.address(list, named, members),
            (Some(_), _) => host_and_port(rest).map(|(_, port)| NameKind::Host(host(rest).into(), port)),
            (None, Some(_)) => is_service(rest).then(|| NameKind::Service(rest.into())),
        };
        self.dns_name(list, named, kind, members);
    }

    /// Reads the settings of an endpoint besides its address.
    fn endpoint_settings(&mut self, list: &List<'_>, table: &EndpointTable) -> EndpointSettings {
        if let (Some(_), Some(weight)) = (&table.srv, &table.weight) {
            self.problems.at(
                list.source,
                weight.span(),
                "`weight` beside `srv`: the records of a service have weights of their own; remove it",
            );
        }
        EndpointSettings {
            weight: self.weight(list.source, table.weight.as_ref()),
            tier: self.up_to(list.source, table.tier.as_ref(), 0, 0..=MAX_TIERS) as u32,
            zone: table.zone.as_deref().unwrap_or_default().into(),
            draining: table.draining,
        }
    }

    /// Adds an endpoint with an address.
    fn address(&mut self, list: &List<'_>, named: NamedEndpoint<'_>, members: &mut ListedEndpoints) {
        let NamedEndpoint { text, span, rest, protocol, settings, .. } = named;
        let Some(socket_name) = socket_name(rest) else { return self.no_endpoint(list, span, text) };
        if let SocketName::Unix(path) = &socket_name
            && (path.len() > MAX_SOCKET_PATH_BYTES || path.contains('\0'))
        {
            let message = format!(
                "invalid path of a unix socket: found {} bytes; expected {MAX_SOCKET_PATH_BYTES} at most, and no NUL",
                path.len()
            );
            return self.problems.at(list.source, span, message);
        }
        if !members.known.insert(identity(&socket_name, rest)) {
            return self.named_twice(list, span, text);
        }
        let address = EndpointAddr { text: text.into(), address: socket_name, protocol };
        let EndpointSettings { weight, tier, zone, draining } = settings;
        members.list.push(EndpointSpec { address, weight, tier, zone, draining });
    }

    /// Adds a name to look up; `kind` is `None` if the name is invalid.
    fn dns_name(
        &mut self,
        list: &List<'_>,
        named: NamedEndpoint<'_>,
        kind: Option<NameKind>,
        members: &mut ListedEndpoints,
    ) {
        let NamedEndpoint { text, span, scheme, rest, protocol, settings } = named;
        let Some(kind) = kind else { return self.no_endpoint(list, span, text) };
        if !members.known.insert(format!("name {}", rest.to_ascii_lowercase())) {
            return self.named_twice(list, span, text);
        }
        let (scheme, EndpointSettings { weight, tier, zone, draining }) = (scheme.text(), settings);
        members.names.push(DnsName { kind, scheme, protocol, weight, tier, zone, draining });
    }

    fn named_twice(&mut self, list: &List<'_>, span: Range<usize>, text: &str) {
        let message =
            format!("endpoint named twice: `{text}`; name it once, with a `weight` if it is to get more requests");
        self.problems.at(list.source, span, message);
    }

    fn no_endpoint(&mut self, list: &List<'_>, span: Range<usize>, text: &str) {
        let meant = meant(text).filter(|meant| meant != text);
        let meant = match meant {
            Some(meant) => format!("did you mean `{meant}`? "),
            None if text.contains("[fe80") && text.contains('%') => {
                "the zone of an address is the number of its interface, as in `[fe80::1%2]:8000`; ".into()
            }
            None => String::new(),
        };
        let message = format!(
            "invalid endpoint: `{text}`; {meant}expected `127.0.0.1:8000`, `https://app.internal:443` or `unix:/path`, or a \
             table such as {{ dns = \"app.internal:8000\" }} or {{ srv = \"_http._tcp.app.internal\" }}"
        );
        self.problems.at(list.source, span, message);
    }

    fn speaks(
        &mut self,
        list: &List<'_>,
        span: Range<usize>,
        scheme: EndpointScheme,
        name: &str,
    ) -> Option<EndpointProtocol> {
        match scheme {
            EndpointScheme::Http => Some(EndpointProtocol::Http1),
            EndpointScheme::H2c => Some(EndpointProtocol::Http2),
            EndpointScheme::Https => {
                let location = EndpointPlace { source: list.source, span };
                self.dialer(list.owner, location, name, list.upstream).map(EndpointProtocol::Tls)
            }
        }
    }

    fn weight(&mut self, source: &Arc<Source>, weight: Option<&Spanned<i64>>) -> u32 {
        let Some(weight) = weight else { return 1 };
        match u16::try_from(*weight.get_ref()) {
            Ok(given @ 1..) => given.into(),
            _ => {
                self.problems.at(
                    source,
                    weight.span(),
                    format!("`weight` out of range: {}; expected 1 to 65535", weight.get_ref()),
                );
                1
            }
        }
    }
}

/// The maximum number of tiers.
const MAX_TIERS: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq)]
enum EndpointScheme {
    Http,
    H2c,
    Https,
}

const SCHEMES: [(&str, EndpointScheme); 3] =
    [("http://", EndpointScheme::Http), ("h2c://", EndpointScheme::H2c), ("https://", EndpointScheme::Https)];

impl EndpointScheme {
    /// Returns the prefix for addresses of an endpoint that a name resolves to.
    fn text(self) -> &'static str {
        match self {
            EndpointScheme::Http => "",
            EndpointScheme::H2c => "h2c://",
            EndpointScheme::Https => "https://",
        }
    }
}

/// Returns the protocol of an endpoint, and the rest of its text.
fn scheme(text: &str) -> (EndpointScheme, &str) {
    let known = SCHEMES.iter().find_map(|(prefix, scheme)| Some((*scheme, text.strip_prefix(prefix)?)));
    known.unwrap_or((EndpointScheme::Http, text))
}

fn socket_name(text: &str) -> Option<SocketName> {
    if let Some(path) = text.strip_prefix("unix:") {
        return path.starts_with('/').then(|| SocketName::Unix(path.into()));
    }
    host_and_port(text).map(|_| SocketName::Tcp(text.into()))
}

/// Returns one spelling for all spellings of an endpoint's address. Paths have a case.
fn identity(socket_name: &SocketName, text: &str) -> String {
    match socket_name {
        SocketName::Unix(path) => format!("unix:{}", Path::new(&**path).components().collect::<PathBuf>().display()),
        SocketName::Tcp(_) => {
            text.parse::<SocketAddr>().map_or_else(|_| text.to_ascii_lowercase(), |known| known.to_string())
        }
    }
}

fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    // A zone of IPv6 is the number of an interface; a dot at the end says that the name is whole.
    let is_zoned = host.contains('%') && text.parse::<SocketAddrV6>().is_ok();
    let is_host = is_name(host.strip_suffix('.').unwrap_or(host)) || is_literal(host) || is_zoned;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    is_host.then_some((host, port))
}

/// Whether a text is the name of a service: `_service._protocol.` and a domain (RFC 2782), of labels that DNS can have.
fn is_service(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label =
        |label: &str| (2..=63).contains(&label.len()) && label.starts_with('_') && label[1..].bytes().all(is_part);
    let mut labels = name.splitn(3, '.');
    let are_named = labels.next().is_some_and(is_label) && labels.next().is_some_and(is_label);
    let is_domain = |domain: &str| is_name(domain) && domain.parse::<Ipv4Addr>().is_err();
    are_named && labels.next().is_some_and(is_domain) && name.len() <= MAX_NAME_BYTES
}

/// The maximum length of a domain name (RFC 1035 §2.3.4), as text without the dot at its end.
const MAX_NAME_BYTES: usize = 253;

/// Returns the address that is probably meant by an address with a path, or without a port.
fn meant(text: &str) -> Option<String> {
    let (scheme, rest) = scheme(text);
    let address = rest.split(['/', '?']).next().filter(|_| !rest.starts_with("unix:"))?;
    let port = if scheme == EndpointScheme::Https { 443 } else { 80 };
    let with_port = format!("{address}:{port}");
    let address = [address.to_string(), with_port].into_iter().find(|address| host_and_port(address).is_some())?;
    let shown = if scheme == EndpointScheme::Http { "" } else { scheme.text() };
    Some(format!("{shown}{address}"))
}

/// The host of an endpoint's address, without brackets.
fn host(text: &str) -> &str {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_endpoint_are_equal() {
        let of = |text: &str| identity(&socket_name(text).unwrap(), text);
        assert_eq!(of("[::1]:80"), of("[0:0::1]:80"));
        assert_eq!(of("App.internal:80"), of("app.internal:80"));
        assert_eq!(of("unix:/run/a.sock"), of("unix:/run/.//a.sock"));
        assert_ne!(of("unix:/run/a.sock"), of("unix:/run/A.sock"));
    }

    #[test]
    fn endpoints_have_a_port_or_a_path() {
        for good in ["127.0.0.1:80", "[::1]:80", "[fe80::1%2]:80", "app.internal:8000", "unix:/run/app.sock"] {
            assert!(socket_name(good).is_some(), "{good}");
        }
        for bad in [
            "[fe80::1%eth0]:80",
            "[%]:80",
            "[::1%]:80",
            "127.0.0.1",
            "::1:80",
            ":80",
            "a:0",
            "a:99999",
            "ftp://a:80",
            "unix:relative",
        ] {
            assert!(socket_name(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_scheme_says_what_is_spoken() {
        assert_eq!(scheme("https://a:443"), (EndpointScheme::Https, "a:443"));
        assert_eq!(scheme("h2c://unix:/run/a"), (EndpointScheme::H2c, "unix:/run/a"));
        assert_eq!(scheme("a:80"), (EndpointScheme::Http, "a:80"));
        assert_eq!((host("[::1]:443"), host("a.b:1")), ("::1", "a.b"));
    }

    #[test]
    fn names_of_services_are_such_as_dns_can_have() {
        let label = "a".repeat(63);
        let longest = format!("_http._tcp.{}", [&*label; 3].join(".") + "." + &"b".repeat(50));
        for good in ["_http._tcp.a", "_http._tcp.a.b.", "_my-app_2._tcp.service.consul", &longest] {
            assert!(is_service(good), "{good}");
        }
        let (long, too_long) = (format!("_http._tcp.{label}a"), format!("{longest}b"));
        for bad in [
            "a.b",
            "_http._tcp.a:80",
            "_http._tcp",
            "_http._tcp.",
            "_http._tcp..a",
            "_http._tcp.a..",
            "_http.tcp.a",
            "_._tcp.a",
            "_http._tcp.b\u{fc}cher",
            "_http._tcp.127.0.0.1",
            "_http._tcp.a b",
            &long,
            &too_long,
        ] {
            assert!(!is_service(bad), "{bad}");
        }
    }
}
