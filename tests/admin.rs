//! The admin listener: its access rules, how the commands find it, and requests that must not harm it.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use plugway_test_guests::LATE;

use crate::support::{
    Message, PATIENCE, Proxy, RUNTIME, echo, manifest, ok, outcome, output, plugway, raw_origin, read_message, run,
    until,
};

const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\n";
const TOKEN: &str = "6b1f0d5c9a7e4f2388aa";

/// Starts a proxy with an admin listener over TCP besides its socket.
fn with_admin(text: &str) -> Proxy {
    Proxy::start_after(text, "admin at http://")
}

/// Creates a folder with a token file that only its owner can read.
fn folder_with_token(token: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_token(folder.path(), token);
    folder
}

fn write_token(folder: &Path, token: &str) {
    let path = folder.join("admin.token");
    std::fs::write(&path, format!("{token}\n")).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Starts a proxy in a folder with a token file, which the manifest names.
fn with_token(folder: &Path) -> Proxy {
    let admin = format!("{ADMIN}token-file = \"admin.token\"\n");
    let mut proxy = Proxy::start_in(folder, &manifest(&echo(), "", &admin));
    proxy.note("admin at http://");
    proxy
}

/// Sends one request over TCP, with fields besides those that every client sends.
fn ask(address: &str, request: &str, fields: &str) -> Message {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{request} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n").unwrap();
    read_message(&mut BufReader::new(stream)).unwrap()
}

/// Sends one request over TCP, as curl sends it, with more fields.
fn ask_plainly(proxy: &Proxy, request: &str, fields: &str) -> Message {
    ask(&proxy.noted, request, &format!("Host: {}\r\n{fields}", proxy.noted))
}

/// Returns the state of the first endpoint, and the number of the generation.
fn state(proxy: &Proxy) -> (String, u64) {
    let status: serde_json::Value = serde_json::from_str(&proxy.ask_admin("GET /status").text()).unwrap();
    let state = status["upstreams"][0]["endpoints"][0]["state"].as_str().unwrap().into();
    (state, status["generation"].as_u64().unwrap())
}

fn path_of(proxy: &Proxy) -> String {
    proxy.folder.path().join("plugway.toml").to_str().unwrap().into()
}

#[test]
fn a_monitor_of_http_1_0_needs_no_host() {
    let proxy = with_admin(&manifest(&echo(), "", ADMIN));
    let mut stream = TcpStream::connect(&proxy.noted).unwrap();
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().status(), 200);
}

#[test]
fn a_page_in_a_browser_is_refused_and_changes_nothing() {
    let origin = echo();
    let folder = folder_with_token(TOKEN);
    let admin = format!("{ADMIN}token-file = \"admin.token\"\n");
    let mut proxy = Proxy::start_in(folder.path(), &manifest(&origin, "", &admin));
    proxy.note("admin at http://");
    let own = format!("Host: {}\r\n", proxy.noted);
    let rebound = "Host: attacker.example\r\n";
    let drain = format!("POST /drain?upstream=app&endpoint={origin}");
    // Each row: the host and the fields that a kind of page has sent, then the statuses of a change and of two reads.
    let rows: [(&str, &str, u16, u16); 10] = [
        (&own, "Origin: http://attacker.example\r\n", 403, 403),
        (&own, "Origin: null\r\n", 403, 403),
        (&own, "Origin: http://127.0.0.1:3000\r\nSec-Fetch-Site: same-site\r\n", 403, 403),
        (&own, "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n", 403, 403),
        (&own, "Sec-Fetch-Site: same-site\r\n", 403, 403),
        (rebound, "", 403, 403),
        (rebound, "Origin: http://attacker.example\r\nSec-Fetch-Site: same-origin\r\n", 403, 403),
        ("", "", 400, 400),
        (&own, "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n", 401, 200),
        (&own, "User-Agent: curl/8\r\n", 401, 200),
    ];
    for (host, fields, change, read) in rows {
        for order in [&*drain, "POST /reload", "POST /purge?all"] {
            let refused = ask(&proxy.noted, order, &format!("{host}{fields}"));
            assert_eq!(refused.status(), change, "{order} {host} {fields}");
            assert_eq!(refused.field("access-control-allow-origin"), None);
        }
        for document in ["GET /status", "GET /metrics"] {
            let answer = ask(&proxy.noted, document, &format!("{host}{fields}"));
            assert_eq!(answer.status(), read, "{document} {host} {fields}");
            assert_eq!(answer.text().contains("plugway_") || answer.text().contains("endpoints"), read == 200);
        }
    }
    // Not by a preflight either, nor with the token that a page can't know, nor at the socket.
    let preflight = format!("{own}Origin: http://attacker.example\r\nAccess-Control-Request-Method: POST\r\n");
    assert_eq!(ask(&proxy.noted, "OPTIONS /drain", &preflight).status(), 403);
    let page = format!("{own}Authorization: Bearer {TOKEN}\r\nOrigin: http://attacker.example\r\n");
    assert_eq!(ask(&proxy.noted, &drain, &page).status(), 403);
    assert_eq!(state(&proxy), ("up".into(), 1));
    assert_eq!(ask(&proxy.noted, &drain, &format!("{own}Authorization: Bearer {TOKEN}\r\n")).status(), 200);
    assert_eq!(state(&proxy), ("draining".into(), 1));
}

