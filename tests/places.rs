//! The places for plugin instances: no plugin and no manifest takes those of another.

use std::io::Write;
use std::net::TcpStream;

use plugway_test_guests::{HOOKS, MISBEHAVE};

use crate::support::{Proxy, echo, plugway_after, until};

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
    for _ in 0..20 {
        assert_eq!(proxy.get("/fresh", "").status(), 200);
    }
    drop(uploads);
    until("the places are free again", || proxy.get("/body", "").status() == 200);
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
        proxy.wait_log("reloaded");
    }
}
