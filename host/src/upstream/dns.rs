//! Looks up endpoints by name: the addresses of a host (A, AAAA), the targets of a service (SRV, RFC 2782).
//!
//! Nothing is kept here: an answer says how long it may be, and who asked asks again. A [`Resolver`] belongs to the
//! runtime it is first used in, as its connections to name servers do. All futures may be dropped at any time.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use tokio::task::JoinSet;

use super::endpoint_set::MAX_ENDPOINTS;
use crate::system::files::FileState;
use crate::system::supervise::{Task, supervised};

/// A client of name servers.
#[derive(Clone)]
pub struct Resolver {
    /// One resolver per name server, because hickory treats an error of one of several as the answer of all.
    servers: Arc<[TokioResolver]>,
    /// The system's hosts file.
    hosts: Arc<Hosts>,
    /// A name with fewer dots is looked for in the domains of `search` first (resolv.conf(5)).
    dots: usize,
    search: Arc<[Name]>,
}

/// The resolver of an upstream's names, which is made anew when the system's files change.
pub struct CurrentResolver {
    /// The name servers that the manifest lists; empty for those of the system.
    servers: Vec<SocketAddr>,
    made: RefCell<Option<(SystemFiles, Resolver)>>,
}

/// The state of the system's files by which names are looked up. Files that are in an equal state have not changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemFiles([Option<FileState>; 2]);

/// The answer for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsAnswer<T> {
    /// The records, sorted and without duplicates. Never empty.
    pub records: Vec<T>,
    /// The errors of the targets that could not be looked up, of a service.
    pub missing: Vec<String>,
    /// The time for which the answer may be kept.
    pub lifetime: Duration,
    /// The number of records beyond the maximum, which are left out.
    pub left_out: usize,
}

/// A target of an SRV record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// The priority. Targets of the lowest priority are used first.
    pub priority: u16,
    /// The weight among targets of the same priority.
    pub weight: u16,
    pub port: u16,
    pub address: IpAddr,
    /// The number of addresses of the target, which share its weight.
    pub addresses: usize,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum LookupError {
    #[error("cannot use the name servers of the system (/etc/resolv.conf): {0}")]
    System(NetError),
    #[error("`{0}` is not a name that can be looked up")]
    BadName(String),
    #[error("there is no name `{0}` (NXDOMAIN)")]
    NoSuchName(String),
    #[error("the name `{0}` has no addresses (A or AAAA)")]
    NoAddresses(String),
    #[error("the name `{0}` offers no service (SRV)")]
    NoServices(String),
    #[error("no name server answered for `{0}`")]
    NoAnswer(String),
    #[error("cannot look up `{name}`: {cause}")]
    Failed { name: String, cause: NetError },
}

// === Resolver ===

