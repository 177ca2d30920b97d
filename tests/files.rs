//! Routes that serve files: what clients get, what they can't get, and files that change while they are served.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use plugway_test_guests::HOOKS;
use socket2::{Domain, Socket, Type};

use crate::starting::{as_nobody, open_folder};
use crate::support::{Message, PATIENCE, Proxy, RUNTIME, output, plugway, plugway_after, read_message, until};

/// What no client may get: it is the content of every file outside the root, and of hidden ones in it.
const SECRET: &str = "keep this secret";

/// A folder with the root of a site, and the proxy that serves it.
struct Site {
    proxy: Proxy,
    folder: tempfile::TempDir,
}

impl Site {
    /// Starts a proxy on a site, with more keys of `files` and of the route.
    fn start(files: &str, route: &str) -> Site {
        Site::start_by(plugway(), files, route)
    }

    fn start_by(command: Command, files: &str, route: &str) -> Site {
        Site::start_in(tempfile::tempdir().unwrap(), command, files, route)
    }

    fn start_in(folder: tempfile::TempDir, command: Command, files: &str, route: &str) -> Site {
        std::fs::create_dir(folder.path().join("root")).unwrap();
        std::fs::write(folder.path().join("secret"), SECRET).unwrap();
        let text = format!(
            "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nfiles = {{ root = \"root\"{files} }}\n{route}"
        );
        Site { proxy: Proxy::start_by(command, folder.path(), &text), folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join("root").join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn get(&self, path: &str, fields: &str) -> Message {
        self.ask("GET", path, fields)
    }

    fn ask(&self, method: &str, path: &str, fields: &str) -> Message {
        let mut stream = self.proxy.connect();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close{fields}\r\n\r\n").unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        message(&bytes)
    }
}

/// Parses a response that ends with its connection, whatever its length says.
fn message(bytes: &[u8]) -> Message {
    let end = bytes.windows(4).position(|part| part == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let start = lines.next().unwrap().to_string();
    let fields = lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.into(), value.into()));
    Message { start, fields: fields.collect(), body: bytes[end..].to_vec() }
}

fn set_modified(path: &Path, time: &str) {
    assert!(Command::new("touch").args(["-d", time]).arg(path).status().unwrap().success());
}

#[test]
fn a_file_has_its_type_its_length_and_its_validators() {
    let site = Site::start("", "");
    site.write("a.html", "hello");
    set_modified(&site.at("a.html"), "2020-01-01T00:00:00Z");
    let whole = site.get("/a.html", "");
    assert_eq!((whole.status(), whole.text().as_str()), (200, "hello"));
    let field = |name| whole.field(name).unwrap_or("");
    assert_eq!(field("content-type"), "text/html; charset=utf-8");
    assert_eq!((field("content-length"), field("accept-ranges")), ("5", "bytes"));
    assert_eq!(field("last-modified"), "Wed, 01 Jan 2020 00:00:00 GMT");
    let tag = field("etag");
    assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 5, "strong: {tag}");
    assert_eq!(whole.field("vary"), None, "nothing varies");
    let head = site.ask("HEAD", "/a.html", "");
    assert_eq!((head.status(), head.body.len(), head.field("content-length")), (200, 0, Some("5")));
    assert_eq!(head.field("etag"), Some(tag));
    site.write("a.html", "there");
    assert_ne!(site.get("/a.html", "").field("etag"), Some(tag), "another content of the same length");
}

/// A client that has the old content must not get a 304, or a range of the new content.
#[test]
fn contents_with_the_same_fixed_time_have_different_tags() {
    let site = Site::start("", "");
    let (file, next) = (site.at("app.js"), site.at("next"));
    let changed = |path: &Path| std::fs::metadata(path).map(|found| (found.ctime(), found.ctime_nsec())).unwrap();
    for time in ["1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z", "1980-01-01T00:00:00Z", "1980-01-02T23:59:59Z"] {
        site.write("app.js", "release = 1");
        set_modified(&file, time);
        let old = site.get("/app.js", "");
        assert_eq!((old.text().as_str(), old.field("last-modified")), ("release = 1", None), "{time}");
        let tag = old.field("etag").unwrap();
        let (known, range) = (format!("\r\nIf-None-Match: {tag}"), format!("\r\nRange: bytes=10-\r\nIf-Range: {tag}"));
        assert_eq!(site.get("/app.js", &known).status(), 304, "{time}");
        assert_eq!(site.get("/app.js", &range).text(), "1", "{time}");
        site.write("next", "release = 2");
        // The clock of a file system may have steps of milliseconds.
        until("another time of change", || {
            set_modified(&next, time);
            changed(&next) != changed(&file)
        });
        std::fs::rename(&next, &file).unwrap();
        for fields in [&known, &range] {
            let new = site.get("/app.js", fields);
            assert_eq!((new.status(), new.text().as_str()), (200, "release = 2"), "{time}{fields}");
        }
    }
    set_modified(&file, "1980-01-03T00:00:00Z");
    assert_eq!(site.get("/app.js", "").field("last-modified"), Some("Thu, 03 Jan 1980 00:00:00 GMT"));
}

