//! The cache in a chain: RFC 9111 over real sockets, collapsing, purges, failures of the origin.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use plugway_test_guests::{MISBEHAVE, POLICY, SHOP_CACHE, SPLIT, WAITING};

use crate::support::{
    Message, PATIENCE, Proxy, manifest, origin, output, raw_origin, read_message, refusing, until, vanish,
};

pub const CACHE: &str = r#""cache""#;
pub const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\n";

/// An origin that counts and records its requests.
pub struct Origin {
    pub address: String,
    asked: Arc<Mutex<Vec<Message>>>,
}

impl Origin {
    /// Starts an origin with an answer per request; the number is that of the request, from 1 on.
    pub fn new(answer: impl Fn(&Message, usize) -> String + Send + Sync + Clone + 'static) -> Self {
        let asked = Arc::<Mutex<Vec<Message>>>::default();
        let known = asked.clone();
        let address = origin(move |request| {
            let number = {
                let mut known = known.lock().unwrap();
                known.push(request.clone());
                known.len()
            };
            answer(request, number).into_bytes()
        });
        Origin { address, asked }
    }

    /// Starts an origin that always sends the same fields; its body is the number of the request.
    pub fn always(fields: &'static str) -> Self {
        Origin::new(move |_, number| response(fields, &number.to_string()))
    }

    pub fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub fn last(&self) -> Message {
        self.asked.lock().unwrap().last().unwrap().clone()
    }

    fn proxy(&self) -> Proxy {
        Proxy::start(&manifest(&self.address, CACHE, ""))
    }
}

pub fn response(fields: &str, content: &str) -> String {
    let end = if fields.is_empty() { "" } else { "\r\n" };
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{fields}{end}\r\n{content}", content.len())
}

pub fn status_of(message: &Message) -> &str {
    message.field("cache-status").unwrap_or("none")
}

/// Repeats a request until the cache reports a given status.
fn until_says(proxy: &Proxy, path: &str, wanted: &str) -> Message {
    let mut last = None;
    until(wanted, || {
        let got = proxy.get(path, "");
        let says = status_of(&got).contains(wanted);
        last = Some(got);
        says
    });
    last.unwrap()
}

#[test]
fn fresh_response_is_served_with_its_age_and_without_the_origin() {
    let origin = Origin::always("Cache-Control: max-age=60\r\nAge: 7");
    let proxy = origin.proxy();
    let first = proxy.get("/a?b", "");
    // What is left of 53 s, in whole seconds.
    let forwarded = "plugway; fwd=uri-miss; fwd-status=200";
    assert!(["53", "52"].map(|ttl| format!("{forwarded}; ttl={ttl}; stored")).contains(&status_of(&first).to_string()));
    let second = proxy.get("/a?b", "");
    assert!(status_of(&second).starts_with("plugway; hit; ttl=5"), "{second:?}");
    assert!(second.field("age").unwrap().parse::<u64>().unwrap() >= 7);
    assert!(second.field("date").is_some());
    assert_eq!((second.text().as_str(), origin.count()), ("1", 1));
    assert_eq!(proxy.get("/a?c", "").text(), "2", "another query is another resource");
}

#[test]
fn head_is_answered_from_get() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let proxy = origin.proxy();
    proxy.get("/", "");
    let mut stream = proxy.connect();
    write!(stream, "HEAD / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("plugway; hit") && answer.contains("content-length: 1\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(origin.count(), 1);
}

#[test]
fn rfc_9111_section_3_what_must_not_be_stored_is_not() {
    let cases = [
        ("Cache-Control: no-store, max-age=60", "", "detail=no-store"),
        ("Cache-Control: private, max-age=60", "", "detail=private"),
        ("Cache-Control: max-age=60\r\nSet-Cookie: a=1", "", "detail=set-cookie"),
        ("Cache-Control: max-age=60\r\nVary: *", "", "detail=vary"),
        ("Cache-Control: max-age=60", "\r\nAuthorization: Basic YTpi", "detail=authorization"),
        ("Cache-Control: max-age=60", "\r\nCache-Control: no-store", "detail=request"),
        ("", "", "detail=no-lifetime"),
    ];
    for (fields, request, detail) in cases {
        let origin = Origin::always(fields);
        let proxy = origin.proxy();
        let first = proxy.get("/", request);
        assert!(status_of(&first).ends_with(detail), "{fields}{request}: {first:?}");
        proxy.get("/", request);
        assert_eq!(origin.count(), 2, "{fields}{request}");
    }
}

/// Origins differ in the cookie that they read of several with one name, and a client chooses their order.
#[test]
fn a_repeated_cookie_hides_no_page_of_one_client_behind_an_empty_one() {
    let origin = Origin::new(|request, _| {
        let cookies: Vec<_> = request.fields.iter().filter(|(name, _)| name == "cookie").collect();
        response("Cache-Control: max-age=60", &format!("{cookies:?}"))
    });
    let policy = "[plugin.edge]\nuse = \"cache\"\nconfig = { bypass = [\"cookie.session\", \"cookie.logged_in_*\"], \
                  key.values = [\"cookie.lang\", \"query.l\"], key.only-query = [\"user_id\"] }\n";
    for policy in [policy.to_string(), policy.replace(", key.only-query = [\"user_id\"]", "")] {
        let proxy = Proxy::start(&manifest(&origin.address, "\"edge\"", &policy));
        let ask = |target: &str, cookies: &str| {
            let fields = if cookies.is_empty() { String::new() } else { format!("\r\nCookie: {cookies}") };
            status_of(&proxy.get(target, &fields)).to_string()
        };
        for cookies in [
            "session=; session=mallory",
            "session=\r\nCookie: session=mallory",
            "session =mallory",
            "a=1, session=mallory",
            "session=mallory",
            "logged_in_ab12=admin",
            "logged_in_=; logged_in_ab12=admin",
            "a=1\r\nCookie: logged_in_x=1",
        ] {
            let status = ask("/bypass", cookies);
            assert!(status.contains("fwd=bypass; fwd-status=200; detail=configured"), "{cookies}: {status}");
        }
        assert!(ask("/bypass", "session=").ends_with("stored") && ask("/bypass", "").contains("hit"));
        for cookies in ["lang=en", "lang=en; lang=de", "lang=de; lang=en", "lang =en", "lang=de"] {
            assert!(ask("/lang", cookies).ends_with("stored"), "{cookies}");
            assert!(ask("/lang", cookies).contains("plugway; hit"), "{cookies}");
        }
        for query in ["l=en", "l=en&l=de", "l=de&l=en", "user_id=1&user.id=5", "user.id=5", "USER_ID=5"] {
            assert!(ask(&format!("/query?{query}"), "").ends_with("stored"), "{query}: {policy}");
        }
    }
}

#[test]
fn rfc_9111_section_4_1_each_variant_for_whom_it_was_made() {
    let origin = Origin::new(|request, _| {
        let language = request.field("accept-language").unwrap_or("none").to_string();
        response("Cache-Control: max-age=60\r\nVary: Accept-Language", &language)
    });
    let proxy = origin.proxy();
    for _ in 0..2 {
        for language in ["de", "en", "fr"] {
            assert_eq!(proxy.get("/", &format!("\r\nAccept-Language: {language}")).text(), language);
        }
        assert_eq!(proxy.get("/", "").text(), "none");
    }
    assert_eq!(origin.count(), 4);
    let new = proxy.get("/", "\r\nAccept-Language: it");
    assert!(status_of(&new).contains("fwd=vary-miss"), "{new:?}");
}

#[test]
fn rfc_9111_section_4_3_what_is_stale_is_validated_and_takes_the_fields_of_the_304() {
    let origin = Origin::new(|request, number| match request.field("if-none-match") {
        Some("\"a\"") => format!("HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nX-Turn: {number}\r\n\r\n"),
        _ => response("Cache-Control: max-age=1\r\nETag: \"a\"\r\nX-Turn: 1\r\nX-Kept: yes", "content"),
    });
    let proxy = origin.proxy();
    proxy.get("/", "");
    let validated = until_says(&proxy, "/", "fwd=stale; fwd-status=304");
    assert_eq!((validated.status(), validated.text().as_str()), (200, "content"));
    assert_eq!((validated.field("x-turn"), validated.field("x-kept")), (Some("2"), Some("yes")));
    let after = proxy.get("/", "");
    assert!(status_of(&after).starts_with("plugway; hit"), "fresh again for a minute: {after:?}");
    assert_eq!((after.field("x-turn"), origin.count()), (Some("2"), 2));
}

