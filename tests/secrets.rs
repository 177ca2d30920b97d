//! References in the manifest: their values reach plugins and endpoints, files are watched, and no output shows a value.

use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use crate::support::{Proxy, echo, manifest, output, plugway, until};

/// The values; each has a part that no other output has.
const ENV: &str = "env-7f3a9c-value";
const FILE: &str = "file-41bd08-value";
const OTHER: &str = "file-e5c2d7-other";
const CREDENTIAL: &str = "cred-90aa1f-value";

/// A plugin that sets a field of requests to each kind of value.
const PLUGIN: &str = "{ use = \"headers\", config = { request = { set = { X-Env = \"Bearer ${env:PLUGWAY_TEST_TOKEN}\", \
                      X-File = \"${file:secrets/token}\", X-Credential = \"<${credential:db}>\", X-Plain = \"$${{env:HOME}} $\" } } } }";

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Returns a folder with the values, and the program with them in its environment.
fn prepared() -> (tempfile::TempDir, std::process::Command) {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("secrets/token"), &format!("{FILE}\n"));
    write(&folder.path().join("credentials/db"), &format!("{CREDENTIAL}\r\n"));
    let mut command = plugway();
    command.env("PLUGWAY_TEST_TOKEN", ENV).env("CREDENTIALS_DIRECTORY", folder.path().join("credentials"));
    (folder, command)
}

/// Fails if a text has a part of a value.
fn assert_no_value(what: &str, text: &str) {
    for part in ["7f3a9c", "41bd08", "e5c2d7", "90aa1f"] {
        assert!(!text.contains(part), "{what} shows {part}:\n{text}");
    }
}

#[test]
fn values_reach_a_header_and_nothing_else() {
    let (folder, mut command) = prepared();
    command.env("PLUGWAY_LOG", "trace").stdout(Stdio::piped());
    let text = manifest(&echo(), PLUGIN, "[access-log]\nformat = \"json\"\n");
    let mut proxy = Proxy::start_by(command, folder.path(), &text);
    let got = proxy.get("/", "").text();
    for line in [
        format!("x-env: Bearer {ENV}"),
        format!("x-file: {FILE}"),
        format!("x-credential: <{CREDENTIAL}>"),
        "x-plain: ${env:HOME} $".into(),
    ] {
        assert!(got.lines().any(|known| known.eq_ignore_ascii_case(&line)), "{line}\n{got}");
    }
    assert_no_value("/status", &proxy.ask_admin("GET /status").text());
    assert_no_value("/metrics", &proxy.ask_admin("GET /metrics").text());
    let mut stdout = proxy.take_stdout();
    proxy.signal("TERM");
    proxy.wait_exit();
    let mut access_log = String::new();
    stdout.read_to_string(&mut access_log).unwrap();
    assert!(access_log.contains("\"status\":200"), "{access_log}");
    assert_no_value("the access log", &access_log);
    let log = proxy.log_to_end();
    assert!(log.contains("stopping"), "{log}");
    assert_no_value("the log", &log);
}

#[test]
fn a_changed_file_is_a_reload_and_a_bad_one_is_none() {
    let (folder, command) = prepared();
    let proxy = Proxy::start_by(command, folder.path(), &manifest(&echo(), PLUGIN, ""));
    let file = folder.path().join("secrets/token");
    let has = |value: &str| proxy.get("/", "").text().contains(&format!("x-file: {value}\n"));
    until("the first value is sent", || has(FILE));
    // Replaced by a rename.
    write(&file, OTHER);
    proxy.wait_log("reloaded: generation 2");
    assert!(has(OTHER));
    // A line break is no part of a field.
    write(&file, &format!("{FILE}\n{FILE}"));
    let refused = proxy.wait_log("not reloaded");
    let shown = proxy.wait_log("-->");
    assert_no_value("the refusal", &format!("{refused}{shown}"));
    assert!(has(OTHER), "the old generation serves");
    std::fs::remove_file(&file).unwrap();
    proxy.wait_log("no such file");
    assert!(has(OTHER), "the old generation serves");
    // As Kubernetes mounts a secret.
    let root = folder.path().join("mounted");
    for (version, value) in [("..1", FILE), ("..2", OTHER)] {
        write(&root.join(version).join("token"), value);
    }
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/token", root.join("token")).unwrap();
    symlink("../mounted/token", &file).unwrap();
    proxy.wait_log("reloaded: generation 3");
    assert!(has(FILE));
    symlink("..2", root.join("..new")).unwrap();
    std::fs::rename(root.join("..new"), root.join("..data")).unwrap();
    proxy.wait_log("reloaded: generation 4");
    assert!(has(OTHER));
}

