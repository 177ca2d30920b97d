//! Loading can't harm the running proxy: components, manifests and files that burn time, exhaust memory, crash a
//! compiler, never end, or are randomly changed. They are inspected, checked, and replace a good plugin under load.

use std::fmt::Write as _;
use std::io::{BufReader, Read, Write as _};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plugway_test_guests::{LOADING, MISBEHAVE, RETITLE};

use crate::support::{PATIENCE, Proxy, manifest, origin, plugway, read_message, run, sized, until};

/// The most that a proxy may grow by what it refuses, in KiB.
const GROWTH: u64 = 64 << 10;

/// Generous: other builds and tests share the cores.
const SOON: Duration = Duration::from_secs(5);

const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\n";

// === Components ===

/// Returns a section of a component.
fn section(kind: u8, content: &[u8]) -> Vec<u8> {
    let (mut section, mut length) = (vec![kind], content.len());
    while length > 0x7f {
        section.push(length as u8 | 0x80);
        length >>= 7;
    }
    section.push(length as u8);
    section.extend_from_slice(content);
    section
}

/// Returns a good component with one more core module, written as text.
fn with_module(text: &str) -> Vec<u8> {
    [std::fs::read(MISBEHAVE).unwrap(), section(1, &wat::parse_str(text).unwrap())].concat()
}

/// Returns a good component with one more core module, written as text, and so many instances of the module.
fn with_instances(text: &str, instances: u8) -> Vec<u8> {
    let component = with_module(text);
    let (mut at, mut modules) = (8, 0_u8);
    while at < component.len() {
        modules += u8::from(component[at] == 1);
        let (mut length, mut shift) = (0, 0);
        loop {
            at += 1;
            length |= usize::from(component[at] & 0x7f) << shift;
            shift += 7;
            if component[at] < 0x80 {
                break;
            }
        }
        at += 1 + length;
    }
    let instance = [0, modules - 1, 0].repeat(instances.into());
    [component, section(2, &[vec![instances], instance].concat())].concat()
}

/// Returns nested loops, each of which carries all locals along: compiling them takes more than a minute.
fn burns_time() -> Vec<u8> {
    let depth = 500;
    let text = format!(
        "(module (func (local {}) {} {} {}))",
        "i64 ".repeat(depth),
        "loop ".repeat(depth),
        (0..depth).map(|at| format!("(local.set {at} (i64.add (local.get {at}) (i64.const 1)))")).collect::<String>(),
        (0..depth).map(|at| format!("(br_if 0 (i64.eqz (local.get {at}))) end ")).collect::<String>(),
    );
    with_module(&text)
}

/// Components in components: each doubles what is in it.
fn eats_memory() -> Vec<u8> {
    let mut text = "(component (core module $m (func (export \"f\"))) (core instance (instantiate $m)))".to_string();
    for _ in 0..22 {
        text = format!(
            "(component (component $c {}) (instance (instantiate $c)) (instance (instantiate $c)))",
            &text[10..text.len() - 1]
        );
    }
    wat::parse_str(text).unwrap()
}

/// Returns the guest with a schema.
fn with_schema(schema: &str) -> Vec<u8> {
    const MARKER: &[u8] = b"{}SCHEMA-GOES-HERE";
    let mut bytes = std::fs::read(LOADING).unwrap();
    let at = bytes.windows(MARKER.len()).position(|window| window == MARKER).unwrap();
    bytes[at..at + MARKER.len()].fill(b' ');
    assert!(bytes[at..at + schema.len()].iter().all(|byte| *byte == b' '), "the schema doesn't fit");
    bytes[at..at + schema.len()].copy_from_slice(schema.as_bytes());
    bytes
}

/// Returns a chain of references, so long that following it overflows a stack.
fn crashes() -> Vec<u8> {
    let links = 16_000;
    let chain: String = (0..links).map(|at| format!("\"{at}\":{{\"$ref\":\"#/$defs/{}\"}},", at + 1)).collect();
    with_schema(&format!("{{\"$ref\":\"#/$defs/0\",\"$defs\":{{{chain}\"{links}\":{{}}}}}}"))
}