#[test]
fn conditions_and_ranges_are_those_of_rfc_9110() {
    let site = Site::start("", "");
    site.write("a.txt", "0123456789");
    set_modified(&site.at("a.txt"), "2020-01-01T00:00:00Z");
    let tag = site.get("/a.txt", "").field("etag").unwrap().to_string();
    let (own, old) = ("Wed, 01 Jan 2020 00:00:00 GMT", "Tue, 31 Dec 2019 00:00:00 GMT");
    let cases = [
        (format!("If-None-Match: {tag}"), 304, ""),
        (format!("If-None-Match: \"x\", W/{tag}"), 304, ""),
        ("If-None-Match: *".into(), 304, ""),
        ("If-None-Match: \"x\"".into(), 200, "0123456789"),
        (format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {own}"), 200, "0123456789"),
        (format!("If-Modified-Since: {own}"), 304, ""),
        (format!("If-Modified-Since: {old}"), 200, "0123456789"),
        (format!("If-Match: {tag}"), 200, "0123456789"),
        (format!("If-Match: {tag}\r\nIf-None-Match: {tag}"), 304, ""),
        ("Range: bytes=2-4".into(), 206, "234"),
        ("Range: bytes=-3".into(), 206, "789"),
        ("Range: bytes=8-".into(), 206, "89"),
        ("Range: bytes=8-100".into(), 206, "89"),
        ("Range: bytes=5-4".into(), 200, "0123456789"),
        ("Range: bytes=".into(), 200, "0123456789"),
        ("Range: bytes=, ,".into(), 200, "0123456789"),
        ("Range: lines=1-2".into(), 200, "0123456789"),
        ("Range: bytes=0-8,1-9".into(), 200, "0123456789"),
        (format!("Range: bytes=0-1\r\nIf-Range: {tag}"), 206, "01"),
        (format!("Range: bytes=0-1\r\nIf-Range: W/{tag}"), 200, "0123456789"),
        (format!("Range: bytes=0-1\r\nIf-Range: {own}"), 206, "01"),
        (format!("Range: bytes=0-1\r\nIf-Range: {old}"), 200, "0123456789"),
        ("Range: bytes=10-".into(), 416, ""),
        ("Range: Bytes=2-4".into(), 206, "234"),
    ];
    for (fields, status, text) in cases {
        let got = site.get("/a.txt", &format!("\r\n{fields}"));
        assert_eq!((got.status(), got.text().as_str()), (status, text), "{fields}");
        let length = if status == 304 { None } else { Some(text.len().to_string()) };
        assert_eq!(got.field("content-length").map(String::from), length, "{fields}");
    }
    assert_eq!(site.get("/a.txt", "\r\nIf-Match: \"x\"").status(), 412);
    assert_eq!(site.get("/a.txt", &format!("\r\nIf-Unmodified-Since: {old}")).status(), 412);
    assert_eq!(site.get("/none.txt", "\r\nIf-Match: \"x\"").status(), 404, "nothing is there to be matched");
    assert_eq!(site.get("/a.txt", "\r\nRange: bytes=10-").field("content-range"), Some("bytes */10"));
    assert_eq!(site.get("/a.txt", "\r\nRange: bytes=2-4").field("content-range"), Some("bytes 2-4/10"));
    let head = site.ask("HEAD", "/a.txt", "\r\nRange: bytes=2-4");
    assert_eq!((head.status(), head.field("content-length")), (200, Some("10")), "ranges are for GET");
    site.write("empty.txt", "");
    for range in ["0-", "-5", "0-0"] {
        let got = site.get("/empty.txt", &format!("\r\nRange: bytes={range}"));
        assert_eq!((got.status(), got.field("content-length")), (200, Some("0")), "{range}");
    }
}

#[test]
fn several_ranges_are_parts_of_one_body() {
    let site = Site::start("", "");
    let content: String = (0..300_000).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
    site.write("a.txt", &content);
    let got = site.get("/a.txt", "\r\nRange: bytes=290000-299999, 0-149999, -1");
    let kind = got.field("content-type").unwrap().to_string();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    assert_eq!(got.field("content-length"), Some(got.body.len().to_string().as_str()));
    let text = got.text();
    let parts: Vec<&str> = text.split(&format!("\r\n--{boundary}")).skip(1).collect();
    assert_eq!((parts.len(), parts[3]), (4, "--\r\n"));
    for (part, (first, last)) in parts.iter().zip([(290_000, 299_999), (0, 149_999), (299_999, 299_999)]) {
        let (head, body) = part.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: text/plain; charset=utf-8"), "{head}");
        assert!(head.contains(&format!("content-range: bytes {first}-{last}/300000")), "{head}");
        assert_eq!(body, &content[first..=last]);
    }
    let many = (0..17).map(|at| format!("{at}-{at}")).collect::<Vec<_>>().join(",");
    assert_eq!(site.get("/a.txt", &format!("\r\nRange: bytes={many}")).status(), 200, "more than anyone needs");
}

#[test]
fn no_path_leads_out_of_the_root_or_to_hidden_files() {
    let site = Site::start(", browse = true", "");
    for name in [".env", ".git/config", "folder/.hidden", "folder/inner.txt"] {
        site.write(name, if name.contains("/inner") { "inner" } else { SECRET });
    }
    site.write(".well-known/token", "token");
    symlink("../secret", site.at("out")).unwrap();
    symlink(site.folder.path().join("secret"), site.at("absolute")).unwrap();
    symlink("..", site.at("up")).unwrap();
    symlink("/", site.at("top")).unwrap();
    symlink("/proc/self/root/etc/passwd", site.at("magic")).unwrap();
    symlink("self", site.at("self")).unwrap();
    symlink("folder/inner.txt", site.at("inside")).unwrap();
    let long = |part: &str| part.repeat(4000 / part.len());
    let secret = site.folder.path().join("secret");
    let mut paths: Vec<String> = [
        "/../secret",
        "/folder/../../secret",
        "/%2e%2e/secret",
        "/%2e%2e%2fsecret",
        "/..%2fsecret",
        "/..%5csecret",
        "/..\\secret",
        "/%252e%252e/secret",
        "/%252e%252e%252fsecret",
        "/.%2e/secret",
        "/folder/%2e%2e/%2e%2e/secret",
        "//../secret",
        "/..;/secret",
        "/..%00/secret",
        "/out",
        "/out/",
        "/absolute",
        "/up/secret",
        "/up/",
        "/top/etc/passwd",
        "/magic",
        "/self",
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/.git/",
        "/.git",
        "/folder/.hidden",
        "/folder%2finner.txt",
        "/folder/inner.txt%00",
        "/folder/inner.txt%00.html",
        "/folder/inner.txt/",
        "/folder/inner.txt/x",
        "/%c0%ae%c0%ae/secret",
        "/\u{2025}/secret",
        "/%e2%80%a5/secret",
        "/%uff0e%uff0e/secret",
        "/folder/inner.txt%20",
        "/FOLDER/inner.txt",
        "/root/secret",
        "/etc/passwd",
        "/folder/.",
        "/a%0d%0aX-Injected:%201",
        "/.well-known/.env",
        "/x/.well-known/token",
    ]
    .map(String::from)
    .into();
    paths.extend([format!("/{}", long("a")), long("/a"), long("/.."), format!("{}/secret", long("/%2e%2e"))]);
    paths.push(secret.to_str().unwrap().into());
    paths.push(format!("/{}", secret.to_str().unwrap()));
    for path in paths {
        let got = site.get(&path, "");
        let is_folder = path == "/folder/.";
        assert!(matches!(got.status(), 400 | 404) || is_folder, "{path}: {}", got.status());
        assert!(!got.text().contains(SECRET) && !got.text().contains("root:"), "{path}: {}", got.text());
        assert_eq!(got.field("x-injected"), None, "{path}");
    }
    for (path, wanted) in [("/inside", "inner"), ("/folder/./inner.txt", "inner"), ("/.well-known/token", "token")] {
        assert_eq!(site.get(path, "").text(), wanted, "{path}");
    }
    let list = site.get("/", "").text();
    assert!(list.contains("./folder/") && list.contains("./inside\"") && list.contains("./.well-known/"), "{list}");
    for hidden in [".env", ".git", "out", "absolute", "up", "top", "magic", "self"] {
        assert!(!list.contains(&format!("\"./{hidden}")), "{hidden}: {list}");
    }
}

#[test]
fn links_that_are_swapped_while_files_are_served_lead_nowhere() {
    let site = Site::start("", "");
    site.write("place/secret", "mine");
    let (place, spare, over) = (site.at("place"), site.at("spare"), AtomicBool::new(false));
    let mut served = 0;
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                std::fs::rename(&place, &spare).unwrap();
                symlink("..", &place).unwrap();
                // As fast as it may be, so that each moment of a request meets it.
                std::thread::yield_now();
                std::fs::remove_file(&place).unwrap();
                std::fs::rename(&spare, &place).unwrap();
            }
        });
        let mut stream = site.proxy.connect();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        for _ in 0..3_000 {
            write!(stream, "GET /place/secret HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let got = read_message(&mut reader).unwrap();
            assert!(!got.text().contains(SECRET), "{}", got.text());
            assert!(matches!(got.status(), 200 | 404), "{}", got.status());
            served += usize::from(got.status() == 200);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(served > 0, "some requests met the folder");
}

#[test]
fn special_files_are_not_opened_and_nothing_hangs() {
    let site = Site::start("", "");
    assert!(Command::new("mkfifo").arg(site.at("pipe")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(site.at("socket")).unwrap();
    symlink("/dev/zero", site.at("zero")).unwrap();
    for path in ["/pipe", "/socket", "/zero", "/pipe/"] {
        assert_eq!(site.get(path, "").status(), 404, "{path}");
    }
}

#[test]
fn a_folder_has_an_index_or_a_list() {
    let site = Site::start(", index = [\"home.html\", \"index.html\"]", "");
    site.write("docs/index.html", "second");
    assert_eq!(site.get("/docs/", "").text(), "second");
    site.write("docs/home.html", "first");
    assert_eq!(site.get("/docs/", "").text(), "first");
    assert_eq!(site.get("/docs/", "").field("content-type"), Some("text/html; charset=utf-8"));
    let redirected = site.get("/docs?a=1", "");
    assert_eq!((redirected.status(), redirected.field("location")), (301, Some("./docs/?a=1")));
    let address = format!("http://{}/docs?a=1", site.proxy.address);
    assert_eq!(output(Command::new("curl").args(["--silent", "--location", &address])), "first");
    site.write("empty/file.txt", "x");
    assert_eq!(site.get("/empty/", "").status(), 404, "no list");
    // The slashes are one in the normal form, and the location is relative all the same.
    assert_eq!(site.get("//docs", "").field("location"), Some("./docs/"));

    let site = Site::start(", browse = true", "");
    site.write("a/<b>.txt", "x");
    let list = site.get("/a/", "");
    assert_eq!((list.status(), list.field("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(list.text().contains("<a href=\"./%3Cb%3E.txt\">&lt;b&gt;.txt</a>"), "{}", list.text());
    assert_eq!(site.ask("HEAD", "/a/", "").field("content-length"), list.field("content-length"));
    assert_eq!(site.get("/a/%3Cb%3E.txt", "").text(), "x");
    site.write("a/index.html", "index");
    assert_eq!(site.get("/a/", "").text(), "index");
}

#[test]
fn a_prefix_that_the_route_removes_is_a_folder_too() {
    let site = Site::start("", "path = \"/static\"\nstrip-prefix = true\n");
    site.write("index.html", "index");
    site.write("docs/a.txt", "inner");
    for (path, wanted) in [("/static/", "index"), ("/static/docs/a.txt", "inner")] {
        assert_eq!(site.get(path, "").text(), wanted, "{path}");
    }
    for (path, wanted) in [("/static?a=1", "./static/?a=1"), ("/static/docs", "./docs/")] {
        let got = site.get(path, "");
        assert_eq!((got.status(), got.field("location")), (301, Some(wanted)), "{path}");
    }
    assert_eq!(site.get("/static/../docs/a.txt", "").status(), 404, "another path");
}

#[test]
fn other_methods_are_told_which_there_are() {
    let site = Site::start("", "");
    site.write("a.txt", "x");
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let got = site.ask(method, "/a.txt", "\r\nContent-Length: 0");
        assert_eq!((got.status(), got.field("allow")), (405, Some("GET, HEAD, OPTIONS")), "{method}");
    }
    let got = site.ask("OPTIONS", "/a.txt", "");
    assert_eq!((got.status(), got.field("allow")), (204, Some("GET, HEAD, OPTIONS")));
    assert_eq!(std::fs::read_to_string(site.at("a.txt")).unwrap(), "x");
}

#[test]
fn a_fallback_answers_for_paths_without_a_file() {
    let site = Site::start(", fallback = \"index.html\"", "");
    site.write("index.html", "application");
    site.write("app.js", "script");
    for path in ["/", "/users/7", "/users/", "/index.html", "/.env"] {
        let wanted = if path == "/.env" { 404 } else { 200 };
        assert_eq!(site.get(path, "").status(), wanted, "{path}");
    }
    let got = site.get("/users/7", "");
    assert_eq!((got.text().as_str(), got.field("content-type")), ("application", Some("text/html; charset=utf-8")));
    let tag = got.field("etag").unwrap().to_string();
    assert_eq!(site.get("/users/8", &format!("\r\nIf-None-Match: {tag}")).status(), 304);
    assert_eq!(site.get("/app.js", "").text(), "script");
    assert_eq!(site.ask("POST", "/users/7", "\r\nContent-Length: 0").status(), 405);
}

#[test]
fn a_compressed_copy_is_sent_to_those_who_accept_it() {
    let site = Site::start(", precompressed = [\"br\", \"gzip\"]", "");
    for (name, content) in [("a.js", "plain"), ("a.js.br", "brotli"), ("a.js.gz", "gzipped"), ("b.js", "only")] {
        site.write(name, content);
        set_modified(&site.at(name), "2020-01-01T00:00:00Z");
    }
    let cases = [
        ("", "plain", None),
        ("gzip", "gzipped", Some("gzip")),
        ("gzip, br", "brotli", Some("br")),
        ("br;q=0.5, gzip", "gzipped", Some("gzip")),
        ("br;q=0, gzip;q=0", "plain", None),
        ("zstd", "plain", None),
        ("*", "brotli", Some("br")),
    ];
    let mut tags = Vec::new();
    for (accept, content, coding) in cases {
        let got = site.get("/a.js", &format!("\r\nAccept-Encoding: {accept}"));
        assert_eq!((got.text().as_str(), got.field("content-encoding")), (content, coding), "{accept}");
        assert_eq!(got.field("content-type"), Some("text/javascript; charset=utf-8"), "{accept}");
        assert_eq!(got.field("vary"), Some("accept-encoding"), "{accept}");
        tags.push(got.field("etag").unwrap().to_string());
    }
    assert!(tags[0] != tags[1] && tags[1] != tags[2] && tags[0] == tags[4], "{tags:?}");
    let known = site.get("/a.js", &format!("\r\nAccept-Encoding: br\r\nIf-None-Match: {}", tags[2]));
    assert_eq!((known.status(), known.field("vary")), (304, Some("accept-encoding")));
    let other = site.get("/a.js", &format!("\r\nAccept-Encoding: gzip\r\nIf-None-Match: {}", tags[2]));
    assert_eq!(other.status(), 200, "the tag is that of the other coding");
    let part = site.get("/a.js", "\r\nAccept-Encoding: br\r\nRange: bytes=0-1");
    assert_eq!((part.status(), part.text().as_str(), part.field("content-range")), (206, "br", Some("bytes 0-1/6")));
    assert_eq!(site.get("/b.js", "\r\nAccept-Encoding: br").text(), "only");
    set_modified(&site.at("a.js"), "2020-01-01T00:01:00Z");
    assert_eq!(site.get("/a.js", "\r\nAccept-Encoding: br").text(), "plain", "the copy is of an older file");
    assert_eq!(site.get("/a.js.gz", "").field("content-type"), Some("application/gzip"));
}

#[test]
fn a_file_that_is_replaced_or_cut_is_never_mixed_or_padded() {
    const LENGTH: usize = 8 << 20;
    let site = Site::start("", "");
    site.write("a.bin", &"a".repeat(LENGTH));
    let mut replaced = begin(&site, "/a.bin");
    site.write("new", &"b".repeat(LENGTH));
    std::fs::rename(site.at("new"), site.at("a.bin")).unwrap();
    let got = read_message(&mut replaced).unwrap();
    assert!(got.body.len() == LENGTH && got.body.iter().all(|byte| *byte == b'a'), "the file that was opened");
    assert!(site.get("/a.bin", "").body.iter().all(|byte| *byte == b'b'), "the file that is there");

    let mut grown = begin(&site, "/a.bin");
    let mut appended = std::fs::OpenOptions::new().append(true).open(site.at("a.bin")).unwrap();
    appended.write_all(b"more").unwrap();
    assert_eq!(read_message(&mut grown).unwrap().body.len(), LENGTH, "the length that was promised");

    let mut cut = begin(&site, "/a.bin");
    std::fs::File::options().write(true).open(site.at("a.bin")).unwrap().set_len(1000).unwrap();
    let mut bytes = Vec::new();
    let _ = cut.read_to_end(&mut bytes);
    assert!(bytes.len() < LENGTH, "the response is broken: {}", bytes.len());
    assert!(!bytes.contains(&0), "nothing is made up");
    let line = site.proxy.wait_log("response cut off");
    assert!(line.contains("the file became shorter"), "{line}");
}

/// Asks for a file on a connection whose system buffers only a few KiB, and waits until the response has begun.
fn begin(site: &Site, path: &str) -> BufReader<TcpStream> {
    let stream = send_to(site, path);
    let mut first = [0];
    assert_eq!(stream.peek(&mut first).unwrap(), 1);
    BufReader::new(stream)
}

/// Sends a request on a connection that receives little at a time.
fn send_to(site: &Site, path: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(&site.proxy.address.parse::<SocketAddr>().unwrap().into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    stream
}

#[test]
fn slow_clients_cost_little_and_hold_up_nobody() {
    let site = Site::start("", "");
    std::fs::File::create(site.at("huge")).unwrap().set_len(1 << 30).unwrap();
    site.write("small", "x");
    assert_eq!(site.get("/small", "").text(), "x");
    let before = site.proxy.memory_kib();
    let slow: Vec<_> = (0..64).map(|_| begin(&site, "/huge")).collect();
    for _ in 0..100 {
        assert_eq!(site.get("/small", "").text(), "x");
    }
    let cost = site.proxy.memory_kib().saturating_sub(before) / slow.len() as u64;
    assert!(cost < 1024, "{cost} KiB for each client");
}

/// Makes a folder whose list has some megabytes.
fn fill(site: &Site, folder: &str) {
    std::fs::create_dir(site.at(folder)).unwrap();
    for number in 0..10_000 {
        std::fs::File::create(site.at(&format!("{folder}/{}{number}", "n".repeat(240)))).unwrap();
    }
}

#[test]
fn clients_that_read_no_list_of_a_large_folder_share_it_and_return_its_memory() {
    let site = Site::start(", browse = true", "");
    fill(&site, "many");
    let length: usize = site.ask("HEAD", "/many/", "").field("content-length").unwrap().parse().unwrap();
    // More than the system keeps for a client.
    assert!(length > 5 << 20, "{length}");
    let before = site.proxy.memory_kib();
    let slow: Vec<TcpStream> = (0..40).map(|_| send_to(&site, "/many/")).collect();
    let mut first = [0];
    slow.iter().for_each(|client| assert_eq!(client.peek(&mut first).unwrap(), 1));
    let held = || site.proxy.metric("plugway_buffered_bytes{place=\"memory\"}");
    // Seen before: 40 lists, and 503 once they filled `[buffers] memory`.
    assert!(held() >= length as f64 && held() <= 3.0 * length as f64, "{} of {length}", held());
    for client in slow {
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    }
    until("the memory is returned", || held() == 0.0);
    let grown = site.proxy.memory_kib().saturating_sub(before);
    assert!(grown < 48 << 10, "{grown} KiB");
}

#[test]
fn a_list_that_does_not_fit_into_the_memory_for_bodies_is_a_503_that_names_the_key() {
    let site = Site::start(", browse = true", "[buffers]\nmemory = \"4 MiB\"\n");
    fill(&site, "many");
    site.write("few/file.txt", "x");
    assert_eq!(site.get("/many/", "").status(), 503);
    let line = site.proxy.wait_log("the list of a folder does not fit");
    assert!(line.contains("buffers.memory"), "{line}");
    assert_eq!(site.get("/few/", "").status(), 200);
}

#[test]
fn a_root_that_vanishes_is_told_of_and_another_in_its_place_is_served() {
    let site = Site::start("", "");
    let root = site.folder.path().join("root");
    site.write("a.txt", "first");
    assert_eq!(site.get("/a.txt", "").text(), "first");
    std::fs::rename(&root, site.folder.path().join("old")).unwrap();
    until("the root is missed", || site.get("/a.txt", "").status() == 503);
    let line = site.proxy.wait_log("no folder to serve files from");
    assert!(line.contains("WARN") && line.contains("/root`"), "{line}");
    let release = |content: &str| {
        let folder = site.folder.path().join(content);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("a.txt"), content).unwrap();
        symlink(&folder, site.folder.path().join("next")).unwrap();
        std::fs::rename(site.folder.path().join("next"), &root).unwrap();
    };
    for content in ["second", "third"] {
        release(content);
        until("the next root is served", || site.get("/a.txt", "").text() == content);
    }
}

#[test]
fn plugins_see_requests_and_responses_of_files() {
    let hooks = format!("plugins = [\"headers\", {{ use = {HOOKS:?} }}]\n");
    let more = "[plugin.headers]\nuse = \"headers\"\nconfig = { response = { set = { X-Served = \"{path}\" } } }\n";
    let site = Site::start(", browse = true", &format!("{hooks}{more}"));
    site.write("a.txt", "hello");
    let got = site.proxy.get("/a.txt", "\r\nRange: bytes=0-1\r\nAccept-Encoding: gzip");
    assert_eq!((got.status(), got.text().as_str(), got.field("x-served")), (200, "HELLO!", Some("/a.txt")));
    assert_eq!(got.field("content-length"), None, "the plugin changes the length");
    let tag = got.field("etag").unwrap().to_string();
    assert!(tag.starts_with("W/"), "{tag}");
    assert_eq!(site.get("/a.txt", &format!("\r\nIf-None-Match: {tag}")).status(), 304);
    let missing = site.get("/none", "");
    assert_eq!((missing.status(), missing.field("x-served")), (404, Some("/none")));
    assert_eq!(missing.field("proxy-status"), None, "a file that does not exist is no failure");
}

#[test]
fn http2_and_pages_and_logs_are_those_of_every_route() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("root")).unwrap();
    std::fs::write(folder.path().join("root/big"), "x".repeat(3 << 20)).unwrap();
    std::fs::write(folder.path().join("404.html"), "page of {status}").unwrap();
    let text = "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[access-log]\nformat = \"json\"\nfile = \"log\"\n\
                [error-page]\n404 = \"404.html\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
                [[route]]\nname = \"site\"\nfiles = { root = \"root\" }\n";
    let proxy = Proxy::start_in(folder.path(), text);
    let curl = |path: &str, args: &[&str]| {
        let address = format!("http://{}{path}", proxy.address);
        output(Command::new("curl").args(["--silent", "--http2-prior-knowledge"]).args(args).arg(address))
    };
    assert_eq!(curl("/big", &[]).len(), 3 << 20);
    assert_eq!(curl("/big", &["--range", "5-9"]), "xxxxx");
    assert_eq!(curl("/none", &[]), "page of 404");
    until("the log is written", || {
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        log.lines().count() == 3 && log.contains("\"status\":206") && log.contains("\"route\":\"site\"")
    });
    assert_eq!(proxy.metric("plugway_responses_total{route=\"site\",class=\"2xx\"}"), 2.0);
    assert_eq!(proxy.metric("plugway_responses_total{route=\"site\",class=\"4xx\"}"), 1.0);
    assert!(!proxy.has_logged("exchange failed"), "a file that does not exist is no failure");
}

#[test]
fn a_client_whose_files_use_its_part_of_the_descriptors_gets_a_503() {
    let site = Site::start_by(plugway_after("ulimit -n 256"), "", "");
    std::fs::File::create(site.at("huge")).unwrap().set_len(1 << 30).unwrap();
    site.write("small", "x");
    let slow: Vec<_> = (0..120).map_while(|_| try_begin(&site, "/huge")).collect();
    assert!(slow.len() >= 48, "{}", slow.len());
    until("one is refused", || site.get("/small", "").status() == 503);
    assert!(site.proxy.wait_log("exchange failed").contains("limit=\"descriptors\""));
    let mut other = site.proxy.connect_from("127.0.0.2");
    other.write_all(b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut BufReader::new(other)).unwrap().status(), 200);
    drop(slow);
    until("files are free again", || site.get("/small", "").status() == 200);
}

