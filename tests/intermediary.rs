//! What RFC 9110 and RFC 9113 demand of an intermediary, as endpoints and clients see it.

use crate::support::{Proxy, manifest, origin};

#[test]
fn fields_that_connection_names_beside_bytes_beyond_ascii_stay_on_their_hop() {
    let origin = origin(|request| {
        let has_hop = request.field("x-hop").is_some();
        format!(
            "HTTP/1.1 200 OK\r\nConnection: X-Back, \u{e9}\r\nX-Back: 1\r\nX-Got: {has_hop}\r\nContent-Length: 0\r\n\r\n"
        )
        .into_bytes()
    });
    let proxy = Proxy::start(&manifest(&origin, "", ""));
    let answer = proxy.get("/", "\r\nConnection: \u{e9}, X-Hop\r\nX-Hop: 1");
    assert_eq!((answer.field("x-got"), answer.field("x-back")), (Some("false"), None));
}
