//! Unit tests of client addresses: chains of proxies, schemes, and fields that origins confuse.

use super::*;

fn rules(source: AddressSource, trusted: &[&str]) -> ClientAddressRules {
    let mut peers = TrustedPeers::default();
    assert!(trusted.iter().all(|text| peers.add(text)));
    ClientAddressRules { trusted: peers, source, aliases: AliasPolicy::Remove }
}

fn fields(lines: &[(&str, &str)]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        fields.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    fields
}

/// Returns the client that lines of a field name behind the trusted peer 10.0.0.1, and the remaining lines.
fn search(source: &AddressSource, lines: &[&str]) -> (String, String) {
    let name = source.name();
    let lines: Vec<(&str, &str)> = lines.iter().map(|line| (name.as_str(), *line)).collect();
    let mut fields = fields(&lines);
    let peer: IpAddr = "10.0.0.1".parse().unwrap();
    let rules = rules(source.clone(), &["10.0.0.0/8", "2001:db8:a::/48", "unix:"]);
    let settled = settle(&mut fields, Some(peer), true, &rules, |_, _| {});
    let client = settled.client.map_or("10.0.0.1".into(), |client| match client.port {
        Some(_) => client.socket.to_string(),
        None => client.socket.ip().to_string(),
    });
    let left = fields.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned());
    (client, left.collect::<Vec<_>>().join(" | "))
}

#[test]
fn the_chain_is_read_from_the_right_over_trusted_addresses() {
    let cases: [(&[&str], &str, &str); 28] = [
        (&[], "10.0.0.1", ""),
        (&["203.0.113.9"], "203.0.113.9", "203.0.113.9"),
        (&["6.6.6.6, 203.0.113.9"], "203.0.113.9", "203.0.113.9"),
        (&["6.6.6.6,203.0.113.9 , 10.0.0.7"], "203.0.113.9", "203.0.113.9, 10.0.0.7"),
        (&["6.6.6.6", "203.0.113.9", "10.0.0.7"], "203.0.113.9", "203.0.113.9, 10.0.0.7"),
        (&["10.0.0.9, 10.0.0.7"], "10.0.0.9", "10.0.0.9, 10.0.0.7"),
        (&["6.6.6.6, 203.0.113.9:51234"], "203.0.113.9:51234", "203.0.113.9:51234"),
        (&["[2001:db8::9]:51234"], "[2001:db8::9]:51234", "[2001:db8::9]:51234"),
        (&["6.6.6.6, [2001:db8::9]"], "2001:db8::9", "[2001:db8::9]"),
        (&["6.6.6.6, 2001:DB8::9, 2001:db8:a::1"], "2001:db8::9", "2001:DB8::9, 2001:db8:a::1"),
        (&["::ffff:203.0.113.9, ::ffff:10.0.0.7"], "203.0.113.9", "::ffff:203.0.113.9, ::ffff:10.0.0.7"),
        (&["6.6.6.6, unknown"], "10.0.0.1", "unknown"),
        (&["6.6.6.6, unknown, 10.0.0.7"], "10.0.0.7", "unknown, 10.0.0.7"),
        (&["6.6.6.6, _hidden, 10.0.0.7:80"], "10.0.0.7:80", "_hidden, 10.0.0.7:80"),
        (&["203.0.113.9, unix:"], "203.0.113.9", "203.0.113.9, unix:"),
        (&["6.6.6.6, 203.0.113.9,"], "203.0.113.9", "203.0.113.9"),
        (&[", ,203.0.113.9,,"], "203.0.113.9", ", ,203.0.113.9,,"),
        (&[""], "10.0.0.1", ""),
        (&[" , ", ","], "10.0.0.1", ""),
        (&["6.6.6.6, 010.0.0.1"], "10.0.0.1", "010.0.0.1"),
        (&["6.6.6.6, 10.1"], "10.0.0.1", "10.1"),
        (&["6.6.6.6, 203.0.113.9:"], "10.0.0.1", "203.0.113.9:"),
        (&["6.6.6.6, 203.0.113.9:65536"], "10.0.0.1", "203.0.113.9:65536"),
        (&["6.6.6.6, 203.0.113.9:+80"], "10.0.0.1", "203.0.113.9:+80"),
        (&["6.6.6.6, [203.0.113.9]"], "10.0.0.1", "[203.0.113.9]"),
        (&["6.6.6.6, fe80::1%eth0"], "10.0.0.1", "fe80::1%eth0"),
        (&["6.6.6.6, \u{e9}"], "10.0.0.1", "\u{e9}"),
        (&["6.6.6.6, 203.0.113.9 10.0.0.7"], "10.0.0.1", "203.0.113.9 10.0.0.7"),
    ];
    for (lines, client, left) in cases {
        assert_eq!(search(&AddressSource::XForwardedFor, lines), (client.into(), left.into()), "{lines:?}");
    }
}