/// Asks for a file as [`begin`]; `None` if it is refused.
fn try_begin(site: &Site, path: &str) -> Option<BufReader<TcpStream>> {
    let reader = begin(site, path);
    let mut start = [0; 12];
    reader.get_ref().peek(&mut start).ok().filter(|_| start.ends_with(b"200")).map(|_| reader)
}

#[test]
fn a_file_that_may_not_be_read_is_a_403() {
    // Root may read everything: the proxy runs as another user.
    let cache = tempfile::tempdir().unwrap();
    let mut command = if rustix::process::geteuid().is_root() { as_nobody(cache.path()) } else { plugway() };
    command.env(RUNTIME, cache.path());
    let site = Site::start_in(open_folder(), command, "", "");
    for name in ["closed.txt", "open.txt", "closed/a.txt"] {
        site.write(name, "x");
    }
    let close = |name| std::fs::set_permissions(site.at(name), PermissionsExt::from_mode(0o000)).unwrap();
    ["closed.txt", "closed"].into_iter().for_each(close);
    for (path, status) in [("/open.txt", 200), ("/closed.txt", 403), ("/closed/a.txt", 403), ("/none.txt", 404)] {
        assert_eq!(site.get(path, "").status(), status, "{path}");
    }
    for path in ["/closed.txt", "/closed/a.txt"] {
        let line = site.proxy.wait_log("file can't be read: permission denied");
        assert!(line.contains(&format!("path=\"{path}\"")) && line.contains("remedy="), "{line}");
    }
}

