//! The cache on disk: stored responses outlast the process, even if the process or its files are damaged.

use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::caching::{ADMIN, CACHE, Origin, begin, read_until, response, status_of};
use crate::support::{
    Message, Proxy, manifest, output, plugway, plugway_with_short_files, raw_origin, read_message, until,
};

/// The length of a body that is longer than the memory accepts with the limits below.
const LONG: usize = 3 << 20;

/// A request field that makes the cache ask the origin, whatever is stored.
const RELOAD: &str = "\r\nCache-Control: no-cache";

/// The manifest of a proxy with a cache on disk, in a folder that outlasts the proxy.
struct Warm {
    folder: tempfile::TempDir,
    text: String,
}

impl Warm {
    fn new(origin: &str, plugin: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache =
            "[cache]\nmemory = \"16 MiB\"\nmax-object = \"256 KiB\"\ndisk = { path = \"store\", size = \"256 MiB\" }\n";
        let text = manifest(origin, plugin, &format!("{ADMIN}{cache}"));
        Warm { folder, text }
    }

    /// Returns the manifest with another size of the disk.
    fn of_size(self, size: &str) -> Self {
        Warm { text: self.text.replace("256 MiB", size), ..self }
    }

    fn start(&self) -> Proxy {
        self.started(Proxy::start_in(self.folder.path(), &self.text))
    }

    /// Waits until the proxy has found all stored responses.
    fn started(&self, mut proxy: Proxy) -> Proxy {
        proxy.note("admin at");
        until("the files are found", || status(&proxy).contains("\"found\":true"));
        proxy
    }

    fn stop(&self, mut proxy: Proxy) {
        proxy.signal("TERM");
        assert_eq!(proxy.wait_exit(), Some(0));
    }

    fn kill(&self, mut proxy: Proxy) {
        proxy.signal("KILL");
        proxy.wait_exit();
    }

    fn restart(&self, proxy: Proxy) -> Proxy {
        self.stop(proxy);
        self.start()
    }

    /// Returns the files of stored responses.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for place in std::fs::read_dir(self.folder.path().join("store")).unwrap() {
            let place = place.unwrap().path();
            if place.is_dir() && !place.ends_with("tmp") {
                files.extend(std::fs::read_dir(place).unwrap().map(|file| file.unwrap().path()));
            }
        }
        files
    }

    /// Returns the files that are being written.
    fn unfinished(&self) -> Vec<PathBuf> {
        let temporary = std::fs::read_dir(self.folder.path().join("store/tmp")).unwrap();
        temporary.map(|file| file.unwrap().path()).collect()
    }

    fn until_files(&self, count: usize) {
        until("the files are written", || self.files().len() == count);
    }
}

fn text_of(length: usize, seed: usize) -> String {
    (0..length).map(|at| char::from(b'a' + ((at * 7 + at / 1000 + seed) % 26) as u8)).collect()
}

/// Returns the status document, without spaces.
fn status(proxy: &Proxy) -> String {
    proxy.ask_admin("GET /status").text().split_whitespace().collect()
}

fn is_hit(message: &Message) -> bool {
    status_of(message).starts_with("plugway; hit")
}

