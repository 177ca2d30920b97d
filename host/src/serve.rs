//! The life of the process: sockets and workers at the start, generations while it runs, a graceful end.

use std::fmt::Display;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::admin::listener::AdminListeners;
use crate::admin::{Admin, ReloadOrder};
use crate::assemble::{Assembled, Assembly};
use crate::config::load::Files;
use crate::config::problem::Problems;
use crate::generation::Generation;
use crate::keeper::Keeper;
use crate::listen::Listeners;
use crate::metrics::{Place, Registry};
use crate::plugin::engine::Runtime;
use crate::watch::Watch;
use crate::worker::{self, Orders, SocketOrder};

/// Serves what `load` gives, at the start and at each reload, until told to stop.
pub fn run(load: impl Fn() -> Result<Files, Problems>, cache: Option<&Path>) -> anyhow::Result<()> {
    let mut assembly = Assembly::new(Runtime::start(cache)?)?;
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    let mut watch = control.block_on(async { Watch::new() });
    let (files, _) = watch.load(&load);
    let files = files?;
    let first = assembly.assemble(&files)?;
    first.generation.resize_store();
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = first.workers.unwrap_or(cores);
    let (publish, generation) = watch::channel(Arc::new(first.generation));
    let (stop, stopping) = watch::channel(false);
    let (swapped, mut outcomes) = mpsc::unbounded_channel();
    let registry = Arc::new(Registry::default());
    // Before the workers make their balancers, which want to know the endpoints.
    let keeper = control.block_on(async {
        let mut keeper = Keeper::start();
        let first = generation.borrow().clone();
        keeper.adopt(&first).await;
        keeper
    });
    let (threads, sockets) = start_workers(workers, &generation, &stopping, &registry, &swapped)?;
    drop(swapped);
    let mut listeners = Listeners::new(sockets);
    let bound = listeners.prepare(&first.listeners)?;
    control.block_on(async {
        // Before anyone is told that we listen: a SIGHUP that comes first would end the process.
        let (mut hangup, mut terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
        let (mut interrupt, mut reopen) = (signal(SignalKind::interrupt())?, signal(SignalKind::user_defined1())?);
        acknowledged(&mut outcomes, workers).await.map_err(anyhow::Error::msg)?;
        listeners.adopt(bound);
        let serial = Arc::new(AtomicU64::new(1));
        let (reload_orders, mut reloads) = mpsc::channel(1);
        let admin = Arc::new(Admin { registry, generation, serial: serial.clone(), reload: reload_orders });
        let admin = AdminListeners::start(&first.admin, admin).await?;
        let drain = first.drain;
        let mut reloader =
            Reloader { assembly, publish, outcomes, workers, serial, watch, listeners, keeper, admin, drain };
        loop {
            tokio::select! {
                _ = hangup.recv() => drop(reloader.reload(&load).await),
                () = reloader.watch.changed() => reloader.reload_changed(&load).await,
                Some(order) = reloads.recv() => {
                    let order: ReloadOrder = order;
                    let _ = order.send(reloader.reload(&load).await);
                }
                _ = reopen.recv() => {
                    if let Some(log) = &reloader.publish.borrow().access_log {
                        log.reopen();
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        info!("stopping");
        let _ = stop.send(true);
        // Now, not at the end: another process may have bound the same paths by then.
        drop((reloader.listeners, reloader.admin, reloads));
        let ended = async { while reloader.outcomes.recv().await.is_some() {} };
        let store = reloader.publish.borrow().store.clone();
        tokio::select! {
            _ = ended => store.flush(FLUSH),
            _ = terminate.recv() => warn!("stopped at once"),
            _ = interrupt.recv() => warn!("stopped at once"),
            _ = tokio::time::sleep(reloader.drain) => {
                warn!("the drain time has passed; what still ran is cut off");
                store.flush(FLUSH);
            }
        }
        anyhow::Ok(())
    })?;
    for thread in threads.into_iter().filter(|thread| thread.is_finished()) {
        if let Ok(outcome) = thread.join() {
            outcome?;
        }
    }
    Ok(())
}

/// What is stored may take so long to reach the disk at the end.
const FLUSH: Duration = Duration::from_secs(5);

/// Serves generations one after the other.
struct Reloader {
    assembly: Assembly,
    publish: watch::Sender<Arc<Generation>>,
    outcomes: mpsc::UnboundedReceiver<Result<(), String>>,
    workers: usize,
    serial: Arc<AtomicU64>,
    watch: Watch,
    listeners: Listeners,
    keeper: Keeper,
    admin: AdminListeners,
    /// Exchanges that still run so long after the first signal to stop are cut off.
    drain: Duration,
}

impl Reloader {
    /// Loads and serves what there is.
    async fn reload(&mut self, load: &impl Fn() -> Result<Files, Problems>) -> Result<String, String> {
        let (loaded, _) = self.watch.load(load);
        self.take(loaded).await
    }

    /// The same if it is other than what was loaded before: a file that was touched, or that a command has already told
    /// of, is no change.
    async fn reload_changed(&mut self, load: &impl Fn() -> Result<Files, Problems>) {
        let (loaded, is_other) = self.watch.load(load);
        if is_other {
            let _ = self.take(loaded).await;
        }
    }

    /// Builds the next generation whole, then lets all workers swap; any mistake leaves the old one serving.
    async fn take(&mut self, loaded: Result<Files, Problems>) -> Result<String, String> {
        let outcome = self.replace(loaded).await;
        match &outcome {
            Ok(message) => info!("{message}"),
            Err(message) => error!("{message}"),
        }
        outcome
    }

    async fn replace(&mut self, loaded: Result<Files, Problems>) -> Result<String, String> {
        let refused = |why: &dyn Display| format!("not reloaded, the old manifest goes on serving:\n{why}");
        let next = self.assemble(loaded).map_err(|problems| refused(&problems))?;
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

    /// Assembles on a thread of its own: plugins run there, and must find no runtime that they could block, nor anyone
    /// whom they could take along.
    fn assemble(&mut self, loaded: Result<Files, Problems>) -> Result<Assembled, String> {
        let files = loaded.map_err(|problems| problems.to_string())?;
        let assembly = &mut self.assembly;
        let assembled = std::thread::scope(|scope| scope.spawn(|| assembly.assemble(&files)).join());
        match assembled {
            Ok(assembled) => assembled.map_err(|problems| problems.to_string()),
            Err(_) => Err("the manifest could not be assembled; the lines above say why".into()),
        }
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
