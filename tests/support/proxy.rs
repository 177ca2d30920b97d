//! The proxy as a process.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::client::{Message, read_message};
use super::{PATIENCE, until};

/// The proxy, running a manifest in a folder of its own.
pub struct Proxy {
    child: Child,
    pub address: String,
    pub folder: tempfile::TempDir,
    /// The text behind the log line that `start_after` waited for.
    pub noted: String,
    log: mpsc::Receiver<String>,
    /// The lines of the log from before the first listener. A test may wait for one of them.
    early: RefCell<VecDeque<String>>,
    /// The folder of the proxy's admin socket, unless the test named one.
    sockets: tempfile::TempDir,
}

impl Proxy {
    /// Starts the proxy on a manifest; `{listen}` in it stands for a free port.
    pub fn start(manifest: &str) -> Proxy {
        Proxy::start_after(manifest, "listening at ")
    }

    /// Starts the proxy, and waits for one more line of its log.
    pub fn start_after(manifest: &str, line: &str) -> Proxy {
        let folder = tempfile::tempdir().unwrap();
        let mut proxy = Proxy::start_in(folder.path(), manifest);
        proxy.folder = folder;
        if line != "listening at " {
            proxy.note(line);
        }
        proxy
    }

    /// Waits for a line of the log that ends with an address, and keeps that in `noted`.
    pub fn note(&mut self, line: &str) {
        self.noted = address_in(&self.wait_log(line));
    }

    /// Starts the proxy on a manifest in a folder of the test's own.
    pub fn start_in(folder: &Path, manifest: &str) -> Proxy {
        Proxy::start_by(plugway(), folder, manifest)
    }

    /// Starts the proxy by a command that becomes its process.
    pub fn start_by(mut command: Command, folder: &Path, manifest: &str) -> Proxy {
        write_manifest(folder, manifest);
        let (path, sockets) = (folder.join("plugway.toml"), tempfile::tempdir().unwrap());
        if !command.get_envs().any(|(name, value)| name == RUNTIME && value.is_some_and(|value| value != runtime())) {
            command.env(RUNTIME, sockets.path());
        }
        let mut child = command.arg("run").arg(path).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let mut proxy = Proxy::unread(child, folder, log, sockets);
        let (line, early) = proxy.lines_up_to("listening at http");
        proxy.early = RefCell::new(early.into());
        proxy.address = address_in(&line);
        proxy
    }

    /// Returns a proxy of whose log nothing was read yet.
    fn unread(
        child: Child,
        folder: tempfile::TempDir,
        log: mpsc::Receiver<String>,
        sockets: tempfile::TempDir,
    ) -> Self {
        let (address, noted, early) = (String::new(), String::new(), RefCell::default());
        Proxy { child, address, folder, noted, log, early, sockets }
    }

    /// Starts the proxy, and reads its log only until both its listener and its admin listener are known. The rest is
    /// the caller's.
    pub fn start_unread(mut command: Command, manifest: &str) -> (Proxy, BufReader<ChildStderr>) {
        let folder = tempfile::tempdir().unwrap();
        write_manifest(folder.path(), manifest);
        let path = folder.path().join("plugway.toml");
        let sockets = tempfile::tempdir().unwrap();
        command.env(RUNTIME, sockets.path());
        let mut child = command.arg("run").arg(path).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let (_, log) = mpsc::channel();
        let mut proxy = Proxy::unread(child, folder, log, sockets);
        while proxy.address.is_empty() || proxy.noted.is_empty() {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the proxy ended");
            match line.contains("admin at http://") {
                true => proxy.noted = address_in(&line),
                false if line.contains("listening at http://") => proxy.address = address_in(&line),
                false => {}
            }
        }
        (proxy, stderr)
    }

    /// Waits for the log line of one more listener; returns its address. The lines are in the order of the addresses.
    pub fn next_listener(&self) -> String {
        address_in(&self.wait_log("listening at http"))
    }

    /// Waits for a line of the log that has `part` in it.
    pub fn wait_log(&self, part: &str) -> String {
        self.lines_up_to(part).0
    }

    /// Waits for a line of the log that has `part` in it; returns it and the lines before.
    fn lines_up_to(&self, part: &str) -> (String, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Some(line) = self.next_line(deadline) {
            if line.contains(part) {
                return (line, seen);
            }
            seen.push(line);
        }
        panic!("no `{part}` in the log:\n{}", seen.join("\n"));
    }

    /// Waits until the deadline for the next line of the log that no call has read yet.
    fn next_line(&self, deadline: Instant) -> Option<String> {
        let early = self.early.borrow_mut().pop_front();
        early.or_else(|| self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok())
    }

    /// Whether the log has a line with `part` that no call has waited for yet.
    pub fn has_logged(&self, part: &str) -> bool {
        while let Some(line) = self.next_line(Instant::now()) {
            if line.contains(part) {
                return true;
            }
        }
        false
    }

    /// Returns the lines of the log that no call has waited for yet, once the process has ended.
    pub fn log_to_end(&self) -> String {
        let early = self.early.take();
        early.into_iter().chain(self.log.iter()).map(|line| line + "\n").collect()
    }

