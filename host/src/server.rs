//! The life of the process: starts sockets and workers, serves generations, and shuts down gracefully.
#![expect(
    clippy::disallowed_methods,
    reason = "the process, its control thread and its admin listener have no clock of a worker, and find their folders by the environment"
)]

pub mod admin;
mod asking_plugins;
pub(crate) mod file_watcher;
mod maintenance_monitor;
pub(crate) mod sockets;
pub mod upstream_monitor;
pub(crate) mod watchdog;
pub mod worker;

use std::fmt::Display;
use std::num::NonZero;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::runtime::LocalRuntime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::{error, info, warn};

use crate::assemble::addresses::ManifestPlace;
use crate::assemble::admin::AdminSettings;
use crate::assemble::{self, AssembledManifest, Assembler};
use crate::config::diagnostic::Diagnostics;
use crate::config::load::Files;
use crate::downstream::admission::{self, Admission};
use crate::generation::Generation;
use crate::loading::{Loader, Stop};
use crate::plugin::engine::Runtime;
use crate::server::admin::listener::AdminListeners;
use crate::server::admin::{Admin, ReloadOrder};
use crate::server::file_watcher::{FileWatcher, Load};
use crate::server::maintenance_monitor::MaintenanceMonitor;
use crate::server::sockets::ListeningSockets;
use crate::server::upstream_monitor::UpstreamMonitor;
use crate::server::watchdog::Watchdog;
use crate::server::worker::{SocketChange, WorkerChannels};
use crate::system::background;
use crate::system::descriptor_shares::DescriptorShares;
use crate::system::descriptors::{self, Descriptors};
use crate::system::service_manager::{self, ServiceState};
use crate::system::supervise::{Panicked, Task, guard, supervised};
use crate::telemetry::metrics::{Registry, WorkerMetrics};
use crate::tls::validity;

/// The runtime of the control thread, with signal handlers from its start on.
pub struct Control {
    runtime: LocalRuntime,
    signals: Signals,
}

impl Control {
    pub fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
        let signals = runtime.block_on(async { Signals::new() })?;
        Ok(Control { runtime, signals })
    }
}

/// Serves the manifest that `load` returns, at the start and at each reload, until stopped.
pub fn run(
    control: Control,
    load: impl Fn() -> Result<Files, Diagnostics> + Send + Sync + 'static,
    cache: Option<&Path>,
) -> anyhow::Result<()> {
    descriptors::raise();
    let Control { runtime, signals } = control;
    let threads = runtime.block_on(serve(signals, Arc::new(load), cache))?;
    for thread in threads.0.into_iter().filter(|thread| thread.is_finished()) {
        // A panic was reported when the worker ended.
        if let Ok(outcome) = thread.join() {
            outcome?;
        }
    }
    Ok(())
}

/// Runs the control thread. The thread decides and waits, but computes nothing that could take long: files, plugins and
/// assembly are loaded on threads of their own, while signals and the admin listener are served.
async fn serve(mut signals: Signals, load: Load, cache: Option<&Path>) -> anyhow::Result<WorkerThreads> {
    let registry = Arc::new(Registry::default());
    let _watchdog = Watchdog::start(registry.clone())?;
    let stop = Stop::default();
    let beginning = start(EarlySignals { load, cache, stop: stop.clone(), registry });
    let Some(started) = signals.during(beginning, || {}).await else {
        stop.order();
        info!("stopped before anything was served");
        return Ok(WorkerThreads::default());
    };
    let Started { reloader, reload_orders, endings, stopping, threads } = started?;
    service_manager::notify(ServiceState::Serving).await;
    let (mut dates, mut look) = (tokio::time::interval(DATES), tokio::time::interval(LOOK));
    [&mut dates, &mut look].into_iter().for_each(|ticks| ticks.set_missed_tick_behavior(MissedTickBehavior::Delay));
    let mut control_loop = ControlLoop { signals, reloader, reload_orders, endings, dates, look };
    let outcome = control_loop.run().await;
    // The result of a load that is under way will not be used.
    stop.order();
    info!("stopping");
    let _ = stopping.send(true);
    service_manager::notify(ServiceState::Stopping).await;
    let ControlLoop { mut signals, reloader, .. } = control_loop;
    reloader.stop(&mut signals).await;
    outcome.map(|()| threads)
}

