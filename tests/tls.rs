//! TLS to clients and to endpoints, as curl and openssl see it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::http2::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS};
use crate::support::{Proxy, echo, manifest, output, plugway, raw_origin, read_message, sized};

/// An authority whose certificates clients can be told to trust.
pub struct Authority(pub CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(folder: &Path) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
        Authority(authority)
    }

    /// Writes `NAME.pem` and `NAME.key` for these names.
    pub fn issue(&self, folder: &Path, file: &str, names: &[&str]) {
        self.issue_until(folder, file, names, 2100);
    }

    fn issue_until(&self, folder: &Path, file: &str, names: &[&str], year: i32) {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, file);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        replace(&folder.join(format!("{file}.pem")), &certificate.pem());
        replace(&folder.join(format!("{file}.key")), &key.serialize_pem());
    }
}

fn replace(path: &Path, text: &str) {
    std::fs::write(path.with_extension("new"), text).unwrap();
    std::fs::rename(path.with_extension("new"), path).unwrap();
}

/// Returns the manifest of one listener with TLS in front of an origin.
pub fn secure(origin: &str, tls: &str, more: &str) -> String {
    let plugins = "{ use = \"headers\", config.request.set = { X-Tls = \"{scheme} {tls.version} {tls.server-name} \
                   {tls.client.subject} {tls.client.names} {protocol}\", X-Print = \"{tls.client.fingerprint}\" } }";
    let listener = format!("address = \"127.0.0.1:0\"\n[listener.tls]\n{tls}\n");
    manifest(origin, plugins, more).replace("address = \"127.0.0.1:0\"\n", &listener)
}

pub const SITE: &str = "certificates = [{ chain = \"site.pem\", key = \"site.key\" }]";

/// Requests `https://NAME:PORT/` with curl, and returns its output with the HTTP version.
fn curl(proxy: &Proxy, folder: &Path, name: &str, args: &[&str]) -> String {
    let port = proxy.address.rsplit(':').next().unwrap();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "30", "--cacert"]).arg(folder.join("ca.pem"));
    curl.args(["--resolve", &format!("{name}:{port}:127.0.0.1"), "--write-out", "\nHTTP/%{http_version} %{http_code}"]);
    output(curl.args(args).arg(format!("https://{name}:{port}/")))
}

fn s_client(proxy: &Proxy, args: &[&str]) -> String {
    output(Command::new("openssl").args(["s_client", "-connect", &proxy.address]).args(args))
}

/// Returns the settings of a client that trusts an authority, and has no certificate.
fn client_config(authority: &Authority) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// Starts a proxy with TLS in front of an echo, in a folder with an authority.
fn start(folder: &Path, tls: &str) -> Proxy {
    Proxy::start_in(folder, &secure(&echo(), tls, ""))
}

/// Such a client offers `http/1.0` alone (RFC 7301 §6).
#[test]
fn a_client_of_http_1_0_is_served_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    for tls in [SITE.to_string(), format!("{SITE}\nhttp2 = false")] {
        let proxy = start(folder.path(), &tls);
        let old = curl(&proxy, folder.path(), "site.example", &["--http1.0"]);
        assert!(old.contains("x-tls: https TLSv1.3 site.example") && old.ends_with(" 200"), "{old}");
        let chosen = |offered: &str| s_client(&proxy, &["-alpn", offered, "-servername", "site.example"]);
        assert!(chosen("http/1.0").contains("ALPN protocol: http/1.0"));
        assert!(chosen("http/1.0,http/1.1").contains("ALPN protocol: http/1.1"));
    }
}

