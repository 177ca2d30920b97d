//! The bound of the names of functions in a component. The engine copies the names of a trap's innermost functions into
//! its error, on the worker and outside of all limits of the plugin.

use wasmparser::{KnownCustom, Name, Parser, Payload};

/// Bytes of the name of a function. Mangled names of generic Rust and C++ have some thousands; a trap copies twenty names.
pub const MAX_NAME_BYTES: usize = 64 << 10;

/// Returns the length of the longest name of a function, in bytes; 0 if the functions have no names. A section that is
/// malformed counts up to the first error, as the engine reads it.
pub fn longest(component: &[u8]) -> usize {
    let payloads = Parser::new(0).parse_all(component).map_while(Result::ok);
    let of_section = |payload| match payload {
        Payload::CustomSection(section) => match section.as_known() {
            KnownCustom::Name(names) => names.into_iter().map_while(Result::ok).map(longest_of).max().unwrap_or(0),
            _ => 0,
        },
        _ => 0,
    };
    payloads.map(of_section).max().unwrap_or(0)
}

fn longest_of(names: Name<'_>) -> usize {
    match names {
        Name::Function(names) => {
            names.into_iter().map_while(Result::ok).map(|naming| naming.name.len()).max().unwrap_or(0)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_all_modules_of_a_component() {
        let named = |length: usize| format!("(core module (func ${}) (func))", "n".repeat(length));
        let component = |items: &str| wat::parse_str(format!("(component {items})")).unwrap();
        assert_eq!(longest(&component("(core module (func))")), 0);
        assert_eq!(longest(&component(&named(9))), 9);
        let nested = format!("{} (component {}) {}", named(3), named(100_000), named(5));
        assert_eq!(longest(&component(&nested)), 100_000);
        assert_eq!(longest(b"\0asm garbage"), 0);
    }
}
