//! Unit tests of the access rules: hosts, pages of browsers, sockets and tokens.

use super::*;

const TOKEN: &str = "0123456789abcdef";

fn outcome(method: &str, fields: &[(&str, &str)], transport: AdminTransport, token: Option<&AdminToken>) -> u16 {
    let mut request = Request::builder().method(method).uri("/purge?all");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    check(&request.body(()).unwrap(), transport, token).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
}

#[test]
fn hosts_are_addresses_or_localhost() {
    let good = ["127.0.0.1", "127.0.0.1:9145", "[::1]", "[::1]:9145", "localhost", "LocalHost:1", "192.168.0.7:9145"];
    let bad = [
        "attacker.example",
        "localhost.attacker.example",
        "127.0.0.1.attacker.example:9145",
        "x@127.0.0.1",
        "localhost@attacker.example",
        "0.0.0.0:9145",
        "[::]:9145",
        "[::ffff:0.0.0.0]",
        "::1",
        "",
        "127.0.0.1, attacker.example",
        "127.0.0.1/",
    ];
    good.iter()
        .for_each(|host| assert_eq!(outcome("GET", &[("host", host)], AdminTransport::Loopback, None), 200, "{host}"));
    bad.iter()
        .for_each(|host| assert_eq!(outcome("GET", &[("host", host)], AdminTransport::Loopback, None), 403, "{host}"));
    let two = [("host", "127.0.0.1"), ("host", "attacker.example")];
    assert_eq!(outcome("GET", &two, AdminTransport::Owner, None), 400);
    assert_eq!(outcome("GET", &[], AdminTransport::Owner, None), 400);
}

#[test]
fn a_monitor_of_this_machine_may_leave_out_the_host() {
    let ask = |method: &str, version, fields: &[(&str, &str)], transport| {
        let mut request = Request::builder().method(method).uri("/status").version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap(), transport, None)
    };
    for local in [AdminTransport::Owner, AdminTransport::Loopback] {
        assert_eq!(ask("GET", Version::HTTP_10, &[], local), Ok(()), "{local:?}");
        assert_eq!(ask("GET", Version::HTTP_11, &[], local), Err(NO_HOST), "{local:?}");
        let two = [("host", "127.0.0.1"), ("host", "127.0.0.1")];
        assert_eq!(ask("GET", Version::HTTP_10, &two, local), Err(NO_HOST), "{local:?}");
        assert_eq!(ask("GET", Version::HTTP_10, &[("host", "attacker.example")], local), Err(FOREIGN_HOST));
        for page in [("origin", "http://"), ("origin", "http://attacker.example"), ("sec-fetch-site", "same-site")] {
            assert_eq!(ask("GET", Version::HTTP_10, &[page], local), Err(FOREIGN_PAGE), "{page:?}");
        }
    }
    assert_eq!(ask("GET", Version::HTTP_10, &[], AdminTransport::OtherUser), Err(OTHER_USER));
    assert_eq!(ask("GET", Version::HTTP_10, &[], AdminTransport::Network), Err(NO_HOST));
    assert_eq!(ask("POST", Version::HTTP_10, &[], AdminTransport::Loopback), Err(NO_TOKEN));
}

#[test]
fn the_token_makes_any_host_acceptable() {
    let token = AdminToken::new(TOKEN.as_bytes());
    let ask = |transport, host, authorization: &str, token| {
        outcome("GET", &[("host", host), ("authorization", authorization)], transport, token)
    };
    let right = format!("Bearer {TOKEN}");
    for transport in [AdminTransport::Loopback, AdminTransport::Network] {
        assert_eq!(ask(transport, "plugway:9145", &right, Some(&token)), 200, "{transport:?}");
        assert_eq!(ask(transport, "plugway:9145", "Bearer 0123456789abcdeF", Some(&token)), 403, "{transport:?}");
        assert_eq!(ask(transport, "plugway:9145", &right, None), 403, "{transport:?}");
    }
    let page = [("host", "plugway:9145"), ("authorization", &*right), ("origin", "http://attacker.example")];
    assert_eq!(outcome("GET", &page, AdminTransport::Network, Some(&token)), 403);
    assert_eq!(outcome("GET", &[page[1]], AdminTransport::Network, Some(&token)), 400, "one Host is needed");
}