#[test]
fn both_versions_of_http_are_served_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    let proxy = start(folder.path(), SITE);
    let one = curl(&proxy, folder.path(), "site.example", &["--http1.1"]);
    assert!(one.contains("x-tls: https TLSv1.3 site.example   HTTP/1.1") && one.ends_with("HTTP/1.1 200"), "{one}");
    let two = curl(&proxy, folder.path(), "site.example", &["--http2"]);
    assert!(two.contains("x-tls: https TLSv1.3 site.example   HTTP/2.0") && two.ends_with("HTTP/2 200"), "{two}");
    assert!(two.contains("host: site.example:"), "the authority stands for Host: {two}");
    let old = curl(&proxy, folder.path(), "site.example", &["--tls-max", "1.2"]);
    assert!(old.contains("TLSv1.2"), "{old}");
    let upload = curl(&proxy, folder.path(), "site.example", &["--http2", "--data", "hello"]);
    assert!(upload.contains("POST / HTTP/1.1") && upload.contains("content-length: 5"), "{upload}");
    let mistrusted = curl(&proxy, folder.path(), "other.example", &[]);
    assert!(mistrusted.contains("SSL") && !mistrusted.contains("200"), "{mistrusted}");
}

#[test]
fn the_certificate_is_chosen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "first", &["first.example"]);
    authority.issue(folder.path(), "wild", &["*.wild.example"]);
    authority.issue(folder.path(), "exact", &["exact.wild.example"]);
    let files = |name| format!("{{ chain = \"{name}.pem\", key = \"{name}.key\" }}");
    let list = ["first", "wild", "exact"].map(files).join(", ");
    let proxy = start(folder.path(), &format!("certificates = [{list}]"));
    let shown = |name: &[&str]| {
        let text = s_client(&proxy, name);
        let subject = text.lines().find(|line| line.starts_with("subject=")).unwrap_or("none").to_string();
        subject.rsplit("CN = ").next().unwrap().to_string()
    };
    assert_eq!(shown(&["-servername", "first.example"]), "first");
    assert_eq!(shown(&["-servername", "a.wild.example"]), "wild");
    assert_eq!(shown(&["-servername", "exact.wild.example"]), "exact");
    assert_eq!(shown(&["-servername", "a.b.wild.example"]), "first", "a wildcard stands for one label");
    assert_eq!(shown(&["-servername", "unknown.example"]), "first");
    assert_eq!(shown(&["-noservername"]), "first");
    for (spelling, wanted) in
        [("EXACT.Wild.example", "exact"), ("exact.wild.example.", "exact"), ("A.wild.example.", "wild")]
    {
        assert_eq!(shown(&["-servername", spelling]), wanted, "{spelling}");
    }
}

#[test]
fn sessions_are_resumed_even_after_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    let proxy = start(folder.path(), SITE);
    let session = folder.path().join("session");
    let session = session.to_str().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        // A ticket of TLS 1.3 comes with the first response.
        let first = with_request(&proxy, &[version, "-sess_out", session]);
        assert!(first.contains("New, TLSv1"), "{first}");
        let again = with_request(&proxy, &[version, "-sess_in", session]);
        assert!(again.contains("Reused, TLSv1"), "{version}: {again}");
        proxy.signal("HUP");
        proxy.wait_log("reloaded");
        let again = with_request(&proxy, &[version, "-sess_in", session]);
        assert!(again.contains("Reused, TLSv1"), "{version} after a reload: {again}");
    }
}

fn with_request(proxy: &Proxy, args: &[&str]) -> String {
    let request = "GET / HTTP/1.1\\r\\nHost: site.example\\r\\nConnection: close\\r\\n\\r\\n";
    let line = format!("printf '{request}' | openssl s_client -ign_eof -connect {} {}", proxy.address, args.join(" "));
    output(Command::new("sh").args(["-c", &line]))
}

#[test]
fn the_oldest_version_can_be_raised() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    let proxy = start(folder.path(), &format!("{SITE}\nmin-version = \"1.3\"\nhttp2 = false"));
    let old = curl(&proxy, folder.path(), "site.example", &["--tls-max", "1.2"]);
    assert!(old.contains("protocol version") || old.contains("alert"), "{old}");
    let one = curl(&proxy, folder.path(), "site.example", &["--http2"]);
    assert!(one.ends_with("HTTP/1.1 200"), "{one}");
}

