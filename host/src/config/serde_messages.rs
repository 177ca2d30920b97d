//! The messages of the parser about a manifest, reworded for a user: without types of Rust, and with what to write.

use super::foreign_keys;

/// Rewords a message of the parser about the value of a key. `found` describes a value that the parser names wrongly.
pub fn worded(message: &str, key: Option<&str>, found: Option<&str>) -> String {
    let message = message.replace('\n', "; ");
    let reworded =
        mistyped(&message, key.unwrap_or_default(), found).or_else(|| unknown(&message)).or_else(|| missing(&message));
    reworded.unwrap_or_else(|| syntax(&message))
}

/// Returns the known word that is most like a misspelt one, if any is.
pub fn meant<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace('_', "-");
    // `basic-auth` and `basicauth` mean `auth-basic`.
    let turned = |word: &str| plain(word).split('-').rev().collect::<String>();
    let is_turned = |word: &str| word.contains('-') && turned(word) == plain(found).replace('-', "");
    let distance = |word: &str| match is_turned(word) {
        true => 0,
        false => strsim::damerau_levenshtein(&plain(found), &plain(word)),
    };
    let closest = known.map(|word| (distance(word), word)).min();
    // At least one letter: the shortest names may have one that is wrong.
    closest.filter(|(distance, _)| *distance <= (found.chars().count() / 3).max(1)).map(|(_, word)| word)
}

/// Returns the known word that is probably meant, as a part of a message; empty if none is.
pub fn hint(found: &str, known: &[&str]) -> String {
    meant(found, known.iter().copied()).map_or(String::new(), |meant| format!("did you mean `{meant}`? "))
}

fn mistyped(message: &str, key: &str, found_instead: Option<&str>) -> Option<String> {
    let rest = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "))?;
    let (found, expected) = rest.split_once(", expected ")?;
    let is_number = found.starts_with("integer") || found.starts_with("floating");
    let value = found.split_once(['`', '"']).map(|(_, value)| value.trim_end_matches(['`', '"']));
    let shown = match (found, value) {
        ("map", _) => "a table".into(),
        ("sequence", _) => "a list".into(),
        (_, Some(value)) if found.starts_with("string") => format!("the string {value:?}"),
        (_, Some(value)) if is_number => format!("the number {value}"),
        (_, Some(value)) => format!("`{value}`"),
        (other, None) => other.into(),
    };
    let shown = found_instead.map_or(shown, Into::into);
    let digits = value.filter(|value| found.starts_with("string") && value.parse::<u64>().is_ok());
    let expected = match expected {
        "a string" if is_number && value.is_some_and(|value| example(key).contains(value)) => {
            format!("a string, such as {}", example(key))
        }
        "a string" => format!("a string in quotes, such as {}", example(key)),
        "a boolean" => "`true` or `false`, without quotes".into(),
        "a sequence" => format!("a list, such as {}", list_example(key)),
        "a map" => table_example(key),
        "usize" | "u64" | "u32" | "u16" | "u8" => match digits {
            Some(digits) => format!("a whole number without quotes, such as {digits}"),
            None => "a whole number from 0 on, such as 2".into(),
        },
        "i64" | "i32" => "a whole number, such as 2".into(),
        other if other.starts_with("struct ") => table_example(key),
        other => other.into(),
    };
    Some(format!("wrong type: found {shown}; expected {expected}"))
}

/// Returns an example of a string, by the key whose value it is.
fn example(key: &str) -> &'static str {
    const SIZES: [&str; 12] = [
        "head",
        "target",
        "buffer",
        "memory",
        "size",
        "max-object",
        "max-body",
        "body-rate",
        "send-rate",
        "response-head",
        "most-bytes",
        "cache",
    ];
    const DURATIONS: [&str; 8] =
        ["timeout", "interval", "keep-alive", "slow-start", "ejection", "longest-ejection", "time", "cpu"];
    match key {
        "address" | "servers" => "\"127.0.0.1:8080\"",
        "endpoints" | "dns" => "\"127.0.0.1:8000\"",
        "upstream" => "\"app\"",
        "root" => "\"public\"",
        "regex" => "\"^/old/(.*)$\"",
        "to" => "\"/new/$1\"",
        "use" | "balancer" => "\"headers\"",
        "plugins" => "[\"headers\"]",
        "hosts" | "host" | "server-name" => "\"example.org\"",
        "methods" => "\"GET\"",
        "min-version" => "\"1.2\"",
        "kind" => "\"http\"",
        _ if SIZES.contains(&key) => "\"16 MiB\"",
        _ if DURATIONS.contains(&key) || key.ends_with("-timeout") => "\"5s\"",
        _ => "\"text\"",
    }
}

