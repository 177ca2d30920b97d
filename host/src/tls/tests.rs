//! Whole handshakes, in memory, between the two kinds of configuration.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256,
    SanType, date_time_ymd,
};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, Error, HandshakeKind, ServerConfig, ServerConnection, SideData,
};
use rustls_pki_types::ServerName;

use super::CertificateError;
use super::client::{ClientFilePlace as ClientPlace, ClientFiles, Roots, SystemRoots, Verify, client};
use super::handshake_error::certificate_in_words;
use super::handshake_info::facts;
use super::pem::CertificateFiles;
use super::self_signed::self_signed;
use super::server::{ClientAuth, MinimumVersion, ServerFilePlace, ServerFiles, Tickets, server};
use super::test_authority::{TestAuthority, made, params};
use super::validity::{DatedCertificate, Invalid};

fn served(files: &ServerFiles) -> Arc<ServerConfig> {
    server(files, &Tickets::new().unwrap()).unwrap().config
}

/// Returns the errors, with paths reduced to file names.
fn mistakes(authority: &TestAuthority, files: &ServerFiles) -> Vec<(ServerFilePlace, String)> {
    let mistakes = server(files, &Tickets::new().unwrap()).err().unwrap();
    let folder = format!("{}/", authority.folder.path().display());
    mistakes.into_iter().map(|CertificateError { place, message }| (place, message.replace(&folder, ""))).collect()
}

/// Completes a handshake without a request, and returns the two ends of the connection.
fn shake_hands(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &'static str,
) -> Result<(ClientConnection, ServerConnection), Error> {
    let mut client = ClientConnection::new(client.clone(), ServerName::try_from(name).unwrap())?;
    let mut server = ServerConnection::new(server.clone())?;
    while client.wants_write() || server.wants_write() {
        pass(&mut client, &mut server)?;
        pass(&mut server, &mut client)?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

/// Passes all pending bytes of one end to the other.
fn pass<A: SideData, B: SideData>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Result<(), Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// Returns the common name of the certificate that a client gets that accepts any certificate.
fn shown(config: &Arc<ServerConfig>, name: &'static str) -> String {
    let roots = Roots::System(SystemRoots::read());
    let client = made(&ClientFiles { roots, certificate: None, verify: Verify::Never, http2: false });
    let (client, _) = shake_hands(&client, config, name).unwrap();
    common_name(&client)
}

fn common_name(client: &ClientConnection) -> String {
    let leaf = &client.peer_certificates().unwrap()[0];
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).unwrap();
    leaf.subject().iter_common_name().next().unwrap().as_str().unwrap().into()
}

// === Names ===

#[test]
fn the_certificate_is_chosen_by_name() {
    let authority = TestAuthority::new();
    let kind = &PKCS_ECDSA_P256_SHA256;
    authority.issue("first", kind, &["first.example"]);
    authority.issue("wild", kind, &["*.Wild.example"]);
    authority.issue("exact", kind, &["exact.wild.example", "other.example"]);
    let config = served(&authority.served(&["first", "wild", "exact"], ClientAuth::None));
    for (name, expected) in [
        ("first.example", "first"),
        ("a.wild.example", "wild"),
        ("A.WILD.example", "wild"),
        ("exact.wild.example", "exact"),
        ("other.example", "exact"),
        // A wildcard matches exactly one label.
        ("a.b.wild.example", "first"),
        ("wild.example", "first"),
        ("unknown.example", "first"),
        // Clients request no addresses by name.
        ("192.0.2.1", "first"),
    ] {
        assert_eq!(shown(&config, name), expected, "{name}");
    }
}

#[test]
fn the_first_certificate_is_the_default_whatever_others_without_dns_names() {
    let authority = TestAuthority::new();
    authority.issue("first", &PKCS_RSA_SHA256, &["192.0.2.1"]);
    authority.issue("second", &PKCS_ECDSA_P256_SHA256, &["192.0.2.2"]);
    let config = served(&authority.served(&["first", "second"], ClientAuth::None));
    for name in ["192.0.2.1", "192.0.2.2", "unknown.example"] {
        assert_eq!(shown(&config, name), "first", "{name}");
    }
}

#[test]
fn of_certificates_for_the_same_name_the_client_gets_one_it_understands() {
    let authority = TestAuthority::new();
    authority.issue("rsa", &PKCS_RSA_SHA256, &["site.example"]);
    authority.issue("ed", &PKCS_ED25519, &["site.example"]);
    authority.issue("ec", &PKCS_ECDSA_P256_SHA256, &["site.example"]);
    let config = served(&authority.served(&["rsa", "ec", "ed"], ClientAuth::None));
    assert_eq!(shown(&config, "site.example"), "ec", "the cheap ones first");
    assert_eq!(shown(&config, "192.0.2.1"), "ec", "by default too");

    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite().as_str().is_some_and(|name| name.contains("ECDHE_RSA")));
    let old = authority.client_of(provider.into(), &TLS12);
    let (client, server) = shake_hands(&old, &config, "site.example").unwrap();
    assert_eq!(common_name(&client), "rsa");
    assert!(facts(&server).cipher.starts_with("TLS_ECDHE_RSA_WITH_"), "{}", facts(&server).cipher);
}