#[test]
fn rfc_7239_is_understood_exactly() {
    let cases: [(&[&str], &str, &str); 31] = [
        (&["for=203.0.113.9"], "203.0.113.9", "for=203.0.113.9"),
        (&["For=\"203.0.113.9\";proto=http"], "203.0.113.9", "For=\"203.0.113.9\";proto=http"),
        (&["for=6.6.6.6, for=203.0.113.9, for=10.0.0.7"], "203.0.113.9", "for=203.0.113.9, for=10.0.0.7"),
        (&["for=6.6.6.6", "for=203.0.113.9;by=\"a,b\""], "203.0.113.9", "for=203.0.113.9;by=\"a,b\""),
        (&["for=\"203.0.113.9:4711\""], "203.0.113.9:4711", "for=\"203.0.113.9:4711\""),
        (&["for=\"[2001:db8::9]\""], "2001:db8::9", "for=\"[2001:db8::9]\""),
        (&["for=\"[2001:db8::9]:4711\""], "[2001:db8::9]:4711", "for=\"[2001:db8::9]:4711\""),
        (&["for=\"203.0.113.9:_port\""], "203.0.113.9", "for=\"203.0.113.9:_port\""),
        (&["for=[2001:db8::9]:4711"], "[2001:db8::9]:4711", "for=[2001:db8::9]:4711"),
        (&["host=a;FOR=203.0.113.9; by=_b"], "203.0.113.9", "host=a;FOR=203.0.113.9; by=_b"),
        (&["for=\"2\\03.0.113.9\""], "203.0.113.9", "for=\"2\\03.0.113.9\""),
        (&["by=\"a\\\", for=6.6.6.6\";for=203.0.113.9"], "203.0.113.9", "by=\"a\\\", for=6.6.6.6\";for=203.0.113.9"),
        (&["for=6.6.6.6, by=\"a\\\\\", for=203.0.113.9"], "203.0.113.9", "for=203.0.113.9"),
        // An element without address ends the search.
        (&["for=6.6.6.6, for=unknown"], "10.0.0.1", "for=unknown"),
        (&["for=6.6.6.6, for=_obfuscated, for=10.0.0.7"], "10.0.0.7", "for=_obfuscated, for=10.0.0.7"),
        (&["for=6.6.6.6, proto=https"], "10.0.0.1", "proto=https"),
        (&["for=6.6.6.6, for=\"2001:db8::9\""], "10.0.0.1", "for=\"2001:db8::9\""),
        (&["for=6.6.6.6, for=2001:db8::9"], "10.0.0.1", "for=2001:db8::9"),
        (&["for=6.6.6.6, for=203.0.113.9;for=10.0.0.7"], "10.0.0.1", "for=203.0.113.9;for=10.0.0.7"),
        (&["for=6.6.6.6, for"], "10.0.0.1", "for"),
        (&["for=6.6.6.6, for="], "10.0.0.1", "for="),
        (&["for=6.6.6.6, for=\"\""], "10.0.0.1", "for=\"\""),
        (&["for=6.6.6.6, for =203.0.113.9"], "10.0.0.1", "for =203.0.113.9"),
        (&["for=6.6.6.6, for=203.0.113.9 x"], "10.0.0.1", "for=203.0.113.9 x"),
        (&["for=6.6.6.6, for=\"203.0.113.9:123456\""], "10.0.0.1", "for=\"203.0.113.9:123456\""),
        (&["for=6.6.6.6, for=\"203.0.113.9:_\""], "10.0.0.1", "for=\"203.0.113.9:_\""),
        (&["for=6.6.6.6, 203.0.113.9"], "10.0.0.1", "203.0.113.9"),
        // An unclosed quote hides no element right of it.
        (&["for=6.6.6.6;x=\", for=203.0.113.9"], "203.0.113.9", "for=203.0.113.9"),
        (&["for=6.6.6.6;x=\", for=\"[2001:db8::9]:1\""], "[2001:db8::9]:1", "for=\"[2001:db8::9]:1\""),
        (&["for=6.6.6.6;x=\"\\, for=203.0.113.9;host=\"a:80\""], "203.0.113.9", "for=203.0.113.9;host=\"a:80\""),
        (&["for=\"6.6.6.6", "for=203.0.113.9"], "203.0.113.9", "for=203.0.113.9"),
    ];
    for (lines, client, left) in cases {
        assert_eq!(search(&AddressSource::Forwarded, lines), (client.into(), left.into()), "{lines:?}");
    }
}

