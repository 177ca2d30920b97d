//! The examples with body hooks and callouts in the running proxy, each with its own manifest.

use std::io::{BufReader, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use plugway_test_guests::{FORWARD_AUTH, REQUEST_SIGNING, WAF};

use crate::support::{Message, Proxy, echo, ok, origin, read_message, until};

/// Returns the manifest of an example, unchanged except for addresses and the path of the built plugin.
fn example(name: &str, component: &str, app: &str) -> String {
    let path = format!("{}/../examples/{name}/plugway.toml", env!("CARGO_MANIFEST_DIR"));
    let built = format!("../../target/wasm32-wasip2/release/example_{}.wasm", name.replace('-', "_"));
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(&built), "{text}");
    text.replace(&built, component).replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8000", app)
}

/// Sends a request with fields, each with its line end, and content of an announced length.
fn send(proxy: &Proxy, start: &str, fields: &str, content: &str) -> Message {
    let mut stream = proxy.connect();
    let length = content.len();
    let head = format!("{start} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n");
    // A request that is refused early is not read to its end.
    _ = stream.write_all(&[head.as_bytes(), content.as_bytes()].concat());
    read_message(&mut BufReader::new(stream)).unwrap()
}

/// Sends content in chunks, each split off where the network may split it.
fn send_chunks(proxy: &Proxy, start: &str, fields: &str, chunks: &[&str]) -> Message {
    let mut stream = proxy.connect();
    let head =
        format!("{start} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n{fields}\r\n");
    _ = stream.write_all(head.as_bytes());
    for chunk in chunks {
        _ = write!(stream, "{:x}\r\n{chunk}\r\n", chunk.len());
    }
    _ = stream.write_all(b"0\r\n\r\n");
    read_message(&mut BufReader::new(stream)).unwrap()
}

// === request-signing ===

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Returns the signature of a text by a key, made without the example's code.
fn signature(key: &str, time: u64, text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let mac = hmac::sign(&key, format!("v1\n{time}\n{text}").as_bytes());
    let digits: String = mac.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={time},v1={digits}")
}

/// An origin that answers with the one signature that it got, and with the content.
fn signed_origin() -> String {
    origin(|request| {
        let lines: Vec<_> = request.fields.iter().filter(|(name, _)| name == "x-signature").collect();
        assert!(lines.len() <= 1, "{lines:?}");
        ok(&format!("{} {}", lines.first().map_or("-", |(_, value)| value), request.text()))
    })
}

#[test]
fn the_signing_example_signs_bodies_of_all_kinds_and_requests_without() {
    const KEY: &str = "only-an-example-of-a-key";
    let proxy = Proxy::start(&example("request-signing", REQUEST_SIGNING, &signed_origin()));
    let check = |answer: Message, text: &str, content: &str| {
        assert_eq!(answer.status(), 200, "{answer:?}");
        let answer = answer.text();
        let (found, rest) = answer.split_once(' ').unwrap();
        let time: u64 = found.strip_prefix("t=").unwrap().split(',').next().unwrap().parse().unwrap();
        assert!(time.abs_diff(now()) < 60, "{found}");
        assert_eq!((found, rest), (signature(KEY, time, text).as_str(), content), "{text}");
    };
    let json = "Content-Type: application/json\r\nX-Signature: t=1,v1=00\r\n";
    let text = "POST\n/orders?a=1\napplication/json\n{\"id\":1}";
    check(send(&proxy, "POST /orders?a=1", json, "{\"id\":1}"), text, "{\"id\":1}");
    check(send_chunks(&proxy, "POST /orders?a=1", json, &["{\"i", "d\":", "1}"]), text, "{\"id\":1}");
    check(send(&proxy, "PUT /", "", ""), "PUT\n/\n\n", "");
    check(send_chunks(&proxy, "PUT /", "", &[]), "PUT\n/\n\n", "");
    check(proxy.get("/", "\r\nX-Signature: t=1,v1=00"), "GET\n/\n\n", "");
    // Compressed content is signed as it is sent.
    let coded = "Content-Encoding: gzip\r\n";
    check(send(&proxy, "POST /", coded, "no gzip"), "POST\n/\n\nno gzip", "no gzip");
    assert_eq!(send(&proxy, "POST /", "", &"x".repeat((1 << 20) + 1)).status(), 413);
}

#[test]
fn the_signing_example_lets_valid_signatures_pass_only() {
    const KEY: &str = "the-key-of-the-partner";
    let proxy = Proxy::start(&example("request-signing", REQUEST_SIGNING, &signed_origin()));
    let field = |signature: &str| format!("X-Signature: {signature}\r\n");
    let post = |signature: &str, content: &str| send(&proxy, "POST /partner/a", &field(signature), content);
    let valid = signature(KEY, now(), "POST\n/partner/a\n\nhello");
    assert_eq!(post(&valid, "hello").text(), format!("{valid} hello"));
    let refused = post(&valid, "hullo");
    assert_eq!((refused.status(), refused.text().as_str()), (401, "the signature is wrong\n"));
    assert_eq!(post(&signature("another-key-of-a-partner", now(), "POST\n/partner/a\n\nhello"), "hello").status(), 401);
    assert_eq!(post(&signature(KEY, now() - 400, "POST\n/partner/a\n\nhello"), "hello").status(), 401);
    assert_eq!(post(&format!("{valid}\r\nX-Signature: {valid}"), "hello").status(), 401, "two signatures");
    // Nothing gets past the body hook: no body, an empty one, empty chunks, a long one, a part.
    let statuses = [
        proxy.get("/partner/a", ""),
        send(&proxy, "POST /partner/a", "", ""),
        send_chunks(&proxy, "POST /partner/a", "", &[]),
        send_chunks(&proxy, "POST /partner/a", "", &["hel", "lo"]),
    ];
    assert_eq!(statuses.map(|answer| answer.status()), [401; 4]);
    assert_eq!(post(&valid, &"x".repeat((64 << 10) + 1)).status(), 413);
    let part = format!("{}Content-Range: bytes 0-4/9\r\n", field(&valid));
    assert_eq!(send(&proxy, "PUT /partner/a", &part, "hello").status(), 400);
    let empty = signature(KEY, now(), "GET\n/partner/a\n\n");
    assert_eq!(proxy.get("/partner/a", &format!("\r\nX-Signature: {empty}")).status(), 200);
}