// === Sessions ===

#[test]
fn a_handshake_agrees_on_versions_and_protocols() {
    let authority = TestAuthority::with_site();
    let config = served(&authority.served(&["site"], ClientAuth::None));
    let (client, server) = shake_hands(&authority.client(None), &config, "site.example").unwrap();
    let facts = facts(&server);
    assert_eq!((facts.version, facts.alpn_h2, facts.client.is_none()), ("TLSv1.3", true, true));
    assert_eq!(facts.cipher, "TLS_AES_256_GCM_SHA384");
    assert_eq!(facts.server_name.as_deref(), Some("site.example"));
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));

    let without = served(&ServerFiles { http2: false, ..authority.served(&["site"], ClientAuth::None) });
    let (client, server) = shake_hands(&authority.client(None), &without, "site.example").unwrap();
    assert!(!super::handshake_info::facts(&server).alpn_h2);
    assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[test]
fn the_oldest_version_can_be_raised() {
    let authority = TestAuthority::with_site();
    let both = served(&authority.served(&["site"], ClientAuth::None));
    let strict = ServerFiles { minimum: MinimumVersion::Tls13, ..authority.served(&["site"], ClientAuth::None) };
    let strict = served(&strict);
    let old = authority.client_of(super::provider(), &TLS12);
    let (_, server) = shake_hands(&old, &both, "site.example").unwrap();
    assert_eq!(facts(&server).version, "TLSv1.2");
    assert!(shake_hands(&old, &strict, "site.example").is_err());
    assert!(shake_hands(&authority.client(None), &strict, "site.example").is_ok());
}

#[test]
fn sessions_are_resumed_by_another_configuration_of_the_same_process() {
    let authority = TestAuthority::with_site();
    let files = authority.served(&["site"], ClientAuth::None);
    let tickets = Tickets::new().unwrap();
    let config = || server(&files, &tickets).unwrap().config;
    for version in [&TLS12, &TLS13] {
        let client = authority.client_of(super::provider(), version);
        let kind = |server: &Arc<ServerConfig>| {
            let (_, server) = shake_hands(&client, server, "site.example").unwrap();
            server.handshake_kind().unwrap()
        };
        assert_eq!(kind(&config()), HandshakeKind::Full, "{version:?}");
        assert_eq!(kind(&config()), HandshakeKind::Resumed, "{version:?}");
        assert_eq!(kind(&served(&files)), HandshakeKind::Full, "another process can't open tickets: {version:?}");
    }
}

#[test]
fn a_ticket_is_no_way_around_a_client_certificate() {
    let (authority, other) = (TestAuthority::with_site(), TestAuthority::new());
    authority.issue("alice", &PKCS_ECDSA_P256_SHA256, &[]);
    let tickets = Tickets::new().unwrap();
    let config = |client| server(&authority.served(&["site"], client), &tickets).unwrap().config;
    let optional = || ClientAuth::Optional(authority.path("ca.pem"));
    let nobody = authority.client(None);
    for easy in [config(ClientAuth::None), config(optional())] {
        shake_hands(&nobody, &easy, "site.example").unwrap();
        let refused = shake_hands(&nobody, &config(authority.required()), "site.example");
        assert_eq!(refused.err(), Some(Error::NoCertificatesPresented));
    }

    let alice = authority.client(Some("alice"));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (_, server) = shake_hands(&alice, &config(authority.required()), "site.example").unwrap();
        assert_eq!(server.handshake_kind(), Some(kind));
        assert_eq!(facts(&server).client.unwrap().subject, "CN=alice", "a ticket remembers who it was");
    }
    assert!(shake_hands(&alice, &config(other.required()), "site.example").is_err(), "the authority has been replaced");
}

// === Client certificates ===