#[test]
fn rfc_9111_section_4_3_2_clients_hear_that_they_have_it() {
    const MODIFIED: &str = "Wed, 01 Jan 2020 00:00:00 GMT";
    let origin = Origin::new(|request, _| {
        assert!(request.field("if-none-match").is_none() && request.field("range").is_none(), "{request:?}");
        response(
            "Cache-Control: max-age=60\r\nETag: W/\"a\"\r\nLast-Modified: Wed, 01 Jan 2020 00:00:00 GMT",
            "content",
        )
    });
    let proxy = origin.proxy();
    let first = proxy.get("/", "\r\nIf-None-Match: \"b\", \"a\"");
    assert_eq!((first.status(), first.text().as_str()), (304, ""), "be it stored only now");
    for (condition, status) in [
        ("If-None-Match: W/\"a\"".to_string(), 304),
        ("If-None-Match: *".into(), 304),
        ("If-None-Match: \"b\"".into(), 200),
        (format!("If-Modified-Since: {MODIFIED}"), 304),
        ("If-Modified-Since: Tue, 31 Dec 2019 00:00:00 GMT".into(), 200),
        (format!("If-None-Match: \"b\"\r\nIf-Modified-Since: {MODIFIED}"), 200),
    ] {
        let got = proxy.get("/", &format!("\r\n{condition}"));
        assert_eq!(got.status(), status, "{condition}");
        assert_eq!(got.field("etag"), Some("W/\"a\""), "{condition}");
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn a_part_of_what_is_not_stored_is_asked_for_as_a_part() {
    let origin = Origin::new(|request, _| match request.field("range") {
        Some("bytes=2-4") => {
            "HTTP/1.1 206 Partial Content\r\nCache-Control: no-store\r\nContent-Range: bytes 2-4/10\r\n\
                               Content-Length: 3\r\n\r\n234"
                .into()
        }
        Some(other) => panic!("{other}"),
        None => response("Cache-Control: no-store\r\nAccept-Ranges: bytes", "0123456789"),
    });
    let proxy = origin.proxy();
    for asked in [2, 3] {
        let part = proxy.get("/", "\r\nRange: bytes=2-4");
        assert_eq!((part.status(), part.text().as_str()), (206, "234"));
        assert_eq!(part.field("content-range"), Some("bytes 2-4/10"));
        assert_eq!(origin.count(), asked, "from the second time on it is known that the response is not stored");
    }
    assert_eq!(proxy.get("/", "").text(), "0123456789");
}

#[test]
fn dates_of_clients_may_be_in_any_case_and_form() {
    let fields = "Cache-Control: max-age=60\r\nLast-Modified: wed, 01 JAN 2020 00:00:00 gmt";
    let origin = Origin::new(move |_, _| response(fields, "content"));
    let proxy = origin.proxy();
    assert_eq!(proxy.get("/", "").status(), 200);
    for date in ["Wed, 01 Jan 2020 00:00:00 GMT", "WEDNESDAY, 01-jan-20 00:00:00 gmt", "wed jan  1 00:00:00 2020"] {
        assert_eq!(proxy.get("/", &format!("\r\nIf-Modified-Since: {date}")).status(), 304, "{date}");
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn rfc_9110_section_14_ranges_come_from_the_whole() {
    let fields = "Cache-Control: max-age=60\r\nETag: \"a\"\r\nContent-Type: text/x";
    let origin = Origin::new(move |_, _| response(fields, "0123456789"));
    let proxy = origin.proxy();
    let ask = |range: &str| proxy.get("/", &format!("\r\nRange: {range}"));
    for (range, content_range, text) in [
        ("bytes=2-4", "bytes 2-4/10", "234"),
        ("bytes=7-", "bytes 7-9/10", "789"),
        ("bytes=-2", "bytes 8-9/10", "89"),
        ("bytes=0-999", "bytes 0-9/10", "0123456789"),
    ] {
        let part = ask(range);
        assert_eq!((part.status(), part.field("content-range")), (206, Some(content_range)), "{range}");
        assert_eq!(
            (part.text().as_str(), part.field("content-length").unwrap()),
            (text, text.len().to_string().as_str())
        );
    }
    let parts = ask("bytes=0-1, 8-9");
    let boundary = parts.field("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    let part = |range: &str, text: &str| {
        format!("\r\n--{boundary}\r\ncontent-type: text/x\r\ncontent-range: bytes {range}/10\r\n\r\n{text}")
    };
    let wanted = format!("{}{}\r\n--{boundary}--\r\n", part("0-1", "01"), part("8-9", "89"));
    assert_eq!((parts.status(), parts.text()), (206, wanted));
    let beyond = ask("bytes=10-");
    assert_eq!((beyond.status(), beyond.field("content-range")), (416, Some("bytes */10")));
    for whole in ["bytes=4-2", "lines=1-2", "bytes=0-9, 0-9"] {
        assert_eq!((ask(whole).status(), ask(whole).text().as_str()), (200, "0123456789"), "{whole}");
    }
    let same = proxy.get("/", "\r\nRange: bytes=0-0\r\nIf-Range: \"a\"");
    let other = proxy.get("/", "\r\nRange: bytes=0-0\r\nIf-Range: \"b\"");
    assert_eq!((same.status(), other.status(), origin.count()), (206, 200, 1));
}

#[test]
fn rfc_9111_section_4_4_a_change_makes_stale_what_it_concerns() {
    let origin = Origin::new(|request, number| match request.start.split(' ').next() {
        Some("POST") => response("Location: /b\r\nContent-Location: http://example.org/c", ""),
        Some("DELETE") => "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into(),
        _ => response("Cache-Control: max-age=60", &number.to_string()),
    });
    let proxy = origin.proxy();
    let texts = || ["/a", "/b", "/c", "/d"].map(|path| proxy.get(path, "").text());
    assert_eq!(texts(), ["1", "2", "3", "4"]);
    let send =
        |method: &str| proxy.exchange(&format!("{method} /a HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0"));
    assert_eq!(status_of(&send("DELETE")), "plugway; fwd=method; fwd-status=403");
    assert_eq!(texts(), ["1", "2", "3", "4"], "an error has changed nothing");
    send("POST");
    assert_eq!(texts(), ["7", "8", "9", "4"]);
}

#[test]
fn rfc_9111_section_4_4_a_change_that_names_another_method_makes_stale_too() {
    let origin = Origin::new(|request, number| match request.start.split(' ').next() {
        Some("POST") => response("", ""),
        _ => response("Cache-Control: max-age=60", &number.to_string()),
    });
    let proxy = origin.proxy();
    assert_eq!(proxy.get("/a", "").text(), "1");
    let changed = proxy.exchange(
        "POST /a HTTP/1.1\r\nHost: example.org\r\nX-HTTP-Method-Override: PUT\r\nX-Host: h\r\nContent-Length: 0",
    );
    assert_eq!(status_of(&changed), "plugway; fwd=method; fwd-status=200");
    assert_eq!(proxy.get("/a", "").text(), "3");
}

#[test]
fn rfc_9111_section_5_2_1_only_if_cached_asks_nobody() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let proxy = origin.proxy();
    let got = proxy.get("/", "\r\nCache-Control: only-if-cached");
    assert_eq!((got.status(), origin.count()), (504, 0));
    assert!(got.text().starts_with("504 Gateway Timeout\n"), "{got:?}");
    proxy.get("/", "");
    assert_eq!(proxy.get("/", "\r\nCache-Control: only-if-cached").text(), "1");
}

#[test]
fn rfc_9111_section_5_1_only_what_was_stored_has_an_age() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let proxy = origin.proxy();
    assert_eq!(proxy.get("/", "").field("age"), None);
    assert!(proxy.get("/", "").field("age").is_some());
}

#[test]
fn rfc_9211_no_status_is_reported_that_no_next_hop_has_sent() {
    let dead = refusing();
    let proxy = Proxy::start(&manifest(&dead, CACHE, ""));
    let got = proxy.exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0");
    assert_eq!((got.status(), status_of(&got)), (502, "plugway; fwd=method"));
    let origin = Origin::always("Cache-Control: max-age=60");
    let proxy = origin.proxy();
    let got = proxy.exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0");
    assert_eq!(status_of(&got), "plugway; fwd=method; fwd-status=200");
    let got = proxy.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo");
    assert_eq!(status_of(&got), "plugway; fwd=bypass; fwd-status=200; detail=upgrade");
}

#[test]
fn rfc_5861_stale_is_served_at_once_and_validated_behind_the_clients_back() {
    let origin = Origin::always("Cache-Control: max-age=1, stale-while-revalidate=60");
    let proxy = origin.proxy();
    proxy.get("/", "");
    let stale = until_says(&proxy, "/", "ttl=-");
    assert!(status_of(&stale).starts_with("plugway; hit; ttl=-"), "no client has waited: {stale:?}");
    assert_eq!(stale.text(), "1");
    until("the new one is there", || proxy.get("/", "").text() == "2");
}

#[test]
fn revalidations_that_hang_are_few_and_later_hits_try_again() {
    let (hangs, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gate, counted) = (hangs.clone(), asked.clone());
    let origin = origin(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        until("the origin goes on", || gate.load(Ordering::Relaxed) == 0);
        response("Cache-Control: max-age=60, stale-while-revalidate=60", "x").into_bytes()
    });
    let text = manifest(&origin, CACHE, ADMIN).replace("workers = 2", "workers = 1");
    let proxy = Proxy::start_after(&text, "admin at");
    let get_all = |wanted: &str| {
        for number in 0..100 {
            let got = proxy.get(&format!("/{number}"), "");
            assert!(got.status() == 200 && status_of(&got).contains(wanted), "{got:?}");
        }
    };
    get_all("stored");
    assert_eq!(proxy.ask_admin("POST /purge?all&soft").text(), "100 purged\n");
    hangs.store(1, Ordering::Relaxed);
    get_all("hit; ttl=");
    // Seen before: 100, one for each. Other routes find the rest of the 64 places.
    assert_eq!(proxy.metric(VALIDATED), 48.0);
    until("the revalidations are under way", || asked.load(Ordering::Relaxed) == 148);
    get_all("hit; ttl=");
    assert_eq!(proxy.metric(VALIDATED), 48.0);
    hangs.store(0, Ordering::Relaxed);
    until("later hits have the others revalidated", || {
        get_all("hit; ttl=");
        proxy.metric(VALIDATED) == 100.0
    });
}

/// The number of revalidations that have begun.
const VALIDATED: &str = "plugway_cache_requests_total{plugin=\"cache\",outcome=\"validated\"}";

/// Each client that left once it had the head left a fetch behind, with a connection to the endpoint.
#[test]
fn fetches_that_their_clients_have_left_are_few() {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = open.clone();
    let origin = raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_message(&mut reader);
        counted.fetch_add(1, Ordering::Relaxed);
        stream
            .write_all(response("Cache-Control: max-age=60", &"a".repeat(100)).trim_end_matches('a').as_bytes())
            .unwrap();
        stream.write_all(b"begun").unwrap();
        let _ = reader.read(&mut [0]);
        counted.fetch_sub(1, Ordering::Relaxed);
    });
    let proxy = Proxy::start(&manifest(&origin, CACHE, "").replace("workers = 2", "workers = 1"));
    let begin = |number: usize| {
        let mut client = proxy.connect();
        write!(client, "GET /{number} HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
        read_until(&mut client, "begun");
        client
    };
    (0..100).for_each(|number| vanish(begin(number)));
    // Other routes find the rest of the 64 places.
    until("those that have no place have ended", || open.load(Ordering::Relaxed) == 48);
    let _stays = begin(100);
    assert_eq!(open.load(Ordering::Relaxed), 49);
}

