//! Good manifests of the repository, edited at random: `check` never panics or hangs, each error names file and line, and
//! what `check` accepts starts and serves. `PLUGWAY_EDITS` is the number of edited manifests, without a limit of time;
//! `PLUGWAY_EDITS_FROM` is the number of the first: each manifest depends on its number alone.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use plugway_test_guests::{API_KEY, MISBEHAVE, QUOTA, RETITLE, SHOP_CACHE, SPLIT, TENANT};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::support::{outcome, plugway};

/// The time for all edits of an ordinary run.
const TIME: Duration = Duration::from_secs(20);

/// The time in which the least number of manifests is checked on a busy machine.
const MORE_TIME: Duration = Duration::from_secs(180);

/// The least number of good manifests, and of bad ones, that say something.
const ENOUGH: usize = 10;

/// The edited manifests of an ordinary run: more than fit into its time.
const EDITS: u64 = 2_000;

/// The accepted manifests that are started in an ordinary run; each takes about a second.
const STARTS: usize = 12;

/// The threads that check, as many as a small machine has cores.
const THREADS: usize = 2;

/// The longest time of one check, of a start and of a response: a hundred times what each takes.
const BOUND: Duration = Duration::from_secs(30);

/// Values in place of others.
const VALUES: [&str; 62] = [
    "0",
    "1",
    "-1",
    "2",
    "65535",
    "65536",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "1.5",
    "-0.0",
    "1e308",
    "nan",
    "-inf",
    "true",
    "false",
    "\"\"",
    "\" \"",
    "[]",
    "{}",
    "[\"\"]",
    "[[1]]",
    "[1, \"a\", {}]",
    "{ x = 1 }",
    "2026-11-29",
    "07:32:00",
    "2026-11-29T08:00:00Z",
    "\"0s\"",
    "\"1ms\"",
    "\"8784h\"",
    "\"1h\"",
    "\"18446744073709551615s\"",
    "\"0 B\"",
    "\"1 B\"",
    "\"1 KiB\"",
    "\"1048576 GiB\"",
    "\"1 GiB\"",
    "\"/\"",
    "\"//\"",
    "\"/%61\"",
    "\"*\"",
    "\"*.example.org\"",
    "\"unix:\"",
    "\"unix:/\"",
    "\"127.0.0.1:0\"",
    "\"[::1]:0\"",
    "\"localhost:1\"",
    "\"{\"",
    "\"{host}\"",
    "\"${env:HOME}\"",
    "\"$${env:HOME}\"",
    "\"${file:plugway.toml}\"",
    "\"${credential:none\"",
    "\"{nothing}\"",
    "\".\"",
    "\"\\u0000\"",
    "\"\\u001b[31mred\"",
    "\"\\u202eevil\"",
    "\"ä日本\u{1f980}\"",
    "\"a\\nb\"",
    "'a\tb'",
    "\"5xx\"",
];

/// Values of one kind in place of each other, which often leave a manifest good.
const NUMBERS: [&str; 12] = ["0", "1", "2", "3", "16", "50", "99", "100", "443", "503", "1000", "65535"];
const DURATIONS: [&str; 7] = ["\"1ms\"", "\"50ms\"", "\"1s\"", "\"30s\"", "\"1m\"", "\"1h\"", "\"8784h\""];
const SIZES: [&str; 7] = ["\"0 B\"", "\"1 KiB\"", "\"64 KiB\"", "\"1 MiB\"", "\"16 MiB\"", "\"1 GiB\"", "\"1024 GiB\""];

/// Pieces that are put anywhere.
const PIECES: [&str; 18] =
    ["\"", "'", "\"\"\"", "[", "]", "{", "}", "=", ".", "\n", "#", "\\", "\0", "\u{1b}", "\r", "ä", "\u{feff}", ","];

/// Numbers that look random and depend on a seed alone (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns a number below `end`; 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len()))
    }
}

// === The manifests ===

/// A good manifest, with the files beside it that are the same for all.
struct Seed {
    name: String,
    /// Whether it is from a document, which may show a part of a manifest that names other parts.
    is_part: bool,
    text: String,
}