#[test]
fn other_words_are_believed_as_far_as_they_agree() {
    let said = [
        ("x-forwarded-for", "6.6.6.6, 203.0.113.9"),
        ("forwarded", "for=6.6.6.6;host=evil.example"),
        ("x-real-ip", "6.6.6.6"),
        ("true-client-ip", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
    ];
    let peer = "10.0.0.1".parse().ok();
    let left = |rules: &ClientAddressRules, is_trusted| {
        let mut fields = fields(&said);
        let settled = settle(&mut fields, peer, is_trusted, rules, |_, _| {});
        let left = fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        (settled.client.map(|client| client.address), left.collect::<Vec<_>>())
    };
    let by_default = rules(AddressSource::XForwardedFor, &["10.0.0.0/8"]);
    let (client, believed) = left(&by_default, true);
    assert_eq!(client.unwrap(), "203.0.113.9");
    assert_eq!(believed, ["x-forwarded-for: 203.0.113.9", "x-forwarded-proto: https", "true-client-ip: 203.0.113.9"]);
    let by_forwarded = rules(AddressSource::Forwarded, &["10.0.0.0/8"]);
    let (client, believed) = left(&by_forwarded, true);
    assert_eq!(client.unwrap(), "6.6.6.6");
    assert_eq!(believed.len(), 3, "{believed:?}");
    let field = AddressSource::Field(HeaderName::from_static("true-client-ip"));
    assert_eq!(left(&rules(field, &["10.0.0.0/8"]), true).0.unwrap(), "203.0.113.9");
    assert_eq!(left(&by_default, false), (None, Vec::new()));
    let absent = AddressSource::Field(HeaderName::from_static("x-edge-client"));
    assert_eq!(left(&rules(absent, &["10.0.0.0/8"]), true), (None, vec!["x-forwarded-proto: https".to_string()]));
}

/// Names of fields that say how a request came.
const TELLING: [&str; 44] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-port",
    "x-forwarded-client-cert",
    "x_forwarded_for",
    "x.real-ip",
    "x-real-ip",
    "cf-connecting-ip",
    "x-scheme",
    "client-cert",
    "x-ssl-client-s-dn",
    "ssl_client_verify",
    // Names of vendors, known by their words.
    "x-forward-for",
    "x-vercel-forwarded-for",
    "x-original-forwarded-for",
    "x-real-client-ip",
    "x-original-client-ip",
    "x-coming-from",
    "x-source-ip",
    "x-user-ip",
    "ali-cdn-real-ip",
    "cdn-src-ip",
    "x-cdn-src-ip",
    "akamai-client-ip",
    "x-gateway-ip",
    "remote-addr",
    "remote_addr",
    "cloudfront-viewer-address",
    "x-azure-clientip",
    "x-envoy-external-address",
    "cf-ipcountry",
    "x-client-verify",
    "x-client-dn",
    "x-client-cert",
    "x-client-s-dn",
    "x-rewrite-uri",
    "x-original-method",
    "x-real-scheme",
    "x-waws-unencoded-url",
    "x-host-override",
    "x-http-host-override",
    "x-backend-host",
    "x-script-name",
    "x-protocol",
];