#[test]
fn a_restart_begins_warm() {
    let origin = Origin::new(|request, number| {
        let path = request.start.split(' ').nth(1).unwrap();
        match path {
            "/vary" => {
                let language = request.field("accept-language").unwrap_or("none").to_string();
                response("Cache-Control: max-age=60\r\nVary: Accept-Language", &language)
            }
            "/long" => response("Cache-Control: max-age=60\r\nETag: \"long\"", &text_of(LONG, 1)),
            "/chunked" => {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nCache-Control: max-age=60\r\n\r\n\
                           5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n"
                    .into()
            }
            _ => response("Cache-Control: max-age=60\r\nX-Twice: a\r\nX-Twice: b", &number.to_string()),
        }
    });
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    let small = proxy.get("/small", "");
    for language in ["de", "en"] {
        proxy.get("/vary", &format!("\r\nAccept-Language: {language}"));
    }
    assert!(proxy.get("/long", "").text() == text_of(LONG, 1));
    assert_eq!(proxy.get("/chunked", "").text(), "hello");
    let asked = origin.count();
    let proxy = warm.restart(proxy);
    for _ in 0..2 {
        let again = proxy.get("/small", "");
        assert!(is_hit(&again), "{again:?}");
        assert_eq!((again.text(), again.field("date")), (small.text(), small.field("date")));
        let twice: Vec<&str> =
            again.fields.iter().filter(|(name, _)| name == "x-twice").map(|(_, value)| value.as_str()).collect();
        assert_eq!(twice, ["a", "b"]);
        for language in ["de", "en"] {
            let got = proxy.get("/vary", &format!("\r\nAccept-Language: {language}"));
            assert!(is_hit(&got) && got.text() == language, "{got:?}");
        }
        let long = proxy.get("/long", "");
        assert!(is_hit(&long) && long.text() == text_of(LONG, 1));
        let at = LONG / 2 - 3;
        let part = proxy.get("/long", &format!("\r\nRange: bytes={at}-{}", at + 600_000));
        assert_eq!((part.status(), part.body.len()), (206, 600_001));
        assert!(part.text() == text_of(LONG, 1)[at..=at + 600_000]);
        assert_eq!(proxy.get("/long", "\r\nIf-None-Match: \"long\"").status(), 304);
        let mut chunked = proxy.connect();
        write!(chunked, "GET /chunked HTTP/1.1\r\nHost: example.org\r\nTE: trailers\r\n\r\n").unwrap();
        let chunked = read_until(&mut chunked, "\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n");
        assert!(chunked.contains("plugway; hit"), "{chunked}");
    }
    assert_eq!(origin.count(), asked, "nobody has asked the origin");
    let status = status(&proxy);
    assert!(status.contains("\"read\":10"), "the long one three times twice, the others once: {status}");
}

/// A response in memory needs no disk access; concurrent requests for one on disk read its record once.
#[test]
fn a_crowd_has_a_file_read_once() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    proxy.get("/", "");
    let proxy = warm.restart(proxy);
    let crowd: Vec<_> = (0..200).map(|_| begin(&proxy)).collect();
    for client in crowd {
        assert_eq!(read_message(&mut BufReader::new(client)).unwrap().text(), "1");
    }
    let status = status(&proxy);
    assert!(origin.count() == 1 && (status.contains("\"read\":1,") || status.contains("\"read\":2,")), "{status}");
}

#[test]
fn purges_and_changes_outlast_a_restart() {
    let origin = Origin::new(|request, number| match request.start.split(' ').next() {
        Some("POST") => response("", ""),
        _ => {
            response("Cache-Control: max-age=60, stale-while-revalidate=60\r\nSurrogate-Key: red", &number.to_string())
        }
    });
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    let texts = |proxy: &Proxy| ["/a", "/b", "/c", "/d"].map(|path| proxy.get(path, "").text());
    assert_eq!(texts(&proxy), ["1", "2", "3", "4"]);
    warm.until_files(4);
    assert_eq!(proxy.ask_admin("POST /purge?uri=http://example.org/a").text(), "1 purged\n");
    proxy.exchange("POST /b HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0");
    assert_eq!(proxy.ask_admin("POST /purge?uri=http://example.org/c&soft").text(), "1 purged\n");
    let proxy = warm.restart(proxy);
    let stale = proxy.get("/c", "");
    assert!(is_hit(&stale) && stale.text() == "3", "{stale:?}");
    until("it is validated", || proxy.get("/c", "").text() == "6");
    assert_eq!(proxy.get("/d", "").text(), "4");
    assert_eq!((proxy.get("/a", "").text(), proxy.get("/b", "").text()), ("7".into(), "8".into()));
    let proxy = warm.restart(proxy);
    assert_eq!(proxy.ask_admin("POST /purge?tag=red").text(), "4 purged\n");
    warm.until_files(0);
    assert_eq!(proxy.get("/d", "").text(), "9");
}

/// A purge is complete when it is answered, however many writes are queued.
#[test]
fn a_soft_purge_of_a_file_that_is_gone_warns_of_nothing() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let warm = Warm::new(&origin.address, CACHE);
    let mut proxy = warm.start();
    proxy.get("/", "");
    until("the file is known", || proxy.metric("plugway_cache_disk_keys") == 1.0);
    std::fs::remove_file(&warm.files()[0]).unwrap();
    // The command waits until the file is marked.
    assert_eq!(proxy.ask_admin("POST /purge?all&soft").text(), "1 purged\n");
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(), Some(0));
    let log = proxy.log_to_end();
    assert!(!log.contains("can't be marked"), "{log}");
}

