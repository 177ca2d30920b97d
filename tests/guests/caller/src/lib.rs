//! A plugin that makes requests of its own: to the URLs in `x-call`, with spaces between them, one after the other. The
//! origin gets their outcomes in `x-outcome`.

use std::time::Duration;

use plugway_sdk::metrics::{self, Counter};
use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Setup, Timer, Values, Verdict, export, http};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Whether a request is made while the plugin is configured.
    #[serde(default)]
    early: bool,
    /// The URL that the timer gets.
    timer: Option<String>,
}

pub struct Caller {
    urls: Input,
    method: Input,
    length: Input,
    timeout: Input,
    timer: Option<String>,
    ticks: Counter,
}

impl Plugin for Caller {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.early {
            let _ = http::get("http://auth/").send();
        }
        setup.timer_interval = config.timer.as_ref().map(|_| Duration::from_millis(50));
        let ticks = metrics::counter("ticks", "Answers that the timer has had.")?;
        let request = &mut setup.request;
        let (urls, method) = (request.field("x-call"), request.field("x-method"));
        let (length, timeout) = (request.field("x-length"), request.field("x-timeout"));
        Ok(Caller { urls, method, length, timeout, timer: config.timer, ticks })
    }
}

impl RequestFilter for Caller {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let outcome = |url: &str| {
            let mut call = http::request(request.text(self.method).unwrap_or("GET"), url).header("x-from", "caller");
            if let Some(length) = request.text(self.length).and_then(|length| length.parse().ok()) {
                call = call.body("text/plain", vec![b'x'; length]);
            }
            if let Some(time) = request.text(self.timeout).and_then(|time| time.parse().ok()) {
                call = call.timeout(Duration::from_millis(time));
            }
            match call.send() {
                Ok(answer) if answer.body.len() < 200 => {
                    format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body).replace('\n', "|"))
                }
                Ok(answer) => format!("{} {} bytes", answer.status, answer.body.len()),
                Err(error) => format!("{error:?}"),
            }
        };
        let urls = request.text(self.urls).unwrap_or_default();
        let outcomes: Vec<String> = urls.split_whitespace().map(outcome).collect();
        Verdict::proceed().set_field("x-outcome", outcomes.join(", "))
    }
}

impl Timer for Caller {
    fn on_timer(&mut self) {
        if let Some(url) = &self.timer
            && http::get(url).send().is_ok()
        {
            self.ticks.add(1);
        }
    }
}

export!(Caller: RequestFilter, Timer);