#[test]
fn client_certificates_are_asked_for_and_shown_to_plugins() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["site.example"]);
    authority.issue(folder.path(), "alice", &["alice.example"]);
    let other = tempfile::tempdir().unwrap();
    Authority::new(other.path()).issue(other.path(), "mallory", &["mallory.example"]);
    let files = |folder: &Path, name: &str| {
        let path = |kind: &str| folder.join(format!("{name}.{kind}")).to_str().unwrap().to_string();
        [path("pem"), path("key")]
    };
    let [cert, key] = files(folder.path(), "alice");
    let alice = ["--cert", cert.as_str(), "--key", key.as_str()];
    let [cert, key] = files(other.path(), "mallory");
    let mallory = ["--cert", cert.as_str(), "--key", key.as_str()];

    let proxy = start(folder.path(), &format!("{SITE}\nclient-ca = \"ca.pem\""));
    let known = curl(&proxy, folder.path(), "site.example", &alice);
    assert!(known.contains("CN=alice DNS:alice.example") && known.ends_with("200"), "{known}");
    let print = known.lines().find_map(|line| line.strip_prefix("x-print: ")).unwrap();
    let der = Command::new("sh").args(["-c", "openssl x509 -in \"$0\" -outform der | sha256sum", alice[1]]).output();
    assert!(String::from_utf8(der.unwrap().stdout).unwrap().starts_with(print), "{print}");
    for refused in [&[][..], &mallory] {
        let text = curl(&proxy, folder.path(), "site.example", refused);
        assert!(text.contains("HTTP/0 000"), "{text}");
    }
    let proxy = start(folder.path(), &format!("{SITE}\nclient-ca = \"ca.pem\"\nclient-certificate = \"optional\""));
    let nobody = curl(&proxy, folder.path(), "site.example", &[]);
    assert!(nobody.ends_with("200") && !nobody.contains("x-print"), "{nobody}");
    assert!(curl(&proxy, folder.path(), "site.example", &alice).contains("CN=alice"));
    assert!(curl(&proxy, folder.path(), "site.example", &mallory).contains("HTTP/0 000"));
}

/// A client that has shown no certificate, or one of an authority that is not trusted any more, was served on and on.
#[test]
fn open_connections_obey_the_keys_of_tls_that_a_reload_changes() {
    let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["site.example"]);
    Authority::new(other.path());
    std::fs::copy(other.path().join("ca.pem"), folder.path().join("other.pem")).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let origin = echo();
    let text = |keys: &str| {
        secure(&origin, &format!("{SITE}\n{keys}"), "[admin]\naddress = \"off\"\n").replacen("127.0.0.1:0", &address, 1)
    };
    let proxy = Proxy::start_in(folder.path(), &text(""));
    let config = client_config(&authority);
    let ask = |client: &mut BufReader<StreamOwned<ClientConnection, TcpStream>>| {
        client.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: site.example\r\n\r\n").unwrap();
        let answer = read_message(client).unwrap();
        (answer.status(), answer.field("connection").map(String::from))
    };
    let begin = || {
        let connection = ClientConnection::new(config.clone(), "site.example".try_into().unwrap()).unwrap();
        let mut client = BufReader::new(StreamOwned::new(connection, proxy.connect()));
        assert_eq!(ask(&mut client), (200, None));
        client
    };
    let reload = |keys: &str| {
        replace(&folder.path().join("plugway.toml"), &text(keys));
        proxy.wait_log("reloaded: generation");
    };
    for keys in ["min-version = \"1.3\"", "http2 = false"] {
        let mut client = begin();
        reload(keys);
        assert_eq!(ask(&mut client), (200, Some("close".into())), "{keys}");
    }
    let steps = [
        "client-ca = \"ca.pem\"\nclient-certificate = \"optional\"",
        "client-ca = \"other.pem\"\nclient-certificate = \"optional\"",
        "client-ca = \"other.pem\"",
    ];
    for keys in steps {
        let (mut idle, mut asking) = (begin(), begin());
        asking.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: site.example\r\n").unwrap();
        reload(keys);
        // An idle connection was open up to its next request, which got 421.
        assert_eq!(idle.fill_buf().unwrap(), b"", "{keys}");
        asking.get_mut().write_all(b"\r\n").unwrap();
        let answer = read_message(&mut asking).unwrap();
        assert_eq!((answer.status(), answer.field("connection")), (421, Some("close")), "{keys}");
    }
    proxy.wait_log("client-ca");
}

