//! Whatever a plugin asks for: framing and hop-by-hop fields stay as they were, and what is refused changes nothing.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use plugway_fuzz::edit::{self, Edit, Refused, Side};
use plugway_fuzz::head::{Head, Peer, Received};

/// An edit, as the host makes it of what a plugin returned.
fn checked(kind: u8, name: &str, value: &[u8]) -> Result<Edit, Refused> {
    let field = || edit::field_name(name);
    let content = || edit::field_value(name, value);
    Ok(match kind % 9 {
        0 => Edit::Set(field()?, content()?),
        1 => Edit::Append(field()?, content()?),
        2 => Edit::Default(field()?, content()?),
        3 => Edit::Remove(field()?),
        4 => Edit::Rename(field()?, edit::field_name(&String::from_utf8_lossy(value))?),
        5 => Edit::Path(value.to_vec()),
        6 => Edit::Query(Some(value.to_vec())),
        7 => Edit::Status(edit::status(u16::from_le_bytes([kind, value.first().copied().unwrap_or(0)]))?),
        _ => Edit::Note(name.into(), content()?),
    })
}

fn head() -> Head {
    let request = http::Request::post("/path?query").header("content-length", "5").header("connection", "close");
    let (parts, ()) = request.header("x-a", "1").body(()).unwrap().into_parts();
    let received = Received::of(&parts, Words::Unneeded);
    Head::new(received, parts, Arc::new(Peer::unix("fuzzed")), "route".into(), "upstream".into())
}

fuzz_target!(|input: Vec<(u8, String, Vec<u8>)>| {
    let edits = input.iter().filter_map(|(kind, name, value)| checked(*kind, name, value).ok()).collect();
    let mut head = head();
    let before = format!("{head:?}");
    if edit::apply(edits, &[], Side::Request, &mut head).is_err() {
        assert_eq!(format!("{head:?}"), before);
    }
    assert_eq!(head.request.headers["content-length"], "5");
    assert_eq!(head.request.headers["connection"], "close");
    assert!(head.request.uri.path().starts_with('/'));
    let target = head.request.uri.path_and_query().unwrap().as_str();
    assert!(!target.contains([' ', '\r', '\n']), "{target:?}");
});
