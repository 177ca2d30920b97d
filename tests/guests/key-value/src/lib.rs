//! A plugin whose state is `wasi:keyvalue`, as components for other hosts have it. A request says in `x-key-value` what is
//! done: a word and its arguments, between spaces, the bucket first.

use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Response, Setup, Values, Verdict, export};

mod bindings {
    #![allow(unsafe_code, unused_qualifications, clippy::all, reason = "generated")]
    wit_bindgen::generate!({ path: "../../../host/wit/keyvalue", world: "imports", generate_all });
}

use bindings::wasi::keyvalue::store::{self, Bucket};
use bindings::wasi::keyvalue::{atomics, batch};

pub struct KeyValue {
    what: Input,
}

impl Plugin for KeyValue {
    type Config = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(KeyValue { what: setup.request.field("x-key-value") })
    }
}

impl RequestFilter for KeyValue {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let words: Vec<&str> = request.text(self.what).unwrap_or_default().split(' ').collect();
        let text = match store::open(words.first().copied().unwrap_or_default()) {
            Ok(bucket) => result(&bucket, words.get(1..).unwrap_or_default()),
            Err(error) => format!("{error:?}"),
        };
        Response::new(200).body("text/plain", text).into()
    }
}

fn result(bucket: &Bucket, words: &[&str]) -> String {
    let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    match *words {
        ["get", key] => format!("{:?}", bucket.get(key).map(|value| value.map(String::from_utf8))),
        ["set", key, value] => format!("{:?}", bucket.set(key, value.as_bytes())),
        ["long", key, length] => format!("{:?}", bucket.set(key, &vec![b'v'; length.parse().unwrap_or(0)])),
        ["delete", key] => format!("{:?}", bucket.delete(key)),
        ["exists", key] => format!("{:?}", bucket.exists(key)),
        ["increment", key, delta] => {
            format!("{:?}", atomics::increment(bucket, key, delta.parse().unwrap_or(0)))
        }
        ["keys"] => keys(bucket),
        ["fill", count] => {
            let set = |key: u64| bucket.set(&format!("key{key}"), b"v");
            format!("{:?}", (0..count.parse().unwrap_or(0)).try_for_each(set))
        }
        ["open", count] => {
            let open = |number: u64| store::open(&number.to_string());
            format!("{:?}", (0..count.parse().unwrap_or(0)).map(open).collect::<Result<Vec<_>, _>>().map(drop))
        }
        ["get-many", ref keys @ ..] => {
            let text = |pair: (String, Vec<u8>)| format!("{}={}", pair.0, String::from_utf8_lossy(&pair.1));
            let values = batch::get_many(bucket, &owned(keys));
            format!("{:?}", values.map(|values| values.into_iter().map(|pair| pair.map(text)).collect::<Vec<_>>()))
        }
        ["set-many", value, ref keys @ ..] => {
            let pairs: Vec<_> = keys.iter().map(|key| (key.to_string(), value.as_bytes().to_vec())).collect();
            format!("{:?}", batch::set_many(bucket, &pairs))
        }
        ["delete-many", ref keys @ ..] => format!("{:?}", batch::delete_many(bucket, &owned(keys))),
        ["same", key, count] => {
            let keys = vec![key.to_string(); count.parse().unwrap_or(0)];
            format!("{:?}", batch::get_many(bucket, &keys).map(|values| values.len()))
        }
        _ => "?".into(),
    }
}

/// Returns the sorted keys of a bucket, or their number if they are many, and how many calls it took at least.
fn keys(bucket: &Bucket) -> String {
    let (mut keys, mut cursor, mut calls) = (Vec::new(), None, 0);
    loop {
        match bucket.list_keys(cursor) {
            Ok(page) => {
                keys.extend(page.keys);
                calls += 1;
                cursor = page.cursor;
            }
            Err(error) => return format!("{error:?}"),
        }
        if cursor.is_none() {
            break;
        }
    }
    keys.sort();
    keys.dedup();
    if keys.len() > 10 { format!("{} in several calls: {}", keys.len(), calls > 1) } else { keys.join(" ") }
}

export!(KeyValue: RequestFilter);