/// Names of fields that say nothing of how a request came, though some are similar.
const OTHERS: [&str; 23] = [
    "host",
    "x-request-id",
    "cookie",
    "x-user",
    "via",
    "from",
    "forward",
    "cf-ray",
    "x-real-ips",
    "sec-fetch-site",
    "cookie2",
    "x-forgot",
    "x-http-method-override",
    "x-printer-ip",
    "shipping-address",
    "x-user-address",
    "x-origin-address",
    "x-client-id",
    "x-client-version",
    "x-client-fingerprint",
    "x-api-url",
    "origin",
    "ip",
];

#[test]
fn fields_about_the_way_are_known_by_their_names() {
    let missed: Vec<&str> = TELLING.into_iter().filter(|name| !tells_way(name)).collect();
    assert!(missed.is_empty(), "{missed:?}");
    let wrong: Vec<&str> = OTHERS.into_iter().filter(|name| tells_way(name)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn aliases_are_removed_refused_or_passed() {
    let said = [("x_user", "1"), ("x-user", "2"), ("proxy", "evil"), ("x_forwarded_for", "6.6.6.6"), ("a.b", "3")];
    let left = |aliases| {
        let mut fields = fields(&said);
        let rules = ClientAddressRules { aliases, ..rules(AddressSource::XForwardedFor, &[]) };
        let settled = settle(&mut fields, None, false, &rules, |_, _| {});
        let names: Vec<String> = fields.keys().map(|name| name.as_str().into()).collect();
        (names.join(" "), settled.has_aliases, settled.is_rejected)
    };
    assert_eq!(left(AliasPolicy::Remove), ("x-user".into(), false, false));
    assert!(left(AliasPolicy::Reject).2);
    let (names, has_aliases, is_rejected) = left(AliasPolicy::Pass);
    assert!(has_aliases && !is_rejected);
    let mut names: Vec<&str> = names.split(' ').collect();
    names.sort_unstable();
    assert_eq!(names, ["a.b", "proxy", "x-user", "x_user"]);
}

#[test]
fn nothing_that_a_client_says_hides_what_a_trusted_proxy_has_appended() {
    const PIECES: [&str; 18] = [
        "for=", "6.6.6.6", "\"", "\\", ",", ";", " ", "=", "[", "]", "unknown", "_x", ":", "80", "unix:", "10.0.0.9",
        "by=\"", "\u{e9}",
    ];
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let appended = [
        (AddressSource::Forwarded, "for=\"[2001:db8::9]:1\";by=\"a,\\\"b\""),
        (AddressSource::Forwarded, "host=\"a:80\";for=203.0.113.9, for=10.0.0.7"),
        (AddressSource::XForwardedFor, "203.0.113.9:1, 10.0.0.7"),
        (AddressSource::XForwardedFor, "2001:db8::9"),
    ];
    for round in 0..40_000 {
        let said: String = (0..next() % 10).map(|_| PIECES[next() % PIECES.len()]).collect();
        let (source, appended) = &appended[round % appended.len()];
        let (client, _) = search(source, &[&format!("{said}, {appended}")]);
        assert!(client.contains("2001:db8::9") || client.starts_with("203.0.113.9"), "{said}: {client}");
        // A field of its own may name any client, and its end is always found.
        search(source, &[&said]);
    }
}
