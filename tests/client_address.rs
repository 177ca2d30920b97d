//! The client's address behind trusted and other proxies; and field names that origins confuse with others.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::{Message, PATIENCE, Proxy, echo, manifest, plugway, read_message, run, until};

/// All fields in which a client can describe its way.
const SAID: [&str; 25] = [
    "X-Forwarded-For: 6.6.6.6",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Port: 443",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-Server: evil.example",
    "X-Forwarded-Ssl: on",
    "X-Forwarded-Scheme: https",
    "X-Forwarded-Client-Cert: By=evil",
    "X-Real-IP: 6.6.6.6",
    "Forwarded: for=6.6.6.6;proto=https;host=evil.example",
    "True-Client-IP: 6.6.6.6",
    "CF-Connecting-IP: 6.6.6.6",
    "X_Forwarded_For: 6.6.6.6",
    "X-Forwarded_Proto: https",
    "X-Original-URL: /evil",
    "X-Real-Client-IP: 6.6.6.6",
    "Ali-CDN-Real-IP: 6.6.6.6",
    "Remote-Addr: 6.6.6.6",
    "X-Vercel-Forwarded-For: 6.6.6.6",
    "X-Client-DN: CN=evil",
    "X-HTTP-Host-Override: evil.example",
    "Https: on",
    "WL-Proxy-SSL: true",
    "X-AppEngine-Https: on",
];

/// A template of a plugin that passes the client's facts to the origin.
const TELLING: &str =
    "{ use = \"headers\", config.request.set = { X-Knows = \"{client.ip} {client.port} {forwarded-for}\" } }";

/// Returns a manifest whose listener has more keys.
fn listening(origin: &str, keys: &str, plugins: &str, more: &str) -> String {
    let listener = format!("address = \"127.0.0.1:0\"\n{keys}\n");
    manifest(origin, plugins, more).replacen("address = \"127.0.0.1:0\"\n", &listener, 1)
}

/// Returns a GET with further fields.
fn get(proxy: &Proxy, fields: &[&str]) -> Message {
    let fields: String = fields.iter().map(|field| format!("\r\n{field}")).collect();
    proxy.get("/", &fields)
}

/// Returns the lines that an echoing origin received for a field.
fn got(message: &Message, name: &str) -> Vec<String> {
    let text = message.text();
    let lines = text.lines().filter_map(|line| line.split_once(": ").filter(|(known, _)| *known == name));
    lines.map(|(_, value)| value.into()).collect()
}

/// Sends one request over a unix socket.
fn over_unix(path: &Path, fields: &str) -> Message {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: example.org{fields}\r\nConnection: close\r\n\r\n").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

fn lines(file: &Path, count: usize) -> Vec<String> {
    let read = || std::fs::read_to_string(file).unwrap_or_default();
    until("the access log has its lines", || read().lines().count() >= count);
    read().lines().map(Into::into).collect()
}

#[test]
fn a_proxy_that_is_not_trusted_is_told_of_once() {
    let x_forwarded = ["X-Client-IP: 192.0.2.1", "X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.1"];
    for (keys, fields, told) in [
        ("", &x_forwarded[..], Some("x-forwarded-proto")),
        ("", &["Forwarded: for=192.0.2.1;proto=https"], Some("forwarded")),
        ("trusted-proxies = [\"127.0.0.1\"]", &x_forwarded, None),
    ] {
        let mut proxy = Proxy::start(&listening(&echo(), keys, "", ""));
        for field in fields {
            assert_eq!(get(&proxy, &[field]).status(), 200);
        }
        proxy.signal("TERM");
        assert_eq!(proxy.wait_exit(), Some(0));
        let log = proxy.log_to_end();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("no trusted proxy removed")).collect();
        let field = format!("field={:?}", told.unwrap_or_default());
        let parts = ["INFO", &*field, "peer=127.0.0.1", "name it in `trusted-proxies`"];
        let is_fit = |line: &&str| parts.iter().all(|part| line.contains(part));
        assert!(lines.len() == usize::from(told.is_some()) && lines.iter().all(is_fit), "{keys}: {log}");
    }
}

