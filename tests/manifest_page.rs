//! `docs/manifest.md`: its tables are made from the comments of the manifest's keys, and what the documents show works.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::support::plugway;

/// A key of the manifest, as the page describes it.
struct Key {
    name: String,
    kind: String,
    default: String,
    meaning: String,
    /// Values that the comment shows: the default, and examples.
    values: Vec<String>,
}

/// The keys of one table, with the name of its type.
struct Table {
    name: String,
    keys: Vec<Key>,
}

/// The line above the rows that are made for a type, up to its name.
const BEGIN: &str = "<!-- keys of ";
/// The line below the rows.
const END: &str = "<!-- end of keys -->";

const SOURCE: &str =
    concat!(include_str!("../host/src/config/manifest.rs"), include_str!("../host/src/config/plugin_grants.rs"));

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/manifest.md")
}

/// Returns the tables of the manifest, in the order of the source.
fn tables() -> Vec<Table> {
    let (mut tables, mut table, mut comment) = (Vec::new(), None::<Table>, Vec::new());
    let (mut is_kebab, mut is_kebab_next) = (false, false);
    for line in SOURCE.lines() {
        let text = line.trim_start();
        let declaration = ["pub(super) ", "pub "].iter().find_map(|word| text.strip_prefix(word)).unwrap_or(text);
        if let Some(said) = text.strip_prefix("///") {
            comment.push(said.trim());
        } else if text.starts_with("#[") {
            is_kebab_next |= text.contains("rename_all = \"kebab-case\"");
        } else if let Some(name) = declaration.strip_prefix("struct ").filter(|_| !line.starts_with(' ')) {
            (is_kebab, is_kebab_next) = (std::mem::take(&mut is_kebab_next), false);
            table = Some(Table { name: name.trim_end_matches(" {").into(), keys: Vec::new() });
            comment.clear();
        } else if let (Some(table), Some((name, _))) = (&mut table, declaration.split_once(": "))
            && line.starts_with("    ")
            && !line.starts_with("     ")
        {
            let name = name.trim_start_matches("r#");
            table.keys.push(key(if is_kebab { name.replace('_', "-") } else { name.into() }, &comment));
            comment.clear();
        } else {
            tables.extend(table.take_if(|_| line == "}"));
            (is_kebab_next, comment) = (false, Vec::new());
        }
    }
    tables
}

/// Returns a key by its comment, whose last paragraph has the type, the default and examples.
fn key(name: String, comment: &[&str]) -> Key {
    let blank = comment.iter().rposition(|line| line.is_empty()).unwrap_or_default();
    let (meaning, facts) = (comment[..blank].join(" "), comment[blank..].join(" "));
    let facts = facts.trim().strip_prefix("Type: ").and_then(|facts| facts.strip_suffix('.'));
    let facts = facts.unwrap_or_else(|| panic!("`{name}` of the manifest has no line `Type: … .` in its comment"));
    let (facts, example) = facts.split_once(". Example: ").unwrap_or((facts, ""));
    let (kind, default) = match facts.strip_suffix(". Required") {
        Some(kind) => (kind, "required"),
        None => {
            facts.split_once(". Default: ").unwrap_or_else(|| panic!("`{name}` has no `Default: …` in its comment"))
        }
    };
    let shown = if default.starts_with('`') { default } else { "" };
    let values = code(shown).take(1).chain(code(example)).map(String::from).collect();
    let example = if example.is_empty() { String::new() } else { format!(" Example: {example}.") };
    Key { name, kind: kind.into(), default: default.into(), meaning: meaning.trim().to_string() + &example, values }
}

/// Returns what a text has between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn rows(table: &Table) -> String {
    let row = |key: &Key| {
        let cells = [&format!("`{}`", key.name), &key.kind, &key.default, &key.meaning];
        format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
    };
    let rows: String = table.keys.iter().map(row).collect();
    format!("\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n")
}

