//! The sockets of listeners: reloads that replace them, addresses that other processes use, and the files of unix
//! sockets.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{PATIENCE, Proxy, echo, manifest, plugway, read_message, run, until};

/// Returns a manifest with listeners at these addresses, and one route that answers with a text.
fn at(addresses: &[&str], text: &str) -> String {
    let listeners = addresses.iter().map(|address| format!("[[listener]]\naddress = \"{address}\"\n"));
    format!(
        "workers = 4\n{}[[route]]\nrespond = {{ status = 200, body = \"{text}\" }}\n[admin]\naddress = \"off\"\n",
        listeners.collect::<String>()
    )
}

/// Sends one request on a connection of its own; returns what was received.
fn request(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Sends one request to a unix socket; returns the content of the response.
fn over_unix(path: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let response = read_message(&mut BufReader::new(stream));
    response.map(|response| response.text()).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

#[test]
fn another_spelling_of_an_address_resets_no_client() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (one, all) = (free.to_string(), format!("0.0.0.0:{}", free.port()));
    let proxy = Proxy::start(&at(&[&one], "x"));
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let client = || {
        while !stop.load(Ordering::Relaxed) {
            match request(&one) {
                Ok(text) => assert!(text.starts_with("HTTP/1.1 200") && text.ends_with('x'), "{text:?}"),
                Err(error) => panic!("after {} requests: {error}", served.load(Ordering::Relaxed)),
            }
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(client)).collect();
        for address in [&all, &one, &all, &one] {
            let before = served.load(Ordering::Relaxed);
            proxy.reload(&at(&[address], "x"));
            proxy.wait_log("no longer listening at");
            let is_over = || clients.iter().any(|client| client.is_finished());
            until("requests were served", || is_over() || served.load(Ordering::Relaxed) > before + 200);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn each_address_of_a_port_is_checked_for_another_process() {
    let first = Proxy::start(&at(&["127.0.0.2:0"], "first"));
    let port = first.address.rsplit(':').next().unwrap();
    let (own, other) = (format!("127.0.0.1:{port}"), format!("127.0.0.3:{port}"));
    // The address that is in use is the second of the port, whichever order the listeners have.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, at(&[&own, &first.address], "second")).unwrap();
    let second = crate::support::outcome(plugway().arg("check").arg(&path));
    assert_eq!(second, (Some(0), String::new()), "a check binds nothing");
    let mut started = plugway().arg("run").arg(&path).stderr(std::process::Stdio::piped()).spawn().unwrap();
    until("the second process ends", || started.try_wait().unwrap().is_some());
    let is_refused = started.try_wait().unwrap().is_some_and(|status| !status.success());
    let _ = started.kill();
    let said = String::from_utf8(started.wait_with_output().unwrap().stderr).unwrap();
    assert!(is_refused && said.contains(&format!("can't listen at {}", first.address)), "{said}");

    let second = Proxy::start(&at(&[&other], "second"));
    second.reload(&at(&[&other, &first.address], "second"));
    let refused = second.wait_log("can't listen at");
    assert!(refused.contains(&first.address), "{refused}");
    (0..20).for_each(|_| assert!(request(&first.address).unwrap().ends_with("first")));
    // Addresses that overlap those of the process itself are no obstacle.
    second.reload(&at(&[&other, &format!("127.0.0.4:{port}")], "second"));
    second.wait_log("reloaded");
    assert!(request(&format!("127.0.0.4:{port}")).unwrap().ends_with("second"));
}

/// Starts a proxy with a listener at a unix socket, besides one of TCP.
fn with_socket(path: &Path, more: &str) -> Proxy {
    Proxy::start(&socket_manifest(path, more))
}

fn socket_manifest(path: &Path, more: &str) -> String {
    let text = at(&["127.0.0.1:0"], "x");
    format!("{text}[[listener]]\naddress = \"unix:{}\"\n{more}", path.display())
}

/// Clients beyond those that one turn of a worker accepts were reset.
#[test]
fn clients_that_are_queued_at_the_stop_are_served() {
    let mut proxy = Proxy::start(&at(&["127.0.0.1:0"], "x"));
    proxy.signal("STOP");
    let mut clients: Vec<_> = (0..600).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    }
    proxy.signal("TERM");
    proxy.signal("CONT");
    let answers = clients.into_iter().filter_map(|client| read_message(&mut BufReader::new(client)));
    assert_eq!(answers.filter(|answer| answer.text() == "x").count(), 600);
    assert_eq!(proxy.wait_exit(), Some(0));
}

/// Opens connections with a request each, and keeps them.
fn kept(proxy: &Proxy, count: usize) -> Vec<BufReader<TcpStream>> {
    let mut kept: Vec<_> = (0..count).map(|_| BufReader::new(proxy.connect())).collect();
    for client in &mut kept {
        client.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(read_message(client).unwrap().text(), "x");
    }
    kept
}

#[test]
fn requests_that_have_arrived_on_idle_connections_are_served_at_the_stop() {
    let mut proxy = Proxy::start(&at(&["127.0.0.1:0"], "x"));
    let mut clients = kept(&proxy, 40);
    // The subject: connections that rest.
    std::thread::sleep(Duration::from_millis(500));
    proxy.signal("STOP");
    for client in &mut clients {
        client.get_mut().write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").unwrap();
    }
    proxy.signal("TERM");
    proxy.signal("CONT");
    assert_eq!(clients.iter_mut().filter_map(read_message).filter(|answer| answer.text() == "x").count(), 40);
    assert_eq!(proxy.wait_exit(), Some(0));
}

#[test]
fn requests_that_arrive_before_the_end_of_keep_alive_are_served_after_it() {
    let limits = "address = \"127.0.0.1:0\"\nlimits = { keep-alive = \"1s\" }\n";
    let proxy = Proxy::start(&at(&["127.0.0.1:0"], "x").replacen("address = \"127.0.0.1:0\"\n", limits, 1));
    let mut clients = kept(&proxy, 20);
    // The subject: connections that rest, and a process that is stopped for longer than it keeps them.
    std::thread::sleep(Duration::from_millis(400));
    proxy.signal("STOP");
    for client in &mut clients {
        client.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    std::thread::sleep(Duration::from_millis(1500));
    proxy.signal("CONT");
    assert_eq!(clients.iter_mut().filter_map(read_message).filter(|answer| answer.text() == "x").count(), 20);
}

#[test]
fn a_head_that_has_begun_at_the_stop_is_served() {
    let mut proxy = Proxy::start(&at(&["127.0.0.1:0"], "x"));
    let mut clients = kept(&proxy, 8);
    clients.iter_mut().for_each(|client| client.get_mut().write_all(b"GET / HTTP/1.1\r\nHo").unwrap());
    // With a later request answered, the earlier bytes are read.
    kept(&proxy, 16);
    proxy.signal("TERM");
    proxy.wait_log("stopping");
    clients.iter_mut().for_each(|client| client.get_mut().write_all(b"st: a\r\n\r\n").unwrap());
    let answers: Vec<_> = clients.iter_mut().filter_map(read_message).collect();
    assert_eq!(answers.iter().filter(|answer| answer.field("connection") == Some("close")).count(), 8);
    assert_eq!(proxy.wait_exit(), Some(0));
}

/// A proxy that was no longer trusted remained so on its open connections.
#[test]
fn rules_that_a_reload_changes_hold_for_connections_that_are_open() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let origin = echo();
    let text = |keys: &str| {
        manifest(&origin, "", "[admin]\naddress = \"off\"\n").replacen(
            "address = \"127.0.0.1:0\"",
            &format!("address = {address:?}\n{keys}"),
            1,
        )
    };
    let trusting = text("trusted-proxies = [\"127.0.0.1\"]");
    let proxy = Proxy::start(&trusting);
    let named = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n";
    let ask = |client: &mut BufReader<TcpStream>| {
        client.get_mut().write_all(named).unwrap();
        let answer = read_message(client).unwrap();
        (answer.text().contains("192.0.2.9"), answer.field("connection").map(String::from))
    };
    let [mut unchanged, mut open] = [(); 2].map(|()| BufReader::new(proxy.connect()));
    assert_eq!(ask(&mut open), (true, None));
    assert_eq!(ask(&mut unchanged), (true, None));
    proxy.reload(&format!("{trusting}# changed\n"));
    proxy.wait_log("reloaded: generation 2");
    assert_eq!(ask(&mut unchanged), (true, None), "the rules are the same");
    proxy.reload(&text(""));
    proxy.wait_log("reloaded: generation 3");
    assert_eq!(ask(&mut open), (false, Some("close".into())));
}

/// A proxy that was trusted remained so on the open connections of a listener that was removed, or had another address then.
#[test]
fn connections_of_a_listener_that_a_reload_removes_end_after_a_request() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (address, kept) = (format!("127.0.0.1:{port}"), "[[listener]]\naddress = \"127.0.0.1:0\"\n");
    let origin = echo();
    let text = |listener: &str| {
        let table = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
        manifest(&origin, "", "[admin]\naddress = \"off\"\n").replacen(table, &format!("{listener}{kept}"), 1)
    };
    let trusting = text(&format!("[[listener]]\naddress = {address:?}\ntrusted-proxies = [\"127.0.0.1\"]\n"));
    let distrusting = |address: &str| text(&format!("[[listener]]\naddress = {address:?}\n"));
    let proxy = Proxy::start(&trusting);
    let mut generation = 1;
    let mut reload = |text: &str| {
        proxy.reload(text);
        generation += 1;
        proxy.wait_log(&format!("reloaded: generation {generation}"));
    };
    let ask = |client: &mut BufReader<TcpStream>| {
        let named = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n";
        client.get_mut().write_all(named).unwrap();
        let answer = read_message(client).unwrap();
        (answer.text().contains("192.0.2.9"), answer.field("connection").map(String::from))
    };
    let connect = || BufReader::new(TcpStream::connect(&address).unwrap());
    let [mut first, mut second] = [(); 2].map(|()| connect());
    assert_eq!((ask(&mut first), ask(&mut second)), ((true, None), (true, None)));
    reload(&text(""));
    let (_, end) = ask(&mut first);
    assert_eq!(end.as_deref(), Some("close"));
    reload(&distrusting(&address));
    assert_eq!(ask(&mut second), (false, Some("close".into())), "the listener is there again, without its trust");
    reload(&trusting);
    let mut third = connect();
    assert_eq!(ask(&mut third), (true, None));
    reload(&distrusting(&format!("0.0.0.0:{port}")));
    assert_eq!(ask(&mut third).1.as_deref(), Some("close"), "another address");
}

#[test]
fn a_socket_that_another_process_has_replaced_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let [path, other] = ["front.sock", "other.sock"].map(|name| folder.path().join(name));
    let mut proxy = with_socket(&path, "");
    let _new = UnixListener::bind(&other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    proxy.signal("HUP");
    let warning = proxy.wait_log("is lost");
    assert!(warning.contains("WARN") && warning.contains("another process listens there"), "{warning}");
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(), Some(0));
    UnixStream::connect(&path).expect("the socket of the other process is in place");
}

#[test]
fn a_socket_whose_file_was_removed_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front.sock");
    let mut proxy = with_socket(&path, "mode = \"0660\"\n");
    std::fs::remove_file(&path).unwrap();
    // Without an order.
    assert!(proxy.wait_log("the file of a unix socket was removed").contains("WARN"));
    assert_eq!(over_unix(&path).unwrap(), "x");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o660);
    std::fs::remove_file(&path).unwrap();
    proxy.signal("HUP");
    proxy.wait_log("the file of a unix socket was removed");
    assert_eq!(over_unix(&path).unwrap(), "x");
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(), Some(0));
    assert!(!path.exists(), "a process that ended leaves no socket");
}

#[test]
fn the_mode_of_a_socket_is_that_of_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front.sock");
    let proxy = with_socket(&path, "mode = \"0666\"\n");
    proxy.wait_log("listening at unix:");
    let mode = || path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o666);
    proxy.reload(&socket_manifest(&path, "mode = \"660\"\n"));
    proxy.wait_log("reloaded");
    assert_eq!(mode(), 0o660);
    proxy.reload(&socket_manifest(&path, ""));
    proxy.wait_log("until the next start");
    assert_eq!((mode(), over_unix(&path).unwrap()), (0o660, "x".into()));
    for (mode, what) in [
        ("0440", "lets no client connect"),
        ("0o660", "`0o660` is no mode of a file"),
        ("u=rw", "is no mode of a file"),
        ("4777", "has more than the permissions"),
    ] {
        let file = folder.path().join("plugway.toml");
        std::fs::write(&file, socket_manifest(&path, &format!("mode = \"{mode}\"\n"))).unwrap();
        let (code, said) = run(&["check", file.to_str().unwrap()]);
        assert!(code == Some(1) && said.contains(what) && said.contains("such as `0660`"), "{said}");
    }
}