#[test]
fn fields_of_untrusted_clients_about_their_way_are_removed() {
    let forwarded = |fields: &str| format!("{{ use = \"headers\", config.forwarded.fields = \"{fields}\" }}");
    let chains = [String::new(), forwarded("x-forwarded"), forwarded("rfc7239"), forwarded("both")];
    let listeners = ["", "trusted-proxies = [\"192.0.2.0/24\", \"unix:\"]", "field-aliases = \"pass\""];
    for (chain, listener) in chains.iter().zip(listeners.iter().cycle()) {
        let proxy = Proxy::start(&listening(&echo(), listener, chain, ""));
        let text = get(&proxy, &SAID).text().to_ascii_lowercase();
        for said in SAID.map(str::to_ascii_lowercase) {
            assert!(!text.contains(&said), "{said} through {chain} in\n{text}");
        }
        assert!(!text.contains("6.6.6.6") && !text.contains("evil"), "{text}");
    }
    // Nor does it choose a route.
    let route = "[[route]]\nupstream = \"app\"\nfields = { X-Forwarded-Proto = \"https\" }\n";
    let text = listening(&echo(), listeners[1], "", route);
    let proxy = Proxy::start(&(text + "plugins = [{ use = \"headers\", config.request.set.X-Chosen = \"yes\" }]\n"));
    assert_eq!(got(&get(&proxy, &SAID), "x-chosen"), [""; 0]);
}

#[test]
fn the_scheme_is_that_of_the_client_of_a_trusted_proxy() {
    let telling = "{ use = \"headers\", config.request.set = { X-Knows = \"{scheme} {authority} {uri}\" } }";
    let trusting = Proxy::start(&listening(&echo(), "trusted-proxies = [\"127.0.0.1\"]", telling, ""));
    let plain = "http example.org http://example.org/";
    let secure = "https example.org https://example.org/";
    let cases = [
        ("X-Forwarded-Proto: https", secure),
        ("X-Forwarded-Proto: HTTPS, http", secure),
        ("X-Forwarded-Proto: http", plain),
        ("X-Forwarded-Proto: gopher", plain),
        ("X-Forwarded-Proto: wss", secure),
        ("X-Forwarded-Proto: ws", plain),
        ("Forwarded: for=203.0.113.9;proto=https", plain),
        ("X-Forwarded-For: 203.0.113.9\r\nForwarded: for=6.6.6.6;proto=http, for=203.0.113.9;proto=https", secure),
        ("X-Forwarded-Proto: http\r\nForwarded: for=127.0.0.1;proto=https", plain),
        ("X-Other: 1", plain),
    ];
    for (field, wanted) in cases {
        assert_eq!(got(&get(&trusting, &[field]), "x-knows"), [wanted], "{field}");
    }
    let wary = Proxy::start(&listening(&echo(), "", telling, ""));
    assert_eq!(got(&get(&wary, &["X-Forwarded-Proto: https"]), "x-knows"), [plain]);
}

#[test]
fn a_client_that_uses_https_at_a_trusted_proxy_is_not_redirected_to_https() {
    let keys = |more: &str| format!("redirect-to-https = true\n{more}");
    let trusting = Proxy::start(&listening(&echo(), &keys("trusted-proxies = [\"127.0.0.1\"]"), "", ""));
    assert_eq!(get(&trusting, &["X-Forwarded-Proto: https"]).status(), 200);
    assert_eq!(get(&trusting, &["X-Forwarded-Proto: http"]).status(), 308);
    let wary = Proxy::start(&listening(&echo(), &keys(""), "", ""));
    assert_eq!(get(&wary, &["X-Forwarded-Proto: https"]).status(), 308);
}