#[test]
fn a_folder_is_redirected_to_by_the_path_that_the_client_knows() {
    let rules = "plugins = [{ use = \"rewrite\", config.rules = [{ regex = \"^/docs(.*)$\", to = \"/sub$1\" }] }]";
    let site = Site::start("", rules);
    site.write("sub/index.html", "the index");
    for (path, location) in [("/docs?a=b", "./docs/?a=b"), ("/sub", "./sub/")] {
        let got = site.get(path, "");
        assert_eq!((got.status(), got.field("location")), (301, Some(location)), "{path}");
    }
    assert_eq!(site.get("/docs/", "").text(), "the index");
}

/// A redirect to the slash would lead to the path from which the plugin removes it again.
#[test]
fn a_folder_whose_slash_a_plugin_removes_is_not_redirected_to_again() {
    let canonical = "config.canonical = { trailing-slash = \"remove\", redirect = false }";
    let plugins = format!("plugins = [{{ use = \"rewrite\", {canonical} }}]\n");
    let below = format!("path = \"/static\"\nstrip-prefix = true\n{plugins}");
    for (route, prefix) in [(&plugins, ""), (&below, "/static")] {
        let site = Site::start(", browse = true", route);
        site.write("index.html", "the root");
        site.write("sub/index.html", "the index");
        site.write("list/a.txt", "inner");
        let got = site.get(&format!("{prefix}/sub?a=b"), "");
        assert_eq!((got.status(), got.field("location")), (301, Some("./sub/?a=b")), "{prefix}");
        let cases = [("/", "the root"), ("/sub/", "the index"), ("/sub/.", "the index"), ("/list/a.txt/", "inner")];
        for (path, wanted) in cases {
            assert_eq!(site.get(&format!("{prefix}{path}"), "").text(), wanted, "{prefix}{path}");
        }
        let list = site.get(&format!("{prefix}/list/"), "").text();
        assert!(list.contains("<a href=\"./a.txt\">"), "{list}");
    }
}

