//! Tests by the sections of RFC 9111, with times that each test sets.

use super::*;
use crate::testing::{Harness, Request};
use crate::{CachePolicy, ConfigError, Plugin, Response};

struct Plain(Standard);

impl Plugin for Plain {
    type Config = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Plain(Standard::new(setup, Options::default())))
    }
}

impl CachePolicy for Plain {
    fn on_lookup(&mut self, request: &Values) -> Lookup {
        self.0.lookup(request)
    }

    fn on_stored(&mut self, request: &Values, stored: &StoredResponse) -> Reuse {
        self.0.stored(request, stored)
    }

    fn on_fetched(&mut self, response: &Values, times: &FetchTimes) -> StoreDecision {
        self.0.fetched(response, times)
    }

    fn on_invalidate(&mut self, response: &Values) -> Vec<Vec<u8>> {
        self.0.invalidated_keys(response)
    }

    fn on_upstream_error(&mut self, request: &Values, stored: &StoredResponse, status: Option<u16>) -> bool {
        self.0.upstream_error(request, stored, status)
    }
}

/// The time of the tests: 2023-11-14 22:13:20 UTC.
const NOW: FetchTimes = FetchTimes { received_ms: 1_700_000_000_000, delay_ms: 0 };

/// A date ten hours before [`NOW`].
const MORNING: &str = "Tue, 14 Nov 2023 12:13:20 GMT";

fn plain() -> Harness<Plain> {
    Harness::new(serde_json::json!({})).unwrap()
}

fn response(status: u16, fields: &[(&str, &str)]) -> Response {
    fields.iter().fold(Response::new(status), |response, (name, value)| response.field(name, *value))
}

fn kept(status: u16, fields: &[(&str, &str)]) -> StoreDecision {
    plain().fetched(&Request::get("/"), &response(status, fields), &NOW)
}

fn storage(fields: &[(&str, &str)]) -> Storage {
    match kept(200, fields) {
        StoreDecision::Store(storage) => storage,
        StoreDecision::Refuse(refusal) => panic!("{fields:?}: {refusal:?}"),
    }
}

fn refusal(status: u16, fields: &[(&str, &str)]) -> Refusal {
    match kept(status, fields) {
        StoreDecision::Refuse(refusal) => refusal,
        StoreDecision::Store(storage) => panic!("{status} {fields:?}: {storage:?}"),
    }
}

fn control(value: &str) -> [(&str, &str); 1] {
    [("cache-control", value)]
}

#[test]
fn section_3_what_may_be_stored() {
    assert_eq!(storage(&control("max-age=60")).lifetime_ms, 60_000);
    assert_eq!(refusal(200, &control("max-age=60, no-store")), Refusal::NoStore);
    assert_eq!(refusal(200, &control("max-age=60, private")), Refusal::Private);
    assert_eq!(refusal(206, &control("max-age=60")), Refusal::Status);
    assert_eq!(refusal(200, &[]), Refusal::NoLifetime);
    assert_eq!(refusal(200, &control("max-age=0")), Refusal::NoLifetime, "nothing could ever be done with it");
    assert_eq!(storage(&[("cache-control", "max-age=0"), ("etag", "\"a\"")]).lifetime_ms, 0);
    assert!(matches!(kept(299, &control("max-age=60")), StoreDecision::Store(_)), "an unknown status is no reason");
}

#[test]
fn section_3_5_authorized_requests() {
    let signed = Request::get("/").field("authorization", "Basic YTpi");
    let keeps = |value: &str| {
        let kept = plain().fetched(&signed, &response(200, &control(value)), &NOW);
        kept != StoreDecision::Refuse(Refusal::Authorization)
    };
    assert!(!keeps("max-age=60"));
    assert!(keeps("max-age=60, public") && keeps("s-maxage=60") && keeps("max-age=60, must-revalidate"));
}

#[test]
fn section_3_5_credentials_that_a_plugin_has_checked_and_removed() {
    let passed = Request::get("/").note(CREDENTIALS, "authorization");
    let decide = |value: &str| plain().fetched(&passed, &response(200, &control(value)), &NOW);
    assert_eq!(decide("max-age=60"), StoreDecision::Refuse(Refusal::Authorization));
    assert!(matches!(decide("max-age=60, public"), StoreDecision::Store(_)));
}

