//! Maintenance of routes: while a file exists, every request of a route is answered with 503.

use std::io;
use std::net::IpAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, FailureKind};
use crate::protocol::trusted_peers::TrustedPeers;

/// The maintenance of a route.
#[derive(Clone)]
pub struct Maintenance {
    pub switch: Arc<MaintenanceSwitch>,
    /// The seconds after which clients may ask again.
    pub retry_after: NonZero<u32>,
    /// The clients that are served during maintenance too.
    pub except: TrustedPeers,
}

/// A file whose existence switches maintenance on. Requests read the state of the last look at the file, and never wait for
/// the file system.
pub struct MaintenanceSwitch {
    path: PathBuf,
    is_on: AtomicBool,
    /// Whether the last search for the file has failed, which is logged once.
    has_failed: AtomicBool,
}

impl Maintenance {
    /// Returns the error for a request of a client, whose address is `None` at a unix socket; `None` if the request is
    /// served.
    pub fn refusal(&self, client: Option<IpAddr>) -> Option<Error> {
        if !self.switch.is_on() || self.except.has(client) {
            return None;
        }
        let error = Error::new(FailureKind::DestinationUnavailable, "the route is under maintenance");
        // Logged as it begins, not for each request.
        Some(Error { retry_after: Some(self.retry_after), ..error }.mark_logged())
    }
}

impl MaintenanceSwitch {
    /// Returns the switch of a file, after a first search for the file.
    pub fn new(path: PathBuf) -> Self {
        let switch = MaintenanceSwitch { path, is_on: AtomicBool::new(false), has_failed: AtomicBool::new(false) };
        switch.look();
        switch
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file existed at the last look.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Searches for the file, and logs a change. Takes as long as the file system does. If the file system returns an
    /// error, the state stays.
    pub fn look(&self) {
        let file = self.path.display();
        let exists = match self.path.metadata() {
            Ok(_) => true,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => false,
            Err(error) => {
                if !self.has_failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%file, %error, "maintenance file can't be looked for");
                }
                return;
            }
        };
        self.has_failed.store(false, Ordering::Relaxed);
        if self.is_on.swap(exists, Ordering::Relaxed) != exists {
            let what = if exists { "maintenance began" } else { "maintenance ended" };
            tracing::info!(%file, "{what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_follows_its_file_and_excepts_clients() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("down");
        let mut except = TrustedPeers::default();
        assert!(except.add("10.0.0.0/8"));
        let switch = Arc::new(MaintenanceSwitch::new(path.clone()));
        let maintenance = Maintenance { switch: switch.clone(), retry_after: NonZero::<u32>::MIN, except };
        let (inside, outside) = (Some([10, 0, 0, 1].into()), Some([192, 0, 2, 1].into()));
        assert!(maintenance.refusal(outside).is_none());
        std::fs::write(&path, "").unwrap();
        switch.look();
        assert!(maintenance.refusal(outside).is_some() && maintenance.refusal(inside).is_none());
        assert!(maintenance.refusal(None).is_some());
        std::fs::remove_file(&path).unwrap();
        switch.look();
        assert!(maintenance.refusal(outside).is_none());
    }
}
