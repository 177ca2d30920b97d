//! A normal form is its own, and has none of what it is to be rid of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plugway_fuzz::protocol::path::normal;

fuzz_target!(|path: &str| {
    if !path.starts_with('/') {
        return;
    }
    let Ok(once) = normal(path) else { return };
    assert_eq!(normal(&once).as_deref(), Ok(&*once));
    assert!(once.starts_with('/') && !once.contains("//") && !once.contains('\\'));
    assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
    let upper = once.to_ascii_uppercase();
    assert!(!["%2E", "%2F", "%5C", "%00", "%252E", "%252F"].iter().any(|escape| upper.contains(escape)), "{once}");
});
