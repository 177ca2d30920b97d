//! Native tests of the plugin `ip-filter`.

use plugway_sdk::testing::{Harness, Request};
use serde_json::{Value, json};

use super::IpFilter;

fn passes(filter: &mut Harness<IpFilter>, client: &str) -> bool {
    filter.request(Request::get("/").from(client)).passed().is_some()
}

fn decisions(config: Value, clients: &[(&str, bool)]) {
    let mut filter = Harness::<IpFilter>::new(config.clone()).unwrap();
    for (client, wanted) in clients {
        assert_eq!(passes(&mut filter, client), *wanted, "{client} by {config}");
    }
}

fn messages(config: Value) -> Vec<(String, String)> {
    Harness::<IpFilter>::errors(config).into_iter().map(|error| (error.path, error.message)).collect()
}

#[test]
fn lists_decide_and_deny_wins() {
    decisions(
        json!({ "allow": ["10.0.0.0/8", "2001:db8::/32"], "deny": ["10.1.2.3", "2001:db8:bad::/48"] }),
        &[
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("10.1.2.3", false),
            ("10.1.2.4", true),
            ("::ffff:10.1.2.4", true),
            ("::ffff:10.1.2.3", false),
            ("2001:db8::1", true),
            ("2001:db8:bad::1", false),
            ("2001:db9::", false),
        ],
    );
    decisions(json!({ "deny": ["192.0.2.0/24"] }), &[("192.0.2.1", false), ("192.0.3.1", true), ("::1", true)]);
    decisions(json!({ "deny": ["192.0.2.1"], "default": "deny" }), &[("192.0.3.1", false)]);
    decisions(json!({ "allow": [], "default": "allow" }), &[("192.0.3.1", true)]);
}

#[test]
fn networks_have_their_edges() {
    decisions(json!({ "allow": ["0.0.0.0/0"] }), &[("0.0.0.0", true), ("255.255.255.255", true), ("::1", false)]);
    decisions(json!({ "allow": ["::/0"] }), &[("ffff::", true), ("::", true), ("192.0.2.1", false)]);
    decisions(json!({ "allow": ["::ffff:0:0/96"] }), &[("192.0.2.1", true), ("2001:db8::1", false)]);
    decisions(json!({ "allow": ["::ffff:10.0.0.0/104"] }), &[("10.9.9.9", true), ("11.0.0.0", false)]);
    decisions(
        json!({ "allow": ["10.9.8.7/8", "255.255.255.255/32"] }),
        &[("10.0.0.1", true), ("255.255.255.255", true)],
    );
    let nested = json!({ "allow": ["10.0.0.0/8\n10.0.0.0/16\n10.3.0.0/16\n10.255.0.0/16", "10.0.0.1"] });
    decisions(nested, &[("10.200.0.1", true), ("10.255.255.255", true), ("11.0.0.0", false)]);
}

#[test]
fn lists_of_other_programs_are_read() {
    let lists = [
        "# fail2ban\r\n192.0.2.1\r\n\r\n192.0.2.2 \t2026-01-01 00:00:00 + 600 = 2026-01-01 00:10:00\n",
        "; DROP\n192.0.2.0/30 ; SBL1\n",
        "ip,reason,until\n\"192.0.2.1\",ssh,4h\n192.0.2.2/32,web,1h\n",
        "deny 192.0.2.1;\ndeny\t192.0.2.2; # two\n",
        "192.0.2.1-192.0.2.2",
        "192.0.2.1 - 192.0.2.2 # the office",
        "192.0.2.1,office - hall,2026-01-01\n192.0.2.2 - hall\n",
        "::ffff:192.0.2.1 - ::ffff:192.0.2.2",
    ];
    for list in lists {
        decisions(json!({ "deny": [list] }), &[("192.0.2.1", false), ("192.0.2.2", false), ("192.0.2.9", true)]);
    }
}