/// The time between two checks for certificates that have expired in service.
const DATES: Duration = Duration::from_secs(3600);

/// The time between two checks for the files of unix sockets, as for that of the admin socket.
const LOOK: Duration = Duration::from_secs(10);

/// The pause after a turn that ended with a panic.
const PANIC_PAUSE: Duration = Duration::from_millis(500);

/// Turns in a row that end with a panic until the process stops: it would serve requests, but obey no order.
const MAX_PANICS: u32 = 5;

/// The work of the control thread between start and stop, in turns.
struct ControlLoop {
    signals: Signals,
    reloader: ReloadLoop,
    reload_orders: mpsc::Receiver<ReloadOrder>,
    endings: mpsc::UnboundedReceiver<String>,
    dates: Interval,
    look: Interval,
}

/// The step that follows a turn of the control loop.
enum Turn {
    Next,
    Stop,
    Fail(String),
}

impl ControlLoop {
    /// Takes turns until the process stops. The error is the failure for which it stops. Orders wait in their queues if
    /// a turn ends with a panic.
    async fn run(&mut self) -> anyhow::Result<()> {
        let mut panics = 0;
        loop {
            match supervised(Task::Control, self.turn()).await {
                Ok(Turn::Next) => panics = 0,
                Ok(Turn::Stop) => return Ok(()),
                Ok(Turn::Fail(why)) => anyhow::bail!("a worker has ended: {why}"),
                Err(panicked) => {
                    panics += 1;
                    if panics == MAX_PANICS {
                        error!(%panicked, "the control thread fails at each turn: the process stops");
                        anyhow::bail!("the control thread has failed: {panicked}");
                    }
                    tokio::time::sleep(PANIC_PAUSE).await;
                }
            }
        }
    }

    /// Waits for an order, and carries it out.
    async fn turn(&mut self) -> Turn {
        let ControlLoop { signals, reloader, reload_orders, endings, dates, look } = self;
        let generation = reloader.publish.subscribe();
        let reopen = || {
            if let Some(log) = &generation.borrow().access_log {
                log.reopen();
            }
        };
        let orders = tokio::select! {
            _ = dates.tick() => {
                validity::warn_of(&generation.borrow().certificates, SystemTime::now());
                return Turn::Next;
            }
            _ = look.tick() => {
                reloader.listeners.restore();
                return Turn::Next;
            }
            _ = signals.hangup.recv() => ReloadReason::Order(Vec::new()),
            () = reloader.loads.watch.wait_for_change() => ReloadReason::Change,
            Some(order) = reload_orders.recv() => ReloadReason::Order(vec![order]),
            _ = signals.reopen.recv() => {
                reopen();
                return Turn::Next;
            }
            _ = signals.upgrade.recv() => {
                let remedy = "start the new program after a stop by SIGTERM";
                warn!(remedy, "SIGUSR2 ignored: a running process is not replaced by a new program");
                return Turn::Next;
            }
            _ = signals.terminate.recv() => return Turn::Stop,
            _ = signals.quit.recv() => return Turn::Stop,
            _ = signals.interrupt.recv() => return Turn::Stop,
            // The other workers can't take over its connections, so another process has to.
            Some(why) = endings.recv() => {
                error!(%why, "a worker has ended: the process stops");
                return Turn::Fail(why);
            }
        };
        let orders = orders.and_waiting(reload_orders);
        match signals.during(reloader.reload_supervised(orders), reopen).await {
            Some(()) => Turn::Next,
            None => Turn::Stop,
        }
    }
}

