//! Bad manifests: each mistake gets a message that names file, line and remedy.

use crate::support::run;

const GOOD: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.app]\nendpoints = [\"127.0.0.1:1\"]\n[[route]]\nupstream = \"app\"\n";

fn check(text: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
    std::fs::write(folder.path().join("no.wasm"), "no component").unwrap();
    run(&["check", folder.path().join("plugway.toml").to_str().unwrap()])
}

#[test]
fn a_good_manifest_passes() {
    assert_eq!(check(GOOD), (Some(0), String::new()));
}

#[test]
fn each_mistake_is_shown_in_its_place() {
    let cases = [
        (GOOD.replace("upstream = \"app\"", "upstraem = \"app\""), "toml:6:1", "unknown field `upstraem`"),
        (GOOD.replace("upstream = \"app\"", "upstream = \"ap\""), "toml:6:12", "there is no upstream `ap`; known: app"),
        (GOOD.replace("[\"127.0.0.1:1\"]", "3"), "toml:4:13", "invalid type: integer `3`"),
        (GOOD.replace("127.0.0.1:1\"", "127.0.0.1\""), "toml:4:14", "is no endpoint; write"),
        (GOOD.replace("127.0.0.1:0", "localhost"), "toml:2:11", "is no address to listen at; write"),
        (format!("{GOOD}path = \"api\""), "toml:7:8", "a path begins with `/`: write `/api`"),
        (format!("{GOOD}path = {{ regex = \"(\" }}"), "toml:7:8", "this is no regular expression"),
        (format!("{GOOD}hosts = [\"a:80\"]"), "toml:7:10", "is no host; write"),
        (format!("{GOOD}methods = [\"G ET\"]"), "toml:7:12", "is no method"),
        (format!("{GOOD}plugins = [\"head\"]"), "toml:7:12", "there is no plugin `head`; known here: headers, balance"),
        (format!("{GOOD}plugins = [{{ use = \"./gone.wasm\" }}]"), "toml:7:20", "can't be read"),
        (format!("{GOOD}plugins = [{{ use = \"no.wasm\" }}]"), "toml:7:20", "this is no WebAssembly component"),
        (format!("{GOOD}[[route]]\nupstream = \"app\""), "toml:7:1", "no request can tell this route from the one at"),
        (format!("{GOOD}[plugin.p]\nuse = \"headers\"\nconfig = {{ requst = {{}} }}"), "toml:9:10", "requst"),
        (
            format!("{GOOD}[plugin.p]\nuse = \"headers\"\nconfig.request.set.a = \"{{hots}}\""),
            "toml:9:",
            "there is no value `{hots}`",
        ),
        (
            format!("{GOOD}[plugin.p]\nuse = \"headers\"\nlimits.memory = \"1 TB\""),
            "toml:9:17",
            "memory is a size between",
        ),
        (format!("{GOOD}[plugin.p]\nuse = \"headers\"\non-error = \"ignore\""), "toml:9:12", "on-error is"),
        (format!("{GOOD}[upstream.b]\nendpoints = []"), "toml:7:11", "at least one endpoint"),
        (format!("{GOOD}[upstream.b]\nendpoints = [\"a:1\"]\nbalancer = \"headers\""), "toml:9:12", "is no balancer"),
        (format!("{GOOD}[upstream.b]\nendpoints = [\"a:1\"]\nidle-timeout = \"5\""), "toml:9:16", "is no time; write"),
        (format!("include = [\"sites/a.toml\"]\n{GOOD}"), "toml:1:12", "there is no file"),
    ];
    for (text, place, message) in cases {
        let (code, error) = check(&text);
        assert_eq!(code, Some(1), "{text}");
        assert!(error.contains(place) && error.contains(message), "wanted {place} {message}, got\n{error}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let (_, error) =
        check(&GOOD.replace("127.0.0.1:1\"", "x\"").replace("\"app\"", "\"nowhere\"").replace("127.0.0.1:0", "y"));
    assert_eq!(error.matches("error: ").count(), 3, "{error}");
}

#[test]
fn a_missing_manifest_is_named() {
    let (code, error) = run(&["run", "/nowhere/plugway.toml"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("/nowhere/plugway.toml") && error.contains("can't be read"), "{error}");
}
