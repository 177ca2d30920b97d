//! The file descriptors that the process may have, and how many of them clients may take.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The descriptors of the process.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    /// How many may be open at a time.
    pub limit: usize,
    /// How many were open before the first client came.
    pub own: usize,
}

/// Kept free for what isn't a client or made for one: the admin listener, DNS, health checks, logs, plugins and stored
/// responses that are read.
const SPARE: usize = 32;
/// One descriptor in so many is kept free too, as more of the others are open where there are many clients.
const SPARE_SHARE: usize = 16;
/// The least number of clients, however low the limit is.
const LEAST: usize = 8;
/// Stands for no limit: more than any kernel allows a process.
const UNLIMITED: usize = 1 << 30;
/// Assumed to be open where the system doesn't tell.
const ASSUMED: usize = 64;

/// Raises the soft limit to the hard one, so that `ulimit` need not be called first. The limit stays as it is if the
/// system refuses.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "descriptor limit not raised");
    }
}

impl Descriptors {
    /// Returns the limit, and the number of descriptors that are open now.
    pub fn now() -> Self {
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        let own = std::fs::read_dir("/dev/fd").map_or(ASSUMED, Iterator::count);
        Descriptors { limit: limit.unwrap_or(UNLIMITED).min(UNLIMITED), own }
    }

    /// The number of client connections for which there are descriptors. Each may need a second one, to an endpoint.
    pub fn clients(self) -> usize {
        (self.limit.saturating_sub(self.kept()) / 2).max(LEAST)
    }

    /// The number of descriptors that so many client connections may need, with all others.
    pub fn needed(self, clients: usize) -> usize {
        clients.saturating_mul(2).saturating_add(self.kept())
    }

    /// Whether a descriptor with this number tells that nearly all are taken: a new one is always the lowest free one.
    pub fn is_nearly_last(self, descriptor: usize) -> bool {
        descriptor.saturating_add(self.spare() / 2) >= self.limit
    }

    fn spare(self) -> usize {
        SPARE + self.limit / SPARE_SHARE
    }

    fn kept(self) -> usize {
        self.own + self.spare()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_for_endpoints_and_all_else() {
        for limit in [128, 256, 1024, 20_000, 1 << 20] {
            let descriptors = Descriptors { limit, own: 30 };
            let clients = descriptors.clients();
            assert!(clients > limit / 8, "{limit}: {clients}");
            assert!(descriptors.needed(clients) <= limit, "{limit}: {clients}");
            assert!(30 + 2 * clients + SPARE <= limit, "{limit}: {clients}");
            assert!(!descriptors.is_nearly_last(30 + 2 * clients), "{limit}");
            assert!(descriptors.is_nearly_last(limit - 1), "{limit}");
        }
        let few = Descriptors { limit: 40, own: 60 };
        assert_eq!(few.clients(), LEAST);
    }

    #[test]
    fn descriptors_that_are_open_are_counted() {
        let before = Descriptors::now();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close theirs meanwhile.
        assert!(Descriptors::now().own + 25 > before.own + files.len(), "{before:?}");
        assert!(before.limit > before.own);
    }
}