#[test]
fn clients_show_certificates_where_these_are_asked_for() {
    let (authority, other) = (TestAuthority::with_site(), TestAuthority::new());
    authority.issue("alice", &PKCS_ED25519, &["alice.example", "::1"]);
    other.issue("mallory", &PKCS_ECDSA_P256_SHA256, &[]);
    let optional = served(&authority.served(&["site"], ClientAuth::Optional(authority.path("ca.pem"))));
    let required = served(&authority.served(&["site"], authority.required()));
    let roots = Roots::File(authority.path("ca.pem"));
    let certificate = Some(other.files("mallory"));
    let mallory = made(&ClientFiles { roots, certificate, verify: Verify::Always, http2: true });

    for config in [&optional, &required] {
        assert!(shake_hands(&mallory, config, "site.example").is_err());
        let (_, server) = shake_hands(&authority.client(Some("alice")), config, "site.example").unwrap();
        let alice = facts(&server).client.unwrap();
        assert_eq!((alice.subject.as_str(), alice.issuer.as_str()), ("CN=alice", "CN=Tests"));
        assert_eq!(alice.names, "DNS:alice.example,IP:::1");
        assert_eq!(alice.fingerprint, openssl(&authority, "x509 -in alice.pem -noout -sha256 -fingerprint"));
        assert_eq!(alice.serial, openssl(&authority, "x509 -in alice.pem -noout -serial").to_uppercase());
    }
    let (_, server) = shake_hands(&authority.client(None), &optional, "site.example").unwrap();
    assert!(facts(&server).client.is_none());
    let refused = shake_hands(&authority.client(None), &required, "site.example");
    assert_eq!(refused.err(), Some(Error::NoCertificatesPresented));
}

/// Issues `site` and `alice`, each with further certificates behind its own, and returns the results of a handshake for
/// the side that checks them: a server, and a client.
fn with_long_chains(further: usize) -> (Result<(), Error>, Result<(), Error>) {
    let authority = TestAuthority::with_site();
    authority.issue("alice", &PKCS_ECDSA_P256_SHA256, &["alice.example"]);
    let short = served(&authority.served(&["site"], authority.required()));
    let plain = served(&authority.served(&["site"], ClientAuth::None));
    let bob = authority.client(None);
    assert!(shake_hands(&bob, &plain, "site.example").is_ok());
    for file in ["site.pem", "alice.pem"] {
        authority.write(file, &(authority.read(file) + &authority.read("ca.pem").repeat(further)));
    }
    let long = served(&authority.served(&["site"], ClientAuth::None));
    let alice = authority.client(Some("alice"));
    (shake_hands(&alice, &short, "site.example").map(drop), shake_hands(&bob, &long, "site.example").map(drop))
}

#[test]
fn a_chain_of_many_certificates_is_rejected_before_a_path_is_searched_in_it() {
    let (by_server, by_client) = with_long_chains(10);
    assert_eq!((by_server, by_client), (Ok(()), Ok(())));
    for result in <[_; 2]>::from(with_long_chains(11)) {
        let Err(Error::InvalidCertificate(error)) = result else { panic!("{result:?}") };
        let words = certificate_in_words(&error);
        assert_eq!(words, "can't be verified: 11 certificates of authorities come with it, more than 10");
    }
}

/// Returns the text behind `=`, in our notation.
fn openssl(authority: &TestAuthority, args: &str) -> String {
    let made = Command::new("openssl").args(args.split(' ')).current_dir(authority.folder.path()).output().unwrap();
    let text = String::from_utf8(made.stdout).unwrap();
    text.trim().rsplit('=').next().unwrap().replace(':', "").to_lowercase()
}

#[test]
fn a_name_in_a_certificate_passes_for_no_other() {
    let authority = TestAuthority::with_site();
    let mut params = params("alice, O=Staff\r\n", &[]);
    params.distinguished_name.push(DnType::OrganizationName, "Zoë+Co");
    params.subject_alt_names = [
        SanType::URI("spiffe://a/b,DNS:admin".try_into().unwrap()),
        SanType::Rfc822Name("a+b@example.org".try_into().unwrap()),
        SanType::DnsName("*.example".try_into().unwrap()),
    ]
    .into();
    authority.issue_by("odd", &PKCS_ECDSA_P256_SHA256, params);
    let required = served(&authority.served(&["site"], authority.required()));
    let (_, server) = shake_hands(&authority.client(Some("odd")), &required, "site.example").unwrap();
    let odd = facts(&server).client.unwrap();
    assert_eq!(odd.subject, r"O=Zo\C3\AB\+Co,CN=alice\, O=Staff\0D\0A");
    assert_eq!(odd.names, r"URI:spiffe://a/b\,DNS:admin,email:a+b@example.org,DNS:*.example");
}

