//! The order of routes in the manifest never matters: each line is a route, the last one a request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plugway_fuzz::generation::ids::{Id, RouteId};
use plugway_fuzz::generation::router::{HostMatch, PathMatch, RouteMatch, Router};

/// `host path method`, each of which may be `-` for any.
fn route(line: &str) -> Option<RouteMatch> {
    let mut words = line.split(' ');
    let (host, path) = (words.next()?, words.next()?);
    let mut route = RouteMatch::default();
    match host.strip_prefix('*') {
        _ if host == "-" => {}
        Some(below) => route.hosts.push(HostMatch::Below(below.into())),
        None => route.hosts.push(HostMatch::Exact(host.into())),
    }
    route.path = match path.split_at_checked(1)? {
        ("-", "") => PathMatch::Any,
        ("=", exact) => PathMatch::Exact(exact.into()),
        ("~", pattern) => PathMatch::Regex(regex::Regex::new(pattern).ok()?),
        _ => PathMatch::Prefix(path.into()),
    };
    if let Some(method) = words.next() {
        route.methods.push(http::Method::from_bytes(method.as_bytes()).ok()?);
    }
    Some(route)
}

fuzz_target!(|text: &str| {
    let lines: Vec<&str> = text.lines().take(12).collect();
    let Some((last, routes)) = lines.split_last() else { return };
    let Some(routes) = routes.iter().map(|line| route(line)).collect::<Option<Vec<RouteMatch>>>() else { return };
    let Some((host, target)) = last.split_once(' ') else { return };
    let Ok(request) = http::Request::get(target).header("host", host).body(()) else { return };
    let request = request.into_parts().0;
    let reversed: Vec<RouteMatch> = routes.iter().rev().cloned().collect();
    match (Router::new(routes.clone()), Router::new(reversed)) {
        (Ok(one), Ok(other)) => {
            let in_order = other.route(&request, "").map(|route_id| RouteId::new(routes.len() - 1 - route_id.index()));
            assert_eq!(one.route(&request, ""), in_order);
        }
        (Err(_), Err(_)) => {}
        (one, other) => panic!("{one:?} {other:?}"),
    }
});