/// The first step of each rotation: each open connection's next request got 421.
#[test]
fn another_authority_of_clients_ends_no_connection() {
    let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["site.example"]);
    let second = Authority::new(other.path()).0.pem();
    let bundle = folder.path().join("bundle.pem");
    let first = std::fs::read_to_string(folder.path().join("ca.pem")).unwrap();
    replace(&bundle, &first);
    let keys = format!("{SITE}\nclient-ca = \"bundle.pem\"\nclient-certificate = \"optional\"");
    let proxy = start(folder.path(), &keys);
    let mut config = ClientConfig::clone(&client_config(&authority));
    let mut connect = |protocol: &[u8], request: &[u8]| {
        config.alpn_protocols = vec![protocol.to_vec()];
        let connection = ClientConnection::new(Arc::new(config.clone()), "site.example".try_into().unwrap()).unwrap();
        let mut client = BufReader::new(StreamOwned::new(connection, proxy.connect()));
        client.get_mut().write_all(request).unwrap();
        client
    };
    let mut http1 = connect(b"http/1.1", HTTP1_REQUEST);
    let mut http2 = connect(
        b"h2",
        &[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", http2_request(1).as_slice()].concat(),
    );
    assert_eq!(read_message(&mut http1).unwrap().status(), 200);
    assert_eq!(http2_status(&mut http2), Some(200));
    replace(&bundle, &format!("{first}{second}"));
    proxy.wait_log("reloaded: generation 2");
    http1.get_mut().write_all(HTTP1_REQUEST).unwrap();
    let answer = read_message(&mut http1).unwrap();
    assert_eq!((answer.status(), answer.field("connection")), (200, None));
    http2.get_mut().write_all(&http2_request(3)).unwrap();
    assert_eq!(http2_status(&mut http2), Some(200));
    // The last step: the first authority is not trusted any more, and a client can be told before its next request.
    replace(&bundle, &second);
    proxy.wait_log("reloaded: generation 3");
    assert_eq!(http1.fill_buf().unwrap(), b"");
    assert_eq!(http2_status(&mut http2), None);
}

const HTTP1_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: site.example\r\n\r\n";

/// Returns a frame with a request.
fn http2_request(stream: u8) -> Vec<u8> {
    // GET, https, `/` and the authority.
    let fields = [b"\x82\x87\x84\x41\x0c".as_slice(), b"site.example"].concat();
    [&[0, 0, fields.len() as u8, HEADERS, END_STREAM | END_HEADERS, 0, 0, 0, stream], fields.as_slice()].concat()
}

/// Reads frames up to the end of a response, and returns its status, or `None` for GOAWAY.
fn http2_status(client: &mut impl Read) -> Option<u16> {
    let mut status = None;
    loop {
        let mut head = [0; 9];
        client.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        client.read_exact(&mut payload).unwrap();
        match head[3] {
            GOAWAY => return None,
            // The first field is `:status`, with the index of 200 or another.
            HEADERS => status = Some(if payload[0] == 0x88 { 200 } else { 0 }),
            _ => {}
        }
        if let (Some(status), DATA | HEADERS, true) = (status, head[3], head[4] & END_STREAM != 0) {
            return Some(status);
        }
    }
}

#[test]
fn a_renewed_certificate_is_taken_and_a_bad_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["site.example"]);
    let proxy = start(folder.path(), SITE);
    let serial = || {
        let text = output(Command::new("sh").args([
            "-c",
            &format!(
                "openssl s_client -connect {} </dev/null 2>/dev/null | openssl x509 -noout -serial",
                proxy.address
            ),
        ]));
        text.trim().to_string()
    };
    let before = serial();
    assert!(before.starts_with("serial="), "{before}");
    authority.issue(folder.path(), "site", &["site.example"]);
    proxy.wait_log("reloaded");
    let renewed = serial();
    assert_ne!(renewed, before);

    let refused = |what: &str| {
        proxy.wait_log(what);
        assert_eq!(serial(), renewed, "the old one goes on");
    };
    replace(&folder.path().join("site.pem"), "no certificate at all");
    refused("no certificate");
    authority.issue(folder.path(), "other", &["site.example"]);
    std::fs::copy(folder.path().join("other.pem"), folder.path().join("site.pem")).unwrap();
    refused("private key of another certificate");
}