/// Returns a page with new rows between its markers, and the types whose rows it has.
fn with_rows(page: &str, tables: &[Table]) -> (String, Vec<String>) {
    let (mut written, mut shown, mut is_kept) = (String::new(), Vec::new(), true);
    for line in page.lines() {
        is_kept |= line == END;
        if is_kept {
            written += &format!("{line}\n");
        }
        if let Some(name) = line.strip_prefix(BEGIN).and_then(|rest| rest.split([':', ' ']).next()) {
            let table = tables.iter().find(|table| table.name == name);
            written += &rows(table.unwrap_or_else(|| panic!("no table `{name}` in the manifest")));
            shown.push(name.into());
            is_kept = false;
        }
    }
    assert!(is_kept, "`{END}` is missing");
    (written, shown)
}

#[test]
fn the_tables_of_the_page_are_those_of_the_keys() {
    let (page, tables) = (page(), tables());
    let text = std::fs::read_to_string(&page).unwrap();
    let (written, mut shown) = with_rows(&text, &tables);
    let mut known: Vec<String> = tables.into_iter().map(|table| table.name).collect();
    known.sort();
    shown.sort();
    assert_eq!(shown, known, "each table of the manifest stands once in the page");
    if std::env::var_os("PLUGWAY_BLESS").is_some() {
        std::fs::write(&page, &written).unwrap();
    }
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text == written, "docs/manifest.md is stale: write its tables with PLUGWAY_BLESS=1, and review the diff");
}

// === Values ===

/// A manifest to which one more table can be added.
const REST: &str = r#"
[[listener]]
address = "127.0.0.1:0"
[upstream.app]
endpoints = ["127.0.0.1:8000"]
[[route]]
upstream = "app"
"#;

/// The tables in which a key of a type stands, after `REST`: `@` stands for the key. Other lines with the same key are
/// left out.
const PLACES: [(&str, &str); 30] = [
    ("LoadTable", "[load]\n@"),
    ("CacheTable", "[cache]\n@"),
    ("DiskTable", "[cache.disk]\npath = \"stored\"\nsize = \"32 GiB\"\n@"),
    ("ResolverTable", "[resolver]\n@"),
    ("AccessLogTable", "[access-log]\nformat = \"json\"\n@"),
    ("AdminTable", "[admin]\n@"),
    ("ListenerTable", "[[listener]]\naddress = \"127.0.0.2:0\"\n@"),
    (
        "TlsTable",
        "[[listener]]\naddress = \"127.0.0.2:0\"\n[listener.tls]\nclient-ca = \"ca.pem\"\n\
         certificates = [{ chain = \"cert.pem\", key = \"key.pem\" }]\n@",
    ),
    (
        "Certificate",
        "[[listener]]\naddress = \"127.0.0.2:0\"\n[[listener.tls.certificates]]\nchain = \"cert.pem\"\n\
         key = \"key.pem\"\n@",
    ),
    ("ListenerLimits", "[[listener]]\naddress = \"127.0.0.2:0\"\n[listener.limits]\n@"),
    ("UpstreamTable", "[upstream.more]\nendpoints = [\"127.0.0.1:8001\"]\n@"),
    (
        "UpstreamTls",
        "[upstream.more]\nendpoints = [\"https://127.0.0.1:8001\"]\n[upstream.more.tls]\nca = \"ca.pem\"\n@",
    ),
    ("HealthChecksTable", "[upstream.more]\nendpoints = [\"h2c://127.0.0.1:8001\"]\n[upstream.more.health]\n@"),
    ("OutliersTable", "[upstream.more]\nendpoints = [\"127.0.0.1:8001\"]\n[upstream.more.outliers]\n@"),
    ("RetryTable", "[upstream.more]\nendpoints = [\"127.0.0.1:8001\"]\n[upstream.more.retry]\n@"),
    (
        "UpstreamLimits",
        "[upstream.more]\nendpoints = [\"127.0.0.1:8001\"]\n[upstream.more.limits]\nconnections = 100\n@",
    ),
    ("EndpointTable", "[[upstream.more.endpoints]]\naddress = \"127.0.0.1:8001\"\n@"),
    ("RouteTable", "[[route]]\nhosts = [\"more.example\"]\nupstream = \"app\"\n@"),
    (
        "MaintenanceTable",
        "[[route]]\nhosts = [\"more.example\"]\nupstream = \"app\"\n[route.maintenance]\nfile = \"down\"\n@",
    ),
    (
        "RewriteTable",
        "[[route]]\nhosts = [\"more.example\"]\nupstream = \"app\"\n[route.rewrite]\nregex = \"^/x\"\nto = \"/y\"\n@",
    ),
    ("RespondTable", "[[route]]\nhosts = [\"more.example\"]\n[route.respond]\n@"),
    ("FilesTable", "[[route]]\nhosts = [\"more.example\"]\n[route.files]\nroot = \"public\"\n@"),
    ("BuffersTable", "[buffers]\n@"),
    ("PathTable", "[[route]]\nupstream = \"app\"\n[route.path]\n@"),
    ("PluginTable", "[plugin.more]\nuse = \"headers\"\n@"),
    ("PluginGrants", "[plugin.more]\nuse = \"headers\"\n[plugin.more.grants]\n@"),
    ("HttpUpstream", "[plugin.more]\nuse = \"headers\"\n[[plugin.more.grants.http]]\n@"),
    ("SharedTable", "[shared]\n@"),
    ("PluginLimitsTable", "[plugin.more]\nuse = \"headers\"\n[plugin.more.limits]\n@"),
    // A file of its own, which the manifest names.
    ("EndpointValue", "[upstream.more]\n@"),
];

