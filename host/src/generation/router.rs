//! The choice of the route for a request: the most specific that matches, whatever the order in the manifest.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;

use crate::context::host;
use crate::generation::ids::{Id, RouteId};
use crate::generation::query_conditions::{MetConditions, QueryCondition, QueryConditions, parameters};
use crate::protocol::path::without_parameters;

/// The conditions of a route for a request.
#[derive(Clone, Debug, Default)]
pub struct RouteMatch {
    /// The listeners of the route, by their addresses in the manifest; empty for any listener.
    pub listeners: Vec<String>,
    /// The hosts of the route; empty for any host.
    pub hosts: Vec<HostMatch>,
    /// The path of the route.
    pub path: PathMatch,
    /// The methods of the route; empty for any method.
    pub methods: Vec<http::Method>,
    /// The fields that a request must have, each with its value; `None` for any value.
    pub fields: Vec<(http::HeaderName, Option<String>)>,
    /// All of these query parameters, in their normal form, each with this value, or with any.
    pub query: Vec<(String, Option<String>)>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostMatch {
    /// Any name below a domain, at any depth: `*.example.org`, kept as `.example.org`.
    Below(String),
    /// Exactly one name.
    Exact(String),
}

#[derive(Clone, Debug, Default)]
pub enum PathMatch {
    #[default]
    Any,
    /// A path and all paths below it, on segment boundaries.
    Prefix(String),
    Regex(regex::Regex),
    Exact(String),
}

/// The routes, most specific first. Routes that name listeners come before all others. The number of a route is its index
/// in the list that the router was made from.
#[derive(Debug)]
pub struct Router {
    table: Vec<TableEntry>,
    /// Whether any route has a condition for the host; otherwise the host isn't read.
    by_host: bool,
    query: QueryConditions,
}

impl Router {
    /// Orders routes. The error names two routes that no request can distinguish.
    pub fn new(routes: Vec<RouteMatch>) -> Result<Self, (RouteId, RouteId)> {
        let (mut ranked, mut query) = (Vec::new(), QueryConditions::default());
        for (index, mut route) in routes.into_iter().enumerate() {
            let route_id = RouteId::new(index);
            let hosts = std::mem::take(&mut route.hosts);
            let hosts: Vec<_> = if hosts.is_empty() { vec![None] } else { hosts.into_iter().map(Some).collect() };
            // Shared, as a route may have thousands of hosts, and as many conditions.
            let rank = Rc::new(ConditionRank::of(&route));
            let of_query = route.query.iter().map(|(name, value)| query.add(name, value.as_deref())).collect();
            let conditions = Arc::new(RouteConditions { route, query: of_query });
            let is_tied = !conditions.route.listeners.is_empty();
            ranked.extend(hosts.into_iter().map(|host| {
                let rank = (is_tied, host.as_ref().map(HostRank::of), rank.clone());
                (rank, TableEntry { host, conditions: conditions.clone(), route_id })
            }));
        }
        ranked.sort_by(|(one, _), (other, _)| other.cmp(one));
        if let Some([(_, one), (_, other)]) = ranked.array_windows().find(|[(one, _), (other, _)]| one == other) {
            return Err((one.route_id.min(other.route_id), one.route_id.max(other.route_id)));
        }
        let table: Vec<_> = ranked.into_iter().map(|(_, entry)| entry).collect();
        Ok(Router { by_host: table.iter().any(|entry| entry.host.is_some()), table, query })
    }

    /// Returns the index of the route for a request at a listener, which is named by its address in the manifest.
    pub fn route(&self, request: &Parts, listener: &str) -> Option<RouteId> {
        self.route_of_path(request, request.uri.path(), listener)
    }

    /// Returns the index of the route for a request if it had another path.
    pub fn route_of_path(&self, request: &Parts, path: &str, listener: &str) -> Option<RouteId> {
        self.find(&self.table, request, path, listener)
    }

    /// Returns the index of the route for a request among the routes that name its listener.
    pub fn route_of_listener(&self, request: &Parts, listener: &str) -> Option<RouteId> {
        // Routes that name listeners come first.
        let tied = self.table.partition_point(|entry| !entry.conditions.route.listeners.is_empty());
        self.find(&self.table[..tied], request, request.uri.path(), listener)
    }