/// A build may make the file later, but a misspelt name would make every path of an application 404 in silence.
#[test]
fn a_fallback_that_is_missing_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("public/app")).unwrap();
    std::fs::write(folder.path().join("public/app/index.html"), "").unwrap();
    let check = |fallback: &str| {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nfiles = {{ root = \"public\", fallback = \"{fallback}\" }}\n"
        );
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        output(plugway().args(["check", "plugway.toml"]).current_dir(folder.path()))
    };
    for missing in ["index.htm", "app/indx.html", "app"] {
        let said = check(missing);
        assert!(
            said.contains("warning: no file for `fallback`") && said.contains("plugway.toml:4:"),
            "{missing}: {said}"
        );
    }
    for good in ["app/index.html", "/app/index.html"] {
        assert!(!check(good).contains("warning"), "{good}");
    }
}

/// The file is there: a build that is searched for the reason of the 404s would be searched in vain.
#[test]
fn a_fallback_in_a_folder_that_may_not_be_entered_is_named_with_the_folder() {
    let (folder, cache) = (open_folder(), tempfile::tempdir().unwrap());
    let closed = folder.path().join("public/closed");
    std::fs::create_dir_all(&closed).unwrap();
    std::fs::write(closed.join("index.html"), "").unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
    let manifest = folder.path().join("plugway.toml");
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nfiles = { root = \"public\", fallback = \"closed/index.html\" }\n";
    std::fs::write(&manifest, text).unwrap();
    let mut command = if rustix::process::geteuid().is_root() { as_nobody(cache.path()) } else { plugway() };
    let said = output(command.arg("check").arg(&manifest));
    assert!(said.contains("warning: no file for `fallback`: no permission to read"), "{said}");
    assert!(said.contains(&format!("may not enter `{}`", closed.display())), "{said}");
}
