//! An endpoint that speaks HTTP/2 in clear, frame by frame.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::http2::{ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS};
use crate::support::raw_origin;

pub const REFUSED_STREAM: u32 = 7;

/// A request without its fields.
pub struct Request {
    pub stream: u32,
    pub content: Vec<u8>,
}

/// Starts an endpoint that gives each connection to `serve`, after the preface; returns its address in a manifest.
pub fn endpoint(serve: impl Fn(&mut Raw) + Send + Sync + Clone + 'static) -> String {
    let address = raw_origin(move |stream| {
        let mut raw = Raw(stream);
        raw.0.set_nodelay(true).unwrap();
        let mut preface = [0; 24];
        // A connection that only looks whether the endpoint listens sends nothing.
        if raw.0.read_exact(&mut preface).is_ok() {
            raw.send(SETTINGS, 0, 0, &[]);
            serve(&mut raw);
        }
    });
    format!("h2c://{address}")
}

/// Starts an endpoint that answers 200, unless `refuse` returns `true` for the number of the request, from 0.
pub fn answering(refuse: impl Fn(usize, &Request, &mut Raw) -> bool + Send + Sync + Clone + 'static) -> String {
    let requests = Arc::new(AtomicUsize::new(0));
    endpoint(move |raw| {
        while let Some(request) = raw.next_request() {
            let number = requests.fetch_add(1, Ordering::SeqCst);
            if !refuse(number, &request, raw) {
                raw.respond(request.stream, &[], &request.content);
            }
        }
    })
}

impl Raw {
    /// Waits for the end of the next request, if requests arrive in sequence; `None` at the end of the connection.
    pub fn next_request(&mut self) -> Option<Request> {
        let mut content = Vec::new();
        loop {
            let frame = self.frame()?;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(self.send(SETTINGS, ACK, 0, &[])),
                PING if frame.flags & ACK == 0 => drop(self.send(PING, ACK, 0, &frame.payload)),
                DATA => content.extend(&frame.payload),
                _ => {}
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                return Some(Request { stream: frame.stream, content });
            }
        }
    }

    /// Sends a response with status 200.
    pub fn respond(&mut self, stream: u32, fields: &[(&str, &str)], content: &[u8]) {
        let head = head(&[0x88], fields);
        if content.is_empty() {
            self.send(HEADERS, END_HEADERS | END_STREAM, stream, &head);
        } else {
            self.send(HEADERS, END_HEADERS, stream, &head);
            self.send(DATA, END_STREAM, stream, content);
        }
    }

    /// Sends GOAWAY: no stream after a given one has been read, nor will be.
    pub fn go_away(&mut self, last: u32) {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat());
    }

    pub fn reset(&mut self, stream: u32, code: u32) {
        self.send(RST_STREAM, 0, stream, &code.to_be_bytes());
    }
}

/// Returns a block of fields without compression, behind the bytes of `before`.
pub fn head(before: &[u8], fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = before.to_vec();
    for (name, value) in fields {
        block.extend([&[0, name.len() as u8][..], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat());
    }
    block
}
