//! Clients: messages that they read, and clients that count outcomes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::PATIENCE;
use super::proxy::Proxy;

/// A message that a client or an origin received.
#[derive(Debug, Clone)]
pub struct Message {
    pub start: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    /// Returns the number that is the path of a request.
    pub fn number(&self) -> usize {
        self.start.split(['/', ' ']).nth(2).unwrap().parse().unwrap()
    }

    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let line = self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        line.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Closes a client connection by a reset, so that the proxy notices. A closed sending side alone does not mean that the
/// client is gone (RFC 9112 §9.6).
pub fn vanish(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Whether a connection whose other end has this port is open both ways, as far as the system has noticed. A busy system
/// may notice a close after bytes that were sent later on other connections.
pub fn is_open_to(port: u16) -> bool {
    let (sockets, port) = (std::fs::read_to_string("/proc/net/tcp").unwrap(), format!(":{port:04X}"));
    let mut sockets = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // The remote address and the state, of which 01 is that of an open connection.
    sockets.any(|socket| socket[2].ends_with(&port) && socket[3] == "01")
}

/// Reads a message framed by its length, by chunks, or by the end of the connection.
pub fn read_message(reader: &mut impl BufRead) -> Option<Message> {
    let mut line = || {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_string())
    };
    let start = line()?;
    let mut fields = Vec::new();
    while let Some((name, value)) = line()?.split_once(':') {
        fields.push((name.to_string(), value.trim_start().to_string()));
    }
    let mut message = Message { start, fields, body: Vec::new() };
    if message.field("transfer-encoding") == Some("chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                return Some(message);
            }
            message.body.extend(&chunk[..size]);
        }
    }
    if let Some(length) = message.field("content-length").and_then(|length| length.parse().ok()) {
        message.body = vec![0; length];
        reader.read_exact(&mut message.body).ok()?;
    } else if message.start.starts_with("HTTP/") && message.field("connection") == Some("close") {
        reader.read_to_end(&mut message.body).ok()?;
    }
    Some(message)
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