/// Returns the good manifests of the repository. Listeners are at port 0, and names of others are names of this machine.
fn seeds(folder: &Path) -> Vec<Seed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut seeds = Vec::new();
    let mut add = |name: &Path, text: String| {
        let is_part = name.extension().is_some_and(|extension| extension == "md");
        let name = name.file_name().unwrap().to_str().unwrap().into();
        seeds.push(Seed { name, is_part, text: at_home(&text, folder) })
    };
    for path in files(&root.join("tests/manifests/ok"), "toml") {
        add(&path, std::fs::read_to_string(&path).unwrap());
    }
    let examples = [
        ("api-key", API_KEY),
        ("quota", QUOTA),
        ("retitle", RETITLE),
        ("split", SPLIT),
        ("tenant", TENANT),
        ("shop-cache", SHOP_CACHE),
    ];
    for (name, component) in examples {
        let path = root.join("examples").join(name).join("plugway.toml");
        let built = format!("../../target/wasm32-wasip2/release/example_{}.wasm", name.replace('-', "_"));
        add(&root.join(name), std::fs::read_to_string(path).unwrap().replace(&built, component));
    }
    for path in files(&root.join("docs"), "md") {
        let text = std::fs::read_to_string(&path).unwrap();
        text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).for_each(|block| {
            // A page about Cargo is no manifest.
            if !block.contains("[dependencies]") {
                add(&path, completed(&block.replace("./target/wasm32-wasip2/release/guard.wasm", MISBEHAVE)));
            }
        });
    }
    seeds
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
}

/// Adds what a part of a manifest lacks for a manifest.
fn completed(block: &str) -> String {
    let mut text = block.to_string();
    for (table, lacking) in [
        ("[[listener]]", "[[listener]]\naddress = \"127.0.0.1:0\"\n"),
        ("[upstream.app]", "[upstream.app]\nendpoints = [\"127.0.0.1:8000\"]\n"),
        ("[[route]]", "[[route]]\nupstream = \"app\"\n"),
        ("[plugin.forwarded]", "[plugin.forwarded]\nuse = \"headers\"\n"),
    ] {
        if !text.contains(table) {
            text = format!("{text}\n{lacking}");
        }
    }
    text
}

