//! The start of the process: signals that arrive before it serves, addresses that it can't bind, and files that it can't
//! read or write. Each mistake has a message with its place and a remedy, and a reload that meets it changes nothing.

use std::ffi::OsStr;
use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::support::{PATIENCE, Proxy, echo, manifest, ok, origin, outcome, plugway, read_message, until};

/// Returns a line of `/proc/PID/status`, by its name; empty once the process has ended.
fn status(child: &Child, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_string()
}

/// Whether the process has a handler for a signal.
fn catches(child: &Child, signal: i32) -> bool {
    u64::from_str_radix(&status(child, "SigCgt:"), 16).is_ok_and(|caught| caught & 1 << (signal - 1) != 0)
}

#[test]
fn signals_are_handled_before_anything_else_begins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, manifest(&echo(), "", "")).unwrap();
    // A filter that takes a while to be parsed, after which the log has a thread.
    let filter: Vec<String> = (0..5000).map(|number| format!("module{number}=warn")).collect();
    for (signal, number) in [("HUP", libc::SIGHUP), ("USR1", libc::SIGUSR1), ("USR2", libc::SIGUSR2)] {
        let mut command = plugway();
        command.arg("run").arg(&path).env("PLUGWAY_LOG", filter.join(",")).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let began = Instant::now();
        while !catches(&child, number) {
            assert!(began.elapsed() < PATIENCE && child.try_wait().unwrap().is_none());
        }
        assert_eq!(status(&child, "Threads:"), "1", "{signal} has a handler before any thread begins");
        let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(sent.unwrap().success());
        while status(&child, "Threads:").parse::<u32>().is_ok_and(|threads| threads < 4) {
            assert!(began.elapsed() < PATIENCE);
        }
        assert!(child.try_wait().unwrap().is_none(), "{signal} ended the process");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn signals_of_nginx_stop_gracefully_or_are_told() {
    let (asking, release) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let slow = origin({
        let (asking, release) = (asking.clone(), release.clone());
        move |_| {
            asking.store(true, Ordering::Relaxed);
            until("the response is due", || release.load(Ordering::Relaxed));
            ok("done")
        }
    });
    let mut proxy = Proxy::start(&manifest(&slow, "", ""));
    proxy.signal("USR2");
    assert!(proxy.wait_log("SIGUSR2 ignored").contains("remedy="));
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    until("the request has arrived", || asking.load(Ordering::Relaxed));
    proxy.signal("QUIT");
    proxy.wait_log("stopping");
    release.store(true, Ordering::Relaxed);
    assert_eq!(read_message(&mut BufReader::new(stream)).unwrap().text(), "done");
    assert_eq!(proxy.wait_exit(), Some(0));
}

/// The id of a user that no other test uses, so that it has no other process.
const LONELY: u32 = 65_531;

#[test]
fn a_command_that_can_start_no_thread_tells_why_it_fails() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = open_folder();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, manifest(&echo(), "", "")).unwrap();
    let limited = |args: &[&str]| {
        let mut command = Command::new("prlimit");
        command.args(["--nproc=1:1", "setpriv", "--clear-groups"]);
        command.arg(format!("--reuid={LONELY}")).arg(format!("--regid={LONELY}"));
        command.arg(env!("CARGO_BIN_EXE_plugway")).args(args).stdin(Stdio::null());
        outcome(&mut command)
    };
    let path = path.to_str().unwrap();
    for (args, what) in [(&["run", path][..], ""), (&["check", path], ""), (&["hash-key"], "key too short")] {
        let (code, said) = limited(args);
        assert!(code == Some(1) && said.contains(what), "{args:?}: {said}");
        assert!(said.contains("no thread can be started") && said.contains("TasksMax="), "{args:?}: {said}");
    }
}

#[test]
fn a_start_without_a_folder_for_compiled_code_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, manifest(&echo(), "", "")).unwrap();
    let mut check = plugway();
    check.arg("check").arg(&path).env("XDG_CACHE_HOME", "relative").env_remove("HOME").env_remove("CACHE_DIRECTORY");
    let (code, said) = outcome(&mut check);
    assert!(
        code == Some(0) && said.contains("no folder for compiled code") && said.contains("CacheDirectory="),
        "{said}"
    );
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(outcome(check.env("HOME", cache.path())), (Some(0), String::new()));
    assert!(cache.path().join(".cache/plugway").exists());
}

