//! The modules of the host import in one direction only, no files import each other in a ring, and each library stays
//! behind its door.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The layers, lowest first. A module imports only modules of the layers above its own line; modules of one line don't
/// import each other.
const LAYERS: [&[&str]; 13] = [
    &["system"],
    &["error", "net", "config", "tls"],
    &["protocol"],
    &["context", "body"],
    &["telemetry", "store", "shared_state", "static_files"],
    &["upstream"],
    &["plugin"],
    &["generation", "loading"],
    &["exchange", "assemble"],
    &["downstream"],
    &["server"],
    &["cli"],
    &["main", "lib"],
];

/// Words that only these files may use; each path begins below `host/src`.
const DOORS: [(&str, &[&str]); 15] = [
    ("flate2::", &["protocol/content_decoder"]),
    ("brotli_decompressor::", &["protocol/content_decoder"]),
    ("zstd_safe::", &["protocol/content_decoder"]),
    ("hickory_resolver::", &["upstream/dns.rs", "upstream/dns/tests.rs"]),
    (
        "rustls::",
        &[
            "downstream.rs",
            "downstream/handshake.rs",
            "assemble",
            "generation/listener.rs",
            "shared_state/fleet/",
            "tls",
            "upstream/connect.rs",
        ],
    ),
    ("httparse::", &["upstream/http1"]),
    ("redis::", &["shared_state/fleet"]),
    ("wasmtime", &["plugin"]),
    ("wasmparser::", &["plugin/function_names.rs"]),
    ("inotify::", &["server/file_watcher"]),
    ("notify::", &["server/file_watcher"]),
    ("serde::", &["store/disk/record.rs", "config/", "telemetry/access_log.rs", "server/admin", "loading/"]),
    ("jsonschema::", &["loading/"]),
    ("schemars::", &["config/"]),
    ("crate::config", &["config/", "assemble", "loading/", "cli.rs", "cli/", "server.rs", "server/file_watcher.rs"]),
];

/// The code of each file of the host without comments and without tests, by its path below `host/src`.
type Sources = BTreeMap<String, String>;

fn sources() -> Sources {
    fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, files);
            } else {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 100, "{files:?}");
    let read = |file: PathBuf| {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap().to_string();
        (name, code(&std::fs::read_to_string(&file).unwrap()))
    };
    files.into_iter().map(read).collect()
}

/// A file's code: no comments, and nothing behind the module of its tests.
fn code(text: &str) -> String {
    let text = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub mod tests {"]
        .iter()
        .fold(text, |text, start| text.split(start).next().unwrap());
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The layer that a file is in, by the first part of its path.
fn layer(file: &str) -> usize {
    let module = file.split('/').next().unwrap().trim_end_matches(".rs");
    let found = LAYERS.iter().position(|modules| modules.contains(&module));
    found.unwrap_or_else(|| panic!("`{module}` is in no layer: add it to tests/layers.rs"))
}

/// The module that a file is, as the parts of its path.
fn module(file: &str) -> Vec<&str> {
    file.trim_end_matches(".rs").split('/').collect()
}

/// All paths of a `use` tree: `a::{b, c::{d, e}}` has `a::b`, `a::c::d` and `a::c::e`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let mut depth = 0;
    let at_top = |letter: char| {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    };
    for part in tree.split(at_top).map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('{') {
            Some((start, rest)) => expand(&format!("{prefix}{start}"), rest.trim_end().trim_end_matches('}'), paths),
            None => paths.push(format!("{prefix}{part}")),
        }
    }
}

/// The paths that code names beginning with `crate` or `super`, in `use` lines and elsewhere.
fn named(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || before == '_' || before == ':' {
                continue;
            }
            let rest = &code[at..];
            let is_use = code[..at].trim_end().ends_with("use");
            let end = match is_use {
                true => rest.find(';').unwrap(),
                false => rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len()),
            };
            expand("", &rest[..end], &mut paths);
        }
    }
    paths
}

/// The file that a path of a module leads to, if it is one of the host's.
fn target<'a>(from: &str, path: &str, files: &'a Sources) -> Option<&'a str> {
    let mut base = module(from);
    let mut rest: Vec<&str> = path.split("::").map(|part| part.split_whitespace().next().unwrap_or("")).collect();
    if rest[0] == "crate" {
        base.clear();
        rest.remove(0);
    }
    while rest.first() == Some(&"super") {
        base.pop();
        rest.remove(0);
    }
    base.extend(rest);
    let name = |parts: &[&str]| parts.join("/") + ".rs";
    let found = (1..=base.len()).rev().find_map(|most| files.get_key_value(&name(&base[..most])));
    found.map(|(file, _)| file.as_str())
}

/// The files that each file imports from.
fn imports(files: &Sources) -> BTreeMap<&str, BTreeSet<&str>> {
    let of = |(file, code): (&'_ String, &String)| {
        let targets = named(code).iter().filter_map(|path| target(file, path, files)).collect::<BTreeSet<_>>();
        targets.into_iter().filter(|target| target != file).collect()
    };
    files.iter().map(|(file, code)| (file.as_str(), of((file, code)))).collect()
}

#[test]
fn imports_point_down() {
    let files = sources();
    let mut wrong = Vec::new();
    for (file, targets) in imports(&files) {
        for target in targets {
            let is_one_module = module(file)[0] == module(target)[0];
            if !is_one_module && layer(target) >= layer(file) {
                wrong.push(format!("{file} imports from {target}, which is not below it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_ring() {
    let files = sources();
    let imports = imports(&files);
    // A child may use what its own parent declares.
    let is_child = |file: &str, of: &str| file.starts_with(&format!("{}/", of.trim_end_matches(".rs")));
    let next = |file: &str| imports[file].iter().filter(|target| !is_child(file, target)).copied().collect::<Vec<_>>();
    let reached = |start: &str| {
        let mut seen = BTreeSet::new();
        let mut open = next(start);
        while let Some(file) = open.pop() {
            if seen.insert(file) {
                open.extend(next(file));
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> = imports.keys().map(|file| (*file, reached(file))).collect();
    let ring = |file: &str| reached[file].iter().filter(|other| reached[*other].contains(file)).copied().collect();
    let rings: BTreeSet<Vec<&str>> =
        imports.keys().map(|file| ring(file)).filter(|ring: &Vec<_>| ring.len() > 1).collect();
    assert_eq!(rings, BTreeSet::new(), "files that import each other");
}

#[test]
fn each_library_stays_behind_its_door() {
    let files = sources();
    for (word, doors) in DOORS {
        // The path of another library may end with the word.
        let is_used = |code: &str| {
            code.match_indices(word)
                .any(|(at, _)| !code[..at].ends_with(|before: char| before == '_' || before.is_alphanumeric()))
        };
        let users: Vec<&String> = files.iter().filter(|(_, code)| is_used(code)).map(|(file, _)| file).collect();
        assert!(!users.is_empty(), "no file uses `{word}`: remove it from tests/layers.rs");
        let outside = users.into_iter().filter(|file| !doors.iter().any(|door| file.starts_with(door)));
        assert_eq!(outside.collect::<Vec<_>>(), Vec::<&String>::new(), "`{word}` outside its door");
    }
}
