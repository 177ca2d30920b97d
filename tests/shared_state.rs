//! State that the instances of a plugin share, and the grants that a plugin needs for it.

use std::path::Path;
use std::process::Stdio;

use plugway_test_guests::{MISBEHAVE, QUOTA, SHARED};

use crate::support::{Proxy, echo, manifest, plugway, run, until};

/// Returns a manifest with the plugin that does what requests say, and with more keys of its table.
fn with(more: &str) -> String {
    let plugin = format!("[plugin.it]\nuse = {SHARED:?}\ngrants.shared = true\nlimits.cpu = \"5s\"\n{more}\n");
    manifest("127.0.0.1:9", r#""it""#, &plugin)
}

/// Has the plugin do something; each request is on a connection of its own, so that all workers get some.
fn ask(proxy: &Proxy, what: &str) -> String {
    let answer = proxy.get("/", &format!("\r\nX-Shared: {what}"));
    assert_eq!(answer.status(), 200, "{what}: {answer:?}");
    answer.text()
}

/// Returns the error of a manifest that `plugway check` rejects.
fn rejected(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plugway.toml"), text).unwrap();
    let (code, error) = run(&["check", folder.path().join("plugway.toml").to_str().unwrap()]);
    assert_eq!(code, Some(1), "{error}");
    error
}

#[test]
fn all_workers_see_one_state_which_reloads_and_new_versions_keep() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("it.wasm");
    std::fs::copy(SHARED, &file).unwrap();
    let text = with("").replace(SHARED, "it.wasm").replace("workers = 2", "workers = 4");
    let proxy = Proxy::start_in(folder.path(), &text);
    for count in 1..=100 {
        assert_eq!(ask(&proxy, "add n"), format!("Ok({count})"));
    }
    // Instances configure on their own, and share what that stores; the one that tried the configuration is apart.
    let configured = ask(&proxy, "text configured");
    assert!(configured.starts_with("Ok(Some(Ok(\"") && !configured.contains("\"0\""), "{configured}");
    // Another configuration.
    std::fs::write(folder.path().join("plugway.toml"), format!("{text}config.number = 7\n")).unwrap();
    proxy.wait_log("reloaded: generation 2");
    assert_eq!(ask(&proxy, "add n"), "Ok(101)");
    // Another component: one with a section more.
    let component = [&std::fs::read(SHARED).unwrap()[..], &[0, 5, 4, b'm', b'o', b'r', b'e']].concat();
    std::fs::write(folder.path().join("new"), component).unwrap();
    std::fs::rename(folder.path().join("new"), &file).unwrap();
    proxy.wait_log("reloaded: generation 3");
    assert_eq!(ask(&proxy, "add n"), "Ok(102)");
}

#[test]
fn fresh_instances_for_each_call_share_the_state_too() {
    let proxy = Proxy::start(&with("isolation = \"request\""));
    for count in 1..=10 {
        assert_eq!(ask(&proxy, "add n"), format!("Ok({count})"));
    }
}

#[test]
fn the_state_goes_with_the_plugin() {
    let proxy = Proxy::start(&with(""));
    assert_eq!((ask(&proxy, "add n"), ask(&proxy, "add n")), ("Ok(1)".into(), "Ok(2)".into()));
    until("the state is dropped with the last generation that has it", || {
        proxy.reload(&manifest("127.0.0.1:9", "", ""));
        proxy.wait_log("reloaded");
        proxy.reload(&with(""));
        proxy.wait_log("reloaded");
        ask(&proxy, "add n") == "Ok(1)"
    });
}

#[test]
fn a_plugin_sees_nothing_of_another() {
    let other = with("").replace("[plugin.it]", "[plugin.other]").split("[plugin.").nth(1).unwrap().to_string();
    let text = format!(
        "{}[plugin.{other}[[route]]\npath = \"/other/\"\nupstream = \"app\"\nplugins = [\"other\"]\n",
        with("")
    );
    let proxy = Proxy::start(&text);
    assert_eq!(ask(&proxy, "set k v"), "Ok(())");
    let seen = |path: &str| proxy.get(path, "\r\nX-Shared: get k").text();
    assert_eq!((seen("/"), seen("/other/")), ("Ok(Some(1))".into(), "Ok(None)".into()));
}