#[test]
fn documents_have_a_head_too() {
    let proxy = with_admin(&manifest(&echo(), "", ADMIN));
    for path in ["/", "/status", "/metrics"] {
        let mut stream = TcpStream::connect(&proxy.noted).unwrap();
        write!(stream, "HEAD {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", proxy.noted).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("content-length: "), "{path}: {text}");
        assert!(text.ends_with("\r\n\r\n"), "{path}: {text}");
    }
    let refused = proxy.ask_admin("POST /metrics");
    assert_eq!((refused.status(), refused.field("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn answers_are_neither_stored_nor_interpreted() {
    let proxy = with_admin(&manifest(&echo(), "", ADMIN));
    for (request, status) in [("GET /status", 200), ("GET /metrics", 200), ("GET /else", 404), ("GET /reload", 405)] {
        let answer = ask_plainly(&proxy, request, "");
        assert_eq!(answer.status(), status, "{request}");
        assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.field("cache-control"), Some("no-store"));
        assert_eq!(answer.field("cross-origin-resource-policy"), Some("same-origin"));
    }
}

#[test]
fn changes_over_tcp_need_a_token() {
    let proxy = with_admin(&manifest(&echo(), "", ADMIN));
    let refused = ask_plainly(&proxy, "POST /reload", "");
    assert_eq!(refused.status(), 403);
    assert!(refused.text().contains("admin socket") && refused.text().contains("token-file"), "{refused:?}");
    assert!(proxy.wait_log("admin request refused").contains("over TCP need a token"));
    let (code, error) = run(&["reload", "--admin", &proxy.noted]);
    assert!(code == Some(1) && error.contains("token-file"), "{error}");

    let folder = folder_with_token(TOKEN);
    let proxy = with_token(folder.path());
    let wrong = ask_plainly(&proxy, "POST /reload", "Authorization: Bearer 6b1f0d5c9a7e4f2388ab\r\n");
    assert_eq!((wrong.status(), wrong.field("www-authenticate")), (401, Some("Bearer realm=\"plugway\"")));
    assert_eq!(state(&proxy).1, 1);
    let right = ask_plainly(&proxy, "POST /reload", &format!("Authorization: Bearer {TOKEN}\r\n"));
    assert_eq!((right.status(), right.text().as_str()), (200, "reloaded: generation 2\n"));
    let file = folder.path().join("admin.token");
    let file = file.to_str().unwrap();
    assert_eq!(run(&["reload", "--admin", &proxy.noted, "--token-file", file]), (Some(0), String::new()));
    assert_eq!(state(&proxy).1, 3);
}

#[test]
fn a_command_and_its_token_go_to_an_admin_listener_alone() {
    let folder = folder_with_token(TOKEN);
    let (tell, told) = std::sync::mpsc::channel();
    let application = raw_origin(move |mut stream| {
        let request = read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        let _ = tell.send(format!("{request:?}"));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx");
    });
    let token = folder.path().join("admin.token");
    for order in [&["reload"][..], &["purge", "--all"], &["drain", "app", "127.0.0.1:1"]] {
        let command = [order, &["--admin", &*application, "--token-file", token.to_str().unwrap()]].concat();
        let (code, error) = run(&command);
        assert!(code == Some(1) && error.contains("something else than the admin listener"), "{error}");
    }
    for request in told.try_iter() {
        assert!(!request.contains("POST") && !request.contains(TOKEN), "{request}");
    }
    // Every response of an admin listener shows what it is, with and without access.
    let proxy = with_token(folder.path());
    for request in ["GET /status", "GET /else", "POST /reload", "OPTIONS *"] {
        assert_eq!(ask_plainly(&proxy, request, "").field("plugway-admin"), Some("1"), "{request}");
    }
    assert_eq!(ask_plainly(&proxy, "OPTIONS *", "").status(), 204);
    assert_eq!(ask(&proxy.noted, "OPTIONS *", "Host: attacker.example\r\n").status(), 403);
}

#[test]
fn a_host_name_is_accepted_with_the_token() {
    let folder = folder_with_token(TOKEN);
    let proxy = with_token(folder.path());
    let bearer = format!("Host: plugway.internal:9145\r\nAuthorization: Bearer {TOKEN}\r\n");
    assert_eq!(ask(&proxy.noted, "GET /metrics", &bearer).status(), 200);
    assert_eq!(ask(&proxy.noted, "POST /reload", &bearer).status(), 200);
    let refused = ask(&proxy.noted, "GET /metrics", "Host: plugway.internal:9145\r\n");
    assert!(refused.status() == 403 && refused.text().contains("token-file"), "{refused:?}");
    assert_eq!(ask(&proxy.noted, "GET /metrics", &bearer.replace("8aa", "8ab")).status(), 403);
}

#[test]
fn a_missing_token_file_is_told_as_that() {
    let folder = folder_with_token(TOKEN);
    let proxy = with_token(folder.path());
    let path = folder.path().join("plugway.toml");
    for more in [&["--admin", &*proxy.noted][..], &[path.to_str().unwrap()]] {
        let command = [&["reload", "--token-file", "no-such-file"], more].concat();
        let (code, error) = outcome(&mut proxy.command(&command));
        assert!(code == Some(1) && error.contains("cannot read the token in `no-such-file`"), "{error}");
        assert!(!error.contains("start"), "{error}");
    }
}

#[test]
fn an_order_to_drain_tells_what_the_endpoint_does_then() {
    let origin = echo();
    let text = |more: &str| {
        let endpoint = format!("[{{ address = \"{origin}\"{more} }}]");
        manifest(&origin, "", ADMIN).replace(&format!("[{origin:?}]"), &endpoint)
    };
    let proxy = Proxy::start(&text(", draining = true"));
    let path = path_of(&proxy);
    let (code, error) = outcome(&mut proxy.command(&["undrain", "app", &origin, &path]));
    assert!(code == Some(1) && error.contains("still draining: `draining = true`"), "{error}");
    assert_eq!(state(&proxy).0, "draining");
    proxy.reload(&text(""));
    proxy.wait_log("reloaded");
    let said = |order| output(proxy.command(&[order, "app", &origin, &path]).stdout(Stdio::piped()));
    assert_eq!(said("drain"), "draining: no endpoint of `app` is left, so requests to it fail\n");
    assert_eq!(said("undrain"), "in use\n");
    assert_eq!(state(&proxy).0, "up");
}

#[test]
fn a_new_token_counts_when_its_file_has_changed() {
    let folder = folder_with_token(TOKEN);
    let proxy = with_token(folder.path());
    write_token(folder.path(), "another-token-of-20-characters");
    proxy.wait_log("reloaded: generation 2");
    let ask = |token| ask_plainly(&proxy, "POST /purge?all", &format!("Authorization: Bearer {token}\r\n")).status();
    assert_eq!((ask(TOKEN), ask("another-token-of-20-characters")), (401, 200));
}

#[test]
fn token_files_that_protect_nothing_are_mistakes() {
    let check = |token: &[u8], mode: u32| {
        let folder = folder_with_token("");
        let path = folder.path().join("admin.token");
        std::fs::write(&path, token).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let text = manifest(&echo(), "", "[admin]\ntoken-file = \"admin.token\"\n");
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        run(&["check", folder.path().join("plugway.toml").to_str().unwrap()])
    };
    assert_eq!(check(TOKEN.as_bytes(), 0o640), (Some(0), String::new()));
    for (token, mode, message) in [
        (TOKEN.as_bytes(), 0o604, "can be read by every user of this machine; run `chmod 600` on it"),
        (&b"short"[..], 0o600, "holds no token: expected 16 to 512 visible ASCII characters"),
        (&b"two lines\nof text without a token"[..], 0o600, "holds no token"),
        (&[b'x'; 5000][..], 0o600, "holds no token"),
    ] {
        let (code, error) = check(token, mode);
        assert!(code == Some(1) && error.contains(message) && error.contains("plugway.toml:"), "{error}");
    }
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let proxy = Proxy::start(&manifest(&echo(), "", ADMIN));
    let socket = proxy.admin_socket();
    assert_eq!(socket.metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(proxy.ask_admin("POST /reload").status(), 200);
    if socket.metadata().unwrap().uid() != 0 {
        eprintln!("not root: can't be another user");
        return;
    }
    // Open to all users, the socket still checks the client's user.
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(socket.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    for request in [&["-X", "POST", "http://localhost/reload"][..], &["http://localhost/status"][..]] {
        let mut other = Command::new("curl");
        let answer =
            output(other.args(["-s", "-i", "--unix-socket", socket.to_str().unwrap()]).args(request).uid(65534));
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("own user and root only"), "{answer}");
    }
    assert_eq!(state(&proxy).1, 2);
}

#[test]
fn commands_find_the_proxy_by_its_manifest() {
    let origin = echo();
    let proxy = Proxy::start(&manifest(&origin, "", ADMIN));
    let folder = proxy.folder.path();
    let path = path_of(&proxy);
    assert_eq!(outcome(&mut proxy.command(&["reload", &path])), (Some(0), String::new()));
    // Without a name it is the one in this folder; and links lead to the same file.
    assert_eq!(outcome(proxy.command(&["reload"]).current_dir(folder)), (Some(0), String::new()));
    let link = folder.join("link.toml");
    std::os::unix::fs::symlink("plugway.toml", &link).unwrap();
    assert_eq!(outcome(&mut proxy.command(&["reload", link.to_str().unwrap()])), (Some(0), String::new()));
    assert_eq!(state(&proxy), ("up".into(), 4));
    assert_eq!(outcome(&mut proxy.command(&["drain", "app", &origin, &path])), (Some(0), String::new()));
    assert_eq!(state(&proxy), ("draining".into(), 4));
    assert_eq!(outcome(&mut proxy.command(&["undrain", "app", &origin, &path])), (Some(0), String::new()));
    assert_eq!(state(&proxy), ("up".into(), 4));
    let purged = output(proxy.command(&["purge", "--all", &path]).stdout(Stdio::piped()));
    assert_eq!(purged, "0 purged\n");
    // What is wrong is told in full.
    std::fs::write(&path, manifest(&origin, "", ADMIN).replace("upstream = \"app\"", "upstream = \"ap\"")).unwrap();
    let (code, error) = outcome(&mut proxy.command(&["reload", &path]));
    assert!(code == Some(1) && error.contains("unknown upstream `ap`") && error.contains("plugway.toml:"), "{error}");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn a_proxy_refuses_the_order_for_another_manifest() {
    let proxy = with_admin(&manifest(&echo(), "", ADMIN));
    let other = tempfile::tempdir().unwrap();
    let other = other.path().join("plugway.toml");
    std::fs::write(&other, manifest(&echo(), "", ADMIN)).unwrap();
    let (own, other) = (path_of(&proxy), other.to_str().unwrap().to_string());
    let socket = format!("unix:{}", proxy.admin_socket().display());
    for order in [&["reload"][..], &["purge", "--all"][..]] {
        let named = [order, &[&*other, "--admin", &*socket][..]].concat();
        let (code, error) = outcome(&mut proxy.command(&named));
        assert_eq!((code, error.trim()), (Some(1), &*format!("this proxy serves {own}, not {other}")));
        // Found in the folder, but not meant.
        let (code, error) = outcome(&mut proxy.command(&[order, &[&*other][..]].concat()));
        assert!(code == Some(1) && error.contains("no running proxy serves") && error.contains(&own), "{error}");
    }
    let fields = "Host: localhost\r\nPlugway-Manifest: %2Fnowhere%0A%1b[31m\r\n";
    let mut stream = UnixStream::connect(proxy.admin_socket()).unwrap();
    write!(stream, "POST /reload HTTP/1.1\r\n{fields}Connection: close\r\n\r\n").unwrap();
    let conflict = read_message(&mut BufReader::new(stream)).unwrap();
    assert!(conflict.status() == 409 && !conflict.text().contains('\u{1b}'), "{conflict:?}");
    assert_eq!(state(&proxy).1, 1);
    assert_eq!(outcome(&mut proxy.command(&["reload", &own, "--admin", &socket])), (Some(0), String::new()));
}

#[test]
fn a_manifest_is_found_after_a_link_above_it_has_changed() {
    let place = tempfile::tempdir().unwrap();
    for release in ["one", "two"] {
        std::fs::create_dir(place.path().join(release)).unwrap();
        std::fs::write(place.path().join(release).join("plugway.toml"), manifest(&echo(), "", ADMIN)).unwrap();
    }
    let point_to = |release| {
        std::os::unix::fs::symlink(release, place.path().join("new")).unwrap();
        std::fs::rename(place.path().join("new"), place.path().join("current")).unwrap();
    };
    point_to("one");
    let proxy = Proxy::start_in(&place.path().join("current"), &manifest(&echo(), "", ADMIN));
    point_to("two");
    let path = place.path().join("current/plugway.toml");
    assert_eq!(outcome(&mut proxy.command(&["reload", path.to_str().unwrap()])), (Some(0), String::new()));
}

#[test]
fn proxies_without_a_manifest_serve_no_manifest() {
    let sockets = tempfile::tempdir().unwrap();
    let mut proxy = plugway();
    proxy
        .args(["proxy", "--to", &echo(), "--listen", "127.0.0.1:0"])
        .env(RUNTIME, sockets.path())
        .stderr(Stdio::null());
    let mut child = proxy.spawn().unwrap();
    let socket = sockets.path().join(format!("proxy-{}.sock", child.id()));
    until("there is a socket", || socket.exists());
    let own = tempfile::NamedTempFile::new().unwrap();
    let address = format!("unix:{}", socket.display());
    let named = run(&["reload", own.path().to_str().unwrap(), "--admin", &address]);
    let unnamed = run(&["purge", "--all", "--admin", &address]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(named.0 == Some(1) && named.1.contains("this proxy serves no manifest"), "{named:?}");
    assert_eq!(unnamed, (Some(0), String::new()));
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let (folder, sockets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = || {
        let mut command = plugway();
        command.env(RUNTIME, sockets.path());
        Proxy::start_by(command, folder.path(), &manifest(&echo(), "", ADMIN))
    };
    let socket_of = |proxy: &Proxy| PathBuf::from(proxy.wait_log("admin socket at").rsplit(" at ").next().unwrap());
    let reload = || {
        let mut command = plugway();
        outcome(
            command.args(["reload", folder.path().join("plugway.toml").to_str().unwrap()]).env(RUNTIME, sockets.path()),
        )
    };
    let killed = start();
    let socket = socket_of(&killed);
    drop(killed);
    assert!(socket.exists(), "a killed process leaves its socket");
    let first = start();
    assert_eq!(socket_of(&first), socket);
    let mut second = start();
    second.wait_log("another process serves the same manifest");
    assert_eq!(reload(), (Some(0), String::new()));
    first.wait_log("reloaded: generation 2");
    // The first gives it up when it is told to stop; the second takes it, at a reload or soon.
    first.signal("TERM");
    until("the first has left its socket", || !socket.exists());
    second.signal("HUP");
    assert_eq!(socket_of(&second), socket);
    assert_eq!(reload(), (Some(0), String::new()));
    // One that was removed by mistake is made again.
    std::fs::remove_file(&socket).unwrap();
    second.wait_log("the admin socket was removed");
    assert_eq!(socket_of(&second), socket);
    second.signal("TERM");
    assert_eq!(second.wait_exit(), Some(0));
    assert!(!socket.exists(), "a process that ended leaves no socket");
}

#[test]
fn a_reload_that_a_worker_refuses_leaves_the_admin_listener_as_it_was() {
    let plugin =
        |more: &str| format!("{{ use = {LATE:?}, on-error = 503, config = {{ configure-busy = 300 {more} }} }}");
    let origin = echo();
    let text = |more: &str, socket: &Path| {
        manifest(&origin, &plugin(more), &format!("[admin]\naddress = \"unix:{}\"\n", socket.display()))
    };
    let folder = tempfile::tempdir().unwrap();
    let [file, old_socket, new_socket] = ["plugway.toml", "old.sock", "new.sock"].map(|name| folder.path().join(name));
    let old = text("", &old_socket);
    let proxy = Proxy::start_in(folder.path(), &old);
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let reload = |text: &str| {
        std::fs::write(&file, text).unwrap();
        proxy.ask_admin("POST /reload").text()
    };
    // Too early, and the load fails; too late, and the reload succeeds. Between them an instance for a worker fails.
    let (deadline, mut early, mut late) = (Instant::now() + PATIENCE, 0, 8_000);
    loop {
        assert!(Instant::now() < deadline, "no worker refused a reload");
        let ahead = (early + late) / 2;
        let more = format!(", configure-traps-after = {}", now() + ahead);
        let said = reload(&text(&more, &new_socket));
        if said.contains("reloaded: generation") {
            late = ahead;
            reload(&old);
        } else if said.contains("while it was configured") {
            early = ahead;
        } else {
            assert!(said.contains("the old manifest goes on serving"), "{said}");
            break;
        }
        if late - early < 50 {
            (early, late) = (0, 8_000);
        }
    }
    assert_eq!(proxy.get("/", "").status(), 200);
    until("the new address is closed", || !new_socket.exists());
    let mut stream = UnixStream::connect(&old_socket).expect("the old address is still served");
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().status(), 200);
}

#[test]
fn a_socket_can_take_the_place_of_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.sock");
    // Left by a process that was killed; anything but a socket is an error.
    drop(UnixListener::bind(&path).unwrap());
    let admin = format!("[admin]\naddress = \"unix:{}\"\n", path.display());
    let text = manifest(&echo(), "", &admin);
    let mut proxy = Proxy::start_in(folder.path(), &text);
    proxy.wait_log("own.sock");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    let address = format!("unix:{}", path.display());
    assert_eq!(run(&["reload", "--admin", &address]), (Some(0), String::new()));
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(), Some(0));
    assert!(!path.exists());
    std::fs::write(&path, "text").unwrap();
    let (code, error) = run(&["run", folder.path().join("plugway.toml").to_str().unwrap()]);
    assert!(code == Some(1) && error.contains("cannot listen at unix:"), "{error}");
    assert_eq!(std::fs::read_to_string(path).unwrap(), "text");
}

#[test]
fn the_owner_of_a_socket_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("busy.sock");
    let _busy = UnixListener::bind(&path).unwrap();
    let connect = || {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&socket2::SockAddr::unix(&path).unwrap()).map(|()| socket)
    };
    // A process that accepts nothing, as if it were stopped: its queue is full.
    let waiting: Vec<_> = std::iter::from_fn(|| connect().ok()).collect();
    assert!(waiting.len() > 1);
    let place = format!("unix:{}", path.display());
    let served = manifest(&echo(), "", "[admin]\naddress = \"off\"\n").replace("127.0.0.1:0", &place);
    let admin = manifest(&echo(), "", &format!("[admin]\naddress = \"{place}\"\n"));
    for text in [served, admin] {
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        let (code, error) = run(&["run", folder.path().join("plugway.toml").to_str().unwrap()]);
        assert!(code == Some(1) && error.contains("busy.sock"), "{error}");
        assert!(error.contains("another process listens there"), "{error}");
    }
    assert!(path.exists(), "it isn't ours to remove");
}