#[test]
fn no_address_of_a_line_is_dropped_in_silence() {
    let second = |line: &str| {
        let found = messages(json!({ "deny": [format!("# a list\n{line}\n")] }));
        let [(pointer, message)] = &found[..] else { panic!("{line}: {found:?}") };
        assert_eq!(pointer, "/deny/0");
        let message = message.strip_prefix("line 2: a second address in a line: `").expect(message);
        assert!(message.contains("write each in a line of its own"), "{message}");
        message.split('`').next().unwrap().to_string()
    };
    for (line, wanted) in [
        ("192.0.2.1, 198.51.100.7", "198.51.100.7"),
        ("192.0.2.1 198.51.100.7", "198.51.100.7"),
        ("192.0.2.1;198.51.100.7", "198.51.100.7"),
        ("192.0.2.1,web,198.51.100.0/24", "198.51.100.0/24"),
        ("192.0.2.1,198.51.100.1-198.51.100.7", "198.51.100.1-198.51.100.7"),
        ("\"192.0.2.1\",\"2001:db8::/32\"", "2001:db8::/32"),
        ("deny 192.0.2.1; deny 198.51.100.7;", "deny"),
        ("192.0.2.0 255.255.255.0", "255.255.255.0"),
        ("192.0.2.0,255.255.255.0", "255.255.255.0"),
        ("192.0.2.0\t192.0.2.255\t24\t5", "192.0.2.255"),
        ("192.0.2.0 /24", "/24"),
    ] {
        assert_eq!(second(line), wanted, "{line}");
    }
    for line in ["192.0.2.9-192.0.2.1", "192.0.2.1-::1", "192.0.2.1-x", "192.0.2.0/25-192.0.2.255"] {
        let found = messages(json!({ "allow": line }));
        assert!(found[0].1.starts_with("invalid range: `"), "{line}: {found:?}");
    }
    decisions(
        json!({ "allow": ["2001:db8::1-2001:db8::ff", "192.0.2.250 - 192.0.3.5"] }),
        &[
            ("2001:db8::1", true),
            ("2001:db8::ff", true),
            ("2001:db8::100", false),
            ("192.0.3.0", true),
            ("192.0.3.6", false),
            ("192.0.2.249", false),
        ],
    );
}

#[test]
fn clients_without_an_address_need_permission() {
    // The harness has no absent address; an unparsable one is denied in any case.
    let decide = |config: Value| {
        let config = serde_json::from_value(config).unwrap();
        super::Policy::new(&config, &mut Default::default()).unwrap().decide(None) == super::Decision::Allow
    };
    assert!(!decide(json!({ "allow": ["10.0.0.0/8"] })));
    assert!(decide(json!({ "deny": ["10.0.0.0/8"] })));
    assert!(decide(json!({ "allow": ["10.0.0.0/8"], "without-address": "allow" })));
    assert!(!decide(json!({ "deny": ["10.0.0.0/8"], "without-address": "deny" })));
    decisions(json!({ "deny": ["10.0.0.0/8"] }), &[("unix:", false)]);
}

#[test]
fn a_denied_client_gets_the_status() {
    for status in [403, 404] {
        let mut filter =
            Harness::<IpFilter>::new(json!({ "deny": ["192.0.2.1"], "status": status, "log": true })).unwrap();
        let answer = filter.request(Request::get("/")).answered().unwrap();
        assert_eq!((answer.status, answer.body.len()), (status, 0), "the host adds the page");
        assert!(answer.fields.contains(&("cache-control".into(), b"no-store".to_vec())));
    }
}

#[test]
fn mistakes_name_the_line_and_its_text() {
    let found = messages(
        json!({ "deny": ["192.0.2.1", "192.0.2.2\n\n192.0.2.999 x\n1.2.3.4/33\n1.2.3.4/+8\nallow 1.2.3.4;\n"] }),
    );
    let expected = [
        "line 3: invalid address: `192.0.2.999`; expected one such as `192.0.2.1` or `2001:db8::/32`",
        "line 4: invalid prefix length: `1.2.3.4/33`; expected at most 32",
        "line 5: invalid address: `1.2.3.4/+8`; expected one such as `192.0.2.1` or `2001:db8::/32`",
        "line 6: a line of the other list: `allow 1.2.3.4`; move the line to `allow`",
    ];
    assert_eq!(found, expected.map(|message| ("/deny/1".to_string(), message.to_string())));

    let one = |config: Value| messages(config).swap_remove(0);
    let all = "line 2: no address: `allow all`; write `default = \"allow\"` beside the lists";
    assert_eq!(one(json!({ "allow": ["10.0.0.0/8\nallow all;"] })), ("/allow/0".into(), all.into()));
    assert_eq!(one(json!({ "deny": ["nonsense"] })).0, "/deny/0");
    assert_eq!(one(json!({ "deny": "192.0.2.1\nnonsense" })).0, "/deny");
    assert!(one(json!({})).1.starts_with("no list: "));
    assert!(one(json!({ "allow": ["# nothing yet"] })).1.starts_with("no address in the list"));
    assert_eq!(one(json!({ "deny": [], "status": 500 })).0, "/status");
    assert_eq!(messages(json!({ "deny": ["x\n".repeat(1000)] })).len(), 20);
}