// === Towards endpoints ===

#[test]
fn endpoints_prove_their_names() {
    let (authority, other) = (TestAuthority::with_site(), TestAuthority::new());
    let config = served(&authority.served(&["site"], ClientAuth::None));
    assert!(shake_hands(&authority.client(None), &config, "site.example").is_ok());
    assert!(shake_hands(&authority.client(None), &config, "other.example").is_err(), "another name");
    assert!(shake_hands(&other.client(None), &config, "site.example").is_err(), "another authority");
    assert_eq!(shown(&config, "other.example"), "site", "unless whoever answers is believed");
}

#[test]
fn mistakes_of_an_upstream_are_told_together() {
    let authority = TestAuthority::with_site();
    let certificate = Some(CertificateFiles { chain: authority.path("no.pem"), key: authority.path("ca.pem") });
    let roots = Roots::File(authority.path("site.key"));
    let files = ClientFiles { roots, certificate, verify: Verify::Always, http2: true };
    let mistakes = client(&files).unwrap_err();
    let places: Vec<_> = mistakes.iter().map(|mistake| mistake.place).collect();
    assert_eq!(places, [ClientPlace::Roots, ClientPlace::Certificate, ClientPlace::Key]);
}

#[test]
fn a_self_signed_certificate_serves_those_who_trust_it() {
    let authority = TestAuthority::new();
    let (certificate, key) = self_signed(&["localhost".into(), "127.0.0.1".into()]).unwrap();
    authority.write("ca.pem", &certificate);
    authority.write("own.pem", &certificate);
    authority.write("own.key", &key);
    let config = served(&authority.served(&["own"], ClientAuth::None));
    for name in ["localhost", "127.0.0.1"] {
        let (client, _) = shake_hands(&authority.client(None), &config, name).unwrap();
        assert_eq!(common_name(&client), "localhost");
    }
    let later = SystemTime::now() + Duration::from_secs(91 * 24 * 60 * 60);
    let dated = DatedCertificate::read(&authority.path("own.pem"), "plugway.toml:1".into()).unwrap();
    assert_eq!(dated.validity.invalid(SystemTime::now()), None);
    assert_eq!(dated.validity.invalid(later), Some(Invalid::Expired));
}

// === Dates ===

#[test]
fn a_certificate_that_is_not_valid_is_served_unless_there_is_one_that_is() {
    let authority = TestAuthority::new();
    let dated = |file: &str, names: &[&str], from, until| {
        let mut params = params(file, names);
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
        authority.issue_by(file, &PKCS_ECDSA_P256_SHA256, params);
    };
    dated("expired", &["a.site.example", "b.other.example"], 2020, 2021);
    dated("early", &["a.site.example"], 2100, 2101);
    let config = served(&authority.served(&["expired", "early"], ClientAuth::None));
    assert_eq!(shown(&config, "a.site.example"), "expired");
    for (valid, names) in [("exact", ["a.site.example", "x.example"]), ("wild", ["*.site.example", "y.example"])] {
        dated(valid, &names, 2020, 2100);
        let config = served(&authority.served(&["expired", "early", valid], ClientAuth::None));
        assert_eq!(shown(&config, "a.site.example"), valid);
        assert_eq!(shown(&config, "b.other.example"), "expired");
    }
}

