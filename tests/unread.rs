//! Requests that an endpoint reports as unread: they are retried whatever their method, and count as no failure.

use std::io::{BufReader, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use crate::http2::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, Raw, SETTINGS, frame};
use crate::http2_endpoint::{REFUSED_STREAM, answering, endpoint};
use crate::support::client::load;
use crate::support::origin::Backend;
use crate::support::{Message, PATIENCE, Proxy, read_message, until};

const POST: &str = "POST / HTTP/1.1\r\nContent-Length: 0";

pub fn start(endpoints: &[&str], more: &str) -> Proxy {
    Proxy::start(&format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"app\"\n[upstream.app]\n\
         endpoints = {endpoints:?}\n{more}"
    ))
}

fn send(proxy: &Proxy, method: &str, content: &str) -> Message {
    let mut stream = proxy.connect();
    let length = content.len();
    let head = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("{head}{content}").as_bytes()).unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

/// Returns a sum over the endpoints.
pub fn sum(proxy: &Proxy, name: &str) -> f64 {
    let text = proxy.ask_admin("GET /metrics").text();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn unread_request_is_retried_whatever_its_method() {
    for is_go_away in [true, false] {
        for (method, content) in [("GET", ""), ("POST", ""), ("POST", "abc"), ("PATCH", "abc"), ("PUT", "abc")] {
            for (first, more) in [(0, ""), (1, ""), (0, "retry = false"), (1, "retry = false")] {
                // The first request meets a new connection, the second one that was kept.
                let address = answering(move |number, request, raw| {
                    if number != first {
                        return false;
                    }
                    match is_go_away {
                        true => raw.go_away(request.stream - 1),
                        false => raw.reset(request.stream, REFUSED_STREAM),
                    }
                    true
                });
                let proxy = start(&[&address], more);
                for _ in 0..2 {
                    let response = send(&proxy, method, content);
                    let what = format!("{method} `{content}` {is_go_away} {first} {more}");
                    assert_eq!((response.status(), response.text().as_str()), (200, content), "{what}");
                }
                assert_eq!(sum(&proxy, "plugway_endpoint_failures_total"), 0.0);
            }
        }
    }
}

#[test]
fn an_endpoint_that_reads_nothing_is_asked_a_few_times_and_not_blamed() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let refusing = answering(move |_, request, raw| {
        count.fetch_add(1, Ordering::SeqCst);
        raw.reset(request.stream, REFUSED_STREAM);
        true
    });
    let good = Backend::start("good");
    let proxy = start(&[&refusing, &good.address], "");
    for _ in 0..12 {
        assert_eq!(send(&proxy, "POST", "abc").status(), 200);
    }
    assert_eq!(sum(&proxy, "plugway_endpoint_failures_total"), 0.0);
    assert_eq!(sum(&proxy, "plugway_endpoint_ejections_total"), 0.0);
    let proxy = start(&[&refusing], "");
    let before = asked.load(Ordering::SeqCst);
    assert_eq!(send(&proxy, "POST", "abc").status(), 502);
    let times = asked.load(Ordering::SeqCst) - before;
    assert!((3..=9).contains(&times), "{times}");
}

#[test]
fn endpoints_that_recycle_their_connections_lose_nothing_and_stay() {
    // After twenty requests a connection closes gracefully, with others under way on it.
    let recycling = || {
        endpoint(|raw| {
            for _ in 0..20 {
                let Some(request) = raw.next_request() else { return };
                raw.respond(request.stream, &[("x-backend", "any")], b"ok");
                if request.stream == 39 {
                    raw.go_away(39);
                }
            }
            while raw.frame().is_some() {}
        })
    };
    let endpoints = [recycling(), recycling()];
    let proxy = start(&[&endpoints[0], &endpoints[1]], "");
    let seen = load(&proxy, 12, POST, || {
        until("enough have passed", || sum(&proxy, "plugway_responses_total") > 4_000.0);
    });
    assert_eq!(seen.status(200), seen.total(), "{seen:?}");
    assert_eq!(sum(&proxy, "plugway_endpoint_failures_total"), 0.0);
    assert_eq!(sum(&proxy, "plugway_endpoint_ejections_total"), 0.0);
}

/// Starts an endpoint whose first connection reads `streams` requests and then says that it has read none; the next ones
/// answer 200. Returns its address, and the count of the bytes of content that were answered.
fn forgetting(streams: usize) -> (String, Arc<AtomicUsize>) {
    let (connections, answered) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let count = answered.clone();
    let address = endpoint(move |raw| {
        let is_first = connections.fetch_add(1, Ordering::SeqCst) == 0;
        let mut ended = 0;
        while let Some(frame) = raw.frame() {
            if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                raw.send(SETTINGS, ACK, 0, &[]);
            }
            if !is_first {
                count.fetch_add(frame.content(), Ordering::SeqCst);
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                ended += 1;
                match is_first {
                    true if ended == streams => raw.go_away(0),
                    true => {}
                    false => raw.respond(frame.stream, &[], b"ok"),
                }
            }
        }
    });
    (address, answered)
}

