//! Against a real name server.

use std::time::Instant;

use super::name_server::{Failing, NameServer};
use super::*;

/// Runs as a worker does: from a local task.
fn run<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()).unwrap();
    runtime.block_on(async { tokio::task::spawn_local(future).await.unwrap() })
}

fn resolver_for(server: &NameServer) -> Resolver {
    Resolver::new(&[server.address.parse().unwrap()]).unwrap()
}

fn addresses(server: &NameServer, host: &'static str) -> Result<DnsAnswer<IpAddr>, LookupError> {
    let resolver = resolver_for(server);
    run(async move { resolver.addresses(host).await })
}

fn services(server: &NameServer, name: &'static str) -> Result<DnsAnswer<Service>, LookupError> {
    let resolver = resolver_for(server);
    run(async move { resolver.services(name).await })
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn service(priority: u16, weight: u16, port: u16, address: &str) -> Service {
    Service { priority, weight, port, address: address.parse().unwrap(), addresses: 1 }
}

fn said<T: std::fmt::Debug>(answer: Result<DnsAnswer<T>, LookupError>) -> String {
    answer.unwrap_err().to_string()
}

#[test]
fn addresses_of_both_kinds_are_found_sorted() {
    let server = NameServer::start();
    server.set("app.test", &ips(&["10.0.0.9", "fd00::1", "10.0.0.1", "10.0.0.9"]), 30);
    let answer = addresses(&server, "app.test").unwrap();
    assert_eq!(answer.records, ips(&["10.0.0.1", "10.0.0.9", "fd00::1"]));
    assert_eq!(answer.lifetime, Duration::from_secs(30));
}

#[test]
fn addresses_of_one_kind_wait_little_for_the_other_and_no_server_needs_edns() {
    for failing in [Failing::SilentAboutIpv6, Failing::Edns] {
        let server = NameServer::start();
        server.set("app.test", &ips(&["10.0.0.1"]), 300);
        server.fail(failing);
        let began = Instant::now();
        let answer = addresses(&server, "app.test").unwrap();
        assert_eq!(answer.records, ips(&["10.0.0.1"]), "{failing:?}");
        assert!(began.elapsed() < 2 * TIMEOUT, "{failing:?}");
    }
}

#[test]
fn names_are_absolute_and_may_have_capitals_and_underscores() {
    let server = NameServer::start();
    server.set("my_app", &ips(&["10.0.0.1"]), 30);
    for name in ["my_app", "MY_APP", "my_app."] {
        assert_eq!(addresses(&server, name).unwrap().records, ips(&["10.0.0.1"]), "{name}");
    }
}

#[test]
fn an_answer_is_asked_for_each_time() {
    let server = NameServer::start();
    server.set("app.test", &ips(&["10.0.0.1"]), 300);
    let resolver = resolver_for(&server);
    run(async move {
        assert_eq!(resolver.addresses("app.test").await.unwrap().records, ips(&["10.0.0.1"]));
        let queries = server.queries();
        server.set("app.test", &ips(&["10.0.0.2"]), 300);
        assert_eq!(resolver.addresses("app.test").await.unwrap().records, ips(&["10.0.0.2"]));
        assert!(server.queries() > queries);
        server.set("app.test", &[], 300);
        assert!(matches!(resolver.addresses("app.test").await, Err(LookupError::NoSuchName(_))));
    });
}

#[test]
fn a_lifetime_is_the_least_of_all_records_within_bounds() {
    let server = NameServer::start();
    for (seconds, lifetime) in [(0, MIN_TTL), (7, Duration::from_secs(7)), (86_400, MAX_TTL)] {
        server.set("app.test", &ips(&["10.0.0.1"]), seconds);
        assert_eq!(addresses(&server, "app.test").unwrap().lifetime, lifetime, "{seconds}");
    }
    server.set_alias("www.test", "app.test", 5);
    let answer = addresses(&server, "www.test").unwrap();
    assert_eq!((answer.records, answer.lifetime), (ips(&["10.0.0.1"]), Duration::from_secs(5)));
}

#[test]
fn a_literal_is_its_own_address() {
    let server = NameServer::start();
    for literal in ["192.0.2.1", "::1"] {
        let answer = addresses(&server, literal).unwrap();
        assert_eq!((answer.records, answer.lifetime), (ips(&[literal]), MAX_TTL));
    }
    assert_eq!(server.queries(), 0);
}

#[test]
fn texts_that_are_no_names_are_errors() {
    let server = NameServer::start();
    for name in ["", ".", "a..b", "with space.test"] {
        let error = addresses(&server, name).unwrap_err();
        assert!(matches!(error, LookupError::BadName(_)) && error.is_about_name(), "{name:?}: {error}");
    }
    assert_eq!(server.queries(), 0);
}

#[test]
fn an_unknown_name_is_told() {
    let server = NameServer::start();
    assert_eq!(said(addresses(&server, "app.test")), "there is no name `app.test` (NXDOMAIN)");
    assert_eq!(said(services(&server, "_http._tcp.app.test")), "there is no name `_http._tcp.app.test` (NXDOMAIN)");
    server.set("app.test", &ips(&["10.0.0.1"]), 30);
    server.fail(Failing::NoSuchName);
    assert!(addresses(&server, "app.test").unwrap_err().is_certain());
}

#[test]
fn a_name_without_addresses_is_told() {
    let server = NameServer::start();
    server.set_services("app.test", &[(0, 0, 80, "b.test")], 30);
    assert_eq!(said(addresses(&server, "app.test")), "the name `app.test` has no addresses (A or AAAA)");
    server.set("b.test", &ips(&["10.0.0.1"]), 30);
    assert_eq!(said(services(&server, "b.test")), "the name `b.test` offers no service (SRV)");
}

#[test]
fn a_failure_of_the_server_is_told_after_a_second_attempt() {
    let server = NameServer::start();
    server.set("app.test", &ips(&["10.0.0.1"]), 30);
    server.fail(Failing::ServerFailure);
    let error = addresses(&server, "app.test").unwrap_err();
    assert!(matches!(error, LookupError::Failed { .. }) && !error.is_certain(), "{error:?}");
    assert_eq!(error.to_string(), "cannot look up `app.test`: DNS error: error response: Server Failure");
    // Two for each kind of address; a slow machine sends again.
    assert!(server.queries() >= 4, "{}", server.queries());
    server.fail(Failing::Never);
    assert_eq!(addresses(&server, "app.test").unwrap().records, ips(&["10.0.0.1"]));
}

#[test]
fn silence_is_told() {
    let server = NameServer::start();
    server.fail(Failing::Silent);
    let error = addresses(&server, "app.test").unwrap_err();
    assert_eq!(error.to_string(), "no name server answered for `app.test`");
    assert!(!error.is_certain());
}

#[test]
fn another_server_is_asked_when_one_fails() {
    let (broken, silent, sound) = (NameServer::start(), NameServer::start(), NameServer::start());
    broken.fail(Failing::ServerFailure);
    silent.fail(Failing::Silent);
    sound.set("app.test", &ips(&["10.0.0.1"]), 30);
    let servers = [&broken, &silent, &sound].map(|server| server.address.parse().unwrap());
    let resolver = Resolver::new(&servers).unwrap();
    let answer = run(async move { resolver.addresses("app.test").await.unwrap() });
    assert_eq!(answer.records, ips(&["10.0.0.1"]));
    assert!(broken.queries() > 0 && silent.queries() > 0);
}

#[test]
fn a_long_answer_comes_by_tcp_and_is_cut_at_a_bound() {
    let server = NameServer::start();
    let many = |count: u32| (0..count).map(|at| IpAddr::from((0x0a00_0000 + at).to_be_bytes())).collect::<Vec<_>>();
    server.set("app.test", &many(500), 30);
    assert_eq!(addresses(&server, "app.test").unwrap().records, many(500));
    server.set("app.test", &many(2000), 30);
    assert_eq!(addresses(&server, "app.test").unwrap().records, many(MAX_RECORDS as u32));
}

#[test]
fn services_come_with_the_addresses_of_their_targets() {
    let server = NameServer::start();
    server.set("a.test", &ips(&["10.0.0.1", "fd00::1"]), 60);
    server.set("b.test", &ips(&["10.0.0.2"]), 20);
    let records = [(10, 5, 8080, "b.test"), (0, 7, 80, "a.test"), (0, 3, 81, "a.test")];
    server.set_services("_http._tcp.app.test", &records, 40);
    let answer = services(&server, "_http._tcp.app.test").unwrap();
    let of_two = |service| Service { addresses: 2, ..service };
    let expected = [
        of_two(service(0, 3, 81, "10.0.0.1")),
        of_two(service(0, 3, 81, "fd00::1")),
        of_two(service(0, 7, 80, "10.0.0.1")),
        of_two(service(0, 7, 80, "fd00::1")),
        service(10, 5, 8080, "10.0.0.2"),
    ];
    assert_eq!(answer.records, expected);
    assert_eq!(answer.lifetime, Duration::from_secs(20));
}

#[test]
fn targets_without_addresses_are_left_out() {
    let server = NameServer::start();
    server.set("a.test", &ips(&["10.0.0.1"]), 60);
    let targets = (0..100).map(|at| format!("t{at}.test")).collect::<Vec<_>>();
    let mut records = targets.iter().map(|target| (0, 0, 80, &**target)).collect::<Vec<_>>();
    records.push((1, 0, 80, "a.test"));
    server.set_services("_http._tcp.app.test", &records, 60);
    let answer = services(&server, "_http._tcp.app.test").unwrap();
    assert_eq!(answer.records, [service(1, 0, 80, "10.0.0.1")]);
    assert_eq!(answer.missing.len(), 100);
    assert_eq!(answer.missing[7], "there is no name `t15.test` (NXDOMAIN)");
    server.set("a.test", &[], 60);
    assert!(matches!(services(&server, "_http._tcp.app.test"), Err(LookupError::NoSuchName(_))));
}

#[test]
fn a_service_that_is_said_not_to_be_there_is_none() {
    let server = NameServer::start();
    server.set_services("_http._tcp.app.test", &[(0, 0, 0, ".")], 60);
    assert_eq!(
        said(services(&server, "_http._tcp.app.test")),
        "the name `_http._tcp.app.test` offers no service (SRV)"
    );
}

#[test]
fn an_answer_that_lacks_a_part_by_failure_is_short_lived() {
    let answer = |error| DnsAnswer::new([0], MAX_TTL.min(lifetime_without(&error))).lifetime;
    assert_eq!(answer(LookupError::NoAnswer("a".into())), INCOMPLETE);
    assert_eq!(answer(LookupError::NoAddresses("a".into())), MAX_TTL);
}

/// A resolver as the system's configuration would make it.
fn of_system(address: &str, hosts: &str) -> Resolver {
    let domains = ["one.test.", "two.test."].map(|name| Name::from_ascii(name).unwrap()).to_vec();
    let config = ResolverConfig::from_parts(None, domains, vec![server(address.parse().unwrap())]);
    let mut options = ResolverOpts::default();
    options.ndots = 2;
    let mut written = Hosts::default();
    written.read_hosts_conf(hosts.as_bytes()).unwrap();
    Resolver::configured(config, options, written).unwrap()
}

#[test]
fn names_with_few_dots_are_searched_for() {
    let server = NameServer::start();
    server.set("app.test", &ips(&["10.0.0.1"]), 30);
    server.set("app.test.two.test", &ips(&["10.0.0.2"]), 30);
    server.set("a.b.c", &ips(&["10.0.0.3"]), 30);
    server.set("a.b.c.one.test", &ips(&["10.0.0.4"]), 30);
    let resolver = of_system(&server.address, "");
    run(async move {
        for (name, address) in [("app.test", "10.0.0.2"), ("app.test.", "10.0.0.1"), ("a.b.c", "10.0.0.3")] {
            assert_eq!(resolver.addresses(name).await.unwrap().records, ips(&[address]), "{name}");
        }
        server.set("x.y.z.two.test", &ips(&["10.0.0.5"]), 30);
        // Seen before: NXDOMAIN, where getaddrinfo finds the address.
        assert_eq!(resolver.addresses("x.y.z").await.unwrap().records, ips(&["10.0.0.5"]));
        assert!(resolver.addresses("x.y.z.").await.is_err());
        server.set("app.test.two.test", &[], 30);
        assert_eq!(resolver.addresses("app.test").await.unwrap().records, ips(&["10.0.0.1"]));
    });
}

#[test]
fn the_file_of_hosts_goes_before_name_servers() {
    let server = NameServer::start();
    server.set("app.one.test", &ips(&["10.0.0.1"]), 30);
    server.set_services("_http._tcp.app.test", &[(0, 0, 80, "app")], 30);
    let resolver = of_system(&server.address, "192.0.2.7 app\n");
    run(async move {
        assert_eq!(resolver.addresses("app").await.unwrap(), DnsAnswer::new(ips(&["192.0.2.7"]), MAX_TTL));
        assert_eq!(server.queries(), 0);
        let records = resolver.services("_http._tcp.app.test").await.unwrap().records;
        assert_eq!(records, [service(0, 0, 80, "192.0.2.7")]);
    });
}

#[test]
fn an_ordinary_runtime_of_one_thread_does() {
    let server = NameServer::start();
    server.set("a.test", &ips(&["10.0.0.1"]), 60);
    server.set_services("_http._tcp.app.test", &[(0, 0, 80, "a.test")], 60);
    let resolver = resolver_for(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async { resolver.services("_http._tcp.app.test").await.unwrap() });
    assert_eq!(answer.records, [service(0, 0, 80, "10.0.0.1")]);
}
