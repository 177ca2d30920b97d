//! Unit tests of the store: lookups, replacement, eviction and purges.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response};

use super::*;
use crate::store::purge_log::PurgeTarget;
use crate::store::stored_response::{Content, Freshness};
use crate::store::variant::PurgeKind;
use crate::store::vary::VaryValue;

fn object(uri: &str, scope: u64, selectors: VaryValue, size: usize, tags: &[&str]) -> Arc<StoredResponse> {
    let (head, ()) = Response::new(()).into_parts();
    let tags = tags.iter().map(|tag| Box::from(*tag)).collect();
    let rules = Freshness { lifetime_ms: 1000, ..Freshness::default() };
    let content = Content::Whole(Bytes::from(vec![0; size]));
    Arc::new(StoredResponse::new(VariantInfo::new(scope, selectors, Some(uri.into()), tags), &head, content, rules, 0))
}

fn plain(uri: &str) -> Arc<StoredResponse> {
    object(uri, 1, VaryValue::default(), 10, &[])
}

fn put(store: &Store, object: Arc<StoredResponse>) {
    let key = object.variant.uri.clone().unwrap().into_string();
    let id = store.id(key.as_bytes());
    store.insert(id, key.as_bytes(), object, &store.purge_epoch(id));
}

fn has(store: &Store, key: &str, request: &HeaderMap) -> bool {
    matches!(store.find(store.id(key.as_bytes()), key.as_bytes(), 1, request, 0), Found::Variant(_))
}

fn language(value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("accept-language"), HeaderValue::from_static(value))])
}

#[test]
fn each_request_finds_what_was_made_for_it() {
    let store = Store::new(1 << 20);
    for value in ["de", "en"] {
        let selectors =
            VaryValue::from_request([HeaderName::from_static("accept-language")].into_iter(), &language(value));
        put(&store, object("/a", 1, selectors, 10, &[]));
    }
    put(&store, object("/a", 2, VaryValue::default(), 10, &[]));
    assert!(has(&store, "/a", &language("de")) && has(&store, "/a", &language("en")));
    assert!(!has(&store, "/a", &language("fr")), "it is another route's that doesn't vary");
    assert_eq!(store.keys(), 1);
}

/// A lookup compares all variants with the request, so a policy that lists many fields gets few variants.
#[test]
fn variants_that_depend_on_many_fields_are_few_and_those_of_other_routes_stay() {
    let store = Store::new(64 << 20);
    let request = |n: usize| HeaderMap::from_iter([(HeaderName::from_static("x-last"), HeaderValue::from(n))]);
    let put_variant = |scope, n, fields: usize| {
        let names = (1..fields).map(|field| HeaderName::try_from(format!("x-{field}")).unwrap());
        let names = names.chain([HeaderName::from_static("x-last")]);
        put(&store, object("/a", scope, VaryValue::from_request(names, &request(n)), 10, &[]));
    };
    let found = |scope| {
        let is_found = |n: &usize| {
            let found = store.find(store.id(b"/a"), b"/a", scope, &request(*n), 0);
            matches!(found, Found::Variant(_))
        };
        (0..100).filter(is_found).collect::<Vec<_>>()
    };
    (0..100).for_each(|n| put_variant(1, n, 8));
    assert_eq!(found(1), (36..100).collect::<Vec<_>>(), "64 variants with 8 fields each");
    (0..100).for_each(|n| put_variant(2, n, 256));
    assert_eq!(found(2), [98, 99], "two variants with 256 fields each");
    assert_eq!(found(1).len(), 64, "another route keeps its variants");
}

/// A client makes a scope by each spelling of a path where paths are forwarded as they are.
#[test]
fn a_key_has_so_many_variants_however_many_scopes_there_are() {
    let store = Store::new(64 << 20);
    let count = 300;
    (0..count).for_each(|scope| put(&store, object("/a", scope, VaryValue::default(), 10, &[])));
    let is_found =
        |scope: &u64| matches!(store.find(store.id(b"/a"), b"/a", *scope, &HeaderMap::new(), 0), Found::Variant(_));
    assert_eq!((0..count).filter(is_found).collect::<Vec<_>>(), (count - 256..count).collect::<Vec<_>>());
}

#[test]
fn a_newer_response_takes_the_place_of_the_older() {
    let store = Store::new(1 << 20);
    put(&store, plain("/a"));
    let before = store.bytes();
    put(&store, plain("/a"));
    assert_eq!((store.bytes(), store.keys()), (before, 1));
}

#[test]
fn late_response_does_not_replace_a_newer_one() {
    let store = Store::new(1 << 20);
    let numbered = |number| Arc::new(Arc::into_inner(plain("/a")).unwrap().with_sequence(number));
    put(&store, numbered(2));
    put(&store, numbered(1));
    match store.find(store.id(b"/a"), b"/a", 1, &HeaderMap::new(), 0) {
        Found::Variant(object) => assert_eq!(object.sequence, 2),
        _ => panic!("nothing"),
    }
}

/// For example, a request that came after the purge read the response from disk before the purge got there.
#[test]
fn purged_response_is_not_stored_whenever_it_was_requested() {
    let store = Store::new(1 << 20);
    let object = plain("/a");
    object.variant.purge(PurgeKind::Hard);
    put(&store, object);
    assert!(!has(&store, "/a", &HeaderMap::new()));
}