#[test]
fn unread_uploads_of_unknown_length_that_share_a_connection_are_all_sent_again() {
    const STREAMS: u32 = 40;
    const CONTENT: [u8; 500] = [b'x'; 500];
    let streams = || (1..2 * STREAMS).step_by(2);
    // All of it is there with the head, or some of it comes later.
    for (early, late) in [(500, None), (100, Some(400))] {
        let (address, answered) = forgetting(STREAMS as usize);
        let proxy = start(&[&address], "");
        let mut client = Raw::connect(&proxy);
        let end = if late.is_none() { END_STREAM } else { 0 };
        let begun = streams().flat_map(|stream| {
            // Content of gRPC has no connection of its own.
            let head = [&[0x83, 0x86, 0x84, 0x41, 1, b'a', 0x0f, 0x10, 16][..], b"application/grpc"].concat();
            let head = frame(HEADERS, END_HEADERS, stream, &head);
            [head, frame(DATA, end, stream, &CONTENT[..early])].concat()
        });
        client.0.write_all(&begun.collect::<Vec<_>>()).unwrap();
        if let Some(late) = late {
            until("all are under way", || sum(&proxy, "plugway_endpoint_in_flight") == f64::from(STREAMS));
            let rest = streams().flat_map(|stream| frame(DATA, END_STREAM, stream, &CONTENT[..late]));
            client.0.write_all(&rest.collect::<Vec<_>>()).unwrap();
        }
        for _ in streams() {
            let head = client.until(|frame| frame.kind == HEADERS);
            assert_eq!(head.payload[0], 0x88, "stream {} has no 200, late {late:?}", head.stream);
        }
        assert_eq!(answered.load(Ordering::SeqCst), STREAMS as usize * CONTENT.len());
    }
}

#[test]
fn requests_that_wait_for_a_stream_go_out_again() {
    // One stream at a time: what comes after the first waits in the proxy, and is none of the endpoint's.
    let connections = Arc::new(AtomicUsize::new(0));
    let (go_on, waits) = mpsc::channel::<()>();
    let waits = Arc::new(Mutex::new(waits));
    let address = endpoint(move |raw| {
        if connections.fetch_add(1, Ordering::SeqCst) > 0 {
            while let Some(request) = raw.next_request() {
                raw.respond(request.stream, &[], b"ok");
            }
            return;
        }
        raw.send(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]);
        let first = raw.next_request().unwrap();
        raw.respond(first.stream, &[], b"ok");
        let second = raw.next_request().unwrap();
        waits.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        raw.go_away(second.stream);
        raw.respond(second.stream, &[], b"ok");
        while raw.frame().is_some_and(|frame| frame.kind != HEADERS) {}
    });
    let proxy = start(&[&address], "retry = false\nlimits.connections = 1");
    assert_eq!(send(&proxy, "POST", "").status(), 200);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = proxy.connect();
            stream
                .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
                .unwrap();
            stream
        })
        .collect();
    until("all are under way", || sum(&proxy, "plugway_endpoint_in_flight") == 4.0);
    go_on.send(()).unwrap();
    for client in clients {
        assert_eq!(read_message(&mut BufReader::new(client)).unwrap().status(), 200);
    }
    assert_eq!(sum(&proxy, "plugway_endpoint_failures_total"), 0.0);
}

/// Serves one request of a connection, and ends the connection in the same segment as its response.
fn end_with_the_response(raw: &mut Raw) {
    let (mut is_acknowledged, mut request) = (false, None);
    while !is_acknowledged || request.is_none() {
        let Some(frame) = raw.frame() else { return };
        match frame.kind {
            SETTINGS if frame.flags & ACK != 0 => is_acknowledged = true,
            SETTINGS => drop(raw.send(SETTINGS, ACK, 0, &[])),
            HEADERS => request = Some(frame.stream),
            _ => {}
        }
    }
    let response = frame(HEADERS, END_HEADERS | END_STREAM, request.unwrap(), &[0x88]);
    /// Keeps the bytes until the socket is closed.
    const MSG_MORE: i32 = 0x8000;
    socket2::SockRef::from(&raw.0).send_with_flags(&response, MSG_MORE).unwrap();
}

#[test]
fn no_request_is_lost_to_a_connection_of_http2_whose_end_has_arrived() {
    let closing = endpoint(end_with_the_response);
    let busy = Backend::start("busy");
    let more = format!(
        "[upstream.busy]\nendpoints = [{:?}]\n[[route]]\npath = \"/busy\"\nupstream = \"busy\"\n",
        busy.address
    );
    let proxy = start(&[&closing], &more);
    let mut stream = proxy.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lost = 0;
    // Other requests keep the worker busy, so that the end of the connection and the next request meet.
    load(&proxy, 8, "GET /busy HTTP/1.1", || {
        for _ in 0..500 {
            stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").unwrap();
            lost += usize::from(read_message(&mut reader).unwrap().status() != 200);
        }
    });
    assert_eq!((lost, sum(&proxy, "plugway_endpoint_failures_total")), (0, 0.0));
}
