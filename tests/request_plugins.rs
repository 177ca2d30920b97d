//! Stock plugins in the running proxy, by the manifests of their pages: `ip-filter`, `auth-basic`, `auth-key`, `request-id`,
//! `rewrite`.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::caching::{Origin, response};
use crate::support::{Message, Proxy, echo, manifest, output, read_message, run, until};

/// Returns the manifest of a plugin's page, unchanged except for addresses.
fn documented(name: &str) -> String {
    let page = std::fs::read_to_string(format!("{}/../docs/plugins/{name}.md", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let manifest = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    manifest.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8000", &echo())
}

/// Returns the output of `plugway check` about a manifest, which it rejects.
fn rejection(manifest: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plugway.toml"), manifest).unwrap();
    let (code, error) = run(&["check", folder.path().join("plugway.toml").to_str().unwrap()]);
    assert_eq!(code, Some(1), "{error}");
    error
}

/// Returns the request line that an echoing origin got.
fn line(message: &Message) -> String {
    assert_eq!(message.status(), 200, "{message:?}");
    message.text().lines().next().unwrap().to_string()
}

/// Returns the values of a field that an echoing origin got.
fn got(message: &Message, name: &str) -> Vec<String> {
    let text = message.text();
    let lines = text.lines().filter_map(|line| line.split_once(": ").filter(|(known, _)| *known == name));
    lines.map(|(_, value)| value.into()).collect()
}

// === ip-filter ===

#[test]
fn ip_filter_decides_by_the_address_that_a_trusted_proxy_names() {
    let proxy = Proxy::start(&documented("ip-filter"));
    let status = |path: &str, client: &str| proxy.get(path, &format!("\r\nX-Forwarded-For: {client}")).status();
    assert_eq!(proxy.get("/", "").status(), 200);
    for (client, wanted) in [("203.0.113.7", 403), ("203.0.113.8", 200), ("2001:db8::7", 403), ("198.51.100.9", 403)] {
        assert_eq!(status("/", client), wanted, "{client}");
        assert_eq!(status("/", &format!("6.6.6.6, {client}")), wanted, "{client}");
    }
    proxy.wait_log("client denied: 203.0.113.7");
    for (client, wanted) in [("10.1.2.3", 200), ("10.66.1.1", 404), ("192.0.2.1", 404), ("127.0.0.1", 200)] {
        for path in ["/admin", "/admin/", "/admin?x", "/admin;a=1", "/admin/x"] {
            assert_eq!(status(path, client), wanted, "{client} at {path}");
        }
    }
    let denied = proxy.get("/", "\r\nX-Forwarded-For: 203.0.113.7");
    assert!(denied.text().starts_with("403 Forbidden\n"), "the built-in page: {denied:?}");
    assert_eq!(denied.field("cache-control"), Some("no-store"));
}

#[test]
fn ip_filter_believes_no_field_of_an_untrusted_client() {
    let proxy = Proxy::start(&documented("ip-filter").replace("trusted-proxies = [\"127.0.0.1\"]", ""));
    assert_eq!(proxy.get("/admin", "\r\nX-Forwarded-For: 192.0.2.1").status(), 200);
    assert_eq!(proxy.get("/", "\r\nX-Forwarded-For: 203.0.113.7\r\nX-Real-IP: 203.0.113.7").status(), 200);
}

#[test]
fn ip_filter_denies_a_client_without_an_address_if_there_is_an_allow_list() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front");
    let status = |config: &str| {
        let _ = std::fs::remove_file(&path);
        let listener = format!("[[listener]]\naddress = \"unix:{}\"\n", path.display());
        let plugin = format!("{{ use = \"ip-filter\", config = {{ {config} }} }}");
        let _proxy = Proxy::start(&manifest(&echo(), &plugin, &listener));
        until("the socket is there", || UnixStream::connect(&path).is_ok());
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n").unwrap();
        read_message(&mut BufReader::new(stream)).unwrap().status()
    };
    assert_eq!(status("allow = [\"0.0.0.0/0\", \"::/0\"]"), 403);
    assert_eq!(status("allow = [\"0.0.0.0/0\"], without-address = \"allow\""), 200);
    assert_eq!(status("deny = [\"0.0.0.0/0\"]"), 200);
}

#[test]
fn ip_filter_takes_a_hundred_thousand_lines_and_names_a_bad_one() {
    let lines: String = (0..100_000_u32)
        .map(|index| match index % 2 {
            0 => format!("{}/32\n", std::net::Ipv4Addr::from_bits(0x0b00_0000 + index * 16)),
            _ => format!("2001:db8:{:x}:{:x}::/64\n", index >> 16, index & 0xffff),
        })
        .collect();
    let config = |lines: &str| {
        format!("[plugin.list]\nuse = \"ip-filter\"\nconfig.deny = [\"127.0.0.2\", \"\"\"\n{lines}\"\"\"]\n")
    };
    let trusted = |text: String| text.replacen(":0\"\n", ":0\"\ntrusted-proxies = [\"127.0.0.1\"]\n", 1);
    let proxy = Proxy::start(&trusted(manifest(&echo(), "\"list\"", &config(&lines))));
    for (client, wanted) in [
        ("11.0.0.0", 403),
        ("11.0.0.1", 200),
        ("11.24.105.224", 403),
        ("2001:db8:1:869f::1", 403),
        ("2001:db8:1:86a0::1", 200),
        ("127.0.0.2", 403),
    ] {
        assert_eq!(proxy.get("/", &format!("\r\nX-Forwarded-For: {client}")).status(), wanted, "{client}");
    }
    let error = rejection(&manifest("127.0.0.1:1", "\"list\"", &config("10.0.0.1\n\n10.0.0.300\n")));
    assert!(error.contains("line 3: invalid address: `10.0.0.300`"), "{error}");
}

#[test]
fn ip_filter_drops_no_address_of_a_line() {
    for line in ["192.0.2.1, 198.51.100.7", "deny 192.0.2.1; deny 198.51.100.7;", "192.0.2.0 255.255.255.0"] {
        let filter = format!("{{ use = \"ip-filter\", config = {{ deny = [\"10.0.0.1\", {line:?}] }} }}");
        let error = rejection(&manifest("127.0.0.1:1", &filter, ""));
        assert!(error.contains("a second address in a line") && error.contains("plugway.toml:"), "{line}: {error}");
    }
}

/// Idioms of other proxies, with which a limit or an edit would hold for no request.
#[test]
fn patterns_in_the_conditions_of_plugins_are_errors() {
    for (plugin, remedy) in [
        ("{ use = \"body-limit\", config.rules = [{ paths = [\"/up/*\"], max = \"1 KiB\" }] }", "write `/up/`"),
        ("{ use = \"headers\", config = { when.paths = [\"/api/*\"], request.remove = [\"X-A\"] } }", "write `/api/`"),
        ("{ use = \"rewrite\", config.map = \"/old/* /new/ 301\" }", "a pattern is a regular expression"),
    ] {
        let error = rejection(&manifest("127.0.0.1:1", plugin, ""));
        assert!(error.contains("`*` in a path stands for itself") && error.contains(remedy), "{plugin}: {error}");
    }
}

// === auth-basic ===

/// Returns the field with credentials.
fn basic(credentials: &str) -> String {
    format!("\r\nAuthorization: Basic {}", STANDARD.encode(credentials))
}

#[test]
fn auth_basic_lets_known_users_pass_and_names_them() {
    let proxy = Proxy::start(&documented("auth-basic"));
    let refused = proxy.get("/", "");
    let challenge = "Basic realm=\"the shop\", charset=\"UTF-8\"";
    assert_eq!((refused.status(), refused.field("www-authenticate")), (401, Some(challenge)));
    assert_eq!(refused.field("cache-control"), Some("no-store"));
    for wrong in ["alice:s3cret", "alice:", "mallory:open sesame", "bob:open sesame"] {
        assert_eq!(proxy.get("/", &basic(wrong)).status(), 401, "{wrong}");
    }
    // The second request of each user is served from what the plugin remembers.
    for (credentials, user) in [("alice:open sesame", "alice"), ("bob:s3cret", "bob")].repeat(2) {
        let fields = format!("{}\r\nX-Remote-User: root\r\nX_Remote_User: root", basic(credentials));
        let passed = proxy.get("/", &fields);
        assert_eq!((line(&passed).as_str(), got(&passed, "x-remote-user")), ("GET / HTTP/1.1", vec![user.into()]));
        assert!(got(&passed, "authorization").is_empty() && !passed.text().contains("root"), "{passed:?}");
    }
    for path in ["/admin", "/admin/", "/admin?x", "/admin;a=1"] {
        assert_eq!(proxy.get(path, &basic("bob:s3cret")).status(), 401, "{path}");
        assert_eq!(proxy.get(path, &basic("alice:open sesame")).status(), 200, "{path}");
    }
}

/// A browser that opens a page with many files sends their requests at once, and the proxy may have forgotten the user.
#[test]
fn auth_basic_verifies_a_password_once_for_all_requests_at_a_time() {
    let hash = "$6$saltsalt$e/5XKibXPLqVcfjpD.ouauaJrAOL5V0uo80Lt7n7EbRdRiCx3HbQ90yjOHr.G0T.mx79PEMRy8nmtr0qSYhQp1";
    let config = format!("[plugin.staff]\nuse = \"auth-basic\"\nconfig.users = [\"alice:{hash}\"]\n");
    let proxy = Proxy::start(&manifest(&echo(), "\"staff\"", &config));
    let mut load = Command::new("h2load");
    load.args(["-n", "100", "-c", "1", "-m", "100", "-H", basic("alice:open sesame").trim_start()]);
    let report = output(load.arg(format!("http://{}/", proxy.address)));
    assert!(report.contains("status codes: 100 2xx"), "{report}");
}

#[test]
fn auth_basic_verifies_the_passwords_of_clients_in_turn() {
    // Each password takes a quarter of a second.
    let hash = "$6$rounds=300000$saltsalt$e/5XKibXPLqVcfjpD.ouauaJrAOL5V0uo80Lt7n7EbRdRiCx3HbQ90yjOHr.G0T.mx79PEMRy8nmtr0qSYhQp1";
    let config = format!("[plugin.staff]\nuse = \"auth-basic\"\nconfig.users = [\"alice:{hash}\"]\n");
    let proxy = Proxy::start(&manifest(&echo(), "\"staff\"", &config));
    let ask = |from: &str, guess: usize| {
        let mut stream = proxy.connect_from(from);
        write!(stream, "GET / HTTP/1.1\r\nHost: a{}\r\n\r\n", basic(&format!("alice:{guess}"))).unwrap();
        stream
    };
    let status = |stream| read_message(&mut BufReader::new(stream)).unwrap().status();
    let guesses: Vec<_> = (0..40).map(|guess| ask("127.0.0.2", guess)).collect();
    until("too many of one client wait", || {
        guesses.iter().any(|stream| {
            let mut start = [0; 12];
            stream.set_nonblocking(true).unwrap();
            stream.peek(&mut start).is_ok() && start.ends_with(b"503")
        })
    });
    assert_eq!(status(ask("127.0.0.3", 100_000)), 401);
}

#[test]
fn auth_basic_follows_its_file() {
    let hash = |password: &str| {
        let mut command = crate::support::plugway();
        command.args(["hash-password", "--bcrypt"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_string()
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("htpasswd");
    std::fs::write(&file, format!("# staff\nalice:{}\n", hash("one"))).unwrap();
    let config = "[plugin.staff]\nuse = \"auth-basic\"\nconfig.users = \"${file:htpasswd}\"\n";
    let proxy = Proxy::start_in(folder.path(), &manifest(&echo(), "\"staff\"", config));
    let status = |credentials: &str| proxy.get("/", &basic(credentials)).status();
    assert_eq!((status("alice:one"), status("bob:two")), (200, 401));
    let replace = |text: String| {
        std::fs::write(folder.path().join("new"), text).unwrap();
        std::fs::rename(folder.path().join("new"), &file).unwrap();
    };
    replace(format!("bob:{}\n", hash("two")));
    until("the new user passes", || status("bob:two") == 200);
    // What was remembered of the old file is forgotten.
    assert_eq!(status("alice:one"), 401);
    replace("bob:hunter2\n".into());
    let line = proxy.wait_log("invalid hash");
    assert!(!line.contains("hunter2"), "{line}");
    assert_eq!(status("bob:two"), 200);
}

#[test]
fn auth_basic_fails_closed_and_repeats_no_secret() {
    let reject = |config: &str| {
        rejection(&manifest("127.0.0.1:1", "\"staff\"", &format!("[plugin.staff]\nuse = \"auth-basic\"\n{config}\n")))
    };
    assert!(reject("").contains("users"), "no configuration");
    assert!(reject("config.users = []").contains("no user"), "an empty list");
    assert!(reject("config.users = \"alice:$apr1$x$y\"").contains("hash by MD5"), "a broken hash");
    let error = reject("config.users = [\"\"\"\n# name:hash\nalice:hunter2\n\"\"\"]");
    assert!(error.contains("line 2: invalid hash") && !error.contains("hunter2"), "{error}");
}

/// RFC 9111 §3.5 is about the request as the client sent it, and a user's page is nobody else's.
#[test]
fn what_a_user_or_a_key_gets_is_stored_for_others_only_if_the_origin_says_so() {
    let origin = Origin::new(|request, _| {
        let user = ["x-remote-user", "x-key-owner"].iter().find_map(|name| request.field(name)).unwrap_or("nobody");
        match request.start.contains("/public") {
            true => response("Cache-Control: public, max-age=60", user),
            false => response("Cache-Control: max-age=60\r\nLast-Modified: Wed, 01 Jan 2020 00:00:00 GMT", user),
        }
    });
    let users = "[plugin.staff]\nuse = \"auth-basic\"\nconfig.users = [\"alice:$2y$10$abcdefghijklmnopqrstuu4SuEsu2LsUrAYUpWQHLMMc4GV5pZTxK\", \
                 \"bob:$6$saltsalt$As4wrv0kZlfch1du9WeH7qhskyLriQWySXrZzynnvi46nFnNxjdpl6ksRegrrKexvhIa/Iny8S8uF3fVWTMuC1\"]\n";
    let keys = "[plugin.staff]\nuse = \"auth-key\"\nconfig = { field = \"X-API-Key\", query = \"key\", cookie = \"key\", keys = [\
                \"alice:sha256:8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8\", \
                \"bob:sha256:f44e64e75f3948e9f73f8dfa94721c4ce8cbb4f265c4790c702b2d41cfbf2753\"] }\n";
    let [alice, bob] = ["alice:open sesame", "bob:s3cret"].map(basic);
    let cases = [
        (users, ["", ""], [alice.as_str(), bob.as_str()]),
        (keys, ["", ""], ["\r\nX-API-Key: alpha", "\r\nX-API-Key: beta"]),
        (keys, ["?key=alpha", "?key=beta"], ["", ""]),
        (keys, ["", ""], ["\r\nCookie: key=alpha", "\r\nCookie: key=beta"]),
    ];
    for (plugin, queries, fields) in cases {
        let proxy = Proxy::start(&manifest(&origin.address, "\"staff\", \"cache\"", plugin));
        let ask = |user: usize, path: &str| proxy.get(&format!("{path}{}", queries[user]), fields[user]);
        for (user, name) in [(0, "alice"), (1, "bob"), (0, "alice")] {
            let own = ask(user, "/own");
            assert_eq!(own.text(), name, "{fields:?}: {own:?}");
            assert!(
                own.field("cache-status").is_some_and(|status| status.ends_with("detail=authorization")),
                "{own:?}"
            );
        }
        assert_eq!(
            (ask(0, "/public").text(), ask(1, "/public").text()),
            ("alice".into(), "alice".into()),
            "{fields:?}"
        );
    }
}

// === auth-key ===

#[test]
fn auth_key_lets_known_keys_pass_and_names_their_owner() {
    let proxy = Proxy::start(&documented("auth-key"));
    let refused = proxy.get("/", "");
    assert_eq!((refused.status(), refused.field("www-authenticate")), (401, Some("ApiKey realm=\"api\"")));
    assert_eq!(proxy.get("/", "\r\nX-API-Key: beta").status(), 401);

    let passed = proxy.get("/", "\r\nX-API-Key: alpha\r\nX-Key-Owner: root\r\nX_Key_Owner: root");
    assert_eq!((line(&passed).as_str(), got(&passed, "x-key-owner")), ("GET / HTTP/1.1", vec!["shop".into()]));
    assert!(!passed.text().contains("alpha") && !passed.text().contains("root"), "{passed:?}");

    assert_eq!(line(&proxy.get("/list?api_key=alpha&page=2", "")), "GET /list?page=2 HTTP/1.1");
    let bearer = |key: &str| proxy.get("/refunds", &format!("\r\nAuthorization: Bearer {key}"));
    assert_eq!(got(&bearer("beta"), "x-key-owner"), ["bank"]);
    assert!(got(&bearer("beta"), "authorization").is_empty());
    assert_eq!(bearer("alpha").status(), 403);
    assert_eq!(proxy.get("/refunds/", "\r\nAuthorization: Bearer alpha").status(), 403);
    let unknown = bearer("gamma");
    assert_eq!((unknown.status(), unknown.field("www-authenticate")), (401, Some("Bearer realm=\"api\"")));
}

#[test]
fn auth_key_removes_the_key_from_the_cookies() {
    let config = "{ cookie = \"key\", keys = [\"shop:sha256:8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8\"] }";
    let proxy = Proxy::start(&manifest(&echo(), &format!("{{ use = \"auth-key\", config = {config} }}"), ""));
    let passed = proxy.get("/", "\r\nCookie: a=1; key=alpha; b=2");
    assert_eq!((got(&passed, "cookie"), got(&passed, "x-key-owner")), (vec!["a=1; b=2".into()], vec!["shop".into()]));
    let lines = proxy.get("/", "\r\nCookie: a=1\r\nCookie: key=alpha");
    assert!(got(&lines, "cookie").iter().all(|cookies| !cookies.contains("alpha")), "{lines:?}");
}

#[test]
fn auth_key_fails_closed_and_repeats_no_secret() {
    let reject = |config: &str| {
        rejection(&manifest("127.0.0.1:1", "\"keys\"", &format!("[plugin.keys]\nuse = \"auth-key\"\n{config}\n")))
    };
    assert!(reject("").contains("keys"), "no configuration");
    assert!(reject("config.keys = []").contains("no key"), "an empty list");
    assert!(reject("config.keys = [\"# later\"]").contains("no key"), "a list of comments");
    for keys in ["[{ name = \"a\", hash = \"hunter2\" }]", "[{ name = \"a\", hsh = \"hunter2\" }]", "\"hunter2\""] {
        let error = reject(&format!("config.keys = {keys}"));
        let messages: Vec<&str> = error.lines().filter(|line| line.starts_with("error")).collect();
        assert!(!messages.is_empty() && !messages.iter().any(|message| message.contains("hunter2")), "{error}");
    }
    // A line of its own shows what no message repeats; the manifest itself may be shown.
    let error = reject("config.keys = [\"\"\"\n# name:sha256:digits\nshop:hunter2\n\"\"\"]");
    assert!(error.contains("line 2: invalid hash") && !error.contains("hunter2"), "{error}");
}

// === request-id ===

#[test]
fn request_id_is_shared_by_client_origin_and_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let more = format!("[access-log]\nformat = \"json\"\nfile = {log:?}\n{}", documented("request-id"));
    let proxy = Proxy::start(&more);
    let answer = proxy.get("/", "\r\nX-Request-ID: spoofed");
    let id = answer.field("x-request-id").unwrap().to_string();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(got(&answer, "x-request-id"), [id.as_str()]);
    let logged = || std::fs::read_to_string(&log).unwrap_or_default();
    until("the access log has the identifier", || logged().contains(&format!("\"request_id\":\"{id}\"")));

    let made = proxy.get("/internal/", "\r\nX-Request-ID: a b\r\ntraceparent: x\r\ntracestate: a=1");
    let uuid = made.field("x-request-id").unwrap();
    assert_eq!((uuid.len(), &uuid[14..15], got(&made, "x-request-id")), (36, "7", vec![uuid.to_string()]));
    let trace = got(&made, "traceparent").swap_remove(0);
    assert!(trace.starts_with("00-") && trace.len() == 55, "{trace}");
    assert!(got(&made, "tracestate").is_empty());
    until("the trace is in the access log", || logged().contains(&trace[3..35]));

    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let kept =
        proxy.get("/internal/", &format!("\r\nX-Request-ID: build-7\r\ntraceparent: {parent}\r\ntracestate: a=1"));
    assert_eq!((kept.field("x-request-id"), got(&kept, "x-request-id")), (Some("build-7"), vec!["build-7".into()]));
    assert_eq!((got(&kept, "traceparent"), got(&kept, "tracestate")), (vec![parent.into()], vec!["a=1".into()]));
}

// === rewrite ===

#[test]
fn rewrite_redirects_and_rewrites() {
    let proxy = Proxy::start(&documented("rewrite"));
    for (target, status, location) in [
        ("/Wiki/Install/", 301, "/wiki/install"),
        ("/wiki/install?a=1", 308, "/docs/install?a=1"),
        ("/shop?a=1", 301, "https://shop.example/?a=1"),
        ("/help?a=1", 302, "/support?from=help"),
        ("//Evil.example/", 301, "/evil.example"),
    ] {
        let answer = proxy.get(target, "");
        assert_eq!((answer.status(), answer.field("location")), (status, Some(location)), "{target}");
    }
    for (target, wanted) in [
        ("/feed?utm_x=1", "/feed.php"),
        ("/blog/2024/news", "/posts/news?year=2024"),
        ("/blog/2024/a&admin=1", "/posts/a&admin=1?year=2024"),
        ("/?utm_source=x&b=2&a=1", "/?a=1&b=2"),
        ("/caf%c3%a9/%41", "/caf%C3%A9/A"),
    ] {
        let answer = proxy.get(target, "");
        match answer.status() {
            200 => assert_eq!(line(&answer), format!("GET {wanted} HTTP/1.1"), "{target}"),
            status => assert_eq!((status, answer.field("location")), (301, Some("/caf%C3%A9/a")), "{target}"),
        }
    }
}

#[test]
fn rewrite_fails_a_request_that_would_be_redirected_forever() {
    let rule = r#"{ regex = '^/n(\d)$', to = "/n$1", redirect = 301 }"#;
    let proxy = Proxy::start(&manifest(&echo(), &format!("{{ use = \"rewrite\", config.rules = [{rule}] }}"), ""));
    assert_eq!(proxy.get("/n1", "").status(), 502);
    proxy.wait_log("redirects without an end: `/n1` -> `/n1`");
    assert_eq!(proxy.get("/nx", "").status(), 200);

    let map = "[plugin.loop]\nuse = \"rewrite\"\nconfig.map = \"\"\"\n/a /b 301\n/b /a 301\n\"\"\"\n";
    let error = rejection(&manifest("127.0.0.1:1", "\"loop\"", map));
    assert!(error.contains("line 2: redirects without an end: `/b` -> `/a`"), "{error}");
}

#[test]
fn rewrite_takes_ten_thousand_lines_and_canonical_hosts() {
    let lines: String = (0..10_000).map(|index| format!("/old/{index} /new/{index} 301\n")).collect();
    let plugin = format!(
        "[plugin.moved]\nuse = \"rewrite\"\nconfig.canonical.host = \"www\"\nconfig.map = \"\"\"\n{lines}\"\"\"\n"
    );
    let proxy = Proxy::start(&manifest(&echo(), "\"moved\"", &plugin));
    let location = |host: &str, target: &str| {
        let answer = proxy.exchange(&format!("GET {target} HTTP/1.1\r\nHost: {host}"));
        answer.field("location").unwrap_or_default().to_string()
    };
    assert_eq!(location("www.example.org", "/old/9999?x"), "/new/9999?x");
    assert_eq!(location("example.org", "/old/7"), "http://www.example.org/new/7");
    assert_eq!(location("example.org", "/x?y"), "http://www.example.org/x?y");
    assert_eq!(location("www.example.org", "/x"), "");
}