#[test]
fn a_trusted_chain_gives_one_answer_to_all() {
    let folder = tempfile::tempdir().unwrap();
    let log = "[access-log]\nformat = \"json\"\nfile = \"access.log\"\n";
    let text = listening(&echo(), "trusted-proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]", TELLING, log);
    let proxy = Proxy::start_in(folder.path(), &text);
    let chain = "X-Forwarded-For: 6.6.6.6, 203.0.113.9:4711, 10.0.0.7";
    let message = get(&proxy, &[chain, "X-Real-IP: 6.6.6.6", "X-Forwarded-Proto: https", "Forwarded: for=6.6.6.6"]);
    let chain = "203.0.113.9:4711, 10.0.0.7, 127.0.0.1";
    assert_eq!(got(&message, "x-knows"), [format!("203.0.113.9 4711 {chain}")]);
    assert_eq!(got(&message, "x-forwarded-for"), ["203.0.113.9:4711, 10.0.0.7"]);
    assert_eq!(got(&message, "x-forwarded-proto"), ["https"]);
    assert_eq!(got(&message, "x-real-ip"), [""; 0], "it contradicts the chain");
    assert_eq!(got(&message, "forwarded"), [""; 0], "it contradicts the chain");
    let line = &lines(&folder.path().join("access.log"), 1)[0];
    assert!(line.contains("\"client\":\"203.0.113.9\""), "{line}");
    let direct = get(&proxy, &["X-Forwarded-For: unknown"]);
    assert!(got(&direct, "x-knows")[0].starts_with("127.0.0.1 "), "{}", direct.text());
}

#[test]
fn the_client_is_named_in_the_field_that_the_manifest_says() {
    let by = |field: &str| {
        let keys = format!("trusted-proxies = [\"127.0.0.1\"]\nclient-address-from = \"{field}\"");
        Proxy::start(&listening(&echo(), &keys, TELLING, ""))
    };
    let both = ["X-Forwarded-For: 6.6.6.6", "Forwarded: for=\"[2001:db8::9]:47\";proto=https", "X-Edge: 203.0.113.5"];
    let message = get(&by("forwarded"), &both);
    assert_eq!(got(&message, "x-knows"), ["2001:db8::9 47 2001:db8::9, 127.0.0.1"]);
    assert_eq!(got(&message, "forwarded"), ["for=\"[2001:db8::9]:47\";proto=https"]);
    let message = get(&by("X-Edge"), &both);
    assert_eq!(got(&message, "x-knows"), ["203.0.113.5  203.0.113.5, 127.0.0.1"]);
    let untrusting = "trusted-proxies = [\"10.0.0.0/8\"]\nclient-address-from = \"x-edge\"";
    let untrusting = Proxy::start(&listening(&echo(), untrusting, TELLING, ""));
    assert_eq!(got(&get(&untrusting, &both), "x-edge"), [""; 0]);
}

#[test]
fn a_front_at_a_unix_socket_can_be_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front");
    let start = |trusted: &str, plugin: &str| {
        let _ = std::fs::remove_file(&path);
        let text =
            manifest(&echo(), plugin, &format!("[[listener]]\naddress = \"unix:{}\"\n{trusted}", path.display()));
        let proxy = Proxy::start(&text);
        until("the socket is there", || UnixStream::connect(&path).is_ok());
        proxy
    };
    let said = "\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nX-Forwarded-Proto: https";
    let fields = "{ use = \"headers\", config.forwarded.fields = \"both\" }";
    {
        let _proxy = start("trusted-proxies = [\"unix:\"]\n", &format!("{TELLING}, {fields}"));
        let message = over_unix(&path, said);
        assert_eq!(got(&message, "x-knows"), ["203.0.113.9  203.0.113.9"]);
        assert_eq!(got(&message, "x-forwarded-for"), ["203.0.113.9"]);
        assert_eq!(got(&message, "x-forwarded-proto"), ["https"]);
        assert_eq!(got(&message, "x-real-ip"), ["203.0.113.9"]);
        assert_eq!(got(&message, "forwarded"), ["for=203.0.113.9;proto=https"]);
    }
    let _proxy = start("", fields);
    let message = over_unix(&path, said);
    assert_eq!(got(&message, "x-forwarded-for"), [""; 0]);
    assert_eq!(got(&message, "x-real-ip"), [""; 0]);
    assert_eq!(got(&message, "x-forwarded-proto"), ["http"]);
    assert_eq!(got(&message, "forwarded"), ["for=unknown;host=example.org;proto=http"]);
}