#[test]
fn section_4_1_a_response_that_varies_by_anything_is_nobody_elses() {
    assert_eq!(refusal(200, &[("cache-control", "max-age=60"), ("vary", "accept, *")]), Refusal::Vary);
    let varies = storage(&[("cache-control", "max-age=60"), ("vary", "Accept, accept , Cookie")]);
    assert_eq!(varies.vary, ["accept", "cookie"]);
    for wrong in ["accept, foo bar", "a=b", "\u{e4}"] {
        assert_eq!(refusal(200, &[("cache-control", "max-age=60"), ("vary", wrong)]), Refusal::Vary, "{wrong}");
    }
    let many = (0..300).map(|number| format!("x-{number}")).collect::<Vec<_>>().join(",");
    assert_eq!(refusal(200, &[("cache-control", "max-age=60"), ("vary", &many)]), Refusal::Vary);
    let many = Refusal::Other("too-many-fields".into());
    let names = (0..300).map(|number| format!("x-{number}")).collect::<Vec<_>>().join(",");
    assert_eq!(refusal(200, &control(&format!("max-age=60, no-cache=\"{names}\""))), many);
}

#[test]
fn section_4_2_1_lifetimes_in_their_order() {
    let date = ("date", "Tue, 14 Nov 2023 22:13:20 GMT");
    let expires = ("expires", "Tue, 14 Nov 2023 22:14:20 GMT");
    assert_eq!(storage(&[("cache-control", "max-age=1, s-maxage=2"), expires]).lifetime_ms, 2000);
    assert_eq!(storage(&[("cache-control", "max-age=1"), expires]).lifetime_ms, 1000);
    assert_eq!(storage(&[date, expires]).lifetime_ms, 60_000);
    assert_eq!(storage(&[("date", "Tue, 14 Nov 2023 22:13:50 GMT"), expires]).lifetime_ms, 30_000);
    assert_eq!(storage(&[expires]).lifetime_ms, 60_000, "without a Date, from its arrival");
    assert_eq!(storage(&[date, ("expires", "Tuesday, 14-Nov-23 22:14:20 GMT")]).lifetime_ms, 60_000);
    assert_eq!(storage(&[date, ("expires", "Tue Nov 14 22:14:20 2023")]).lifetime_ms, 60_000);
    for unusual in [
        "tue, 14 NOV 2023 22:14:20 gmt",
        "TUESDAY, 14-nov-23 22:14:20 Gmt",
        "TUE NOV 14 22:14:20 2023",
        "Wed Nov 14 22:14:20 2023",
    ] {
        assert_eq!(storage(&[date, ("expires", unusual)]).lifetime_ms, 60_000, "{unusual}");
    }
    assert_eq!(refusal(200, &[date, ("expires", "0")]), Refusal::NoLifetime);
    let latin = Response::new(200).field("expires", b"\xe4".to_vec()).field("last-modified", MORNING);
    let kept = plain().fetched(&Request::get("/"), &latin, &NOW);
    assert!(matches!(kept, StoreDecision::Store(Storage { lifetime_ms: 0, .. })), "not guessed at: {kept:?}");
    let nonsense = [("cache-control", "max-age=a"), expires];
    assert_eq!(refusal(200, &nonsense), Refusal::NoLifetime, "it had better be asked again");
}

#[test]
fn section_4_2_2_heuristics_are_a_tenth_and_a_day_at_most() {
    let modified = |value| [("last-modified", value), ("date", "Tue, 14 Nov 2023 22:13:20 GMT")];
    assert_eq!(storage(&modified(MORNING)).lifetime_ms, 3_600_000);
    assert_eq!(storage(&modified("Tue, 14 Nov 2000 12:13:20 GMT")).lifetime_ms, 24 * 3_600_000);
    assert_eq!(refusal(404, &modified(MORNING)), Refusal::Status, "errors only when told");
    assert_eq!(refusal(302, &modified(MORNING)), Refusal::Status);
    let public = [&modified(MORNING)[..], &control("public")].concat();
    assert!(matches!(kept(302, &public), StoreDecision::Store(Storage { lifetime_ms: 3_600_000, .. })));
    assert_eq!(refusal(404, &public), Refusal::Status, "to be public isn't to say for how long");
    assert_eq!(refusal(200, &modified("Tue, 14 Nov 2024 12:13:20 GMT")), Refusal::NoLifetime);
}

