//! The life of the process: sockets and workers at the start, generations while it runs, a graceful end.

use std::fmt::Display;
use std::num::NonZero;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tracing::{error, info, warn};

use crate::admin::{self, Admin, ReloadOrder};
use crate::assemble::{AdminAddress, Assembled, Assembly};
use crate::background;
use crate::config::load::Files;
use crate::config::problem::Problems;
use crate::generation::Generation;
use crate::keeper::Keeper;
use crate::listen::Listeners;
use crate::loading::{Loader, Stop};
use crate::metrics::{Place, Registry};
use crate::plugin::engine::Runtime;
use crate::watch::{Load, Watch};
use crate::watchdog::Watchdog;
use crate::worker::{self, Orders, SocketOrder};

/// Serves what `load` gives, at the start and at each reload, until told to stop.
pub fn run(
    load: impl Fn() -> Result<Files, Problems> + Send + Sync + 'static,
    cache: Option<&Path>,
) -> anyhow::Result<()> {
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    let threads = control.block_on(serve(Arc::new(load), cache))?;
    for thread in threads.into_iter().filter(|thread| thread.is_finished()) {
        if let Ok(outcome) = thread.join() {
            outcome?;
        }
    }
    Ok(())
}

/// The control thread. It decides and waits, but computes nothing that could take long: whatever reads files, loads
/// plugins or assembles does so on a thread of its own, while signals and the admin listener are answered.
async fn serve(load: Load, cache: Option<&Path>) -> anyhow::Result<Threads> {
    // Before all that takes time: a signal that comes first would end the process.
    let mut signals = Signals::new()?;
    let registry = Arc::new(Registry::default());
    let _watchdog = Watchdog::start(registry.clone())?;
    let stop = Stop::default();
    let assembly = Assembly::new(Runtime::start(cache)?, Loader::in_children(stop.clone()))?;
    let loads = Loads { load, assembly: Arc::new(Mutex::new(assembly)), watch: Watch::new() };
    let Some(started) = signals.during(start(loads, registry), || {}).await else {
        stop.order();
        info!("stopped before anything was served");
        return Ok(Threads::new());
    };
    let Started { mut reloader, mut reload_orders, stopping, threads } = started?;
    let generation = reloader.publish.subscribe();
    let reopen = || {
        if let Some(log) = &generation.borrow().access_log {
            log.reopen();
        }
    };
    loop {
        let orders = tokio::select! {
            _ = signals.hangup.recv() => Reason::Order(Vec::new()),
            () = reloader.loads.watch.changed() => Reason::Change,
            Some(order) = reload_orders.recv() => Reason::Order(vec![order]),
            _ = signals.reopen.recv() => {
                reopen();
                continue;
            }
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
        };
        let orders = orders.and_waiting(&mut reload_orders);
        if signals.during(reloader.reload(orders), reopen).await.is_none() {
            break;
        }
    }
    // A plugin that is being loaded is for nobody any more.
    stop.order();
    info!("stopping");
    let _ = stopping.send(true);
    reloader.stop(&mut signals).await;
    Ok(threads)
}

/// Orders from outside.
struct Signals {
    hangup: Signal,
    reopen: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for an order to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Does something, and meanwhile what can't wait; `None` if an order to stop has come. An order to reload stays.
    async fn during<T>(&mut self, work: impl Future<Output = T>, reopen: impl Fn()) -> Option<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                _ = self.reopen.recv() => reopen(),
                _ = self.terminate.recv() => return None,
                _ = self.interrupt.recv() => return None,
            }
        }
    }
}

/// Why a manifest is loaded again.
enum Reason {
    /// A signal, or orders by the admin listener, who want to know the outcome.
    Order(Vec<ReloadOrder>),
    /// A file has changed, or was only touched.
    Change,
}

impl Reason {
    /// With the orders that have come meanwhile: all of them are content with one reload.
    fn and_waiting(self, orders: &mut mpsc::Receiver<ReloadOrder>) -> Self {
        let waiting = std::iter::from_fn(|| orders.try_recv().ok());
        match self {
            Reason::Order(known) => Reason::Order(known.into_iter().chain(waiting).collect()),
            Reason::Change => match waiting.collect::<Vec<_>>() {
                none if none.is_empty() => Reason::Change,
                orders => Reason::Order(orders),
            },
        }
    }
}