/// All places for background revalidations at an upstream were taken by one route, and stored responses of others grew
/// older and older, without a word in the log.
#[test]
fn slow_revalidations_of_a_route_leave_places_to_others() {
    let (asked, slow) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, gate) = (asked.clone(), slow.clone());
    let origin = origin(move |request| {
        if request.start.contains("/slow/") {
            count.fetch_add(1, Ordering::Relaxed);
            until("the test has ended", || gate.load(Ordering::Relaxed) == 0);
        }
        let number = count.load(Ordering::Relaxed).to_string();
        response("Cache-Control: max-age=1, stale-while-revalidate=600", &number).into_bytes()
    });
    let more =
        format!("path = \"/slow\"\nname = \"slow\"\n[[route]]\nupstream = \"app\"\nplugins = [{CACHE}]\n{ADMIN}");
    let text = manifest(&origin, CACHE, &more).replace("workers = 2", "workers = 1");
    let proxy = Proxy::start_after(&text, "admin at");
    let ask_slow = || (0..70).for_each(|number| assert_eq!(proxy.get(&format!("/slow/{number}"), "").status(), 200));
    ask_slow();
    assert_eq!((proxy.get("/quick", "").text().as_str(), asked.load(Ordering::Relaxed)), ("70", 70));
    slow.store(1, Ordering::Relaxed);
    until_says(&proxy, "/slow/69", "ttl=-");
    ask_slow();
    until("the slow ones are under way", || asked.load(Ordering::Relaxed) >= 70 + 48);
    until("the response of another route is validated", || proxy.get("/quick", "").text() != "70");
    until("those that have no place are old", || {
        ask_slow();
        proxy.has_logged("stored response not validated")
    });
    let line = proxy.wait_log("stored response not validated");
    assert!(line.contains("route=\"slow\"") && line.contains("places=64"), "{line}");
    assert_eq!(asked.load(Ordering::Relaxed), 70 + 48);
    slow.store(0, Ordering::Relaxed);
}

/// The drill: the origin stops, answers with errors, and recovers.
#[test]
fn rfc_5861_stale_stands_for_a_failing_origin() {
    let ill = Arc::new(AtomicUsize::new(0));
    let state = ill.clone();
    let origin = Origin::new(move |_, number| match state.load(Ordering::Relaxed) {
        0 => response("Cache-Control: max-age=1, stale-if-error=60", &number.to_string()),
        // No response at all, or an error.
        1 => String::new(),
        _ => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".into(),
    });
    let address = origin.address.clone();
    let text = manifest(&address, CACHE, ADMIN).replace("endpoints", "response-timeout = \"1s\"\nendpoints");
    let proxy = Proxy::start_after(&text, "admin at");
    assert_eq!(proxy.get("/", "").text(), "1");
    ill.store(2, Ordering::Relaxed);
    let covered = until_says(&proxy, "/", "fwd-status=503");
    assert_eq!((covered.status(), covered.text().as_str()), (200, "1"));
    assert_eq!(proxy.get("/other", "").status(), 503, "there is nothing to stand for that");
    ill.store(1, Ordering::Relaxed);
    let covered = proxy.get("/", "");
    assert_eq!((covered.status(), covered.text().as_str()), (200, "1"), "{covered:?}");
    assert!(status_of(&covered).contains("detail=stale-if-error"), "{covered:?}");
    ill.store(0, Ordering::Relaxed);
    until("the origin is back", || proxy.get("/", "").text() != "1");
    assert!(proxy.ask_admin("GET /metrics").text().contains("outcome=\"error-covered\"} "));
}

/// Starts a proxy whose route has half a second, and which has stored `1`, in front of an origin that hangs while told to.
fn behind_an_origin_that_may_hang() -> (Proxy, Arc<AtomicBool>) {
    let hangs = Arc::new(AtomicBool::new(false));
    let state = hangs.clone();
    let origin = Origin::new(move |_, number| {
        if state.load(Ordering::Relaxed) {
            std::thread::park_timeout(PATIENCE);
        }
        response("Cache-Control: max-age=1, stale-if-error=60", &number.to_string())
    });
    let text = manifest(&origin.address, CACHE, "").replace("[[route]]\n", "[[route]]\ntimeout = \"500ms\"\n");
    let proxy = Proxy::start(&text);
    assert_eq!(proxy.get("/", "").text(), "1");
    (proxy, hangs)
}

/// The time of a route ended the exchange before the cache was asked whether what it has may stand for the response.
#[test]
fn stale_stands_for_an_origin_that_takes_longer_than_the_route_has() {
    let (proxy, hangs) = behind_an_origin_that_may_hang();
    hangs.store(true, Ordering::Relaxed);
    let covered = until_says(&proxy, "/", "detail=stale-if-error");
    assert_eq!((covered.status(), covered.text().as_str()), (200, "1"));
    assert_eq!(proxy.get("/other", "").status(), 504, "there is nothing to stand for that");
}

/// Clients that waited for the fetch of another one got 504, whatever was stored.
#[test]
fn stale_stands_for_those_that_wait_for_the_fetch_of_another_too() {
    let (proxy, hangs) = behind_an_origin_that_may_hang();
    hangs.store(true, Ordering::Relaxed);
    until_says(&proxy, "/", "detail=stale-if-error");
    let clients: Vec<TcpStream> = (0..8).map(|_| begin(&proxy)).collect();
    for client in clients {
        let covered = read_message(&mut BufReader::new(client)).unwrap();
        assert_eq!((covered.status(), covered.text().as_str()), (200, "1"), "{covered:?}");
    }
}

#[test]
fn set_cookie_is_for_one_client_alone_where_it_is_stripped() {
    let origin = Origin::always("Cache-Control: max-age=60\r\nSet-Cookie: a=1");
    let plugin = r#"{ use = "cache", config = { cookies = "strip" } }"#;
    let proxy = Proxy::start(&manifest(&origin.address, plugin, ""));
    assert_eq!(proxy.get("/", "").field("set-cookie"), Some("a=1"));
    let second = proxy.get("/", "");
    assert!(status_of(&second).contains("hit") && second.field("set-cookie").is_none(), "{second:?}");
}

/// Starts a client that requests `/`, and reads nothing yet.
pub fn begin(proxy: &Proxy) -> TcpStream {
    let mut client = proxy.connect();
    write!(client, "GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n").unwrap();
    client
}