/// Rules that each apply another twice.
fn doubles() -> Vec<u8> {
    let rule = |at: usize| {
        format!("\"{at}\":{{\"allOf\":[{{\"$ref\":\"#/$defs/{0}\"}},{{\"$ref\":\"#/$defs/{0}\"}}]}},", at + 1)
    };
    let rules: String = (0..60).map(rule).collect();
    with_schema(&format!("{{\"$ref\":\"#/$defs/0\",\"$defs\":{{{rules}\"60\":{{\"type\":\"object\"}}}}}}"))
}

/// Numbers of a seed (xorshift), the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, max: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % max as u64) as usize
    }

    /// Returns a good file with some bytes changed, a piece removed, or a piece repeated.
    fn bent(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        let (at, length) = (self.below(bytes.len()), 1 + self.below(64));
        let end = (at + length).min(bytes.len());
        match self.below(4) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let twice = bytes[at..end].to_vec();
                bytes.splice(at..at, twice);
            }
            _ => (0..1 + self.below(8)).for_each(|_| {
                let at = self.below(bytes.len());
                bytes[at] = self.below(256) as u8;
            }),
        }
        bytes
    }
}

// === What the program says ===

/// Returns a manifest that names a plugin, with more keys.
fn naming(plugin: &str, more: &str) -> String {
    manifest("127.0.0.1:9", &format!("{{ use = \"./{plugin}\" }}"), more)
}

/// Returns the output of `plugway check` for a manifest, which is an ordinary error.
fn checked(folder: &Path, text: &str) -> String {
    std::fs::write(folder.join("plugway.toml"), text).unwrap();
    let (code, error) = run(&["check", folder.join("plugway.toml").to_str().unwrap()]);
    assert_eq!(code, Some(1), "{error}");
    error
}