/// A certificate without `subjectAltName` was never chosen, in silence.
#[test]
fn check_warns_of_a_further_certificate_without_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["site.example"]);
    authority.issue(folder.path(), "nameless", &[]);
    let check = |first: &str, second: &str| {
        let pair = |name: &str| format!("{{ chain = \"{name}.pem\", key = \"{name}.key\" }}");
        let tls = format!("certificates = [{}, {}]", pair(first), pair(second));
        std::fs::write(folder.path().join("plugway.toml"), secure("127.0.0.1:1", &tls, "")).unwrap();
        let mut check = plugway();
        output(check.arg("check").arg(folder.path().join("plugway.toml")).stdout(Stdio::piped()))
    };
    let warned = check("site", "nameless");
    assert!(
        warned.contains("warning: no client gets this certificate") && warned.contains("subjectAltName"),
        "{warned}"
    );
    assert!(!check("nameless", "site").contains("warning"), "the first is for clients without a name");
}

#[test]
fn a_certificate_that_has_expired_ends_no_other_site() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["site.example"]);
    authority.issue_until(folder.path(), "old", &["old.example"], 2021);
    let files = |name| format!("{{ chain = \"{name}.pem\", key = \"{name}.key\" }}");
    let list = format!("certificates = [{}, {}]", files("site"), files("old"));
    let text = secure(&echo(), &list, "");
    let proxy = Proxy::start_in(folder.path(), &text);
    let warning = proxy.wait_log("certificate has expired");
    assert!(warning.contains("WARN") && warning.contains("old.pem") && warning.contains("2021"), "{warning}");
    let line = text.lines().position(|line| line.contains("old.pem")).unwrap() + 1;
    assert!(warning.contains(&format!("plugway.toml:{line}")) && warning.contains("renew it"), "{warning}");
    assert!(curl(&proxy, folder.path(), "site.example", &[]).ends_with("200"));
    let refused = curl(&proxy, folder.path(), "old.example", &[]);
    assert!(refused.contains("expired"), "{refused}");
    assert!(curl(&proxy, folder.path(), "old.example", &["--insecure"]).ends_with("200"), "it is shown");
    // Its time stands in the way of no reload.
    replace(&folder.path().join("plugway.toml"), &text.replace("[[route]]", "[[route]]\nname = \"new\""));
    proxy.wait_log("certificate has expired");
    proxy.wait_log("reloaded: generation 2");
    let metric = |name: &str, file: &str| {
        let path = folder.path().join(file);
        proxy.metric(&format!("plugway_certificate_{name}_seconds{{chain=\"{}\"}}", path.display()))
    };
    assert_eq!(metric("not_after", "old.pem"), 1_609_459_200.0);
    assert_eq!(metric("not_before", "old.pem"), 1_577_836_800.0);
    assert_eq!(metric("not_after", "site.pem"), 4_102_444_800.0);
    let checked = output(plugway().arg("check").arg(folder.path().join("plugway.toml")).stdout(Stdio::piped()));
    assert!(checked.contains("is good") && checked.contains("certificate has expired"), "{checked}");
}

