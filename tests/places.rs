//! The places for plugin instances: no plugin and no manifest takes those of another.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use plugway_test_guests::{HOOKS, MISBEHAVE, WAITING};

use crate::support::{Proxy, echo, manifest, ok, origin, plugway_after, read_message, until};

/// Address space for 2,000 instances, of which 1,750 can be reserved.
const FEW: &str = "ulimit -v 12000000000";

/// A manifest whose routes have a plugin that gets a fresh instance for each call, and one for bodies; the chain of a
/// third takes so many instances of each of 64 workers.
fn crowded(origin: &str, chain: usize) -> String {
    let plugins = vec!["\"headers\""; chain].join(", ");
    format!(
        "workers = 64\n[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.app]\nendpoints = [{origin:?}]\n\
         [[route]]\nupstream = \"app\"\nplugins = [{plugins}]\n\
         [[route]]\npath = \"/fresh\"\nupstream = \"app\"\nplugins = [\"fresh\"]\n\
         [[route]]\npath = \"/body\"\nupstream = \"app\"\nplugins = [\"body\"]\n\
         [plugin.fresh]\nuse = {MISBEHAVE:?}\nisolation = \"request\"\n\
         [plugin.body]\nuse = {HOOKS:?}\nlimits = {{ bodies = 4096, share = 100 }}\n"
    )
}

fn upload(proxy: &Proxy) -> TcpStream {
    let mut stream = proxy.connect();
    stream.write_all(b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nbegun").unwrap();
    stream
}

#[test]
fn bodies_of_one_plugin_leave_the_places_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start_by(plugway_after(FEW), folder.path(), &crowded(&echo(), 5));
    let mut uploads = Vec::new();
    let is_full = "the places for instances are used up";
    until("the places are used up", || {
        uploads.extend((0..10).map(|_| upload(&proxy)));
        proxy.has_logged(is_full)
    });
    assert!(uploads.len() > 32, "a plugin's own places: {}", uploads.len());
    let refused = proxy.get("/body", "");
    assert_eq!((refused.status(), refused.field("retry-after")), (503, Some("1")));
    for _ in 0..20 {
        assert_eq!(proxy.get("/fresh", "").status(), 200);
    }
    drop(uploads);
    until("the places are free again", || proxy.get("/body", "").status() == 200);
}

/// The calls of a plugin that naps took all thousand stacks of the engine.
#[test]
fn calls_of_one_plugin_that_wait_leave_the_stacks_of_others() {
    let routed = |name: &str| format!("[[route]]\npath = \"/{name}\"\nupstream = \"app\"\nplugins = [{name:?}]\n");
    let plugin = |name: &str| {
        let limits = "limits = { waiting-calls = 1000, call-time = \"1h\", share = 100 }";
        format!("[plugin.{name}]\nuse = {WAITING:?}\nconfig.hash = \"-\"\n{limits}\n")
    };
    let tables: String = ["many", "more", "other"].map(plugin).concat();
    let more = format!("{}{}[admin]\naddress = \"127.0.0.1:0\"\n{tables}", routed("many"), routed("more"));
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::start_by(plugway_after(FEW), folder.path(), &manifest(&echo(), "\"other\"", &more));
    proxy.note("admin at ");
    let call_from = |client: &str, path: &str| {
        let mut stream = proxy.connect_from(client);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nX-Wait: nap\r\n\r\n").unwrap();
        stream
    };
    let call = |path: &str| call_from("127.0.0.1", path);
    let calls = |name: &str| proxy.metric(&format!("plugway_plugin_calls_total{{plugin=\"{name}\"}}"));
    let is_full = || proxy.has_logged("the places for instances are used up");
    let mut many = Vec::new();
    until("the stacks are used up", || {
        // A client has a part of the calls.
        let both = |client: &str| ["/many", "/more"].map(|path| call_from(client, path));
        many.extend((0..25).flat_map(|_| ["127.0.0.2", "127.0.0.3"].map(both)).flatten());
        is_full()
    });
    assert!(many.len() > 1000, "{}", many.len());
    let others: Vec<TcpStream> = (0..20).map(|_| call("/")).collect();
    until("other calls wait", || calls("other") >= 20.0);
    assert_eq!(proxy.get("/", "").status(), 200);
    drop((many, others));
}

/// One request that was not answered kept all places of the generation that it had begun with.
#[test]
fn requests_that_are_not_answered_keep_no_places_that_they_do_not_use() {
    let (release, released) = mpsc::channel::<()>();
    let (released, begun) = (Arc::new(Mutex::new(released)), Arc::new(AtomicUsize::new(0)));
    let count = begun.clone();
    let origin = origin(move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        if !request.start.contains("/free") {
            let _ = released.lock().unwrap().recv();
        }
        ok("answered")
    });
    let folder = tempfile::tempdir().unwrap();
    let plain = "[[route]]\npath = \"/plain\"\nupstream = \"app\"\n";
    let text = format!("{}{plain}", crowded(&origin, 4));
    let proxy = Proxy::start_by(plugway_after(FEW), folder.path(), &text);
    let mut pending = Vec::new();
    for number in 0..12 {
        for path in ["/", "/plain", "/body", "/fresh"] {
            let mut stream = proxy.connect();
            write!(stream, "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").unwrap();
            pending.push(stream);
        }
        until("the endpoint has the requests", || begun.load(Ordering::SeqCst) >= pending.len());
        std::fs::write(folder.path().join("plugway.toml"), format!("{text}# {number}\n")).unwrap();
        proxy.signal("HUP");
        proxy.wait_log("reloaded: generation");
    }
    assert_eq!(proxy.get("/body/free", "").status(), 200);
    drop(release);
    for stream in pending {
        let response = read_message(&mut BufReader::new(stream)).unwrap();
        // One of the plugins changes the content.
        assert_eq!((response.status(), response.text().len() >= 8), (200, true), "{}", response.text());
    }
}

#[test]
fn a_manifest_that_needs_too_many_places_is_refused_and_takes_none() {
    let folder = tempfile::tempdir().unwrap();
    let origin = echo();
    let proxy = Proxy::start_by(plugway_after(FEW), folder.path(), &crowded(&origin, 1));
    for _ in 0..3 {
        std::fs::write(folder.path().join("plugway.toml"), crowded(&origin, 100)).unwrap();
        proxy.signal("HUP");
        proxy.wait_log("too many plugin instances: ");
        for _ in 0..20 {
            assert_eq!(proxy.get("/fresh", "").status(), 200);
        }
    }
    // What it needs beside the places of the one that it follows is there.
    for chain in [4, 2, 5, 3] {
        std::fs::write(folder.path().join("plugway.toml"), crowded(&origin, chain)).unwrap();
        proxy.signal("HUP");
        proxy.wait_log("reloaded: generation");
    }
}