/// Returns the word for a table, with an example of the value of some keys that newcomers give another type.
fn table_example(key: &str) -> String {
    match key {
        "respond" => "a table, such as { body = \"hello\" }".into(),
        "files" => "a table, such as { root = \"public\" }".into(),
        "rewrite" => "a table, such as { regex = \"^/old/(.*)$\", to = \"/new/$1\" }".into(),
        _ => "a table".into(),
    }
}

/// Returns an example of a list, by the key whose value it is.
fn list_example(key: &str) -> &'static str {
    match key {
        "endpoints" => "[\"127.0.0.1:8000\"]",
        "hosts" => "[\"example.org\"]",
        "index" => "[\"index.html\"]",
        "listeners" => "[\"0.0.0.0:80\"]",
        "methods" => "[\"GET\", \"HEAD\"]",
        "plugins" => "[\"headers\"]",
        "servers" => "[\"127.0.0.1:53\"]",
        "include" => "[\"sites/*.toml\"]",
        "statuses" => "[\"5xx\"]",
        "on" => "[\"connect\", \"reset\"]",
        "certificates" => "[{ chain = \"cert.pem\", key = \"key.pem\" }]",
        "trusted-proxies" | "proxy-protocol-from" => "[\"10.0.0.0/8\"]",
        _ => "[\"text\"]",
    }
}

/// Returns the message about an unknown key or word, with the most similar known one; `None` if the message is about
/// something else.
fn unknown(message: &str) -> Option<String> {
    let (what, rest) = [("key", "unknown field `"), ("value", "unknown variant `")]
        .into_iter()
        .find_map(|(what, start)| Some((what, message.strip_prefix(start)?)))?;
    let (found, known) = rest.split_once("`, expected ")?;
    let list = known.strip_prefix("one of ").unwrap_or(known);
    let words = || list.split(['`', ',', ' ']).filter(|word| !word.is_empty() && *word != "or");
    // A key that differs in one letter is meant rather than that of another program.
    let is_near = || words().any(|word| strsim::damerau_levenshtein(found, word) <= 1);
    if let Some(foreign) = foreign_keys::remedy(found).filter(|_| what == "key" && !is_near()) {
        return Some(format!("unknown key `{found}`, a directive of {}; {}", foreign.program, foreign.remedy));
    }
    if let Some(remedy) =
        foreign_keys::remedy_among(found, &words().collect::<Vec<_>>()).filter(|_| what == "key" && !is_near())
    {
        return Some(format!("unknown key `{found}`; {remedy}"));
    }
    let meant = meant(found, words()).map_or(String::new(), |word| format!("; did you mean `{word}`?"));
    let separator = if meant.is_empty() { "; " } else { " " };
    Some(format!("unknown {what} `{found}`{meant}{separator}expected one of {}", list.replace("` or `", "`, `")))
}

fn missing(message: &str) -> Option<String> {
    let key = message.strip_prefix("missing field `")?.trim_end_matches('`');
    let value = match key {
        "endpoints" | "certificates" | "servers" => list_example(key),
        "chain" => "\"cert.pem\"",
        "key" => "\"key.pem\"",
        "format" => "\"json\"",
        "path" => "\"/var/cache/plugway/responses\"",
        key => example(key),
    };
    Some(format!("missing key `{key}`: add it, such as `{key} = {value}`"))
}