#[test]
fn the_budget_holds_and_what_is_read_again_outlasts_a_scan() {
    let store = Store::new(4 << 20);
    let hot: Vec<String> = (0..100).map(|at| format!("/hot/{at}")).collect();
    for _ in 0..3 {
        for uri in &hot {
            if !has(&store, uri, &HeaderMap::new()) {
                put(&store, object(uri, 1, VaryValue::default(), 10 << 10, &[]));
            }
        }
    }
    for at in 0..5000 {
        put(&store, object(&format!("/scan/{at}"), 1, VaryValue::default(), 10 << 10, &[]));
        assert!(store.bytes() <= store.capacity());
    }
    let left = hot.iter().filter(|uri| has(&store, uri, &HeaderMap::new())).count();
    assert!(left >= 80, "{left} of 100 have outlasted 50 MB that were read once");
}

#[test]
fn many_variants_of_one_key_have_no_more_than_their_part() {
    let store = Store::new(16 << 20);
    for at in 0..64 {
        let value = HeaderMap::from_iter([(HeaderName::from_static("x-at"), HeaderValue::from(at))]);
        let selectors = VaryValue::from_request([HeaderName::from_static("x-at")].into_iter(), &value);
        put(&store, object("/a", 1, selectors, 100 << 10, &[]));
        assert!(store.bytes() <= 1 << 20, "{} bytes with {at}", store.bytes());
        assert!(has(&store, "/a", &value), "the newest is there");
    }
    assert!(store.bytes() > 900 << 10);
    let store = Store::new(16 << 20);
    let longest = object("/b", 1, VaryValue::default(), store.max_entry_bytes() as usize, &[]);
    put(&store, longest);
    assert!(has(&store, "/b", &HeaderMap::new()), "what is said to fit does");
}

#[test]
fn variant_that_grows_in_place_evicts_others() {
    let store = Store::new(1 << 20);
    for round in 0..20 {
        for at in 0..16 {
            let value = HeaderMap::from_iter([(HeaderName::from_static("x-at"), HeaderValue::from(round))]);
            let selectors = VaryValue::from_request([HeaderName::from_static("x-at")].into_iter(), &value);
            put(&store, object(&format!("/{at}"), 1, selectors, 5 << 10, &[]));
            assert!(store.bytes() <= store.capacity(), "{} bytes", store.bytes());
        }
    }
}

#[test]
fn responses_on_their_way_have_a_part_of_the_memory() {
    let store = Store::new(16 << 20);
    let routes: [ArrivingBytes; 2] = Default::default();
    let [mut one, mut another] = routes.each_ref().map(|route| store.reserve(route));
    assert!(one.take(3 << 20, store.capacity()) && another.take(3 << 18, store.capacity()));
    assert!(!another.take(1, store.capacity()));
    drop(one);
    assert!(another.take(1, store.capacity()));
}

#[test]
fn purges_take_what_they_name() {
    let fresh = || {
        let store = Store::new(1 << 20);
        for uri in ["http://a/x", "http://a/x/y", "http://b/x"] {
            put(&store, object(uri, 1, VaryValue::default(), 10, if uri.contains("/y") { &["t"] } else { &[] }));
        }
        store
    };
    let cases = [
        (PurgeTarget::All, 3),
        (PurgeTarget::Uri("http://a/x".into()), 1),
        (PurgeTarget::Prefix("http://a/".into()), 2),
        (PurgeTarget::Tag("t".into()), 1),
        (PurgeTarget::Tag("none".into()), 0),
    ];
    for (what, count) in cases {
        let store = fresh();
        assert_eq!(store.purge(&Purge { what: what.clone(), strength: PurgeKind::Hard }), count, "{what:?}");
        let left = ["http://a/x", "http://a/x/y", "http://b/x"].map(|uri| has(&store, uri, &HeaderMap::new()));
        assert_eq!(left.iter().filter(|left| **left).count(), 3 - count, "{what:?}");
        assert_eq!(store.keys(), 3 - count, "{what:?} leaves nothing behind");
    }
}

#[test]
fn a_soft_purge_makes_stale() {
    let store = Store::new(1 << 20);
    let object = plain("/a");
    put(&store, object.clone());
    assert!(object.is_fresh(0));
    assert_eq!(store.purge(&Purge { what: PurgeTarget::Uri("/a".into()), strength: PurgeKind::Soft }), 1);
    assert!(has(&store, "/a", &HeaderMap::new()) && !object.is_fresh(0));
}

#[test]
fn response_purged_while_it_arrives_is_not_stored() {
    let store = Store::new(1 << 20);
    let epochs = ["/a", "/b", "/c"].map(|uri| store.purge_epoch(store.id(uri.as_bytes())));
    store.purge(&Purge { what: PurgeTarget::Prefix("/a".into()), strength: PurgeKind::Hard });
    store.purge(&Purge { what: PurgeTarget::Prefix("/b".into()), strength: PurgeKind::Soft });
    let insert = |uri: &'static str, epoch| store.insert(store.id(uri.as_bytes()), uri.as_bytes(), plain(uri), epoch);
    let stored = [insert("/a", &epochs[0]), insert("/b", &epochs[1]), insert("/c", &epochs[2])];
    assert_eq!(stored, [false, true, true]);
    assert!(!has(&store, "/a", &HeaderMap::new()) && has(&store, "/b", &HeaderMap::new()));
    assert!(has(&store, "/c", &HeaderMap::new()));
    let Found::Variant(object) = store.find(store.id(b"/b"), b"/b", 1, &HeaderMap::new(), 0) else { panic!("no /b") };
    assert!(object.variant.is_purged());
}