/// Returns a manifest with a value for a key of a type.
fn manifest_with(table: &str, key: &str, value: &str) -> String {
    if table == "Manifest" {
        return format!("{key} = {value}\n{REST}");
    }
    let place = PLACES.iter().find(|(name, _)| *name == table).unwrap_or_else(|| panic!("no place for `{table}`")).1;
    let is_kind = ["dns", "srv", "file"].contains(&key);
    let is_mode = table == "ListenerTable" && key == "mode";
    let is_target = table == "RouteTable" && ["redirect", "status", "respond", "files"].contains(&key);
    let is_given = |line: &str| {
        line.starts_with(&format!("{key} ="))
            || is_mode && line.starts_with("address =")
            || is_kind && line.starts_with("address =")
            || is_target && line.starts_with("upstream =")
    };
    let place: Vec<&str> = place.lines().filter(|line| !is_given(line)).collect();
    let needed = match key {
        "status" if is_target => "redirect = \"/x\"\n",
        "ca" if table == "SharedTable" => "redis = \"rediss://localhost:9\"\n",
        "user" | "password" | "prefix" | "timeout" | "commands" | "fallback" if table == "SharedTable" => {
            "redis = \"redis://127.0.0.1:9\"\n"
        }
        "mode" if is_mode => "address = \"unix:/run/more.sock\"\n",
        "service" => "kind = \"grpc\"\n",
        "client-address-from" => "trusted-proxies = [\"10.0.0.0/8\"]\n",
        _ => "",
    };
    format!("{REST}{}", place.join("\n").replace('@', &format!("{needed}{key} = {value}\n")))
}

