//! Origins: functions that answer, and a backend with configurable behaviour.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::client::{Message, read_message};

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

/// Returns an address that refuses connections. It stays bound, so that no test that listens later receives its port.
pub fn refusing() -> String {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    // The test itself may listen there later, by the number of the port.
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    // Until the tests end.
    std::mem::forget(socket);
    address
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

/// Starts an origin that answers each request with the result of `answer`; returns its address.
pub fn origin(answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + Clone + 'static) -> String {
    raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_message(&mut reader) {
            if stream.write_all(&answer(&request)).is_err() {
                break;
            }
        }
    })
}

/// Starts an origin that passes each connection to `serve`; returns its address.
pub fn raw_origin(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Starts an origin that answers `/N` with N bytes.
pub fn sized() -> String {
    origin(|request| ok(&"x".repeat(request.number())))
}

/// Starts an origin that answers with the head that it received.
pub fn echo() -> String {
    origin(|request| {
        let fields: String = request.fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        ok(&format!("{}\n{fields}", request.start))
    })
}

pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Origin: yes\r\n\r\n{body}", body.len()).into_bytes()
}
