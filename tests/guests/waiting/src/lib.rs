//! A plugin whose hooks wait, as a request says in `x-wait`: words with commas between them, carried out in turn.
//!
//! `verify` verifies the password in `x-password`, `forever` never stops to verify, `nap` sleeps for an hour, `dive`
//! uses most of the stack, `spin` never returns, `trap` traps, `value` reads the path by the host, `answer` responds.

use std::time::Duration;

use plugway_sdk::metrics::{self, Counter};
use plugway_sdk::{
    ConfigError, Input, Plugin, RequestFilter, Response, ResponseFilter, Setup, Timer, ValueName, Values, Verdict,
    exchange, export, passwords,
};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The hash of the password.
    hash: String,
    /// Whether a password is verified while the plugin is configured.
    #[serde(default)]
    early: bool,
    /// The interval of the timer, in milliseconds.
    timer: Option<u64>,
}

pub struct Waiting {
    hash: String,
    request: Inputs,
    response: Inputs,
    calls: u32,
    ticks: Counter,
}

struct Inputs {
    how: Input,
    password: Input,
}

/// The result of the words of a request.
struct Done {
    verified: String,
    path: Option<Vec<u8>>,
    is_answer: bool,
}

impl Plugin for Waiting {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.early {
            let _ = passwords::verify(&config.hash, b"password");
        }
        setup.timer_interval = config.timer.map(Duration::from_millis);
        let ticks = metrics::counter("ticks", "Passwords that the timer has verified.")?;
        let request = Inputs { how: setup.request.field("x-wait"), password: setup.request.field("x-password") };
        let response =
            Inputs { how: setup.response.response_field("x-wait"), password: setup.response.field("x-password") };
        Ok(Waiting { hash: config.hash, request, response, calls: 0, ticks })
    }
}

/// The depth of calls that use most of the stack.
const DEPTH: u64 = 1500;

/// Calls itself until it is so deep, with values that each call keeps on the stack.
fn dive(depth: u64, values: [u64; 16]) -> u64 {
    let kept = values.map(|value| std::hint::black_box(value + depth));
    let below = if depth == 0 { 0 } else { dive(depth - 1, kept) };
    kept.iter().fold(below, |sum, value| sum ^ value)
}

impl Waiting {
    fn act(&self, values: &Values, inputs: &Inputs) -> Done {
        let mut done = Done { verified: String::new(), path: None, is_answer: false };
        let password = values.bytes(inputs.password).unwrap_or_default();
        let verify = || passwords::verify(&self.hash, password);
        for word in values.text(inputs.how).unwrap_or_default().split(',') {
            match word {
                "verify" => done.verified = format!("{:?}", verify()),
                "forever" => while verify().is_ok() {},
                "nap" => std::thread::sleep(Duration::from_secs(3600)),
                "dive" => drop(std::hint::black_box(dive(DEPTH, [1; 16]))),
                "spin" => loop {
                    std::hint::black_box(());
                },
                "trap" => panic!("told to trap"),
                "value" => done.path = exchange::value(&ValueName::Path),
                "answer" => done.is_answer = true,
                _ => {}
            }
        }
        done
    }
}

impl RequestFilter for Waiting {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.calls += 1;
        let done = self.act(request, &self.request);
        if done.is_answer {
            return Response::new(200).body("text/plain", done.verified).into();
        }
        let verdict = Verdict::proceed().set_field("x-verified", done.verified);
        let verdict = verdict.set_field("x-calls", self.calls.to_string());
        done.path.into_iter().fold(verdict, |verdict, path| verdict.set_field("x-path", path))
    }
}

impl ResponseFilter for Waiting {
    fn on_response(&mut self, response: &Values) -> Verdict {
        let done = self.act(response, &self.response);
        if done.is_answer {
            return Response::new(203).body("text/plain", done.verified).into();
        }
        let verdict = Verdict::proceed().set_field("x-verified", done.verified);
        done.path.into_iter().fold(verdict, |verdict, path| verdict.set_field("x-path", path))
    }
}

impl Timer for Waiting {
    fn on_timer(&mut self) {
        if passwords::verify(&self.hash, b"password") == Ok(true) {
            self.ticks.add(1);
        }
    }
}

export!(Waiting: RequestFilter, ResponseFilter, Timer);
