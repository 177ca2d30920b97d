//! A worker: one thread with its own runtime, listeners, connections, pools and instances.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use rustix::net::{SocketFlags, accept_with};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::downstream::admission::{Admission, Entrance};
use crate::downstream::handshake::{self, WorkerShared};
use crate::exchange::waiting::{self, call_timer};
use crate::generation::Generation;
use crate::generation::listener::Listener;
use crate::generation::worker_state::{ENDED_EXCHANGES, EndedExchange, LastingState, WorkerState};
use crate::net::byte_counter::ByteCounter;
use crate::net::deadline::{Clock, TICK};
use crate::net::tcp::{Tcp, ignore_new_clients};
use crate::net::turn::pace;
use crate::plugin::time_share::Shares;
use crate::protocol::proxy_protocol::ConnectionAddresses;
use crate::system::allocator;
use crate::system::descriptors::is_of_this_machine;
use crate::system::supervise::{Panicked, Task, guard, spawn, spawn_turns, supervised, turn};
use crate::telemetry::failure_log::{self, Topic};
use crate::telemetry::metrics::WorkerMetrics;
use crate::upstream::pool::Pools;

/// A bound socket for a worker.
pub enum ListeningSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// A change of the sockets of a worker, by the address in the manifest.
pub enum SocketChange {
    Open(Arc<str>, ListeningSocket),
    Close(Arc<str>),
}

/// The channels from the control thread to a worker.
pub struct WorkerChannels {
    /// The generation to serve.
    pub generation: watch::Receiver<Arc<Generation>>,
    /// The changes of the worker's sockets.
    pub sockets: mpsc::UnboundedReceiver<SocketChange>,
    /// Whether the process is to stop.
    pub stopping: watch::Receiver<bool>,
    /// The worker's metrics.
    pub worker_metrics: WorkerMetrics,
    /// The count of client connections, over all workers.
    pub admission: Arc<Admission>,
}

/// The interval in which pools are searched for idle connections, which live longer than their limit by at most this
/// time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The length of the accept queue; the system's own limit may be lower. At most this many connections may be left when
/// a listener is closed.
pub const BACKLOG: i32 = 4096;

/// The pause after the system has refused a connection, or while there is no descriptor for one more client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The time for which a socket that is closed ignores new clients and waits for handshakes that have begun: longer than
/// a round trip, and shorter than the second after which clients repeat a SYN that was ignored.
const HANDSHAKES: Duration = Duration::from_millis(500);

enum AcceptLoop {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A listener's address as the manifest has it, and as the log has it.
struct Named {
    address: Arc<str>,
    shown: Arc<str>,
    leaving: Rc<LeavingListeners>,
    /// The listener in `leaving` when the socket was closed; unset before.
    left: Rc<OnceCell<Arc<Listener>>>,
}

/// The listeners that the generation in service no longer has, for the clients that wait at their sockets until these
/// are closed.
#[derive(Default)]
struct LeavingListeners(RefCell<HashMap<Arc<str>, Arc<Listener>>>);

enum AcceptedSocket {
    Tcp(TcpStream, ConnectionAddresses),
    Unix(UnixStream),
}

/// Serves until stopped and all connections have ended. Sends the result of each swap to a generation to `swapped`.
pub fn run(orders: WorkerChannels, swapped: mpsc::UnboundedSender<Result<(), String>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(serve(orders, swapped))
}

async fn serve(orders: WorkerChannels, swapped: mpsc::UnboundedSender<Result<(), String>>) -> io::Result<()> {
    let WorkerChannels { generation, sockets, stopping, worker_metrics, admission } = orders;
    let worker = worker_metrics.worker;
    let pools = Pools::new(admission.descriptors().worker(worker));
    let first = generation.borrow().clone();
    let (alive, mut all_ended) = mpsc::channel::<()>(1);
    let (ended, endings) = mpsc::channel(ENDED_EXCHANGES);
    let shares = Shares::new(Instant::now());
    let lasting = LastingState { pools: pools.clone(), shares, alive: alive.downgrade(), ended };
    let prepared = match prepare(first, &lasting, &worker_metrics).await {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = swapped.send(Err(error.clone()));
            return Err(io::Error::other(error));
        }
    };
    let current = Rc::new(RefCell::new(Rc::new(prepared)));
    let clock = Clock::new();
    let _ = swapped.send(Ok(()));
    let sweeping = spawn_turns(Task::Sweep, sweep(pools.clone(), current.clone()));
    let ticking = spawn_turns(Task::Tick, tick(clock.clone(), pools.clone(), current.clone(), admission.clone()));
    let pacing = spawn_turns(Task::Turns, keep_pace());
    let observing = spawn_turns(Task::Observer, observe(endings, clock.clone()));
    let leaving = Rc::new(LeavingListeners::default());
    let swaps = Swaps { current: current.clone(), leaving: leaving.clone(), swapped };
    let swapping = spawn_turns(Task::Swap, swap(generation, worker_metrics, lasting, swaps));
    let worker_shared = WorkerShared { current, clock: clock.clone(), admission, worker };
    listen(sockets, worker_shared, leaving, alive, stopping).await;
    clock.stop();
    // Every connection holds a sender, so this ends with the last connection.
    let _ = all_ended.recv().await;
    sweeping.abort();
    pacing.abort();
    ticking.abort();
    swapping.abort();
    observing.abort();
    Ok(())
}

