//! A name server for tests: real messages over UDP and TCP, records that change while it runs.
#![allow(dead_code, reason = "each program of tests that includes this file uses a part of it")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Answers until the test program ends.
pub struct NameServer {
    /// The address as `127.0.0.1:port`, for UDP and TCP.
    pub address: String,
    zone: Arc<Mutex<Zone>>,
}

/// The way in which a server answers all questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failing {
    #[default]
    Never,
    NoSuchName,
    /// The server doesn't answer at all.
    Silent,
    /// The server answers nothing about AAAA.
    SilentAboutIpv6,
    /// The server rejects questions with EDNS.
    Edns,
    ServerFailure,
}

#[derive(Default)]
struct Zone {
    records: HashMap<Name, Vec<Record>>,
    failing: Failing,
    queries: usize,
}

// === NameServer ===

impl NameServer {
    pub fn start() -> NameServer {
        let (datagrams, streams) = sockets();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let server = NameServer { address: datagrams.local_addr().unwrap().to_string(), zone: zone.clone() };
        let for_streams = zone.clone();
        std::thread::spawn(move || answer_datagrams(&datagrams, &zone));
        std::thread::spawn(move || {
            for stream in streams.incoming() {
                let zone = for_streams.clone();
                std::thread::spawn(move || answer_stream(stream.unwrap(), &zone));
            }
        });
        server
    }

    /// Sets the addresses of a name, of both kinds, with a TTL in seconds. An empty list removes.
    pub fn set(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        let data = addresses.iter().map(|address| RData::from(*address)).collect();
        self.replace(name, &[RecordType::A, RecordType::AAAA], data, ttl);
    }

    /// Sets SRV records: priority, weight, port, target. An empty list removes.
    pub fn set_services(&self, name: &str, records: &[(u16, u16, u16, &str)], ttl: u32) {
        let record = |&(priority, weight, port, target): &(u16, u16, u16, &str)| {
            RData::SRV(SRV::new(priority, weight, port, absolute(target)))
        };
        self.replace(name, &[RecordType::SRV], records.iter().map(record).collect(), ttl);
    }

    /// Makes a name stand for another one (CNAME).
    pub fn set_alias(&self, name: &str, target: &str, ttl: u32) {
        self.replace(name, &[RecordType::CNAME], vec![RData::CNAME(CNAME(absolute(target)))], ttl);
    }

    /// Sets the way in which the server answers from now on.
    pub fn fail(&self, how: Failing) {
        self.zone.lock().unwrap().failing = how;
    }

    /// Queries seen so far. One for a host's addresses makes two, A and AAAA.
    pub fn queries(&self) -> usize {
        self.zone.lock().unwrap().queries
    }

    fn replace(&self, name: &str, kinds: &[RecordType], data: Vec<RData>, ttl: u32) {
        let name = absolute(name);
        let mut zone = self.zone.lock().unwrap();
        let records = zone.records.entry(name.clone()).or_default();
        records.retain(|record| !kinds.contains(&record.record_type()));
        records.extend(data.into_iter().map(|data| Record::from_rdata(name.clone(), ttl, data)));
        if records.is_empty() {
            zone.records.remove(&name);
        }
    }
}

/// Returns both sockets on one port, which may be in use for TCP when the system chooses it for UDP.
fn sockets() -> (UdpSocket, TcpListener) {
    let pair = || {
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let streams = TcpListener::bind(datagrams.local_addr().unwrap()).ok()?;
        Some((datagrams, streams))
    };
    (0..100).find_map(|_| pair()).unwrap()
}

fn absolute(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    name
}

fn answer_datagrams(socket: &UdpSocket, zone: &Mutex<Zone>) {
    let mut buffer = [0; 4096];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).unwrap();
        let question = Message::from_vec(&buffer[..length]).unwrap();
        let Some(answer) = zone.lock().unwrap().answer(&question) else { continue };
        let mut bytes = answer.to_vec().unwrap();
        if bytes.len() > usize::from(question.max_payload()) {
            bytes = answer.truncate().to_vec().unwrap();
        }
        // The client may have gone.
        let _ = socket.send_to(&bytes, client);
    }
}

/// Answers over TCP, where each message follows its length (RFC 1035 §4.2.2).
fn answer_stream(mut stream: TcpStream, zone: &Mutex<Zone>) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut bytes).unwrap();
        let question = Message::from_vec(&bytes).unwrap();
        let Some(answer) = zone.lock().unwrap().answer(&question) else { continue };
        let bytes = answer.to_vec().unwrap();
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let _ = stream.write_all(&[&length[..], &bytes].concat());
    }
}

// === Zone ===

impl Zone {
    fn answer(&mut self, question: &Message) -> Option<Message> {
        self.queries += 1;
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_queries(question.queries.iter().cloned());
        answer.metadata.response_code = match self.failing {
            Failing::Silent => return None,
            Failing::SilentAboutIpv6 if question.queries[0].query_type == RecordType::AAAA => return None,
            Failing::Edns if question.edns.is_some() => ResponseCode::FormErr,
            Failing::NoSuchName => ResponseCode::NXDomain,
            Failing::ServerFailure => ResponseCode::ServFail,
            Failing::Never | Failing::SilentAboutIpv6 | Failing::Edns => {
                self.look_up(&question.queries[0], &mut answer.answers)
            }
        };
        Some(answer)
    }

    fn look_up(&self, query: &Query, answers: &mut Vec<Record>) -> ResponseCode {
        let Some(records) = self.records.get(&query.name) else { return ResponseCode::NXDomain };
        for record in records {
            if record.record_type() == query.query_type {
                answers.push(record.clone());
            } else if let RData::CNAME(CNAME(target)) = &record.data {
                answers.push(record.clone());
                self.look_up(&Query::query(target.clone(), query.query_type), answers);
            }
        }
        ResponseCode::NoError
    }
}