#[test]
fn values_stand_in_included_files_and_files_of_endpoints() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (echo(), echo());
    write(&folder.path().join("pools/app.toml"), "endpoints = [\"${file:address}\"]");
    write(&folder.path().join("pools/address"), &format!("{one}\n"));
    write(
        &folder.path().join("sites/api.toml"),
        "[[route]]\nname = \"${file:name}\"\nhosts = [\"${env:PLUGWAY_TEST_HOST}\"]\nupstream = \"app\"",
    );
    write(&folder.path().join("sites/name"), "api-route");
    let mut command = plugway();
    command.env("PLUGWAY_TEST_HOST", "api.example.org");
    let text = manifest("127.0.0.1:1", "", "").replace("\"127.0.0.1:1\"", "{ file = \"pools/app.toml\" }");
    let proxy = Proxy::start_by(command, folder.path(), &format!("include = [\"sites/*.toml\"]\n{text}"));
    assert_eq!(proxy.exchange("GET / HTTP/1.1\r\nHost: api.example.org").status(), 200);
    let status = proxy.ask_admin("GET /status").text();
    assert!(status.contains(&one) && status.contains("api-route"), "{status}");
    // Found only through a file of endpoints.
    write(&folder.path().join("pools/address"), &other);
    proxy.wait_log("reloaded: generation 2");
    let status = proxy.ask_admin("GET /status").text();
    assert!(status.contains(&other) && !status.contains(&one), "{status}");
}

#[test]
fn errors_show_the_text_of_the_manifest_and_no_value() {
    let (folder, _) = prepared();
    let check = |plugin: &str, more: &str| {
        let text = manifest("127.0.0.1:1", plugin, more);
        std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
        let mut command = plugway();
        command.env("PLUGWAY_LOG", "trace").env("PLUGWAY_TEST_TOKEN", ENV);
        command.env("CREDENTIALS_DIRECTORY", folder.path().join("credentials"));
        let said = output(command.args(["check", "plugway.toml"]).current_dir(folder.path()));
        assert_no_value("check", &said);
        assert!(said.contains("error: ") && said.contains(" | "), "{said}");
        said
    };
    let headers = |config: &str| format!("{{ use = \"headers\", config = {{ {config} }} }}");
    for config in [
        "evaluate-each = \"${file:secrets/token}\"",
        "request.set = \"${file:secrets/token}\"",
        "request.set.a = [\"${file:secrets/token}\"]",
        "request.set.a = \"{${file:secrets/token}}\"",
        "request.remove = [\"a ${file:secrets/token}\"]",
        "when.methods = [\"<${credential:db}>\"]",
        "when.paths = [\"${env:PLUGWAY_TEST_TOKEN}\"]",
    ] {
        check(&headers(config), "");
    }
    for more in [
        "timeout = \"${file:secrets/token}\"",
        "max-body = \"${env:PLUGWAY_TEST_TOKEN}\"",
        "hosts = [\"${file:secrets/token}:80\"]",
        "methods = [\"<${credential:db}>\"]",
        "path = \"${credential:db}\"",
        "fields = { A = \"${env:PLUGWAY_TEST_TOKEN}\\n\" }",
        "[access-log]\nformat = \"${file:secrets/token}\"",
        "[admin]\naddress = \"${file:secrets/token}\"",
        "[plugin.a]\nuse = \"${file:secrets/token}\"",
        "[plugin.a]\nuse = \"${file:secrets/token}.wasm\"",
        "[error-page]\n404 = \"${file:secrets/token}\"",
    ] {
        check("", more);
    }
    let said = check("", "timeout = \"${file:secrets/token}\"");
    assert!(said.contains("invalid duration: `${file:secrets/token}`"), "{said}");
}

#[test]
fn values_are_literal_in_templates() {
    let (folder, mut command) = prepared();
    let token = folder.path().join("secrets/token");
    write(&token, "s3cr{et}\n");
    write(&folder.path().join("same"), "{client.ip}");
    command.env("PLUGWAY_TEST_BRACES", "Zq{client.ip}}x{{");
    let plugin = "{ use = \"headers\", config.request = { set = { X-File = \"{method} ${file:secrets/token}{path}\", X-Env = \
                  \"${env:PLUGWAY_TEST_BRACES}\", X-Same = \"${file:same}\", X-Template = \"{client.ip}\" }, append = { \
                  X-Added = \"${file:same}\" }, default = { X-Default = \"${file:same}\" } } }";
    let more = "[[route]]\npath = \"/there\"\nredirect = \"https://e.example/${file:same}/{query.a}\"";
    let proxy = Proxy::start_by(command, folder.path(), &manifest(&echo(), plugin, more));
    let assert_sent = |line: &str| {
        let got = proxy.get("/p", "").text();
        assert!(got.lines().any(|known| known.eq_ignore_ascii_case(line)), "{line}\n{got}");
    };
    for line in [
        "x-file: GET s3cr{et}/p",
        "x-env: Zq{client.ip}}x{{",
        "x-same: {client.ip}",
        "x-template: 127.0.0.1",
        "x-added: {client.ip}",
        "x-default: {client.ip}",
    ] {
        assert_sent(line);
    }
    let location = proxy.get("/there?a=b", "").field("location").map(str::to_string);
    assert_eq!(location.as_deref(), Some("https://e.example/%7Bclient.ip%7D/b"));
    // The component is loaded by now.
    write(&token, "{}}{new{");
    proxy.wait_log("reloaded: generation 2");
    assert_sent("x-file: GET {}}{new{/p");
}

