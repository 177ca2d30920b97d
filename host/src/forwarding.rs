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
    // Of the two, `Transfer-Encoding` is what counted when the content was read (RFC 9112 §6.3).
    if fields.contains_key(header::TRANSFER_ENCODING) {
        fields.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(fields);
}

/// Removes what concerns one connection only, and what `Connection` names (RFC 9110 §7.6.1).
fn remove_hop_by_hop(fields: &mut HeaderMap) {
    // Most messages have few of them or none: one look at the names they do have costs less than eight removals.
    let present = fields.keys().filter_map(hop_by_hop).fold(0u8, |present, place| present | 1 << place);
    if present == 0 {
        return;
    }
    for name in named_by_connection(fields) {
        fields.remove(name);
    }
    for (place, name) in HOP_BY_HOP.iter().enumerate() {
        if present & 1 << place != 0 {
            fields.remove(name);
        }
    }
}

/// The further fields that `Connection` declares to be of this hop.
fn named_by_connection(fields: &HeaderMap) -> SmallVec<[HeaderName; 2]> {
    let lines = fields.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    // What nearly every message has there names no field.
    let lines = lines.filter(|line| !line.eq_ignore_ascii_case("keep-alive") && !line.eq_ignore_ascii_case("close"));
    let names =
        lines.flat_map(|line| line.split(',')).map(str::trim).filter_map(|name| name.parse::<HeaderName>().ok());
    // `Connection` can't take away what the message can't do without.
    names.filter(|name| name != header::HOST && name != header::CONTENT_LENGTH).collect()
}

static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The place of a name in [`HOP_BY_HOP`].
fn hop_by_hop(name: &HeaderName) -> Option<u8> {
    match name.as_str() {
        "connection" => Some(0),
        "keep-alive" => Some(1),
        "proxy-authenticate" => Some(2),
        "proxy-connection" => Some(3),
        "te" => Some(4),
        "trailer" => Some(5),
        "transfer-encoding" => Some(6),
        "upgrade" => Some(7),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_place() {
        assert!(HOP_BY_HOP.iter().zip(0..).all(|(name, place)| hop_by_hop(name) == Some(place)));
        assert_eq!(hop_by_hop(&header::HOST), None);
    }

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