    fn find(&self, table: &[TableEntry], request: &Parts, path: &str, listener: &str) -> Option<RouteId> {
        let authority = || request.headers.get(http::header::HOST);
        let name = self.by_host.then(authority).flatten().map(host);
        let name = name.as_ref().map_or(&b""[..], |name| name.bytes());
        let path = without_parameters(path);
        let met = OnceCell::new();
        let met = || met.get_or_init(|| self.query.met_by(parameters(request.uri.query().unwrap_or_default())));
        let mut matching = table.iter().filter(|TableEntry { host, conditions, .. }| {
            host.as_ref().is_none_or(|host| host.matches(name))
                && conditions.route.is_for_listener(listener)
                && conditions.route.matches(request, &path)
                && conditions.query.iter().all(|condition| MetConditions::has(met(), *condition))
        });
        matching.next().map(|entry| entry.route_id)
    }
}

impl HostMatch {
    fn matches(&self, name: &[u8]) -> bool {
        match self {
            HostMatch::Exact(exact) => exact.as_bytes() == name,
            HostMatch::Below(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_bytes()),
        }
    }
}

impl RouteMatch {
    /// Whether the route serves a listener: it names the listener, or none at all.
    fn is_for_listener(&self, listener: &str) -> bool {
        self.listeners.is_empty() || self.listeners.iter().any(|address| address == listener)
    }

    /// Whether a request matches, given its path without parameters. Listeners and queries are compared elsewhere.
    fn matches(&self, request: &Parts, path: &str) -> bool {
        self.path.matches(path)
            && (self.methods.is_empty() || self.methods.contains(&request.method))
            && self.fields.iter().all(|(name, wanted)| {
                let mut lines = request.headers.get_all(name).iter();
                lines.any(|line| wanted.as_ref().is_none_or(|wanted| line.as_bytes() == wanted.as_bytes()))
            })
    }
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            PathMatch::Any => true,
            PathMatch::Exact(exact) => exact == path,
            PathMatch::Regex(regex) => regex.is_match(path),
            PathMatch::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/')),
        }
    }
}

/// A host of a route, with the route's conditions.
#[derive(Debug)]
struct TableEntry {
    /// The host; `None` for any host.
    host: Option<HostMatch>,
    conditions: Arc<RouteConditions>,
    route_id: RouteId,
}

/// The conditions of a route, those for the query among those of all routes.
#[derive(Debug)]
struct RouteConditions {
    route: RouteMatch,
    query: Vec<QueryCondition>,
}

/// The rank of a host: exact hosts before wildcards, longer before shorter.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct HostRank {
    is_exact: bool,
    length: usize,
    name: String,
}

impl HostRank {
    fn of(host: &HostMatch) -> HostRank {
        let (is_exact, name) = match host {
            HostMatch::Exact(name) => (true, name),
            HostMatch::Below(name) => (false, name),
        };
        HostRank { is_exact, length: name.len(), name: name.clone() }
    }
}

/// The rank of a route's conditions: exact paths before regexes before prefixes, then the number of further conditions.
/// The texts make the ranks of two routes equal only if they ask the same.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ConditionRank {
    path_kind: u8,
    path_length: usize,
    path: String,
    conditions: usize,
    others: String,
}

