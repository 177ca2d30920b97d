//! A backend with configurable behaviour, and clients that count outcomes.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Message, PATIENCE, Proxy, read_message};

/// The behaviour of a backend.
#[derive(Clone, Debug, PartialEq)]
pub enum Does {
    /// Answers 200 with the backend's name.
    Answer,
    /// Answers 200 with the backend's name, after a time.
    AnswerLate(Duration),
    /// Answers with another status.
    Status(u16),
    /// Reads the request, then closes with a reset.
    Reset,
    /// Reads the request, and sends nothing.
    Hang,
    /// Sends bytes that are no HTTP.
    Babble,
    /// Sends half of the announced body.
    Half,
}

/// A backend on an address of its own, which can be killed and restarted.
pub struct Backend {
    pub address: String,
    pub name: String,
    state: Arc<State>,
    alive: Option<Alive>,
}

struct State {
    does: Mutex<Does>,
    requests: AtomicU64,
    seen: Mutex<Vec<Message>>,
    /// The open connections, which are cut when the backend is killed.
    open: Mutex<Vec<TcpStream>>,
}

struct Alive {
    over: Arc<AtomicBool>,
    accepting: std::thread::JoinHandle<()>,
}

impl Backend {
    /// Starts a backend that answers 200.
    pub fn start(name: &str) -> Backend {
        Backend::listening(name, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// Starts a backend that answers at a listener.
    pub fn listening(name: &str, listener: TcpListener) -> Backend {
        let address = listener.local_addr().unwrap().to_string();
        let (does, requests) = (Mutex::new(Does::Answer), AtomicU64::new(0));
        let state = State { does, requests, seen: Mutex::default(), open: Mutex::default() };
        let mut backend = Backend { address, name: name.into(), state: Arc::new(state), alive: None };
        backend.listen(listener);
        backend
    }

    pub fn does(&self, what: Does) {
        *self.state.does.lock().unwrap() = what;
    }

    /// Returns the number of requests that the backend has read.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Returns the requests that the backend has read.
    pub fn seen(&self) -> Vec<Message> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Stops listening and cuts all connections, as a killed process does.
    pub fn kill(&mut self) {
        let alive = self.alive.take().unwrap();
        alive.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        alive.accepting.join().unwrap();
        for stream in self.state.open.lock().unwrap().drain(..) {
            reset(&stream);
        }
    }

    /// Listens again at the same address.
    pub fn revive(&mut self) {
        self.listen(TcpListener::bind(&self.address).unwrap());
    }

    fn listen(&mut self, listener: TcpListener) {
        let over = Arc::new(AtomicBool::new(false));
        let (state, name, ends) = (self.state.clone(), self.name.clone(), over.clone());
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                state.open.lock().unwrap().push(stream.try_clone().unwrap());
                let (state, name) = (state.clone(), name.clone());
                std::thread::spawn(move || state.serve(stream, &name));
            }
        });
        self.alive = Some(Alive { over, accepting });
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream, name: &str) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_message(&mut reader) {
            let does = self.does.lock().unwrap().clone();
            if request.start.starts_with("GET /healthz") {
                let healthy = does == Does::Answer;
                let answer = if healthy { answer(200, "all is well") } else { answer(500, "broken") };
                let _ = stream.write_all(answer.as_bytes());
                continue;
            }
            self.requests.fetch_add(1, Ordering::SeqCst);
            self.seen.lock().unwrap().push(request);
            let written = match does {
                Does::Answer => stream.write_all(answer(200, name).as_bytes()),
                Does::AnswerLate(after) => {
                    std::thread::sleep(after);
                    stream.write_all(answer(200, name).as_bytes())
                }
                Does::Status(code) => stream.write_all(answer(code, name).as_bytes()),
                Does::Reset => return reset(&stream),
                Does::Hang => return drop(stream.read(&mut [0; 1])),
                Does::Babble => {
                    let _ = stream.write_all(b"good morning\r\n\r\n");
                    return;
                }
                Does::Half => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
                    return reset(&stream);
                }
            };
            if written.is_err() {
                return;
            }
        }
    }
}

fn answer(code: u16, content: &str) -> String {
    format!("HTTP/1.1 {code} Said\r\nContent-Length: {}\r\nX-Backend: {content}\r\n\r\n{content}", content.len())
}

/// Closes a connection with a reset.
fn reset(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_linger(Some(Duration::ZERO));
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

/// The count of each outcome that clients saw: `200 a` with the backend's name, or `lost` without a response.
#[derive(Debug, Default, PartialEq)]
pub struct Seen(pub BTreeMap<String, usize>);

impl Seen {
    /// Returns the count of a status, from any backend.
    pub fn status(&self, code: u16) -> usize {
        let code = code.to_string();
        self.0.iter().filter(|(outcome, _)| outcome.starts_with(&code)).map(|(_, count)| count).sum()
    }

    /// Returns how often a backend answered with 200.
    pub fn of(&self, name: &str) -> usize {
        self.0.get(&format!("200 {name}")).copied().unwrap_or(0)
    }

    pub fn total(&self) -> usize {
        self.0.values().sum()
    }

    fn add(&mut self, response: Option<&Message>) {
        let outcome = match response {
            Some(response) => format!("{} {}", response.status(), response.field("x-backend").unwrap_or("-")),
            None => "lost".into(),
        };
        *self.0.entry(outcome).or_default() += 1;
    }

    fn join(mut self, other: Seen) -> Seen {
        other.0.into_iter().for_each(|(outcome, count)| *self.0.entry(outcome).or_default() += count);
        self
    }
}

/// Sends `count` requests in sequence on one connection.
pub fn ask(proxy: &Proxy, requests: usize, head: &str) -> Seen {
    client(&proxy.address, head, |seen| seen.total() < requests)
}

/// Runs clients that send requests without a pause during an action; returns all their outcomes.
pub fn load(proxy: &Proxy, clients: usize, head: &str, meanwhile: impl FnOnce()) -> Seen {
    let over = Arc::new(AtomicBool::new(false));
    let start = |_| {
        let (address, head, over) = (proxy.address.clone(), head.to_string(), over.clone());
        std::thread::spawn(move || client(&address, &head, |_| !over.load(Ordering::SeqCst)))
    };
    let clients: Vec<_> = (0..clients).map(start).collect();
    meanwhile();
    over.store(true, Ordering::SeqCst);
    clients.into_iter().map(|client| client.join().unwrap()).fold(Seen::default(), Seen::join)
}

fn client(address: &str, head: &str, goes_on: impl Fn(&Seen) -> bool) -> Seen {
    let mut seen = Seen::default();
    let mut connection: Option<BufReader<TcpStream>> = None;
    while goes_on(&seen) {
        let reader = connection.get_or_insert_with(|| {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            BufReader::new(stream)
        });
        let sent = reader.get_mut().write_all(format!("{head}\r\nHost: example.org\r\n\r\n").as_bytes());
        let response = sent.ok().and_then(|()| read_message(reader));
        seen.add(response.as_ref());
        if response.is_none_or(|response| response.field("connection") == Some("close")) {
            connection = None;
        }
    }
    seen
}
