//! What HTTP demands of every intermediary, whatever the manifest says: fields of one hop go no further, and `Via`
//! tells that a proxy stood here.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const VIA: HeaderValue = HeaderValue::from_static("1.1 plugway");

/// Makes a received request fit to be sent on (RFC 9110 §7.6).
pub fn request(fields: &mut HeaderMap) {
    remove_hop_by_hop(fields);
    // This proxy answers 100 by itself, when the body is first asked for (RFC 9110 §10.1.1).
    fields.remove(header::EXPECT);
    fields.append(header::VIA, VIA);
}

/// Makes a received response fit to be sent on.
pub fn response(fields: &mut HeaderMap) {
    remove_hop_by_hop(fields);
}

/// Removes what concerns one connection only, and what `Connection` names (RFC 9110 §7.6.1).
fn remove_hop_by_hop(fields: &mut HeaderMap) {
    if !fields.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    let lines = fields.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    let named = lines.flat_map(|line| line.split(',')).filter_map(|name| name.trim().parse::<HeaderName>().ok());
    // `Connection` can't take away what the message can't do without.
    let named: Vec<HeaderName> = named.filter(|name| ![header::HOST, header::CONTENT_LENGTH].contains(name)).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        fields.remove(name);
    }
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
        request(&mut fields);
        let left: Vec<&str> = fields.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-kept", "via"]);
    }
}