#[test]
fn purged_response_does_not_return_after_a_crash() {
    let origin = Origin::new(|_, _| response("Cache-Control: max-age=600", &text_of(200_000, 1)));
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    for at in 0..100 {
        proxy.get(&format!("/{at}"), "");
    }
    assert_eq!(proxy.ask_admin("POST /purge?all").status(), 200);
    warm.kill(proxy);
    assert_eq!(warm.files().len(), 0);
}

#[test]
fn response_grown_beyond_the_memory_replaces_the_older() {
    let origin = Origin::new(|_, number| match number {
        1 => response("Cache-Control: max-age=600", "short"),
        _ => response("Cache-Control: max-age=600", &text_of(LONG, 1)),
    });
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    assert_eq!(proxy.get("/", "").text(), "short");
    assert!(proxy.get("/", RELOAD).text() == text_of(LONG, 1));
    until("that is what is served", || proxy.get("/", "").body.len() == LONG);
    assert_eq!(origin.count(), 2);
}

/// The record on disk is short, however long the URI is.
#[test]
fn a_304_renews_what_is_longer_than_may_wait_to_be_written() {
    const LONGER: usize = 70 << 20;
    let origin = Origin::new(|request, number| match request.field("if-none-match") {
        Some(_) => format!("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nX-Number: {number}\r\n\r\n"),
        None => response("Cache-Control: max-age=600\r\nETag: \"a\"", &"x".repeat(LONGER)),
    });
    let warm = Warm::new(&origin.address, CACHE).of_size("2 GiB");
    let proxy = warm.start();
    assert_eq!(proxy.get("/", "").body.len(), LONGER);
    warm.until_files(1);
    assert_eq!(proxy.get("/", RELOAD).field("x-number"), Some("2"));
    until("it is renewed", || proxy.get("/", "\r\nRange: bytes=0-0").field("x-number") == Some("2"));
    assert_eq!(origin.count(), 2);
}

/// The file stays the same, and another request finds it.
#[test]
fn a_304_may_change_what_a_response_varies_by() {
    for length in [100, LONG] {
        let origin = Origin::new(move |request, _| match request.field("if-none-match") {
            Some(_) => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nVary: X-Kind\r\n\r\n".into(),
            None => response("Cache-Control: max-age=600\r\nETag: \"a\"", &text_of(length, 1)),
        });
        let warm = Warm::new(&origin.address, CACHE);
        let proxy = warm.start();
        proxy.get("/", "");
        warm.until_files(1);
        proxy.get("/", RELOAD);
        until("it is found by that", || proxy.get("/", "").field("vary") == Some("X-Kind"));
        assert_eq!(origin.count(), 2);
        let proxy = warm.restart(proxy);
        let again = proxy.get("/", "");
        assert!(is_hit(&again) && again.text() == text_of(length, 1), "{length}: {again:?}");
        assert!(!is_hit(&proxy.get("/", "\r\nX-Kind: a")), "that is another");
        warm.until_files(2);
        assert!(!proxy.has_logged("damaged"));
    }
}

#[test]
fn a_304_is_written_too() {
    let origin = Origin::new(|request, number| {
        let text = if request.start.contains("/long") { text_of(LONG, 2) } else { "short".into() };
        match request.field("if-none-match") {
            Some(_) => format!("HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nX-Turn: {number}\r\n\r\n"),
            None => response("Cache-Control: no-cache\r\nETag: \"a\"\r\nX-Turn: 0", &text),
        }
    });
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    for path in ["/short", "/long"] {
        assert_eq!(proxy.get(path, "").field("x-turn"), Some("0"));
    }
    warm.until_files(2);
    for (path, turn) in [("/short", "3"), ("/long", "4")] {
        let validated = proxy.get(path, "");
        assert!(status_of(&validated).contains("fwd-status=304"), "{path}: {:?}", validated.fields);
        assert_eq!(validated.field("x-turn"), Some(turn));
    }
    let proxy = warm.restart(proxy);
    for (path, turn, length) in [("/short", "3", 5), ("/long", "4", LONG)] {
        let got = proxy.get(path, "");
        assert!(is_hit(&got), "{path}: {:?}", got.fields);
        assert_eq!((got.field("x-turn"), got.body.len()), (Some(turn), length));
    }
    assert_eq!((origin.count(), warm.files().len()), (4, 2));
}