/// Returns the error of a start with one listener at an address.
fn refused(folder: &Path, address: &str) -> String {
    let path = folder.join("plugway.toml");
    std::fs::write(&path, manifest(&echo(), "", "").replace("127.0.0.1:0", address)).unwrap();
    let (code, error) = outcome(plugway().arg("run").arg(&path));
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("plugway.toml:3:11\n"), "{error}");
    error
}

#[test]
fn an_address_that_cannot_be_bound_is_an_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("unix:{}/{name}", folder.path().display());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, port) = (taken.local_addr().unwrap().to_string(), taken.local_addr().unwrap().port());
    std::fs::write(folder.path().join("file"), "").unwrap();
    let _live = UnixListener::bind(folder.path().join("live")).unwrap();
    for (address, what) in [
        (address.as_str(), format!("port {port} is in use: stop the process")),
        ("192.0.2.1:8080", "this machine has no address 192.0.2.1: choose one that `ip address` shows".into()),
        (&at("missing/a.sock"), format!("there is no folder `{}/missing`: create it", folder.path().display())),
        (&at("file"), "a file is there that is no socket: remove it".into()),
        (&at("file/a.sock"), "is no folder, or leads through a file".into()),
        (&at("live"), "another process listens there: stop it".into()),
        (
            &at(&"x".repeat(108)),
            format!(
                "found {} bytes; expected 107 at most, so choose a shorter one",
                at(&"x".repeat(108)).len() - "unix:".len()
            ),
        ),
    ] {
        let error = refused(folder.path(), address);
        assert!(error.contains(&what), "{error}");
    }
}

#[test]
fn a_stale_socket_is_no_obstacle_and_a_reload_says_what_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front.sock");
    drop(UnixListener::bind(&path).unwrap());
    let text = manifest(&echo(), "", "");
    let also =
        |address: &str| text.replace("[[listener]]", &format!("[[listener]]\naddress = \"{address}\"\n[[listener]]"));
    let proxy = Proxy::start(&also(&format!("unix:{}", path.display())));
    proxy.wait_log("listening at unix:");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.reload(&also(&taken.local_addr().unwrap().to_string()));
    proxy.wait_log("is in use: stop the process");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn all_addresses_that_cannot_be_bound_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!("[[listener]]\naddress = \"{}\"\n[[listener]]", taken.local_addr().unwrap());
    let text = manifest(&echo(), "", "").replace("127.0.0.1:0", "192.0.2.1:8080").replace("[[listener]]", &more);
    std::fs::write(&path, text).unwrap();
    let (code, error) = outcome(plugway().arg("run").arg(&path));
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("plugway.toml:3:11\n") && error.contains("is in use"), "{error}");
    assert!(error.contains("plugway.toml:5:11\n") && error.contains("this machine has no address"), "{error}");
}

#[test]
fn an_admin_port_in_use_is_told_with_its_place() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let admin = |address: &str| manifest(&echo(), "", &format!("[admin]\naddress = \"{address}\"\n"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, admin(&format!("127.0.0.1:{port}"))).unwrap();
    let (code, error) = outcome(plugway().arg("run").arg(&path));
    let wanted =
        format!("error: cannot listen at 127.0.0.1:{port} for the admin listener: port {port} is in use: stop");
    assert!(code == Some(1) && error.contains(&wanted) && error.contains("or to \"off\""), "{error}");
    assert!(error.contains("plugway.toml:10:11\n"), "{error}");

    let proxy = Proxy::start(&admin("127.0.0.1:0"));
    proxy.reload(&admin(&format!("127.0.0.1:{port}")));
    proxy.wait_log("not reloaded");
    proxy.wait_log("for the admin listener: port");
    assert!(proxy.wait_log("--> ").contains("plugway.toml:10:11"));
    assert_eq!(proxy.get("/", "").status(), 200);
}

/// The id of a user without rights, `nobody`.
const NOBODY: u32 = 65534;