impl Resolver {
    /// Returns a resolver that asks these servers in turn, or those of the system if the list is empty.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, LookupError> {
        if servers.is_empty() {
            let (config, options) = system_configuration().map_err(LookupError::System)?;
            return Self::configured(config, options, Hosts::from_system().unwrap_or_default());
        }
        let servers = servers.iter().map(|address| server(*address)).collect();
        // Without EDNS, which some name servers reject (RFC 6891 §7), as the system's own resolver asks. A long answer comes
        // by TCP.
        let mut options = ResolverOpts::default();
        options.edns0 = false;
        Self::configured(ResolverConfig::from_name_servers(servers), options, Hosts::default())
    }

    fn configured(config: ResolverConfig, mut options: ResolverOpts, hosts: Hosts) -> Result<Self, LookupError> {
        options.timeout = TIMEOUT;
        // Attempts and hosts are our own, and who asks keeps the answers.
        options.attempts = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = 0;
        let (domain, mut search, servers) = config.into_parts();
        if search.is_empty() {
            search.extend(domain);
        }
        let dots = options.ndots;
        let servers = servers.into_iter().map(|server| new_resolver(server, options.clone())).collect::<Result<_, _>>();
        let servers = servers.map_err(LookupError::System)?;
        Ok(Self { servers, hosts: Arc::new(hosts), dots, search: search.into() })
    }

    /// Returns all addresses of a host, IPv4 and IPv6. If only one kind can be resolved, returns that kind.
    pub async fn addresses(&self, host: &str) -> Result<DnsAnswer<IpAddr>, LookupError> {
        if let Ok(address) = host.parse() {
            return Ok(DnsAnswer::new([address], MAX_TTL));
        }
        self.search(host, async |name| self.addresses_of(name).await).await
    }

    /// Returns the targets of a service name such as `_http._tcp.app.internal`, each with its addresses. Targets whose
    /// addresses can't be resolved are left out, unless no target's can.
    pub async fn services(&self, name: &str) -> Result<DnsAnswer<Service>, LookupError> {
        self.search(name, async |name| self.services_of(name).await).await
    }

    /// Tries the names that a text may mean, until one exists.
    async fn search<T>(
        &self,
        text: &str,
        look_up: impl AsyncFn(&Name) -> Result<DnsAnswer<T>, LookupError>,
    ) -> Result<DnsAnswer<T>, LookupError> {
        let names = self.names(text)?;
        let tries = async {
            let mut error = LookupError::NoSuchName(text.into());
            for name in names {
                match look_up(&name).await {
                    // They won't answer for the next name either.
                    Err(silence @ LookupError::NoAnswer(_)) => return Err(silence),
                    Err(next) => error = error.or(next),
                    answer => return answer,
                }
            }
            Err(error)
        };
        tokio::time::timeout(LIMIT, tries).await.unwrap_or_else(|_| Err(LookupError::NoAnswer(text.into())))
    }

    /// The names that a text may mean, the likeliest first.
    fn names(&self, text: &str) -> Result<Vec<Name>, LookupError> {
        let bad = || LookupError::BadName(text.into());
        let written = Name::from_str_relaxed(text).map_err(|_| bad())?;
        let labels = usize::from(written.num_labels());
        let mut name = written.clone();
        name.set_fqdn(true);
        if name.is_root() {
            return Err(bad());
        }
        if written.is_fqdn() || !self.in_hosts(&name).is_empty() {
            return Ok(vec![name]);
        }
        let mut names: Vec<Name> =
            self.search.iter().filter_map(|domain| written.clone().append_domain(domain).ok()).collect();
        // Enough dots only mean that the name itself is asked for first (resolv.conf(5)).
        names.insert(if labels > self.dots { 0 } else { names.len() }, name);
        Ok(names)
    }

    async fn addresses_of(&self, name: &Name) -> Result<DnsAnswer<IpAddr>, LookupError> {
        let written = self.in_hosts(name);
        if !written.is_empty() {
            return Ok(DnsAnswer::new(written, MAX_TTL));
        }
        let ipv4 = self.ask(name, RecordType::A, RData::ip_addr);
        let ipv6 = self.ask(name, RecordType::AAAA, RData::ip_addr);
        match both(ipv4, ipv6, || LookupError::NoAnswer(text(name))).await {
            (Ok(ipv4), Ok(ipv6)) => {
                Ok(DnsAnswer::new(ipv4.records.into_iter().chain(ipv6.records), ipv4.lifetime.min(ipv6.lifetime)))
            }
            (Ok(known), Err(error)) | (Err(error), Ok(known)) => {
                Ok(DnsAnswer::new(known.records, known.lifetime.min(lifetime_without(&error))))
            }
            (Err(ipv4), Err(ipv6)) => Err(ipv4.or(ipv6)),
        }
    }

    fn in_hosts(&self, name: &Name) -> Vec<IpAddr> {
        let of_kind = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let lines = [RecordType::A, RecordType::AAAA].into_iter().filter_map(of_kind);
        lines
            .flat_map(|line| line.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>())
            .collect()
    }

    async fn services_of(&self, name: &Name) -> Result<DnsAnswer<Service>, LookupError> {
        let mut targets = self.ask(name, RecordType::SRV, target).await?;
        targets.records.sort_by_key(|target| target.priority);
        let mut left_out = targets.records.len().saturating_sub(MAX_RECORDS);
        targets.records.truncate(MAX_RECORDS);
        let hosts = self.addresses_of_each(targets.records.iter().map(|target| target.target.clone()).collect()).await;
        // One that isn't in `hosts` panicked.
        let lost = Err(LookupError::NoAnswer(text(name)));
        let mut lifetime = targets.lifetime;
        let mut records = Vec::new();
        let mut missing = LookupError::NoServices(text(name));
        let mut failed = BTreeMap::new();
        for SRV { priority, weight, port, target, .. } in targets.records {
            match hosts.get(&target).unwrap_or(&lost) {
                Ok(addresses) => {
                    lifetime = lifetime.min(addresses.lifetime);
                    let room = MAX_RECORDS - records.len();
                    let addresses = &addresses.records;
                    left_out += addresses.len().saturating_sub(room);
                    let service = |address: &IpAddr| {
                        let (address, addresses) = (*address, addresses.len());
                        Service { priority, weight, port, address, addresses }
                    };
                    records.extend(addresses.iter().map(service).take(room));
                }
                Err(error) => {
                    lifetime = lifetime.min(lifetime_without(error));
                    missing = missing.or(error.clone());
                    failed.insert(target, error.to_string());
                }
            }
        }
        if records.is_empty() {
            return Err(missing);
        }
        Ok(DnsAnswer { missing: failed.into_values().collect(), left_out, ..DnsAnswer::new(records, lifetime) })
    }

    async fn addresses_of_each(&self, hosts: BTreeSet<Name>) -> BTreeMap<Name, Result<DnsAnswer<IpAddr>, LookupError>> {
        let mut records = BTreeMap::new();
        let mut lookups = JoinSet::new();
        for host in hosts {
            if lookups.len() == AT_ONCE {
                records.extend(lookups.join_next().await.into_iter().flatten().flatten());
            }
            let resolver = self.clone();
            lookups.spawn(supervised(Task::Lookup, async move {
                let addresses = resolver.addresses_of(&host).await;
                (host, addresses)
            }));
        }
        while let Some(lookup) = lookups.join_next().await {
            records.extend(lookup.into_iter().flatten());
        }
        records
    }

    /// Asks the servers in turn, until one of them knows the name or denies that it exists.
    async fn ask<T>(
        &self,
        name: &Name,
        kind: RecordType,
        pick: impl Fn(&RData) -> Option<T>,
    ) -> Result<DnsAnswer<T>, LookupError> {
        let mut error = LookupError::NoAnswer(text(name));
        for server in std::iter::repeat_n(&self.servers, ATTEMPTS).flat_map(|servers| servers.iter()) {
            match server.lookup(name.clone(), kind).await {
                Ok(answer) => {
                    let records: Vec<T> = answer.answers().iter().filter_map(|record| pick(&record.data)).collect();
                    if records.is_empty() {
                        return Err(LookupError::nothing(name, kind));
                    }
                    // Aliases (CNAME) are among the records, and count.
                    let seconds = answer.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
                    let lifetime = Duration::from_secs(seconds.into());
                    return Ok(DnsAnswer { records, missing: Vec::new(), lifetime, left_out: 0 });
                }
                Err(cause) => error = LookupError::new(name, kind, cause),
            }
            if error.is_certain() {
                break;
            }
        }
        Err(error)
    }
}

