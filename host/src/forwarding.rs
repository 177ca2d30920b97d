//! What HTTP demands of every intermediary, whatever the manifest says: fields of one hop go no further, and `Via`
//! tells that a proxy stood here.

use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// Makes a request, received in a version of HTTP, fit to be sent on (RFC 9110 §7.6).
pub fn request(version: Version, fields: &mut HeaderMap) {
    remove_hop_by_hop(fields);
    // This proxy answers 100 by itself, when the body is first asked for (RFC 9110 §10.1.1).
    fields.remove(header::EXPECT);
    fields.append(header::VIA, HeaderValue::from_static(via(version)));
}

fn via(received: Version) -> &'static str {
    match received {
        Version::HTTP_10 => "1.0 plugway",
        Version::HTTP_2 => "2 plugway",
        _ => "1.1 plugway",
    }
}

/// Makes a received response fit to be sent on.
pub fn response(fields: &mut HeaderMap) {
    remove_hop_by_hop(fields);
}

/// Removes what concerns one connection only, and what `Connection` names (RFC 9110 §7.6.1).
fn remove_hop_by_hop(fields: &mut HeaderMap) {
    let present: SmallVec<[HeaderName; 4]> = fields.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    if present.is_empty() {
        return;
    }
    let lines = fields.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    let named = lines.flat_map(|line| line.split(',')).map(str::trim);
    // What nearly every message has there names no further field.
    let named = named.filter(|name| !["keep-alive", "close"].iter().any(|option| name.eq_ignore_ascii_case(option)));
    let named = named.filter_map(|name| name.parse::<HeaderName>().ok());
    // `Connection` can't take away what the message can't do without.
    let named = named.filter(|name| name != header::HOST && name != header::CONTENT_LENGTH);
    for name in named.collect::<SmallVec<[HeaderName; 4]>>().iter().chain(&present) {
        fields.remove(name);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_one_hop_and_those_that_connection_names_go_no_further() {
        let mut fields = HeaderMap::new();
        for (name, value) in [("connection", "close, X-Mine"), ("x-mine", "1"), ("te", "trailers"), ("x-kept", "1")] {
            fields.append(name, HeaderValue::from_static(value));
        }
        request(Version::HTTP_11, &mut fields);
        let left: Vec<&str> = fields.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-kept", "via"]);
    }
}