/// The signals that the process handles.
struct Signals {
    hangup: Signal,
    reopen: Signal,
    /// SIGUSR2, by which nginx starts a new program. Without a handler, it would end the process.
    upgrade: Signal,
    terminate: Signal,
    /// SIGQUIT, by which units and images that were made for nginx stop it gracefully.
    quit: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            upgrade: signal(SignalKind::user_defined2())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for an order to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.quit.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Runs work, and handles urgent orders meanwhile; `None` if an order to stop has arrived. An order to reload stays
    /// queued.
    async fn during<T>(&mut self, work: impl Future<Output = T>, reopen: impl Fn()) -> Option<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                _ = self.reopen.recv() => reopen(),
                _ = self.terminate.recv() => return None,
                _ = self.quit.recv() => return None,
                _ = self.interrupt.recv() => return None,
            }
        }
    }
}

/// The reason why a manifest is loaded again.
enum ReloadReason {
    /// A signal, or commands of the admin listener, which wait for the result.
    Order(Vec<ReloadOrder>),
    /// A file was changed, or only its modification time.
    Change,
}

impl ReloadReason {
    /// Adds the commands that have arrived meanwhile: one reload serves all of them.
    fn and_waiting(self, orders: &mut mpsc::Receiver<ReloadOrder>) -> Self {
        let waiting = std::iter::from_fn(|| orders.try_recv().ok());
        match self {
            ReloadReason::Order(known) => ReloadReason::Order(known.into_iter().chain(waiting).collect()),
            ReloadReason::Change => match waiting.collect::<Vec<_>>() {
                none if none.is_empty() => ReloadReason::Change,
                orders => ReloadReason::Order(orders),
            },
        }
    }
}

/// The inputs of the first generation.
struct EarlySignals<'a> {
    load: Load,
    cache: Option<&'a Path>,
    stop: Stop,
    registry: Arc<Registry>,
}

/// The parts that run after the start.
struct Started {
    reloader: ReloadLoop,
    reload_orders: mpsc::Receiver<ReloadOrder>,
    /// The workers that ended before they were stopped.
    endings: mpsc::UnboundedReceiver<String>,
    stopping: watch::Sender<bool>,
    threads: WorkerThreads,
}

async fn start(beginning: EarlySignals<'_>) -> anyhow::Result<Started> {
    let EarlySignals { load, cache, stop, registry } = beginning;
    let mut watch = FileWatcher::new();
    let (files, _) = watch.load(&load).await?;
    let files = files?;
    let runtime = Runtime::start(cache)?;
    let assembly = Assembler::new(runtime, Loader::in_children(stop))?;
    let mut loads = LoadResults { load, assembly: Arc::new(Mutex::new(assembly)), watch };
    let first = loads.assemble(files).await.map_err(anyhow::Error::msg)?;
    first.generation.take_into_service(None);
    let workers = first.workers.unwrap_or_else(cores);
    let (publish, generation) = watch::channel(Arc::new(first.generation));
    let (stopping, stop) = watch::channel(false);
    #[expect(clippy::disallowed_methods, reason = "one message from each worker for a generation")]
    let (swapped, mut outcomes) = mpsc::unbounded_channel();
    #[expect(clippy::disallowed_methods, reason = "one message from each worker, at its end")]
    let (ended, endings) = mpsc::unbounded_channel();
    // Before the workers create their balancers, which need the endpoints.
    let mut keeper = UpstreamMonitor::start();
    let first_generation = generation.borrow().clone();
    keeper.watch_generation(&first_generation).await;
    let admission = Admission::new(workers, DescriptorShares::new(workers));
    let inputs = WorkerInputs {
        generation: generation.clone(),
        stopping: stop,
        registry: registry.clone(),
        reports: WorkerReports { swapped, ended },
        admission: admission.clone(),
    };
    let (threads, sockets) = start_workers(workers, inputs)?;
    let mut listeners = ListeningSockets::new(sockets);
    let bound = listeners.bind_new(&first.listeners).map_err(anyhow::Error::msg)?;
    let descriptors = Descriptors::now();
    admission.descriptors().limit(descriptors);
    wait_for_workers(&mut outcomes, workers).await.map_err(anyhow::Error::msg)?;
    listeners.apply(bound);
    admission.serve(&first_generation);
    admission::warn_of_limits(&first_generation, descriptors);
    let maintenance = MaintenanceMonitor::start(generation.clone());
    let serial = Arc::new(AtomicU64::new(1));
    let (reload, reload_orders) = mpsc::channel(1);
    let admin = Arc::new(Admin { registry: registry.clone(), generation, serial: serial.clone(), reload });
    let admin = start_admin(&first.admin, first.admin_place.as_ref(), admin).await?;
    let reloader = ReloadLoop {
        loads,
        publish,
        outcomes,
        workers,
        serial,
        listeners,
        keeper,
        _maintenance: maintenance,
        admin,
        admission,
        registry,
        drain: first.drain,
    };
    Ok(Started { reloader, reload_orders, endings, stopping, threads })
}