#[test]
fn an_issuer_that_has_expired_is_told_and_a_later_certificate_is_not() {
    let authority = TestAuthority::with_site();
    let mut params = params("Tests", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    // An older certificate of the same authority.
    let expired = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap().pem();
    let (site, good) = (authority.read("site.pem"), authority.read("ca.pem"));
    let doubt = |chain: &[&str]| {
        authority.write("chain.pem", &chain.concat());
        let dated = DatedCertificate::read(&authority.path("chain.pem"), "plugway.toml:1".into()).unwrap();
        (dated.doubt(SystemTime::now()), dated.validity.until)
    };
    let (doubted, until) = doubt(&[&site, &expired]);
    assert!(doubted.is_some_and(|doubted| doubted.starts_with("certificate of the issuer has expired")));
    assert_eq!(until, 1_609_459_200);
    assert_eq!(doubt(&[&site, &good, &expired]).0, None);
    // It is no issuer of the first.
    authority.issue("other", &PKCS_ECDSA_P256_SHA256, &["other.example"]);
    assert_eq!(doubt(&[&site, &authority.read("other.pem"), &expired]).0, None);
}

#[test]
fn the_servers_order_of_cipher_suites_holds() {
    let authority = TestAuthority::with_site();
    let config = served(&authority.served(&["site"], ClientAuth::None));
    for (version, expected) in [(&TLS13, "TLS_AES_256_GCM_SHA384"), (&TLS12, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")]
    {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        for _ in 0..2 {
            let (_, server) =
                shake_hands(&authority.client_of(provider.clone().into(), version), &config, "site.example").unwrap();
            assert_eq!(facts(&server).cipher, expected);
            provider.cipher_suites.reverse();
        }
    }
}

// === Files ===

#[test]
fn keys_are_read_in_their_older_forms_too() {
    let authority = TestAuthority::new();
    for (kind, label) in [(&PKCS_RSA_SHA256, "RSA PRIVATE KEY"), (&PKCS_ECDSA_P256_SHA256, "EC PRIVATE KEY")] {
        authority.issue("old", kind, &["site.example"]);
        openssl(&authority, "pkey -in old.key -traditional -out new.key");
        std::fs::rename(authority.path("new.key"), authority.path("old.key")).unwrap();
        assert!(authority.read("old.key").contains(label));
        served(&authority.served(&["old"], ClientAuth::None));
    }
}

#[test]
fn error_of_a_file_names_its_cause() {
    let authority = TestAuthority::with_site();
    let (chain, key) = (authority.read("site.pem"), authority.read("site.key"));
    authority.issue("other", &PKCS_ECDSA_P256_SHA256, &["site.example"]);
    let other = authority.read("other.pem");
    let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let old_encrypted = key.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n", 1).replace("PRIVATE", "EC PRIVATE");
    let (chain_place, key_place) = (ServerFilePlace::Certificate(0), ServerFilePlace::Key(0));
    let cases = [
        ((String::new(), key.clone()), chain_place, "no certificate: found none in `a.pem`; expected PEM"),
        ((key.clone(), key.clone()), chain_place, "holds a private key; `chain` and `key` may be swapped"),
        (("0\u{3}".into(), key.clone()), chain_place, "`openssl x509 -inform der -in a.pem`"),
        (
            (chain.replace("-----END", "END"), key.clone()),
            chain_place,
            "damaged PEM: in `a.pem` a section has no `-----END`",
        ),
        ((chain.replacen("MII", "M*I", 1), key.clone()), chain_place, "damaged PEM: in `a.pem`"),
        ((chain.replacen("MII", "AII", 1), key.clone()), chain_place, "cannot be parsed"),
        ((format!("{other}{chain}"), key.clone()), chain_place, "move it to the top"),
        ((other, key.clone()), key_place, "private key of another certificate: `a.key` doesn't match `a.pem`"),
        ((chain.clone(), String::new()), key_place, "no private key: found none in `a.key`; expected PEM"),
        ((chain.clone(), chain.clone()), key_place, "no private key: `a.key` holds a certificate"),
        ((chain.clone(), encrypted), key_place, "decrypt it by `openssl pkey -in a.key -out plain.key`"),
        ((chain.clone(), old_encrypted), key_place, "encrypted private key: `a.key`"),
        ((chain.clone(), format!("{key}{key}")), key_place, "several private keys: `a.key` has 2"),
        ((chain.clone(), key.replacen("MI", "AI", 1)), key_place, "unsupported private key: `a.key`"),
    ];
    for ((chain, key), place, what) in cases {
        authority.write("a.pem", &chain);
        authority.write("a.key", &key);
        let errors = mistakes(&authority, &authority.served(&["a"], ClientAuth::None));
        assert!(matches!(errors.as_slice(), [(at, text)] if *at == place && text.contains(what)), "{what}: {errors:?}");
        assert!(!errors[0].1.contains("\n"), "{errors:?}");
    }
}

#[test]
fn mistakes_of_a_listener_are_told_together() {
    let authority = TestAuthority::with_site();
    let errors =
        mistakes(&authority, &authority.served(&["site", "gone"], ClientAuth::Required(authority.path("site.key"))));
    let places: Vec<_> = errors.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, [ServerFilePlace::Certificate(1), ServerFilePlace::Key(1), ServerFilePlace::ClientCa]);
    assert_eq!(errors[0].1, "no such file: `gone.pem`; paths are relative to the file that names them");
    assert_eq!(mistakes(&authority, &authority.served(&[], ClientAuth::None))[0].0, ServerFilePlace::Certificate(0));
    let folder = CertificateFiles { chain: Path::new("/").into(), key: authority.path("site.key") };
    let files = ServerFiles { certificates: vec![folder], ..authority.served(&[], ClientAuth::None) };
    assert!(mistakes(&authority, &files)[0].1.starts_with("cannot read `/`: "));
}