#[test]
fn http_at_a_port_of_tls_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    let proxy = start(folder.path(), SITE);
    for request in
        ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "POST /up HTTP/1.0\r\n\r\nabc"]
    {
        let mut stream = proxy.connect();
        // The first byte alone tells the two apart.
        stream.set_nodelay(true).unwrap();
        let (first, rest) = request.split_at(1);
        stream.write_all(first.as_bytes()).unwrap();
        stream.write_all(rest.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let response = read_message(&mut reader).unwrap();
        assert_eq!((response.status(), response.field("connection")), (400, Some("close")), "{request}");
        assert!(response.start.starts_with("HTTP/1.1 ") && response.text().contains("use https"), "{response:?}");
    }
    for other in ["SSH-2.0-OpenSSH_9.2\r\n", "\0\0\0\0", "hello\r\n"] {
        let mut stream = proxy.connect();
        stream.write_all(other.as_bytes()).unwrap();
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        assert!(!got.starts_with(b"HTTP/"), "{other:?}");
    }
    assert!(curl(&proxy, folder.path(), "site.example", &[]).ends_with("200"));
    assert_eq!(proxy.metric("plugway_errors_total{route=\"-\",kind=\"http_request_error\"}"), 3.0);
}

#[test]
fn a_certificate_for_development_takes_one_command() {
    let folder = tempfile::tempdir().unwrap();
    let made = output(plugway().args(["cert", "--self-signed", "--out"]).arg(folder.path()).stdout(Stdio::piped()));
    let [chain, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
    assert!(made.contains(&format!("certificates = [{{ chain = {chain:?}, key = {key:?} }}]")), "{made}");
    std::fs::copy(folder.path().join("cert.pem"), folder.path().join("ca.pem")).unwrap();
    let proxy = start(folder.path(), "certificates = [{ chain = \"cert.pem\", key = \"key.pem\" }]");
    let text = curl(&proxy, folder.path(), "localhost", &[]);
    assert!(text.ends_with("200"), "{text}");
    let again = plugway().args(["cert", "--self-signed", "--out"]).arg(folder.path()).status().unwrap();
    assert!(!again.success(), "nothing is written over");
}

#[test]
fn a_listener_can_send_everybody_to_https() {
    let redirecting = "address = \"127.0.0.1:0\"\nredirect-to-https = 8443\n";
    let text = manifest(&echo(), "", "").replace("address = \"127.0.0.1:0\"\n", redirecting);
    let proxy = Proxy::start(&text);
    let moved = proxy.get("/a/../b?c=d", "");
    assert_eq!((moved.status(), moved.field("location")), (308, Some("https://example.org:8443/a/../b?c=d")));
    let unnamed = proxy.exchange("GET / HTTP/1.0");
    assert_eq!(unnamed.status(), 400, "{unnamed:?}");
}

/// A connection has one listener, whichever addresses share its port: that of the most specific address.
#[test]
fn listeners_that_share_a_port_have_their_own_connections() {
    let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
    let listeners: String = [("0.0.0.0", 1001), ("127.0.0.1", 1002), ("[::]", 1003)]
        .map(|(host, to)| format!("[[listener]]\naddress = \"{host}:{port}\"\nredirect-to-https = {to}\n"))
        .concat();
    let proxy = Proxy::start(&manifest(&echo(), "", &listeners));
    let told = |address: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        read_message(&mut BufReader::new(stream)).unwrap().field("location").unwrap().to_string()
    };
    proxy.wait_log(&format!("[::]:{port}"));
    for _ in 0..20 {
        assert_eq!(told(&format!("127.0.0.2:{port}")), "https://a:1001/");
        assert_eq!(told(&format!("127.0.0.1:{port}")), "https://a:1002/");
        assert_eq!(told(&format!("[::1]:{port}")), "https://a:1003/");
    }
}

#[test]
fn a_listener_at_all_addresses_of_ipv6_accepts_no_ipv4() {
    let text = manifest(&echo(), "", "").replace("127.0.0.1:0", "[::]:0");
    // Another test may have the port at IPv4.
    let is_free_at_ipv4 = (0..5).any(|_| {
        let proxy = Proxy::start(&text);
        let port = proxy.address.rsplit(':').next().unwrap();
        assert!(TcpStream::connect(format!("[::1]:{port}")).is_ok());
        TcpListener::bind(format!("127.0.0.1:{port}")).is_ok()
    });
    assert!(is_free_at_ipv4);
}

// === To endpoints ===

/// Returns a manifest whose upstream is an `https://` endpoint.
fn to_secure(endpoint: &str, tls: &str) -> String {
    manifest(&format!("https://{endpoint}"), "", &format!("[upstream.app.tls]\n{tls}\n"))
}