/// The drill: the process is killed repeatedly while it works.
#[test]
fn nothing_corrupt_is_served_after_any_end_of_the_process() {
    let origin = Origin::new(|request, _| {
        let number = request.number();
        response("Cache-Control: max-age=600", &text_of(1000 + number * 9_000, number))
    });
    let warm = Warm::new(&origin.address, CACHE);
    const PATHS: usize = 60;
    for round in 0..6 {
        let proxy = warm.start();
        let (is_over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let client = |from: usize| {
                let (address, is_over, served) = (proxy.address.clone(), &is_over, &served);
                move || {
                    for at in (0..PATHS).map(|at| (at * 7 + from) % PATHS) {
                        let Ok(mut stream) = std::net::TcpStream::connect(&address) else { break };
                        let _ = write!(stream, "GET /{at} HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n");
                        let mut all = Vec::new();
                        let is_whole = stream.read_to_end(&mut all).is_ok() && !is_over.load(Ordering::Relaxed);
                        if !is_whole {
                            break;
                        }
                        let got = read_message(&mut BufReader::new(&all[..])).unwrap();
                        assert!(got.text() == text_of(1000 + at * 9_000, at), "{at}");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                }
            };
            let clients: Vec<_> = (0..4).map(|from| scope.spawn(client(from * 15))).collect();
            until("some are served", || served.load(Ordering::Relaxed) > 20 + round * 20);
            is_over.store(true, Ordering::Relaxed);
            proxy.signal("KILL");
            clients.into_iter().for_each(|client| client.join().unwrap());
        });
        warm.kill(proxy);
    }
    let proxy = warm.start();
    let asked = origin.count();
    let mut hits = 0;
    for at in 0..PATHS {
        let got = proxy.get(&format!("/{at}"), "");
        assert!(got.text() == text_of(1000 + at * 9_000, at), "{at}");
        hits += usize::from(is_hit(&got));
    }
    assert_eq!(hits, PATHS - (origin.count() - asked));
    assert!(hits > PATHS / 2, "{hits} of {PATHS} have outlasted that");
    until("nothing is half written", || warm.unfinished().is_empty());
}

/// A disk that returns other bytes than were written.
#[test]
fn files_that_are_damaged_are_missed_and_removed() {
    let origin = Origin::new(|request, _| {
        let number = request.number();
        response("Cache-Control: max-age=600", &text_of(1000 + number * 30_000, number))
    });
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    const PATHS: usize = 8;
    let all_right = |proxy: &Proxy| {
        for at in 0..PATHS {
            let got = proxy.get(&format!("/{at}"), "");
            assert!(got.text() == text_of(1000 + at * 30_000, at), "{at}");
        }
    };
    all_right(&proxy);
    warm.until_files(PATHS);
    warm.stop(proxy);
    let files = warm.files();
    let length = |file: &Path| std::fs::metadata(file).unwrap().len();
    let open = |file: &Path| std::fs::OpenOptions::new().write(true).open(file).unwrap();
    // Short, empty, with another end, and with another byte in its content: the last can't be seen at the start.
    open(&files[0]).set_len(length(&files[0]) - 1).unwrap();
    open(&files[1]).set_len(0).unwrap();
    open(&files[2]).write_all_at(b"?", length(&files[2]) - 5).unwrap();
    open(&files[3]).write_all_at(b"?", 300).unwrap();
    std::fs::write(warm.folder.path().join("store/00/stranger"), "what is this?").unwrap();
    let proxy = warm.start();
    let asked = origin.count();
    all_right(&proxy);
    assert_eq!(origin.count() - asked, 4);
    proxy.wait_log("can't be read, and is removed");
    all_right(&proxy);
    assert_eq!(origin.count() - asked, 4);
    warm.until_files(PATHS + 1);
    assert!(warm.folder.path().join("store/00/stranger").exists(), "it isn't ours");
    // All gone, while it serves.
    let proxy = warm.restart(proxy);
    warm.files().iter().for_each(|file| std::fs::remove_file(file).unwrap());
    all_right(&proxy);
    assert_eq!(origin.count() - asked, 4 + PATHS);
}

#[test]
fn a_long_response_that_is_damaged_breaks_off_and_is_fetched_anew() {
    let origin = Origin::new(|_, _| response("Cache-Control: max-age=600", &text_of(LONG, 3)));
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    proxy.get("/", "");
    warm.until_files(1);
    let file = std::fs::OpenOptions::new().write(true).open(&warm.files()[0]).unwrap();
    file.write_all_at(b"?", LONG as u64 / 2).unwrap();
    let mut broken = begin(&proxy);
    let mut all = Vec::new();
    broken.read_to_end(&mut all).unwrap();
    let head = String::from_utf8_lossy(&all[..500]).into_owned();
    assert!(head.contains("plugway; hit") && head.contains(&format!("content-length: {LONG}")), "{head}");
    assert!(all.len() < LONG && !all.contains(&b'?'), "nothing of the damaged block has gone out");
    proxy.wait_log("is removed");
    let anew = proxy.get("/", "");
    assert!(status_of(&anew).contains("uri-miss") && anew.text() == text_of(LONG, 3));
    assert_eq!(origin.count(), 2);
}