/// The state that a swap to another generation changes, and the channel for its result.
struct Swaps {
    current: Rc<RefCell<Rc<WorkerState>>>,
    leaving: Rc<LeavingListeners>,
    swapped: mpsc::UnboundedSender<Result<(), String>>,
}

async fn swap(
    mut generation: watch::Receiver<Arc<Generation>>,
    worker_metrics: WorkerMetrics,
    lasting: LastingState,
    Swaps { current, leaving, swapped }: Swaps,
) {
    while generation.changed().await.is_ok() {
        let next = generation.borrow_and_update().clone();
        // What the old view of the worker does at its end is no part of the swap.
        let outcome = prepare(next, &lasting, &worker_metrics).await;
        let outcome = outcome.map(|next| {
            leaving.update(&current.borrow().generation, &next.generation);
            drop(guard(Task::Swap, || current.replace(Rc::new(next)).retire()));
        });
        let _ = swapped.send(outcome);
    }
}

/// The worker's view of a generation, whose instances are made by another thread. Whatever goes wrong is told: who waits
/// for the worker would wait for ever.
async fn prepare(
    generation: Arc<Generation>,
    lasting: &LastingState,
    worker_metrics: &WorkerMetrics,
) -> Result<WorkerState, String> {
    let made = || WorkerState::new(generation, lasting.clone(), worker_metrics.clone(), Instant::now());
    let worker = guard(Task::Swap, made).map_err(|panicked| panicked.to_string())?;
    worker.warm().await.map_err(|failure| failure.to_string())?;
    Ok(worker)
}

async fn tick(clock: Rc<Clock>, pools: Rc<Pools>, current: Rc<RefCell<Rc<WorkerState>>>, admission: Arc<Admission>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut known = admission.wakes();
    loop {
        ticks.tick().await;
        // Each in a turn of its own: a failure in one delays no deadline.
        let _ = guard(Task::Tick, || {
            clock.tick();
            if std::mem::replace(&mut known, admission.wakes()) != known {
                clock.wake_all();
            }
            pools.yield_to_waiters(clock.now());
            failure_log::report();
            admission.tick(clock.now());
            if admission.is_starved(clock.now()) {
                pools.close_idle();
            }
        });
        let _ = guard(Task::Timer, || {
            let worker = current.borrow().clone();
            for timer in worker.tick(clock.now()) {
                spawn(Task::Timer, call_timer(timer, clock.clone()));
            }
        });
    }
}

/// Begins the turns of computations, after a panic too: else all computations would wait for ever.
async fn keep_pace() {
    while supervised(Task::Turns, pace()).await.is_err() {}
}