#[test]
fn section_4_2_3_the_age_at_arrival() {
    let age = |fields: &[(&str, &str)], delay_ms| {
        let fields = [&control("max-age=600")[..], fields].concat();
        match plain().fetched(&Request::get("/"), &response(200, &fields), &FetchTimes { delay_ms, ..NOW }) {
            StoreDecision::Store(storage) => storage.initial_age_ms,
            StoreDecision::Refuse(refusal) => panic!("{refusal:?}"),
        }
    };
    assert_eq!(age(&[], 0), 0);
    assert_eq!(age(&[("age", "10")], 500), 10_500, "and how long it took");
    assert_eq!(age(&[], 2500), 2500, "be it without an Age");
    assert_eq!(age(&[], 999), 0, "less than what Age can say");
    assert_eq!(age(&[("date", "Tue, 14 Nov 2023 22:13:00 GMT")], 0), 20_000);
    assert_eq!(age(&[("date", "Tue, 14 Nov 2023 22:13:00 GMT"), ("age", "30")], 0), 30_000);
    assert_eq!(age(&[("date", "Tue, 14 Nov 2023 23:13:00 GMT")], 0), 0, "a clock ahead of ours");
    assert_eq!(age(&[("age", "10, 20")], 0), 10_000, "the first of several");
    for nonsense in ["-1", "a", "1.5", ""] {
        assert_eq!(age(&[("age", nonsense)], 0), 0, "{nonsense}");
    }
    assert_eq!(age(&[("age", "99999999999999")], 0), (1 << 31) * 1000);
}

fn stored(age_ms: u64) -> StoredResponse {
    StoredResponse {
        age_ms,
        lifetime_ms: 60_000,
        stale_while_revalidate_ms: 0,
        stale_if_error_ms: 0,
        must_revalidate: false,
        purged: false,
    }
}

fn reuse(request: &str, stored: &StoredResponse) -> Reuse {
    let request =
        if request.is_empty() { Request::get("/") } else { Request::get("/").field("cache-control", request) };
    plain().stored(&request, stored)
}

#[test]
fn section_4_2_fresh_is_what_is_younger_than_its_lifetime() {
    assert_eq!(reuse("", &stored(59_999)), Reuse::Serve);
    assert_eq!(reuse("", &stored(60_000)), Reuse::Validate);
    assert_eq!(reuse("", &StoredResponse { purged: true, ..stored(0) }), Reuse::Validate);
}

#[test]
fn section_4_4_what_changes_something_makes_stale() {
    assert_eq!(plain().lookup(&Request::new("POST", "/a")), Lookup::Invalidates);
    assert_eq!(plain().lookup(&Request::new("PURGE", "/a")), Lookup::Invalidates, "unknown methods may");
    for safe in ["OPTIONS", "TRACE", "PROPFIND"] {
        assert_eq!(plain().lookup(&Request::new(safe, "/a")), Lookup::Bypass(BypassReason::Method));
    }
    let keys = |fields: &[(&str, &str)]| {
        let keys = plain().invalidated_keys(&Request::new("POST", "/a/b?c"), &response(201, fields));
        keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect::<Vec<_>>()
    };
    let own = "http://example.org/a/b?c";
    assert_eq!(keys(&[]), [own]);
    let cases = [
        ("/d", "http://example.org/d"),
        ("d?e#f", "http://example.org/a/d?e"),
        ("../d", "http://example.org/d"),
        ("http://EXAMPLE.org:80/d", "http://example.org/d"),
        ("//example.org", "http://example.org/"),
        ("http://example.org?d", "http://example.org/?d"),
        ("?d", "http://example.org/a/b?d"),
        ("#d", own),
        ("d?to=http://other.example/", "http://example.org/a/d?to=http://other.example/"),
    ];
    for (reference, key) in cases {
        assert_eq!(keys(&[("location", reference)]), [own, key], "{reference}");
        assert_eq!(keys(&[("content-location", reference)]), [own, key], "{reference}");
    }
    for foreign in ["http://other.example/d", "https://example.org/d", "//other.example/d", "http://example.org:81/d"] {
        assert_eq!(keys(&[("location", foreign)]), [own], "{foreign}");
    }
    assert_eq!(keys(&[("location", "mailto:a@example.org")]), [own]);
}