/// Starts many clients, counted when they send their request.
fn crowd(proxy: &Proxy, clients: usize, asked: &AtomicUsize) -> Vec<TcpStream> {
    let client = |_| {
        let client = begin(proxy);
        asked.fetch_add(1, Ordering::Relaxed);
        client
    };
    (0..clients).map(client).collect()
}

/// The drill: a thousand clients, one cold key.
#[test]
fn a_stampede_is_one_fetch() {
    const CLIENTS: usize = 1000;
    let sent = Arc::new(AtomicUsize::new(0));
    let known = sent.clone();
    let origin = Origin::new(move |_, number| {
        until("all have asked", || known.load(Ordering::Relaxed) == CLIENTS);
        response("Cache-Control: max-age=60", &number.to_string())
    });
    let proxy = Proxy::start_after(&manifest(&origin.address, CACHE, ADMIN), "admin at");
    let clients = crowd(&proxy, CLIENTS, &sent);
    for client in clients {
        assert_eq!(read_message(&mut BufReader::new(client)).unwrap().text(), "1");
    }
    assert_eq!(origin.count(), 1);
    let metrics = proxy.ask_admin("GET /metrics").text();
    let count = |outcome: &str| -> usize {
        let name = format!("plugway_cache_requests_total{{plugin=\"cache\",outcome=\"{outcome}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    assert_eq!((count("miss"), count("collapsed") + count("hit")), (1, CLIENTS - 1), "{metrics}");
}

/// Requests that waited for a response that is private to one client continue together, not in sequence.
/// The clients whose fields were others than those of the first fetched for themselves, each of them.
#[test]
fn a_stampede_is_one_fetch_for_each_variant() {
    const KINDS: usize = 4;
    let (asked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, opened) = (asked.clone(), gate.clone());
    let origin = origin(move |request| {
        count.fetch_add(1, Ordering::Relaxed);
        until("the test lets it answer", || opened.load(Ordering::Relaxed) == 1);
        let kind = request.field("accept-language").unwrap_or_default().to_string();
        response("Cache-Control: max-age=60\r\nVary: Accept-Language", &kind).into_bytes()
    });
    let proxy = Proxy::start(&manifest(&origin, CACHE, "").replace("workers = 2", "workers = 1"));
    let begin = |number: usize| {
        let (mut client, kind) = (proxy.connect(), number % KINDS);
        write!(client, "GET / HTTP/1.1\r\nHost: a\r\nAccept-Language: l{kind}\r\n\r\n").unwrap();
        client
    };
    let clients: Vec<TcpStream> = (0..40).map(begin).collect();
    until("the first has asked", || asked.load(Ordering::Relaxed) == 1);
    gate.store(1, Ordering::Relaxed);
    for (number, client) in clients.into_iter().enumerate() {
        let got = read_message(&mut BufReader::new(client)).unwrap();
        assert_eq!((got.status(), got.text()), (200, format!("l{}", number % KINDS)));
    }
    assert_eq!(asked.load(Ordering::Relaxed), KINDS);
}

#[test]
fn a_response_that_is_one_clients_alone_makes_no_queue() {
    const CLIENTS: usize = 20;
    let sent = Arc::new(AtomicUsize::new(0));
    let known = sent.clone();
    let at_once = Arc::new(AtomicUsize::new(0));
    let together = at_once.clone();
    let origin = Origin::new(move |_, number| {
        if number == 1 {
            until("all have asked", || known.load(Ordering::Relaxed) == CLIENTS);
        } else {
            together.fetch_add(1, Ordering::Relaxed);
            // A queue would never come to this.
            until("all others are here", || together.load(Ordering::Relaxed) == CLIENTS - 1);
        }
        response("Cache-Control: no-store", &number.to_string())
    });
    let proxy = origin.proxy();
    let clients = crowd(&proxy, CLIENTS, &sent);
    let mut texts: Vec<String> =
        clients.into_iter().map(|client| read_message(&mut BufReader::new(client)).unwrap().text()).collect();
    texts.sort();
    texts.dedup();
    assert_eq!((texts.len(), at_once.load(Ordering::Relaxed)), (CLIENTS, CLIENTS - 1), "each has its own");
}

#[test]
fn follower_takes_over_when_the_leader_leaves() {
    let left = Arc::new(AtomicUsize::new(0));
    let known = left.clone();
    let origin = Origin::new(move |_, number| {
        if number == 1 {
            until("another has taken over", || known.load(Ordering::Relaxed) == 1);
        }
        response("Cache-Control: max-age=60", &number.to_string())
    });
    let proxy = origin.proxy();
    let leader = begin(&proxy);
    until("the leader has asked", || origin.count() == 1);
    let follower = begin(&proxy);
    vanish(leader);
    until("the follower asks by itself", || origin.count() == 2);
    left.store(1, Ordering::Relaxed);
    let got = read_message(&mut BufReader::new(follower)).unwrap();
    assert_eq!(got.status(), 200, "{got:?}");
    assert!(proxy.get("/", "").text() == got.text(), "it is stored");
}

/// Starts an origin whose body arrives in two halves, the second on a signal of the test.
fn halves(head: &'static str, gate: &Arc<AtomicUsize>, asked: &Arc<AtomicUsize>) -> String {
    let (gate, asked) = (gate.clone(), asked.clone());
    raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while read_message(&mut reader).is_some() {
            asked.fetch_add(1, Ordering::Relaxed);
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(b"5\r\nfirst\r\n").unwrap();
            until("the gate is open", || gate.load(Ordering::Relaxed) > 0);
            if gate.load(Ordering::Relaxed) == 2 {
                return;
            }
            stream.write_all(b"6\r\nsecond\r\n0\r\nX-Sum: 11\r\n\r\n").unwrap();
        }
    })
}

pub const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nCache-Control: max-age=60\r\n\r\n";

pub fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(end.as_bytes()) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn followers_stream_what_still_comes_in() {
    let (gate, asked) = (Arc::default(), Arc::default());
    let proxy = Proxy::start(&manifest(&halves(CHUNKED, &gate, &asked), CACHE, ""));
    let ask = || {
        let mut client = begin(&proxy);
        read_until(&mut client, "first\r\n");
        client
    };
    let (mut leader, mut follower) = (ask(), ask());
    gate.store(1, Ordering::Relaxed);
    for client in [&mut leader, &mut follower] {
        let rest = read_until(client, "\r\n0\r\n");
        assert!(rest.contains("second"), "{rest}");
    }
    let stored = proxy.get("/", "");
    assert!(status_of(&stored).starts_with("plugway; hit"), "{stored:?}");
    assert_eq!((stored.text().as_str(), asked.load(Ordering::Relaxed)), ("firstsecond", 1));
}

#[test]
fn content_that_breaks_off_is_told_as_broken_and_not_stored() {
    let (gate, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let proxy = Proxy::start_after(&manifest(&halves(CHUNKED, &gate, &asked), CACHE, ADMIN), "admin at");
    let stored = || proxy.metric("plugway_cache_stored_total{plugin=\"cache\"}");
    let mut client = proxy.connect();
    write!(client, "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
    read_until(&mut client, "first\r\n");
    gate.store(2, Ordering::Relaxed);
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "no end that looks like one");
    assert_eq!(stored(), 0.0);
    gate.store(1, Ordering::Relaxed);
    assert_eq!(proxy.get("/", "").text(), "firstsecond");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    until("the other response is counted", || stored() == 1.0);
}

#[test]
fn too_long_response_is_not_stored_and_all_get_it_whole() {
    let length = 200 << 10;
    let known = Origin::new(move |_, _| response("Cache-Control: max-age=60", &"a".repeat(length)));
    let unknown = Origin::new(move |_, _| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n";
        format!("{head}{length:x}\r\n{}\r\n0\r\n\r\n", "a".repeat(length))
    });
    for origin in [known, unknown] {
        let limits = "[cache]\nmemory = \"16 MiB\"\nmax-object = \"100 KiB\"\n";
        let proxy = Proxy::start(&manifest(&origin.address, CACHE, limits));
        for turn in 1..=3 {
            assert_eq!(proxy.get("/", "").body.len(), length);
            assert_eq!(origin.count(), turn);
        }
    }
}

