//! Describes the client to the upstream, also behind other proxies. The host has already decided, by the listener's
//! `trusted-proxies`, which client address and which received fields are trusted; it has removed the other fields.

use plugway_sdk::token::is_token;
use plugway_sdk::{EditPlan, Input, Part, Setup, ValueName, Values, Verdict};

use crate::config::{Forwarded, ForwardedFields};

/// The fields to send, and the values that they contain.
pub struct Forwarding {
    fields: ForwardedFields,
    client: Input,
    /// The received chain of addresses, with the address of the connecting client or proxy at the end.
    chain: Input,
    listener: Input,
    scheme: Input,
    authority: Input,
    received: Received,
}

/// The fields in which trusted proxies have described the client.
struct Received {
    proto: Input,
    host: Input,
    forwarded: Input,
}

impl Forwarding {
    /// Declares the values that the fields need.
    pub fn new(config: &Forwarded, setup: &mut Setup) -> Self {
        // From plans alone the host knows which fields are set, and `check` warns of plugins that read others.
        let empty = || vec![Part::Text(Vec::new())];
        setup.plan(names(config.fields).fold(EditPlan::default(), |plan, name| plan.set_field(name, empty())));
        let needs = &mut setup.request;
        Forwarding {
            fields: config.fields,
            client: needs.value(ValueName::ClientAddress),
            chain: needs.value(ValueName::ForwardedFor),
            listener: needs.value(ValueName::ListenerAddress),
            scheme: needs.value(ValueName::Scheme),
            authority: needs.value(ValueName::Authority),
            received: Received {
                proto: needs.field("x-forwarded-proto"),
                host: needs.field("x-forwarded-host"),
                forwarded: needs.field("forwarded"),
            },
        }
    }

    /// Returns the edits for a request. The client's address is also set as the note `client`.
    pub fn apply(&self, request: &Values) -> Verdict {
        let client = request.text(self.client);
        let mut verdict = Verdict::proceed();
        if let Some(client) = client {
            verdict = verdict.set_note("client", client);
        }
        let fields = self.fields;
        if fields != ForwardedFields::Rfc7239 {
            let set = |verdict: Verdict, name: &str, value: Option<&str>| match value {
                Some(value) => verdict.set_field(name, value),
                None => verdict.remove_field(name),
            };
            let (host, proto) = self.told(request);
            verdict = set(verdict, "x-forwarded-for", request.text(self.chain));
            verdict = set(verdict, "x-forwarded-proto", proto.as_deref().or(request.text(self.scheme)));
            verdict = set(verdict, "x-forwarded-host", host.as_deref().or(request.text(self.authority)));
            verdict = set(verdict, "x-real-ip", client);
        }
        if fields != ForwardedFields::XForwarded {
            verdict = verdict.set_field("forwarded", self.forwarded(request));
        }
        verdict
    }

    /// Returns the host and the scheme that the client used, if trusted proxies have sent them.
    fn told(&self, request: &Values) -> (Option<String>, Option<String>) {
        let forwarded = request.text(self.received.forwarded);
        let told = |need, name| {
            let said = request.text(need).map(String::from);
            said.or_else(|| forwarded.and_then(|forwarded| first_parameter(forwarded, name)))
        };
        (told(self.received.host, "host"), told(self.received.proto, "proto"))
    }

    /// Returns the elements of RFC 7239 §4: the received ones, or elements from the chain of addresses, and the last
    /// hop's.
    fn forwarded(&self, request: &Values) -> String {
        let own = [request.text(self.authority), request.text(self.scheme)];
        let chain = request.text(self.chain).unwrap_or_default();
        let mut hops: Vec<&str> = chain.split(',').map(str::trim).filter(|hop| !hop.is_empty()).collect();
        let is_local = request.text(self.listener).is_some_and(|listener| listener.starts_with("unix:"));
        // A client or proxy at a unix socket has no address and is on this machine, so an element for it has no
        // information.
        let peer = if is_local { None } else { hops.pop() };
        let peer = peer.map(|peer| element(peer, own));
        if let Some(received) = request.text(self.received.forwarded) {
            return [Some(received), peer.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(", ");
        }
        let (host, proto) = self.told(request);
        let mut told = [host.as_deref(), proto.as_deref()];
        let mut elements: Vec<String> =
            hops.into_iter().map(|hop| element(hop, std::mem::take(&mut told))).chain(peer).collect();
        if elements.is_empty() {
            elements.push(element("unknown", own));
        }
        elements.join(", ")
    }
}

/// Returns the names of the fields that are set.
fn names(fields: ForwardedFields) -> impl Iterator<Item = &'static str> {
    let [x_forwarded, rfc7239] = [ForwardedFields::Rfc7239, ForwardedFields::XForwarded].map(|others| fields != others);
    let names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"].into_iter();
    names.filter(move |_| x_forwarded).chain(rfc7239.then_some("forwarded"))
}

/// Returns the element of one hop (RFC 7239 §4), with a host and a scheme.
fn element(hop: &str, [host, proto]: [Option<&str>; 2]) -> String {
    let mut element = format!("for={}", node(hop));
    for (parameter, value) in [("host", host), ("proto", proto)] {
        let Some(value) = value else { continue };
        element += &format!(";{parameter}={}", quoted(value));
    }
    element
}

/// Returns a hop in the form of RFC 7239 §6: an IPv6 address in brackets, and quoted if the hop is not a token.
fn node(hop: &str) -> String {
    match hop.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("\"[{address}]\""),
        Err(_) => quoted(hop),
    }
}

fn quoted(value: &str) -> String {
    if is_token(value) { value.into() } else { format!("\"{}\"", value.replace(['"', '\\'], "")) }
}

/// Returns a parameter of the first element of a list (RFC 7239 §4); `None` if there is none.
fn first_parameter(forwarded: &str, wanted: &str) -> Option<String> {
    let (mut name, mut value) = (String::new(), None::<String>);
    let (mut is_quoted, mut letters) = (false, forwarded.chars());
    let mut found = None;
    loop {
        let letter = letters.next();
        match (letter, is_quoted) {
            (Some('\\'), true) => value.as_mut()?.push(letters.next()?),
            (Some('"'), _) => is_quoted = !is_quoted,
            (None | Some(',' | ';'), false) => {
                if name.trim().eq_ignore_ascii_case(wanted) {
                    found = value.take().map(|value| value.trim().to_string());
                }
                (name, value) = (String::new(), None);
                if letter != Some(';') {
                    return found.filter(|found| !found.is_empty());
                }
            }
            (None, true) => return None,
            (Some('='), false) if value.is_none() => value = Some(String::new()),
            (Some(letter), _) => value.as_mut().unwrap_or(&mut name).push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_first_element_are_read() {
        let cases = [
            ("for=a;proto=https", "proto", Some("https")),
            ("for=a; Host=\"a.example:80\";proto=https, host=b", "host", Some("a.example:80")),
            ("for=\"a;host=evil,\\\"\";host=b", "host", Some("b")),
            ("for=a, host=b", "host", None),
            ("host", "host", None),
            ("host=\"b", "host", None),
            ("host=", "host", None),
        ];
        for (forwarded, name, wanted) in cases {
            assert_eq!(first_parameter(forwarded, name).as_deref(), wanted, "{forwarded}");
        }
    }
}
