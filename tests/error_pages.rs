//! The error pages of routes: for the proxy's own errors, for those of the upstream, and during maintenance.

use std::path::Path;
use std::process::Command;

use crate::support::{Message, Proxy, manifest, output, until};

/// Starts a proxy in a folder with pages: `site.html`, `route.html` and `sorry.html`, each with its name and the status.
fn start(folder: &Path, manifest: &str) -> Proxy {
    for name in ["site", "route", "sorry"] {
        std::fs::write(folder.join(format!("{name}.html")), format!("<p>{name} {{status}} {{request-id}}")).unwrap();
    }
    Proxy::start_in(folder, manifest)
}

/// Returns the word that a page begins with.
fn page(response: &Message) -> String {
    let text = response.text();
    text.trim_start_matches("<p>").split_whitespace().next().unwrap_or_default().to_string()
}

/// Asks over HTTP/2, and returns head and content.
fn over_http2(proxy: &Proxy, path: &str, options: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--include", "--max-time", "30"]).args(options);
    output(curl.arg(format!("http://{}{path}", proxy.address)))
}

// === Of the proxy's own errors ===

#[test]
fn the_pages_of_a_route_precede_those_of_the_manifest() {
    let pages = "[error-page]\n404 = \"site.html\"\n\"5xx\" = \"site.html\"\n\
                 [[route]]\npath = \"/other\"\nupstream = \"app\"\n";
    let route = "[[route]]\npath = \"/own\"\nerror-page = { 502 = \"route.html\", \"4xx\" = \"route.html\" }\n\
                 max-body = \"10 B\"";
    let text = manifest("127.0.0.1:1", "", pages).replacen("[[route]]", route, 1);
    let folder = tempfile::tempdir().unwrap();
    let proxy = start(folder.path(), &text);
    let of = |path: &str, fields: &str| {
        let response = proxy.get(path, fields);
        (response.status(), page(&response))
    };
    assert_eq!(of("/own", ""), (502, "route".into()));
    assert_eq!(of("/other", ""), (502, "site".into()));
    assert_eq!(of("/own", "\r\nContent-Length: 11"), (413, "route".into()), "a class of the route");
    assert_eq!(of("/other/lost", "\r\nHost: b"), (400, "400".into()), "no page for it");
    assert_eq!(of("/", ""), (404, "site".into()), "no route, and so none of a route");
    assert!(over_http2(&proxy, "/own", &[]).contains("<p>route 502 "));
    let json = proxy.get("/own", "\r\nAccept: application/json");
    assert_eq!(json.field("content-type"), Some("application/json"));
    // The page is one of the files that the proxy watches.
    std::fs::write(folder.path().join("route.html"), "<p>changed").unwrap();
    until("the new page is sent", || of("/own", "").1 == "changed");
}