#[test]
fn inspect_says_how_to_see_the_inputs_of_a_plugin_that_needs_a_configuration() {
    let inspect = |args: &[&str]| {
        let output = plugway().args(["inspect", RETITLE]).args(args).stdout(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let without = inspect(&[]);
    assert!(without.contains("inputs: unknown, because the plugin rejects an empty configuration: "), "{without}");
    assert!(without.contains("`field`") || without.contains("\"field\""), "the cause: {without}");
    assert!(without.contains("pass a configuration that fits the schema below: --config 'JSON'"), "{without}");
    let wrong = inspect(&["--config", "{\"field\": 1}"]);
    assert!(wrong.contains("rejects this configuration: "), "{wrong}");
    let good = inspect(&["--config", "{\"field\": \"server\", \"from\": \"a\", \"to\": \"b\"}"]);
    assert!(good.contains("response.header.server") && !good.contains("unknown"), "{good}");
}

/// Returns the output of `plugway inspect` for a file, which is an ordinary error.
fn inspected(file: &Path) -> String {
    let (code, error) = run(&["inspect", file.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(file.to_str().unwrap()), "{error}");
    error
}

fn named_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_bomb_is_an_error_that_names_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let limits = "[load]\ntime = \"2s\"\nmemory = \"256 MiB\"\n";
    let bombs = [("time", burns_time()), ("memory", eats_memory()), ("chain", crashes()), ("doubling", doubles())];
    for (name, bytes) in bombs {
        std::fs::write(folder.path().join("bomb.wasm"), bytes).unwrap();
        let error = checked(folder.path(), &naming("bomb.wasm", limits));
        eprintln!("{name}: {}", error.lines().next().unwrap());
        // A busy machine may meet the limit of time before the other.
        let wanted = ["`[load] time` of 2 s", "`[load] memory`", "overflows a stack"];
        assert!(wanted.iter().any(|wanted| error.contains(wanted)), "{name}: {error}");
        assert!(error.contains("plugway.toml:") && error.contains("./bomb.wasm"), "{name}: {error}");
    }
}

/// A trap copies the names of the functions that it was met in: twenty names of 40 MiB took a gigabyte of the proxy.
#[test]
fn functions_with_names_that_no_trap_should_copy_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let named = |length: usize| with_module(&format!("(module (func ${}))", "n".repeat(length)));
    std::fs::write(folder.path().join("named.wasm"), named(64 << 10)).unwrap();
    std::fs::write(folder.path().join("long.wasm"), named((64 << 10) + 1)).unwrap();
    let error = checked(folder.path(), &naming("long.wasm", ""));
    assert!(error.contains("a function's name is too long: found 65537 bytes; at most 65536 are allowed"), "{error}");
    assert_eq!(run(&["inspect", folder.path().join("named.wasm").to_str().unwrap()]).0, Some(0));
}

/// Thirteen full tables took 10 MiB besides the memory of an instance, and were filled on the worker for each body.
#[test]
fn the_tables_of_a_component_are_bounded_together() {
    let folder = tempfile::tempdir().unwrap();
    let table = "(module (table 60000 funcref))";
    std::fs::write(folder.path().join("one.wasm"), with_instances(table, 1)).unwrap();
    std::fs::write(folder.path().join("two.wasm"), with_instances(table, 2)).unwrap();
    let error = checked(folder.path(), &naming("two.wasm", ""));
    assert!(error.contains("table minimum size of 60000 elements exceeds table limits"), "{error}");
    assert_eq!(run(&["inspect", folder.path().join("one.wasm").to_str().unwrap()]).0, Some(0));
}

/// Instances with sixteen tables took the tables of other plugins: four times as many as there are places for instances.
#[test]
fn a_component_has_no_more_tables_than_each_instance_has_places_for() {
    let folder = tempfile::tempdir().unwrap();
    let table = "(module (table 1 funcref))";
    std::fs::write(folder.path().join("eight.wasm"), with_instances(table, 6)).unwrap();
    std::fs::write(folder.path().join("nine.wasm"), with_instances(table, 7)).unwrap();
    let error = checked(folder.path(), &naming("nine.wasm", ""));
    assert!(error.contains("table count too high at 9"), "{error}");
    assert_eq!(run(&["inspect", folder.path().join("eight.wasm").to_str().unwrap()]).0, Some(0));
}

#[test]
fn a_plugin_that_is_configured_without_end_dies_apart() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plugin.wasm"), with_schema("{}")).unwrap();
    let configured = |what: &str| {
        let plugin = format!("{{ use = \"./plugin.wasm\", config = {{ do = \"{what}\" }} }}");
        checked(folder.path(), &manifest("127.0.0.1:9", &plugin, ""))
    };
    assert!(configured("spin").contains("limits.cpu of 50 ms exceeded"), "{}", configured("spin"));
    let many = configured("many");
    assert_eq!(many.matches("error: config.do: number").count(), 50, "{many}");
    assert!(many.ends_with("and 19950 more\n"), "{many}");
}

#[test]
fn plugin_texts_cannot_forge_lines_or_move_cursors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.wasm");
    std::fs::write(&file, with_schema("{\"title\": \"\u{202e}\"}")).unwrap();
    let output = plugway().args(["inspect", file.to_str().unwrap()]).stdout(Stdio::piped()).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && shown.starts_with("loading\\u{1b}[2J 1\\r2, "), "{shown}");
    assert!(shown.contains("Red \\u{1b}[31m and\\nhooks: forged\n"), "{shown}");
    assert!(!shown.contains(['\u{1b}', '\r', '\u{202e}']), "{shown}");
    for what in ["escape", "panic"] {
        let plugin = format!("{{ use = \"./plugin.wasm\", config = {{ do = \"{what}\" }} }}");
        let error = checked(folder.path(), &manifest("127.0.0.1:9", &plugin, ""));
        assert!(!error.contains('\u{1b}'), "{error}");
        assert_eq!(error.lines().filter(|line| line.starts_with("error:")).count(), 1, "{error}");
    }
}

