//! A plugin that makes requests of its own: to the URLs in `x-call`, with spaces between them, one after the other. The
//! origin gets their outcomes in `x-outcome`. After `hoard`, a word says what requests are made and never sent.
//!
//! With `bodies`, the body hooks of a message with `x-call` make the requests too: a whole body is posted, and answered with
//! 403 if the response has that status; a streamed body has the outcome before each chunk and at its end.

mod hoard;

use std::time::{Duration, Instant};

use plugway_sdk::metrics::{self, Counter};
use plugway_sdk::{
    BodyError, BodyFilter, BodyMode, BodyVerdict, BufferedRequestBody, BufferedResponseBody, ConfigError, Input,
    Observer, OverLimit, Plugin, RequestBody, RequestFilter, Response, ResponseBody, Setup, Summary, Timer, ValueName,
    Values, Verdict, export, http,
};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The URL that is asked while the plugin is configured; the origin gets the outcome in `x-early`.
    early: Option<String>,
    /// The path of a request that is begun while the plugin is configured, and whose response `hoard early` waits for.
    begin: Option<String>,
    /// The time that the plugin sleeps after it has asked, in milliseconds.
    nap: Option<u64>,
    /// The time that the plugin computes after it has asked, in milliseconds.
    spin: Option<u64>,
    /// Whether the plugin rejects a configuration whose early request has failed.
    #[serde(default)]
    strict: bool,
    /// The URL that the timer gets.
    timer: Option<String>,
    /// The URL that the status of each exchange is posted to.
    observe: Option<String>,
    /// How bodies are received: `whole` or `stream`.
    bodies: Option<String>,
    /// The longest time of a request of a body hook, in milliseconds; 500 if `None`.
    body_timeout: Option<u64>,
    /// The URL that gets a request as the state of a body is dropped.
    farewell: Option<String>,
}

pub struct Caller {
    urls: Input,
    method: Input,
    length: Input,
    timeout: Input,
    request_body: Input,
    response_body: Input,
    path: Input,
    early: Option<String>,
    timer: Option<String>,
    observe: Option<String>,
    body_timeout: Duration,
    farewell: Option<String>,
    ticks: Counter,
}

/// A body whose chunks have outcomes of requests between them, and whose end is told to a service.
pub struct Asking {
    call: Option<http::Request>,
    farewell: Option<http::Request>,
}

/// Computes for some time.
#[expect(clippy::disallowed_methods, reason = "a guest has no clock of a worker")]
fn spin(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {}
}

/// Returns the outcome of a request as text.
fn outcome(call: http::Request) -> String {
    match call.send() {
        Ok(answer) if answer.body.len() < 200 => {
            format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body).replace('\n', "|"))
        }
        Ok(answer) => format!("{} {} bytes", answer.status, answer.body.len()),
        Err(error) => format!("{error:?}"),
    }
}

impl Plugin for Caller {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let early = config.early.map(|url| http::get(url).timeout(Duration::from_secs(3)).send());
        let early = match early {
            Some(Err(error)) if config.strict => return Err(ConfigError::at("/early", error.to_string())),
            Some(Ok(answer)) => Some(String::from_utf8_lossy(&answer.body).into_owned()),
            Some(Err(error)) => Some(format!("{error:?}")),
            None => None,
        };
        if let Some(path) = &config.begin {
            hoard::begin(path);
        }
        if let Some(nap) = config.nap {
            std::thread::sleep(Duration::from_millis(nap));
        }
        spin(Duration::from_millis(config.spin.unwrap_or(0)));
        setup.timer_interval = config.timer.as_ref().map(|_| Duration::from_millis(50));
        let mode = match config.bodies.as_deref() {
            Some("whole") => BodyMode::Buffered(1000, OverLimit::Reject),
            Some(_) => BodyMode::Streamed,
            None => BodyMode::Skipped,
        };
        (setup.request_body.mode, setup.response_body.mode) = (mode, mode);
        let ticks = metrics::counter("ticks", "Answers that the timer has had.")?;
        let request = &mut setup.request;
        let (urls, method) = (request.field("x-call"), request.field("x-method"));
        let (length, timeout) = (request.field("x-length"), request.field("x-timeout"));
        let request_body = setup.request_body.field("x-body-call");
        let response_body = setup.response_body.response_field("x-body-call");
        let path = setup.observer.value(ValueName::Path);
        let Config { timer, observe, body_timeout, farewell, .. } = config;
        Ok(Caller {
            urls,
            method,
            length,
            timeout,
            request_body,
            response_body,
            path,
            early,
            timer,
            observe,
            body_timeout: Duration::from_millis(body_timeout.unwrap_or(500)),
            farewell,
            ticks,
        })
    }
}

