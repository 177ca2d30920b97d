//! A plugin that takes too long or fails, as its configuration or a request says. A request says so in `x-late`:
//! `spin`, `trap`, `busy:MS` (by the clock), `work:N` (rounds of a computation) or `fill:MIB` (one instruction).
#![expect(clippy::disallowed_methods, reason = "the guest is late by the clock")]

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plugway_sdk::metrics::{self, Counter};
use plugway_sdk::{
    Balancer, BodyError, BodyFilter, Choice, ConfigError, Endpoint, EndpointState, Endpoints, Input, Observer, Plugin,
    RequestBody, RequestFilter, ResponseEdits, Setup, Summary, Timer, Values, Verdict, export,
};

#[derive(Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The time that `configure` takes, in milliseconds.
    configure_busy: u64,
    /// The time after which `configure` never returns, in milliseconds of Unix time.
    configure_spins_after: Option<u64>,
    /// The time after which `configure` traps, in milliseconds of Unix time.
    configure_traps_after: Option<u64>,
    /// The time that `endpoints-changed` takes, in milliseconds.
    endpoints_busy: u64,
    /// The interval of the timer, in milliseconds, and the action of each call, as in `x-late`.
    timer_interval: Option<u64>,
    timer: String,
    /// The action of each push of a body, as in `x-late`.
    push: String,
    /// What each choice of an endpoint does, and each end of an exchange.
    pick: String,
    end: String,
}

pub struct Late {
    config: Config,
    how: Input,
    calls: u32,
    bodies: Cell<u32>,
    up: Vec<u32>,
    picks: usize,
    ended: Counter,
    ticks: Counter,
}

pub struct Numbered {
    push: String,
    number: u32,
}

/// Executes the action that a text names.
fn act(word: &str) {
    match word.split_once(':') {
        Some(("busy", ms)) => busy(ms.parse().unwrap()),
        Some(("work", rounds)) => work(rounds.parse().unwrap()),
        Some(("fill", mib)) => fill(mib.parse().unwrap()),
        _ if word == "spin" => spin(),
        _ if word == "trap" => panic!("told to trap"),
        _ => {}
    }
}

fn spin() -> ! {
    loop {
        std::hint::black_box(0);
    }
}

fn busy(ms: u64) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(ms) {
        std::hint::black_box(0);
    }
}

fn work(rounds: u64) {
    let mut state = 1_u64;
    for round in 0..rounds {
        state = std::hint::black_box(state.rotate_left(7) ^ round);
    }
}

/// Fills so much memory by one instruction, which no tick interrupts.
fn fill(mib: usize) {
    std::thread_local! { static FILLED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) }; }
    FILLED.with_borrow_mut(|filled| {
        filled.resize(mib << 20, 0);
        filled.fill(std::hint::black_box(7));
    });
}

fn is_after(ms: Option<u64>) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    ms.is_some_and(|ms| now > u128::from(ms))
}

impl Plugin for Late {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        busy(config.configure_busy);
        if is_after(config.configure_spins_after) {
            spin();
        }
        if is_after(config.configure_traps_after) {
            panic!("told to trap in configure");
        }
        setup.timer_interval = config.timer_interval.map(Duration::from_millis);
        Ok(Late {
            how: setup.request.field("x-late"),
            calls: 0,
            bodies: Cell::new(0),
            up: Vec::new(),
            picks: 0,
            ended: metrics::counter("ended", "Exchanges that ended.")?,
            ticks: metrics::counter("ticks", "Calls of the timer.")?,
            config,
        })
    }
}

impl RequestFilter for Late {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.calls += 1;
        act(request.text(self.how).unwrap_or_default());
        Verdict::proceed().set_field("x-calls", self.calls.to_string())
    }
}

impl RequestBody for Late {
    type Body = Numbered;

    fn request_body(&mut self, _: &Values) -> Numbered {
        self.bodies.set(self.bodies.get() + 1);
        Numbered { push: self.config.push.clone(), number: self.bodies.get() }
    }
}

impl BodyFilter for Numbered {
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
        act(&self.push);
        act(std::str::from_utf8(&chunk).unwrap_or_default());
        Ok(chunk)
    }

    /// Returns the number of bodies that the instance has had.
    fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
        Ok(format!("#{}", self.number).into_bytes())
    }
}

impl Balancer for Late {
    fn endpoints_changed(&mut self, endpoints: Vec<Endpoint>, _: &mut ResponseEdits) {
        busy(self.config.endpoints_busy);
        let is_up = |(_, endpoint): &(usize, &Endpoint)| endpoint.state == EndpointState::Up;
        self.up = endpoints.iter().enumerate().filter(is_up).map(|(index, _)| index as u32).collect();
    }

    fn pick(&mut self, _: &Values, _: &[u32], _: &Endpoints) -> Option<Choice> {
        self.picks += 1;
        act(&self.config.pick);
        self.up.get(self.picks % self.up.len().max(1)).map(|index| (*index).into())
    }
}

impl Observer for Late {
    fn on_end(&mut self, _: &Values, _: &Summary) {
        self.ended.add(1);
        act(&self.config.end);
    }
}

impl Timer for Late {
    fn on_timer(&mut self) {
        self.ticks.add(1);
        act(&self.config.timer);
    }
}

export!(Late: RequestFilter, RequestBody, Balancer, Observer, Timer);