    /// Repeats an action until a line of the log has `part` in it; returns the lines before.
    pub fn log_until(&self, part: &str, mut again: impl FnMut()) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            again();
            let round = Instant::now() + Duration::from_millis(200);
            while let Some(line) = self.next_line(round) {
                if line.contains(part) {
                    return seen;
                }
                seen.push(line);
            }
            assert!(Instant::now() < deadline, "no `{part}` in the log:\n{}", seen.join("\n"));
        }
    }

    /// Replaces the manifest and makes the proxy reload.
    pub fn reload(&self, manifest: &str) {
        write_manifest(self.folder.path(), manifest);
        self.signal("HUP");
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Returns the exit code, once the process has ended.
    pub fn wait_exit(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the proxy does not end");
            std::thread::yield_now();
        }
    }

    /// Returns the pipe that is the process's standard output.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("a command with a piped standard output")
    }

    /// Returns the value of a line of `/metrics`, given with its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.ask_admin("GET /metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    /// Returns a file of the process below `/proc`.
    pub fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// Returns the resident memory of the process, in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.status_kib("VmRSS")
    }

    /// Returns the most resident memory that the process has had, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.status_kib("VmHWM")
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Sends one request on a connection of its own, given as a head without its end.
    pub fn exchange(&self, head: &str) -> Message {
        let mut stream = self.connect();
        stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        read_message(&mut BufReader::new(stream)).unwrap()
    }

    /// Sends one request over the admin socket, which needs no token.
    pub fn ask_admin(&self, request: &str) -> Message {
        let mut stream = UnixStream::connect(self.admin_socket()).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        read_message(&mut BufReader::new(stream)).unwrap()
    }

    /// Returns the path of the admin socket, once it exists.
    pub fn admin_socket(&self) -> PathBuf {
        let socket = || {
            let entries = std::fs::read_dir(self.sockets.path()).unwrap().map(|entry| entry.unwrap().path());
            entries.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "sock"))
        };
        let listens = |path: &PathBuf| UnixStream::connect(path).is_ok();
        until("there is an admin socket", || socket().is_some_and(|path| listens(&path)));
        socket().unwrap()
    }

    /// Returns a command of the program that finds this proxy's admin socket.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = plugway();
        command.args(args).env(RUNTIME, self.sockets.path());
        command
    }

    /// Returns the number of open file descriptors of the process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub fn get(&self, path: &str, fields: &str) -> Message {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nHost: example.org{fields}"))
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Opens a connection from one of the loopback addresses.
    pub fn connect_from(&self, from: &str) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&format!("{from}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&self.address.parse::<SocketAddr>().unwrap().into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the program under test.
pub fn plugway() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plugway"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).env("XDG_CACHE_HOME", cache()).env(RUNTIME, runtime());
    command
}

/// Returns the program, with a maximum length of its files in KiB.
pub fn plugway_with_short_files(kib: usize) -> Command {
    let mut command = Command::new("sh");
    // Ignored signals stay ignored: a write fails in place of ending the process.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
    command.args(["-c", &script, env!("CARGO_BIN_EXE_plugway")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).env("XDG_CACHE_HOME", cache());
    command
}

/// Returns the program, after a command of the shell that sets a limit, such as `ulimit -n 128`.
pub fn plugway_after(limit: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_plugway")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).env("XDG_CACHE_HOME", cache()).env(RUNTIME, runtime());
    command
}

/// The variable by which a service manager names the folder of sockets.
pub const RUNTIME: &str = "RUNTIME_DIRECTORY";

/// Returns the folder of the admin sockets of proxies that no test queries.
fn runtime() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-runtime")
}

/// Returns the folder of the tests' compiled plugins, separate from the user's.
fn cache() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-cache")
}

/// Returns the output of a command that has ended; it may have failed.
pub fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Runs the program to its end; returns its exit code and standard error.
pub fn run(args: &[&str]) -> (Option<i32>, String) {
    outcome(plugway().args(args))
}

/// Runs a command to its end; returns its exit code and standard error.
pub fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Returns a manifest with one listener, one upstream and one route, and more.
pub fn manifest(origin: &str, plugins: &str, more: &str) -> String {
    format!(
        "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.app]\nendpoints = [{origin:?}]\n\
         [[route]]\nupstream = \"app\"\nplugins = [{plugins}]\n{more}"
    )
}

/// Starts a proxy in front of an origin, with limits of its listener and more keys of its route.
pub fn limited(origin: &str, limits: &str, route: &str) -> Proxy {
    let listener = format!("address = \"127.0.0.1:0\"\nlimits = {{ {limits} }}\n");
    let text = manifest(origin, "", "").replace("address = \"127.0.0.1:0\"\n", &listener);
    Proxy::start(&text.replace("[[route]]", &format!("[[route]]\n{route}")))
}

/// Returns the address at the end of a line of the log.
fn address_in(line: &str) -> String {
    line.rsplit("://").next().unwrap().trim().into()
}

fn write_manifest(folder: &Path, text: &str) {
    std::fs::write(folder.join("new"), text).unwrap();
    std::fs::rename(folder.join("new"), folder.join("plugway.toml")).unwrap();
}