/// What runs after the start.
struct Started {
    reloader: Reloader,
    reload_orders: mpsc::Receiver<ReloadOrder>,
    stopping: watch::Sender<bool>,
    threads: Threads,
}

async fn start(mut loads: Loads, registry: Arc<Registry>) -> anyhow::Result<Started> {
    let (files, _) = loads.watch.load(&loads.load).await?;
    let first = loads.assemble(files?).await.map_err(anyhow::Error::msg)?;
    first.generation.resize_store();
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = first.workers.unwrap_or(cores);
    let (publish, generation) = watch::channel(Arc::new(first.generation));
    let (stopping, stop) = watch::channel(false);
    let (swapped, mut outcomes) = mpsc::unbounded_channel();
    // Before the workers make their balancers, which want to know the endpoints.
    let mut keeper = Keeper::start();
    let first_generation = generation.borrow().clone();
    keeper.adopt(&first_generation).await;
    let (threads, sockets) = start_workers(workers, &generation, &stop, &registry, &swapped)?;
    drop(swapped);
    let mut listeners = Listeners::new(sockets);
    let bound = listeners.prepare(&first.listeners)?;
    acknowledged(&mut outcomes, workers).await.map_err(anyhow::Error::msg)?;
    listeners.adopt(bound);
    let serial = Arc::new(AtomicU64::new(1));
    let (reload, reload_orders) = mpsc::channel(1);
    let admin = Arc::new(Admin { registry, generation, serial: serial.clone(), reload });
    let admin = AdminSeat::start(&first.admin, admin).await?;
    let drain = first.drain;
    let reloader = Reloader { loads, publish, outcomes, workers, serial, listeners, keeper, admin, drain };
    Ok(Started { reloader, reload_orders, stopping, threads })
}

/// What is stored may take so long to reach the disk at the end.
const FLUSH: Duration = Duration::from_secs(5);

/// Serves generations one after the other.
struct Reloader {
    loads: Loads,
    publish: watch::Sender<Arc<Generation>>,
    outcomes: mpsc::UnboundedReceiver<Result<(), String>>,
    workers: usize,
    serial: Arc<AtomicU64>,
    listeners: Listeners,
    keeper: Keeper,
    admin: AdminSeat,
    /// Exchanges that still run so long after the first signal to stop are cut off.
    drain: Duration,
}

/// Makes generations of what there is to load, one at a time, on threads of their own.
struct Loads {
    load: Load,
    /// Locked by the one thread that assembles.
    assembly: Arc<Mutex<Assembly>>,
    watch: Watch,
}

/// The admin listener, where it is wanted.
struct AdminSeat {
    admin: Arc<Admin>,
    wanted: AdminAddress,
    task: Option<AbortHandle>,
}

impl Loads {
    /// Assembles on a thread of its own: plugins run there, and must find no runtime that they could block, nor anyone
    /// whom they could take along.
    async fn assemble(&mut self, files: Files) -> Result<Assembled, String> {
        let assembly = self.assembly.clone();
        let assemble = move || {
            let mut assembly = assembly.lock().unwrap_or_else(PoisonError::into_inner);
            assembly.assemble(&files).map_err(|problems| problems.to_string())
        };
        let assembled = background::run("assembly", assemble).await;
        assembled.unwrap_or_else(|error| Err(format!("the manifest could not be assembled: {error}")))
    }
}

impl Reloader {
    /// Loads and serves what there is. After a change only if it is other than what was loaded before: a file that was
    /// touched, or that a command has already told of, is no change.
    async fn reload(&mut self, reason: Reason) {
        let (loaded, is_other) = match self.loads.watch.load(&self.loads.load).await {
            Ok((loaded, is_other)) => (loaded.map_err(|problems| problems.to_string()), is_other),
            Err(error) => (Err(format!("the manifest could not be read: {error}")), true),
        };
        match reason {
            Reason::Change if !is_other => {}
            Reason::Change => drop(self.take(loaded).await),
            Reason::Order(orders) => {
                let outcome = self.take(loaded).await;
                orders.into_iter().for_each(|order| drop(order.send(outcome.clone())));
            }
        }
    }