// === waf ===

#[test]
fn the_waf_example_refuses_heads_and_bodies_and_logs_the_rule() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let app = origin(move |request| {
        count.fetch_add(1, Ordering::Relaxed);
        ok(&request.text())
    });
    let text = example("waf", WAF, &app).replace("format = \"json\"", "format = \"json\"\nfile = \"access.log\"");
    let proxy = Proxy::start(&text);
    let rule = |answer: Message| {
        assert_eq!(answer.status(), 403, "{answer:?}");
        let rule = answer.field("x-waf-rule").unwrap().to_string();
        assert_eq!(answer.text(), format!("refused by the rule {rule}\n"));
        rule
    };
    let post = |content: &str| send(&proxy, "POST /", "Content-Type: application/json\r\n", content);
    let heads = [
        proxy.exchange("DELETE / HTTP/1.1\r\nHost: a"),
        proxy.get("/.git/config", ""),
        proxy.get("/?q=%2575nion%2520select", ""),
        proxy.get("/?page=1&p%61ge=4", ""),
        proxy.get("/", &format!("\r\nCookie: session=1; session={}", "x".repeat(129))),
        proxy.get("/", "\r\nUser-Agent: curl\r\nUser-Agent: sqlmap"),
        proxy.get("/", "\r\nX-Any: ${jndi:ldap://a}"),
    ];
    assert_eq!(heads.map(rule), ["methods", "dot-files", "sql", "page", "session", "scanners", "log4shell"]);
    assert_eq!(rule(post(r#"{ "a": "\u003cscript>", "a": "" }"#)), "markup");
    assert_eq!(rule(post("role=user&r%6fle=admin")), "role");
    let split = send_chunks(&proxy, "POST /", "", &["role=us", "er&ro", "le=adm", "in"]);
    assert_eq!(rule(split), "role");
    assert_eq!(post(&"x".repeat((64 << 10) + 1)).status(), 413);
    let long = "x".repeat(1000);
    assert_eq!(send_chunks(&proxy, "POST /", "", &vec![long.as_str(); 66]).status(), 413);
    assert_eq!(send(&proxy, "POST /", "Content-Encoding: gzip\r\n", "x").status(), 415);
    assert_eq!(asked.load(Ordering::Relaxed), 0, "no endpoint hears of a refused request");
    assert_eq!(post("role=user&page=4").text(), "role=user&page=4");
    assert_eq!(proxy.get("/?page=3", "\r\nCookie: session=1").status(), 200);
    until("the log has the rules of refused requests", || {
        let log = std::fs::read_to_string(proxy.folder.path().join("access.log")).unwrap_or_default();
        log.contains(r#""notes":{"waf-rule":"markup"}"#) && log.matches(r#""waf-rule":"role""#).count() == 2
    });
}

// === forward-auth ===

#[test]
fn the_forward_auth_example_remembers_answers_for_a_time() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let auth = origin(move |request: &Message| {
        count.fetch_add(1, Ordering::Relaxed);
        match request.field("cookie") {
            Some("session=1") => b"HTTP/1.1 204 No Content\r\nX-User: alice\r\n\r\n".to_vec(),
            _ => b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_vec(),
        }
    });
    let text = example("forward-auth", FORWARD_AUTH, &echo()).replace("127.0.0.1:8001", &auth);
    let proxy = Proxy::start(&format!("workers = 4\n{}", text.replace("\"10s\"", "\"1s\"")));
    let get = |cookie: &str| proxy.get("/a", &format!("\r\nCookie: {cookie}\r\nX-User: root"));
    let begin = std::time::Instant::now();
    for _ in 0..20 {
        let passed = get("session=1");
        assert!(passed.text().contains("x-user: alice\n") && !passed.text().contains("root"), "{}", passed.text());
    }
    // All workers remember an answer; on a slow machine for fewer requests.
    let most = 1 + usize::try_from(begin.elapsed().as_secs()).unwrap();
    assert!(asked.load(Ordering::Relaxed) <= most);
    until("an answer is forgotten", || {
        get("session=1");
        asked.load(Ordering::Relaxed) >= 2
    });
    let before = asked.load(Ordering::Relaxed);
    assert_eq!([get("session=2").status(), get("session=2").status()], [401, 401]);
    assert_eq!(asked.load(Ordering::Relaxed), before + 2, "refusals are not remembered");
}