/// A message about the syntax of TOML.
fn syntax(message: &str) -> String {
    match message {
        "cannot recurse further; max recursion depth met" | "recursion limit" => {
            "nested too deeply: expected at most 80 tables and lists in each other".into()
        }
        message if message.starts_with("a path is matched") || message.starts_with("wrong value") => message.into(),
        message => format!("invalid TOML: {}", message.replace(", expected ", "; expected ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key, the parser's message about its value, and our own message.
    const REWORDED: [(&str, &str, &str); 19] = [
        (
            "respond",
            "invalid type: string \"hello\", expected struct RespondTable",
            "wrong type: found the string \"hello\"; expected a table, such as { body = \"hello\" }",
        ),
        (
            "",
            "unknown field `cert`, expected one of `certificates`, `client-ca`",
            "unknown key `cert`; write `certificates = [{ chain = \"cert.pem\", key = \"key.pem\" }]`",
        ),
        (
            "",
            "unknown field `workers`, expected one of `name`, `hosts`",
            "unknown key `workers`; it is a key of the top of the file: write it before the first table",
        ),
        (
            "",
            "unknown field `servers`, expected one of `endpoints`, `balancer`",
            "unknown key `servers`; write `endpoints = [\"127.0.0.1:8000\"]`",
        ),
        (
            "",
            "unknown field `prefix`, expected one of `hosts`, `path`, `strip-prefix`",
            "unknown key `prefix`; write `path = \"/api\"`, and `strip-prefix = true` to remove it",
        ),
        (
            "health",
            "invalid type: boolean `true`, expected struct HealthChecks",
            "wrong type: found `true`; expected a table",
        ),
        (
            "workers",
            "invalid type: string \"2\", expected usize",
            "wrong type: found the string \"2\"; expected a whole number without quotes, such as 2",
        ),
        (
            "workers",
            "invalid value: integer `-1`, expected usize",
            "wrong type: found the number -1; expected a whole number from 0 on, such as 2",
        ),
        (
            "connect-timeout",
            "invalid type: integer `5`, expected a string",
            "wrong type: found the number 5; expected a string, such as \"5s\"",
        ),
        (
            "address",
            "invalid type: integer `80`, expected a string",
            "wrong type: found the number 80; expected a string, such as \"127.0.0.1:8080\"",
        ),
        (
            "name",
            "invalid type: map, expected a string",
            "wrong type: found a table; expected a string in quotes, such as \"text\"",
        ),
        ("plugin", "invalid type: sequence, expected a map", "wrong type: found a list; expected a table"),
        (
            "retry",
            "invalid type: integer `3`, expected a table, or `false`",
            "wrong type: found the number 3; expected a table, or `false`",
        ),
        ("", "missing field `use`", "missing key `use`: add it, such as `use = \"headers\"`"),
        (
            "",
            "unknown field `adress`, expected one of `address`, `dns`",
            "unknown key `adress`; did you mean `address`? expected one of `address`, `dns`",
        ),
        ("", "unknown field `x`, expected `aaa` or `bbb`", "unknown key `x`; expected one of `aaa`, `bbb`"),
        (
            "",
            "unknown field `server_name`, expected `address` or `tls`",
            "unknown key `server_name`, a directive of nginx; write `hosts = [\"example.org\"]` in each [[route]] of the site",
        ),
        (
            "",
            "unknown field `server`, expected one of `servers`",
            "unknown key `server`; did you mean `servers`? expected one of `servers`",
        ),
        ("", "invalid basic string, expected `\"`", "invalid TOML: invalid basic string; expected `\"`"),
    ];

    #[test]
    fn messages_of_the_parser_are_reworded() {
        for (key, message, wanted) in REWORDED {
            assert_eq!(worded(message, Some(key), None), wanted);
        }
    }

    #[test]
    fn a_misspelt_word_has_one_that_is_meant() {
        let known = || ["headers", "balance", "cache"].into_iter();
        assert_eq!(meant("haeders", known()), Some("headers"));
        assert_eq!(meant("Cache", known()), Some("cache"));
        assert_eq!(meant("max_body", ["max-body"].into_iter()), Some("max-body"));
        assert_eq!(meant("nothing", known()), None);
        let plugins = || ["auth-basic", "auth-key", "cache"].into_iter();
        assert_eq!(meant("basic-auth", plugins()), Some("auth-basic"));
        assert_eq!(meant("basicauth", plugins()), Some("auth-basic"));
        assert_eq!(meant("basicauth", ["cache", "auth"].into_iter()), None);
    }
}