#[test]
fn only_regular_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    named_pipe(&at("pipe.wasm"));
    std::os::unix::fs::symlink("/dev/zero", at("zero.wasm")).unwrap();
    std::fs::create_dir(at("folder.wasm")).unwrap();
    std::fs::File::create(at("large.wasm")).unwrap().set_len(1 << 40).unwrap();
    std::fs::write(at("empty.wasm"), "").unwrap();
    let kinds = [
        ("pipe.wasm", "it is a named pipe"),
        ("zero.wasm", "it is a device"),
        ("folder.wasm", "it is a folder"),
        ("large.wasm", "it has more than"),
        ("empty.wasm", ""),
    ];
    for (name, wanted) in kinds {
        let file = at(name);
        assert!(inspected(&file).contains(wanted) || name == "empty.wasm", "{name}: {}", inspected(&file));
        assert!(checked(folder.path(), &naming(name, "")).contains(wanted), "{name}");
        for key in [
            format!("include = [\"{name}\"]\n"),
            format!("[error-page]\n404 = \"{name}\"\n"),
            format!(
                "[[listener]]\naddress = \"127.0.0.1:1\"\ntls.certificates = [{{ chain = \"{name}\", key = \"{name}\" }}]\n"
            ),
            format!("[[listener]]\naddress = \"127.0.0.1:1\"\n[listener.tls]\nclient-ca = \"{name}\"\n"),
            format!("[upstream.two]\nendpoints = [{{ file = \"{name}\" }}]\n"),
        ] {
            if name != "empty.wasm" {
                let (keys, tables) = if key.starts_with("include") { (&*key, "") } else { ("", &*key) };
                let text = format!("{keys}{}", manifest("127.0.0.1:9", "", tables));
                checked(folder.path(), &text);
            }
        }
        if !wanted.is_empty() {
            let (code, error) = run(&["check", file.to_str().unwrap()]);
            assert!(code == Some(1) && error.contains(wanted), "{name}: {error}");
        }
    }
}

#[test]
fn mistakes_without_number_are_told_by_their_number() {
    let folder = tempfile::tempdir().unwrap();
    let values: String = (0..50_000).map(|at| format!("a{at} = 1, ")).collect();
    let plugin = format!("{{ use = \"headers\", config = {{ request = {{ set = {{ {values} }} }} }} }}");
    let began = Instant::now();
    let error = checked(folder.path(), &manifest("127.0.0.1:9", &plugin, ""));
    eprintln!("50,000 mistakes: {:?}", began.elapsed());
    assert_eq!(error.matches("error:").count(), 50);
    assert!(error.ends_with("and 49950 more\n"), "{}", &error[error.len() - 100..]);
    // A second in a quiet release build; 113 s when each was looked for in the whole manifest.
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
}