/// Returns the number of workers if the manifest doesn't say: one for each core.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Starts the admin listener. The error names the address in the manifest, if it is there.
async fn start_admin(
    settings: &AdminSettings,
    place: Option<&ManifestPlace>,
    admin: Arc<Admin>,
) -> anyhow::Result<AdminListeners> {
    let started = AdminListeners::start(settings, admin).await;
    started.map_err(|error| anyhow::Error::msg(placed(place, &error)))
}

/// The maximum time for writing stored responses to the disk on shutdown.
const FLUSH: Duration = Duration::from_secs(5);

/// The maximum time for writing the lines of the access log on shutdown.
const FLUSH_LOG: Duration = Duration::from_secs(1);

/// The time that workers have at the end to drop what is cut off.
const CUT_OFF: Duration = Duration::from_secs(1);

/// The loop that loads and serves one generation after the other.
struct ReloadLoop {
    loads: LoadResults,
    publish: watch::Sender<Arc<Generation>>,
    outcomes: mpsc::UnboundedReceiver<Result<(), String>>,
    workers: usize,
    serial: Arc<AtomicU64>,
    listeners: ListeningSockets,
    keeper: UpstreamMonitor,
    _maintenance: MaintenanceMonitor,
    admin: AdminListeners,
    admission: Arc<Admission>,
    registry: Arc<Registry>,
    /// Exchanges that still run so long after the first signal to stop are cut off.
    drain: Duration,
}

/// Assembles generations, one at a time, on threads of their own.
struct LoadResults {
    load: Load,
    /// The state of assembly, locked only by the thread that assembles.
    assembly: Arc<Mutex<Assembler>>,
    watch: FileWatcher,
}

impl LoadResults {
    /// Assembles on a thread of its own, because plugins run there: they must neither block the control thread's
    /// runtime nor end it with a panic.
    async fn assemble(&mut self, files: Files) -> Result<AssembledManifest, String> {
        let assembly = self.assembly.clone();
        let assemble = move || {
            let mut assembly = assembly.lock().unwrap_or_else(PoisonError::into_inner);
            let assembled = assembly.assemble(files).map_err(|problems| problems.to_string());
            let assembled = assembled.inspect(|assembled| assemble::log(&assembled.warnings));
            assembled.and_then(asking_plugins::configure)
        };
        let assembled = background::run(Task::Assemble, assemble).await;
        assembled.unwrap_or_else(|error| Err(format!("the manifest could not be assembled: {error}")))
    }
}

impl ReloadLoop {
    /// Calls [`ReloadLoop::reload`], and returns the result to the commands that wait for it. A panic leaves the old
    /// generation in service.
    async fn reload_supervised(&mut self, reason: ReloadReason) {
        let outcome = match supervised(Task::Reload, self.reload(&reason)).await {
            Ok(outcome) => outcome,
            Err(panicked) => Some(Err(self.recover(&panicked).await)),
        };
        if let (ReloadReason::Order(orders), Some(outcome)) = (reason, outcome) {
            orders.into_iter().for_each(|order| drop(order.send(outcome.clone())));
        }
    }