/// Returns a folder that every user may read.
pub fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Returns the program, run by `nobody` without the capabilities of root; its compiled plugins are in a folder of its own.
pub fn as_nobody(cache: &Path) -> Command {
    std::os::unix::fs::chown(cache, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
    command.arg(env!("CARGO_BIN_EXE_plugway")).env("XDG_CACHE_HOME", cache).env_remove("HOME");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

#[test]
fn forbidden_bind_is_reported_with_a_remedy() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (folder, cache) = (open_folder(), tempfile::tempdir().unwrap());
    let path = folder.path().join("plugway.toml");
    for (address, what) in [
        ("127.0.0.1:81".to_string(), "port 81 needs a privilege: add `AmbientCapabilities=CAP_NET_BIND_SERVICE`"),
        (format!("unix:{}/a.sock", folder.path().display()), "may not create files in"),
    ] {
        std::fs::write(&path, manifest(&echo(), "", "").replace("127.0.0.1:0", &address)).unwrap();
        let lowest = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
        if address.contains(":81") && lowest.trim().parse::<u16>().is_ok_and(|lowest| lowest <= 81) {
            continue;
        }
        let (code, error) = outcome(as_nobody(cache.path()).arg("run").arg(&path));
        assert!(code == Some(1) && error.contains(what), "{code:?}: {error}");
        assert!(error.contains("plugway.toml:3:11\n"), "{error}");
    }
}

// === Files ===

/// A mistake of a manifest: what stands at the end of the manifest or in its route, and parts of the message.
struct Mistake {
    more: String,
    says: Vec<String>,
}

impl Mistake {
    fn new(more: impl Into<String>, says: &[&str]) -> Mistake {
        Mistake { more: more.into(), says: says.iter().map(|part| part.to_string()).collect() }
    }

    /// Returns the manifest. The mistake is on line 10.
    fn manifest(&self, origin: &str) -> String {
        manifest(origin, "", &format!("# line 9\n{}\n", self.more))
    }

    fn is_told_by(&self, error: &str) {
        for part in &self.says {
            assert!(error.contains(part.as_str()), "no `{part}` for\n{}\nin\n{error}", self.more);
        }
    }
}

/// Checks that `check` and `run` tell mistakes alike, and that a proxy which serves goes on after a reload.
fn are_told(folder: &Path, command: impl Fn() -> Command, mistakes: &[Mistake]) {
    let (origin, path) = (echo(), folder.join("plugway.toml"));
    let proxy = Proxy::start_by(command(), folder, &manifest(&origin, "", ""));
    for mistake in mistakes {
        let text = mistake.manifest(&origin);
        std::fs::write(&path, &text).unwrap();
        let (checked, said) = outcome(command().arg("check").arg(&path));
        assert_eq!(checked, Some(1), "accepted:\n{}\n{said}", mistake.more);
        mistake.is_told_by(&said);
        assert!(said.contains("plugway.toml:1"), "{said}");
        let (started, at_start) = outcome(command().arg("run").arg(&path));
        assert_eq!((started, at_start.lines().last()), (Some(1), said.lines().last()), "{at_start}");
        mistake.is_told_by(&at_start);
        proxy.signal("HUP");
        proxy.wait_log("not reloaded, the old manifest goes on serving");
        assert_eq!(proxy.get("/", "").status(), 200);
    }
}

/// Returns a listener with TLS.
fn tls(chain: &str, key: &str) -> String {
    format!("[[listener]]\naddress = \"127.0.0.2:0\"\ntls.certificates = [{{ chain = \"{chain}\", key = \"{key}\" }}]")
}

/// Makes a certificate with its key in a folder.
fn certificate(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let made = outcome(plugway().args(["cert", "--self-signed", "--out"]).arg(folder));
    assert_eq!(made.0, Some(0), "{}", made.1);
}

#[test]
fn files_that_are_missing_or_folders_are_told_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    certificate(&folder.path().join("other"));
    std::fs::create_dir(folder.path().join("folder.wasm")).unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (is_folder, unfit) = ("it is a folder, not a regular file", "plugway.toml:12");
    let mistakes = [
        Mistake::new(tls("cert.pem", "other"), &["cannot read", is_folder, unfit]),
        Mistake::new(tls("other", "key.pem"), &["cannot read", is_folder, unfit]),
        Mistake::new(
            tls("cert.pem", "none.pem"),
            &["no such file", "none.pem`; paths are relative to the file that names them", unfit],
        ),
        Mistake::new(tls("cert.pem", "cert.pem/key.pem"), &["its path leads through a file, where a folder", unfit]),
        Mistake::new(tls("cert.pem", "other/key.pem"), &["private key of another certificate", "made together", unfit]),
        Mistake::new("[error-page]\n404 = \"other\"", &["cannot read", is_folder, "plugway.toml:11:7"]),
        Mistake::new("[error-page]\n404 = \"none\"", &["no such file", "paths are relative", "plugway.toml:11:7"]),
        Mistake::new("[admin]\ntoken-file = \"other\"", &["is not a regular file; name a file", "plugway.toml:11:14"]),
        Mistake::new("[admin]\ntoken-file = \"none\"", &["can't be read: No such file", "plugway.toml:11:14"]),
        Mistake::new("[plugin.p]\nuse = \"folder.wasm\"", &[is_folder, "expected a component", "plugway.toml:11:7"]),
        Mistake::new(
            "[upstream.b]\nendpoints = [{ file = \"other\" }]",
            &["it is a folder; expected a file", "plugway.toml:11:23"],
        ),
        Mistake::new(
            "[access-log]\nformat = \"json\"\nfile = \"none/access.log\"",
            &[&format!("there is no folder `{}`: create it", at("none")), "plugway.toml:12:8"],
        ),
        Mistake::new(
            "[access-log]\nformat = \"json\"\nfile = \"other\"",
            &["a folder is there: expected a file, such as", "plugway.toml:12:8"],
        ),
        Mistake::new(
            "[access-log]\nformat = \"json\"\nfile = \"key.pem/access.log\"",
            &["is no folder, or leads through a file", "plugway.toml:12:8"],
        ),
        Mistake::new(
            "[cache.disk]\nsize = \"16 MiB\"\npath = \"key.pem\"",
            &["not a folder", "expected an empty folder", "plugway.toml:12:8"],
        ),
        Mistake::new(
            "[cache.disk]\nsize = \"16 MiB\"\npath = \"other\"",
            &["it holds other files; expected an empty folder", "plugway.toml:12:8"],
        ),
    ];
    are_told(folder.path(), plugway, &mistakes);
    assert!(!folder.path().join("none").exists());
}