/// A write that fails, as on a full disk: responses in memory are served from memory, and the log reports it once.
#[test]
fn without_room_on_disk_the_memory_serves() {
    let origin = Origin::new(|request, _| {
        let length = if request.start.contains("/long") { LONG } else { 100_000 };
        response("Cache-Control: max-age=600", &text_of(length, 4))
    });
    let warm = Warm::new(&origin.address, CACHE);
    // Once it knows its plugins, for which the limit is too low.
    warm.stop(warm.start());
    let command = plugway_with_short_files(1024);
    let proxy = warm.started(Proxy::start_by(command, warm.folder.path(), &warm.text));
    proxy.get("/a", "");
    warm.until_files(1);
    for turn in 0..2 {
        let long = proxy.get("/long", "");
        assert!(long.text() == text_of(LONG, 4), "it reaches its client");
        assert_eq!(origin.count(), 2 + turn, "and isn't stored");
        if turn == 0 {
            let told = proxy.wait_log("can't be stored on disk");
            assert!(told.contains("File too large") && told.contains("memory alone"), "{told}");
        } else {
            // Seen before: `stored`, of a response that was a miss each time.
            assert_eq!(status_of(&long), "plugway; fwd=uri-miss; fwd-status=200; detail=disk-failed");
        }
    }
    assert_eq!(proxy.metric("plugway_cache_refused_total{plugin=\"cache\",why=\"disk-failed\"}"), 1.0);
    proxy.get("/b", "");
    assert!(is_hit(&proxy.get("/b", "")) && is_hit(&proxy.get("/a", "")));
    assert!(!proxy.has_logged("can't be stored on disk"), "once is enough");
    assert_eq!(warm.files().len(), 1);
    until("nothing is half written", || warm.unfinished().is_empty());
}

/// A body that is longer than the cache's memory: it passes through the disk, for slow readers too.
#[test]
fn response_longer_than_the_memory_streams_to_and_from_disk() {
    const LENGTH: usize = 100 << 20;
    let (asked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, open) = (asked.clone(), gate.clone());
    let address = raw_origin(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while read_message(&mut reader).is_some() {
            count.fetch_add(1, Ordering::Relaxed);
            write!(stream, "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: {LENGTH}\r\n\r\n")
                .unwrap();
            for at in 0..LENGTH >> 20 {
                if at == 60 {
                    until("the second half is wanted", || open.load(Ordering::Relaxed) == 1);
                }
                if stream.write_all(&vec![at as u8; 1 << 20]).is_err() {
                    return;
                }
            }
        }
    });
    let warm = Warm::new(&address, CACHE);
    let warm = Warm { text: warm.text.replace("256 MiB", "4 GiB"), ..warm };
    let proxy = warm.start();
    proxy.get("/none", "\r\nCache-Control: only-if-cached");
    let before = proxy.memory_kib();
    let read = |client: &mut dyn Read, from: usize, to: usize| {
        let mut piece = vec![0; 1 << 20];
        for at in from..to {
            client.read_exact(&mut piece).unwrap();
            assert!(piece.iter().all(|byte| *byte == at as u8), "MiB {at}");
        }
    };
    let mut leader = begin(&proxy);
    read_until(&mut leader, "\r\n\r\n");
    read(&mut leader, 0, 60);
    // One that begins now has its beginning from the file.
    let mut follower = begin(&proxy);
    assert!(read_until(&mut follower, "\r\n\r\n").contains("collapsed"));
    read(&mut follower, 0, 60);
    gate.store(1, Ordering::Relaxed);
    read(&mut leader, 60, 100);
    read(&mut follower, 60, 100);
    warm.until_files(1);
    for _ in 0..2 {
        let mut hit = begin(&proxy);
        assert!(read_until(&mut hit, "\r\n\r\n").contains("plugway; hit"));
        read(&mut hit, 0, 100);
    }
    let grown = proxy.memory_kib().saturating_sub(before);
    assert!(grown < 40 << 10, "{grown} KiB for {} MiB", LENGTH >> 20);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn the_disk_has_its_budget() {
    let origin =
        Origin::new(|request, _| response("Cache-Control: max-age=600", &text_of(200_000, request.start.len())));
    let warm = Warm::new(&origin.address, CACHE).of_size("16 MiB");
    let proxy = warm.start();
    let total = || warm.files().iter().filter_map(|file| Some(std::fs::metadata(file).ok()?.len())).sum::<u64>();
    for at in 0..150 {
        proxy.get(&format!("/{at}"), "");
    }
    until("what is beyond it is removed", || total() < 17 << 20 && total() > 10 << 20);
    let stored = (0..150).map(|at| format!("/{at}")).find(|path| is_hit(&proxy.get(path, ""))).unwrap();
    let smaller = warm.text.replace("size = \"16 MiB\"", "size = \"17 MiB\"");
    std::fs::write(warm.folder.path().join("plugway.toml"), &smaller).unwrap();
    proxy.signal("HUP");
    proxy.wait_log("reloaded");
    assert!(is_hit(&proxy.get(&stored, "")), "a reload loses nothing");
}