impl ConditionRank {
    fn of(route: &RouteMatch) -> ConditionRank {
        let (path_kind, path) = match &route.path {
            PathMatch::Any => (0, String::new()),
            PathMatch::Prefix(path) => (1, path.clone()),
            PathMatch::Regex(path) => (2, path.as_str().into()),
            PathMatch::Exact(path) => (3, path.clone()),
        };
        let conditions = usize::from(!route.methods.is_empty()) + route.fields.len() + route.query.len();
        let others = format!("{:?}{:?}{:?}{:?}", route.listeners, route.methods, route.fields, route.query);
        ConditionRank { path_kind, path_length: path.len(), path, conditions, others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(hosts: &[&str], path: PathMatch) -> RouteMatch {
        let host = |name: &&str| match name.strip_prefix('*') {
            Some(suffix) => HostMatch::Below(suffix.into()),
            None => HostMatch::Exact((*name).into()),
        };
        RouteMatch { hosts: hosts.iter().map(host).collect(), path, ..RouteMatch::default() }
    }

    fn taken(router: &Router, host: &str, path: &str) -> Option<usize> {
        let request = http::Request::get(path).header("host", host).body(()).unwrap();
        router.route(&request.into_parts().0, "").map(RouteId::index)
    }

    #[test]
    fn of_two_regexes_the_one_with_the_longer_text_wins() {
        let regex = |text: &str| route(&[], PathMatch::Regex(regex::Regex::new(text).unwrap()));
        let taken = |first: &str, second: &str, path| {
            taken(&Router::new(vec![regex(first), regex(second)]).unwrap(), "a", path)
        };
        assert_eq!((taken("^/a", "^/a[0-9]+$", "/a1"), taken("^/a[0-9]+$", "^/a", "/a1")), (Some(1), Some(0)));
        assert_eq!((taken("^/a.", "^/.1", "/a1"), taken("^/.1", "^/a.", "/a1")), (Some(0), Some(1)));
    }

    #[test]
    fn the_most_specific_route_wins() {
        let prefix = |path: &str| PathMatch::Prefix(path.into());
        let router = Router::new(vec![
            route(&[], PathMatch::Any),
            route(&["*.example.org"], PathMatch::Any),
            route(&["www.example.org"], PathMatch::Any),
            route(&["www.example.org"], prefix("/api")),
            route(&["www.example.org"], PathMatch::Exact("/api/x".into())),
            route(&["www.example.org"], PathMatch::Regex(regex::Regex::new("^/api/[0-9]+$").unwrap())),
        ])
        .unwrap();
        let cases = [
            ("example.org", "/", Some(0)),
            ("a.b.example.org", "/", Some(1)),
            ("WWW.example.org:8080", "/", Some(2)),
            ("www.example.org", "/api", Some(3)),
            ("www.example.org", "/api/y", Some(3)),
            ("www.example.org", "/apixy", Some(2)),
            ("www.example.org", "/api/x", Some(4)),
            ("www.example.org", "/api/12", Some(5)),
        ];
        for (host, path, wanted) in cases {
            assert_eq!(taken(&router, host, path), wanted, "{host}{path}");
        }
    }

    #[test]
    fn routes_that_name_a_listener_come_first_there() {
        let tied = |listeners: &[&str], path| RouteMatch {
            listeners: listeners.iter().map(|address| (*address).into()).collect(),
            ..route(&[], path)
        };
        let router = Router::new(vec![
            route(&["a"], PathMatch::Exact("/x".into())),
            tied(&["one", "two"], PathMatch::Any),
            tied(&["two"], PathMatch::Prefix("/x".into())),
            route(&[], PathMatch::Any),
        ])
        .unwrap();
        let request = |path| http::Request::get(path).header("host", "a").body(()).unwrap().into_parts().0;
        let cases = [("one", "/x", 1), ("two", "/x", 2), ("two", "/y", 1), ("three", "/x", 0), ("three", "/y", 3)];
        for (listener, path, wanted) in cases {
            assert_eq!(router.route(&request(path), listener).map(RouteId::index), Some(wanted), "{listener}{path}");
        }
        assert_eq!(router.route_of_listener(&request("/x"), "three"), None);
        assert_eq!(router.route_of_listener(&request("/x"), "one").map(RouteId::index), Some(1));
    }

    #[test]
    fn parameters_match_however_they_are_escaped() {
        let query = vec![("admin".into(), Some("1".into())), ("%C3%A9".into(), None)];
        let router = Router::new(vec![RouteMatch { query, ..route(&[], PathMatch::Any) }]).unwrap();
        for (target, is_matched) in [
            ("/?admin=1&%C3%A9", true),
            ("/?%61dmin=%31&%c3%a9=x", true),
            ("/?a%64min=1;2&%c3%a9", false),
            ("/?admin=%2531&%c3%a9", false),
            ("/?Admin=1&%c3%a9", false),
        ] {
            assert_eq!(taken(&router, "a", target).is_some(), is_matched, "{target}");
        }
    }

    #[test]
    fn routes_that_ask_the_same_are_refused() {
        let same = || route(&["example.org"], PathMatch::Prefix("/a".into()));
        assert_eq!(
            Router::new(vec![same(), route(&[], PathMatch::Any), same()]).unwrap_err(),
            (RouteId::new(0), RouteId::new(2))
        );
    }
}
