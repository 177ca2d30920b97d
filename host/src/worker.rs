//! A worker: one thread with a runtime, listeners, connections, pools and instances of its own.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;

use crate::clock::{Clock, TICK};
use crate::connection::Connection;
use crate::generation::{Generation, Running};
use crate::head::Peer;
use crate::metrics::Place;
use crate::upstream::Pools;

/// A bound socket, handed to a worker.
pub enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, Arc<str>),
}

/// What the front tells all workers.
#[derive(Clone)]
pub struct Orders {
    /// The generation to serve.
    pub generation: watch::Receiver<Arc<Generation>>,
    /// Turns true when the process is to stop.
    pub stopping: watch::Receiver<bool>,
    /// Where the worker's figures are kept.
    pub place: Place,
}

/// Pools are looked through this often; an idle connection lives at most so much longer than its limit.
const SWEEP: Duration = Duration::from_secs(5);

/// How long to wait after the system refused a connection, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until told to stop and all connections have ended. `swapped` hears of each generation that is in service.
pub fn run(sockets: Vec<Socket>, orders: Orders, swapped: mpsc::UnboundedSender<Result<(), String>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(serve(sockets, orders, swapped))
}

async fn serve(
    sockets: Vec<Socket>,
    orders: Orders,
    swapped: mpsc::UnboundedSender<Result<(), String>>,
) -> io::Result<()> {
    let pools = Rc::new(Pools::default());
    let first = orders.generation.borrow().clone();
    let running = Running::new(first, &pools, orders.place.clone(), Instant::now()).map_err(io::Error::other)?;
    let current = Rc::new(RefCell::new(Rc::new(running)));
    let (alive, mut all_ended) = mpsc::channel::<()>(1);
    let clock = Clock::new();
    let mut accepting = Vec::new();
    for socket in sockets {
        let (current, stopping, alive) = (current.clone(), orders.stopping.clone(), alive.clone());
        let clock = clock.clone();
        accepting.push(match socket {
            Socket::Tcp(listener) => {
                spawn_local(accept_tcp(TcpListener::from_std(listener)?, current, clock, stopping, alive))
            }
            Socket::Unix(listener, path) => {
                spawn_local(accept_unix(UnixListener::from_std(listener)?, path, current, clock, stopping, alive))
            }
        });
    }
    drop(alive);
    let _ = swapped.send(Ok(()));
    let sweeping = spawn_local(sweep(pools.clone(), current.clone()));
    let ticking = spawn_local(tick(clock.clone(), current.clone()));
    let swapping = spawn_local(swap(orders, pools, current, swapped));
    for task in accepting {
        let _ = task.await;
    }
    clock.stop();
    // Every connection holds a sender, so this ends with the last of them.
    let _ = all_ended.recv().await;
    sweeping.abort();
    ticking.abort();
    swapping.abort();
    Ok(())
}

async fn swap(
    mut orders: Orders,
    pools: Rc<Pools>,
    current: Rc<RefCell<Rc<Running>>>,
    swapped: mpsc::UnboundedSender<Result<(), String>>,
) {
    while orders.generation.changed().await.is_ok() {
        let next = orders.generation.borrow_and_update().clone();
        let outcome = Running::new(next, &pools, orders.place.clone(), Instant::now())
            .map(|next| drop(current.replace(Rc::new(next))));
        let _ = swapped.send(outcome.map_err(|trap| trap.to_string()));
    }
}

async fn tick(clock: Rc<Clock>, current: Rc<RefCell<Rc<Running>>>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        clock.tick();
        let running = current.borrow().clone();
        running.tick(clock.now());
    }
}

async fn sweep(pools: Rc<Pools>, current: Rc<RefCell<Rc<Running>>>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let running = current.borrow().clone();
        let idle_times = running.generation.upstreams.iter().map(|upstream| upstream.rules.idle_timeout);
        pools.sweep(Instant::now(), idle_times.max().unwrap_or(SWEEP));
    }
}

async fn accept_tcp(
    listener: TcpListener,
    current: Rc<RefCell<Rc<Running>>>,
    clock: Rc<Clock>,
    mut stopping: watch::Receiver<bool>,
    alive: mpsc::Sender<()>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        match accepted {
            Ok((stream, client)) => {
                let _ = stream.set_nodelay(true);
                let listener = stream.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
                let peer = Arc::new(Peer::tcp(client, listener));
                spawn_local(serve_one(Connection::new(stream, peer, current.clone(), &clock), alive.clone()));
            }
            Err(error) => refused(error).await,
        }
    }
}

async fn accept_unix(
    listener: UnixListener,
    path: Arc<str>,
    current: Rc<RefCell<Rc<Running>>>,
    clock: Rc<Clock>,
    mut stopping: watch::Receiver<bool>,
    alive: mpsc::Sender<()>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let peer = Arc::new(Peer::unix(&path));
                spawn_local(serve_one(Connection::new(stream, peer, current.clone(), &clock), alive.clone()));
            }
            Err(error) => refused(error).await,
        }
    }
}

async fn refused(error: io::Error) {
    tracing::warn!(%error, "a connection was not accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Serves a client; `alive` tells the worker that it is not done.
async fn serve_one(connection: impl Future<Output = ()>, alive: mpsc::Sender<()>) {
    connection.await;
    drop(alive);
}
