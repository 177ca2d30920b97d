//! Bad manifests: each mistake gets a message that names file, line and remedy. The files of `manifests/bad` have
//! their messages beside them; `PLUGWAY_BLESS=1` writes these anew, for the diff to be reviewed.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::support::{manifest, plugway};

/// Returns the output of `plugway check` for a manifest in a folder, with its exit code.
fn check(folder: &Path, manifest: &str) -> (Option<i32>, String) {
    let output = plugway().args(["check", manifest]).current_dir(folder).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn manifests(kind: &str) -> (PathBuf, Vec<String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/manifests").join(kind);
    let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".toml")).collect();
    names.sort();
    (folder, names)
}

#[test]
fn each_mistake_has_its_message() {
    let (folder, names) = manifests("bad");
    assert!(names.len() > 50, "{names:?}");
    let mut wrong = Vec::new();
    for name in names {
        let (code, error) = check(&folder, &name);
        assert_eq!(code, Some(1), "{name} is taken for good");
        let golden = folder.join(&name).with_extension("err");
        if std::env::var_os("PLUGWAY_BLESS").is_some() {
            std::fs::write(&golden, &error).unwrap();
        }
        let wanted = std::fs::read_to_string(&golden).unwrap_or_default();
        if error != wanted {
            wrong.push(format!("--- {name}, wanted\n{wanted}\n--- got\n{error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn good_manifests_pass() {
    let (folder, names) = manifests("ok");
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        assert_eq!(check(&folder, &name), (Some(0), String::new()), "{name}");
    }
}

/// The report for programs. The files of `manifests/json` have theirs beside them.
#[test]
fn a_report_for_programs_has_all_errors_and_warnings() {
    let (folder, names) = manifests("json");
    assert!(names.len() >= 3, "{names:?}");
    let mut wrong = Vec::new();
    for name in names {
        let mut command = plugway();
        command.args(["check", "--json", &name]).current_dir(&folder).stdout(Stdio::piped());
        let output = command.output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.success(), report["ok"] == true, "{name}");
        assert!(output.stderr.is_empty(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let golden = folder.join(&name).with_extension("json");
        let text = serde_json::to_string_pretty(&report).unwrap() + "\n";
        if std::env::var_os("PLUGWAY_BLESS").is_some() {
            std::fs::write(&golden, &text).unwrap();
        }
        if std::fs::read_to_string(&golden).unwrap_or_default() != text {
            wrong.push(format!("{name}\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The manifest of the README, word for word.
#[test]
fn the_manifest_of_the_readme_is_good() {
    let readme = include_str!("../README.md");
    let text = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
    assert_eq!(check(folder.path(), "plugway.toml"), (Some(0), String::new()));
}

#[test]
fn a_missing_manifest_is_named() {
    let (code, error) = check(Path::new("/"), "nowhere/plugway.toml");
    assert_eq!(code, Some(1));
    assert!(error.contains("nowhere/plugway.toml") && error.contains("no manifest: there is no file"), "{error}");
}

#[test]
fn the_plugin_headers_without_rules_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let warns = |plugins: &str, more: &str| {
        std::fs::write(folder.path().join("plugway.toml"), manifest("127.0.0.1:1", plugins, more)).unwrap();
        let (code, said) = check(folder.path(), "plugway.toml");
        assert_eq!(code, Some(0), "{said}");
        assert!(said.is_empty() || said.contains("plugin `headers` without rules"), "{said}");
        said.matches("forwarded = {}").count()
    };
    assert_eq!(warns("\"headers\"", ""), 1);
    assert_eq!(warns("{ use = \"headers\" }", ""), 1);
    assert_eq!(warns("\"h\"", "[plugin.h]\nuse = \"headers\"\n"), 1);
    assert_eq!(warns("\"headers\"", "[plugin.headers]\nuse = \"headers\"\nconfig = { forwarded = {} }\n"), 0);
    assert_eq!(warns("{ use = \"headers\", config.response.remove = [\"Server\"] }", ""), 0);
}

/// Such a page is no mistake, and shows that its author expects something else of it.
#[test]
fn an_error_page_that_is_never_shown_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("page.html"), "{status}").unwrap();
    let check = |pages: &str, more: &str| {
        let text = manifest("127.0.0.1:1", "", &format!("[error-page]\n{pages}\n{more}"));
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        let (code, said) = check(folder.path(), "plugway.toml");
        assert_eq!(code, Some(0), "{said}");
        said
    };
    let shown = [400, 404, 408, 413, 414, 415, 421, 429, 431, 500, 501, 502, 503, 504, 505];
    let pages = shown.map(|code| format!("{code} = \"page.html\"\n")).concat() + "\"4xx\" = \"page.html\"\n";
    assert_eq!(check(&pages, ""), "");
    let said = check("404 = \"page.html\"\n403 = \"page.html\"", "");
    assert_eq!(said.matches("warning: ").count(), 1, "{said}");
    assert!(said.contains("plugway.toml:11") && said.contains("`403` of `error-page`"), "{said}");
    let named = "[plugin.p]\nuse = \"headers\"\nconfig = { forwarded = {} }\non-error = 403\n[[route]]\npath = \"/p\"\nupstream = \"app\"\nplugins = [\"p\"]";
    assert_eq!(check("403 = \"page.html\"", named), "");
    let plugin = "[[route]]\npath = \"/p\"\nupstream = \"app\"\nplugins = [\"request-id\"]";
    assert_eq!(check("403 = \"page.html\"", plugin), "", "a plugin may respond with it");
    for status in ["410", "\"410\"", "\"4xx\""] {
        let intercepting = format!("[[route]]\npath = \"/p\"\nupstream = \"app\"\nintercept = [{status}]");
        assert_eq!(check("410 = \"page.html\"", &intercepting), "", "{status}");
    }
    let files = "[[route]]\npath = \"/p\"\nfiles = { root = \".\" }";
    assert_eq!(check("403 = \"page.html\"\n405 = \"page.html\"\n412 = \"page.html\"", files), "");
}

#[test]
fn an_endpoint_that_is_a_listener_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let check = |listener: &str, endpoint: &str| {
        let text = manifest(endpoint, "", "").replace("127.0.0.1:0", listener);
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        let (code, said) = check(folder.path(), "plugway.toml");
        assert_eq!(code, Some(0), "{said}");
        said
    };
    for (listener, endpoint) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "h2c://127.0.0.1:8080"),
        ("[::1]:8080", "[0:0::1]:8080"),
        ("unix:/tmp/plugway.sock", "unix:/tmp/./plugway.sock"),
    ] {
        let said = check(listener, endpoint);
        assert!(said.contains("plugway.toml:5") && said.contains("endpoint is a listener of this proxy"), "{said}");
    }
    assert_eq!(check("0.0.0.0:8080", "192.0.2.1:8080"), "");
}

#[test]
fn probable_misunderstanding_is_a_warning() {
    let text = |listener: &str, endpoint: &str, route: &str| {
        format!(
            "[[listener]]\naddress = \"{listener}\"\n[upstream.app]\nendpoints = [{endpoint}]\n\
             [[route]]\nupstream = \"app\"\n{route}\n"
        )
    };
    let template = |value: &str| format!("plugins = [{{ use = \"headers\", config.request.set.X-A = \"{value}\" }}]");
    let (port, other) = ("127.0.0.1:8099", "\"127.0.0.1:8000\"");
    let balanced = "127.0.0.1:8099\"\nredirect-to-https = true\nproxy-protocol-from = [\"10.0.0.1\"]\n\
                    trusted-proxies = [\"10.0.0.1\"]\nclient-address-from = \"x-forwarded-for";
    let cases = [
        (text(port, other, "path = \"/a/*\""), "`*` in a path stands for itself; write `path = \"/a\"`"),
        (text(port, other, "path = \"/*\""), "remove `path` for a route of any path"),
        (text(port, other, "path = \"/*.php\""), "regex = '\\.php$'"),
        (text(port, other, "hosts = [\"_\"]"), "remove `hosts` for a route of any host"),
        (text(port, other, &template("https://$host/")), "write `{host}` for nginx's `$host`"),
        (text(port, other, &template("$remote_addr")), "write `{client.ip}` for nginx's `$remote_addr`"),
        (text(port, other, "path = { exact = \"/a/{id}\" }"), "`{id}` in a path stands for itself"),
        (text(port, other, "path = \"/a/:id/b\""), "`:id` in a path stands for itself"),
        (text(port, other, "hosts = []"), "`hosts`: an empty list stands for all"),
        (text(port, other, "methods = []"), "`methods`: an empty list stands for all"),
        (text(port, other, "methods = [\"GTE\"]"), "did you mean `GET`?"),
        (text(port, "\"127.0.0.1:8099\"", ""), "is a listener of this proxy"),
        (text(port, "{ address = \"127.0.0.1:1\", draining = true }", ""), "are draining"),
        (text(balanced, other, ""), "belongs in `trusted-proxies` alone"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let said = |text: &str| {
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        check(folder.path(), "plugway.toml")
    };
    for (text, why) in cases {
        let (code, said) = said(&text);
        assert!(code == Some(0) && said.matches("warning: ").count() == 1 && said.contains(why), "{text}\n{said}");
    }
    assert_eq!(said(&text(port, other, "methods = [\"PURGE\"]\npath = \"/a:b\"")), (Some(0), String::new()));
    let never = "plugins = [{ use = \"headers\", config = { when = { paths = [\"api\"] } } }]";
    let (code, said) = said(&text(port, other, never));
    assert!(code == Some(1) && said.contains("config.when.paths") && said.contains("write `/api`"), "{said}");
}

#[test]
fn a_redirect_to_itself_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let check = |routes: &str| {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{routes}\n");
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        let (code, said) = check(folder.path(), "plugway.toml");
        assert_eq!(code, Some(0), "{said}");
        said
    };
    for route in [
        "path = \"/loop\"\nredirect = \"/loop\"",
        "path = \"/loop\"\nredirect = \"/loop/deeper?{query}\"",
        "path = { exact = \"/loop\" }\nredirect = \"{uri}\"",
        "hosts = [\"*.example.org\"]\nredirect = \"/new{uri}\"",
        "methods = [\"POST\"]\nredirect = \"{path}\"\nstatus = 307",
        "methods = [\"PUT\"]\nredirect = \"{path}\"\nstatus = 302",
        "methods = [\"POST\", \"GET\"]\nredirect = \"{path}\"\nstatus = 303",
    ] {
        let said = check(&format!("[[route]]\n{route}"));
        assert!(said.contains("warning: redirect to itself") && said.contains("| redirect = "), "{route}: {said}");
    }
    for routes in [
        "[[route]]\npath = { exact = \"/a\" }\nredirect = \"/a/\"",
        "[[route]]\nredirect = \"https://{host}{uri}\"",
        "[[route]]\npath = \"/a\"\nredirect = \"/a\"\n[[route]]\npath = { exact = \"/a\" }\nrespond = {}",
        "[[route]]\nredirect = \"/login\"\n[[route]]\npath = \"/login\"\nrespond = {}",
        "[[route]]\nmethods = [\"PUT\"]\nredirect = \"{path}\"\nstatus = 303\n[[route]]\nrespond = {}",
        "[[route]]\nmethods = [\"POST\"]\nredirect = \"{path}\"\nstatus = 302\n[[route]]\nrespond = {}",
    ] {
        assert_eq!(check(routes), "", "{routes}");
    }
}

#[test]
fn a_redirect_to_its_own_scheme_and_host_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    assert!(
        plugway().args(["cert", "--self-signed", "a.example"]).current_dir(folder.path()).status().unwrap().success()
    );
    let tls = "[listener.tls]\ncertificates = [{ chain = \"cert.pem\", key = \"key.pem\" }]\n";
    let both = format!("[[listener]]\naddress = \"127.0.0.1:8080\"\n[[listener]]\naddress = \"127.0.0.1:8443\"\n{tls}");
    let https = format!("[[listener]]\naddress = \"127.0.0.1:8443\"\n{tls}");
    let http = "[[listener]]\naddress = \"127.0.0.1:8080\"\n".to_string();
    let check = |listeners: &str, routes: &str| {
        std::fs::write(folder.path().join("plugway.toml"), format!("{listeners}{routes}\n")).unwrap();
        let (code, said) = check(folder.path(), "plugway.toml");
        assert_eq!(code, Some(0), "{routes}: {said}");
        said
    };
    let rest = "[[route]]\nrespond = {}";
    for (listeners, route) in [
        (&both, "hosts = [\"a.example\"]\nredirect = \"https://{host}{uri}\""),
        (&both, "hosts = [\"a.example\", \"www.a.example\"]\nredirect = \"https://a.example{uri}\""),
        (&both, "path = \"/old\"\nredirect = \"https://{authority}{uri}\""),
        (&https, "path = \"/old\"\nredirect = \"https://{host}{uri}\""),
        (&http, "path = \"/old\"\nredirect = \"{scheme}://{host}{uri}\""),
        (&http, "path = \"/old\"\nredirect = \"http://{host}:8080{uri}\""),
    ] {
        let said = check(listeners, &format!("[[route]]\n{route}\n{rest}"));
        assert!(said.contains("warning: redirect to itself") && said.contains("| redirect = "), "{route}: {said}");
        assert_eq!(said.contains("write `listeners = [\"127.0.0.1:8080\"]`"), listeners == &both, "{route}: {said}");
    }
    let redirecting = both.replacen("8080\"\n", "8080\"\nredirect-to-https = true\n", 1);
    for (listeners, route) in [
        (&both, "listeners = [\"127.0.0.1:8080\"]\nhosts = [\"a.example\"]\nredirect = \"https://{host}{uri}\""),
        (&both, "hosts = [\"www.a.example\"]\nredirect = \"https://a.example{uri}\""),
        (&both, "hosts = [\"a.example\"]\nredirect = \"https://{host}:9443{uri}\""),
        (&both, "hosts = [\"a.example\"]\nredirect = \"https://shop.example{uri}\""),
        (&both, "path = \"/old\"\nredirect = \"https://shop.example{uri}\""),
        (&both, "path = \"/old\"\nredirect = \"//shop.example/old\""),
        (&http, "path = \"/old\"\nredirect = \"https://{host}{uri}\""),
        (&https, "path = \"/old\"\nredirect = \"http://{host}{uri}\""),
        (&redirecting, "hosts = [\"a.example\"]\nredirect = \"https://www.{host}{uri}\""),
    ] {
        assert_eq!(check(listeners, &format!("[[route]]\n{route}\n{rest}")), "", "{route}");
    }
}

#[test]
fn a_redirect_of_any_host_to_a_host_of_the_manifest_is_warned_of_where_it_comes_back() {
    let redirect = |to: &str, rest: &str| {
        let routes = format!("[[route]]\nredirect = \"{to}\"\n[[route]]\n{rest}\nupstream = \"app\"");
        said_of(&routes).contains("warning: redirect to itself")
    };
    let of_paths = "hosts = [\"www.a.example\"]\npath = \"/app\"";
    assert!(redirect("http://www.a.example{uri}", of_paths));
    assert!(redirect("http://b.a.example/", "hosts = [\"*.a.example\"]\npath = \"/app\""));
    for (to, rest) in [
        ("http://www.a.example{uri}", "hosts = [\"www.a.example\"]"),
        ("http://www.a.example/app", of_paths),
        ("https://www.a.example{uri}", of_paths),
        ("http://b.example{uri}", of_paths),
        ("http://a.example{uri}", "hosts = [\"*.a.example\"]\npath = \"/app\""),
    ] {
        assert!(!redirect(to, rest), "{to}: {rest}");
    }
}

/// Returns what a check says of a good manifest with one listener, an upstream and these tables.
fn said_of(tables: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let text =
        format!("[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.app]\nendpoints = [\"127.0.0.1:1\"]\n{tables}\n");
    std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
    let (code, said) = check(folder.path(), "plugway.toml");
    assert_eq!(code, Some(0), "{tables}: {said}");
    said
}

#[test]
fn fields_that_listeners_remove_are_warned_of_wherever_plugins_read_them() {
    let route = |plugin: &str| said_of(&format!("[[route]]\nupstream = \"app\"\nplugins = [{plugin}]"));
    let balancer = |key: &str| {
        let config = format!("{{ policy = \"consistent-hash\", key = \"request.header.{key}\" }}");
        said_of(&format!("balancer = {{ use = \"balance\", config = {config} }}\n[[route]]\nupstream = \"app\""))
    };
    let cache = |config: &str| route(&format!("{{ use = \"cache\", config = {{ {config} }} }}"));
    let headers = |set: &str| route(&format!("{{ use = \"headers\", config = {{ request.set = {{ {set} }} }} }}"));
    for (said, name) in [
        (balancer("x_tenant"), "x_tenant"),
        (balancer("x-forwarded-for"), "x-forwarded-for"),
        (cache("bypass = [\"request.header.x_preview\"]"), "x_preview"),
        (cache("key.values = [\"request.header.x-forwarded-host\"]"), "x-forwarded-host"),
        (headers("X-A = \"{request.header.x_tenant}\""), "x_tenant"),
        (headers("X-A = \"{request.header.X-Forwarded-Host}\""), "x-forwarded-host"),
        (route("{ use = \"log-fields\", config = { log = { tenant = \"request.header.x_tenant\" } } }"), "x_tenant"),
    ] {
        let wanted = format!("warning: requests never have the field `{name}` here");
        assert_eq!(said.matches(&wanted).count(), 1, "{name}: {said}");
    }
    for said in [
        cache(""),
        route("{ use = \"headers\", config = { forwarded = {} } }"),
        headers("X-Forwarded-For = \"{forwarded-for}\", X-Real-IP = \"{client.ip}\""),
        headers("X-Real-IP = \"{client.ip}\", X-Log = \"{request.header.x-real-ip}\""),
        balancer("x-tenant"),
    ] {
        assert_eq!(said, "");
    }
    let below = |plugin: &str, field: &str| {
        let reader = format!("config.request.set = {{ X-A = \"{{request.header.{field}}}\" }}");
        route(&format!("{plugin}, {{ use = \"headers\", {reader} }}"))
    };
    let forwarded = |fields: &str| format!("{{ use = \"headers\", config.forwarded.fields = {fields:?} }}");
    for field in ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"] {
        assert_eq!(below(&forwarded("x-forwarded"), field), "");
        assert_eq!(below(&forwarded("both"), field), "");
        assert!(below(&forwarded("rfc7239"), field).contains("warning: requests never have the field"), "{field}");
    }
    assert_eq!(below(&forwarded("rfc7239"), "forwarded"), "");
    assert!(below(&forwarded("x-forwarded"), "forwarded").contains("warning: requests never have the field"));
    let both = "forwarded = {}, request.set = { X-A = \"{request.header.x-forwarded-host}\" }";
    assert_eq!(route(&format!("{{ use = \"headers\", config = {{ {both} }} }}")), "");
    let policy = "content-security-policy = \"script-src 'nonce-{nonce}'\"";
    let with_nonce = format!("{{ use = \"security-headers\", config = {{ nonce-field = \"X_Nonce\", {policy} }} }}");
    for (plugin, field) in [
        ("{ use = \"request-id\", config = { field = \"X_Request_ID\", format = \"uuid\" } }", "x_request_id"),
        ("{ use = \"request-id\", config.traceparent = \"create\" }", "traceparent"),
        (&with_nonce, "x_nonce"),
    ] {
        assert_eq!(below(plugin, field), "", "{plugin}");
    }
    let trusted = "[[listener]]\naddress = \"127.0.0.2:0\"\ntrusted-proxies = [\"10.0.0.0/8\"]\n";
    let plugin = "{ use = \"headers\", config = { request.set = { X-A = \"{request.header.x-forwarded-host}\" } } }";
    assert_eq!(said_of(&format!("{trusted}[[route]]\nupstream = \"app\"\nplugins = [{plugin}]")), "");
}

#[test]
fn caches_in_routes_without_an_upstream_are_warned_of() {
    for (target, why) in [
        ("files = { root = \".\" }", "warning: a cache before `files`: it serves a changed file as it was"),
        ("redirect = \"/new\"\npath = \"/old\"", "warning: a cache in a route without an upstream: it stores nothing"),
        ("respond = { body = \"a\" }", "warning: a cache in a route without an upstream: it stores nothing"),
    ] {
        let rest = "[[route]]\nhosts = [\"a.example\"]\nupstream = \"app\"\nplugins = [\"cache\"]\n";
        let said = said_of(&format!("{rest}[[route]]\n{target}\nplugins = [\"cache\"]"));
        assert!(said.contains(why) && said.matches("warning: ").count() == 1, "{target}: {said}");
    }
}

#[test]
fn keys_beside_others_that_disable_them_are_warned_of() {
    let route = "[[route]]\nupstream = \"app\"\n";
    for (tables, why) in [
        (
            "[access-log]\nformat = \"off\"\nfile = \"access.log\"",
            "warning: `file` of `[access-log]`: `format = \"off\"` writes no lines",
        ),
        ("[resolver]\nservers = [\"127.0.0.1:53\"]", "warning: `[resolver]`: no endpoint has `dns` or `srv`"),
        ("[shared]\nmemory = \"32 MiB\"", "warning: `[shared]`: no plugin may keep state"),
        (
            "[upstream.z]\nendpoints = [{ address = \"127.0.0.1:2\", zone = \"a\" }]\n\
             balancer = { use = \"balance\", config = { zone = \"q\" } }\n[[route]]\npath = \"/z\"\nupstream = \"z\"",
            "warning: `zone` of the balancer: no endpoint of the upstream is in \"q\"",
        ),
        (
            "[upstream.z]\nendpoints = [{ address = \"127.0.0.1:2\", zone = \"a\" }]\n\
             [[route]]\npath = \"/z\"\nupstream = \"z\"",
            "warning: `zone` of endpoints: the balancer of the upstream prefers none",
        ),
        (
            "[upstream.tls]\nendpoints = [\"https://127.0.0.1:1\"]\ntls = { ca = \"ca.pem\", insecure-skip-verify = true }\n\
             [[route]]\npath = \"/tls\"\nupstream = \"tls\"",
            "warning: `ca` beside `insecure-skip-verify`: no certificate is verified",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let made = plugway().args(["cert", "--self-signed", "a.example"]).current_dir(folder.path()).status().unwrap();
        assert!(made.success());
        std::fs::rename(folder.path().join("cert.pem"), folder.path().join("ca.pem")).unwrap();
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.app]\nendpoints = [\"127.0.0.1:1\"]\n{route}{tables}\n"
        );
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        let (code, said) = check(folder.path(), "plugway.toml");
        assert!(code == Some(0) && said.contains(why) && said.matches("warning: ").count() == 1, "{tables}: {said}");
    }
    let dns = "[resolver]\nservers = [\"127.0.0.1:53\"]\n[upstream.dns]\nendpoints = [{ dns = \"a.internal:80\" }]\n\
               [[route]]\npath = \"/dns\"\nupstream = \"dns\"";
    assert_eq!(said_of(&format!("{route}{dns}")), "");
}

#[test]
fn keys_that_change_no_path_of_their_route_are_warned_of() {
    let route = |keys: &str| said_of(&format!("[[route]]\nupstream = \"app\"\n{keys}"));
    for keys in [
        "path = \"/a\"\nstrip-prefix = \"/b\"",
        "path = \"/a/b\"\nstrip-prefix = \"/a/c\"",
        "path = { exact = \"/a\" }\nstrip-prefix = \"/a/b\"",
    ] {
        let said = route(keys);
        assert!(said.contains("warning: `strip-prefix` that no path of the route has"), "{keys}: {said}");
    }
    for keys in [
        "path = \"/a\"\nrewrite = { regex = \"^/b/\", to = \"/\" }",
        "path = \"/a\"\nrewrite = { regex = \"^/ab\", to = \"/\" }",
        "path = { exact = \"/a\" }\nrewrite = { regex = \"^/a/(.*)$\", to = \"/$1\" }",
    ] {
        let said = route(keys);
        assert!(said.contains("warning: `rewrite` that matches no path of the route"), "{keys}: {said}");
    }
    for keys in [
        "path = \"/a\"\nstrip-prefix = \"/a/b\"",
        "path = \"/a/b\"\nstrip-prefix = \"/a\"",
        "path = \"/\"\nstrip-prefix = \"/a\"",
        "path = { regex = \"^/a\" }\nstrip-prefix = \"/b\"",
        "path = \"/a\"\nrewrite = { regex = \"^/a/b/\", to = \"/\" }",
        "path = \"/a\"\nrewrite = { regex = \"^/a;v=([0-9])\", to = \"/$1\" }",
        "path = { exact = \"/a\" }\nrewrite = { regex = \"a$\", to = \"/b\" }",
        "path = { regex = \"^/a\" }\nrewrite = { regex = \"^/b\", to = \"/\" }",
        // A plugin may change the path.
        "path = \"/a\"\nstrip-prefix = \"/b\"\nplugins = [{ use = \"headers\", config.request.remove = [\"X-A\"] }]",
    ] {
        assert_eq!(route(keys), "", "{keys}");
    }
}

#[test]
fn values_in_the_paths_of_rewrites_are_warned_of() {
    let route = |keys: &str| said_of(&format!("[[route]]\nupstream = \"app\"\n{keys}"));
    let plugin = |config: &str| route(&format!("plugins = [{{ use = \"rewrite\", config = {{ {config} }} }}]"));
    let warning = |value: &str| format!("warning: value in the target of a rewrite: `{value}` stands for itself");
    for (said, value) in [
        (route("rewrite = { regex = \"^/a$\", to = \"/b?x={query.x}\" }"), "{query.x}"),
        (plugin("rules = [{ regex = \"^/a$\", to = \"/b\" }, { regex = \"^/c$\", to = \"/c/{host}\" }]"), "{host}"),
        (plugin("map = \"/a /b/{client.ip}\\n/c /d/{host}\""), "{client.ip}"),
    ] {
        assert!(said.contains(&warning(value)) && said.matches("warning: ").count() == 1, "{value}: {said}");
    }
    for said in [
        route("rewrite = { regex = \"^/(?<host>a)$\", to = \"/b/${host}\" }"),
        route("rewrite = { regex = \"^/a$\", to = \"/b/{id}\" }"),
        plugin("rules = [{ regex = \"^/(?<path>a)$\", to = \"/b/${path}\" }]"),
        plugin("map = \"/a /b/{id}\""),
    ] {
        assert_eq!(said, "");
    }
}

#[test]
fn methods_that_no_page_can_use_are_warned_of() {
    let cors = |methods: &str| {
        let config = format!("{{ origins = [\"https://a.example\"], methods = {methods} }}");
        said_of(&format!("[[route]]\nupstream = \"app\"\nplugins = [{{ use = \"cors\", config = {config} }}]"))
    };
    let said = cors("[\"GET\", \"CONNECT\", \"TRACE\"]");
    for method in ["CONNECT", "TRACE"] {
        assert!(said.contains(&format!("warning: method that no page can use: `{method}`")), "{said}");
    }
    assert_eq!(cors("[\"GET\", \"PURGE\"]"), "");
}

#[test]
fn a_request_buffer_above_the_longest_body_is_warned_of() {
    let route = |keys: &str| said_of(&format!("[[route]]\nupstream = \"app\"\n{keys}"));
    for (keys, limit) in [
        ("max-body = \"1 MiB\"\nrequest-buffer = \"2 MiB\"", "1 MiB"),
        ("request-buffer = \"2 GiB\"", "1 GiB by default"),
    ] {
        let said = route(keys);
        assert!(said.contains(&format!("warning: `request-buffer` above `max-body`, {limit}")), "{keys}: {said}");
    }
    for keys in
        ["max-body = \"1 MiB\"\nrequest-buffer = \"1 MiB\"", "max-body = \"1 KiB\"", "request-buffer = \"1 GiB\""]
    {
        assert_eq!(route(keys), "", "{keys}");
    }
}

#[test]
fn a_cors_plugin_without_preflights_is_warned_of() {
    let cors = "upstream = \"app\"\nplugins = [{ use = \"cors\", config.origins = [\"*\"] }]\n";
    let lost = |keys: &str| said_of(&format!("[[route]]\n{cors}{keys}")).contains("`methods` without OPTIONS");
    assert!(lost("methods = [\"GET\", \"POST\"]"));
    assert!(lost("path = { regex = \"^/a\" }\nmethods = [\"PUT\"]"));
    assert!(lost("path = \"/a\"\nmethods = [\"PUT\"]\n[[route]]\nupstream = \"app\""), "another route without it");
    assert!(!lost(""));
    assert!(!lost("methods = [\"GET\", \"OPTIONS\"]"));
    assert!(!lost(&format!("path = \"/a\"\nmethods = [\"PUT\"]\n[[route]]\nmethods = [\"OPTIONS\"]\n{cors}")));
}

#[test]
fn a_cors_plugin_below_a_guard_is_warned_of() {
    let hash = "0".repeat(64);
    let key = format!("{{ use = \"auth-key\", config.keys = [\"a:sha256:{hash}\"] }}");
    let office = "{ use = \"ip-filter\", config.allow = [\"10.0.0.0/8\"] }";
    let cors = "{ use = \"cors\", config.origins = [\"*\"] }";
    let lost = |plugins: &[&str], keys: &str| {
        let plugins = plugins.join(", ");
        said_of(&format!("[[route]]\nupstream = \"app\"\nplugins = [{plugins}]\n{keys}"))
            .contains("`cors` behind `auth-key`, which refuses the preflights")
    };
    assert!(lost(&[&key, cors], ""));
    assert!(lost(&[office, &key, cors], "path = { regex = \"^/a\" }"));
    assert!(!lost(&[cors, &key], ""));
    assert!(!said_of(&format!("[[route]]\nupstream = \"app\"\nplugins = [{office}, {cors}]")).contains("preflights"));
    let preflights = format!("methods = [\"GET\"]\n[[route]]\nupstream = \"app\"\nplugins = [{cors}]\n");
    assert!(!lost(&[&key, cors], &preflights), "another route takes the preflights");
    let below = format!(
        "path = \"/a\"\n[[route]]\nmethods = [\"OPTIONS\"]\npath = \"/a\"\nupstream = \"app\"\nplugins = [{cors}]\n"
    );
    assert!(!lost(&[&key, cors], &below), "another route is more special for preflights");
}

#[test]
fn a_guard_whose_field_a_plugin_before_it_removes_is_warned_of() {
    let hash = "0".repeat(64);
    let basic = |name: &str, keep: bool| {
        let user = "config.users = \"alice:$2y$10$abcdefghijklmnopqrstuu4SuEsu2LsUrAYUpWQHLMMc4GV5pZTxK\"";
        format!("[plugin.{name}]\nuse = \"auth-basic\"\n{user}\nconfig.keep = {keep}\n")
    };
    let key = |more: &str| format!("{{ use = \"auth-key\", config = {{ keys = [\"a:sha256:{hash}\"]{more} }} }}");
    let said = |plugins: &[&str], keep: bool| {
        let plugins = plugins.join(", ");
        let tables = format!("{}{}", basic("staff", keep), basic("office", false));
        said_of(&format!("[[route]]\nupstream = \"app\"\nplugins = [{plugins}]\n{tables}"))
    };
    let (bearer, taking) =
        (key(", field = \"Authorization\", scheme = \"Bearer\""), "config.request.remove = [\"authorization\"]");
    let taking = format!("{{ use = \"headers\", {taking} }}");
    let warning = said(&["\"staff\"", "\"office\""], false);
    let wanted = "warning: `office` refuses each request: `staff` before it removes the field `authorization`; write `keep = true`";
    assert!(warning.contains(wanted) && warning.contains("| plugins = "), "{warning}");
    assert!(said(&["\"staff\"", &bearer], false).contains("`auth-key` refuses each request: `staff`"));
    assert!(said(&[&taking, "\"staff\""], false).contains("`staff` refuses each request: `headers`"));
    assert!(said(&[&key(""), &key(", owners = [\"a\"]")], false).contains("the field `x-api-key`"));
    let in_cookie = key(", field = \"Authorization\", cookie = \"key\"");
    for plugins in [&["\"staff\"", &in_cookie][..], &["\"staff\"", &taking], &["\"staff\"", &key("")]] {
        assert!(!said(plugins, false).contains("refuses each request"), "{plugins:?}");
    }
    assert!(!said(&["\"staff\"", "\"office\""], true).contains("refuses each request"));
}

#[test]
fn log_fields_that_no_log_shows_are_warned_of() {
    let said = |note: &str, tables: &str| {
        let plugin = format!("{{ use = \"log-fields\", config.log.{note} = \"path\" }}");
        said_of(&format!("{tables}\n[[route]]\nupstream = \"app\"\nplugins = [{plugin}]\n"))
    };
    let none = said("page", "");
    assert!(none.contains("warning: plugin `log-fields`: there is no access log; write `format"), "{none}");
    assert!(said("page", "[access-log]\nformat = \"off\"").contains("there is no access log"));
    let combined = "[access-log]\nformat = \"combined\"";
    assert!(said("page", combined).contains("`combined` shows the note `user` only"));
    let json = "[access-log]\nformat = \"json\"";
    let reading = "[[route]]\npath = \"/a\"\nupstream = \"app\"\nplugins = [{ use = \"headers\", config.response.set.A = \"{note.page}\" }]";
    for (note, tables) in [("user", combined), ("page", json), ("page", reading)] {
        assert!(!said(note, tables).contains("log-fields`:"), "{tables}");
    }
}

#[test]
fn files_behind_a_plugin_that_removes_slashes_are_warned_of() {
    let said = |canonical: &str, target: &str| {
        let plugins = "plugins = [\"tidy\", { use = \"headers\", config.request.remove = [\"X-A\"] }]";
        let tidy = format!("[plugin.tidy]\nuse = \"rewrite\"\nconfig.canonical = {{ {canonical} }}");
        said_of(&format!("[[route]]\n{target}\n{plugins}\n{tidy}"))
    };
    let (files, app) = ("files = { root = \".\" }", "upstream = \"app\"");
    for canonical in ["trailing-slash = \"remove\"", "trailing-slash = \"remove\", redirect = 301"] {
        let warning = said(canonical, files);
        let wanted =
            "warning: `trailing-slash = \"remove\"` before `files`: the path of a folder is redirected again and again";
        assert!(warning.contains(wanted) && warning.contains("| plugins = "), "{warning}");
        assert!(!said(canonical, app).contains("trailing-slash"), "{canonical}");
    }
    for canonical in ["trailing-slash = \"remove\", redirect = false", "trailing-slash = \"add\"", "lower-case = true"]
    {
        assert!(!said(canonical, files).contains("trailing-slash"), "{canonical}");
    }
}

#[test]
fn a_guarded_path_that_leaves_its_bare_form_to_others_is_warned_of() {
    let office = "[plugin.office]\nuse = \"ip-filter\"\nconfig.allow = [\"10.0.0.0/8\"]\n";
    let said = |routes: &str| said_of(&format!("{routes}\n{office}"));
    let guarded = |path: &str| format!("[[route]]\nupstream = \"app\"\npath = {path}\nplugins = [\"office\"]\n");
    let rest = "[[route]]\nupstream = \"app\"\n";
    for path in ["\"/admin/\"", "{ prefix = \"/admin/\" }"] {
        let warning = said(&format!("{rest}{}", guarded(path)));
        let wanted = "warning: `/admin/` leaves `/admin` to another route, without the protection of `office`";
        assert!(warning.contains(wanted) && warning.contains("| path = "), "{warning}");
    }
    let other = "[[route]]\nupstream = \"app\"\npath = { exact = \"/admin\" }\n";
    assert!(said(&format!("{other}{}", guarded("\"/admin/\""))).contains("leaves `/admin`"));
    for good in [
        format!("{rest}{}", guarded("\"/admin\"")),
        guarded("\"/admin/\""),
        format!("{rest}plugins = [\"office\"]\n{}", guarded("\"/admin/\"")),
        format!("{rest}{}[[route]]\npath = {{ exact = \"/admin\" }}\nredirect = \"/admin/\"\n", guarded("\"/admin/\"")),
        format!("{rest}{}", guarded("\"/\"").replace("[\"office\"]", "[\"office\"]\nmethods = [\"PUT\"]")),
    ] {
        assert_eq!(said(&good), "", "{good}");
    }
}

/// A star in the name of a field is allowed, and listeners remove fields with `_`.
#[test]
fn a_field_of_a_plugin_that_no_message_has_is_warned_of() {
    let said = |plugin: &str| said_of(&format!("[[route]]\nupstream = \"app\"\nplugins = [{{ {plugin} }}]"));
    let keys = format!("keys = [\"a:sha256:{}\"]", "0".repeat(64));
    for (plugin, wanted) in [
        (
            "use = \"headers\", config.response.remove = [\"X-Internal-*\"]".to_string(),
            "removes the field `x-internal-*`",
        ),
        ("use = \"headers\", config.request.rename = { \"X-*\" = \"X-A\" }".into(), "renames the field `x-*`"),
        ("use = \"security-headers\", config.remove = [\"X-*\"]".into(), "removes the field `x-*`"),
        (
            format!("use = \"auth-key\", config = {{ field = \"api_key\", {keys} }}"),
            "requests never have the field `api_key` here",
        ),
    ] {
        let warning = said(&plugin);
        assert!(warning.starts_with("warning: ") && warning.contains(wanted), "{plugin}: {warning}");
        assert_eq!(warning.matches("warning: ").count(), 1, "{plugin}: {warning}");
    }
    for good in [
        "use = \"headers\", config.request = { remove = [\"X_A\"], set = { X_B = \"1\" } }".to_string(),
        format!("use = \"auth-key\", config = {{ field = \"api-key\", {keys} }}"),
    ] {
        assert_eq!(said(&good), "", "{good}");
    }
}

#[test]
fn a_host_with_the_default_port_as_a_condition_is_warned_of() {
    let said = |host: &str| said_of(&format!("[[route]]\nupstream = \"app\"\nfields = {{ Host = {host:?} }}"));
    let warning = said("x.example:80");
    assert!(warning.contains("warning: ") && warning.contains("write `hosts = [\"x.example\"]`"), "{warning}");
    for good in ["x.example", "x.example:443", "x.example:8080", "*"] {
        assert_eq!(said(good), "", "{good}");
    }
}

/// As errors: with the place, whatever is logged, and beside errors.
#[test]
fn warnings_of_a_check_look_like_errors() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("down"), "").unwrap();
    let check = |route: &str, level: &str| {
        let text = format!(
            "maintenance = \"down\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.app]\nendpoints = [\"127.0.0.1:1\"]\n\
             [upstream.unused]\nendpoints = [\"127.0.0.1:2\"]\n[[route]]\n{route}\n"
        );
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        let mut command = plugway();
        command.args(["check", "plugway.toml"]).current_dir(folder.path()).stdout(Stdio::piped());
        let command =
            if level.is_empty() { command.env_remove("PLUGWAY_LOG") } else { command.env("PLUGWAY_LOG", level) };
        let output = command.output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let place = " --> plugway.toml:6:11\n  |\n6 | [upstream.unused]\n  |           ^^^^^^\n";
    for level in ["", "error", "off"] {
        let (stdout, stderr) = check("path = \"/a/*\"\nupstream = \"app\"", level);
        assert_eq!(stdout, "plugway.toml is good: 1 routes, 0 configured plugins, 2 warnings\n");
        assert!(stderr.starts_with("warning: upstream `unused`: "), "{stderr}");
        assert!(stderr.contains(place) && stderr.contains("warning: `*` in a path"), "{stderr}");
        assert!(!stderr.contains("maintenance") && !stderr.contains("WARN"), "{stderr}");
        let (stdout, stderr) = check("path = \"/a/*\"\nupstream = \"ap\"", level);
        assert_eq!(stdout, "");
        assert!(stderr.contains(place) && stderr.contains("warning: `*` in a path"), "{stderr}");
        // That is what the misspelt name means.
        assert!(stderr.contains("error: ") && !stderr.contains("upstream `app`: no route"), "{stderr}");
    }
    let (stdout, stderr) = check("path = \"/a\"\nupstream = \"app\"\n[[route]]\nupstream = \"unused\"", "");
    assert_eq!((stdout.as_str(), stderr.as_str()), ("plugway.toml is good: 2 routes, 0 configured plugins\n", ""));
}

/// The plugins that decide which clients get a response say so in their schemas.
#[test]
fn a_guard_that_guards_nothing_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let check = |plugins: &str, more: &str| {
        std::fs::write(folder.path().join("plugway.toml"), manifest("127.0.0.1:1", plugins, more)).unwrap();
        let (code, said) = check(folder.path(), "plugway.toml");
        assert_eq!(code, Some(0), "{said}");
        said
    };
    let hash = "0".repeat(64);
    let guards = [
        ("auth-key", format!("{{ keys = [\"a:sha256:{hash}\"] }}")),
        ("auth-basic", "{ users = [\"bob:$2y$10$abcdefghijklmnopqrstuuIEWhtOyyVw3ZpYhbFTGlVlxrQsLz1ya\"] }".into()),
        ("ip-filter", "{ allow = [\"10.0.0.0/8\"] }".into()),
    ];
    for (guard, config) in &guards {
        let inline = format!("{{ use = \"{guard}\", config = {config} }}");
        let said = check(&format!("\"cache\", {inline}"), "");
        assert!(said.contains(&format!("warning: `{guard}` protects nothing that is stored")), "{said}");
        assert_eq!(check(&format!("{inline}, \"cache\""), ""), "");
        let table =
            |on_error: &str| format!("[plugin.g]\nuse = \"{guard}\"\nconfig = {config}\non-error = {on_error}\n");
        let said = check("\"g\"", &table("\"skip\""));
        assert!(
            said.contains("warning: the plugin protects a route") && said.contains("on-error = \"skip\""),
            "{said}"
        );
        assert_eq!(check("\"g\"", &table("503")), "");
    }
    assert_eq!(check("\"cache\", { use = \"request-id\", on-error = \"skip\" }", ""), "");
}