#[test]
fn off_means_no_listener_and_no_socket() {
    let sockets = tempfile::tempdir().unwrap();
    let mut command = plugway();
    command.env(RUNTIME, sockets.path());
    let folder = tempfile::tempdir().unwrap();
    let text = manifest(&echo(), "", "[admin]\naddress = \"off\"\n");
    let proxy = Proxy::start_by(command, folder.path(), &text);
    std::fs::write(folder.path().join("plugway.toml"), format!("# other\n{text}")).unwrap();
    proxy.signal("HUP");
    proxy.wait_log("reloaded: generation 2");
    assert_eq!(std::fs::read_dir(sockets.path()).unwrap().count(), 0);
}

#[test]
fn the_port_is_given_up_when_the_process_is_told_to_stop() {
    let (answer, due) = std::sync::mpsc::channel::<()>();
    let due = std::sync::Arc::new(std::sync::Mutex::new(due));
    let origin = raw_origin(move |mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()));
        due.lock().unwrap().recv().unwrap();
        stream.write_all(&ok("late")).unwrap();
    });
    let mut old = with_admin(&manifest(&origin, "", ADMIN));
    let mut client = old.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let in_flight = || old.ask_admin("GET /status").text().contains("\"in_flight\": 1");
    until("the request is under way", in_flight);
    let idle = TcpStream::connect(&old.noted).unwrap();
    old.signal("TERM");
    old.wait_log("stopping");
    // The next process takes the place while the old one still drains.
    let new = || manifest(&echo(), "", &ADMIN.replace("127.0.0.1:0", &old.noted));
    until("the port is free", || std::net::TcpListener::bind(&old.noted).is_ok());
    let new = with_admin(&new());
    assert_eq!(new.noted, old.noted);
    assert_eq!(ask_plainly(&new, "GET /status", "").status(), 200);
    // One that was not accepted yet is reset.
    let read = (&idle).read(&mut [0; 1]).map_err(|error| error.kind());
    assert!(matches!(read, Ok(0) | Err(ErrorKind::ConnectionReset)), "an idle connection is closed: {read:?}");
    answer.send(()).unwrap();
    assert_eq!(read_message(&mut BufReader::new(client)).unwrap().text(), "late");
    assert_eq!(old.wait_exit(), Some(0));
}