#[test]
fn endpoints_are_spoken_to_over_tls_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["site.example"]);
    authority.issue(folder.path(), "proxy", &["proxy.example"]);
    let origin = start(folder.path(), &format!("{SITE}\nclient-ca = \"ca.pem\"\nclient-certificate = \"optional\""));
    let front = |tls: &str| {
        let own = tempfile::tempdir().unwrap();
        for file in ["ca.pem", "proxy.pem", "proxy.key"] {
            std::fs::copy(folder.path().join(file), own.path().join(file)).unwrap();
        }
        let proxy = Proxy::start_in(own.path(), &to_secure(&origin.address, tls));
        let got = [proxy.get("/", ""), proxy.get("/", "")];
        assert_eq!(got[0].status(), got[1].status());
        got.into_iter().next_back().unwrap()
    };
    let good = front("ca = \"ca.pem\"\nserver-name = \"site.example\"");
    assert!(good.text().contains("x-tls: https TLSv1.3 site.example   HTTP/2.0"), "HTTP/2 by ALPN: {}", good.text());
    let one = front("ca = \"ca.pem\"\nserver-name = \"site.example\"\nhttp2 = false");
    assert!(one.text().contains("site.example   HTTP/1.1"), "{}", one.text());
    let shown = "certificate = { chain = \"proxy.pem\", key = \"proxy.key\" }";
    let known = front(&format!("ca = \"ca.pem\"\nserver-name = \"site.example\"\n{shown}"));
    assert!(known.text().contains("CN=proxy"), "{}", known.text());
    for (tls, why) in [
        ("ca = \"ca.pem\"\nserver-name = \"other.example\"", "another name"),
        ("server-name = \"site.example\"", "an authority that the system doesn't know"),
    ] {
        let refused = front(tls);
        let status = (refused.status(), refused.field("proxy-status"));
        assert_eq!(status, (502, Some("plugway; error=tls_certificate_error")), "{why}");
    }
    assert_eq!(front("insecure-skip-verify = true").status(), 200);
}