#[test]
fn the_proxy_protocol_says_who_the_peer_is_and_its_chain_is_read_from_there() {
    let keys = "proxy-protocol-from = [\"127.0.0.1\"]\ntrusted-proxies = [\"192.0.2.1\"]";
    let proxy = Proxy::start(&listening(&echo(), keys, TELLING, ""));
    let knows = |peer: &str| {
        let mut stream = proxy.connect();
        let head = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n";
        write!(stream, "PROXY TCP4 {peer} 192.0.2.9 1000 443\r\n{head}").unwrap();
        got(&read_message(&mut BufReader::new(stream)).unwrap(), "x-knows").remove(0)
    };
    assert_eq!(knows("192.0.2.1"), "203.0.113.9  203.0.113.9, 192.0.2.1");
    assert_eq!(knows("192.0.2.2"), "192.0.2.2 1000 192.0.2.2");
}

#[test]
fn a_balancer_at_a_unix_socket_can_speak_the_proxy_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("balancer");
    let listener = format!("[[listener]]\naddress = \"unix:{}\"\nproxy-protocol-from = [\"unix:\"]\n", path.display());
    let _proxy = Proxy::start(&manifest(&echo(), TELLING, &listener));
    until("the socket is there", || UnixStream::connect(&path).is_ok());
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n";
    write!(stream, "PROXY TCP4 203.0.113.9 192.0.2.9 1000 443\r\n{head}").unwrap();
    let message = read_message(&mut BufReader::new(stream)).unwrap();
    assert_eq!(got(&message, "x-knows"), ["203.0.113.9 1000 203.0.113.9"]);
}

#[test]
fn clients_behind_a_trusted_proxy_have_their_limits_each() {
    let gate = TcpListener::bind("127.0.0.1:0").unwrap();
    let keys = "trusted-proxies = [\"127.0.0.1\"]\nlimits.connections-per-client = 2";
    let text = listening(&gate.local_addr().unwrap().to_string(), keys, "", "");
    let proxy = Proxy::start(&text);
    let ask = |client: &str| {
        let mut stream = proxy.connect();
        write!(stream, "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n").unwrap();
        BufReader::new(stream)
    };
    // Has the endpoint get a request, and keep it.
    let reach = |client: &str| {
        let client = ask(client);
        let mut endpoint = BufReader::new(gate.accept().unwrap().0);
        read_message(&mut endpoint).unwrap();
        (client, endpoint)
    };
    let answer = |(mut client, endpoint): (BufReader<TcpStream>, BufReader<TcpStream>)| {
        endpoint.into_inner().write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!(read_message(&mut client).unwrap().status(), 204);
    };
    // Requests under way count, whichever connections of the proxy they come by.
    let held = [reach("203.0.113.9"), reach("203.0.113.9")];
    let refused = read_message(&mut ask("203.0.113.9")).unwrap();
    assert_eq!(refused.status(), 429, "{refused:?}");
    let line = proxy.wait_log("exchange failed");
    assert!(line.contains("limit=\"limits.connections-per-client\"") && line.contains("203.0.113.9"), "{line}");
    answer(reach("203.0.113.10"));
    held.into_iter().for_each(answer);
    answer(reach("203.0.113.9"));
    let closed = "plugway_client_connections_closed_total{listener=\"127.0.0.1:0\",reason=\"connections-per-client\"}";
    assert_eq!(proxy.metric(closed), 1.0);
}

#[test]
fn endpoints_are_told_of_the_client_that_a_trusted_proxy_names() {
    let behind = "proxy-protocol-from = [\"127.0.0.1\"]";
    let inner = Proxy::start(&listening(&echo(), behind, TELLING, ""));
    let text = listening(&inner.address, "trusted-proxies = [\"127.0.0.1\"]", "", "");
    let outer = Proxy::start(&text.replace("endpoints", "proxy-protocol = \"v2\"\nendpoints"));
    let message = get(&outer, &["X-Forwarded-For: 203.0.113.9:4711"]);
    assert_eq!(got(&message, "x-knows"), ["203.0.113.9 4711 203.0.113.9"]);
}