#[test]
fn values_expire_and_swaps_and_buckets_are_atomic() {
    let proxy = Proxy::start(&with(""));
    assert_eq!(ask(&proxy, "set a 1 50"), "Ok(())");
    until("a value expires", || ask(&proxy, "get a") == "Ok(None)");
    assert_eq!(ask(&proxy, "set a 1"), "Ok(())");
    assert_eq!((ask(&proxy, "swap a 2 3"), ask(&proxy, "swap a 1 3")), ("Ok(false)".into(), "Ok(true)".into()));
    assert_eq!((ask(&proxy, "add a"), ask(&proxy, "text a")), ("Ok(4)".into(), "Ok(Some(Ok(\"4\")))".into()));
    assert_eq!((ask(&proxy, "delete a"), ask(&proxy, "delete a")), ("Ok(true)".into(), "Ok(false)".into()));
    assert_eq!((ask(&proxy, "set a x"), ask(&proxy, "add a")), ("Ok(())".into(), "Err(OtherKind)".into()));
    // Five at once, and none for an hour then.
    let allowed = (0..20).filter(|_| ask(&proxy, "take b 1 3600000 5").starts_with("Ok((true")).count();
    assert_eq!(allowed, 5);
    assert_eq!(ask(&proxy, "take b 0 0"), "Err(BadRate)");
}

#[test]
fn a_plugin_that_stores_without_end_has_so_much_and_no_more() {
    let limits = "[shared]\nmemory = \"8 MiB\"\nentries = 2000\n";
    let proxy = Proxy::start(&format!("{}{limits}", with("limits.share = 100")));
    assert_eq!(ask(&proxy, "add kept"), "Ok(1)");
    let before = proxy.memory_kib();
    // 64 MB of values, each as long as can be; then a hundred thousand keys; then as many buckets; all for ever.
    for round in 0..4 {
        assert_eq!(ask(&proxy, &format!("fill long{round} 250 65536")), "Ok(())");
    }
    let (entries, bytes) = ("plugway_shared_entries{plugin=\"it\"}", "plugway_shared_bytes{plugin=\"it\"}");
    assert!((60.0..200.0).contains(&proxy.metric(entries)), "{}", proxy.metric(entries));
    assert!(proxy.metric(bytes) <= 8.0 * 1048576.0, "{}", proxy.metric(bytes));
    for round in 0..5 {
        assert_eq!(ask(&proxy, &format!("fill short{round} 10000 0")), "Ok(())");
        assert_eq!(ask(&proxy, "buckets 10000"), "Ok(())");
    }
    assert!((1000.0..=2000.0).contains(&proxy.metric(entries)), "{}", proxy.metric(entries));
    assert!(proxy.metric("plugway_shared_evicted_total{plugin=\"it\"}") > 90_000.0);
    for (what, why) in [
        ("long-key 1025", "Err(KeyTooLong)"),
        ("long-value 65537", "Err(ValueTooLong)"),
        ("long-value 1000000", "Err(ValueTooLong)"),
    ] {
        assert_eq!(ask(&proxy, what), why);
    }
    // More than a call may hand over.
    assert_eq!(proxy.get("/", "\r\nX-Shared: long-value 8000000").status(), 502);
    proxy.wait_log("handed over more data");
    assert_eq!(ask(&proxy, "add after"), "Ok(1)");
    let after = proxy.memory_kib();
    assert!(after < before + 32 * 1024, "{before} KiB before, {after} KiB after");
}

#[test]
fn limits_of_a_reload_hold_for_what_is_there() {
    let proxy = Proxy::start(&with(""));
    assert_eq!(ask(&proxy, "fill a 10000 0"), "Ok(())");
    let entries = || proxy.metric("plugway_shared_entries{plugin=\"it\"}");
    assert_eq!(entries(), 10_001.0);
    // A manifest that is rejected changes no limit.
    let less = format!("{}[shared]\nentries = 2048\n", with(""));
    proxy.reload(&less.replace("5s", "5 parsecs"));
    proxy.wait_log("not reloaded");
    assert_eq!(entries(), 10_001.0);
    proxy.reload(&less);
    proxy.wait_log("reloaded: generation");
    assert!((1500.0..=2048.0).contains(&entries()), "{}", entries());
}

#[test]
fn a_loop_of_shared_calls_ends_at_its_limit() {
    let proxy = Proxy::start(&with("limits.share = 100").replace("5s", "50ms"));
    assert_eq!(proxy.get("/", "\r\nX-Shared: spin").status(), 502);
    proxy.wait_log("limits.cpu of 50 ms exceeded");
    assert!(ask(&proxy, "text spun").starts_with("Ok(Some(Ok(\""));
}

