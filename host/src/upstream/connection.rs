//! A connection to an endpoint, driven by the exchange that uses it: no task of its own to wake and switch to.
//!
//! hyper's connection is a future that has to be polled for anything to happen. While an exchange uses it, the
//! exchange polls it; while it is idle, nobody does. Only where the response has begun before the request is all
//! sent does it get a task, since the client may read nothing before it has sent everything.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use hyper::client::conn::http1::{self, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Error, Kind};
use crate::upload::RequestBody;
use crate::wire::Wire;

/// What carries a connection.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Transport for T {}

type Driving = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

/// A connection.
pub struct Connection {
    pub sender: SendRequest<RequestBody>,
    pub driver: Driver,
}

/// What makes a connection go on.
pub struct Driver {
    /// None once the connection is over, or has a task.
    connection: Option<Driving>,
    relay: Arc<Relay>,
    /// The relay as a waker, made once.
    waker: Waker,
}

/// Stands between the connection and the task of the exchange: what the two ends of the connection's channels wake
/// while they are being polled together is polled again at once, in place of a turn of the scheduler.
struct Relay {
    polling: AtomicBool,
    again: AtomicBool,
    // Locked by this worker only, so never contended; a lock because wakers may be sent anywhere.
    task: Mutex<Waker>,
}

impl Connection {
    /// Speaks HTTP/1.1 over a transport.
    pub async fn new(transport: impl Transport) -> Result<Self, Error> {
        let failed = |error| Error::new(Kind::ConnectionTerminated, error);
        let (sender, connection) = http1::Builder::new().handshake(Wire::new(transport)).await.map_err(failed)?;
        let task = Mutex::new(Waker::noop().clone());
        let relay = Arc::new(Relay { polling: AtomicBool::new(false), again: AtomicBool::new(false), task });
        let driver = Driver { connection: Some(Box::pin(connection)), waker: relay.clone().into(), relay };
        Ok(Connection { sender, driver })
    }

    /// Leaves the exchange behind; says whether the connection can serve another.
    pub fn rest(&mut self) -> bool {
        let sender = &mut self.sender;
        let mut idle = Context::from_waker(Waker::noop());
        let ready = self.driver.poll(&mut idle, |cx| sender.poll_ready(cx).map(|ready| ready.is_ok()));
        ready == Poll::Ready(true) && !self.sender.is_closed()
    }
}

impl Driver {
    /// Polls something that waits for the connection, together with the connection, until neither moves the other.
    pub fn poll<T>(&mut self, cx: &mut Context<'_>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.relay.begin(cx.waker());
        let relay = self.relay.clone();
        let mut own = Context::from_waker(&self.waker);
        let polled = loop {
            if let Some(connection) = &mut self.connection
                && let Poll::Ready(ended) = connection.as_mut().poll(&mut own)
            {
                if let Err(error) = ended {
                    tracing::debug!(%error, "upstream connection");
                }
                // Dropping it answers whoever still waits for it.
                self.connection = None;
            }
            let polled = poll(&mut own);
            if polled.is_ready() || !relay.again() {
                break polled;
            }
        };
        relay.end();
        polled
    }

    /// Gives the connection a task of its own.
    pub fn detach(&mut self) {
        if let Some(connection) = self.connection.take() {
            tokio::task::spawn_local(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "upstream connection");
                }
            });
        }
    }
}

impl Relay {
    fn begin(&self, task: &Waker) {
        self.polling.store(true, Ordering::Relaxed);
        self.again.store(false, Ordering::Relaxed);
        let mut known = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.will_wake(task) {
            known.clone_from(task);
        }
    }

    fn again(&self) -> bool {
        self.again.swap(false, Ordering::Relaxed)
    }

    fn end(&self) {
        self.polling.store(false, Ordering::Relaxed);
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.polling.load(Ordering::Relaxed) {
            self.again.store(true, Ordering::Relaxed);
        } else {
            self.task.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
        }
    }
}
