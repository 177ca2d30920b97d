//! `plugway schema`: the schema of manifests accepts every manifest of the repository, and rejects what is wrong by its
//! structure. `docs/plugway.schema.json` is that schema; `PLUGWAY_BLESS=1` writes it again.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::plugway;

fn printed() -> String {
    let output = plugway().arg("schema").stdout(std::process::Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn validator() -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(&printed()).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(jsonschema::meta::is_valid(&schema));
    jsonschema::validator_for(&schema).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns what a schema has against a manifest.
fn errors(validator: &jsonschema::Validator, manifest: &str) -> Vec<String> {
    let manifest: toml::Table = toml::from_str(manifest).unwrap_or_else(|error| panic!("{error}\n{manifest}"));
    let manifest = serde_json::to_value(manifest).unwrap();
    validator.iter_errors(&manifest).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn the_schema_of_the_documents_is_the_printed_one() {
    let (path, printed) = (root().join("docs/plugway.schema.json"), printed());
    if std::env::var_os("PLUGWAY_BLESS").is_some() {
        std::fs::write(&path, &printed).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(known == printed, "docs/plugway.schema.json is stale: write it with PLUGWAY_BLESS=1, and review the diff");
}

#[test]
fn every_manifest_of_the_repository_fits() {
    let (validator, mut manifests) = (validator(), Vec::new());
    for folder in std::fs::read_dir(root().join("examples")).unwrap() {
        manifests.extend(std::fs::read_to_string(folder.unwrap().path().join("plugway.toml")).ok());
    }
    assert!(manifests.len() >= 5, "{}", manifests.len());
    assert!(manifests.iter().all(|text| text.starts_with("#:schema ../../docs/plugway.schema.json\n")));
    for file in std::fs::read_dir(root().join("tests/manifests/ok")).unwrap() {
        let path = file.unwrap().path();
        manifests.extend(path.is_file().then(|| std::fs::read_to_string(path).unwrap()));
    }
    for document in std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()) {
        let is_document = document.extension().is_some_and(|extension| extension == "md");
        let text = if is_document { std::fs::read_to_string(&document).unwrap() } else { String::new() };
        let blocks = text.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap().to_string());
        // Other files in TOML, such as that of a crate, have other tables; a fragment may have no whole table.
        let tables = ["listener", "upstream.", "route", "plugin.", "cache", "access-log", "admin"];
        let is_manifest =
            |block: &String| tables.iter().any(|table| block.contains(&format!("[{table}"))) && !block.contains('…');
        manifests.extend(blocks.filter(is_manifest));
    }
    assert!(manifests.len() > 30, "{}", manifests.len());
    let wrong = manifests.iter().map(|text| (errors(&validator, text), text)).filter(|(errors, _)| !errors.is_empty());
    let wrong: Vec<String> = wrong.map(|(errors, text)| format!("{}\n{text}", errors.join("\n"))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
}

#[test]
fn structurally_wrong_manifest_does_not_fit_the_schema() {
    let validator = validator();
    for manifest in [
        "worker = 2",
        "workers = \"2\"",
        "workers = -1",
        "workers = \"${env:WORKERS}\"",
        "drain-timeout = 5",
        "drain-timeout = \"5 days\"",
        "listener = { address = \"127.0.0.1:80\" }",
        "[[listener]]",
        "[[listener]]\naddress = \"127.0.0.1:80\"\nlimits.head = \"64 kb\"",
        "[[listener]]\naddress = \"127.0.0.1:80\"\nredirect-to-https = \"yes\"",
        "[[listener]]\naddress = \"127.0.0.1:80\"\nfield-aliases = \"drop\"",
        "[[listener]]\naddress = \"127.0.0.1:80\"\ntls = {}",
        "[upstream.app]",
        "[upstream.app]\nendpoints = [{ adress = \"127.0.0.1:80\" }]",
        "[upstream.app]\nendpoints = []\nretry = \"no\"",
        "[upstream.app]\nendpoints = []\nretry = { attempts = 2 }",
        "[access-log]\nformat = \"xml\"",
        "[[route]]\nupstream = \"app\"\npath = {}",
        "[[route]]\nupstream = \"app\"\npath = { exact = \"/\", prefix = \"/\" }",
        "[plugin.a]\nconfig = {}",
        "[plugin.a]\nuse = \"headers\"\non-error = \"ignore\"",
        "[plugin.a]\nuse = \"headers\"\nconfig = { requests = {} }",
        "[plugin.a]\nuse = \"headers\"\nconfig.request.set.A = 1",
        "[plugin.a]\nuse = \"balance\"\nconfig.policy = \"best\"",
        "[[route]]\nupstream = \"app\"\nplugins = [{ use = \"headers\", config.request.sets = {} }]",
        "[upstream.app]\nendpoints = []\nbalancer = { use = \"balance\", config.polity = \"random\" }",
    ] {
        assert!(!errors(&validator, manifest).is_empty(), "{manifest}");
    }
    for manifest in [
        "drain-timeout = \"${env:WAIT}\"",
        "[access-log]\nformat = \"${env:FORMAT}\"",
        "[upstream.app]\nendpoints = [\"a:80\", { dns = \"b:80\" }]\nretry = false\noutliers = { statuses = [\"5xx\", 404] }",
        "[plugin.own]\nuse = \"own.wasm\"\nconfig.anything = [1, \"a\", { b = true }]\non-error = 503",
    ] {
        assert_eq!(errors(&validator, manifest), Vec::<String>::new(), "{manifest}");
    }
}