#[test]
fn hashing_by_client_sees_the_client_that_a_trusted_proxy_names() {
    let (one, other) = (echo_name("one"), echo_name("other"));
    let text = listening(&one, "trusted-proxies = [\"127.0.0.1\"]", "", "").replace(
        &format!("endpoints = [{one:?}]"),
        &format!(
            "endpoints = [{one:?}, {other:?}]\nbalancer = {{ use = \"balance\", config = {{ policy = \"source-hash\" }} }}"
        ),
    );
    let proxy = Proxy::start(&text);
    let ask = |client: usize| get(&proxy, &[&format!("X-Forwarded-For: 203.0.113.{client}")]).text();
    let names: Vec<String> = (0..32).map(ask).collect();
    assert_eq!(names, (0..32).map(ask).collect::<Vec<_>>(), "a client stays where it is");
    assert!(names.iter().any(|name| *name != names[0]), "clients are spread");
}

fn echo_name(name: &'static str) -> String {
    crate::support::origin(move |_| crate::support::ok(name))
}

#[test]
fn mistakes_in_the_trust_of_a_listener_are_told() {
    let check = |keys: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugway.toml");
        std::fs::write(&path, listening("127.0.0.1:1", keys, "", "")).unwrap();
        run(&["check", path.to_str().unwrap()])
    };
    let cases = [
        ("trusted-proxies = [\"unix\"]", "invalid network: `unix`"),
        ("trusted-proxies = [\"10/8\"]", "such as `10.0.0.0/8` or `::1`, or `unix:`"),
        ("client-address-from = \"forwarded\"", "add `trusted-proxies = "),
        ("trusted-proxies = [\"::1\"]\nclient-address-from = \"x real\"", "invalid field for the client's address"),
        ("trusted-proxies = [\"::1\"]\nclient-address-from = \"X_Real\"", "invalid field for the client's address"),
        ("trusted-proxies = [\"::1\"]\nclient-address-from = \"Host\"", "invalid field for the client's address"),
        ("trusted-proxies = [\"::1\"]\nclient-address-from = \"connection\"", "invalid field for the client's address"),
        ("field-aliases = \"drop\"", "expected \"remove\", \"reject\" or \"pass\""),
    ];
    for (keys, wanted) in cases {
        let (code, said) = check(keys);
        assert!(code == Some(1) && said.contains(wanted), "{keys}: {said}");
    }
    let (code, said) = check("trusted-proxies = [\"::1\", \"unix:\"]\nfield-aliases = \"reject\"");
    assert_eq!((code, said.as_str()), (Some(0), ""));
}

#[test]
fn a_plugins_own_list_of_trusted_proxies_is_told_to_have_moved() {
    let plugin = "{ use = \"headers\", config.forwarded.trusted-proxies = [\"127.0.0.1\"] }";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, manifest(&echo(), plugin, "")).unwrap();
    let output = plugway().arg("check").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("key without effect") && said.contains("[[listener]]"), "{said}");
    assert!(said.contains("plugway.toml:8"), "{said}");
    let proxy = Proxy::start(&manifest(&echo(), plugin, ""));
    assert_eq!(got(&get(&proxy, &["X-Forwarded-For: 6.6.6.6"]), "x-forwarded-for"), ["127.0.0.1"]);
}

// === Aliases of field names ===

const ALIASES: [&str; 6] =
    ["X-User: 0", "X_User: 1", "X.User: 2", "Proxy: http://evil.example", "Content_Length: 9", "X-Plain: 3"];

#[test]
fn field_names_that_origins_take_for_others_are_removed_refused_or_passed() {
    let by = |keys: &str| get(&Proxy::start(&listening(&echo(), keys, "", "")), &ALIASES);
    let removed = by("");
    assert_eq!((got(&removed, "x-user"), got(&removed, "x-plain")), (vec!["0".into()], vec!["3".into()]));
    for name in ["x_user", "x.user", "proxy", "content_length"] {
        assert_eq!(got(&removed, name), [""; 0], "{name}");
    }
    assert_eq!(by("field-aliases = \"reject\"").status(), 400);
    let passed = by("field-aliases = \"pass\"");
    for (name, value) in [("x_user", "1"), ("x.user", "2"), ("x-user", "0"), ("content_length", "9")] {
        assert_eq!(got(&passed, name), [value], "{name}");
    }
}