/// Values that are as short as words, have braces and quotes, or have the words of messages.
#[test]
fn no_part_of_a_value_is_too_short_to_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(plugway_test_guests::LOADING, folder.path().join("loading.wasm")).unwrap();
    let check = |plugin: &str, more: &str| {
        std::fs::write(folder.path().join("plugway.toml"), manifest("127.0.0.1:1", plugin, more)).unwrap();
        let mut command = plugway();
        command
            .env("PLUGWAY_LOG", "trace")
            .env("PLUGWAY_TEST_SHORT", "zq7")
            .env("PLUGWAY_TEST_QUOTED", "zq`7 kx\"3|{wj9}");
        command.env("PLUGWAY_TEST_ESCAPE", "escape zq7").env("PLUGWAY_TEST_LIST", "192.0.2.1\nzq7,kx3\n");
        let said = output(command.args(["check", "plugway.toml"]).current_dir(folder.path()));
        assert!(said.contains("error: ") && said.contains(" | "), "{said}");
        // The places are those of the manifest, which has none of this.
        for part in ["zq", "kx", "wj", "{wj9}"] {
            assert!(!said.contains(part), "{part} of a value is shown:\n{said}");
        }
        said
    };
    let values = ["${env:PLUGWAY_TEST_SHORT}", "${env:PLUGWAY_TEST_QUOTED}", "<${env:PLUGWAY_TEST_QUOTED}>"];
    for value in values {
        for config in [
            "request.set.a = \"{VALUE}\"",
            "request.remove = [\"a VALUE\"]",
            "request.set = \"VALUE\"",
            "request.set.a = [\"VALUE\"]",
            "evaluate-each = \"VALUE\"",
            "when.methods = [\"<VALUE>\"]",
            "when.paths = [\"VALUE\"]",
        ] {
            check(&format!("{{ use = \"headers\", config = {{ {} }} }}", config.replace("VALUE", value)), "");
        }
        for more in [
            "timeout = \"VALUE\"",
            "[[route]]\npath = \"/r\"\nredirect = \"VALUE\"",
            "methods = [\"<VALUE>\"]",
            "max-body = \"VALUE\"",
        ] {
            check("", &more.replace("VALUE", value));
        }
    }
    let said = check("{ use = \"ip-filter\", config = { allow = [\"${env:PLUGWAY_TEST_LIST}\"] } }", "");
    assert!(said.contains("line 2: ") && said.contains("`${env:PLUGWAY_TEST_LIST}`"), "{said}");
    // What others say of a value may have any part of it.
    let said = check("{ use = \"./loading.wasm\", config = { do = \"${env:PLUGWAY_TEST_ESCAPE}\" } }", "");
    assert!(said.contains("the plugin refuses `${env:PLUGWAY_TEST_ESCAPE}`") && !said.contains("forged"), "{said}");
}

#[test]
fn a_configuration_that_is_too_long_is_an_error_with_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("list"), "# nothing\n".repeat(100_000)).unwrap();
    let list = ["\"${file:list}\""; 9].join(", ");
    let plugin = format!("{{ use = \"ip-filter\", config = {{ deny = [{list}] }} }}");
    std::fs::write(folder.path().join("plugway.toml"), manifest("127.0.0.1:1", &plugin, "")).unwrap();
    let said = output(plugway().args(["check", "plugway.toml"]).current_dir(folder.path()));
    let wanted =
        "its configuration is too long: 10 MiB with the values of references; 8 MiB are the most, so shorten it";
    assert!(said.contains(wanted), "{said}");
}

