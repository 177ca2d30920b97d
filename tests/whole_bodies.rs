//! Body hooks that get whole bodies: they may respond, edit the head, and put other content in place.

use std::io::{BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use plugway_test_guests::{BODIES, HOOKS};

use crate::support::{Message, Proxy, manifest, ok, origin, raw_origin, read_message, until};

/// The table of the plugin `bodies`, which takes whole bodies of at most 64 bytes, and more keys of it.
fn plugin(more: &str) -> String {
    format!("[plugin.bodies]\nuse = {BODIES:?}\nconfig = {{ bodies = \"whole:64\" }}\n{more}\n")
}

/// An origin that answers with the content that it got; it describes that content, and tells what it got besides.
fn mirror() -> String {
    origin(|request| {
        let told = ["x-signature", "content-length", "transfer-encoding", "content-digest", "x-swapped"];
        let told = told.map(|name| request.field(name).unwrap_or("-")).join("|");
        let path = request.start.split(' ').nth(1).unwrap_or("-");
        let about = "ETag: \"a\"\r\nContent-Digest: a=:AA=:\r\nAccept-Ranges: bytes\r\nContent-Type: text/x";
        let length = request.body.len();
        let head = format!("HTTP/1.1 200 OK\r\nX-Got: {path}|{told}\r\n{about}\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), &request.body].concat()
    })
}

fn whole(more: &str) -> Proxy {
    Proxy::start(&manifest(&mirror(), "\"bodies\"", &plugin(more)))
}

fn post(proxy: &Proxy, content: &str) -> Message {
    let mut stream = proxy.connect();
    let head = "POST /in HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Digest: a=:AA=:";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{content}", content.len()).unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

fn post_chunks<'a>(proxy: &Proxy, chunks: impl IntoIterator<Item = &'a str>) -> Message {
    let mut stream = proxy.connect();
    stream
        .write_all(b"POST /in HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    for chunk in chunks.into_iter().filter(|chunk| !chunk.is_empty()) {
        write!(stream, "{:x}\r\n{chunk}\r\n", chunk.len()).unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

#[test]
fn a_request_may_be_answered_before_an_endpoint_hears_of_it() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let origin = origin(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        ok("here")
    });
    let proxy = Proxy::start(&manifest(&origin, "\"bodies\"", &plugin("")));
    for answer in [post(&proxy, "q:deny"), post_chunks(&proxy, ["q:de", "ny"])] {
        assert_eq!((answer.status(), answer.text().as_str()), (403, "denied"));
        assert_eq!((answer.field("x-denied"), answer.field("content-length")), (Some("yes"), Some("6")));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    assert_eq!(post(&proxy, "fine").text(), "here");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn a_request_may_be_signed_by_what_its_content_is() {
    let proxy = whole("");
    let known = post(&proxy, "q:sign");
    assert_eq!(known.text(), "q:sign");
    assert_eq!(
        known.field("x-got"),
        Some("/in|q [POST -] 6|6|-|a=:AA=:|-"),
        "the content is the one that it describes"
    );
    let chunked = post_chunks(&proxy, ["q:", "sign"]);
    assert_eq!((chunked.text().as_str(), chunked.field("x-got")), ("q:sign", Some("/in|q [POST -] 6|6|-|-|-")));
}

#[test]
fn content_that_is_replaced_has_its_own_length_and_no_digest_of_the_old() {
    let proxy = whole("");
    let request = post(&proxy, "q:swap");
    assert_eq!((request.text().as_str(), request.field("x-got")), ("Q:SWAP", Some("/in|-|6|-|-|yes")));
    assert_eq!((request.field("etag"), request.field("content-digest")), (Some("\"a\""), Some("a=:AA=:")));
    let response = post(&proxy, "r:swap");
    assert_eq!((response.text().as_str(), response.field("x-swapped")), ("R:SWAP", Some("yes")));
    assert_eq!((response.field("content-length"), response.field("etag")), (Some("6"), Some("W/\"a\"")));
    assert_eq!((response.field("content-digest"), response.field("accept-ranges")), (None, None));
    let empty = post(&proxy, "q:empty");
    assert_eq!((empty.text().as_str(), empty.field("x-got")), ("", Some("/in|-|0|-|-|-")));
    assert_eq!(post(&proxy, "r:empty").field("content-length"), Some("0"));
}

#[test]
fn replaced_content_may_be_as_long_as_the_memory_of_the_plugin() {
    let origin = origin(|request| ok(&request.body.len().to_string()));
    let proxy = Proxy::start(&manifest(&origin, "\"bodies\"", &plugin("limits.cpu = \"5s\"")));
    assert_eq!(post(&proxy, "q:huge").text(), (5 << 20).to_string());
}

#[test]
fn the_memory_of_bodies_is_returned_to_the_system_once_they_have_ended() {
    const BYTES: usize = 14 << 20;
    let table = plugin("").replace("whole:64", "whole:16000000");
    let proxy = Proxy::start(&manifest(&mirror(), "\"bodies\"", &table));
    proxy.get("/", "");
    let (before, content) = (proxy.memory_kib(), vec![b'x'; BYTES]);
    let send = || {
        let mut stream = proxy.connect();
        write!(stream, "POST /in HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", BYTES + 1).unwrap();
        stream.write_all(&content).unwrap();
        stream
    };
    let clients: Vec<_> = (0..16).map(|_| send()).collect();
    until("the bodies are held", || proxy.memory_kib() > before + (150 << 10));
    drop(clients);
    until("their memory is returned", || proxy.memory_kib() < before + (40 << 10));
}

#[test]
fn a_response_may_get_another_head_or_be_replaced() {
    let proxy = whole("");
    let signed = post(&proxy, "r:sign");
    assert_eq!((signed.text().as_str(), signed.field("x-signature")), ("r:sign", Some("r [200 text/x] 6")));
    assert_eq!((signed.field("etag"), signed.field("content-length")), (Some("\"a\""), Some("6")));
    assert_eq!(post(&proxy, "r:status").status(), 418);
    let denied = post(&proxy, "r:deny");
    assert_eq!((denied.status(), denied.text().as_str(), denied.field("etag")), (403, "denied", None));
}

#[test]
fn a_response_in_place_of_another_passes_the_plugins_above() {
    let above = "\"security-headers\", { use = \"headers\", config.response.append = { X-Seen = \"{status}\" } }";
    for chain in [format!("{above}, \"bodies\""), format!("{above}, \"cache\", \"bodies\"")] {
        let proxy = Proxy::start(&manifest(&mirror(), &chain, &plugin("")));
        let denied = post(&proxy, "r:deny");
        assert_eq!((denied.status(), denied.text().as_str()), (403, "denied"), "{chain}");
        assert_eq!(denied.field("x-content-type-options"), Some("nosniff"), "{chain}");
        assert!(denied.fields.iter().any(|(name, value)| name == "x-seen" && value == "403"), "{chain}: {denied:?}");
    }
    // Between a cache and the hook, too.
    let chain = "\"cache\", { use = \"headers\", config.response.set = { X-Seen = \"{status}\" } }, \"bodies\"";
    let denying = origin(|_| ok("r:deny"));
    let proxy = Proxy::start(&manifest(&denying, chain, &plugin("")));
    let denied = proxy.get("/", "");
    assert_eq!((denied.status(), denied.field("x-seen")), (403, Some("403")), "{denied:?}");
}

#[test]
fn a_body_that_a_plugin_may_keep_keeps_its_validators_without_content_too() {
    let origin = origin(|request| match request.start.split(' ').next() {
        Some("HEAD") => b"HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 2\r\n\r\n".to_vec(),
        _ if request.field("if-none-match").is_some() => b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    });
    let proxy = Proxy::start(&manifest(&origin, "\"bodies\"", &plugin("")));
    let condition = "\r\nIf-None-Match: \"a\"";
    for (method, fields, status) in [("GET", "", 200), ("HEAD", "", 200), ("GET", condition, 304)] {
        let mut stream = proxy.connect();
        write!(stream, "{method} / HTTP/1.1\r\nHost: a\r\nConnection: close{fields}\r\n\r\n").unwrap();
        let mut head = String::new();
        stream.read_to_string(&mut head).unwrap();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains("etag: \"a\"\r\n"),
            "{method}: {head}"
        );
    }
}

#[test]
fn a_request_may_get_another_path_and_upstream() {
    let other = mirror();
    let more = format!("{}[upstream.other]\nendpoints = [{other:?}]\n", plugin(""));
    let proxy = Proxy::start(&manifest(&origin(|_| ok("not here")), "\"bodies\"", &more));
    let moved = post(&proxy, "q:elsewhere");
    assert_eq!((moved.text().as_str(), moved.field("x-got")), ("q:elsewhere", Some("/else|-|11|-|a=:AA=:|-")));
}

#[test]
fn a_failed_call_at_a_whole_body_is_a_matter_of_on_error() {
    let proxy = whole("");
    for (word, cause) in [
        ("trap", "told to trap at a whole body"),
        ("fail", "it gave up: told to fail"),
        ("framing", "belongs to the framing"),
        ("again", "it decided about a body that it has received already"),
        ("greedy", "limits.memory"),
        ("spin", "limits.cpu of 50 ms exceeded"),
    ] {
        for side in ["q", "r"] {
            let failed = post(&proxy, &format!("{side}:{word}"));
            assert_eq!((failed.status(), failed.field("proxy-status")), (502, Some("plugway; error=plugin_error")));
        }
        proxy.wait_log(cause);
    }
    let proxy = whole("on-error = 451");
    assert_eq!((post(&proxy, "q:trap").status(), post(&proxy, "r:trap").status()), (451, 451));
    let proxy = whole("on-error = \"skip\"");
    for word in ["q:trap", "r:trap", "r:fail", "q:again"] {
        let passed = post(&proxy, word);
        assert_eq!((passed.status(), passed.text().as_str(), passed.field("etag")), (200, word, Some("\"a\"")));
    }
    let line = proxy.wait_log("hook=\"buffered-response-body\"");
    assert!(line.contains("plugin failed") && line.contains("request_id"), "{line}");
}

#[test]
fn calls_and_failures_at_whole_bodies_are_counted() {
    let proxy = whole("on-error = \"skip\"");
    let metric = |name: &str| proxy.metric(&format!("plugway_plugin_{name}_total{{plugin=\"bodies\"}}"));
    post(&proxy, "fine");
    assert_eq!((metric("calls"), metric("failures")), (4.0, 0.0), "two heads, two bodies");
    post(&proxy, "q:trap");
    assert_eq!((metric("calls"), metric("failures")), (8.0, 1.0));
}

#[test]
fn a_plan_that_decides_about_bodies_has_no_effect_at_a_body() {
    let proxy = whole("");
    assert_eq!((post(&proxy, "q:plan").text(), post(&proxy, "r:plan").text()), ("q:plan".into(), "r:plan".into()));
}

#[test]
fn content_beyond_the_limit_is_rejected_or_passes_without_a_call() {
    let long = format!("q:deny r:deny {}", "x".repeat(100));
    let proxy = whole("");
    for refused in [post(&proxy, &long), post_chunks(&proxy, [&long[..60], &long[60..]])] {
        assert_eq!(
            (refused.status(), refused.field("proxy-status")),
            (413, Some("plugway; error=http_request_body_size"))
        );
    }
    proxy.wait_log("`bodies` takes 64");
    let passing = plugin("").replace("whole:64", "whole-or-pass:64");
    let proxy = Proxy::start(&manifest(&mirror(), "\"bodies\"", &passing));
    let known = post(&proxy, &long);
    assert_eq!((known.status(), known.text(), known.field("etag")), (200, long.clone(), Some("\"a\"")));
    let chunked = post_chunks(&proxy, [&long[..60], &long[60..70], &long[70..]]);
    assert_eq!((chunked.status(), chunked.text()), (200, long));
}

#[test]
fn a_response_beyond_the_limit_is_rejected_before_its_head_is_sent() {
    let long = origin(|_| ok(&"x".repeat(100)));
    let proxy = Proxy::start(&manifest(&long, "\"bodies\"", &plugin("")));
    let refused = proxy.get("/", "");
    assert_eq!(
        (refused.status(), refused.field("proxy-status")),
        (502, Some("plugway; error=http_response_body_size"))
    );
    let broken = raw_origin(|mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").unwrap();
    });
    let proxy = Proxy::start(&manifest(&broken, "\"bodies\"", &plugin("")));
    assert_eq!(proxy.get("/", "").status(), 502, "the endpoint broke it off, and the client gets a whole error");
}

/// Returns what the client and the origin get of content that is cut at a place.
fn outcome(answer: &Message) -> (u16, String, Vec<Option<String>>) {
    let fields = ["x-got", "x-signature", "x-swapped", "etag", "content-length"];
    let fields = fields.map(|name| answer.field(name).map(String::from)).to_vec();
    (answer.status(), answer.text(), fields)
}

#[test]
fn content_has_one_outcome_wherever_it_is_cut() {
    let proxy = whole("");
    let streaming = Proxy::start(&manifest(&mirror(), "\"bodies\"", &plugin("").replace("whole:64", "stream")));
    for content in ["q:sign r:sign", "q:swap r:swap", "q:deny", "r:deny", "0123456789"] {
        for proxy in [&proxy, &streaming] {
            let wanted = outcome(&post_chunks(proxy, [content]));
            for cut in 1..content.len() {
                let pieces = [&content[..cut], &content[cut..]];
                assert_eq!(outcome(&post_chunks(proxy, pieces)), wanted, "{pieces:?}");
            }
            let single = (0..content.len()).map(|at| &content[at..=at]);
            assert_eq!(outcome(&post_chunks(proxy, single)), wanted, "{content}, byte by byte");
        }
    }
}

#[test]
fn whole_bodies_have_passed_the_plugins_before_and_pass_those_behind() {
    // `hooks` puts bodies in capitals and a mark behind them.
    let hooks = format!("{{ use = {HOOKS:?} }}");
    let below = Proxy::start(&manifest(&mirror(), &format!("\"bodies\", {hooks}"), &plugin("")));
    // Down: the plugin sees what the client sent. Up: what `hooks` made of it.
    let answer = post(&below, "q:sign");
    assert_eq!(answer.text(), "Q:SIGN!!");
    assert!(answer.field("x-got").is_some_and(|got| got.starts_with("/in|q [POST -] 6|7|-|")), "{answer:?}");
    let above = Proxy::start(&manifest(&mirror(), &format!("{hooks}, \"bodies\""), &plugin("")));
    let answer = post(&above, "abc");
    assert_eq!(answer.text(), "ABC!!");
    assert_eq!(answer.field("x-got"), Some("/in|-|4|-|-|-"), "gathered, so its length is known again");
}

#[test]
fn trailers_pass_a_hook_that_takes_the_body_whole() {
    let origin = origin(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Kept, Content-Digest\r\n\r\n6\r\nr:swap\r\n0\r\n\
          X-Kept: 1\r\nContent-Digest: a=:AA=:\r\n\r\n"
            .to_vec()
    });
    let proxy = Proxy::start(&manifest(&origin, "\"bodies\"", &plugin("")));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (content, trailers) = answer.split_once("\r\n0\r\n").unwrap();
    assert!(content.ends_with("R:SWAP") && trailers.contains("x-kept: 1") && !trailers.contains("digest"), "{answer}");
}

#[test]
fn a_request_with_a_whole_body_is_sent_again_whatever_its_length() {
    let refuse = Arc::new(AtomicUsize::new(1));
    let origin = raw_origin(move |mut stream| {
        let Some(request) = read_message(&mut BufReader::new(stream.try_clone().unwrap())) else { return };
        if refuse.load(Ordering::Relaxed) > 0 {
            refuse.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        stream.write_all(&ok(&request.text())).unwrap();
    });
    let text = manifest(&origin, "\"bodies\"", &plugin(""));
    let retry = "[upstream.app.retry]\nretries = 1\nbuffer = \"1 B\"\n";
    let proxy = Proxy::start(&text.replace("[[route]]", &format!("{retry}[[route]]")));
    let mut stream = proxy.connect();
    stream.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 6\r\n\r\nq:swap").unwrap();
    let answer = read_message(&mut BufReader::new(stream)).unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "Q:SWAP"));
}

#[test]
fn bodies_that_wait_for_their_end_are_bounded() {
    let more = "limits = { bodies = 4, body-wait = \"10ms\" }";
    let proxy = whole(more);
    let begin = || {
        let mut stream = proxy.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 6\r\n\r\nq:sig").unwrap();
        stream
    };
    let mut held = Vec::new();
    proxy.log_until("limits.bodies of 4", || held.push(begin()));
    let refused = read_message(&mut BufReader::new(begin())).unwrap();
    assert_eq!((refused.status(), refused.field("retry-after")), (503, Some("1")));
    let mut first = held.remove(0);
    first.write_all(b"n").unwrap();
    // Its response needs a place too, which its request has given back.
    let answer = read_message(&mut BufReader::new(first)).unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "q:sign"));
    drop(held);
    until("the places are free again", || post(&proxy, "fine").status() == 200);
}