#[test]
fn purges_take_what_they_name() {
    let origin = Origin::new(|request, number| {
        let tag = if request.start.contains("/a/x") { "Surrogate-Key: red blue" } else { "X-None: 1" };
        response(&format!("Cache-Control: max-age=60, stale-while-revalidate=60\r\n{tag}"), &number.to_string())
    });
    let proxy = Proxy::start_after(&manifest(&origin.address, CACHE, ADMIN), "admin at");
    let paths = ["/a", "/a/x", "/b"];
    let texts = || paths.map(|path| proxy.get(path, "").text());
    let purge = |what: &str| proxy.ask_admin(&format!("POST /purge?{what}")).text();
    assert_eq!(texts(), ["1", "2", "3"]);
    assert_eq!(purge("uri=http://example.org/a"), "1 purged\n");
    assert_eq!(texts(), ["4", "2", "3"]);
    assert_eq!(purge("prefix=http%3A%2F%2Fexample.org%2Fa"), "2 purged\n");
    assert_eq!(texts(), ["5", "6", "3"]);
    assert_eq!(purge("tag=blue"), "1 purged\n");
    assert_eq!(texts(), ["5", "7", "3"]);
    assert_eq!(purge("tag=green"), "0 purged\n");
    assert_eq!(purge("all"), "3 purged\n");
    assert_eq!(texts(), ["8", "9", "10"]);
    assert_eq!(purge("all&soft"), "3 purged\n");
    assert_eq!(proxy.get("/a", "").text(), "8", "it is stale, and served while it is validated");
    until("the new one is there", || proxy.get("/a", "").text() != "8");
    for incomplete in ["uri=/a", "uri=example.org/a", "prefix=/a", "prefix=example.org"] {
        let refused = proxy.ask_admin(&format!("POST /purge?{incomplete}"));
        assert_eq!(refused.status(), 400, "{incomplete}");
        assert!(refused.text().contains("expected scheme and host too"), "{refused:?}");
    }
    assert_eq!(purge("prefix=htt"), "3 purged\n");
    assert_eq!(texts().len(), 3);
    assert_eq!(purge("prefix=HTTP%3A%2F%2FExample.org"), "3 purged\n");
    assert_eq!(texts().len(), 3);
    let refused = proxy.ask_admin("POST /purge?uri=a&tag=b");
    assert_eq!(refused.status(), 400, "{refused:?}");
    let path = proxy.folder.path().join("plugway.toml");
    let mut command = proxy.command(&["purge", "--tag", "red", path.to_str().unwrap()]);
    let by_command = output(command.stdout(Stdio::piped()));
    assert_eq!(by_command, "1 purged\n");
}

#[test]
fn stored_responses_outlive_a_change_of_policy() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let proxy = origin.proxy();
    proxy.get("/", "");
    let other = r#"{ use = "cache", config = { report = "edge", key = { sort-query = true } } }"#;
    proxy.reload(&manifest(&origin.address, other, ""));
    proxy.wait_log("reloaded: generation 2");
    let got = proxy.get("/", "");
    assert!(status_of(&got).starts_with("edge; hit"), "{got:?}");
    assert_eq!(origin.count(), 1);
}

#[test]
fn nobody_poisons_what_others_get() {
    let origin = Origin::new(|request, _| {
        let named = request.field("x-forwarded-host").or(request.field("host")).unwrap();
        response("Cache-Control: max-age=60", &format!("{named} {}", request.text()))
    });
    let proxy = origin.proxy();
    assert_eq!(proxy.get("/", "\r\nX-Forwarded-Host: evil.example").text(), "example.org ", "its word is dropped");
    let trusting = "address = \"127.0.0.1:0\"\ntrusted-proxies = [\"127.0.0.1\"]\n";
    let text = manifest(&origin.address, "\"cache\"", "").replace("address = \"127.0.0.1:0\"\n", trusting);
    let trusting = Proxy::start(&text);
    assert_eq!(trusting.get("/", "\r\nX-Forwarded-Host: evil.example").text(), "evil.example ");
    assert_eq!(trusting.get("/", "").text(), "example.org ");
    let other = proxy.exchange("GET / HTTP/1.1\r\nHost: evil.example");
    assert_eq!(other.text(), "evil.example ");
    let mut fat = proxy.connect();
    write!(fat, "GET /fat HTTP/1.1\r\nHost: example.org\r\nContent-Length: 4\r\nConnection: close\r\n\r\nevil")
        .unwrap();
    let fat = read_message(&mut BufReader::new(fat)).unwrap();
    assert_eq!(
        (fat.text().as_str(), status_of(&fat)),
        ("example.org evil", "plugway; fwd=bypass; fwd-status=200; detail=content")
    );
    assert_eq!(proxy.get("/fat", "").text(), "example.org ");
}

#[test]
fn plugins_below_are_stored_and_plugins_above_see_hits() {
    let origin = Origin::new(|_, number| {
        response("Cache-Control: max-age=60\r\nContent-Type: text/html", &format!("<title>{number}</title>"))
    });
    let stamp = |name: &str| {
        format!("{{ use = \"headers\", config = {{ response = {{ set = {{ {name} = \"{{request-id}}\" }} }} }} }}")
    };
    let chain = format!("{}, \"cache\", {}", stamp("X-Above"), stamp("X-Below"));
    let proxy = Proxy::start(&manifest(&origin.address, &chain, ""));
    let (first, second) = (proxy.get("/", ""), proxy.get("/", ""));
    assert!(status_of(&second).contains("hit"), "{second:?}");
    assert_eq!(first.field("x-below"), second.field("x-below"));
    assert_ne!(first.field("x-above"), second.field("x-above"));
}