#[test]
fn a_cache_in_the_folder_of_compiled_plugins_is_told_with_a_remedy() {
    let cache = tempfile::tempdir().unwrap();
    let compiled = cache.path().canonicalize().unwrap().join("plugway");
    let path = cache.path().join("plugway.toml");
    let write = |folder: &Path| {
        let more = format!("[cache.disk]\nsize = \"16 MiB\"\npath = {folder:?}\n");
        std::fs::write(&path, manifest(&echo(), "\"cache\"", &more)).unwrap();
    };
    let with_cache = |command: &str| {
        let mut program = plugway();
        program.arg(command).arg(&path).env("XDG_CACHE_HOME", cache.path());
        program
    };
    for (folder, relation) in [(compiled.as_path(), "it is the folder"), (cache.path(), "it contains the folder")] {
        write(folder);
        for command in ["check", "run"] {
            let (code, said) = outcome(&mut with_cache(command));
            let remedy = format!("such as `{}`", compiled.join("responses").display());
            let is_told =
                ["plugway.toml:11:8", relation, "XDG_CACHE_HOME", &remedy].iter().all(|part| said.contains(part));
            assert!(code == Some(1) && is_told, "{command} of {folder:?}: {said}");
            assert!(command == "run" || folder == cache.path() || !compiled.exists(), "a check changes nothing");
        }
    }
    write(&compiled.join("responses"));
    assert_eq!(outcome(&mut with_cache("check")), (Some(0), String::new()));
    assert!(!compiled.join("responses").exists(), "a check changes nothing");
}

