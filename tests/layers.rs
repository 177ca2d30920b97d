//! The modules of the host import in one direction only, and each library stays behind its door.

use std::path::{Path, PathBuf};

/// The layers, lowest first. A module may use its own layer and those above it in this list.
const LAYERS: [(&str, &[&str]); 6] = [
    (
        "pure",
        &[
            "authority",
            "bounds",
            "client_address",
            "config",
            "edit",
            "edit_plan",
            "edit_room",
            "error",
            "field_alias",
            "files",
            "forwarding",
            "frames",
            "framing",
            "head",
            "path",
            "printable",
            "proxy_protocol",
            "router",
            "target",
            "transformed",
            "trust",
            "websocket",
        ],
    ),
    (
        "base",
        &[
            "apart",
            "background",
            "backlog",
            "bind_error",
            "clock",
            "descriptors",
            "failure_log",
            "metered",
            "metrics",
            "output",
            "pages",
            "process_log",
            "supervise",
            "tcp",
            "wire",
        ],
    ),
    (
        "mechanisms",
        &[
            "access_log",
            "admission",
            "cache",
            "census",
            "listener",
            "passage",
            "plugin",
            "resend",
            "tls",
            "upload",
            "upstream",
        ],
    ),
    (
        "exchange",
        &["attempt", "balance", "body", "caching", "chain", "ending", "exchange", "forward", "generation", "respond"],
    ),
    ("serving", &["arrival", "assemble", "connection", "loading", "worker"]),
    ("front", &["admin", "cli", "demo", "keeper", "lib", "listen", "main", "serve", "watch", "watchdog"]),
];

/// Words that only these modules may use; the path is that of the file below `host/src`.
const DOORS: [(&str, &[&str]); 8] = [
    ("hickory_resolver::", &["upstream/dns.rs", "upstream/dns/tests.rs"]),
    ("rustls::", &["arrival.rs", "assemble", "connection.rs", "listener.rs", "tls", "upstream/connect.rs"]),
    ("wasmtime", &["plugin"]),
    ("inotify::", &["watch/linux.rs"]),
    ("notify::", &["watch/"]),
    ("serde::", &["cache/disk/format.rs", "config/", "access_log.rs", "admin.rs", "admin/", "loading/"]),
    ("jsonschema::", &["loading/"]),
    ("crate::config", &["config/", "assemble", "loading/", "cli.rs", "demo.rs", "serve.rs", "watch.rs"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    fn below(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, files);
            } else {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    below(&root, &mut files);
    assert!(files.len() > 30, "{files:?}");
    let read =
        |file: PathBuf| (file.strip_prefix(&root).unwrap().to_path_buf(), std::fs::read_to_string(file).unwrap());
    files.into_iter().map(read).collect()
}

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|(_, modules)| modules.contains(&module));
    found.unwrap_or_else(|| panic!("`{module}` stands in no layer: give it a place in tests/layers.rs"))
}

/// Returns the modules that a file names by `crate::`, both in `use` lines and in code.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("crate::").map(|(at, word)| {
        let rest = &text[at + word.len()..];
        &rest[..rest.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_').unwrap_or(rest.len())]
    })
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let first = file.components().next().unwrap().as_os_str().to_str().unwrap();
        let own = layer(first.trim_end_matches(".rs"));
        for module in named(&text) {
            if layer(module) > own {
                wrong.push(format!("{} uses crate::{module}, which stands above it", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_library_stays_behind_its_door() {
    for (word, doors) in DOORS {
        let mut users = Vec::new();
        for (file, text) in sources() {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            if code.filter(|line| line.contains(word)).count() > 0 {
                users.push(file.to_str().unwrap().to_string());
            }
        }
        assert!(!users.is_empty(), "nobody uses `{word}`: take it from tests/layers.rs");
        let outside = users.iter().filter(|file| !doors.iter().any(|door| file.starts_with(door)));
        assert_eq!(outside.collect::<Vec<_>>(), Vec::<&String>::new(), "`{word}` outside its door");
    }
}