    /// Restarts the monitoring of the endpoints of the generation in service, which a panic may have ended; returns the
    /// error of the reload.
    async fn recover(&mut self, panicked: &Panicked) -> String {
        let served = self.publish.borrow().clone();
        let _ = supervised(Task::Reload, self.keeper.watch_generation(&served)).await;
        let message = format!("not reloaded: {panicked}");
        error!("{message}");
        message
    }

    /// Loads and serves the manifest. After a change of a file, `None` if the contents are those that were loaded
    /// before.
    async fn reload(&mut self, reason: &ReloadReason) -> Option<Result<String, String>> {
        let (loaded, is_other) = match self.loads.watch.load(&self.loads.load).await {
            Ok((loaded, is_other)) => (loaded.map_err(|problems| problems.to_string()), is_other),
            Err(error) => (Err(format!("the manifest could not be read: {error}")), true),
        };
        if matches!(reason, ReloadReason::Change) && !is_other {
            return None;
        }
        Some(self.take(loaded).await)
    }

    /// Waits until exchanges have ended, their time is over or another signal arrives.
    async fn stop(self, signals: &mut Signals) {
        let ReloadLoop { listeners, admin, mut outcomes, publish, drain, admission, registry, .. } = self;
        // Now, not at the end: another process may have bound the same paths by then.
        let _ = guard(Task::Drain, || drop((listeners, admin)));
        let (until, last) = (Instant::now() + drain, publish.borrow().clone());
        // An exchange that ends from then on leaves a line that names the limit.
        let cut_off = |limit| {
            let _ = registry.cut_off.set(limit);
            admission.cut_off();
        };
        // Once more after a panic, which is to cut no exchange off.
        for _ in 0..2 {
            if supervised(Task::Drain, drained(&mut outcomes, signals, until, &last, &cut_off)).await.is_ok() {
                return;
            }
        }
    }

    /// Builds the next generation completely, then makes all workers swap; any error leaves the old one in service.
    async fn take(&mut self, loaded: Result<Files, String>) -> Result<String, String> {
        let outcome = self.replace(loaded).await;
        match &outcome {
            Ok(message) => info!("{message}"),
            Err(message) => error!("{message}"),
        }
        outcome
    }

