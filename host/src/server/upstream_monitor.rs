//! Background tasks for upstreams, run on the control thread: DNS lookups, health checks, and the tick that ends
//! ejections and advances slow start.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{error, info, warn};

use crate::generation::ids::UpstreamId;
use crate::generation::{Generation, Upstream};
use crate::system::printable::one_line;
use crate::system::supervise::{self, guard, supervised};
use crate::upstream::EndpointAddr;
use crate::upstream::discovery::{DnsName, Resolved, UpstreamSpec};
use crate::upstream::dns::{CurrentResolver, LookupError, SystemFiles};
use crate::upstream::endpoint_set::{EndpointSet, EndpointSpec, MAX_ENDPOINTS};
use crate::upstream::health;
use crate::upstream::health_check::{HealthCheck, check};

/// The monitor of the upstreams of the current generation.
pub struct UpstreamMonitor {
    monitored: HashMap<Arc<str>, MonitoredUpstream>,
    /// The sets whose ejections and slow starts the tick advances.
    live: Rc<RefCell<Vec<Arc<EndpointSet>>>>,
    /// The permits for the checks of all upstreams.
    check_permits: Rc<Semaphore>,
    _ticking: MonitorTask,
}

/// An upstream that is monitored until the value is dropped.
struct MonitoredUpstream {
    set: Rc<MonitoredSet>,
    servers: Vec<SocketAddr>,
    /// The state of the system's files when the lookups began.
    system: SystemFiles,
    /// The lookup task of each DNS name.
    _lookups: Vec<MonitorTask>,
}

/// A monitored set of endpoints, and the checks of each.
struct MonitoredSet {
    live: Arc<EndpointSet>,
    plan: UpstreamSpec,
    /// The last result of the lookup of each name.
    resolved: RefCell<Vec<Vec<EndpointSpec>>>,
    /// The names for which no name server has answered yet.
    unanswered: RefCell<BTreeSet<usize>>,
    /// Whether the endpoints in use are those of the former manifest, because nothing is known of the new names.
    is_former: Cell<bool>,
    /// The targets of each name that could not be looked up, as the log has them.
    missing: RefCell<Vec<String>>,
    /// For each name, the number of endpoints beyond the maximum, which are left out.
    left_out: RefCell<Vec<usize>>,
    /// The number of endpoints left out, as the log has it.
    logged_left_out: Cell<usize>,
    turns: CheckTurns,
    checks: RefCell<HashMap<EndpointAddr, MonitorTask>>,
}

/// The turns of an upstream's health checks. A check that waits for its turn has not begun, so that the wait is no failure.
#[derive(Clone)]
struct CheckTurns {
    own: Rc<Semaphore>,
    all: Rc<Semaphore>,
}

/// A failed lookup.
struct FailedLookup {
    error: String,
    remedy: &'static str,
}

/// A background task that is aborted when the value is dropped.
struct MonitorTask(AbortHandle);

/// The interval of the tick, and the maximum delay of the ends of ejections and slow starts.
const TICK: Duration = Duration::from_millis(100);

/// The maximum time that a start or a reload waits for DNS lookups. Later results are used when they arrive.
const PATIENCE: Duration = Duration::from_secs(3);

/// The delay before a failed lookup is retried; it doubles up to [`MAX_RETRY_DELAY`].
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);

/// The maximum number of health checks at a time: each has a connection, and all run on the control thread.
const CHECKS: usize = 64;

/// The maximum number of health checks of an upstream at a time: endpoints that answer nothing leave others their turns.
const UPSTREAM_CHECKS: usize = CHECKS / 2;

/// The number of targets that the log names, of those that can't be looked up.
const SHOWN_TARGETS: usize = 3;

/// The maximum length of their errors, and of a list of endpoints, in the log, in bytes.
const MAX_SHOWN_BYTES: usize = 512;

/// The remedies of lookups that fail: the name is at fault, or no name server says anything of use.
const CORRECT_NAME: &str =
    "correct the name in `endpoints` of the upstream, or its record; it is looked up again by itself";
const CORRECT_SERVER: &str =
    "correct `[resolver] servers` or /etc/resolv.conf, or the name servers; the name is looked up again by itself";