/// Calls the observers of exchanges that were queued, each on a task of its own.
async fn observe(mut endings: mpsc::Receiver<EndedExchange>, clock: Rc<Clock>) {
    while let Some(ended) = endings.recv().await {
        spawn(Task::Observer, waiting::observe(ended, clock.clone()));
    }
}

async fn sweep(pools: Rc<Pools>, current: Rc<RefCell<Rc<WorkerState>>>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let _ = guard(Task::Sweep, || {
            let worker = current.borrow().clone();
            let idle_times = worker.generation.upstreams.iter().map(|upstream| upstream.rules.idle_timeout);
            pools.sweep(Instant::now(), idle_times.max().unwrap_or(SWEEP_INTERVAL));
            allocator::return_free_memory();
        });
    }
}

/// Accepts at the sockets that the worker receives, until stopped.
///
/// Every connection holds `alive`: the worker ends with the last connection.
async fn listen(
    mut sockets: mpsc::UnboundedReceiver<SocketChange>,
    worker_shared: WorkerShared,
    leaving: Rc<LeavingListeners>,
    alive: mpsc::Sender<()>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut accepting = HashMap::new();
    loop {
        let order = tokio::select! {
            order = sockets.recv() => order,
            _ = stopping.wait_for(|stopping| *stopping) => None,
        };
        turn(Task::Worker);
        match order {
            Some(SocketChange::Open(address, socket)) => match AcceptLoop::new(socket) {
                Ok(listener) => {
                    let (close, closed) = oneshot::channel::<()>();
                    let named = Named::new(address.clone(), &listener, leaving.clone());
                    let left = named.left.clone();
                    let task = keep_accepting(listener, named, closed, worker_shared.clone(), alive.clone());
                    accepting.insert(address, (close, left, spawn_turns(Task::Accept, task)));
                }
                Err(error) => tracing::error!(%address, %error, "not listening"),
            },
            // Its task ends by itself.
            Some(SocketChange::Close(address)) => {
                if let Some((close, left, _)) = accepting.remove(&address) {
                    leaving.get(&address).into_iter().for_each(|listener| drop(left.set(listener)));
                    let _ = close.send(());
                }
            }
            None => break,
        }
    }
    for (close, _, task) in accepting.into_values() {
        drop(close);
        let _ = task.await;
    }
}

/// Accepts until closed, and continues after a panic.
async fn keep_accepting(
    listener: AcceptLoop,
    named: Named,
    mut closed: oneshot::Receiver<()>,
    worker_shared: WorkerShared,
    alive: mpsc::Sender<()>,
) {
    loop {
        let accepting = accept(&listener, &named, &mut closed, &worker_shared, &alive);
        match supervised(Task::Accept, accepting).await {
            Err(Panicked(_)) if !closed.is_terminated() => tokio::time::sleep(ACCEPT_PAUSE).await,
            _ => break,
        }
    }
    if let Some(left) = named.left.get() {
        named.leaving.forget(&named.address, left);
    }
}