#[test]
fn a_manifest_may_be_any_text() {
    let folder = tempfile::tempdir().unwrap();
    let good = manifest("127.0.0.1:9", "", "");
    let repeated = |piece: &str, bytes: usize| piece.repeat(bytes / piece.len());
    let routes: String = (0..20_000).fold(String::new(), |mut text, at| {
        let _ = writeln!(text, "[[route]]\nupstream = \"none\"\npath = \"/{at}\"");
        text
    });
    let regex = |text: &str| format!("{good}[[route]]\nupstream = \"app\"\npath = {{ regex = '{text}' }}\n");
    // The position of each value was copied, with the key.
    let plugin = |config: &str| {
        let plugin = format!("{{ use = \"headers\", config = {config} }}");
        format!("[[route]]\nupstream = \"app\"\nplugins = [{plugin}]\n")
    };
    let long_key = format!("{{ request.set.{} = [{}] }}", repeated("k", 1 << 20), repeated("1,", 1 << 20));
    // The plugin was looked for in the manifest for each value.
    let templates = (0..50_000).map(|at| format!("h{at} = \"$host\",")).collect::<String>();
    let templates = format!("{{ request.set = {{ {templates} }}, wrong = 1 }}");
    let bombs = [
        ("values below a long key", format!("{good}{}", plugin(&long_key))),
        ("variables of another program", format!("{good}{routes}{}", plugin(&templates))),
        ("dotted keys", format!("{}a = 1", repeated("a.", 3 << 20))),
        ("nested lists", format!("a = {}", repeated("[", 3 << 20))),
        ("nested tables", format!("a = {}", repeated("{a=", 3 << 20))),
        ("nested headers", format!("[{}a]", repeated("a.", 3 << 20))),
        ("the same key", repeated("a = 1\n", 1 << 20)),
        ("unknown keys", (0..100_000).map(|at| format!("a{at} = 1\n")).collect()),
        ("too large", repeated("# x\n", 5 << 20)),
        ("no text", "\u{0}\u{1b}\u{7f}".repeat(1_000)),
        ("routes", format!("{good}{routes}")),
        ("a regex that grows", regex("(((((a{100}){100}){100}){100}){100})")),
        ("a regex that nests", regex(&format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000)))),
    ];
    for (name, text) in bombs {
        let began = Instant::now();
        let error = checked(folder.path(), &text);
        eprintln!("{name}: {:?}, {} bytes of errors", began.elapsed(), error.len());
        assert!(began.elapsed() < PATIENCE, "{name}");
        assert!(error.len() < 200_000 && !error.contains('\u{1b}'), "{name}");
        assert!(error.contains("plugway.toml"), "{name}: {error}");
    }
}

#[test]
fn bent_components_and_manifests_are_errors_or_good() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(0x5eed);
    let component = std::fs::read(MISBEHAVE).unwrap();
    let mut plugins = String::new();
    for number in 0..150 {
        std::fs::write(folder.path().join(format!("{number}.wasm")), random.bent(&component)).unwrap();
        let _ = write!(plugins, "[plugin.p{number}]\nuse = \"./{number}.wasm\"\n");
    }
    let error = checked(folder.path(), &manifest("127.0.0.1:9", "", &plugins));
    assert!(error.contains(".wasm") && error.contains("and "), "{error}");
    let text = include_str!("manifests/ok/every-key.toml");
    for number in 0..80 {
        let bent = random.bent(text.as_bytes());
        std::fs::write(folder.path().join("plugway.toml"), &bent).unwrap();
        let (code, error) = run(&["check", folder.path().join("plugway.toml").to_str().unwrap()]);
        assert!(matches!(code, Some(0 | 1)), "{number}: {code:?} {error}\n{}", String::from_utf8_lossy(&bent));
    }
}

// === While it serves ===

/// Returns the children of a process.
fn children(process: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Ends a process with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a proxy in front of an origin, with its plugin in its folder, an admin listener and an access log.
fn serving() -> Proxy {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(MISBEHAVE, folder.path().join("plugin.wasm")).unwrap();
    let more = format!("{ADMIN}[load]\ntime = \"1h\"\n[access-log]\nformat = \"json\"\nfile = \"access.log\"\n");
    let mut proxy = Proxy::start_in(folder.path(), &manifest(&sized(), "{ use = \"./plugin.wasm\" }", &more));
    proxy.folder = folder;
    proxy.note("admin at http://");
    proxy
}

/// Replaces the file of the proxy's plugin.
fn swap_in(proxy: &Proxy, bytes: &[u8]) {
    let new = proxy.folder.path().join("new.wasm");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, proxy.folder.path().join("plugin.wasm")).unwrap();
}

fn the_child(process: u32) -> u32 {
    until("a component is being loaded", || !children(process).is_empty());
    children(process)[0]
}

