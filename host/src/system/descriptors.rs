//! The file descriptors of the process, and the share of them that clients may use.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The numbers of the process's descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    /// The maximum number of open descriptors.
    pub limit: usize,
    /// The number of descriptors that were open before the first client connected.
    pub own: usize,
}

/// The maximum numbers of connections that a manifest allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionDemand {
    pub clients: usize,
    pub endpoints: usize,
}

/// The number of descriptors that are reserved for other uses: the admin listener, DNS, health checks, logs and plugins.
const SPARE: usize = 32;
/// The fraction of descriptors that is reserved too, one in `SPARE_SHARE`, as other uses grow with the number of
/// clients.
const SPARE_SHARE: usize = 16;
/// The minimum number of clients and of exchanges, however low the limit is.
const MIN_CLIENTS: usize = 8;
/// The value for no limit: more than any kernel allows a process.
const UNLIMITED: usize = 1 << 30;
/// The assumed number of open descriptors if the system doesn't report it.
const ASSUMED: usize = 64;

/// Raises the soft limit to the hard one, so that `ulimit` is not needed. The limit is unchanged if the system refuses.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "descriptor limit not raised");
    }
}

/// Returns the limit of descriptors of the process.
pub fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(UNLIMITED).min(UNLIMITED)
}

impl Descriptors {
    /// Returns the limit, and the number of descriptors that are open now.
    pub fn now() -> Self {
        let own = std::fs::read_dir("/dev/fd").map_or(ASSUMED, Iterator::count);
        Descriptors { limit: limit(), own }
    }

    /// Returns the number of client connections for which there are descriptors. Each may need a second one, to an
    /// endpoint, until there are `endpoints` of these.
    pub fn clients(self, endpoints: usize) -> usize {
        let room = self.limit.saturating_sub(self.reserved());
        (room / 2).max(room.saturating_sub(endpoints)).max(MIN_CLIENTS)
    }

    /// Returns the number of descriptors that exchanges may use beside this many client connections.
    pub fn exchanges(self, clients: usize) -> usize {
        self.limit.saturating_sub(self.reserved()).saturating_sub(clients).max(MIN_CLIENTS)
    }

    /// Returns the number of descriptors that a process may need, including all other uses.
    pub fn needed(self, demand: ConnectionDemand) -> usize {
        demand.clients.saturating_add(demand.endpoints).saturating_add(self.reserved())
    }

    /// Whether nearly all descriptors are in use, judged by the number of a new one: a new one is always the lowest
    /// free one.
    pub fn is_nearly_last(self, descriptor: usize) -> bool {
        descriptor.saturating_add(self.spare() / 2) >= self.limit
    }

    fn spare(self) -> usize {
        SPARE + self.limit / SPARE_SHARE
    }

    fn reserved(self) -> usize {
        self.own + self.spare()
    }
}

/// Whether an error means that this machine lacks resources, such as descriptors or memory, for a connection or a file.
pub fn is_of_this_machine(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
        || error.kind() == io::ErrorKind::OutOfMemory
}

/// Whether all file descriptors are in use, of the process or of the machine.
pub fn lacks_descriptor(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_for_endpoints_and_all_else() {
        for limit in [128, 256, 1024, 20_000, 1 << 20] {
            let descriptors = Descriptors { limit, own: 30 };
            let clients = descriptors.clients(usize::MAX);
            assert!(clients > limit / 8, "{limit}: {clients}");
            assert!(
                descriptors.needed(ConnectionDemand { clients, endpoints: clients }) <= limit,
                "{limit}: {clients}"
            );
            assert!(30 + 2 * clients + SPARE <= limit, "{limit}: {clients}");
            assert!(!descriptors.is_nearly_last(30 + 2 * clients), "{limit}");
            assert!(descriptors.is_nearly_last(limit - 1), "{limit}");
        }
        let few = Descriptors { limit: 40, own: 60 };
        assert_eq!(few.clients(usize::MAX), MIN_CLIENTS);
    }

    #[test]
    fn clients_share_what_few_endpoint_connections_leave() {
        let descriptors = Descriptors { limit: 1000, own: 30 };
        let (clients, few) = (descriptors.clients(usize::MAX), descriptors.clients(10));
        assert!(few > clients + clients / 2, "{few} and {clients}");
        assert!(descriptors.needed(ConnectionDemand { clients: few, endpoints: 10 }) <= 1000, "{few}");
        assert_eq!(descriptors.clients(clients + 10), clients);
    }

    #[test]
    fn descriptors_that_are_open_are_counted() {
        let before = Descriptors::now();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close descriptors in the meantime.
        assert!(Descriptors::now().own + 25 > before.own + files.len(), "{before:?}");
        assert!(before.limit > before.own);
    }
}