#[test]
fn a_check_makes_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let more =
        "[access-log]\nformat = \"json\"\nfile = \"access.log\"\n[cache.disk]\nsize = \"16 MiB\"\npath = \"a/b\"\n";
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, manifest(&echo(), "\"cache\"", more)).unwrap();
    assert_eq!(outcome(plugway().arg("check").arg(&path)), (Some(0), String::new()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn files_that_a_user_may_not_use_are_told_with_a_remedy() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (folder, cache) = (open_folder(), tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    certificate(folder.path());
    certificate(&at("live"));
    std::fs::set_permissions(at("live"), PermissionsExt::from_mode(0o700)).unwrap();
    for name in ["private.pem", "page.html", "admin.token", "p.wasm", "list.toml", "access.log"] {
        std::fs::write(at(name), "0123456789abcdef").unwrap();
        std::fs::set_permissions(at(name), PermissionsExt::from_mode(0o600)).unwrap();
    }
    for (name, mode) in [("store", 0o755), ("closed", 0o700), ("locked", 0o777)] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    std::fs::write(at("locked/lock"), "").unwrap();
    let (allow, user) = ("allow it to the user that runs plugway", "the user that runs plugway may not");
    let disk = |path: &str| format!("[cache.disk]\nsize = \"16 MiB\"\npath = \"{path}\"");
    let log = |path: &str| format!("[access-log]\nformat = \"json\"\nfile = \"{path}\"");
    let barred = format!("{user} enter `{}`", at("live").display());
    let mistakes = [
        Mistake::new(
            tls("private.pem", "key.pem"),
            &["no permission to read", "private.pem", allow, "plugway.toml:12"],
        ),
        Mistake::new(tls("cert.pem", "key.pem"), &["no permission to read", "key.pem", allow, "plugway.toml:12"]),
        Mistake::new(tls("live/cert.pem", "live/key.pem"), &[&barred, "chmod a+x", "plugway.toml:12"]),
        Mistake::new("[error-page]\n404 = \"page.html\"", &["no permission to read", allow, "plugway.toml:11:7"]),
        Mistake::new("[admin]\ntoken-file = \"admin.token\"", &["can't be read", "may read", "plugway.toml:11:14"]),
        Mistake::new("[plugin.p]\nuse = \"p.wasm\"", &["no permission to read", allow, "plugway.toml:11:7"]),
        Mistake::new("[upstream.b]\nendpoints = [{ file = \"list.toml\" }]", &["no permission to read", allow]),
        Mistake::new(log("new.log"), &[user, "create files in", "plugway.toml:12:8"]),
        Mistake::new(log("access.log"), &[user, "write to", "plugway.toml:12:8"]),
        Mistake::new(log("live/access.log"), &[user, "plugway.toml:12:8"]),
        Mistake::new(disk("new"), &[user, "create files in", "plugway.toml:12:8"]),
        Mistake::new(disk("store"), &["no permission to use the folder", "chown -R", "plugway.toml:12:8"]),
        Mistake::new(disk("closed"), &["no permission to use the folder", "chown -R", "plugway.toml:12:8"]),
        Mistake::new(disk("locked"), &["no permission to use the folder", "chown -R", "plugway.toml:12:8"]),
        Mistake::new("[[route]]\npath = \"/f\"\nfiles = { root = \"live/site\" }", &[&barred, "plugway.toml:12:18"]),
        Mistake::new("[buffers]\nfolder = \"live/buffers\"", &[&barred, "plugway.toml:11:10"]),
    ];
    are_told(folder.path(), || as_nobody(cache.path()), &mistakes);
    // Other rights may be given before the first request.
    let site = "[[route]]\npath = \"/f\"\nfiles = { root = \"live\", fallback = \"index.html\" }\n";
    std::fs::write(at("plugway.toml"), manifest("127.0.0.1:1", "", site)).unwrap();
    let (code, said) = outcome(as_nobody(cache.path()).arg("check").arg(at("plugway.toml")));
    let parts = ["warning: no file of `root` can be served", &barred, "403", "chmod a+x", "plugway.toml:11:18"];
    assert!(code == Some(0) && parts.iter().all(|part| said.contains(part)), "{said}");
    assert_eq!(said.matches("warning: ").count(), 1, "{said}");
    // `include` is a key of the beginning.
    for (pattern, wanted) in [("live/site.toml", &barred), ("closed/*.toml", &allow.to_string())] {
        let text = format!("include = [\"{pattern}\"]\n{}", manifest("127.0.0.1:1", "", ""));
        std::fs::write(at("plugway.toml"), text).unwrap();
        let (code, said) = outcome(as_nobody(cache.path()).arg("check").arg(at("plugway.toml")));
        assert!(code == Some(1) && said.contains("no permission to read") && said.contains(wanted), "{said}");
    }
}

#[test]
fn a_manifest_that_cannot_be_read_is_told_and_the_old_one_serves() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (folder, cache) = (open_folder(), tempfile::tempdir().unwrap());
    let path = folder.path().join("plugway.toml");
    let proxy = Proxy::start_by(as_nobody(cache.path()), folder.path(), &manifest(&echo(), "", ""));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    for command in ["check", "run"] {
        let (code, error) = outcome(as_nobody(cache.path()).arg(command).arg(&path));
        let wanted = format!("no permission to read `{}`: allow it to the user that runs plugway", path.display());
        assert!(code == Some(1) && error.contains(&wanted), "{error}");
    }
    proxy.signal("HUP");
    proxy.wait_log("no permission to read");
    assert_eq!(proxy.get("/", "").status(), 200);

    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let (code, error) = outcome(plugway().arg("run").arg(&path));
    assert!(code == Some(1) && error.contains("it is a folder; expected a file, such as"), "{error}");
    proxy.signal("HUP");
    proxy.wait_log("it is a folder; expected a file");
    assert_eq!(proxy.get("/", "").status(), 200);
}

#[test]
fn a_folder_of_compiled_code_that_is_not_ours_is_warned_of() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, code) = (folder.path().join("plugway.toml"), cache.path().join("plugway"));
    std::fs::write(&path, manifest(&echo(), "", "")).unwrap();
    std::fs::create_dir(&code).unwrap();
    let warned = |what: &str| {
        let (code, said) = outcome(plugway().arg("check").arg(&path).env("XDG_CACHE_HOME", cache.path()));
        assert!(code == Some(0) && said.contains(what) && said.contains("remedy="), "{said}");
    };
    std::fs::set_permissions(&code, PermissionsExt::from_mode(0o777)).unwrap();
    warned("can be written by others; run `chmod 700` on it");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&code, Some(NOBODY), None).unwrap();
        warned("belongs to another user; run `chown` on it");
    }
}