/// What newcomers write first, and the words that tell them what to write instead.
#[test]
fn likely_guesses_are_answered_with_what_to_write() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("two"), "one\nother\n").unwrap();
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    let upstream = "[upstream.app]\nendpoints = [\"127.0.0.1:1\"]\n";
    let route = |keys: &str| format!("{listener}{upstream}[[route]]\nupstream = \"app\"\n{keys}\n");
    let target = |keys: &str| format!("{listener}[[route]]\n{keys}\n");
    let plugin = |name: &str, config: &str| route(&format!("plugins = [{{ use = \"{name}\", config.{config} }}]"));
    for (text, wanted) in [
        (route("plugins = [\"basic-auth\"]"), "did you mean `auth-basic`?"),
        (route("plugins = [\"basicauth\"]"), "did you mean `auth-basic`?"),
        (route("plugins = [\"gzip\"]"), "responses are not compressed yet"),
        (route("plugins = [{ use = \"ratelimit\" }]"), "build the filter of `examples/quota`"),
        (
            route("").replace("[upstream", "tls = { cert = \"c\", key = \"k\" }\n[upstream"),
            "write `certificates = [{ chain = ",
        ),
        (route("").replace("endpoints =", "servers ="), "write `endpoints = ["),
        (route("headers = {}"), "write `plugins = [{ use = \"headers\""),
        (route("prefix = \"/api\""), "write `path = \"/api\"`"),
        (target("respond = \"hello\""), "such as { body = \"hello\" }"),
        (target("files = \"www\""), "such as { root = \"public\" }"),
        (route("max-body = \"20 MB\""), "write `20 MiB`"),
        (route("max-body = \"20m\""), "write `20 MiB`"),
        (target("redirect = \"https://$host$request_uri\""), "write `https://{host}{uri}`"),
        (route("rewrite = { regex = \"^/a(.*)\", to = \"http://other/$1\" }"), "it has a host; write `redirect`"),
        (route("rewrite = { regex = \"^/v[0-9]+\", to = \"\" }"), "write the rest of the path as a group"),
        (plugin("rewrite", "rules = [{ regex = \"(\", to = \"/\" }]"), "invalid regular expression: unclosed group\n"),
        (plugin("rewrite", "rules = [{ regex = \"^/a\", to = \"/x/$request_uri\" }]"), "no variables as in nginx"),
        (plugin("log-fields", "log = { c = \"{host}\" }"), "write `host`"),
        (
            plugin("headers", "request.set = { X-T = \"${file:two}\" }"),
            "config.request.set.X-T: no field can have a line break",
        ),
        (
            plugin("security-headers", "frames = \"DENY\""),
            "\"DENY\" is none of \"none\", \"same-origin\", \"any\", nor of type \"array\"",
        ),
        (plugin("security-headers", "referrer-policy = \"none\""), "\"none\" is none of \"no-referrer\", "),
        (plugin("security-headers", "hsts.max-age = 31536000"), "expected one such as \"365d\""),
        (plugin("cors", "origins = \"https://a.example\""), "write `[\"https://a.example\"]`"),
        ("server { listen 80; location / { return 404; } }".into(), "this looks like a configuration of nginx"),
    ] {
        std::fs::write(folder.path().join("plugway.toml"), &text).unwrap();
        let (code, said) = check(folder.path(), "plugway.toml");
        assert_eq!(code, Some(1), "{text}");
        assert!(said.contains(wanted), "{text}\n{wanted}\n{said}");
    }
}

/// The option of `plugway proxy` is the key of its route.
#[test]
fn the_proxy_command_passes_the_request_buffer_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = plugway();
    command.args(["proxy", "--to", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--request-buffer", "10 parsecs"]);
    let output = command.current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("| request-buffer = \"10 parsecs\""), "{said}");
}