#[test]
fn a_chain_has_one_cache() {
    let proxy = Proxy::start(&manifest("127.0.0.1:9", CACHE, ""));
    proxy.reload(&manifest("127.0.0.1:9", r#""cache", { use = "cache" }"#, ""));
    proxy.wait_log("second cache in a chain");
}

/// Returns the manifest of the example, unchanged except for addresses and the path of the built plugin.
#[test]
fn the_shop_example_keeps_devices_apart_and_tracking_out() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let text = include_str!("../examples/shop-cache/plugway.toml");
    let built = "../../target/wasm32-wasip2/release/example_shop_cache.wasm";
    assert!(text.contains(built), "{text}");
    let text = text.replace(built, SHOP_CACHE).replace("127.0.0.1:8080", "127.0.0.1:0");
    let proxy = Proxy::start(&text.replace("127.0.0.1:8000", &origin.address));
    let phone = "\r\nUser-Agent: Mozilla/5.0 (iPhone) Mobile/15E148";
    assert_eq!(proxy.get("/articles/1?utm_source=a", "").text(), "1");
    assert_eq!(proxy.get("/articles/1?utm_source=b", "").text(), "1");
    assert_eq!(proxy.get("/articles/1", phone).text(), "2");
    assert_eq!(proxy.get("/articles/1", phone).text(), "2");
    assert_eq!(origin.last().field("user-agent"), Some("Mozilla/5.0 (iPhone) Mobile/15E148"));
}

#[test]
fn a_cookie_that_comes_with_a_304_is_not_stored_either() {
    let origin = Origin::new(|request, _| match request.field("if-none-match") {
        Some(_) => "HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nSet-Cookie: a=1\r\n\r\n".into(),
        None => response("Cache-Control: max-age=1\r\nETag: \"a\"", "content"),
    });
    let plugin = r#"{ use = "cache", config = { cookies = "strip" } }"#;
    let proxy = Proxy::start(&manifest(&origin.address, plugin, ""));
    proxy.get("/", "");
    let validated = until_says(&proxy, "/", "fwd-status=304");
    assert_eq!(validated.field("set-cookie"), Some("a=1"), "it is for this client");
    let after = proxy.get("/", "");
    assert!(status_of(&after).contains("hit") && after.field("set-cookie").is_none(), "{after:?}");
}

/// A misbehaving policy harms only the request that triggered it.
#[test]
fn a_policy_that_traps_or_lies_harms_its_own_request_only() {
    let ill = Arc::new(AtomicUsize::new(0));
    let state = ill.clone();
    let origin = Origin::new(move |_, number| match state.load(Ordering::Relaxed) {
        0 => response("Cache-Control: max-age=60", &number.to_string()),
        _ => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".into(),
    });
    let plugin = format!("{{ use = {POLICY:?} }}");
    let proxy = Proxy::start(&manifest(&origin.address, &plugin, ""));
    assert_eq!(proxy.get("/", "").text(), "1");
    let ask = |path: &str, how: &str| proxy.get(path, &format!("\r\nX-Misbehave: {how}"));
    let hit = || {
        let got = proxy.get("/", "");
        assert!(got.text() == "1" && status_of(&got).contains("hit"), "{got:?}");
    };
    for (path, how) in [("/", "lookup-trap"), ("/a", "fetched-trap"), ("/b", "bad-name"), ("/c", "many-names")] {
        assert_eq!(ask(path, how).status(), 502, "{how}");
        hit();
    }
    let trapped = proxy.get("/", "\r\nX-Misbehave: stored-trap\r\nCache-Control: max-age=0");
    assert_eq!(trapped.status(), 502, "{trapped:?}");
    hit();
    let long = ask("/", "long-key");
    assert_eq!((long.status(), status_of(&long).contains("detail=key-too-long")), (200, true), "{long:?}");
    for _ in 0..2 {
        let old = ask("/old", "for-ever");
        assert_eq!(old.status(), 200, "times that no sum can hold: {old:?}");
    }
    let post = |how: &str| {
        proxy.exchange(&format!("POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\nX-Misbehave: {how}"))
    };
    assert!(status_of(&post("post-under")).contains("fwd=method"), "no POST is answered from what is stored");
    assert_eq!(post("changed-trap").status(), 200, "what it changed is done already");
    hit();
    ill.store(1, Ordering::Relaxed);
    assert_eq!(proxy.get("/", "\r\nCache-Control: max-age=0").status(), 503, "and no cover where that traps");
}

#[test]
fn a_policy_invalidates_its_own_keys_alone() {
    let origin = Origin::new(|request, number| match request.start.split(' ').next() {
        Some("POST") => response("", ""),
        _ => response("Cache-Control: max-age=60", &number.to_string()),
    });
    let evil = format!(
        "path = \"/evil\"\n[[route]]\nupstream = \"app\"\nplugins = [\"keyed\"]\n[plugin.evil]\nuse = {POLICY:?}\n\
         [plugin.keyed]\nuse = \"cache\"\nconfig = {{ report = \"keyed\", report-key = true }}\n{ADMIN}"
    );
    let proxy = Proxy::start_after(&manifest(&origin.address, r#""evil""#, &evil), "admin at");
    let texts = || ["/a", "/evil/a"].map(|path| proxy.get(path, "").text());
    assert_eq!((texts(), texts()), (["1", "2"].map(String::from), ["1", "2"].map(String::from)));
    let shown = proxy.get("/a", "");
    assert!(status_of(&shown).ends_with("; key=\"http://example.org/a\""), "{shown:?}");
    let invalidate = |key: &str| {
        let head = format!("POST /evil HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\nX-Misbehave: key {key}");
        assert_eq!(proxy.exchange(&head).status(), 200);
    };
    invalidate("http://example.org/a");
    // Seen before: "4", since the key of one plugin was that of all.
    assert_eq!(texts(), ["1", "2"]);
    invalidate("http://example.org/evil/a");
    assert_eq!(texts(), ["1", "5"]);
    // Purges are of all plugins.
    assert_eq!(proxy.ask_admin("POST /purge?uri=http://example.org/a").text(), "1 purged\n");
    assert_eq!(proxy.ask_admin("POST /purge?prefix=http://example.org/").text(), "1 purged\n");
}

#[test]
fn invalidations_of_other_keys_let_a_slow_response_be_stored() {
    let (gate, asked) = (Arc::default(), Arc::<AtomicUsize>::default());
    let changed = Origin::always("");
    let more = format!(
        "path = \"/change\"\n[upstream.slow]\nendpoints = [{:?}]\n[[route]]\nupstream = \"slow\"\nplugins = [\"evil\"]\n\
         [plugin.evil]\nuse = {POLICY:?}\n",
        halves(CHUNKED, &gate, &asked)
    );
    let proxy = Proxy::start(&manifest(&changed.address, r#""evil""#, &more));
    let mut first = begin(&proxy);
    read_until(&mut first, "first\r\n");
    // Beyond 65,536 keys, the invalidation of each key had been forgotten, and each response counted as invalidated.
    for number in 0..300 {
        let head =
            format!("POST /change HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\nX-Misbehave: keys {number}");
        assert_eq!(proxy.exchange(&head).status(), 200);
    }
    let mut follower = begin(&proxy);
    read_until(&mut follower, "first\r\n");
    gate.store(1, Ordering::Relaxed);
    for client in [&mut first, &mut follower] {
        read_until(client, "\r\n0\r\n");
    }
    until_says(&proxy, "/", "hit");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn hidden_tags_outlast_a_304_that_has_none() {
    let origin = Origin::new(|request, number| match request.field("if-none-match") {
        Some(_) => "HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\n\r\n".into(),
        None => response("Cache-Control: max-age=1\r\nETag: \"a\"\r\nSurrogate-Key: red", &number.to_string()),
    });
    let plugin = r#"{ use = "cache", config = { hide-tags = true } }"#;
    let proxy = Proxy::start_after(&manifest(&origin.address, plugin, ADMIN), "admin at");
    proxy.get("/", "");
    assert_eq!(until_says(&proxy, "/", "fwd-status=304").field("surrogate-key"), None);
    assert_eq!(proxy.ask_admin("POST /purge?tag=red").text(), "1 purged\n");
}

#[test]
fn a_change_is_told_of_the_request_as_the_cache_saw_it() {
    let origin = Origin::new(|request, number| match request.start.split(' ').next() {
        Some("POST") => response("", ""),
        _ => response("Cache-Control: max-age=60", &number.to_string()),
    });
    let below = r#"{ use = "headers", config = { request = { set = { X-Forwarded-Host = "inside.example" } } } }"#;
    let proxy = Proxy::start(&manifest(&origin.address, &format!("{CACHE}, {below}"), ""));
    assert_eq!(proxy.get("/", "").text(), "1");
    assert_eq!(proxy.get("/", "").text(), "1");
    proxy.exchange("POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0");
    assert_eq!(origin.last().field("x-forwarded-host"), Some("inside.example"));
    assert_eq!(proxy.get("/", "").text(), "3");
}

/// A request after a purge gets no response that was requested before the purge.
#[test]
fn a_fetch_that_a_purge_overtook_is_joined_no_more() {
    let (gate, asked) = (Arc::default(), Arc::default());
    let proxy = Proxy::start_after(&manifest(&halves(CHUNKED, &gate, &asked), CACHE, ADMIN), "admin at");
    for (turn, what) in [(1, "all"), (2, "uri=http://example.org/&soft"), (3, "prefix=http://example.org/")] {
        let mut before = begin(&proxy);
        read_until(&mut before, "first\r\n");
        assert_eq!(asked.load(Ordering::Relaxed), turn * 2 - 1);
        assert_eq!(proxy.ask_admin(&format!("POST /purge?{what}")).status(), 200);
        let mut after = begin(&proxy);
        read_until(&mut after, "first\r\n");
        assert_eq!(asked.load(Ordering::Relaxed), turn * 2, "it asks for itself");
        let mut later = begin(&proxy);
        read_until(&mut later, "first\r\n");
        assert_eq!(asked.load(Ordering::Relaxed), turn * 2, "which is joined in turn");
        gate.store(1, Ordering::Relaxed);
        for client in [&mut before, &mut after, &mut later] {
            read_until(client, "\r\n0\r\n");
        }
        gate.store(0, Ordering::Relaxed);
        assert_eq!(proxy.ask_admin("POST /purge?all").text(), "1 purged\n");
    }
}

#[test]
fn a_purge_finds_what_is_stored_under_a_query_that_does_not_count() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let plugin = r#"{ use = "cache", config = { key = { ignore-query = ["utm_*"] } } }"#;
    let proxy = Proxy::start_after(&manifest(&origin.address, plugin, ADMIN), "admin at");
    for uri in ["http://example.org/a?b=2", "http://example.org/a?utm_source=x&b=2"] {
        proxy.get("/a?utm_source=x&b=2", "");
        assert_eq!(
            proxy.ask_admin(&format!("POST /purge?uri={}", uri.replace('&', "%26"))).text(),
            "1 purged\n",
            "{uri}"
        );
    }
}

#[test]
fn a_purge_finds_paths_that_are_forwarded_as_they_are() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let text = manifest(&origin.address, CACHE, ADMIN).replace("[[route]]\n", "[[route]]\npath-as-is = true\n");
    let proxy = Proxy::start_after(&text, "admin at");
    let path = proxy.folder.path().join("plugway.toml");
    let store = |paths: &[&str]| paths.iter().for_each(|path| assert_eq!(proxy.get(path, "").status(), 200));
    for (paths, what, uri) in [
        (&["/v2/a%2Fb"][..], "--uri", "http://example.org/v2/a%2Fb"),
        (&["/v2/a%2Fb"], "--uri", "http://example.org/v2/a%2fb"),
        (&["/v2/a%2fb", "/v2//a/b"], "--uri", "HTTP://Example.org/v2/a%2Fb"),
        (&["/v2/a%2Fb?c=%2F"], "--uri", "http://example.org/v2/a%2Fb?c=%2F"),
        (&["/v2/a%2Fb", "/v2/a%2Fc/d"], "--prefix", "http://example.org/v2/a%2F"),
        (&["/v2/a%2Fb", "/v2/a%2Fbc"], "--prefix", "http://example.org/v2/a%2Fb"),
        (&["/v2/a%2Fb/c", "/v2/a%2Fb/d"], "--prefix", "http://example.org/v2/a%2fb/"),
        (&["/v2/a%2Fb?c", "/v2/a%2Fb?cd"], "--prefix", "http://example.org/v2/a%2Fb?c"),
    ] {
        store(paths);
        store(&["/w"]);
        let purged = output(proxy.command(&["purge", what, uri, path.to_str().unwrap()]).stdout(Stdio::piped()));
        assert_eq!(purged, format!("{} purged\n", paths.len()), "{what} {uri}");
    }
}

#[test]
fn a_purge_of_what_nothing_can_have_says_why() {
    let origin = Origin::always("Cache-Control: max-age=60\r\nSurrogate-Key: a b");
    let proxy = Proxy::start_after(&manifest(&origin.address, CACHE, ADMIN), "admin at");
    let path = proxy.folder.path().join("plugway.toml");
    let purge = |what: &str, value: &str| {
        assert_eq!(proxy.get("/z%C3%A9?q=a%20b", "").status(), 200);
        let mut command = proxy.command(&["purge", what, value, path.to_str().unwrap()]);
        let done = command.stdout(Stdio::piped()).output().unwrap();
        let (said, failed) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
        (done.status.code(), said + &failed)
    };
    for (what, value, reason) in [
        ("--uri", "", "expected scheme and host too"),
        ("--uri", "/z", "expected scheme and host too"),
        ("--uri", "ftp://example.org/z", "expected `http` or `https`"),
        ("--uri", "http://user@example.org/z", "no request has the host"),
        ("--uri", "http://b\u{fc}cher.example/z", "in its ASCII form"),
        ("--uri", "http://example.org/z#part", "end it before `#`"),
        ("--uri", "http://example.org/../z", "the path leads above its root"),
        ("--uri", "http://example.org/a%5Cz", "the path has a backslash"),
        ("--uri", "http://example.org/a/../z%2Fb", "the path has a dot segment"),
        ("--prefix", "", "--all"),
        ("--prefix", "/z", "expected scheme and host too"),
        ("--prefix", "http://user@example.org/", "no request has the host"),
        ("--prefix", "http://user@example.org", "no request has the host"),
        ("--prefix", "http://example.org/z#", "end it before `#`"),
        ("--prefix", "http://example.org#", "end it before `#`"),
        ("--prefix", "http://example.org/../z", "the path leads above its root"),
        ("--prefix", "http://example.org/a%5C/z", "the path has a backslash"),
        ("--prefix", "http://example.org/a%2F../b", "the path has a dot segment"),
        ("--tag", "", "empty tag"),
        ("--tag", "a b", "one word"),
        ("--tag", "a,b", "one word"),
    ] {
        let (code, said) = purge(what, value);
        assert!(code == Some(1) && said.contains(reason), "{what} {value:?}: {code:?} {said}");
    }
    for (what, value, wanted) in [
        ("--uri", "http://example.org/z\u{e9}?q=a b", "1 purged\n"),
        ("--uri", " http://example.org/z\u{e9}?q=a%20b\n", "1 purged\n"),
        ("--uri", "http://example.org/other", "0 purged\n"),
        ("--prefix", "http://example.org/z\u{e9}", "1 purged\n"),
        ("--prefix", "http://example.org/z\u{e9}?q=a ", "1 purged\n"),
        ("--prefix", "HTT", "1 purged\n"),
        ("--tag", "a", "1 purged\n"),
        ("--tag", "c", "0 purged\n"),
    ] {
        assert_eq!(purge(what, value), (Some(0), wanted.into()), "{what} {value:?}");
    }
}

#[test]
fn fields_that_origins_obey_are_in_the_key() {
    let origin = Origin::new(|request, _| {
        let sent = request.fields.iter().map(|(name, value)| format!("{name}={value} "));
        response("Cache-Control: max-age=60", &sent.collect::<String>())
    });
    let listener =
        "address = \"127.0.0.1:0\"\ntrusted-proxies = [\"127.0.0.1\"]\nclient-address-from = \"forwarded\"\n";
    let text = manifest(&origin.address, CACHE, "").replace("address = \"127.0.0.1:0\"\n", listener);
    let proxy = Proxy::start(&text);
    for field in [
        "Forwarded: for=192.0.2.1;host=evil",
        "X-Forwarded-Server: evil",
        "X-Forwarded-Ssl: evil",
        "Front-End-Https: evil",
        "X-Url-Scheme: evil",
    ] {
        assert!(proxy.get("/", &format!("\r\n{field}")).text().contains("evil"), "{field}");
        assert!(!proxy.get("/", "").text().contains("evil"), "{field}");
    }
    proxy.get("/for", "\r\nForwarded: for=192.0.2.1");
    assert!(status_of(&proxy.get("/for", "\r\nForwarded: for=192.0.2.2")).contains("hit"), "who asks doesn't count");
}

/// No request of one client changes the responses of others.
#[test]
fn one_client_takes_nothing_from_others() {
    let origin = Origin::new(|request, number| match request.field("x-ill") {
        Some("cookie") => response("Cache-Control: max-age=60\r\nSet-Cookie: a=1", "alone"),
        Some("malformed") => "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".into(),
        Some("validated") => "HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\n\r\n".into(),
        _ => response("Cache-Control: max-age=60\r\nETag: \"a\"", &number.to_string()),
    });
    let proxy = origin.proxy();
    assert_eq!(proxy.get("/", "").text(), "1");
    for (ill, status) in [
        ("X-Ill: cookie", 200),
        ("X-Ill: malformed", 400),
        ("X-None: 1\r\nAuthorization: Basic YTpi", 200),
        ("X-Ill: validated\r\nAuthorization: Basic YTpi", 200),
    ] {
        let got = proxy.get("/", &format!("\r\nCache-Control: no-cache\r\n{ill}"));
        assert_eq!(got.status(), status, "{ill}");
        let after = proxy.get("/", "");
        assert!(after.text() == "1" && status_of(&after).contains("hit"), "{ill}: {after:?}");
    }
}

/// Starts a cache above the example of a plugin that sends clients with a cookie to the upstream `b`.
fn above_split(a: &str, b: &str) -> Proxy {
    let text = include_str!("../examples/split/plugway.toml");
    let chain = r#"["show", "split"]"#;
    assert!(text.contains(chain), "{text}");
    let text = text.replace(chain, r#"["show", "cache", "split"]"#).replace("127.0.0.1:8080", "127.0.0.1:0");
    let text = text.replace("../../target/wasm32-wasip2/release/example_split.wasm", SPLIT);
    Proxy::start(&text.replace("127.0.0.1:8000", a).replace("127.0.0.1:8001", b))
}

/// The cookie of clients whose requests go to the upstream `b`.
const TO_B: &str = "\r\nCookie: variant=b";

#[test]
fn response_of_another_upstream_is_not_stored() {
    let a = Origin::always("Cache-Control: max-age=60\r\nETag: \"a\"");
    let b = Origin::new(|request, _| match request.field("if-none-match") {
        Some(_) => "HTTP/1.1 304 Not Modified\r\nContent-Length: 0\r\n\r\n".into(),
        None => response("Cache-Control: max-age=60", "b"),
    });
    let proxy = above_split(&a.address, &b.address);
    let first = proxy.get("/", TO_B);
    assert_eq!((first.text().as_str(), status_of(&first).contains("another-upstream")), ("b", true), "{first:?}");
    assert_eq!(proxy.get("/", "").text(), "1");
    assert_eq!(proxy.get("/", "").text(), "1");
    let asked = proxy.get("/", &format!("{TO_B}\r\nCache-Control: no-cache"));
    assert_eq!((asked.status(), asked.text().as_str()), (200, "b"), "it is asked for all of it: {asked:?}");
    assert_eq!(proxy.get("/", "").text(), "1");
    let part = proxy.get("/other", &format!("{TO_B}\r\nRange: bytes=0-0\r\nIf-None-Match: \"x\""));
    assert_eq!((part.status(), b.last().field("range")), (304, Some("bytes=0-0")), "{part:?}");
}

/// A client that a plugin below the cache sends to another upstream made others wait for that upstream, and gave them its
/// failure.
#[test]
fn a_fetch_from_another_upstream_concerns_no_other_client() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    // It never answers.
    let silent = origin(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        until("the test has ended", || counted.load(Ordering::Relaxed) == usize::MAX);
        Vec::new()
    });
    let a = Origin::always("Cache-Control: max-age=60");
    let proxy = above_split(&a.address, &silent);
    let mut leader = proxy.connect();
    write!(leader, "GET / HTTP/1.1\r\nHost: example.org{TO_B}\r\n\r\n").unwrap();
    until("the other upstream is asked", || asked.load(Ordering::Relaxed) == 1);
    let got = proxy.get("/", "");
    assert_eq!((got.status(), got.text().as_str()), (200, "1"), "{got:?}");
    asked.store(usize::MAX, Ordering::Relaxed);
}

/// Another upstream's response made requests for the key wait for each other no more, for ten seconds.
#[test]
fn a_response_of_another_upstream_says_nothing_of_the_key() {
    const CLIENTS: usize = 8;
    let sent = Arc::new(AtomicUsize::new(0));
    let known = sent.clone();
    let a = Origin::new(move |_, number| {
        until("all have asked", || known.load(Ordering::Relaxed) == CLIENTS);
        response("Cache-Control: max-age=60", &number.to_string())
    });
    let proxy = above_split(&a.address, &Origin::always("Cache-Control: max-age=60").address);
    assert!(status_of(&proxy.get("/", TO_B)).contains("another-upstream"));
    for client in crowd(&proxy, CLIENTS, &sent) {
        assert_eq!(read_message(&mut BufReader::new(client)).unwrap().text(), "1");
    }
    assert_eq!(a.count(), 1, "they share one fetch");
}

/// A stale response was validated in the background at another upstream, where that can't succeed.
#[test]
fn stale_response_is_not_validated_at_another_upstream() {
    let a = Origin::always("Cache-Control: max-age=1, stale-while-revalidate=60");
    let b = Origin::always("");
    let proxy = above_split(&a.address, &b.address);
    assert_eq!(proxy.get("/", "").text(), "1");
    until("a stale hit", || status_of(&proxy.get("/", TO_B)).contains("hit; ttl=-"));
    until("another client has it validated", || proxy.get("/", "").text() == "2");
    assert_eq!(b.count(), 0);
}

/// A request that makes the upstream fail fails alone.
#[test]
fn a_failure_of_ones_own_is_not_shared() {
    let (joined, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (known, count) = (joined.clone(), asked.clone());
    let address = raw_origin(move |mut stream| {
        let request = read_message(&mut BufReader::new(stream.try_clone().unwrap())).unwrap();
        count.fetch_add(1, Ordering::Relaxed);
        if request.field("x-misbehave").is_none() {
            // It closes the connection without a word.
            return until("another waits", || known.load(Ordering::Relaxed) == 1);
        }
        stream.write_all(response("Cache-Control: max-age=60", "content").as_bytes()).unwrap();
    });
    let more = format!("[plugin.chatter]\nuse = {MISBEHAVE:?}\n");
    let text = manifest(&address, r#""chatter", "cache""#, &more);
    let proxy = Proxy::start(&text.replace("endpoints", "retry = false\nendpoints"));
    let leader = begin(&proxy);
    until("the leader has asked", || asked.load(Ordering::Relaxed) == 1);
    let mut follower = proxy.connect();
    write!(follower, "GET / HTTP/1.1\r\nHost: example.org\r\nX-Misbehave: print\r\nConnection: close\r\n\r\n").unwrap();
    // It has passed the plugin above the cache, and with the same stroke come to wait.
    proxy.wait_log("printed by a plugin");
    joined.store(1, Ordering::Relaxed);
    let (leader, follower) = (BufReader::new(leader), BufReader::new(follower));
    let status = |mut reader| read_message(&mut reader).unwrap().status();
    assert_eq!((status(leader), status(follower)), (502, 200));
}

#[test]
fn a_304_without_age_or_date_makes_young() {
    let origin = Origin::new(|request, _| match request.field("if-none-match") {
        Some(_) => "HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\n\r\n".into(),
        None => response(
            "Cache-Control: max-age=50\r\nETag: \"a\"\r\nAge: 55\r\nDate: Wed, 01 Jan 2020 00:00:00 GMT",
            "content",
        ),
    });
    let proxy = origin.proxy();
    proxy.get("/", "");
    let validated = proxy.get("/", "");
    assert!(status_of(&validated).contains("fwd-status=304; ttl="), "{validated:?}");
    let after = proxy.get("/", "");
    let ttl: u64 = status_of(&after).split_once("hit; ttl=").unwrap().1.parse().unwrap();
    assert!(ttl > 40, "{after:?}");
    assert!(after.field("age").unwrap().parse::<u64>().unwrap() < 10, "{after:?}");
}

#[test]
fn a_304_of_another_response_freshens_nothing() {
    let origin = Origin::new(|request, number| match request.field("if-none-match") {
        Some(_) => "HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nETag: \"b\"\r\n\r\n".into(),
        None => response("Cache-Control: no-cache\r\nETag: \"a\"", &number.to_string()),
    });
    let proxy = origin.proxy();
    assert_eq!(proxy.get("/", "").text(), "1");
    let odd = proxy.get("/", "");
    assert_eq!((odd.text().as_str(), odd.field("etag")), ("1", Some("\"a\"")), "{odd:?}");
    assert_eq!(proxy.get("/", "").text(), "3", "it is asked for anew");
}

#[test]
fn unstored_response_has_only_its_own_date() {
    let origin = Origin::always("Cache-Control: no-store\r\nDate: Wed, 01 Jan 2020 00:00:00 GMT");
    let proxy = origin.proxy();
    for _ in 0..2 {
        let got = proxy.get("/", "\r\nIf-Modified-Since: Thu, 02 Jan 2020 00:00:00 GMT");
        assert_eq!(got.status(), 200, "{got:?}");
    }
}

#[test]
fn every_spelling_of_a_host_is_one_entry() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let proxy = origin.proxy();
    let ask = |host: &str| proxy.exchange(&format!("GET / HTTP/1.1\r\nHost: {host}")).text();
    let first = ask("example.org");
    for host in ["EXAMPLE.org", "example.org.", "example.org:80", "example.org:080", "example.org:"] {
        assert_eq!(ask(host), first, "{host}");
    }
    for host in ["[::1]", "[0:0:0:0:0:0:0:1]", "[::0001]:80"] {
        ask(host);
    }
    assert_eq!(origin.count(), 2);
    // A change under one spelling is a change under all of them.
    proxy.exchange("POST / HTTP/1.1\r\nHost: Example.org.:0080\r\nContent-Length: 0");
    ask("example.org");
    assert_eq!(origin.count(), 4);
}

/// However slowly the responses of one route arrive, those of others find room in the memory for arriving ones.
#[test]
fn slow_responses_of_a_route_leave_room_to_those_of_others() {
    let origin = raw_origin(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_message(&mut reader) {
            let length = if request.start.contains("/slow/") { 1_000_000 } else { 900_000 };
            let head = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {length}\r\n\r\n");
            // The end of a slow response never comes.
            if stream.write_all(&[head.as_bytes(), &[b'x'; 900_000]].concat()).is_err() {
                return;
            }
        }
    });
    let more =
        format!("path = \"/slow\"\n[[route]]\nupstream = \"app\"\nplugins = [{CACHE}]\n[cache]\nmemory = \"16 MiB\"\n");
    let proxy = Proxy::start(&manifest(&origin, CACHE, &more));
    let slow: Vec<_> = (0..8)
        .map(|number| {
            let mut stream = proxy.connect();
            write!(stream, "GET /slow/{number} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let mut begun = vec![0; 900_000];
            stream.read_exact(&mut begun).unwrap();
            stream
        })
        .collect();
    let line = proxy.wait_log("response not stored");
    assert!(line.contains("limit=\"cache.memory\""), "{line}");
    let stored = || status_of(&proxy.get("/quick", "")).contains("hit");
    until("a response of another route is stored", stored);
    drop(slow);
}

/// A client whose request made a plugin below the cache wait held up all other clients of the same URI.
#[test]
fn a_request_that_a_plugin_below_the_cache_holds_up_holds_up_no_other() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let limits = "limits = { waiting-calls = 10, call-time = \"1h\", share = 100 }";
    let plugin = format!("[plugin.waiting]\nuse = {WAITING:?}\nconfig.hash = \"-\"\n{limits}\n{ADMIN}");
    let proxy = Proxy::start_after(&manifest(&origin.address, r#""cache", "waiting""#, &plugin), "admin at ");
    let calls = || proxy.metric("plugway_plugin_calls_total{plugin=\"waiting\"}");
    let naps: Vec<TcpStream> = (1..=2)
        .map(|number| {
            let mut stream = proxy.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\nX-Wait: nap\r\n\r\n").unwrap();
            // The second one follows the first, and leads in its place.
            until("a call waits", || calls() >= f64::from(number));
            stream
        })
        .collect();
    assert_eq!((proxy.get("/", "").status(), origin.count()), (200, 1));
    drop(naps);
}

/// A client whose request the origin answered late, as a long poll, held up all others.
#[test]
fn a_response_that_is_late_is_not_waited_for_without_end() {
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let origin = Origin::new(move |_, number| {
        if number == 1 {
            let _ = released.lock().unwrap().recv();
        }
        response("Cache-Control: no-store", &number.to_string())
    });
    let text = manifest(&origin.address, CACHE, "").replace("endpoints", "response-timeout = \"10m\"\nendpoints");
    let proxy = Proxy::start(&text);
    let mut poll = proxy.connect();
    poll.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
    until("the origin has the first request", || origin.count() == 1);
    assert_eq!(proxy.get("/", "").text(), "2");
    drop(release);
    assert_eq!(read_message(&mut BufReader::new(poll)).unwrap().text(), "1");
}