impl UpstreamMonitor {
    /// Returns a monitor without upstreams, and starts its tick.
    pub fn start() -> Self {
        let live = Rc::<RefCell<Vec<Arc<EndpointSet>>>>::default();
        let ticking = MonitorTask::start(supervise::Task::UpstreamTick, tick(live.clone()));
        let check_permits = Rc::new(Semaphore::new(CHECKS));
        UpstreamMonitor { monitored: HashMap::new(), live, check_permits, _ticking: ticking }
    }

    /// Monitors the upstreams of a generation from now on. Tasks of unchanged upstreams are kept.
    pub async fn watch_generation(&mut self, generation: &Generation) {
        self.watch_upstreams(generation, |_| true).await;
    }

    /// Monitors some upstreams of a generation from now on. Tasks of unchanged upstreams are kept.
    pub async fn watch_upstreams(&mut self, generation: &Generation, is_wanted: impl Fn(UpstreamId) -> bool) {
        let upstreams = || generation.upstreams.with_ids().filter(|(upstream_id, _)| is_wanted(*upstream_id));
        let mut before = std::mem::take(&mut self.monitored);
        let (servers, system) = (&generation.name_servers, SystemFiles::now());
        let (looking, mut looked) = mpsc::channel::<()>(1);
        for (_, upstream) in upstreams() {
            let known = before.remove(&upstream.name);
            let monitored = match known {
                Some(monitored) if monitored.fits(upstream, servers, &system) => monitored,
                known => {
                    let turns = CheckTurns::new(&self.check_permits, known.as_ref());
                    let set = MonitoredSet::replace(upstream, known, turns);
                    let lookups = set.lookups(servers, &looking);
                    MonitoredUpstream { set, servers: servers.clone(), system: system.clone(), _lookups: lookups }
                }
            };
            self.monitored.insert(upstream.name.clone(), monitored);
        }
        *self.live.borrow_mut() = upstreams().map(|(_, upstream)| upstream.live.clone()).collect();
        // Each name holds a sender until it has been looked up, so this ends with the last of them.
        drop(looking);
        if timeout(PATIENCE, looked.recv()).await.is_err() {
            warn!("some names are still being looked up; their endpoints will be used as they are found");
        }
    }
}

impl MonitoredUpstream {
    /// Whether the upstream is monitored already as this generation asks for.
    fn fits(&self, upstream: &Upstream, servers: &[SocketAddr], system: &SystemFiles) -> bool {
        // The system's files don't matter to names that are looked up elsewhere.
        let is_current = !servers.is_empty() || self.set.plan.names.is_empty() || self.system == *system;
        let is_same = Arc::ptr_eq(&self.set.live, &upstream.live) && self.set.plan == upstream.plan;
        is_same && self.servers == servers && is_current
    }
}

impl MonitoredSet {
    /// Puts the endpoints of an upstream in the place of those that were monitored before.
    fn replace(upstream: &Upstream, before: Option<MonitoredUpstream>, turns: CheckTurns) -> Rc<Self> {
        let plan = upstream.plan.clone();
        let of_before = |name: &DnsName| {
            let set = &before.as_ref()?.set;
            let index = set.plan.names.iter().position(|known| known == name)?;
            set.resolved.borrow().get(index).cloned()
        };
        let resolved: Vec<_> = plan.names.iter().map(|name| of_before(name).unwrap_or_default()).collect();
        upstream.live.set_rules(&plan.health, Instant::now());
        let checks = before.as_ref().filter(|monitored| monitored.set.plan.check == plan.check);
        let checks = RefCell::new(checks.map(|monitored| monitored.set.checks.take()).unwrap_or_default());
        let knows_some = plan.names.is_empty() || !plan.members.is_empty();
        let set = Rc::new(MonitoredSet {
            live: upstream.live.clone(),
            unanswered: RefCell::new((0..plan.names.len()).collect()),
            is_former: Cell::new(true),
            missing: RefCell::new(vec![String::new(); plan.names.len()]),
            left_out: RefCell::new(vec![0; plan.names.len()]),
            logged_left_out: Cell::new(0),
            turns,
            plan,
            resolved: RefCell::new(resolved),
            checks,
        });
        // With nothing but names of which nothing is known yet, the former endpoints stay.
        if knows_some || set.resolved.borrow().iter().any(|found| !found.is_empty()) {
            set.publish();
        }
        set
    }

