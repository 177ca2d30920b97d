//! A running configuration, which is immutable and shared by all workers.

pub mod connection_counts;
pub mod error_pages;
pub mod fetch_places;
pub mod ids;
pub mod listener;
pub mod listener_rules;
pub mod maintenance;
mod query_conditions;
pub mod router;
pub mod target;
pub mod uri_rules;
pub mod worker_state;

use crate::body::buffer_space::{BufferLimits, RouteMade};
use crate::generation::error_pages::ErrorPages;
use crate::generation::ids::{ById, PluginId, RouteId, UpstreamId};
use crate::generation::listener::Listener;
use crate::generation::maintenance::{Maintenance, MaintenanceSwitch};
use crate::generation::router::Router;
use crate::generation::target::Target;
use crate::generation::uri_rules::UriRules;
use crate::plugin::configured::ConfiguredPlugin;
use crate::plugin::tenancy::Tenancy;
use crate::shared_state::SharedLimits;
use crate::shared_state::fleet::FleetClient;
use crate::store::memory_budget::ArrivingBytes;
use crate::store::{Store, StoreLimits};
use crate::system::holder_counts::Holder;
use crate::telemetry::access_log::AccessLog;
use crate::tls::validity::DatedCertificate;
use crate::upstream::ConnectionSettings;
use crate::upstream::connection_limit::ConnectionLimit;
use crate::upstream::discovery::UpstreamSpec;
use crate::upstream::endpoint::RequestLimit;
use crate::upstream::endpoint_set::EndpointSet;
use crate::upstream::retry::{self};
use crate::upstream::status_codes::StatusCodes;
use http::{Method, StatusCode};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The name that metrics and logs use for requests that match no route.
pub const UNROUTED: &str = "-";

/// A running configuration: everything that decides about a request.
pub struct Generation {
    pub router: Router,
    /// The routes, by their index.
    pub routes: ById<RouteId, Route>,
    pub upstreams: ById<UpstreamId, Upstream>,
    pub upstream_ids: HashMap<Arc<str>, UpstreamId>,
    pub bindings: ById<PluginId, Arc<ConfiguredPlugin>>,
    /// The upstreams of the destinations of each plugin's own requests.
    pub callout_targets: ById<PluginId, Box<[UpstreamId]>>,
    /// The listeners, by their addresses in the manifest.
    pub listeners: HashMap<Arc<str>, Arc<Listener>>,
    pub error_pages: ErrorPages,
    /// The files that switch the maintenance of routes on.
    pub maintenance: Vec<Arc<MaintenanceSwitch>>,
    /// The name servers; those of the system if the list is empty.
    pub name_servers: Vec<SocketAddr>,
    /// The store of the responses of all routes, which outlives the generation.
    pub store: Arc<Store>,
    pub store_limits: StoreLimits,
    /// The limits of the state that the instances of each plugin share.
    pub shared_limits: SharedLimits,
    /// The server that has the state of plugins; `None` if this process has it.
    pub fleet: Option<Arc<FleetClient>>,
    /// The limits of bodies that wait for a slow peer.
    pub buffer_limits: BufferLimits,
    /// The access log; `None` if it is off.
    pub access_log: Option<AccessLog>,
    /// The places of the plugins' instances.
    pub tenancy: Tenancy,
    /// The certificates that Plugway presents to clients and endpoints, by their files.
    pub certificates: Vec<DatedCertificate>,
}

/// A route: the target of requests that match, and the settings for them.
pub struct Route {
    pub name: Arc<str>,
    pub target: Target,
    /// The rules for the request target that is forwarded.
    pub uri: UriRules,
    /// The text that distinguishes the route's stored responses from those of other routes.
    pub cache_scope: Arc<str>,
    /// The plugins, outermost first.
    pub chain: Vec<PluginId>,
    /// Whether TRACE requests are forwarded, because the route names the method.
    pub forwards_trace: bool,
    /// The longest content of a request, in bytes.
    pub max_body: u64,
    /// The maximum duration of an exchange; `None` for no limit.
    pub timeout: Option<Duration>,
    /// The pages of the route, which take precedence over those of the manifest.
    pub error_pages: ErrorPages,
    /// The statuses of the upstream's responses in whose place clients get an error page.
    pub intercept: StatusCodes,
    /// The maintenance of the route; `None` if no file switches it on.
    pub maintenance: Option<Maintenance>,
    /// The bytes of a response that may wait for a slow client; 0 if the endpoint waits for it.
    pub response_buffer: u64,
    /// The requests that are received before an endpoint is asked; `None` for none.
    pub request_buffer: Option<RequestBuffer>,
    /// The bytes of the route's responses that are being stored.
    pub arriving: ArrivingResponses,
    /// The bytes of the route's responses that were made here.
    pub made: RouteMade,
}

