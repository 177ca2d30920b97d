//! A plugin with every hook besides the head filters: bodies in capitals, an observer that logs and counts, a timer
//! that counts.

use std::time::Duration;

use plugway_sdk::metrics::{Counter, Gauge};
use plugway_sdk::{
    BodyError, BodyFilter, BodyMode, ConfigError, Input, Observer, OverLimit, Plugin, RequestBody, ResponseBody, Setup,
    Summary, Timer, ValueName, Values, export, log, metrics,
};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The limit in bytes for buffered bodies; `None` to stream bodies.
    buffer: Option<u64>,
    /// Whether longer bodies pass unchanged.
    #[serde(default)]
    pass: bool,
}

pub struct Hooks {
    target: Input,
    user: Input,
    ended: Counter,
    bytes: Gauge,
    ticks: Counter,
}

pub struct Capitals {
    chunks: u32,
    /// The failure that the body asks for, which occurs at its end.
    wrong: Wrong,
}

#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    Finish,
    Trailers,
    IllegalTrailers,
    Drop,
}

impl Drop for Capitals {
    fn drop(&mut self) {
        assert!(self.wrong != Wrong::Drop, "told to trap as the body is dropped");
    }
}

impl Plugin for Hooks {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if let Some(limit) = config.buffer {
            let over_limit = if config.pass { OverLimit::PassThrough } else { OverLimit::Reject };
            setup.request_body.mode = BodyMode::Buffered(limit, over_limit);
            setup.response_body.mode = BodyMode::Buffered(limit, over_limit);
        }
        setup.timer_interval = Some(Duration::from_millis(50));
        Ok(Hooks {
            target: setup.observer.value(ValueName::Path),
            user: setup.observer.note("user"),
            ended: metrics::counter("ended", "Exchanges that ended.")?,
            bytes: metrics::gauge("bytes", "What went both ways.")?,
            ticks: metrics::counter("ticks", "How often the timer came.")?,
        })
    }
}

impl RequestBody for Hooks {
    type Body = Capitals;

    fn request_body(&mut self, _: &Values) -> Capitals {
        Capitals { chunks: 0, wrong: Wrong::Nothing }
    }
}

impl ResponseBody for Hooks {
    type Body = Capitals;

    fn response_body(&mut self, _: &Values) -> Capitals {
        Capitals { chunks: 0, wrong: Wrong::Nothing }
    }
}

impl BodyFilter for Capitals {
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
        self.chunks += 1;
        let has = |word: &[u8]| chunk.windows(word.len()).any(|part| part == word);
        let asked = [
            (&b"bad-end"[..], Wrong::Finish),
            (b"bad-trailers", Wrong::Trailers),
            (b"illegal", Wrong::IllegalTrailers),
            (b"drop", Wrong::Drop),
        ];
        if let Some((_, wrong)) = asked.into_iter().find(|(word, _)| has(word)) {
            self.wrong = wrong;
        }
        if chunk.windows(4).any(|part| part == b"trap") {
            panic!("told to trap in a body");
        }
        Ok(chunk.to_ascii_uppercase())
    }

    fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
        assert!(self.wrong != Wrong::Finish, "told to trap at the end of a body");
        Ok(b"!".to_vec())
    }

    fn trailers(&mut self, mut received: Vec<(String, Vec<u8>)>) -> Result<Vec<(String, Vec<u8>)>, BodyError> {
        assert!(self.wrong != Wrong::Trailers, "told to trap in trailers");
        if self.wrong == Wrong::IllegalTrailers {
            received.push(("set-cookie".into(), b"a=1".to_vec()));
        }
        Ok(received)
    }
}

impl Observer for Hooks {
    fn on_end(&mut self, values: &Values, summary: &Summary) {
        if values.text(self.target) == Some("/spin") {
            loop {
                std::hint::black_box(&self.ended);
            }
        }
        self.ended.add(1);
        self.bytes.add((summary.request_bytes + summary.response_bytes) as f64);
        let (path, user) = (values.text(self.target), values.text(self.user));
        log::info(&format!("ended {path:?} {user:?} {} {:?}", summary.status, summary.error));
    }
}

impl Timer for Hooks {
    fn on_timer(&mut self) {
        self.ticks.add(1);
    }
}

export!(Hooks: RequestBody, ResponseBody, Observer, Timer);