/// Accepts connections until the socket is closed: by a message if another listener takes the address over, or the
/// manifest no longer has it, and by a dropped sender if the process stops. Clients that are queued by then are still
/// served.
async fn accept(
    listener: &AcceptLoop,
    named: &Named,
    closed: &mut oneshot::Receiver<()>,
    worker_shared: &WorkerShared,
    alive: &mpsc::Sender<()>,
) {
    // The number of connections that may still be accepted after closing; `None` before.
    let mut left = None;
    // The end of the time in which handshakes that have begun may end; `None` if the process stops.
    let mut grace = None;
    loop {
        let queued = left.filter(|left| *left > 0).and_then(|_| listener.accept_queued());
        let accepted = match queued {
            Some(accepted) => accepted,
            None => tokio::select! {
                biased;
                end = &mut *closed, if left.is_none() => {
                    left = Some(BACKLOG);
                    grace = end.is_ok().then(|| listener.begin_close()).flatten();
                    continue;
                }
                accepted = listener.accept(), if left != Some(0) => accepted,
                () = grace_end(grace), if left.is_some() => match grace.take() {
                    // Once more, for clients of which the runtime has not told yet.
                    Some(_) => continue,
                    None => return,
                },
            },
        };
        left = left.map(|left| left - 1);
        match accepted {
            Ok(accepted) => {
                while !worker_shared.admission.has_room(accepted.descriptor(), worker_shared.clock.now()) {
                    let pause = tokio::time::sleep(ACCEPT_PAUSE);
                    tokio::select! {
                        end = &mut *closed, if left.is_none() => {
                            left = Some(BACKLOG);
                            grace = end.is_ok().then(|| listener.begin_close()).flatten();
                        }
                        () = pause => {}
                    }
                }
                admit(accepted, named, worker_shared, alive);
            }
            Err(error) => {
                if is_of_this_machine(&error) {
                    worker_shared.admission.record_refusal(&error, worker_shared.clock.now());
                } else {
                    // A connection that its client has closed before is no failure.
                    let is_gone = error.kind() == io::ErrorKind::ConnectionAborted;
                    if !is_gone && failure_log::admits(Topic::Accept, &named.shown) {
                        tracing::warn!(listener = &*named.shown, %error, "connection not accepted");
                    }
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits until the time for handshakes that have begun is over; not at all without one.
async fn grace_end(grace: Option<tokio::time::Instant>) {
    if let Some(grace) = grace {
        tokio::time::sleep_until(grace).await;
    }
}

/// Serves a client on a task of its own, which ends with the connection. Rejects the client if there are too many.
fn admit(accepted: AcceptedSocket, named: &Named, worker_shared: &WorkerShared, alive: &mpsc::Sender<()>) {
    // A socket is closed only after the swap to a generation without its listener.
    let known = worker_shared.current.borrow().generation.listeners.get(&named.address).cloned();
    let known = known.or_else(|| named.leaving.get(&named.address));
    let Some(listener) = known else { return };
    let entrance = Entrance { listener, address: named.shown.clone() };
    let client = match &accepted {
        AcceptedSocket::Tcp(_, addresses) => Some(addresses.client.ip()),
        AcceptedSocket::Unix(_) => None,
    };
    let Some(admitted) =
        worker_shared.admission.admit(&entrance, client, worker_shared.worker, worker_shared.clock.now())
    else {
        return;
    };
    let presence = admitted.presence();
    let worker_shared = worker_shared.clone();
    let task = match accepted {
        AcceptedSocket::Tcp(stream, addresses) => {
            let (stream, addresses) = (ByteCounter::new(Tcp(stream)), Some(addresses));
            serve_client(handshake::serve(worker_shared, stream, entrance, admitted, addresses), alive)
        }
        AcceptedSocket::Unix(stream) => {
            serve_client(handshake::serve(worker_shared, ByteCounter::new(stream), entrance, admitted, None), alive)
        }
    };
    presence.ends_with(task);
}

impl Named {
    fn new(address: Arc<str>, listener: &AcceptLoop, leaving: Rc<LeavingListeners>) -> Self {
        let shown = listener.shown(&address);
        Named { address, shown, leaving, left: Rc::default() }
    }
}

impl LeavingListeners {
    fn get(&self, address: &str) -> Option<Arc<Listener>> {
        self.0.borrow().get(address).cloned()
    }

    /// Removes a listener whose socket is closed. Meanwhile the manifest may have had its address again, and removed it again.
    fn forget(&self, address: &str, listener: &Arc<Listener>) {
        let mut leaving = self.0.borrow_mut();
        if leaving.get(address).is_some_and(|left| Arc::ptr_eq(left, listener)) {
            leaving.remove(address);
        }
    }

    /// Adds the listeners that only the old generation has, and removes those that the next one has again.
    fn update(&self, old: &Generation, next: &Generation) {
        let is_gone = |address: &Arc<str>| !next.listeners.contains_key(address);
        let mut leaving = self.0.borrow_mut();
        leaving.retain(|address, _| is_gone(address));
        let gone = old.listeners.iter().filter(|(address, _)| is_gone(address));
        leaving.extend(gone.map(|(address, listener)| (address.clone(), listener.clone())));
    }
}

impl AcceptLoop {
    fn new(socket: ListeningSocket) -> io::Result<Self> {
        match socket {
            ListeningSocket::Tcp(listener) => TcpListener::from_std(listener).map(AcceptLoop::Tcp),
            ListeningSocket::Unix(listener) => UnixListener::from_std(listener).map(AcceptLoop::Unix),
        }
    }

    /// Returns the address for the log: with the port that the system has chosen, where the manifest leaves that to it.
    fn shown(&self, address: &Arc<str>) -> Arc<str> {
        let bound = match self {
            AcceptLoop::Tcp(listener) if address.ends_with(":0") => listener.local_addr().ok(),
            _ => None,
        };
        bound.map_or_else(|| address.clone(), |bound| bound.to_string().into())
    }

    /// Keeps new clients from the socket, and returns until when it must stay open for clients that are connecting
    /// already, which a close would reset. `None` if there are none: a client of a unix socket is connected at once.
    fn begin_close(&self) -> Option<tokio::time::Instant> {
        let AcceptLoop::Tcp(listener) = self else { return None };
        match ignore_new_clients(listener) {
            Ok(()) => Some(tokio::time::Instant::now() + HANDSHAKES),
            Err(error) => {
                tracing::debug!(%error, "new clients can't be kept from a socket that is closed");
                None
            }
        }
    }

    async fn accept(&self) -> io::Result<AcceptedSocket> {
        match self {
            AcceptLoop::Tcp(listener) => {
                let (stream, client) = listener.accept().await?;
                Ok(AcceptedSocket::tcp(stream, client))
            }
            AcceptLoop::Unix(listener) => Ok(AcceptedSocket::Unix(listener.accept().await?.0)),
        }
    }

    /// Accepts a client that the system has queued; `None` if there is none. Unlike `accept`, it doesn't rely on what
    /// the runtime knows of the socket: that is older than the order to close it, and one turn reads only a part of a
    /// long queue.
    fn accept_queued(&self) -> Option<io::Result<AcceptedSocket>> {
        let accepted = match self {
            AcceptLoop::Tcp(listener) => accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
                .map_err(io::Error::from)
                .and_then(|stream| TcpStream::from_std(stream.into()))
                .and_then(|stream| stream.peer_addr().map(|client| AcceptedSocket::tcp(stream, client))),
            AcceptLoop::Unix(listener) => accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
                .map_err(io::Error::from)
                .and_then(|stream| UnixStream::from_std(stream.into()))
                .map(AcceptedSocket::Unix),
        };
        match accepted {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            // Its client has left already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                Some(Err(io::ErrorKind::ConnectionAborted.into()))
            }
            accepted => Some(accepted),
        }
    }
}

impl AcceptedSocket {
    fn tcp(stream: TcpStream, client: SocketAddr) -> Self {
        let _ = stream.set_nodelay(true);
        let destination = stream.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        AcceptedSocket::Tcp(stream, ConnectionAddresses { client, destination })
    }

    fn descriptor(&self) -> usize {
        let descriptor = match self {
            AcceptedSocket::Tcp(stream, ..) => stream.as_raw_fd(),
            AcceptedSocket::Unix(stream) => stream.as_raw_fd(),
        };
        usize::try_from(descriptor).unwrap_or(0)
    }
}

fn serve_client(served: impl Future<Output = ()> + 'static, alive: &mpsc::Sender<()>) -> AbortHandle {
    spawn(Task::Connection, Alive { served, _alive: alive.clone() }).abort_handle()
}

pin_project! {
    /// A client's connection, which keeps its worker alive. Not an `async` block, which would have room for the
    /// connection twice, for as long as it lives.
    struct Alive<F> {
        #[pin]
        served: F,
        _alive: mpsc::Sender<()>,
    }
}

impl<F: Future> Future for Alive<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().served.poll(cx)
    }
}
