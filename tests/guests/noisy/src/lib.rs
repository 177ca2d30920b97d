//! A plugin that writes harmful text to the log, as a request says in `x-noise`.

use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Setup, Values, Verdict, export, log};

/// The configuration of the plugin.
#[derive(serde::Deserialize, schemars::JsonSchema)]
pub struct Config {
    /// Whether `configure` rejects the configuration, with a hostile message.
    #[serde(default)]
    refuse: bool,
}

pub struct Noisy {
    how: Input,
}

/// A forged record, escape sequences of ASCII and of Latin-1, a text that is shown backwards, a line separator.
const HOSTILE: &str = "begin\n2026-01-01T00:00:00Z ERROR forged\r\x1b[2J\u{9b}31m\u{202e}drawkcab\u{2066}\u{2028}end";

impl Plugin for Noisy {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.refuse {
            return Err(ConfigError::at("/refuse", HOSTILE));
        }
        Ok(Noisy { how: setup.request.field("x-noise") })
    }
}

impl RequestFilter for Noisy {
    fn on_request(&mut self, request: &Values) -> Verdict {
        match request.text(self.how) {
            Some("log") => log::info(HOSTILE),
            Some("print") => println!("{HOSTILE}"),
            Some("fail") => return Verdict::Fail(HOSTILE.into()),
            Some("trap") => panic!("{HOSTILE}"),
            Some("silent-trap") => trap(3),
            Some("lines") => (0..10).for_each(|line| log::info(&format!("noise {line}"))),
            Some("long") => (0..100).for_each(|_| log::info(&"noise ".repeat(2_000))),
            _ => {}
        }
        Verdict::proceed()
    }
}

/// Traps without a message, after some nested calls.
#[inline(never)]
fn trap(depth: u32) {
    if std::hint::black_box(depth) > 0 {
        trap(depth - 1)
    }
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
}

export!(Noisy: RequestFilter);