/// Returns the answers to two lookups. Once one has records, the other has [`LATE`]: some name servers never answer for AAAA
/// (RFC 4074 §4.1).
async fn both<T>(
    one: impl Future<Output = Result<T, LookupError>>,
    other: impl Future<Output = Result<T, LookupError>>,
    late: impl Fn() -> LookupError,
) -> (Result<T, LookupError>, Result<T, LookupError>) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    tokio::select! {
        answer = &mut one => {
            let rest = soon(other, answer.is_ok(), late).await;
            (answer, rest)
        }
        answer = &mut other => {
            let rest = soon(one, answer.is_ok(), late).await;
            (rest, answer)
        }
    }
}

/// Returns the answer to a lookup, which has little time if there are records already.
async fn soon<T>(
    lookup: impl Future<Output = Result<T, LookupError>>,
    has_records: bool,
    late: impl Fn() -> LookupError,
) -> Result<T, LookupError> {
    if !has_records {
        return lookup.await;
    }
    tokio::time::timeout(LATE, lookup).await.unwrap_or_else(|_| Err(late()))
}

// === The system's files ===

impl CurrentResolver {
    /// Returns a resolver that asks these servers in turn, or those of the system if the list is empty.
    pub fn new(servers: &[SocketAddr]) -> Self {
        CurrentResolver { servers: servers.into(), made: RefCell::default() }
    }

    /// Returns the resolver by the present state of the system's files.
    pub fn get(&self) -> Result<Resolver, LookupError> {
        let files = if self.servers.is_empty() { SystemFiles::now() } else { SystemFiles::default() };
        let mut made = self.made.borrow_mut();
        if let Some((known, resolver)) = &*made
            && *known == files
        {
            return Ok(resolver.clone());
        }
        let resolver = Resolver::new(&self.servers)?;
        *made = Some((files, resolver.clone()));
        Ok(resolver)
    }
}

impl SystemFiles {
    /// Returns the present state.
    pub fn now() -> Self {
        SystemFiles([RESOLV_CONF, HOSTS].map(|path| FileState::of(path).ok()))
    }
}