#[test]
fn a_reload_reads_the_authorities_of_the_system_again() {
    let folder = tempfile::tempdir().unwrap();
    let (trusted, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bundle = |authorities: &[&tempfile::TempDir]| {
        let read = |from: &&tempfile::TempDir| std::fs::read_to_string(from.path().join("ca.pem")).unwrap();
        std::fs::write(folder.path().join("bundle.pem"), authorities.iter().map(read).collect::<String>()).unwrap();
    };
    Authority::new(trusted.path()).issue(trusted.path(), "site", &["site.example"]);
    Authority::new(other.path());
    let origin = start(trusted.path(), SITE);
    bundle(&[&other]);
    let mut command = plugway();
    command.env("SSL_CERT_FILE", folder.path().join("bundle.pem"));
    let text = to_secure(&origin.address, "server-name = \"site.example\"");
    let proxy = Proxy::start_by(command, folder.path(), &text);
    assert_eq!(proxy.get("/", "").status(), 502);
    let mut generation = 1;
    // Seen before: 502 after each reload, and 200 for an authority that was removed.
    for (authorities, status) in [(vec![&other, &trusted], 200), (vec![&other], 502)] {
        bundle(&authorities);
        generation += 1;
        proxy.signal("HUP");
        proxy.wait_log(&format!("reloaded: generation {generation}"));
        assert_eq!(proxy.get("/", "").status(), status);
    }
}

/// All requests waited for the first connection, which might speak HTTP/2, until its handshake was late.
#[test]
fn a_handshake_that_hangs_holds_up_its_own_request_alone() {
    const CLIENTS: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    let origin = start(folder.path(), SITE);
    let (address, connections) = (origin.address.clone(), Arc::new(AtomicUsize::new(0)));
    let endpoint = raw_origin(move |mut client| {
        if connections.fetch_add(1, Ordering::SeqCst) == 0 {
            return drop(std::io::copy(&mut client, &mut std::io::sink()));
        }
        let mut server = TcpStream::connect(&address).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
        let _ = std::io::copy(&mut server, &mut client);
    });
    let tls = "insecure-skip-verify = true\nserver-name = \"site.example\"";
    let text = to_secure(&endpoint, tls).replace("endpoints =", "connect-timeout = \"3s\"\nendpoints =");
    let proxy = Proxy::start(&text.replace("workers = 2", "workers = 1"));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut stream = proxy.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: site.example\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let statuses = clients.into_iter().map(|client| read_message(&mut BufReader::new(client)).unwrap().status());
    let good = statuses.filter(|status| *status == 200).count();
    assert!(good >= CLIENTS - 1, "{good} of {CLIENTS}");
}

#[test]
fn an_endpoint_without_tls_is_no_matter_of_the_network() {
    // As most servers do, it waits for a line that never comes.
    let origin = raw_origin(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let text = to_secure(&origin, "server-name = \"site.example\"");
    let proxy = Proxy::start(&text.replace("[upstream.app]", "[upstream.app]\nconnect-timeout = \"400ms\""));
    let answer = proxy.get("/", "");
    assert_eq!((answer.status(), answer.field("proxy-status")), (504, Some("plugway; error=connection_timeout")));
    let line = proxy.wait_log("exchange failed");
    // Seen before: `no connection after 400ms`.
    assert!(line.contains("TLS handshake") && line.contains("may not speak TLS"), "{line}");
    assert!(line.contains("connect-timeout"), "{line}");
}

#[test]
fn an_endpoint_that_wants_a_certificate_names_the_key_over_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["site.example"]);
    let origin = start(folder.path(), &format!("{SITE}\nclient-ca = \"ca.pem\""));
    for more in ["", "http2 = false"] {
        let own = tempfile::tempdir().unwrap();
        std::fs::copy(folder.path().join("ca.pem"), own.path().join("ca.pem")).unwrap();
        let tls = format!("ca = \"ca.pem\"\nserver-name = \"site.example\"\n{more}");
        let proxy = Proxy::start_in(own.path(), &to_secure(&origin.address, &tls));
        let answer = proxy.get("/", "");
        assert_eq!((answer.status(), answer.field("proxy-status")), (502, Some("plugway; error=tls_alert_received")));
        let line = proxy.wait_log("exchange failed");
        assert!(
            line.contains("`certificate_required`") && line.contains("`tls.certificate` of the upstream"),
            "{line}"
        );
    }
}

#[test]
fn an_endpoint_of_openssl_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "site", &["localhost"]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-quiet", "-www", "-accept", &port.to_string(), "-cert", "site.pem", "-key", "site.key"]);
    let mut server = server.current_dir(folder.path()).spawn().unwrap();
    let text = to_secure(&format!("localhost:{port}"), "ca = \"ca.pem\"");
    let proxy = Proxy::start_in(folder.path(), &text);
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    let page = loop {
        let page = proxy.get("/", "");
        if page.status() != 502 || std::time::Instant::now() > deadline {
            break page;
        }
    };
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(page.status() == 200 && page.text().contains("TLSv1.3"), "{page:?}");
}

#[test]
fn the_rest_of_a_response_reaches_a_client_that_reads_late() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "site", &["localhost"]);
    let proxy = Proxy::start_in(folder.path(), &secure(&sized(), SITE, ""));
    let config = client_config(&authority);
    let ask = |length: usize| {
        let connection = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
        let socket = TcpStream::connect(&proxy.address).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 32 << 10).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        write!(stream, "GET /{length} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream.flush().unwrap();
        // Long enough for the connection to rest, were its response sent.
        thread::sleep(Duration::from_secs(1));
        stream.sock.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let response = read_message(&mut BufReader::new(stream)).unwrap_or_else(|| panic!("{length} don't come"));
        assert_eq!(response.body.len(), length);
    };
    // The capacity of the sockets is unknown. Of one of these bodies, the part beyond it is all within TLS.
    let ask = &ask;
    thread::scope(|scope| (1..100).for_each(|part| drop(scope.spawn(move || ask(part * 48_000)))));
}