    /// Starts looking up the names.
    fn lookups(self: &Rc<Self>, servers: &[SocketAddr], looking: &mpsc::Sender<()>) -> Vec<MonitorTask> {
        let resolver = Rc::new(CurrentResolver::new(servers));
        let look_up = |name_index| look_up(self.clone(), name_index, resolver.clone(), looking.clone());
        let names = 0..self.plan.names.len();
        names.map(|name_index| MonitorTask::start(supervise::Task::Lookup, look_up(name_index))).collect()
    }

    /// Looks a name up once; returns how long the answer holds.
    async fn look_up(&self, name_index: usize, resolver: &CurrentResolver) -> Result<Duration, FailedLookup> {
        let turn = async {
            let resolver = resolver.get()?;
            let Resolved { members, missing, left_out, lifetime } =
                self.plan.names[name_index].look_up(&resolver).await?;
            self.note_missing(name_index, &missing);
            self.left_out.borrow_mut()[name_index] = left_out;
            self.replace_resolved(name_index, members);
            Ok::<_, LookupError>(lifetime)
        };
        let found = supervised(supervise::Task::Lookup, turn).await;
        let panicked =
            |panicked: supervise::Panicked| FailedLookup { error: panicked.to_string(), remedy: CORRECT_SERVER };
        found.map_err(panicked)?.map_err(|error| {
            if error.is_certain() {
                self.note_answer(name_index);
            }
            let remedy = if error.is_about_name() { CORRECT_NAME } else { CORRECT_SERVER };
            FailedLookup { error: error.to_string(), remedy }
        })
    }

    /// Takes the endpoints of the former manifest out once the name servers have said of each name that there is nothing.
    fn note_answer(&self, name_index: usize) {
        let mut unanswered = self.unanswered.borrow_mut();
        unanswered.remove(&name_index);
        if self.is_former.get() && unanswered.is_empty() {
            self.publish();
        }
    }

    /// Logs the targets of a service that can't be looked up, if they are others than before.
    fn note_missing(&self, name_index: usize, missing: &[String]) {
        let shown = missing[..missing.len().min(SHOWN_TARGETS)].join("; ");
        let before = std::mem::replace(&mut self.missing.borrow_mut()[name_index], shown.clone());
        if !missing.is_empty() && before != shown {
            let (upstream, name) = (self.live.name(), self.plan.names[name_index].text());
            let (targets, error) = (missing.len(), one_line(&shown, MAX_SHOWN_BYTES));
            warn!(upstream, name, targets, %error, "a target of the service can't be looked up: it gets no requests");
        }
    }

    /// Replaces the endpoints that a name resolves to.
    fn replace_resolved(&self, name_index: usize, members: Vec<EndpointSpec>) {
        let before = std::mem::replace(&mut self.resolved.borrow_mut()[name_index], members);
        if before != self.resolved.borrow()[name_index] {
            self.publish();
            let addresses = |members: &[EndpointSpec]| {
                members.iter().map(|member| member.address.text.to_string()).collect::<Vec<_>>().join(", ")
            };
            let (upstream, name) = (self.live.name(), self.plan.names[name_index].text());
            let found = addresses(&self.resolved.borrow()[name_index]);
            info!(upstream, name, found = &*one_line(&found, MAX_SHOWN_BYTES), "endpoints found");
        }
    }

    /// Logs that a name can't be looked up, with the endpoints that get the requests meanwhile.
    fn log_failure(&self, name_index: usize, failed: &FailedLookup) {
        let (kept, endpoints) = (self.resolved.borrow()[name_index].len(), self.live.members().list.len());
        let (upstream, name, error) = (self.live.name(), self.plan.names[name_index].text(), &failed.error);
        if kept > 0 {
            return warn!(upstream, name, %error, kept, "the name can't be looked up: its last endpoints are kept");
        }
        let remedy = failed.remedy;
        if endpoints == 0 {
            error!(upstream, name, %error, remedy, "no endpoints: the name can't be looked up");
        } else if self.is_former.get() {
            let what = "the name can't be looked up: requests still reach the endpoints of the former manifest";
            error!(upstream, name, %error, endpoints, remedy, "{what}");
        } else {
            error!(upstream, name, %error, endpoints, remedy, "the name can't be looked up: the upstream's others are used");
        }
    }