/// Reads the system's configuration. A file without name servers, or none, means the one on this machine (resolv.conf(5)).
#[cfg(target_os = "linux")]
fn system_configuration() -> Result<(ResolverConfig, ResolverOpts), NetError> {
    let mut text = match std::fs::read(RESOLV_CONF) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    system_conf::parse_resolv_conf(&text).or_else(|_| {
        text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
        system_conf::parse_resolv_conf(&text)
    })
}

#[cfg(not(target_os = "linux"))]
fn system_configuration() -> Result<(ResolverConfig, ResolverOpts), NetError> {
    system_conf::read_system_conf()
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

fn server(address: SocketAddr) -> NameServerConfig {
    // TCP is for answers that are too long for a datagram.
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = address.port();
    }
    NameServerConfig::new(address.ip(), true, connections)
}

fn new_resolver(server: NameServerConfig, options: ResolverOpts) -> Result<TokioResolver, NetError> {
    let config = ResolverConfig::from_name_servers(vec![server]);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

/// The target `.` says that the service is decidedly not there (RFC 2782).
fn target(data: &RData) -> Option<SRV> {
    match data {
        RData::SRV(service) if !service.target.is_root() => Some(service.clone()),
        _ => None,
    }
}

/// Returns how long an answer may be kept if part of it is missing because of this error.
fn lifetime_without(error: &LookupError) -> Duration {
    if error.is_certain() { MAX_TTL } else { INCOMPLETE }
}

/// Returns the name without the dot at the end.
fn text(name: &Name) -> String {
    name.to_utf8().trim_end_matches('.').into()
}

// === Answer ===

impl<T: Ord> DnsAnswer<T> {
    fn new(records: impl IntoIterator<Item = T>, lifetime: Duration) -> Self {
        let sorted = records.into_iter().collect::<BTreeSet<T>>();
        let left_out = sorted.len().saturating_sub(MAX_RECORDS);
        let records = sorted.into_iter().take(MAX_RECORDS).collect();
        Self { records, missing: Vec::new(), lifetime: lifetime.clamp(MIN_TTL, MAX_TTL), left_out }
    }
}

// === LookupError ===

impl LookupError {
    fn new(name: &Name, kind: RecordType, cause: NetError) -> Self {
        match cause {
            NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NXDomain => {
                Self::NoSuchName(text(name))
            }
            NetError::Dns(DnsError::NoRecordsFound(_)) => Self::nothing(name, kind),
            NetError::Timeout | NetError::NoConnections => Self::NoAnswer(text(name)),
            cause => Self::Failed { name: text(name), cause },
        }
    }

    fn nothing(name: &Name, kind: RecordType) -> Self {
        match kind {
            RecordType::SRV => Self::NoServices(text(name)),
            _ => Self::NoAddresses(text(name)),
        }
    }

    /// Whether a name server says so. Other errors say nothing of the name, and may pass.
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::NoSuchName(_) | Self::NoAddresses(_) | Self::NoServices(_))
    }

    /// Whether the name has to be corrected, and not the name servers.
    pub fn is_about_name(&self) -> bool {
        matches!(self, Self::BadName(_)) || self.is_certain()
    }

    /// Combines two lookups. The answer is only certain if both are.
    fn or(self, other: Self) -> Self {
        if self.is_certain() { other } else { self }
    }
}

// A server that answers at all does within two seconds, and a lost datagram is sent again in that time already; the
// second round is for a server that was being restarted. They are ours and not those of resolv.conf, whose five
// seconds are for people.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;

/// The time for addresses of one kind once those of the other are known: a question that was lost is repeated in it.
const LATE: Duration = Duration::from_millis(2_500);

/// The maximum time for all lookups of one name: all names of a search, and all targets of a service. Longer than three
/// silent servers take, as many as a system has, so that each is asked.
const LIMIT: Duration = Duration::from_secs(15);

/// The minimum lifetime. A name server that answers 0 would cause a lookup all the time.
const MIN_TTL: Duration = Duration::from_secs(1);

/// Records of a day are common, and wrong for as long when an address moves unexpectedly.
const MAX_TTL: Duration = Duration::from_secs(300);

/// The lifetime of an incomplete answer: short, but no burden to a server that always fails.
const INCOMPLETE: Duration = Duration::from_secs(10);

/// The maximum number of addresses or targets of a name. It limits the memory that a name server can make the host
/// hold, and is far above what one upstream has.
const MAX_RECORDS: usize = MAX_ENDPOINTS;

/// The number of targets that are looked up at the same time: quick, without flooding a name server.
const AT_ONCE: usize = 16;

#[cfg(test)]
#[path = "../../../tests/support/name_server.rs"]
mod name_server;

#[cfg(test)]
mod tests;
