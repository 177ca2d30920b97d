//! A plugin that uses the shared state as a request says in `x-shared`: a word and its arguments, between spaces. The
//! response has the result.
#![expect(clippy::disallowed_methods, reason = "the environment of a plugin has what it was granted, and is tested")]

use std::time::Duration;

use plugway_sdk::shared::{self, Rate};
use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Response, Setup, Values, Verdict, export};

/// The configuration of the plugin.
#[derive(Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A variable of the environment that `configure` needs.
    needs: Option<String>,
    /// A number that makes no difference.
    number: u32,
}

pub struct Shared {
    what: Input,
}

impl Plugin for Shared {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let _ = config.number;
        // Each configuration stores something: those that are only tried must not be seen. A server can't be asked here.
        match shared::add("configured", 1, None) {
            Ok(_) | Err(shared::Error::Unavailable) => {}
            Err(error) => return Err(ConfigError::at("", error.to_string())),
        }
        match config.needs {
            Some(name) if std::env::var_os(&name).is_none() => Err(ConfigError::at("/needs", "no such variable")),
            _ => Ok(Shared { what: setup.request.field("x-shared") }),
        }
    }
}

impl RequestFilter for Shared {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let words: Vec<&str> = request.text(self.what).unwrap_or_default().split(' ').collect();
        // After `try`, an error of the state is one of the exchange too.
        let (is_tried, words) = words.strip_prefix(&["try"]).map_or((false, &*words), |words| (true, words));
        let text = result(words);
        Response::new(if is_tried && text.starts_with("Err") { 503 } else { 200 }).body("text/plain", text).into()
    }
}

fn result(words: &[&str]) -> String {
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let ttl = |at: usize| number(at).map(Duration::from_millis);
    match *words {
        ["get", key] => format!("{:?}", shared::get(key).map(|value| value.map(|value| value.len()))),
        ["text", key] => format!("{:?}", shared::get(key).map(|value| value.map(String::from_utf8))),
        ["set", key, value, ..] => format!("{:?}", shared::set(key, value, ttl(3))),
        ["add", key, ..] => format!("{:?}", shared::add(key, number(2).unwrap_or(1) as i64, ttl(3))),
        ["swap", key, expected, value] => {
            format!("{:?}", shared::compare_and_swap(key, Some(expected.as_bytes()), value, None))
        }
        ["delete", key] => format!("{:?}", shared::delete(key)),
        ["take", key, ..] => {
            let rate = Rate::per(number(2).unwrap_or(1) as u32, ttl(3).unwrap_or_default());
            let taken = shared::take(key, rate.burst(number(4).unwrap_or(1) as u32), 1);
            format!("{:?}", taken.map(|taken| (taken.allowed, taken.remaining)))
        }
        // Many keys with values that are as long as they say, and live as long as can be said.
        ["fill", name, ..] => {
            let value = vec![b'v'; number(3).unwrap_or(0) as usize];
            let set = |key| shared::set(format!("{name}{key}"), &value, Some(Duration::MAX));
            format!("{:?}", (0..number(2).unwrap_or(1)).try_for_each(set))
        }
        ["buckets", ..] => {
            let rate = Rate::per(1, Duration::from_secs(31_622_400)).burst(u32::MAX);
            let take = |key: u64| shared::take(key.to_le_bytes(), rate, u32::MAX).map(drop);
            format!("{:?}", (0..number(1).unwrap_or(1)).try_for_each(take))
        }
        ["long-key", ..] => format!("{:?}", shared::set(vec![b'k'; number(1).unwrap_or(0) as usize], "", None)),
        ["long-value", ..] => format!("{:?}", shared::set("long", vec![b'v'; number(1).unwrap_or(0) as usize], None)),
        ["spin"] => loop {
            let _ = std::hint::black_box(shared::add("spun", 1, None));
        },
        // The same call many times, for a benchmark.
        ["times", count, call] => {
            let rate = Rate::per_second(1_000_000);
            for number in 0..count.parse::<u64>().unwrap_or(0) {
                let _ = match call {
                    "add" => shared::add("hot", 1, None).map(drop),
                    "take" => shared::take("bucket", rate, 1).map(drop),
                    "get" => shared::get("hot").map(drop),
                    _ => {
                        std::hint::black_box(number);
                        Ok(())
                    }
                };
            }
            call.into()
        }
        ["env"] => format!("{:?}", std::env::vars().collect::<Vec<_>>()),
        _ => "?".into(),
    }
}

export!(Shared: RequestFilter);