#[test]
fn fields_that_are_removed_are_counted_and_named_at_the_level_debug() {
    let mut command = plugway();
    command.env("PLUGWAY_LOG", "debug");
    let folder = tempfile::tempdir().unwrap();
    let proxy =
        Proxy::start_by(command, folder.path(), &listening(&echo(), "trusted-proxies = [\"192.0.2.0/24\"]", "", ""));
    let status = get(&proxy, &["api_key: secret", "X_User: 1", "X-Forwarded-Proto: https", "X-Plain: 1"]).status();
    assert_eq!(status, 200);
    for (field, key) in
        [("api_key", "field-aliases"), ("x_user", "field-aliases"), ("x-forwarded-proto", "trusted-proxies")]
    {
        let line = proxy.wait_log(&format!("field=\"{field}\""));
        let wanted = ["DEBUG", "field of a request removed", &format!("key=\"{key}\""), "peer=127.0.0.1"];
        assert!(wanted.iter().all(|part| line.contains(part)) && !line.contains("secret"), "{line}");
    }
    let metrics = proxy.ask_admin("GET /metrics").text();
    let counted = |reason: &str| {
        let end = format!("\",reason=\"{reason}\"}} ");
        let line = metrics
            .lines()
            .find(|line| line.starts_with("plugway_fields_removed_total{listener=") && line.contains(&end));
        line.unwrap_or_else(|| panic!("{metrics}")).rsplit(' ').next().unwrap().to_string()
    };
    assert_eq!((counted("alias"), counted("untrusted")), ("2".into(), "1".into()));
}

#[test]
fn an_edit_of_a_field_covers_its_aliases() {
    let edits = [
        ("set = { X-User = \"anonymous\" }", vec!["anonymous"]),
        ("remove = [\"X-User\"]", vec![]),
        ("append = { X-User = \"1\" }", vec!["0", "1"]),
        ("default = { X-User = \"anonymous\" }", vec!["0"]),
        ("set = { X-User = \"{note.absent}\" }", vec![]),
        ("rename = { X-User = \"X-Other\" }", vec![]),
    ];
    for each in ["", "evaluate-each = true, "] {
        for (edit, wanted) in &edits {
            let plugin = format!("{{ use = \"headers\", config = {{ {each}request = {{ {edit} }} }} }}");
            let proxy = Proxy::start(&listening(&echo(), "field-aliases = \"pass\"", &plugin, ""));
            let message = get(&proxy, &ALIASES);
            assert_eq!(got(&message, "x-user"), *wanted, "{edit}");
            assert_eq!((got(&message, "x_user"), got(&message, "x.user")), (vec![], vec![]), "{edit}");
            assert_eq!(got(&message, "content_length"), ["9"], "{edit}");
        }
    }
}

#[test]
fn a_fields_alias_is_in_the_key_of_a_cache_where_the_field_is() {
    let origin = crate::caching::Origin::new(|request, number| {
        let vary = if request.start.contains("/vary") { "\r\nVary: X-Device" } else { "" };
        crate::caching::response(&format!("Cache-Control: max-age=60{vary}"), &number.to_string())
    });
    let cache = "{ use = \"cache\", config.key.values = [\"request.header.x-tenant\"] }";
    let proxy = Proxy::start(&listening(&origin.address, "field-aliases = \"pass\"", cache, ""));
    let ask = |path: &str, field: &str| proxy.get(path, field).text();
    for (path, own, alias) in [
        ("/key", "\r\nX-Tenant: a", "\r\nX_Tenant: a"),
        ("/plan", "", "\r\nX_Tenant: a"),
        ("/obeyed", "", "\r\nX_HTTP_Method_Override: a"),
        ("/vary", "\r\nX-Device: a", "\r\nX_Device: a"),
        ("/vary-none", "", "\r\nX.Device: a"),
        ("/both", "\r\nX-Tenant: a", "\r\nX-Tenant: a\r\nX_Tenant: b"),
    ] {
        let (first, second) = (ask(path, own), ask(path, alias));
        assert_ne!(first, second, "{path}");
        assert_eq!((ask(path, own), ask(path, alias)), (first, second), "{path}: each is stored");
    }
}