#[test]
fn a_plugin_without_the_grant_does_not_load() {
    let error = rejected(&with("").replace("grants.shared = true\n", ""));
    let import = "it wants more than it is granted: found the import of `plugway:plugin/shared@0.1.0`";
    assert!(error.contains(import), "{error}");
    assert!(error.contains("add `grants.shared = true` to the keys of this plugin"), "{error}");
    assert!(rejected(&with("").replace("shared = true", "shared = false")).contains(import));
}

#[test]
fn a_new_version_that_wants_more_is_held_back() {
    let folder = tempfile::tempdir().unwrap();
    let put = |from: &str| {
        std::fs::copy(from, folder.path().join("new")).unwrap();
        std::fs::rename(folder.path().join("new"), folder.path().join("it.wasm")).unwrap();
    };
    put(MISBEHAVE);
    let text = manifest(&echo(), r#""it""#, "[plugin.it]\nuse = \"it.wasm\"\n");
    let proxy = Proxy::start_in(folder.path(), &text);
    assert!(proxy.get("/", "").text().contains("x-calls: "));
    put(SHARED);
    let line = proxy.wait_log("wants more than version");
    assert!(line.contains("which runs") && line.contains("`grants.shared = true`"), "{line}");
    assert!(proxy.get("/", "").text().contains("x-calls: "), "the version that runs still serves");
    std::fs::write(folder.path().join("plugway.toml"), format!("{text}grants.shared = true\n")).unwrap();
    proxy.wait_log("reloaded: generation");
    assert_eq!(ask(&proxy, "add n"), "Ok(1)");
}

#[test]
fn inspect_prints_the_grants_to_paste() {
    let inspect = |file: &str| {
        let output = plugway().args(["inspect", file]).stdout(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let wants = inspect(SHARED);
    assert!(wants.contains("\n  [plugin.NAME.grants]\n  shared = true\n"), "{wants}");
    for modest in [MISBEHAVE, "headers", "cache"] {
        assert!(inspect(modest).contains("\ngrants: none needed\n"), "{modest}");
    }
}

#[test]
fn a_plugin_sees_only_the_variables_that_it_is_granted() {
    let folder = tempfile::tempdir().unwrap();
    let start = |more: &str| {
        let mut command = plugway();
        command.env("SEEN", "a b").env("HIDDEN", "secret");
        Proxy::start_by(command, folder.path(), &with(more))
    };
    assert_eq!(ask(&start(""), "env"), "[]");
    let granted = start("grants.env = [\"SEEN\"]\nconfig.needs = \"SEEN\"");
    assert_eq!(ask(&granted, "env"), r#"[("SEEN", "a b")]"#);
    let unset = rejected(&with("grants.env = [\"PLUGWAY_NO_SUCH\", \"A-B\"]"));
    assert!(unset.contains("the environment has no `PLUGWAY_NO_SUCH` in UTF-8"), "{unset}");
    assert!(unset.contains("invalid name of a variable: `A-B`"), "{unset}");
    assert!(rejected(&with("config.needs = \"HOME\"")).contains("no such variable"));
}

#[test]
fn the_quota_example_counts_over_all_workers_and_over_a_reload() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("examples/quota/plugway.toml")).unwrap();
    let text = text.replace("../../target/wasm32-wasip2/release/example_quota.wasm", QUOTA);
    let text = text.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8000", &echo());
    let text = format!("workers = 4\n{text}");
    let proxy = Proxy::start(&text);
    let get = |key: &str| proxy.get("/", &format!("\r\nX-API-Key: {key}"));
    let left: Vec<_> = (0..3).map(|_| get("alpha").field("ratelimit-remaining").map(String::from)).collect();
    assert_eq!(left, [Some("2".into()), Some("1".into()), Some("0".into())]);
    let refused = get("alpha");
    assert_eq!((refused.status(), refused.field("ratelimit-remaining")), (429, Some("0")));
    let after: u32 = refused.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&after), "{after}");
    // A quota of its own, and more of it.
    let statuses: Vec<_> = (0..200).map(|_| get("beta").status()).collect();
    let allowed = statuses.iter().filter(|status| **status == 200).count();
    assert!(allowed >= 100 && statuses.contains(&429), "{allowed}");
    // The quotas change by a reload, and what was used stays used.
    proxy.reload(&text.replace("requests = 3,", "requests = 4,"));
    proxy.wait_log("reloaded: generation 2");
    let (one, other) = (get("alpha"), get("alpha"));
    assert!(one.status() == 429 || other.status() == 429, "{one:?} {other:?}");
}