/// Makes the files that the documents name.
fn make_files(folder: &Path) {
    let made = plugway().args(["cert", "--self-signed"]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    for (name, of) in [("ca.pem", "cert.pem"), ("example.org.pem", "cert.pem"), ("wildcard.pem", "cert.pem")] {
        std::fs::copy(folder.join(of), folder.join(name)).unwrap();
    }
    for name in ["example.org.key", "wildcard.key"] {
        std::fs::copy(folder.join("key.pem"), folder.join(name)).unwrap();
    }
    std::fs::create_dir_all(folder.join("pages")).unwrap();
    std::fs::create_dir_all(folder.join("secrets")).unwrap();
    std::fs::write(folder.join("secrets/api-token"), "t0ken").unwrap();
    std::fs::create_dir_all(folder.join("sites")).unwrap();
    for site in ["public", "dist", "downloads"] {
        std::fs::create_dir_all(folder.join(site)).unwrap();
    }
    std::fs::create_dir_all(folder.join("target/wasm32-wasip2/release")).unwrap();
    for plugin in ["guard.wasm", "target/wasm32-wasip2/release/guard.wasm"] {
        std::fs::copy(plugway_test_guests::MISBEHAVE, folder.join(plugin)).unwrap();
    }
    for page in ["moved", "lost", "sorry", "shop", "closed"] {
        std::fs::write(folder.join(format!("pages/{page}.html")), "{status}").unwrap();
    }
    let key = format!("shop:sha256:{}", "0a".repeat(32));
    let files = [
        ("secrets/token", "t0ken"),
        ("keys.txt", &key),
        ("log.key", "0123456789abcdef0123456789abcdef"),
        ("allow.txt", "192.0.2.7"),
        ("blocklist.txt", "198.51.100.7"),
        ("redirects.map", "/old /new"),
        ("hosts.txt", "example.org"),
    ];
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
    std::fs::write(folder.join("app.toml"), "endpoints = [\"127.0.0.1:8002\"]").unwrap();
    let token = folder.join("admin.token");
    std::fs::write(&token, "0123456789abcdef").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// Returns the output of `plugway check` for a manifest of this text.
fn check(folder: &Path, name: &str, manifest: &str) -> Output {
    std::fs::write(folder.join(name), manifest).unwrap();
    plugway().env("REGION", "north").args(["check", name]).current_dir(folder).output().unwrap()
}

#[test]
fn each_default_and_example_of_a_key_is_a_good_value() {
    let folder = tempfile::tempdir().unwrap();
    make_files(folder.path());
    let tables = tables();
    let keys = tables.iter().flat_map(|table| table.keys.iter().map(move |key| (table, key)));
    let values = keys.flat_map(|(table, key)| key.values.iter().map(move |value| (&table.name, &key.name, value)));
    let values: Vec<_> = values.enumerate().collect();
    assert!(values.len() > 100, "{}", values.len());
    let reject = |(at, (table, key, value)): &(usize, (&String, &String, &String))| {
        // There is no plugin of that name.
        let manifest = manifest_with(table, key, value).replace("\"guard\"", "\"headers\"");
        let output = check(folder.path(), &format!("{at}.toml"), &manifest);
        let error = || format!("{table}: {key} = {value}\n{}", String::from_utf8_lossy(&output.stderr));
        (!output.status.success()).then(error)
    };
    let rejected: Vec<String> = std::thread::scope(|scope| {
        let some = |some| scope.spawn(move || <[_]>::iter(some).filter_map(reject).collect::<Vec<_>>());
        let running: Vec<_> = values.chunks(values.len().div_ceil(4)).map(some).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(rejected.is_empty(), "{}", rejected.join("\n"));
}

// === Documents ===

/// The documents whose manifests are checked: each block is a manifest, but for tables that it takes for granted.
const DOCUMENTS: &[(&str, &str)] = &[
    ("getting-started.md", include_str!("../docs/getting-started.md")),
    ("manifest.md", include_str!("../docs/manifest.md")),
    ("writing-a-filter.md", include_str!("../docs/writing-a-filter.md")),
    ("error-pages.md", include_str!("../docs/error-pages.md")),
    ("files.md", include_str!("../docs/files.md")),
    ("edge.md", include_str!("../docs/edge.md")),
    ("secrets.md", include_str!("../docs/secrets.md")),
    ("upstreams.md", include_str!("../docs/upstreams.md")),
    ("routing.md", include_str!("../docs/routing.md")),
    ("rewrite.md", include_str!("../docs/plugins/rewrite.md")),
    ("ip-filter.md", include_str!("../docs/plugins/ip-filter.md")),
    ("auth-basic.md", include_str!("../docs/plugins/auth-basic.md")),
    ("auth-key.md", include_str!("../docs/plugins/auth-key.md")),
    ("request-id.md", include_str!("../docs/plugins/request-id.md")),
    ("recipes.md", include_str!("../docs/recipes.md")),
    ("buffering.md", include_str!("../docs/buffering.md")),
    ("cors.md", include_str!("../docs/plugins/cors.md")),
    ("security-headers.md", include_str!("../docs/plugins/security-headers.md")),
    ("log-fields.md", include_str!("../docs/plugins/log-fields.md")),
    ("body-limit.md", include_str!("../docs/plugins/body-limit.md")),
];

/// The tables that every manifest needs.
const NEEDED: [(&str, &str); 3] = [
    ("[[listener]]", "[[listener]]\naddress = \"127.0.0.1:0\"\n"),
    ("[upstream.app]", "[upstream.app]\nendpoints = [\"127.0.0.1:8000\"]\n"),
    ("[[route]]", "[[route]]\nupstream = \"app\"\n"),
];

#[test]
fn the_manifests_of_the_documents_are_good() {
    let folder = tempfile::tempdir().unwrap();
    make_files(folder.path());
    for (document, text) in DOCUMENTS {
        for (at, block) in text.split("```toml\n").skip(1).enumerate() {
            let mut manifest = block.split("```").next().unwrap().to_string();
            for (table, whole) in NEEDED {
                if !manifest.contains(table) {
                    manifest = format!("{manifest}\n{whole}");
                }
            }
            let output = check(folder.path(), &format!("{document}-{at}.toml"), &manifest);
            assert!(output.status.success(), "{document}\n{manifest}{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// Returns the tables of a manifest that configure the plugin `headers`.
fn edits(value: &toml::Value) -> Vec<&toml::Table> {
    match value {
        toml::Value::Table(table) => {
            let is_headers = table.get("use").and_then(toml::Value::as_str) == Some("headers");
            let own = is_headers.then(|| table.get("config")?.as_table()).flatten();
            own.into_iter().chain(table.values().flat_map(edits)).collect()
        }
        toml::Value::Array(list) => list.iter().flat_map(edits).collect(),
        _ => Vec::new(),
    }
}

/// RFC 9111 §3: caches may store an error that has a lifetime.
#[test]
fn no_manifest_of_the_documents_gives_errors_a_lifetime() {
    let mut lifetimes = 0;
    for (document, text) in DOCUMENTS {
        for block in text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            let manifest: toml::Value = toml::from_str(block).unwrap();
            for config in edits(&manifest) {
                let fields = config.get("response").and_then(|response| response.get("set"));
                let control = fields.and_then(|fields| fields.get("Cache-Control")).and_then(toml::Value::as_str);
                if control.is_some_and(|control| control.contains("max-age")) {
                    lifetimes += 1;
                    let statuses = config.get("when").and_then(|when| when.get("statuses"));
                    assert!(statuses.is_some(), "{document}\n{block}");
                }
            }
        }
    }
    assert!(lifetimes > 1);
}

/// Returns the texts of the Markdown and WIT files below a folder, with their paths.
fn texts(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(self::texts(&path));
        } else if path.extension().is_some_and(|end| end == "md" || end == "wit") {
            texts.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    texts
}

#[test]
fn each_command_that_the_texts_name_exists() {
    let help = String::from_utf8(plugway().arg("--help").stdout(Stdio::piped()).output().unwrap().stdout).unwrap();
    let commands: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(commands.contains(&"hash-password"), "{help}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, text) in ["docs", "wit"].iter().flat_map(|folder| texts(&root.join(folder))) {
        for named in text.split("`plugway ").skip(1) {
            let end = named.find(|letter: char| !letter.is_ascii_lowercase() && letter != '-').unwrap_or(named.len());
            let command = &named[..end];
            let is_known = command.is_empty() || command.starts_with('-') || commands.contains(&command);
            assert!(is_known, "{}: `plugway {command}`", path.display());
        }
    }
}