#[test]
fn a_greeting_needs_no_token_but_an_own_host() {
    let ask = |method: &str, uri: &str, host: &str| {
        let request = Request::builder().method(method).uri(uri).header("host", host).body(()).unwrap();
        check(&request, AdminTransport::Network, None).is_ok()
    };
    assert!(ask("OPTIONS", "*", "10.0.0.1:9145"));
    assert!(!ask("OPTIONS", "*", "attacker.example") && !ask("OPTIONS", "/reload", "10.0.0.1:9145"));
    assert!(!ask("GET", "*", "10.0.0.1:9145"));
}

#[test]
fn an_absolute_target_is_held_to_the_same_rule() {
    let request = |uri: &str| Request::get(uri).header("host", "127.0.0.1").body(()).unwrap();
    assert_eq!(check(&request("http://127.0.0.1/status"), AdminTransport::Owner, None), Ok(()));
    assert_eq!(check(&request("http://attacker.example/status"), AdminTransport::Owner, None), Err(FOREIGN_HOST));
}

#[test]
fn requests_of_pages_are_rejected_on_every_transport() {
    let refused: [&[(&str, &str)]; 10] = [
        &[("origin", "http://attacker.example")],
        &[("origin", "null")],
        &[("origin", "")],
        &[("origin", "https://127.0.0.1:9145")],
        &[("origin", "http://127.0.0.1:3000")],
        &[("origin", "http://127.0.0.1:9145"), ("origin", "http://attacker.example")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "None")],
        &[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
    ];
    let taken: [&[(&str, &str)]; 4] = [
        &[],
        &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")],
        &[("sec-fetch-site", "same-origin")],
        &[("origin", "http://127.0.0.1:9145")],
    ];
    let token = AdminToken::new(TOKEN.as_bytes());
    let bearer = format!("Bearer {TOKEN}");
    let own = [("host", "127.0.0.1:9145"), ("authorization", &*bearer)];
    for transport in
        [AdminTransport::Owner, AdminTransport::OtherUser, AdminTransport::Loopback, AdminTransport::Network]
    {
        for method in ["GET", "POST", "OPTIONS"] {
            for (fields, status) in refused.iter().map(|row| (row, 403)).chain(taken.iter().map(|row| (row, 200))) {
                let fields = [&own, *fields].concat();
                assert_eq!(
                    outcome(method, &fields, transport, Some(&token)),
                    status,
                    "{transport:?} {method} {fields:?}"
                );
            }
        }
    }
}

#[test]
fn a_token_is_needed_by_transport_and_method() {
    use AdminTransport::{Loopback, Network, OtherUser, Owner};
    let token = AdminToken::new(TOKEN.as_bytes());
    // The transport, whether a token is configured, then statuses of GET and POST without a token, and with it.
    let rows = [
        (Owner, false, [200, 200], [200, 200]),
        (Owner, true, [200, 200], [200, 200]),
        (OtherUser, false, [403, 403], [403, 403]),
        (OtherUser, true, [401, 401], [200, 200]),
        (Loopback, false, [200, 403], [200, 403]),
        (Loopback, true, [200, 401], [200, 200]),
        (Network, false, [403, 403], [403, 403]),
        (Network, true, [401, 401], [200, 200]),
    ];
    for (transport, has_token, without, with) in rows {
        let known = has_token.then_some(&token);
        let ask = |method, authorization: &str| {
            let fields = [("host", "127.0.0.1"), ("authorization", authorization)];
            outcome(method, &fields[..if authorization.is_empty() { 1 } else { 2 }], transport, known)
        };
        assert_eq!(["GET", "POST"].map(|method| ask(method, "")), without, "{transport:?} {has_token}");
        for spelled in [format!("Bearer {TOKEN}"), format!("bearer  {TOKEN} ")] {
            assert_eq!(["GET", "POST"].map(|method| ask(method, &spelled)), with, "{transport:?} {spelled}");
        }
        for wrong in ["Bearer 0123456789abcdeF", "Bearer 0123456789abcde", "Bearer ", "Basic 0123456789abcdef", TOKEN] {
            assert_eq!(["GET", "POST"].map(|method| ask(method, wrong)), without, "{transport:?} {wrong}");
        }
    }
}

#[test]
fn content_is_refused() {
    let with = |name, value| outcome("POST", &[("host", "localhost"), (name, value)], AdminTransport::Owner, None);
    assert_eq!((with("content-length", "0"), with("content-length", "1")), (200, 413));
    assert_eq!(with("transfer-encoding", "chunked"), 413);
}
