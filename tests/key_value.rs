//! The interfaces of `wasi:keyvalue`, for components that were made for other hosts.

use plugway_test_guests::{KEY_VALUE, SHARED};

use crate::support::redis::Redis;
use crate::support::{Proxy, manifest, output, plugway, run};

/// Returns a manifest with the plugin that does what requests say, and with another that uses `shared`.
fn with(shared: &str) -> String {
    let plugins = format!(
        "[plugin.it]\nuse = {KEY_VALUE:?}\ngrants.shared = true\nlimits.cpu = \"5s\"\nlimits.share = 100\n\
         [plugin.other]\nuse = {SHARED:?}\ngrants.shared = true\n\
         [[route]]\npath = \"/other/\"\nupstream = \"app\"\nplugins = [\"other\"]\n[shared]\n{shared}\n"
    );
    manifest("127.0.0.1:9", r#""it""#, &plugins)
}

fn ask(proxy: &Proxy, what: &str) -> String {
    let answer = proxy.get("/", &format!("\r\nX-Key-Value: {what}"));
    assert_eq!(answer.status(), 200, "{what}: {answer:?}");
    answer.text()
}

/// Has the plugin use each function, in the process or on a server.
fn use_all(proxy: &Proxy) {
    for (what, result) in [
        ("a get k", "Ok(None)"),
        ("a set k 1", "Ok(())"),
        ("a get k", "Ok(Some(Ok(\"1\")))"),
        ("a increment k 41", "Ok(42)"),
        ("a increment n 5", "Ok(5)"),
        ("a increment n 18446744073709551615", "Err(Error::Other(\"the sum is out of the range of a counter\"))"),
        ("a set text x", "Ok(())"),
        ("a increment text 1", "Err(Error::Other(\"the key has a value of another kind\"))"),
        ("a exists k", "Ok(true)"),
        ("a keys", "k n text"),
        // Buckets are apart, whatever their names.
        ("b exists k", "Ok(false)"),
        ("b keys", ""),
        ("default set a 1", "Ok(())"),
        ("default keys", "a"),
        ("a delete k", "Ok(())"),
        ("a delete k", "Ok(())"),
        ("a exists k", "Ok(false)"),
        ("c set-many v x y z", "Ok(())"),
        ("c get-many x none z", "Ok([Some(\"x=v\"), None, Some(\"z=v\")])"),
        ("c delete-many x y none", "Ok(())"),
        ("c keys", "z"),
        ("c* keys", ""),
    ] {
        assert_eq!(ask(proxy, what), result, "{what}");
    }
    // Another plugin sees nothing of it.
    assert_eq!(proxy.get("/other/", "\r\nX-Shared: get a").text(), "Ok(None)");
}

#[test]
fn a_component_for_another_host_has_its_store() {
    let proxy = Proxy::start(&with(""));
    use_all(&proxy);
    assert_eq!(proxy.metric("plugway_shared_entries{plugin=\"it\"}"), 4.0);
}

#[test]
fn a_component_for_another_host_shares_with_a_fleet() {
    let redis = Redis::start();
    let text = with(&format!("redis = {:?}", redis.url()));
    let (one, other) = (Proxy::start(&text), Proxy::start(&text));
    use_all(&one);
    assert_eq!(ask(&other, "a increment n 1"), "Ok(6)");
    assert_eq!(redis.ask(&["get", "plugway:it:a"]), "1");
    assert_eq!(ask(&one, "f fill 3000"), "Ok(())");
    assert_eq!(ask(&other, "f keys"), "3000 in several calls: true");
}

#[test]
fn a_component_that_asks_for_too_much_gets_an_error() {
    let proxy = Proxy::start(&with("memory = \"32 MiB\""));
    let before = proxy.memory_kib();
    let long = "k".repeat(1025);
    for (what, result) in [
        (format!("a get {long}"), "Err(Error::Other(\"the key is too long; at most 1024 bytes are allowed\"))"),
        ("a long k 65537".into(), "Err(Error::Other(\"the value is too long; at most 65536 bytes are allowed\"))"),
        (format!("{long} keys"), "Error::NoSuchStore"),
        ("a long k 65536".into(), "Ok(())"),
        ("a same k 64".into(), "Ok(64)"),
        ("a same k 65".into(), "Err(Error::Other(\"the values of one call have more than 4 MiB\"))"),
        ("a same k 1001".into(), "Err(Error::Other(\"1001 keys in one call; at most 1000 are allowed\"))"),
        ("a open 1000".into(), "Err(Error::Other(\"too many open buckets\"))"),
        ("a fill 50000".into(), "Ok(())"),
        ("a keys".into(), "50001 in several calls: true"),
    ] {
        assert_eq!(ask(&proxy, &what), result, "{what}");
    }
    let after = proxy.memory_kib();
    assert!(after < before + 64 * 1024, "{before} KiB before, {after} KiB after");
}

#[test]
fn a_component_needs_the_grant_of_shared_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugway.toml");
    std::fs::write(&path, with("").replacen("grants.shared = true\n", "", 1)).unwrap();
    let (code, error) = run(&["check", path.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("found the import of `wasi:keyvalue/"), "{error}");
    assert!(error.contains("add `grants.shared = true` to the keys of this plugin"), "{error}");
    let wants = output(plugway().args(["inspect", KEY_VALUE]).stdout(std::process::Stdio::piped()));
    assert!(wants.contains("\n  [plugin.NAME.grants]\n  shared = true\n"), "{wants}");
}