/// Returns a manifest that serves in a folder of the test, without privileges and without a network.
fn at_home(text: &str, folder: &Path) -> String {
    let mut text = text.to_string();
    for (from, to) in [
        ("127.0.0.1:8080", "127.0.0.1:0"),
        ("0.0.0.0:80\"", "127.0.0.1:0\""),
        ("0.0.0.0:443", "127.0.0.2:0"),
        ("10.0.0.5:9145", "127.0.0.1:0"),
        ("app.internal", "localhost"),
        ("_http._tcp.localhost", "_http._tcp.app.internal"),
        ("/var/cache/plugway/responses", "cache"),
        ("unix:/tmp/", &format!("unix:{}/", folder.display())),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// Puts the files into a folder that manifests name.
fn furnish(folder: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/manifests/ok");
    for part in ["sites", "parts"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        for path in files(&source.join(part), "toml") {
            std::fs::copy(&path, folder.join(part).join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::create_dir_all(folder.join("pages")).unwrap();
    for page in ["pages/lost.html", "pages/sorry.html", "sorry.html"] {
        std::fs::write(folder.join(page), "{status}").unwrap();
    }
    let made = outcome(plugway().args(["cert", "--self-signed"]).current_dir(folder));
    assert_eq!(made.0, Some(0), "{}", made.1);
    for (chain, key) in [("example.org.pem", "example.org.key"), ("wildcard.pem", "wildcard.key")] {
        std::fs::copy(folder.join("cert.pem"), folder.join(chain)).unwrap();
        std::fs::copy(folder.join("key.pem"), folder.join(key)).unwrap();
    }
    std::fs::write(folder.join("admin.token"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.join("admin.token"), private).unwrap();
}

/// Copies the files of a folder, and its folders.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

// === The edits ===

/// The places of a manifest that edits are about.
#[derive(Default)]
struct Places {
    keys: Vec<Range<usize>>,
    values: Vec<Range<usize>>,
}

impl Places {
    fn of(text: &str) -> Places {
        let (document, _) = DeTable::parse_recoverable(text);
        let mut places = Places::default();
        places.add_table(document.get_ref());
        // Tables that are written in pieces have no place of their own.
        places.values.retain(|span| !span.is_empty() && text.get(span.clone()).is_some());
        places.keys.retain(|span| !span.is_empty() && text.get(span.clone()).is_some());
        places
    }

    fn add_table(&mut self, table: &DeTable) {
        for (key, value) in table {
            self.keys.push(key.span());
            self.add(value);
        }
    }

    fn add(&mut self, value: &Spanned<DeValue>) {
        match value.get_ref() {
            DeValue::Table(table) => self.add_table(table),
            DeValue::Array(list) => {
                self.values.push(value.span());
                list.iter().for_each(|item| self.add(item));
            }
            _ => self.values.push(value.span()),
        }
    }
}

/// Makes one edit. The text may have been edited before, and be no TOML any more.
fn edit(text: &mut String, dice: &mut Dice) {
    let places = Places::of(text);
    let kind = dice.below(24);
    let (key, value) = (dice.one(&places.keys).cloned(), dice.one(&places.values).cloned());
    match (kind, key, value) {
        (0..=3, _, Some(span)) => text.replace_range(span, dice.one(&VALUES).unwrap()),
        (4..=5, _, Some(span)) => {
            let other = dice.one(&places.values).cloned().unwrap_or_default();
            let other = text[other].to_string();
            text.replace_range(span, &other);
        }
        (6, Some(span), _) => {
            let other = dice.one(&places.keys).cloned().unwrap_or_default();
            let other = text[other].to_string();
            text.replace_range(span, &other);
        }
        (7, Some(span), _) => text.insert(span.end, 'x'),
        (8, Some(span), _) => {
            let line = line(text, span.start);
            let copy = text[line.clone()].to_string();
            text.insert_str(line.end, &copy);
        }
        (9, Some(span), _) => {
            let line = line(text, span.start);
            text.replace_range(line, "");
        }
        (10, _, Some(span)) => {
            let long = "long".repeat(1 << dice.below(13));
            text.replace_range(span, &format!("\"{long}\""));
        }
        (14..=23, _, Some(span)) => {
            let other = similar(&text[span.clone()], text, &places, dice);
            text.replace_range(span, &other);
        }
        (11, ..) => {
            let at = boundary(text, dice);
            text.insert_str(at, dice.one(&PIECES).unwrap());
        }
        (12, ..) => {
            let quotes: Vec<usize> = text.match_indices(['"', '[', ']', '{', '}', '=']).map(|(at, _)| at).collect();
            if let Some(at) = dice.one(&quotes) {
                text.replace_range(*at..*at + 1, "");
            }
        }
        _ => {
            // A table, or a part of one, in another place or twice.
            let (one, other) = (line(text, boundary(text, dice)), line(text, boundary(text, dice)));
            let moved = text[one.start.min(other.start)..one.end.max(other.end)].to_string();
            let at = line(text, boundary(text, dice)).end;
            text.insert_str(at, &moved);
        }
    }
}

/// Returns a value of the same kind as another, if the kind is known, or else any value of the manifest.
fn similar(value: &str, text: &str, places: &Places, dice: &mut Dice) -> String {
    let inner = value.trim_matches('"');
    let is_of = |units: &[&str]| {
        let unit = inner.trim_start_matches(|letter: char| letter.is_ascii_digit());
        inner.starts_with(|letter: char| letter.is_ascii_digit()) && units.contains(&unit.trim())
    };
    let pool: &[&str] = match value {
        "true" => return "false".into(),
        "false" => return "true".into(),
        _ if value.parse::<u64>().is_ok() => &NUMBERS,
        _ if is_of(&["ms", "s", "m", "h"]) => &DURATIONS,
        _ if is_of(&["B", "KiB", "MiB", "GiB"]) => &SIZES,
        _ => return dice.one(&places.values).map(|span| text[span.clone()].to_string()).unwrap_or_default(),
    };
    dice.one(pool).map(|value| value.to_string()).unwrap_or_default()
}

/// Returns the line with a place, with its end.
fn line(text: &str, at: usize) -> Range<usize> {
    let start = text[..at].rfind('\n').map_or(0, |at| at + 1);
    let end = text[at..].find('\n').map_or(text.len(), |end| at + end + 1);
    start..end
}

fn boundary(text: &str, dice: &mut Dice) -> usize {
    text.floor_char_boundary(dice.below(text.len() + 1))
}

/// Whether a manifest stays in its folder: a start of one that doesn't could write or listen anywhere.
fn stays(text: &str, folder: &Path) -> bool {
    let Ok(table) = text.parse::<toml::Table>() else { return true };
    let inside = |path: &str| {
        let is_outside = path.starts_with('/') && !Path::new(path).starts_with(folder);
        !is_outside && !path.contains("..")
    };
    let is_inside = |value: Option<&toml::Value>| {
        value.and_then(|value| value.as_str()).is_none_or(|text| inside(text.trim_start_matches("unix:")))
    };
    let addresses = table.get("listener").and_then(|list| list.as_array()).into_iter().flatten();
    let mut addresses = addresses.map(|listener| listener.get("address"));
    let disk = table.get("cache").and_then(|cache| cache.get("disk")?.get("path"));
    let log = table.get("access-log").and_then(|log| log.get("file"));
    let admin = table.get("admin").and_then(|admin| admin.get("address"));
    is_inside(disk) && is_inside(log) && is_inside(admin) && addresses.all(is_inside)
}

// === Checks and starts ===

/// A process that is killed when the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command of the program in a folder; its standard error goes to a file there.
fn spawn(command: &str, folder: &Path) -> Killed {
    let said = File::create(folder.join("said")).unwrap();
    let mut program = plugway();
    program.args([command, "plugway.toml"]).current_dir(folder).stderr(said).env("PLUGWAY_LOG", "info");
    // Other tests' folder would fill up with configurations that nothing needs again.
    program.env("XDG_CACHE_HOME", concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-cache-edits"));
    Killed(program.env(crate::support::RUNTIME, folder.join("run")).spawn().unwrap())
}

fn said(folder: &Path) -> String {
    String::from_utf8(std::fs::read(folder.join("said")).unwrap()).expect("a log in UTF-8")
}

/// Waits for the end of a process; `None` if it doesn't end in time.
fn ended(child: &mut Killed) -> Option<ExitStatus> {
    let began = Instant::now();
    while began.elapsed() < BOUND {
        if let Some(status) = child.0.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    None
}

/// Whether a log has the line of a panic, which may have ended a task alone.
fn has_panicked(said: &str) -> bool {
    said.contains("panicked") || said.contains("a panic in the task")
}

/// Checks the manifest of a folder: whether it is good, or what is wrong with the check.
fn check(folder: &Path) -> Result<bool, String> {
    let mut child = spawn("check", folder);
    let status = ended(&mut child).ok_or("the check does not end")?;
    let said = said(folder);
    let code = status.code().ok_or_else(|| format!("the check ended by {status}\n{said}"))?;
    match code {
        _ if has_panicked(&said) => Err(format!("the check panicked\n{said}")),
        0 => Ok(true),
        1 => places_are_named(&said).map(|()| false),
        _ => Err(format!("the check ended with {code}\n{said}")),
    }
}

/// Checks that each error has a place, and that nothing but text is printed.
fn places_are_named(said: &str) -> Result<(), String> {
    if let Some(letter) = said.chars().find(|letter| letter.is_control() && !"\n\t".contains(*letter)) {
        return Err(format!("{letter:?} is printed\n{said:?}"));
    }
    let lines: Vec<&str> = said.lines().collect();
    let errors: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].starts_with("error: ")).collect();
    let is_place = |line: &str| {
        let Some((_, place)) = line.split_once("--> ") else { return false };
        let mut parts = place.rsplitn(3, ':');
        let is_number =
            |part: Option<&str>| part.is_some_and(|part| part.parse::<usize>().is_ok_and(|number| number > 0));
        is_number(parts.next()) && is_number(parts.next()) && parts.next().is_some_and(|file| !file.is_empty())
    };
    let unplaced = errors.iter().find(|at| {
        !(**at + 1..lines.len()).take_while(|next| !errors.contains(next)).any(|next| is_place(lines[next]))
    });
    match (errors.is_empty(), unplaced) {
        (true, _) => Err(format!("the check fails without an error\n{said}")),
        (_, Some(at)) => Err(format!("an error without a place: {}\n{said}", lines[*at])),
        _ => Ok(()),
    }
}

/// What a check can't know, as it binds no address: another process may have it, or it is not of this machine.
const UNKNOWABLE: [&str; 2] = ["can't listen at", "cannot listen at"];

/// A warning of what may wait for itself until a timeout.
const CIRCLE: &str = "endpoint is a listener of this proxy";

/// Starts an accepted manifest, and asks its first listener.
fn start(folder: &Path) -> Result<(), String> {
    let mut child = spawn("run", folder);
    let began = Instant::now();
    let address = loop {
        let said = said(folder);
        if let Some(address) =
            said.lines().find_map(|line| line.split_once("listening at ")).map(|(_, address)| address)
        {
            break address.to_string();
        }
        match child.0.try_wait().unwrap() {
            Some(status) if status.code() == Some(1) && UNKNOWABLE.iter().any(|error| said.contains(error)) => {
                return places_are_named(&said);
            }
            Some(status) => return Err(format!("accepted, but the start ends by {status}\n{said}")),
            None if began.elapsed() > BOUND => return Err(format!("accepted, but it does not listen\n{said}")),
            None => std::thread::sleep(Duration::from_millis(3)),
        }
    };
    let answer = ask(&address);
    let said = said(folder);
    if said.contains(CIRCLE) {
        return Ok(());
    }
    let asked = answer.map_err(|error| format!("{address} does not answer: {error}\n{said}"))?;
    match child.0.try_wait().unwrap() {
        _ if has_panicked(&said) => Err(format!("the proxy panicked\n{said}")),
        Some(status) => Err(format!("the proxy ended by {status} after {asked:?}\n{said}")),
        None => Ok(()),
    }
}

/// Sends a request, and returns the bytes until the connection closes. None are fine too: a limit may close it.
fn ask(address: &str) -> std::io::Result<Vec<u8>> {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n";
    let mut answer = Vec::new();
    let read = match address.strip_prefix("unix:") {
        Some(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(BOUND))?;
            stream.write_all(REQUEST).and_then(|()| stream.read_to_end(&mut answer))
        }
        None => {
            let mut stream = TcpStream::connect(address.rsplit("//").next().unwrap_or_default())?;
            stream.set_read_timeout(Some(BOUND))?;
            stream.write_all(REQUEST).and_then(|()| stream.read_to_end(&mut answer))
        }
    };
    match read {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
            Err(error)
        }
        _ => Ok(answer),
    }
}

/// The course of a run over all its threads.
struct Course {
    next: AtomicU64,
    last: u64,
    until: Option<Instant>,
    starts: AtomicUsize,
    most_starts: usize,
    good: AtomicUsize,
    bad: AtomicUsize,
    is_over: AtomicBool,
    failures: Mutex<Vec<String>>,
}

impl Course {
    fn of(variable: Option<u64>, first: u64) -> Course {
        let (edits, until) = (variable.unwrap_or(EDITS), variable.is_none().then(|| Instant::now() + TIME));
        let most_starts = if variable.is_some() { usize::MAX } else { STARTS };
        Course {
            next: AtomicU64::new(first),
            last: first + edits,
            until,
            starts: AtomicUsize::new(0),
            most_starts,
            good: AtomicUsize::new(0),
            bad: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            failures: Mutex::default(),
        }
    }

    /// Edits manifests until all are done, or the time is over.
    fn run(&self) {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path();
        furnish(folder);
        let seeds = seeds(folder);
        while !self.is_over.load(Ordering::Relaxed) && self.has_time() {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.last {
                return;
            }
            let seed = &seeds[number as usize % seeds.len()];
            let (mut dice, mut text) = (Dice(number), seed.text.clone());
            // The first round is unchanged: what it starts from has to be good.
            let edits = if number < seeds.len() as u64 { 0 } else { dice.one(&[1, 1, 2, 3]).copied().unwrap_or(1) };
            (0..edits).for_each(|_| edit(&mut text, &mut dice));
            if stays(&text, folder)
                && let Err(failure) = self.one(folder, &text, edits == 0 && !seed.is_part)
            {
                let mut report = format!("=== manifest {number}, of {}: {failure}\n", seed.name);
                let _ = writeln!(report, "--- the manifest\n{}", text.chars().take(8_000).collect::<String>());
                self.failures.lock().unwrap().push(report);
            }
        }
    }

    /// Whether further manifests are edited: a busy machine gets more time for as many as say something.
    fn has_time(&self) -> bool {
        let is_enough = [&self.good, &self.bad].iter().all(|count| count.load(Ordering::Relaxed) > ENOUGH);
        let until = self.until.map(|until| if is_enough { until } else { until + MORE_TIME });
        until.is_none_or(|until| Instant::now() < until)
    }

    fn one(&self, folder: &Path, text: &str, is_unchanged: bool) -> Result<(), String> {
        std::fs::write(folder.join("plugway.toml"), text).unwrap();
        let is_good = check(folder)?;
        if !is_good {
            self.bad.fetch_add(1, Ordering::Relaxed);
            return if is_unchanged { Err(format!("it is good\n{}", said(folder))) } else { Ok(()) };
        }
        self.good.fetch_add(1, Ordering::Relaxed);
        // The unchanged ones start in other tests.
        if is_unchanged || self.starts.fetch_add(1, Ordering::Relaxed) >= self.most_starts {
            return Ok(());
        }
        // A start writes files, of which no other manifest may depend.
        let place = tempfile::tempdir().unwrap();
        copy(folder, place.path());
        start(place.path())
    }
}

#[test]
fn edited_manifests_are_refused_with_a_place_or_start() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let course = Course::of(number("PLUGWAY_EDITS"), number("PLUGWAY_EDITS_FROM").unwrap_or(0));
    std::thread::scope(|scope| {
        (0..THREADS).for_each(|_| drop(scope.spawn(|| course.run())));
    });
    let (good, bad) = (course.good.into_inner(), course.bad.into_inner());
    let failures = course.failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{good} good, {bad} bad\n{}", failures.join("\n"));
    assert!(good > ENOUGH && bad > ENOUGH, "{good} good, {bad} bad: too few to say anything");
    println!("{good} good, {bad} bad");
}