impl RequestFilter for Caller {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let call = |url: &str| {
            let mut call = http::request(request.text(self.method).unwrap_or("GET"), url).header("x-from", "caller");
            if let Some(length) = request.text(self.length).and_then(|length| length.parse().ok()) {
                call = call.body("text/plain", vec![b'x'; length]);
            }
            if let Some(time) = request.text(self.timeout).and_then(|time| time.parse().ok()) {
                call = call.timeout(Duration::from_millis(time));
            }
            outcome(call)
        };
        let urls = request.text(self.urls).unwrap_or_default();
        if let Some(what) = urls.strip_prefix("hoard ") {
            return Verdict::proceed().set_field("x-outcome", hoard::hoard(what).to_string());
        }
        let outcomes: Vec<String> = urls.split_whitespace().map(call).collect();
        let verdict = Verdict::proceed().set_field("x-outcome", outcomes.join(", "));
        self.early.clone().into_iter().fold(verdict, |verdict, early| verdict.set_field("x-early", early))
    }
}

impl Caller {
    /// Posts a whole body, if there is a URL.
    fn judge(&self, url: Option<&str>, content: Vec<u8>) -> BodyVerdict {
        let Some(url) = url else { return BodyVerdict::proceed() };
        match http::post(url).body("text/plain", content).timeout(self.body_timeout).send() {
            Ok(answer) if answer.status == 403 => Response::new(403).body("text/plain", answer.body).into(),
            Ok(answer) => BodyVerdict::proceed().set_field("x-judged", answer.status.to_string()),
            Err(error) => BodyVerdict::Fail(format!("{error:?}")),
        }
    }

    fn asking(&self, url: Option<&str>) -> Asking {
        let get = |url: &str| http::get(url).timeout(self.body_timeout);
        Asking { call: url.map(get), farewell: self.farewell.as_deref().map(get) }
    }
}

impl BufferedRequestBody for Caller {
    fn on_request_body(&mut self, request: &Values, content: Vec<u8>) -> BodyVerdict {
        self.judge(request.text(self.request_body), content)
    }
}

impl BufferedResponseBody for Caller {
    fn on_response_body(&mut self, response: &Values, content: Vec<u8>) -> BodyVerdict {
        self.judge(response.text(self.response_body), content)
    }
}

impl RequestBody for Caller {
    type Body = Asking;

    fn request_body(&mut self, request: &Values) -> Asking {
        self.asking(request.text(self.request_body))
    }
}

impl ResponseBody for Caller {
    type Body = Asking;

    fn response_body(&mut self, response: &Values) -> Asking {
        self.asking(response.text(self.response_body))
    }
}

impl BodyFilter for Asking {
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
        let Some(call) = &self.call else { return Ok(chunk) };
        let told = format!("[{}]", outcome(call.clone()));
        Ok([told.as_bytes(), &chunk].concat())
    }

    fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
        let end = self.call.as_ref().map(|call| format!("[end {}]", outcome(call.clone())));
        Ok(end.unwrap_or_default().into_bytes())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(call) = self.farewell.take() {
            let _ = call.send();
        }
    }
}

impl Observer for Caller {
    fn on_end(&mut self, values: &Values, summary: &Summary) {
        if let Some(url) = &self.observe {
            let told = format!("{} {}", values.text(self.path).unwrap_or_default(), summary.status);
            let _ = http::post(url).body("text/plain", told).send();
        }
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

export!(
    Caller: RequestFilter, RequestBody, ResponseBody, BufferedRequestBody, BufferedResponseBody, Observer, Timer
);