#[test]
fn silent_connections_lock_nobody_out() {
    let proxy = with_admin(&manifest(&echo(), "", ADMIN));
    let quiet = proxy.descriptors();
    let socket = proxy.admin_socket();
    let tcp: Vec<_> = (0..200).map(|_| TcpStream::connect(&proxy.noted).unwrap()).collect();
    assert_eq!(ask_plainly(&proxy, "GET /status", "").status(), 200);
    let unix: Vec<_> = (0..200).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert_eq!(proxy.ask_admin("GET /status").status(), 200);
    assert_eq!(ask_plainly(&proxy, "GET /status", "").status(), 200);
    until("no more than the limit of each is open", || proxy.descriptors() <= quiet + 2 * 64);
    // In the middle of a head it is no better.
    let dripping: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(&proxy.noted).unwrap();
            let _ = stream.write_all(b"GET /status HTTP/1.1\r\nHost: 127");
            stream
        })
        .collect();
    assert_eq!(ask_plainly(&proxy, "GET /status", "").status(), 200);
    drop((tcp, unix, dripping));
    until("all are closed", || proxy.descriptors() <= quiet + 1);
}

#[test]
fn late_heads_are_cut_off() {
    let proxy = with_admin(&manifest(&echo(), "", ADMIN));
    let mut silent = TcpStream::connect(&proxy.noted).unwrap();
    let mut half = TcpStream::connect(&proxy.noted).unwrap();
    half.write_all(b"GET /status HTTP/1.1\r\nHo").unwrap();
    let mut unix = UnixStream::connect(proxy.admin_socket()).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    unix.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(half.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(unix.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_connection_serves_several_requests() {
    let proxy = with_admin(&manifest(&echo(), "", ADMIN));
    let stream = TcpStream::connect(&proxy.noted).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let head = format!(" HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.noted);
    // Pipelined, and one after the other.
    (&stream).write_all(format!("GET /status{head}GET /metrics{head}").as_bytes()).unwrap();
    assert!(read_message(&mut reader).unwrap().text().contains("\"generation\": 1"));
    assert!(read_message(&mut reader).unwrap().text().contains("plugway_generation 1"));
    (&stream).write_all(format!("POST /reload{head}GET /status{head}").as_bytes()).unwrap();
    assert_eq!(read_message(&mut reader).unwrap().status(), 403);
    assert_eq!(read_message(&mut reader).unwrap().status(), 200);
}

#[test]
fn large_heads_and_content_are_refused() {
    let proxy = with_admin(&manifest(&echo(), "", ADMIN));
    let long = "x".repeat(20 << 10);
    assert_eq!(ask_plainly(&proxy, "GET /status", &format!("X-Long: {long}\r\n")).status(), 431);
    let many: String = (0..100).map(|number| format!("X-{number}: y\r\n")).collect();
    assert_eq!(ask_plainly(&proxy, "GET /status", &many).status(), 431);
    assert_eq!(ask_plainly(&proxy, "GET /status", "Content-Length: 5\r\n").status(), 413);
    assert_eq!(ask_plainly(&proxy, "GET /status", "Transfer-Encoding: chunked\r\n").status(), 413);
    assert_eq!(ask_plainly(&proxy, "GET /status", "").status(), 200);
}

/// Returns a manifest of many routes, whose documents are larger than socket buffers.
fn many_routes(count: usize) -> String {
    let more: String =
        (0..count).map(|n| format!("[[route]]\nname = \"route-{n}\"\npath = \"/{n}\"\nupstream = \"app\"\n")).collect();
    manifest(&echo(), "", &format!("{more}{ADMIN}"))
}

#[test]
fn readers_that_stand_still_are_cut_off_and_hold_little() {
    let proxy = with_admin(&many_routes(5000));
    let page = ask_plainly(&proxy, "GET /metrics", "").body.len();
    assert!(page > 6 << 20, "{page} bytes fit into what sockets buffer");
    let (quiet, memory) = (proxy.descriptors(), proxy.memory_kib());
    let standing: Vec<_> = (0..64)
        .map(|_| {
            let mut stream = TcpStream::connect(&proxy.noted).unwrap();
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.noted).unwrap();
            stream
        })
        .collect();
    until("all of them stand", || proxy.descriptors() >= quiet + 60);
    // They are no hindrance to others, and are gone after a while.
    assert_eq!(ask_plainly(&proxy, "GET /metrics", "").body.len(), page);
    let grown = proxy.memory_kib().saturating_sub(memory) >> 10;
    assert!(grown < 256, "{grown} MiB for 64 readers that stand still");
    until("they are cut off", || proxy.descriptors() <= quiet + 1);
    drop(standing);
}

#[test]
fn names_are_escaped() {
    let text = manifest(&echo(), "", ADMIN).replace("[[route]]", "[[route]]\nname = \"a\\\"\\\\\\n\\u001B[2Jb\"");
    let proxy = with_admin(&text);
    proxy.get("/", "");
    let metrics = ask_plainly(&proxy, "GET /metrics", "").text();
    assert!(metrics.contains(r#"plugway_responses_total{route="a\"\\\n\\u{1b}[2Jb",class="2xx"}"#), "{metrics}");
    let control = |text: &str| text.chars().any(|letter| letter.is_control() && letter != '\n');
    assert!(!control(&metrics));
    let status = ask_plainly(&proxy, "GET /status", "").text();
    let parsed: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert!(!control(&status) && parsed["routes"][0]["name"] == "a\"\\\n\u{1b}[2Jb", "{status}");
}

/// Measures for docs/admin.md how long documents take, and how the control thread is delayed meanwhile.
#[test]
#[ignore = "a measurement: run it by name with --ignored --nocapture"]
fn documents_of_ten_thousand_routes() {
    let proxy = with_admin(&many_routes(10_000));
    let socket = proxy.admin_socket();
    let timed = |request: &str| {
        let began = Instant::now();
        let mut stream = UnixStream::connect(&socket).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let answer = read_message(&mut BufReader::new(stream)).unwrap();
        (began.elapsed(), answer.body.len() >> 10)
    };
    for request in ["GET /metrics", "GET /status", "POST /drain?upstream=x&endpoint=y", "POST /purge?all"] {
        println!("alone: {request}: {:?}", timed(request));
    }
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| (0..20).map(|_| timed("GET /metrics").0).max());
        let mut orders: Vec<_> = (0..200).map(|_| timed("POST /drain?upstream=x&endpoint=y").0).collect();
        orders.sort();
        println!(
            "orders meanwhile: p50 {:?}, p99 {:?}; slowest document {:?}",
            orders[100],
            orders[198],
            reading.join()
        );
    });
}