/// Remedies are made from the text that they are about.
#[test]
fn no_message_shows_a_value_in_another_form() {
    let folder = tempfile::tempdir().unwrap();
    for (value, more) in [
        ("zq7\"kx3", "query = { token = \"VALUE\" }"),
        ("zq7 kx3", "query = { a = \"1\", token = \"pre-VALUE\" }"),
        ("zq7-kx3\u{f6}", "query = { token = \"VALUE\" }"),
        ("zq%7E7kx3", "query = { token = \"VALUE\" }"),
        ("zq7<kx3>", "query = { token = \"VALUE\" }"),
        ("zq", "query = { token = \"VALUE%7E\" }"),
        ("Zq7.kx3.example:80", "fields = { Host = \"VALUE\" }"),
        ("zq7\u{1}", "fields = { X-A = \"VALUE\" }"),
        ("/zq7 kx3", "path = \"VALUE\""),
        ("/ZQ%7e;kx3", "path = \"/api/VALUE\""),
        ("propFIND", "methods = [\"VALUE\"]"),
        ("7139 kb", "max-body = \"VALUE\""),
        ("https://zq7.example/kx3", "hosts = [\"VALUE\"]"),
    ] {
        let more = format!("[[route]]\nupstream = \"app\"\n{}", more.replace("VALUE", "${env:PLUGWAY_TEST_VALUE}"));
        std::fs::write(folder.path().join("plugway.toml"), manifest("127.0.0.1:1", "", &more)).unwrap();
        let mut command = plugway();
        command.env("PLUGWAY_TEST_VALUE", value).args(["check", "plugway.toml"]).current_dir(folder.path());
        let said = output(&mut command);
        assert!(said.contains("error: ") && said.contains("${env:PLUGWAY_TEST_VALUE}"), "{said}");
        let lower = said.to_lowercase();
        for part in ["zq", "kx3", "propfind", "7139"] {
            assert!(!lower.contains(part), "{part} of {value} is shown:\n{said}");
        }
    }
}

/// The values have words that the messages have too.
#[test]
fn a_message_keeps_its_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let digits = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";
    write(&folder.path().join("keys.txt"), &format!("a:sha256:{digits}\nexpected:zq7topsecretkey\n"));
    write(&folder.path().join("redirects.map"), "/old /new\n/old/7 bad 301\nhttps://a/ /b\n/old/path\n");
    write(&folder.path().join("one.map"), "/old bad 301\n");
    write(&folder.path().join("ips.txt"), "192.0.2.1\n192.0.2.300\n");
    write(&folder.path().join("origins.txt"), "https://a.example\nhttps://a.example/path\n");
    let check = |plugin: &str, more: &str| {
        std::fs::write(folder.path().join("plugway.toml"), manifest("127.0.0.1:1", plugin, more)).unwrap();
        let mut command = plugway();
        command.env("PLUGWAY_TEST_SIZE", "10 parsecs").env("PLUGWAY_TEST_WORD", "expected");
        output(command.args(["check", "plugway.toml"]).current_dir(folder.path()))
    };
    let said = check("{ use = \"auth-key\", config.keys = [\"${file:keys.txt}\"] }", "");
    let wanted =
        "line 2: invalid hash; expected `sha256:` and 64 hexadecimal digits, which `printf %s KEY | sha256sum` prints";
    assert!(said.contains(wanted) && !said.contains("zq7"), "{said}");
    for (plugin, wanted) in [
        (
            "{ use = \"rewrite\", config.map = \"${file:redirects.map}\" }",
            "line 2: invalid target: `bad`; expected a path such as `/new`",
        ),
        (
            "{ use = \"rewrite\", config.map = \"${file:redirects.map}\" }",
            "line 4: invalid line: `/old/path`; expected `/old /new` or `/old /new 301`",
        ),
        (
            "{ use = \"rewrite\", config.map = \"${file:one.map}\" }",
            "invalid target: `bad`; expected a path such as `/new`",
        ),
        ("{ use = \"ip-filter\", config.deny = [\"${file:ips.txt}\"] }", "line 2: invalid address: `192.0.2.300`"),
        ("{ use = \"cors\", config.origins = [\"${file:origins.txt}\"] }", "`https://a.example/path`"),
    ] {
        let said = check(plugin, "");
        assert!(said.contains(wanted), "{wanted}\n{said}");
    }
    let said = check("", "max-body = \"${env:PLUGWAY_TEST_SIZE}\"");
    assert!(said.contains("`${env:PLUGWAY_TEST_SIZE}`") && said.contains("such as `64 KiB`, `16 MiB`"), "{said}");
    let headers = "{ use = \"headers\", config.request.set.A = \"${env:PLUGWAY_TEST_WORD}\" }";
    let said = check(headers, "max-body = \"10 parsecs\"");
    assert!(said.contains("; expected one such as `64 KiB`"), "{said}");
}