/// The bytes of a route's responses that are being stored while they arrive.
#[derive(Debug, Default)]
pub struct ArrivingResponses {
    pub memory: ArrivingBytes,
    pub disk: ArrivingBytes,
}

/// The requests that are received before an endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBuffer {
    /// The longest content, in bytes.
    pub max: u64,
    pub which: BufferedContent,
}

/// The content of requests that is received before an endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferedContent {
    /// Content of a known length, which is received in memory.
    KnownLength,
    /// Content of any length. The bytes that the memory has no room for go into a file.
    AnyLength,
}

/// A named set of endpoints.
pub struct Upstream {
    pub name: Arc<str>,
    /// The endpoints at the moment; they outlive the generation.
    pub live: Arc<EndpointSet>,
    /// The configured endpoints, and how they are monitored.
    pub plan: UpstreamSpec,
    /// The balancer; `None` if there is a single endpoint.
    pub balancer: Option<PluginId>,
    pub rules: ConnectionSettings,
    pub retry: retry::RetryPolicy,
    /// Whether some endpoint may speak HTTP/2.
    pub may_speak_http2: bool,
    pub connection_limit: ConnectionLimit,
    /// The limit of requests at a time, over all workers.
    pub request_limit: RequestLimit,
}

impl Upstream {
    /// Whether a request of a client waits or is rejected because the client has its part of a limit, while others have room.
    pub fn holds_back(&self, client: Holder) -> bool {
        self.connection_limit.holds_back(client) || self.request_limit.holds_back(client)
    }
}

impl Generation {
    /// Returns the page for an error of a route, or of a request without a route; `None` if the manifest has none.
    pub fn error_page(&self, route: Option<RouteId>, status: StatusCode) -> Option<&str> {
        let of_route = route.and_then(|route_id| self.routes[route_id].error_pages.get(status));
        of_route.or_else(|| self.error_pages.get(status))
    }

    /// Gives the store of responses, and the state that each plugin shares, the limits of this generation. Connects to the
    /// server that has the state of plugins, if there is one. Connections end soon whose listener has other rules in this
    /// generation, or is only in the former one. Returns whether there may be connections whose clients were not verified as
    /// they have to be from now on.
    pub fn take_into_service(&self, former: Option<&Generation>) -> bool {
        let is_gone = |listener: &&Arc<Listener>| !self.listeners.contains_key(&listener.address);
        let gone = former.iter().flat_map(|former| former.listeners.values()).filter(is_gone);
        gone.for_each(|listener| listener.take_out_of_service());
        let has_unverified = self.listeners.values().fold(false, |has, listener| listener.take_into_service() | has);
        self.store.resize(&self.store_limits);
        for state in self.bindings.iter().filter_map(|plugin| plugin.shared()) {
            state.local.resize(self.shared_limits);
        }
        self.fleet.iter().for_each(|fleet| fleet.start());
        has_unverified
    }
}

impl Upstream {
    /// Returns how many bytes of a request's content are kept for another attempt.
    pub fn replayed_bytes(&self, method: &Method) -> usize {
        // An endpoint that speaks HTTP/2 may say that it has not read a request, which is then repeated whatever its
        // method.
        let is_kept = self.may_speak_http2 || self.retry.may_repeat(method);
        if is_kept { self.retry.buffer } else { 0 }
    }

    /// Whether a response with this status counts as a success of its endpoint, once it has arrived to its end.
    pub fn is_good(&self, status: StatusCode) -> bool {
        let outliers = self.plan.health.outliers.as_ref();
        !outliers.is_some_and(|outliers| outliers.statuses.contains(status))
    }
}