    /// Lets exchanges end, until their time is over or another signal comes.
    async fn stop(mut self, signals: &mut Signals) {
        // Now, not at the end: another process may have bound the same paths by then.
        drop(self.listeners);
        let ended = async { while self.outcomes.recv().await.is_some() {} };
        let store = self.publish.borrow().store.clone();
        tokio::select! {
            _ = ended => store.flush(FLUSH),
            () = signals.stop() => warn!("stopped at once"),
            _ = tokio::time::sleep(self.drain) => {
                warn!("the drain time has passed; what still ran is cut off");
                store.flush(FLUSH);
            }
        }
    }

    /// Builds the next generation whole, then lets all workers swap; any mistake leaves the old one serving.
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
        let sockets = self.listeners.prepare(&next.listeners).map_err(|error| refused(&format!("{error:#}")))?;
        self.admin.change(&next.admin).await.map_err(|error| refused(&format!("{error:#}")))?;
        let next_generation = Arc::new(next.generation);
        self.keeper.adopt(&next_generation).await;
        let old = self.publish.send_replace(next_generation);
        if let Err(error) = acknowledged(&mut self.outcomes, self.workers).await {
            // The others go back too: workers that differ would answer by chance.
            self.keeper.adopt(&old).await;
            self.publish.send_replace(old);
            let _ = acknowledged(&mut self.outcomes, self.workers).await;
            return Err(refused(&error));
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        self.listeners.adopt(sockets);
        self.publish.borrow().resize_store();
        self.drain = next.drain;
        if next.workers.is_some_and(|workers| workers != self.workers) {
            warn!("the number of workers changes at the next start");
        }
        Ok(format!("reloaded: generation {serial}"))
    }
}

impl AdminSeat {
    async fn start(wanted: &AdminAddress, admin: Arc<Admin>) -> anyhow::Result<Self> {
        let mut seat = AdminSeat { admin, wanted: AdminAddress::Off, task: None };
        seat.change(wanted).await?;
        Ok(seat)
    }

    /// Listens at another address. At its default place it gives way to another process's.
    async fn change(&mut self, wanted: &AdminAddress) -> anyhow::Result<()> {
        let place = |wanted: &AdminAddress| match wanted {
            AdminAddress::Off => None,
            AdminAddress::At(address) => Some(address.to_string()),
            AdminAddress::Default => Some(admin::DEFAULT_ADDRESS.into()),
        };
        let address: Option<String> = place(wanted);
        if place(&self.wanted) == address {
            return Ok(());
        }
        let listener = match address {
            None => None,
            Some(address) => match tokio::net::TcpListener::bind(&address).await {
                Ok(listener) => Some(listener),
                Err(error) if *wanted == AdminAddress::Default => {
                    warn!(%error, "no admin listener at {address}; choose a place with [admin] address");
                    None
                }
                Err(error) => return Err(error).context(format!("the admin listener can't listen at {address}")),
            },
        };
        if let Some(old) = self.task.take() {
            old.abort();
        }
        if let Some(listener) = listener {
            info!("admin at http://{}", listener.local_addr()?);
            self.task = Some(tokio::task::spawn_local(admin::serve(listener, self.admin.clone())).abort_handle());
        }
        self.wanted = wanted.clone();
        Ok(())
    }
}

type Sockets = Vec<mpsc::UnboundedSender<SocketOrder>>;
type Threads = Vec<JoinHandle<std::io::Result<()>>>;

/// Starts a thread for each worker; gives them, and the ends by which they are given sockets.
fn start_workers(
    workers: usize,
    generation: &watch::Receiver<Arc<Generation>>,
    stopping: &watch::Receiver<bool>,
    registry: &Arc<Registry>,
    swapped: &mpsc::UnboundedSender<Result<(), String>>,
) -> std::io::Result<(Threads, Sockets)> {
    let (mut threads, mut ends) = (Vec::new(), Vec::new());
    for worker in 0..workers {
        let (end, sockets) = mpsc::unbounded_channel();
        let place = Place { registry: registry.clone(), worker };
        let orders = Orders { generation: generation.clone(), sockets, stopping: stopping.clone(), place };
        let swapped = swapped.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{worker}"));
        threads.push(thread.spawn(move || worker::run(orders, swapped))?);
        ends.push(end);
    }
    Ok((threads, ends))
}

async fn acknowledged(
    outcomes: &mut mpsc::UnboundedReceiver<Result<(), String>>,
    workers: usize,
) -> Result<(), String> {
    let mut result = Ok(());
    for _ in 0..workers {
        result = outcomes.recv().await.unwrap_or(Err("a worker has ended".into())).and(result);
    }
    result
}
