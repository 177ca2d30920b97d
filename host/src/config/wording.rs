//! What the parser has against a manifest, in the words of whoever wrote it: no types of Rust, and what to write.

/// Rewords a message of serde; others stay as they are.
pub fn worded(message: &str) -> String {
    let message = message.replace('\n', "; ");
    mistyped(&message).or_else(|| unknown(&message)).or_else(|| missing(&message)).unwrap_or(message)
}

fn mistyped(message: &str) -> Option<String> {
    let rest = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "))?;
    let (found, wanted) = rest.split_once(", expected ")?;
    let found = match found {
        "map" => "a table".into(),
        "sequence" => "a list".into(),
        // The value itself stands between marks, where it is told at all.
        _ => found
            .split_once(['`', '"'])
            .map_or(found.into(), |(_, value)| format!("`{}`", value.trim_end_matches(['`', '"']))),
    };
    let wanted = match wanted {
        "a string" if rest.starts_with("integer") || rest.starts_with("floating") => {
            "text in quotes, such as \"5s\" for a time or \"16 MiB\" for a size"
        }
        "a string" => "text in quotes",
        "a boolean" => "`true` or `false`",
        "a sequence" => "a list in brackets",
        "a map" => "a table",
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number from 0 on",
        "i64" | "i32" => "a whole number",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    Some(format!("{found} won't do here; write {wanted}"))
}

/// A key, or a word, that isn't known, with the one that is most like it.
fn unknown(message: &str) -> Option<String> {
    let (what, rest) = [("key", "unknown field `"), ("word", "unknown variant `")]
        .into_iter()
        .find_map(|(what, start)| Some((what, message.strip_prefix(start)?)))?;
    let (found, known) = rest.split_once("`, expected ")?;
    let list = known.strip_prefix("one of ").unwrap_or(known);
    let closest = list.split(['`', ',', ' ']).filter(|word| !word.is_empty() && *word != "or");
    let closest = closest.map(|word| (strsim::damerau_levenshtein(found, word), word)).min();
    let meant = closest.filter(|(distance, _)| *distance <= found.len() / 3).map(|(_, word)| word);
    let meant = meant.map_or(String::new(), |word| format!(" do you mean `{word}`?"));
    Some(format!("there is no {what} `{found}` here;{meant} known are {}", list.replace("` or `", "`, `")))
}

fn missing(message: &str) -> Option<String> {
    let key = message.strip_prefix("missing field ")?;
    Some(format!("{key} is missing here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_to_know_rust() {
        let cases = [
            ("invalid type: boolean `true`, expected struct HealthChecks", "`true` won't do here; write a table"),
            ("invalid type: string \"x\", expected usize", "`x` won't do here; write a whole number from 0 on"),
            ("invalid value: integer `-1`, expected usize", "`-1` won't do here; write a whole number from 0 on"),
            (
                "invalid type: integer `5`, expected a string",
                "`5` won't do here; write text in quotes, such as \"5s\" for a time or \"16 MiB\" for a size",
            ),
            ("invalid type: map, expected a string", "a table won't do here; write text in quotes"),
            ("invalid type: sequence, expected a map", "a list won't do here; write a table"),
            ("invalid type: integer `3`, expected a table, or `false`", "`3` won't do here; write a table, or `false`"),
            ("missing field `use`", "`use` is missing here"),
            (
                "unknown field `adress`, expected one of `address`, `dns`",
                "there is no key `adress` here; do you mean `address`? known are `address`, `dns`",
            ),
            ("unknown field `x`, expected `a` or `b`", "there is no key `x` here; known are `a`, `b`"),
            (
                "unknown variant `prefx`, expected one of `exact`, `prefix`",
                "there is no word `prefx` here; do you mean `prefix`? known are `exact`, `prefix`",
            ),
            ("invalid basic string, expected `\"`", "invalid basic string, expected `\"`"),
        ];
        for (message, wanted) in cases {
            assert_eq!(worded(message), wanted);
        }
    }
}
