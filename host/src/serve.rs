//! The life of the process: sockets and workers at the start, generations while it runs, a graceful end.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::admin::{self, Admin, ReloadOrder};
use crate::assemble::{AdminAddress, Assembly};
use crate::config::manifest::Manifest;
use crate::config::problem::{Problems, Source};
use crate::generation::Generation;
use crate::metrics::{Place, Registry};
use crate::plugin::engine::Runtime;
use crate::watch::Watch;
use crate::worker::{self, Orders, Socket};

/// Exchanges that still run so long after the first signal are cut off.
const DRAIN: Duration = Duration::from_secs(30);

/// Connections that may wait to be accepted, per worker; the system's own limit may be lower.
const BACKLOG: i32 = 4096;

type Files = Vec<(Arc<Source>, Manifest)>;

/// Serves what `load` gives, at the start and at each reload, until told to stop.
pub fn run(load: impl Fn() -> Result<Files, Problems>, cache: Option<&Path>) -> anyhow::Result<()> {
    let mut assembly = Assembly::new(Runtime::start(cache)?);
    let mut watch = Watch::new();
    let files = load()?;
    watch.follow(&files);
    watch.differs(&files);
    let first = assembly.assemble(&files)?;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = first.workers.unwrap_or(cores).max(1);
    if first.listeners.is_empty() {
        anyhow::bail!("the manifest has no listener; add\n\n    [[listener]]\n    address = \"127.0.0.1:8080\"");
    }
    let mut sockets: Vec<Vec<Socket>> = (0..workers).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for address in &first.listeners {
        addresses.push(bind(address, &mut sockets).with_context(|| format!("can't listen at {address}"))?);
    }
    let (publish, generation) = watch::channel(Arc::new(first.generation));
    let (stop, stopping) = watch::channel(false);
    let (swapped, mut outcomes) = mpsc::unbounded_channel();
    let registry = Arc::new(Registry::default());
    let mut threads = Vec::new();
    for (number, sockets) in sockets.into_iter().enumerate() {
        let (generation, stopping) = (generation.clone(), stopping.clone());
        let place = Place { registry: registry.clone(), worker: number };
        let (orders, swapped) = (Orders { generation, stopping, place }, swapped.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{number}"));
        threads.push(thread.spawn(move || worker::run(sockets, orders, swapped))?);
    }
    drop(swapped);
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    control.block_on(async {
        // Before anyone is told that we listen: a SIGHUP that comes first would end the process.
        let (mut hangup, mut terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
        let mut interrupt = signal(SignalKind::interrupt())?;
        acknowledged(&mut outcomes, workers).await.map_err(anyhow::Error::msg)?;
        addresses.iter().for_each(|address| info!("listening at {address}"));
        let mut reopen = signal(SignalKind::user_defined1())?;
        let serial = Arc::new(AtomicU64::new(1));
        let (reload_orders, mut reloads) = mpsc::channel(1);
        let admin = Admin { registry, generation, serial: serial.clone(), reload: reload_orders };
        start_admin(first.admin, admin).await?;
        let mut reloader = Reloader { assembly, publish, outcomes, workers, serial, watch };
        loop {
            tokio::select! {
                _ = hangup.recv() => drop(reloader.reload(&load).await),
                () = reloader.watch.changed() => {
                    if load().map_or(true, |files| reloader.watch.differs(&files)) {
                        drop(reloader.reload(&load).await);
                    }
                }
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
        let ended = async { while reloader.outcomes.recv().await.is_some() {} };
        tokio::select! {
            _ = ended => {}
            _ = terminate.recv() => warn!("stopped at once"),
            _ = interrupt.recv() => warn!("stopped at once"),
            _ = tokio::time::sleep(DRAIN) => warn!("the drain time has passed; what still ran is cut off"),
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

/// Serves generations one after the other.
struct Reloader {
    assembly: Assembly,
    publish: watch::Sender<Arc<Generation>>,
    outcomes: mpsc::UnboundedReceiver<Result<(), String>>,
    workers: usize,
    serial: Arc<AtomicU64>,
    watch: Watch,
}

impl Reloader {
    /// Builds the next generation whole, then lets all workers swap; any mistake leaves the old one serving.
    async fn reload(&mut self, load: &impl Fn() -> Result<Files, Problems>) -> Result<String, String> {
        let next = load().and_then(|files| {
            self.watch.follow(&files);
            self.watch.differs(&files);
            self.assembly.assemble(&files)
        });
        let next = next.map_err(|problems| {
            error!("not reloaded, the old manifest goes on serving:\n{problems}");
            format!("not reloaded, the old manifest goes on serving:\n{problems}")
        })?;
        self.publish.send_replace(Arc::new(next.generation));
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        match acknowledged(&mut self.outcomes, self.workers).await {
            Ok(()) => {
                info!(generation = serial, "reloaded");
                Ok(format!("reloaded: generation {serial}"))
            }
            Err(error) => {
                error!("a worker goes on with the old manifest: {error}");
                Err(format!("a worker goes on with the old manifest: {error}"))
            }
        }
    }
}

/// Starts the admin listener. At its default place it gives way to another process's.
async fn start_admin(wanted: AdminAddress, admin: Admin) -> anyhow::Result<()> {
    let address = match wanted {
        AdminAddress::Off => return Ok(()),
        AdminAddress::At(address) => address.to_string(),
        AdminAddress::Default => admin::DEFAULT_ADDRESS.into(),
    };
    let listener = match tokio::net::TcpListener::bind(&address).await {
        Ok(listener) => listener,
        Err(error) if wanted == AdminAddress::Default => {
            warn!(%error, "no admin listener at {address}; choose a place with [admin] address");
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| format!("the admin listener can't listen at {address}")),
    };
    info!("admin at http://{}", listener.local_addr()?);
    tokio::task::spawn_local(admin::serve(listener, Arc::new(admin)));
    Ok(())
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

/// Binds an address once for each worker; gives it as it came out.
fn bind(address: &str, sockets: &mut [Vec<Socket>]) -> anyhow::Result<String> {
    if let Some(path) = address.strip_prefix("unix:") {
        // A socket that nobody listens at is left from a run that was killed.
        if std::os::unix::net::UnixStream::connect(path).is_err() {
            let _ = std::fs::remove_file(path);
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        for sockets in sockets {
            sockets.push(Socket::Unix(listener.try_clone()?, address.into()));
        }
        return Ok(address.into());
    }
    let mut address: SocketAddr = address.parse()?;
    for sockets in sockets {
        let listener = bind_tcp(address)?;
        address = listener.local_addr()?;
        sockets.push(Socket::Tcp(listener));
    }
    Ok(format!("http://{address}"))
}

fn bind_tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