// === The access log ===

#[test]
fn the_access_log_shows_the_clients_own_words() {
    let edit = "{ use = \"headers\", config.request = { set = { Host = \"inner.example\", Referer = \"https://edited/\" }, \
                remove = [\"User-Agent\"] } }";
    for (format, wanted) in [
        ("json", vec!["\"host\":\"EXAMPLE.org:80\"", "\"user_agent\":\"own/1\"", "\"referer\":\"https://own/\""]),
        ("combined", vec!["\"https://own/\" \"own/1\""]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let log = format!("[access-log]\nformat = \"{format}\"\nfile = \"access.log\"\n");
        let proxy = Proxy::start_in(folder.path(), &manifest(&echo(), edit, &log));
        let head = "GET / HTTP/1.1\r\nHost: EXAMPLE.org:80\r\nUser-Agent: own/1\r\nReferer: https://own/";
        let message = proxy.exchange(head);
        assert_eq!(got(&message, "host"), ["inner.example"]);
        let line = lines(&folder.path().join("access.log"), 1).remove(0);
        for part in wanted {
            assert!(line.contains(part), "{part} in {line}");
        }
        // Also of a request that no route is for, and of one that is refused.
        assert_eq!(proxy.exchange("GET / HTTP/1.1\r\nHost: a..b\r\nUser-Agent: own/2").status(), 400);
        let line = lines(&folder.path().join("access.log"), 2).remove(1);
        assert!(line.contains("own/2"), "{line}");
    }
}

/// Starts an origin that answers with the request that it received, trailers included.
fn whole_echo() -> String {
    crate::support::raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut got, mut line) = (String::new(), String::new());
        while !got.contains("\r\n0\r\n") || !got.ends_with("\r\n\r\n") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0);
            got += &line;
        }
        stream.write_all(&crate::support::ok(&got)).unwrap();
    })
}

/// Sends a request with trailers, and returns what the origin received.
fn with_trailers(proxy: &Proxy, trailers: &str) -> String {
    let mut stream = proxy.connect();
    let head =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\nConnection: close\r\n\r\n";
    write!(stream, "{head}1\r\na\r\n0\r\n{trailers}\r\n").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap().text()
}

#[test]
fn trailers_say_nothing_of_the_way_either() {
    let from = "address = \"127.0.0.1:0\"\ntrusted-proxies = [\"10.0.0.0/8\"]\nclient-address-from = \"x-edge\"\n";
    let text = manifest(&whole_echo(), "", "").replace("address = \"127.0.0.1:0\"\n", from);
    let proxy = Proxy::start(&text);
    let trailers = "X-Forwarded-For: 6.6.6.6\r\nx_real_ip: 6.6.6.6\r\nX_User: admin\r\nX-Edge: 6.6.6.6\r\nX-Sum: 1\r\n";
    let text = with_trailers(&proxy, trailers);
    assert!(text.contains("x-sum: 1") && !text.contains("6.6.6.6") && !text.contains("admin"), "{text}");
}

/// Some origins merge trailers into the head.
#[test]
fn a_field_that_a_plugin_has_edited_does_not_come_back_in_trailers() {
    let edits = "{ use = \"headers\", config.request = { set = { X-User = \"alice\" }, remove = [\"X-Internal\"], \
                 rename = { X-Old = \"X-New\" }, default = { X-Tenant = \"1\" } } }";
    for more in ["", "field-aliases = \"pass\"\n"] {
        let listener = format!("address = \"127.0.0.1:0\"\n{more}");
        let text = manifest(&whole_echo(), edits, "").replace("address = \"127.0.0.1:0\"\n", &listener);
        let proxy = Proxy::start(&text);
        let names = ["X-User", "x_user", "X-Internal", "X-Old", "X-Tenant"];
        let trailers: String = names.iter().map(|name| format!("{name}: spy\r\n")).collect();
        let text = with_trailers(&proxy, &format!("{trailers}X-Sum: 1\r\n"));
        assert!(text.contains("x-sum: 1") && text.contains("x-user: alice") && !text.contains("spy"), "{text}");
    }
}
