//! Reload and stop while requests are under way.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::{Proxy, echo, manifest, ok, origin, output, plugway, read_message, until};

fn version(origin: &str, version: u32) -> String {
    let plugin = format!(
        "{{ use = \"headers\", config = {{ evaluate-each = true, response = {{ set = {{ X-Version = \"{version}\" }} }} }} }}"
    );
    // A client may send more requests than one connection has by default before all versions were there.
    let limits = "address = \"127.0.0.1:0\"\nlimits = { requests = 1000000000 }\n";
    manifest(origin, &plugin, "").replace("address = \"127.0.0.1:0\"\n", limits)
}

#[test]
fn twenty_swaps_under_load_lose_no_request() {
    let origin = echo();
    let proxy = Proxy::start(&version(&origin, 0));
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (mut stream, stop, served) = (proxy.connect(), stop.clone(), served.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("the connection was kept");
                    let response = read_message(&mut reader).expect("a whole response");
                    assert_eq!(response.status(), 200);
                    let version = response.field("x-version").unwrap().parse::<u32>().unwrap();
                    assert!(version >= last, "version {version} after {last}");
                    last = version;
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for number in 1..=20 {
        let before = served.load(Ordering::Relaxed);
        proxy.reload(&version(&origin, number));
        // Not by a line of the log: the file and the signal may be noticed apart, and each is told of.
        let is_served = || proxy.get("/", "").field("x-version") == Some(number.to_string().as_str());
        until(&format!("version {number} is served"), is_served);
        while served.load(Ordering::Relaxed) < before + 20 {
            assert!(clients.iter().all(|client| !client.is_finished()), "a client failed");
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
}

#[test]
fn a_request_finishes_on_the_version_that_it_began_with() {
    let (asked, release) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let slow = origin({
        let (asked, release) = (asked.clone(), release.clone());
        move |request| {
            if request.start.contains("/slow") {
                asked.store(true, Ordering::Relaxed);
                while !release.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
            ok("")
        }
    });
    let proxy = Proxy::start(&version(&slow, 1));
    let mut stream = proxy.connect();
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    while !asked.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    proxy.reload(&version(&slow, 2));
    proxy.wait_log("reloaded");
    assert_eq!(proxy.get("/", "").field("x-version"), Some("2"));
    release.store(true, Ordering::Relaxed);
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().field("x-version"), Some("1"));
}

#[test]
fn a_bad_manifest_leaves_the_old_one_serving() {
    let origin = echo();
    let proxy = Proxy::start(&version(&origin, 1));
    proxy.reload(&version(&origin, 2).replace("evaluate-each", "evaluate-eech"));
    proxy.wait_log("the old manifest goes on serving");
    proxy.wait_log("evaluate-eech");
    assert_eq!(proxy.get("/", "").field("x-version"), Some("1"));
    proxy.reload(&version(&origin, 3));
    proxy.wait_log("reloaded: generation 2");
    assert_eq!(proxy.get("/", "").field("x-version"), Some("3"));
}

#[test]
fn a_changed_manifest_include_or_plugin_is_noticed() {
    use plugway_test_guests::{API_KEY, MISBEHAVE};
    let text = format!("include = [\"sites/*.toml\"]\n{}", manifest(&echo(), r#""it""#, ""));
    let folder = tempfile::tempdir().unwrap();
    let put = |from: &str, to: &str| {
        std::fs::copy(from, folder.path().join("new")).unwrap();
        std::fs::rename(folder.path().join("new"), folder.path().join(to)).unwrap();
    };
    put(MISBEHAVE, "it.wasm");
    std::fs::create_dir(folder.path().join("sites")).unwrap();
    let site = |config: &str| {
        let site = format!("[plugin.it]\nuse = \"../it.wasm\"\n{config}");
        std::fs::write(folder.path().join("sites/it.toml"), site).unwrap();
    };
    site("");
    let proxy = Proxy::start_in(folder.path(), &text);
    assert_eq!(proxy.get("/", "").status(), 200);

    site("on-error = \"ignore\"");
    proxy.wait_log("invalid `on-error`");
    assert_eq!(proxy.get("/", "").status(), 200);
    site("config.keys = {}");
    proxy.wait_log("config");
    put(API_KEY, "it.wasm");
    proxy.wait_log("reloaded");
    assert_eq!(proxy.get("/", "").status(), 401);
    std::fs::write(folder.path().join("plugway.toml"), text.replace("[\"it\"]", "[]")).unwrap();
    proxy.wait_log("reloaded");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn listeners_come_and_go_with_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("front.sock");
    let plain = manifest(&echo(), "", "");
    let more = |address: &str| {
        plain.replacen("[[listener]]", &format!("[[listener]]\naddress = \"{address}\"\n[[listener]]"), 1)
    };
    let proxy = Proxy::start(&plain);

    proxy.reload(&more(&format!("unix:{}", socket.display())));
    proxy.wait_log("reloaded");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"GET /unix HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    assert_eq!(read_message(&mut reader).unwrap().status(), 200);

    // What is taken by others is refused, and nothing changes.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.reload(&more(&taken.local_addr().unwrap().to_string()));
    proxy.wait_log("can't listen at");
    assert!(UnixStream::connect(&socket).is_ok());

    // A removed listener accepts no new connections; its open ones continue.
    proxy.reload(&plain);
    proxy.wait_log("no longer listening at");
    assert!(!socket.exists());
    stream.write_all(b"GET /unix HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut reader).unwrap().status(), 200);
    assert_eq!(proxy.get("/", "").status(), 200);
}

/// Workers share their port; two processes would too, and each would get a part of the connections.
#[test]
fn another_process_gets_no_part_of_a_port() {
    let proxy = Proxy::start(&version(&echo(), 0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, version(&echo(), 1).replace("127.0.0.1:0", &proxy.address)).unwrap();
    let second = output(plugway().arg("run").arg(&path).stderr(std::process::Stdio::piped()));
    assert!(second.contains(&format!("can't listen at {}", proxy.address)), "{second}");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn a_thousand_swaps_leave_memory_flat() {
    let origin = echo();
    let proxy = Proxy::start(&version(&origin, 0));
    let swap = |number: u32| {
        proxy.reload(&version(&origin, number));
        proxy.wait_log("reloaded");
        assert_eq!(proxy.get("/", "").status(), 200);
    };
    (1..=100).for_each(swap);
    let before = proxy.memory_kib();
    (101..=1100).for_each(swap);
    let after = proxy.memory_kib();
    // A generation that stayed behind with its instances would cost a hundred KiB and more each time.
    assert!(after < before + 8192, "{before} KiB before, {after} KiB after");
}

#[test]
fn a_stop_lets_exchanges_end() {
    let (asked, release) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let slow = origin({
        let (asked, release) = (asked.clone(), release.clone());
        move |_| {
            asked.store(true, Ordering::Relaxed);
            while !release.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            ok("done")
        }
    });
    let mut proxy = Proxy::start(&manifest(&slow, "", ""));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    while !asked.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    proxy.signal("TERM");
    proxy.wait_log("stopping");
    release.store(true, Ordering::Relaxed);
    let mut reader = BufReader::new(stream);
    assert_eq!(read_message(&mut reader).unwrap().text(), "done");
    assert!(read_message(&mut reader).is_none(), "the connection goes with its last exchange");
    assert_eq!(proxy.wait_exit(), Some(0));
}

#[test]
fn a_folder_that_is_a_link_may_lead_elsewhere() {
    let (origin, folder) = (echo(), tempfile::tempdir().unwrap());
    let (current, next) = (folder.path().join("current"), folder.path().join("next"));
    let release = |version: &str, text: &str| {
        let release = folder.path().join(version);
        std::fs::create_dir_all(&release).unwrap();
        std::fs::write(release.join("plugway.toml"), text).unwrap();
        std::os::unix::fs::symlink(release, &next).unwrap();
        std::fs::rename(&next, &current).unwrap();
    };
    release("0", "");
    let proxy = Proxy::start_in(&current, &version(&origin, 0));
    let text = std::fs::read_to_string(current.join("plugway.toml")).unwrap();
    release("1", "[[listener");
    proxy.wait_log("not reloaded");
    let is_served = |version| {
        let proxy = &proxy;
        move || proxy.get("/", "").field("x-version") == Some(version)
    };
    // It is mended in place, and then by another.
    std::fs::write(current.join("plugway.toml"), text.replace("\"0\"", "\"1\"")).unwrap();
    until("version 1 is served", is_served("1"));
    release("2", &text.replace("\"0\"", "\"2\""));
    until("version 2 is served", is_served("2"));
}

#[test]
fn a_file_that_is_newly_included_may_be_mended() {
    let (origin, folder) = (echo(), tempfile::tempdir().unwrap());
    std::fs::create_dir(folder.path().join("sites")).unwrap();
    let text = version(&origin, 1);
    let proxy = Proxy::start_in(folder.path(), &text);
    let (shared, route) = text.split_at(text.find("[[route]]").unwrap());
    let including = format!("include = [\"sites/app.toml\"]\n{shared}");
    std::fs::write(folder.path().join("plugway.toml"), including).unwrap();
    proxy.wait_log("not reloaded");
    let site = folder.path().join("sites/app.toml");
    std::fs::write(&site, "[[route").unwrap();
    proxy.wait_log("not reloaded");
    std::fs::write(&site, route.replace("\"1\"", "\"2\"")).unwrap();
    until("version 2 is served", || proxy.get("/", "").field("x-version") == Some("2"));
}

#[test]
fn a_folder_may_be_put_in_the_place_of_another() {
    let (origin, folder) = (echo(), tempfile::tempdir().unwrap());
    let (sites, next) = (folder.path().join("sites"), folder.path().join("next"));
    let text = version(&origin, 0);
    let (shared, route) = text.split_at(text.find("[[route]]").unwrap());
    let release = |version: &str| {
        std::fs::create_dir(&next).unwrap();
        std::fs::write(next.join("app.toml"), route.replace("\"0\"", &format!("{version:?}"))).unwrap();
        // As one command of a shell does, too quickly for the moment between to count.
        if sites.exists() {
            std::fs::rename(&sites, folder.path().join(format!("before-{version}"))).unwrap();
        }
        std::fs::rename(&next, &sites).unwrap();
    };
    release("1");
    let proxy = Proxy::start_in(folder.path(), &format!("include = [\"sites/*.toml\"]\n{shared}"));
    for version in ["2", "3"] {
        release(version);
        until("what was put there is served", || proxy.get("/", "").field("x-version") == Some(version));
    }
    // What is told of a folder that is the place of another no more.
    std::fs::remove_dir_all(&sites).unwrap();
    proxy.wait_log("not reloaded");
    release("4");
    until("a new folder is served", || proxy.get("/", "").field("x-version") == Some("4"));
}

#[test]
fn the_end_of_a_mistake_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("502.html");
    std::fs::write(&page, "sorry").unwrap();
    let text = manifest(&echo(), "", "[error-page]\n502 = \"502.html\"\n");
    let proxy = Proxy::start_in(folder.path(), &text);
    for _ in 0..2 {
        std::fs::rename(&page, folder.path().join("away")).unwrap();
        proxy.wait_log("not reloaded");
        std::fs::rename(folder.path().join("away"), &page).unwrap();
        proxy.wait_log("reloaded: generation");
    }
}
