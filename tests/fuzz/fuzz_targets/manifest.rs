//! Any text is a manifest or a list of mistakes that can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plugway_fuzz::config::load;

fuzz_target!(|text: &str| {
    match load::parse("fuzzed", text.into(), &Default::default()) {
        Ok(files) => drop(files.list[0].manifest.files().count()),
        Err(problems) => assert!(problems.to_string().starts_with("error: ")),
    }
});