#[test]
fn fields_that_only_the_changing_request_has_hide_nothing_from_it() {
    let keys = |request: Request, fields: &[(&str, &str)]| {
        let keys = plain().invalidated_keys(&request, &response(200, fields));
        keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect::<Vec<_>>()
    };
    let (uri, other) = ("http://example.org/a", "http://example.org/b");
    for name in ["x-http-method-override", "x-http-method", "x-method-override"] {
        let request = Request::new("POST", "/a").field(name, "PUT");
        assert_eq!(keys(request, &[]), [format!("{uri}\n{name}:PUT"), uri.into()]);
    }
    // The proxy before this one sends its field with each request, and the client the method with this one.
    let request = Request::new("POST", "/a").field("x-forwarded-host", "h").field("x-http-method", "PUT");
    let of = |uri: &str| {
        [format!("{uri}\nx-forwarded-host:h\nx-http-method:PUT"), format!("{uri}\nx-forwarded-host:h"), uri.into()]
    };
    assert_eq!(keys(request, &[("location", "/b")]), [of(uri), of(other)].concat());
}

#[test]
fn section_5_2_1_what_requests_say() {
    assert_eq!(reuse("no-cache", &stored(0)), Reuse::Validate);
    assert_eq!(reuse("max-age=10", &stored(10_000)), Reuse::Serve);
    assert_eq!(reuse("max-age=10", &stored(10_001)), Reuse::Validate);
    assert_eq!(reuse("min-fresh=20", &stored(40_000)), Reuse::Serve);
    assert_eq!(reuse("min-fresh=20", &stored(40_001)), Reuse::Validate);
    assert_eq!(reuse("max-stale", &stored(999_000)), Reuse::Serve);
    assert_eq!(reuse("max-stale=10", &stored(70_000)), Reuse::Serve);
    assert_eq!(reuse("max-stale=10", &stored(70_001)), Reuse::Validate);
    assert_eq!(reuse("max-stale", &StoredResponse { must_revalidate: true, ..stored(70_000) }), Reuse::Validate);
    assert_eq!(reuse("max-stale", &StoredResponse { purged: true, ..stored(0) }), Reuse::Validate);
    let lookup = |control: &str| plain().lookup(&Request::get("/").field("cache-control", control));
    assert_eq!(lookup("no-store"), Lookup::Bypass(BypassReason::Request));
    let rules = |control: &str| match lookup(control) {
        Lookup::UseCache(cache_key) => (cache_key.allow_fresh, cache_key.only_if_cached),
        other => panic!("{other:?}"),
    };
    assert_eq!(rules("only-if-cached"), (true, true));
    assert_eq!([rules("no-cache"), rules("max-age=0"), rules("min-fresh=1")], [(false, false); 3]);
    assert_eq!(rules("max-stale, no-transform"), (true, false));
}

#[test]
fn section_5_2_2_what_responses_say() {
    let always = storage(&[("cache-control", "no-cache"), ("etag", "\"a\"")]);
    assert_eq!((always.lifetime_ms, always.must_revalidate), (0, true));
    assert_eq!(refusal(200, &control("no-cache")), Refusal::NoLifetime, "there is nothing to ask by");
    assert_eq!(storage(&control("max-age=60, no-cache=\"X-A\"")).drop_fields, ["x-a"]);
    assert_eq!(storage(&control("max-age=60, private=\"Set-Cookie\"")).drop_fields, ["set-cookie"]);
    for strict in ["max-age=60, must-revalidate", "max-age=60, proxy-revalidate", "s-maxage=60"] {
        assert!(storage(&control(strict)).must_revalidate, "{strict}");
    }
    assert!(!storage(&control("s-maxage=60, stale-while-revalidate=10")).must_revalidate, "it says itself how stale");
    assert!(matches!(kept(200, &control("no-store, must-understand, max-age=60")), StoreDecision::Store(_)));
    assert_eq!(refusal(299, &control("no-store, must-understand, max-age=60")), Refusal::Status);
}

#[test]
fn errors_are_kept_only_when_they_say_so_and_never_those_of_one_client() {
    assert_eq!(refusal(404, &[]), Refusal::Status);
    assert!(matches!(kept(404, &control("max-age=60")), StoreDecision::Store(_)));
    for of_one_client in [400, 408, 413, 421, 425, 429, 431] {
        assert_eq!(refusal(of_one_client, &control("max-age=60")), Refusal::Status);
    }
}