/// Many files are written at the same time, while no client waits for them.
#[test]
fn arriving_responses_have_a_part_of_the_disk() {
    const COME: usize = 900 << 10;
    let address = raw_origin(|mut stream| {
        let head = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {}\r\n\r\n", COME + 1);
        read_message(&mut BufReader::new(&stream));
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&[b'x'; COME]));
        // The last byte never comes.
        let _ = stream.read(&mut [0]);
    });
    let warm = Warm::new(&address, CACHE).of_size("16 MiB");
    let proxy = warm.start();
    let clients: Vec<_> = (0..20)
        .map(|at| {
            let mut client = proxy.connect();
            write!(client, "GET /{at} HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
            read_until(&mut client, "\r\n\r\n");
            client.read_exact(&mut vec![0; COME]).unwrap();
            client
        })
        .collect();
    let sizes = warm.unfinished().iter().map(|file| std::fs::metadata(file).map_or(0, |file| file.len())).sum::<u64>();
    assert!(sizes > 1 << 20 && sizes <= 4 << 20, "{} KiB", sizes >> 10);
    drop(clients);
}

#[test]
fn a_folder_has_one_process_and_nothing_else() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    let path = warm.folder.path().join("plugway.toml");
    let second = output(plugway().arg("run").arg(&path).stderr(std::process::Stdio::piped()));
    assert!(second.contains("plugway.toml:") && second.contains("folder used by another process"), "{second}");
    let check = output(plugway().arg("check").arg(&path).stdout(std::process::Stdio::piped()));
    assert!(check.contains("is good"), "a check leaves it alone: {check}");
    let other = warm.folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("letter"), "dear").unwrap();
    std::fs::write(&path, warm.text.replace("path = \"store\"", "path = \"other\"")).unwrap();
    proxy.signal("HUP");
    let refused = proxy.wait_log("it holds other files");
    assert!(refused.contains("other"), "{refused}");
    assert!(other.join("letter").exists());
    assert_eq!(proxy.get("/", "").text(), "1", "and the old manifest goes on serving");
    // Back and forth: each folder keeps what is its own.
    std::fs::write(&path, warm.text.replace("path = \"store\"", "path = \"third\"")).unwrap();
    proxy.signal("HUP");
    proxy.wait_log("reloaded");
    assert_eq!(proxy.get("/", "").text(), "2");
    std::fs::write(&path, &warm.text).unwrap();
    proxy.signal("HUP");
    proxy.wait_log("reloaded");
    until("it is found again", || status(&proxy).contains("\"found\":true,\"keys\":1,"));
    assert_eq!(proxy.get("/", "").text(), "1");
}

#[test]
fn a_reload_may_spell_the_folder_anew() {
    let origin = Origin::always("Cache-Control: max-age=60");
    let warm = Warm::new(&origin.address, CACHE);
    let proxy = warm.start();
    assert_eq!(proxy.get("/", "").text(), "1");
    std::os::unix::fs::symlink("store", warm.folder.path().join("link")).unwrap();
    let store = warm.folder.path().join("store");
    for spelling in [store.to_str().unwrap(), "link", "store/../store"] {
        let text = warm.text.replace("path = \"store\"", &format!("path = {spelling:?}"));
        std::fs::write(warm.folder.path().join("plugway.toml"), text).unwrap();
        proxy.signal("HUP");
        proxy.wait_log("reloaded: generation");
        assert_eq!(proxy.get("/", "").text(), "1", "{spelling}");
    }
}
