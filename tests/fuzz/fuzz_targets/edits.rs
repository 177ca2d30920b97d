//! Whatever a plugin asks for: framing and hop-by-hop fields stay as they were, and what is refused changes nothing.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use plugway_fuzz::context::edit_check::{self, EditError, MessageSide};
use plugway_fuzz::context::edits::{self, Edit};
use plugway_fuzz::context::{ClientInfo, ExchangeContext, RequestLine, Words};

/// An edit, as the host makes it of what a plugin returned.
fn checked(kind: u8, name: &str, value: &[u8]) -> Result<Edit, EditError> {
    let field = || edit_check::field_name(name);
    let content = || edit_check::field_value(name, value);
    Ok(match kind % 10 {
        0 => Edit::Set(field()?, content()?),
        1 => Edit::Append(field()?, content()?),
        2 => Edit::Default(field()?, content()?),
        3 => Edit::Remove(field()?),
        4 => Edit::Rename(field()?, edit_check::field_name(&String::from_utf8_lossy(value))?),
        5 => Edit::Path(value.to_vec()),
        6 => Edit::Query(Some(value.to_vec())),
        7 => Edit::Status(edit_check::status(u16::from_le_bytes([kind, value.first().copied().unwrap_or(0)]))?),
        8 => Edit::MaxBody(value.len() as u64),
        _ => Edit::Note(name.into(), content()?),
    })
}

fn head() -> ExchangeContext {
    let request = http::Request::post("/path?query").header("content-length", "5").header("connection", "close");
    let (parts, ()) = request.header("x-a", "1").body(()).unwrap().into_parts();
    let received = RequestLine::of(&parts, Words::Unneeded);
    ExchangeContext::new(received, parts, Arc::new(ClientInfo::unix("fuzzed")), "route".into(), "upstream".into())
}

fuzz_target!(|input: Vec<(u8, String, Vec<u8>)>| {
    let edits = input.iter().filter_map(|(kind, name, value)| checked(*kind, name, value).ok()).collect();
    let mut context = head();
    let before = format!("{context:?}");
    if edits::apply(edits, &[], MessageSide::Request, &mut context).is_err() {
        assert_eq!(format!("{context:?}"), before);
    }
    assert_eq!(context.request.headers["content-length"], "5");
    assert_eq!(context.request.headers["connection"], "close");
    assert!(context.request.uri.path().starts_with('/'));
    let target = context.request.uri.path_and_query().unwrap().as_str();
    assert!(!target.contains([' ', '\r', '\n']), "{target:?}");
});