    fn publish(&self) {
        self.is_former.set(false);
        let members = self.members();
        if let Some(rules) = &self.plan.check {
            let mut checks = self.checks.borrow_mut();
            let addresses = members.iter().map(|member| (&*member.address.text, &member.address));
            let addresses: HashMap<&str, &EndpointAddr> = addresses.collect();
            checks.retain(|address, _| addresses.get(&*address.text).is_some_and(|wanted| **wanted == *address));
            for member in &members {
                let watch = || {
                    let (live, turns, address) = (self.live.clone(), self.turns.clone(), member.address.clone());
                    let watched = watch_health(live, turns, rules.clone(), address);
                    MonitorTask::start(supervise::Task::HealthCheck, watched)
                };
                checks.entry(member.address.clone()).or_insert_with(watch);
            }
        }
        self.live.set_members(members, Instant::now());
    }

    /// Returns the endpoints of the manifest and those that names resolve to, up to the maximum, and logs how many are left
    /// out.
    fn members(&self) -> Vec<EndpointSpec> {
        let mut members = self.plan.members.clone();
        members.extend(self.resolved.borrow().iter().flatten().cloned());
        let left_out = members.len().saturating_sub(MAX_ENDPOINTS) + self.left_out.borrow().iter().sum::<usize>();
        if left_out != self.logged_left_out.replace(left_out) && left_out > 0 {
            let (upstream, limit) = (self.live.name(), MAX_ENDPOINTS);
            let remedy = "divide them among several upstreams, or let the name stand for fewer addresses";
            warn!(upstream, limit, left_out, remedy, "too many endpoints: some get no requests");
        }
        members.truncate(MAX_ENDPOINTS);
        members
    }
}

impl CheckTurns {
    /// Returns the turns of an upstream: those of its checks that are kept, or new ones.
    fn new(all: &Rc<Semaphore>, before: Option<&MonitoredUpstream>) -> Self {
        let own = before.map(|monitored| monitored.set.turns.own.clone());
        CheckTurns { own: own.unwrap_or_else(|| Rc::new(Semaphore::new(UPSTREAM_CHECKS))), all: all.clone() }
    }
}

/// Looks a name up over and over. What it stood for stays when it can't be found any more.
async fn look_up(set: Rc<MonitoredSet>, name_index: usize, resolver: Rc<CurrentResolver>, looking: mpsc::Sender<()>) {
    let mut looking = Some(looking);
    let mut pause = RETRY;
    loop {
        let next = match set.look_up(name_index, &resolver).await {
            Ok(lifetime) => {
                pause = RETRY;
                lifetime
            }
            Err(failed) => {
                set.log_failure(name_index, &failed);
                let longer = (pause * 2).min(MAX_RETRY_DELAY);
                std::mem::replace(&mut pause, longer)
            }
        };
        looking.take();
        sleep(next).await;
    }
}

/// Checks an endpoint over and over, each time as its turn comes.
async fn watch_health(live: Arc<EndpointSet>, turns: CheckTurns, rules: HealthCheck, address: EndpointAddr) {
    loop {
        let turn = async {
            // Nothing closes the semaphores.
            let _permits = (turns.own.acquire().await.ok(), turns.all.acquire().await.ok());
            let (shown, why) = match check(&rules, &address).await {
                Ok(()) => (health::Check::Passed, String::new()),
                Err(why) => (health::Check::Failed, why),
            };
            live.record_check(&address, shown, &why, Instant::now());
        };
        // A panic says nothing about the endpoint, whose state stays until the next check.
        let _ = supervised(supervise::Task::HealthCheck, turn).await;
        sleep(jittered(rules.interval)).await;
    }
}

/// Returns the interval, changed at random by up to a tenth, so that checks of many endpoints, or by many proxies, are
/// spread over time.
fn jittered(interval: Duration) -> Duration {
    let mut random = [0];
    // Without random numbers all checks are as regular as they are asked to be.
    let _ = getrandom::fill(&mut random);
    interval.mul_f64(0.9 + f64::from(random[0]) / 255.0 / 5.0)
}

async fn tick(live: Rc<RefCell<Vec<Arc<EndpointSet>>>>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let live = live.borrow().clone();
        let tick = |live: &Arc<EndpointSet>| drop(guard(supervise::Task::UpstreamTick, || live.tick(now)));
        live.iter().for_each(tick);
    }
}

impl MonitorTask {
    fn start(name: supervise::Task, task: impl Future<Output = ()> + 'static) -> Self {
        MonitorTask(supervise::spawn_turns(name, task).abort_handle())
    }
}

impl Drop for MonitorTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