/// Thousands of directives took 3 ms of a worker for each request.
#[test]
fn of_a_request_the_first_kilobyte_of_directives_counts() {
    let asking = |before: usize| {
        let many = "max-stale,".repeat(before / 10) + "no-cache";
        plain().stored(&Request::get("/").field("cache-control", &many), &stored(0))
    };
    assert_eq!((asking(1_000), asking(30_000)), (Reuse::Validate, Reuse::Serve));
}

#[test]
fn section_5_4_pragma_counts_where_nothing_newer_is() {
    let old = Request::get("/").field("pragma", "no-cache");
    assert_eq!(plain().stored(&old, &stored(0)), Reuse::Validate);
    let both = Request::get("/").field("pragma", "no-cache").field("cache-control", "max-stale");
    assert_eq!(plain().stored(&both, &stored(0)), Reuse::Serve);
}

#[test]
fn section_4_3_2_what_only_the_origin_can_evaluate_goes_there() {
    for name in ["if-match", "if-unmodified-since"] {
        let request = Request::get("/").field(name, "\"a\"");
        assert_eq!(plain().lookup(&request), Lookup::Bypass(BypassReason::Request));
    }
}

#[test]
fn rfc_5861_stale_while_revalidate_and_stale_if_error() {
    let windows = storage(&control("max-age=60, stale-while-revalidate=10, stale-if-error=20"));
    assert_eq!((windows.stale_while_revalidate_ms, windows.stale_if_error_ms), (10_000, 20_000));
    let stale =
        |age_ms| StoredResponse { stale_while_revalidate_ms: 10_000, stale_if_error_ms: 20_000, ..stored(age_ms) };
    assert_eq!(reuse("", &stale(70_000)), Reuse::ServeAndRevalidate);
    assert_eq!(reuse("", &stale(70_001)), Reuse::Validate);
    let covers = |request: &str, stored: &StoredResponse, status| {
        plain().upstream_error(&Request::get("/").field("cache-control", request), stored, status)
    };
    assert!(covers("", &stale(80_000), None) && covers("", &stale(80_000), Some(503)));
    assert!(!covers("", &stale(80_001), None), "too old");
    assert!(!covers("", &stale(80_000), Some(501)), "no failure, but an answer");
    assert!(!covers("", &StoredResponse { must_revalidate: true, ..stale(80_000) }, None));
    assert!(covers("stale-if-error=100", &stored(150_000), Some(500)), "the client may say so too");
    let strict = storage(&control("max-age=60, must-revalidate, stale-while-revalidate=10"));
    assert_eq!(strict.stale_while_revalidate_ms, 0);
}

#[test]
fn rfc_9213_a_targeted_field_goes_before_the_general_ones() {
    let both = [("cache-control", "no-store"), ("cdn-cache-control", "max-age=60")];
    assert_eq!(storage(&both).lifetime_ms, 60_000);
    let invalid = [("cache-control", "max-age=30"), ("cdn-cache-control", "max-age=60,")];
    assert_eq!(storage(&invalid).lifetime_ms, 30_000);
    let expired = [("expires", "0"), ("cdn-cache-control", "max-age=60")];
    assert_eq!(storage(&expired).lifetime_ms, 60_000);
}

#[test]
fn tags_are_words_of_either_field() {
    let tagged = [("cache-control", "max-age=60"), ("surrogate-key", "a b"), ("cache-tag", "c,d")];
    assert_eq!(storage(&tagged).tags, ["a", "b", "c", "d"]);
}

#[test]
fn nobody_gets_what_was_made_for_anothers_fields() {
    let key = |request: Request| match plain().lookup(&request) {
        Lookup::UseCache(cache_key) => cache_key.key,
        other => panic!("{other:?}"),
    };
    let honest = key(Request::get("/"));
    assert_eq!(honest, b"http://example.org/");
    for name in OBEYED {
        assert_ne!(key(Request::get("/").field(name, "evil.example")), honest, "{name}");
    }
    assert_ne!(key(Request::get("/").secure()), honest);
    assert_ne!(key(Request::get("/").authority("example.com")), honest);
    assert_eq!(key(Request::get("/").authority("EXAMPLE.org:80")), honest);
}