#[test]
fn while_a_bomb_burns_everything_else_goes_on() {
    let mut proxy = serving();
    assert_eq!(proxy.get("/10", "").status(), 200);
    let before = proxy.memory_kib();
    swap_in(&proxy, &burns_time());
    let child = the_child(proxy.id());
    // Its descriptors are its own three pipes and what the engine opened: no socket, no log of the proxy's.
    for entry in std::fs::read_dir(format!("/proc/{child}/fd")).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
        let target = target.to_string_lossy().into_owned();
        assert!(!target.starts_with("socket:") && !target.contains("access.log"), "{target}");
    }
    let mut longest = Duration::ZERO;
    for round in 0..20 {
        let began = Instant::now();
        assert_eq!(proxy.ask_admin("GET /status").status(), 200);
        longest = longest.max(began.elapsed());
        assert_eq!(proxy.get(&format!("/{round}"), "").status(), 200);
    }
    eprintln!("/status while a bomb burns: {longest:?} at most");
    assert!(longest < SOON, "{longest:?}");
    let log = proxy.folder.path().join("access.log");
    std::fs::rename(&log, proxy.folder.path().join("access.log.1")).unwrap();
    let began = Instant::now();
    proxy.signal("USR1");
    until("the log is opened anew", || log.exists());
    eprintln!("SIGUSR1 while a bomb burns: {:?}", began.elapsed());
    assert!(proxy.memory_kib() < before + GROWTH, "{} and {before}", proxy.memory_kib());
    assert!(!children(proxy.id()).is_empty(), "it still burns");
    let began = Instant::now();
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(), Some(0));
    eprintln!("SIGTERM while a bomb burns: {:?}", began.elapsed());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    until("the child is gone", || !Path::new(&format!("/proc/{child}/exe")).exists());
}

#[test]
fn orders_to_reload_wait_for_the_one_that_burns() {
    let proxy = serving();
    swap_in(&proxy, &burns_time());
    let child = the_child(proxy.id());
    let orders: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = UnixStream::connect(proxy.admin_socket()).unwrap();
            write!(stream, "POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
            stream
        })
        .collect();
    // The plugin is good again by the time that they are obeyed.
    std::fs::copy(MISBEHAVE, proxy.folder.path().join("good.wasm")).unwrap();
    std::fs::rename(proxy.folder.path().join("good.wasm"), proxy.folder.path().join("plugin.wasm")).unwrap();
    assert!(Command::new("kill").args(["-XCPU", &child.to_string()]).status().unwrap().success());
    proxy.wait_log("`[load] time` of 3600 s");
    for stream in orders {
        let answer = read_message(&mut BufReader::new(stream)).unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    assert_eq!(proxy.get("/10", "").status(), 200);
}

#[test]
fn bombs_put_in_the_place_of_a_plugin_leave_the_old_one_serving() {
    let proxy = serving();
    let text = std::fs::read_to_string(proxy.folder.path().join("plugway.toml")).unwrap();
    proxy.reload(&text.replace("time = \"1h\"", "time = \"2s\"\nmemory = \"256 MiB\""));
    proxy.wait_log("reloaded: generation");
    let before = proxy.memory_kib();
    let mut random = Random(0xbad);
    let good = std::fs::read(MISBEHAVE).unwrap();
    let bent = (0..5).map(|_| random.bent(&good[..good.len() - 1]));
    let odd = [eats_memory(), crashes(), doubles(), burns_time(), b"\0asm".to_vec(), Vec::new()];
    for bytes in odd.into_iter().chain(bent) {
        swap_in(&proxy, &bytes);
        let said = proxy.wait_log("reloaded");
        assert!(said.contains("not reloaded") || said.contains("generation"), "{said}");
        assert_eq!(proxy.get("/10", "").status(), 200);
    }
    let pipe = proxy.folder.path().join("pipe.wasm");
    named_pipe(&pipe);
    std::fs::rename(&pipe, proxy.folder.path().join("plugin.wasm")).unwrap();
    proxy.wait_log("it is a named pipe");
    std::os::unix::fs::symlink("/dev/zero", &pipe).unwrap();
    std::fs::rename(&pipe, proxy.folder.path().join("plugin.wasm")).unwrap();
    proxy.wait_log("it is a device");
    assert_eq!(proxy.get("/10", "").status(), 200);
    eprintln!("memory: {before} KiB before, {} KiB after", proxy.memory_kib());
    assert!(proxy.memory_kib() < before + GROWTH, "{} and {before}", proxy.memory_kib());
    until("the children are gone", || children(proxy.id()).is_empty());
}