/// Checks that a service manager with a socket of this name has the messages of a start and a stop.
fn hears_of_start_and_stop(manager: &UnixDatagram, folder: &Path, name: &OsStr) {
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let next_message = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).trim().to_string()
    };
    let mut command = plugway();
    command.env("NOTIFY_SOCKET", name);
    let mut proxy = Proxy::start_by(command, folder, &manifest(&echo(), "", ""));
    assert_eq!(next_message(), "READY=1");
    proxy.signal("TERM");
    assert_eq!(next_message(), "STOPPING=1");
    assert_eq!(proxy.wait_exit(), Some(0));
}

#[test]
fn service_manager_hears_of_the_start_and_of_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    hears_of_start_and_stop(&UnixDatagram::bind(&path).unwrap(), folder.path(), path.as_os_str());
}

#[test]
#[cfg(target_os = "linux")]
fn service_manager_without_a_file_hears_of_the_start_and_of_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    // A name that no other test on this machine has.
    let name = format!("plugway{}", folder.path().display());
    let address = <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name).unwrap();
    let manager = UnixDatagram::bind_addr(&address).unwrap();
    hears_of_start_and_stop(&manager, folder.path(), format!("@{name}").as_ref());
}

#[test]
fn service_manager_that_reads_nothing_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let _manager = UnixDatagram::bind(&path).unwrap();
    // Until the queue of the socket is full.
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(b"STATUS=full", &path).is_ok() {}
    let mut command = plugway();
    command.env("NOTIFY_SOCKET", &path);
    let mut proxy = Proxy::start_by(command, folder.path(), &manifest(&echo(), "", ""));
    proxy.wait_log("the service manager accepts no message");
    assert_eq!(proxy.get("/", "").status(), 200);
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(), Some(0));
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(outcome(plugway().args(["man", "--out"]).arg(folder.path())).0, Some(0));
    for name in ["plugway", "plugway-run", "plugway-proxy", "plugway-check", "plugway-reload", "plugway-inspect"] {
        let page = std::fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    let (code, error) = outcome(plugway().args(["man", "--out", "/nowhere"]));
    assert!(code == Some(1) && error.contains("`/nowhere`"), "{error}");
}

#[test]
fn manifest_of_the_systemd_unit_is_accepted() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/dist");
    assert_eq!(outcome(plugway().arg("check").arg(format!("{folder}/plugway.toml"))).0, Some(0));
    let unit = std::fs::read_to_string(format!("{folder}/plugway.service")).unwrap();
    let starts = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/")).unwrap();
    assert_eq!(starts, "plugway run /etc/plugway/plugway.toml");
    let seconds = |text: &str| text.parse::<u64>().unwrap();
    let stops_after = seconds(unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap());
    let page = include_str!("../docs/manifest.md");
    let example = page.split("drain-timeout = \"").nth(1).and_then(|rest| rest.split_once("s\"")).unwrap().0;
    assert!(stops_after > 30 && stops_after > seconds(example), "{stops_after} s are less than `drain-timeout`");
}