    async fn replace(&mut self, loaded: Result<Files, String>) -> Result<String, String> {
        let refused = |why: &dyn Display| format!("not reloaded, the old manifest goes on serving:\n{why}");
        let files = loaded.map_err(|problems| refused(&problems))?;
        let next = self.loads.assemble(files).await.map_err(|problems| refused(&problems))?;
        let sockets = self.listeners.bind_new(&next.listeners).map_err(|error| refused(&error))?;
        let admin = self.admin.prepare(&next.admin).await;
        let admin = admin.map_err(|error| refused(&placed(next.admin_place.as_ref(), &error)))?;
        // A reload that a panic ended may have left results.
        while self.outcomes.try_recv().is_ok() {}
        let next_generation = Arc::new(next.generation);
        self.keeper.watch_generation(&next_generation).await;
        let old = self.publish.send_replace(next_generation);
        if let Err(error) = wait_for_workers(&mut self.outcomes, self.workers).await {
            // The other workers swap back too: workers that differ would answer by chance.
            self.keeper.watch_generation(&old).await;
            self.publish.send_replace(old);
            let _ = wait_for_workers(&mut self.outcomes, self.workers).await;
            return Err(refused(&error));
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        if self.publish.borrow().take_into_service(Some(&old)) {
            self.admission.end_unverified();
        }
        self.listeners.apply(sockets);
        self.admin.apply(admin);
        self.admission.serve(&self.publish.borrow());
        validity::warn_of(&self.publish.borrow().certificates, SystemTime::now());
        self.drain = next.drain;
        if next.workers.is_some_and(|workers| workers != self.workers) {
            warn!("the number of workers changes at the next start");
        }
        Ok(format!("reloaded: generation {serial}"))
    }
}

/// Returns an error of the admin listener with the place of its address, if the manifest has one.
fn placed(place: Option<&ManifestPlace>, error: &anyhow::Error) -> String {
    let message = format!("{error:#}");
    place.map_or(message.clone(), |place| place.error(&message))
}

/// Waits until all workers have ended, the time is over or another signal arrives. Then cuts off the exchanges that
/// still run, and writes the rest of the logs.
async fn drained(
    outcomes: &mut mpsc::UnboundedReceiver<Result<(), String>>,
    signals: &mut Signals,
    until: Instant,
    last: &Generation,
    cut_off: &(dyn Fn(Option<&'static str>) + Sync),
) {
    let mut ended = pin!(async { while outcomes.recv().await.is_some() {} });
    let flush = || {
        last.store.flush(FLUSH);
        last.access_log.iter().for_each(|log| log.flush(FLUSH_LOG));
    };
    let limit = tokio::select! {
        () = &mut ended => return flush(),
        () = signals.stop() => {
            warn!("stopped at once");
            None
        }
        () = tokio::time::sleep_until(until) => {
            warn!("the drain time has passed; what still ran is cut off");
            Some("drain-timeout")
        }
    };
    cut_off(limit);
    let _ = tokio::time::timeout(CUT_OFF, ended).await;
    if limit.is_some() {
        flush();
    }
}

/// The threads of the workers, each with the result of its end.
#[derive(Default)]
struct WorkerThreads(Vec<JoinHandle<std::io::Result<()>>>);

/// The shared parts that each worker gets at its start.
struct WorkerInputs {
    generation: watch::Receiver<Arc<Generation>>,
    stopping: watch::Receiver<bool>,
    registry: Arc<Registry>,
    reports: WorkerReports,
    admission: Arc<Admission>,
}

/// The channels by which workers report to the control thread.
#[derive(Clone)]
struct WorkerReports {
    /// The result of each swap of a worker to a generation.
    swapped: mpsc::UnboundedSender<Result<(), String>>,
    /// The channel for the reason why a worker ended before it was stopped.
    ended: mpsc::UnboundedSender<String>,
}

impl WorkerReports {
    /// Runs a worker on its thread, and reports an end that was not ordered.
    fn run(self, worker: usize, orders: WorkerChannels) -> std::io::Result<()> {
        let swapped = self.swapped.clone();
        let ran = guard(Task::Worker, || worker::run(orders, swapped)).map_err(std::io::Error::other).flatten();
        if let Err(error) = &ran {
            let why = format!("worker-{worker}: {error}");
            let _ = self.ended.send(why.clone());
            // A swap may wait for this worker.
            let _ = self.swapped.send(Err(why));
        }
        ran
    }
}

/// Starts a thread for each worker; returns the threads, and the channels that pass sockets to them.
fn start_workers(
    workers: usize,
    inputs: WorkerInputs,
) -> std::io::Result<(WorkerThreads, Vec<mpsc::UnboundedSender<SocketChange>>)> {
    let WorkerInputs { generation, stopping, registry, reports, admission } = inputs;
    let (mut threads, mut ends) = (Vec::new(), Vec::new());
    for worker in 0..workers {
        #[expect(clippy::disallowed_methods, reason = "one message for each changed socket of a reload")]
        let (end, sockets) = mpsc::unbounded_channel();
        let worker_metrics = WorkerMetrics { registry: registry.clone(), worker };
        let (generation, stopping, admission) = (generation.clone(), stopping.clone(), admission.clone());
        let orders = WorkerChannels { generation, sockets, stopping, worker_metrics, admission };
        let reports = reports.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{worker}"));
        threads.push(thread.spawn(move || reports.run(worker, orders))?);
        ends.push(end);
    }
    Ok((WorkerThreads(threads), ends))
}

async fn wait_for_workers(
    outcomes: &mut mpsc::UnboundedReceiver<Result<(), String>>,
    workers: usize,
) -> Result<(), String> {
    let mut result = Ok(());
    for _ in 0..workers {
        result = outcomes.recv().await.unwrap_or(Err("a worker has ended".into())).and(result);
    }
    result
}