/// The proxy itself looked up what the schema says about the values of references: each reference in the schema to the
/// schema itself was followed again, which took gigabytes.
#[test]
fn a_schema_that_refers_to_itself_thousands_of_times_takes_no_memory_of_the_proxy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "a{b}c").unwrap();
    std::fs::write(folder.path().join("plugin.wasm"), with_schema("{}")).unwrap();
    let plugin = "{ use = \"./plugin.wasm\", config = { do = \"${file:secret}\" } }";
    let text = manifest(&sized(), plugin, &format!("{ADMIN}[load]\ntime = \"1h\"\n"));
    let mut proxy = Proxy::start_in(folder.path(), &text);
    proxy.folder = folder;
    let before = proxy.peak_kib();
    let references = ["{\"$ref\":\"#\"}"; 15_000].join(",");
    for (rule, wanted) in
        [("", "reloaded: generation"), ("\"required\":[\"none\"],", "\"none\" is a required property")]
    {
        swap_in(&proxy, &with_schema(&format!("{{{rule}\"anyOf\":[true,{references}]}}")));
        proxy.wait_log(wanted);
        assert_eq!(proxy.get("/10", "").status(), 200);
    }
    eprintln!("memory: {before} KiB before, {} KiB at most", proxy.peak_kib());
    assert!(proxy.peak_kib() < before + GROWTH, "{} and {before}", proxy.peak_kib());
}

/// Starts the program on a manifest whose plugin burns time; returns it with the child that loads the plugin.
fn starting(folder: &Path) -> (Ended, u32) {
    std::fs::write(folder.join("bomb.wasm"), burns_time()).unwrap();
    let path: PathBuf = folder.join("plugway.toml");
    std::fs::write(&path, naming("bomb.wasm", "[load]\ntime = \"1h\"\n")).unwrap();
    let started = plugway().arg("run").arg(path).stderr(Stdio::piped()).spawn().unwrap();
    let child = the_child(started.id());
    (Ended(started), child)
}

fn signal(process: &Ended, name: &str) {
    let process = process.0.id().to_string();
    assert!(Command::new("kill").args([&format!("-{name}"), &process]).status().unwrap().success());
}

#[test]
fn signals_are_obeyed_while_the_first_manifest_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let (mut program, child) = starting(folder.path());
    for name in ["HUP", "USR1", "HUP"] {
        signal(&program, name);
    }
    assert!(program.0.try_wait().unwrap().is_none() && !children(program.0.id()).is_empty());
    let began = Instant::now();
    signal(&program, "TERM");
    let mut said = String::new();
    program.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(program.0.wait().unwrap().code(), Some(0), "{said}");
    eprintln!("SIGTERM at the start: {:?}", began.elapsed());
    until("the child is gone", || !Path::new(&format!("/proc/{child}/exe")).exists());
}

#[test]
fn a_child_ends_with_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let (program, child) = starting(folder.path());
    drop(program);
    until("the child is gone", || !Path::new(&format!("/proc/{child}/exe")).exists());
}

#[test]
fn a_component_is_compiled_once() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(MISBEHAVE, folder.path().join("plugin.wasm")).unwrap();
    let text = manifest(&origin(|_| Vec::new()), "{ use = \"./plugin.wasm\" }", "");
    std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
    let check = || {
        let mut command = plugway();
        command.arg("check").arg(folder.path().join("plugway.toml")).env("XDG_CACHE_HOME", folder.path());
        assert!(command.status().unwrap().success());
    };
    check();
    let kept = || {
        std::fs::read_dir(folder.path().join("plugway"))
            .unwrap()
            .flatten()
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().ino()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let first = kept();
    // The key, the code, and what it accepts.
    assert_eq!(first.len(), 3, "{first:?}");
    check();
    assert_eq!(kept(), first, "nothing is written again");
}
