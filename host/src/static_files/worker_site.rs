//! A site on one worker: its folder is open, and is opened again if another one is at its path.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::blocking_turns::BlockingTurns;
use super::find::{FileQuery, FileSite, FindFailure, PathAnswer};
use super::listing::ListingFailure;
use super::root::{OpenFailure, Root, Wait};
use super::shared_listings::ListingQuery;
use super::site_path::SitePath;
use crate::body::buffer_space::MadeMemory;
use crate::error::{Error, FailureKind};
use crate::net::deadline::Deadline;
use crate::protocol::client_net::ClientNet;
use crate::system::descriptor_shares::{self, DescriptorUse, WorkerDescriptors};
use crate::system::descriptors::lacks_descriptor;
use crate::system::holder_counts::Holder;

/// A site of a worker.
#[derive(Debug)]
pub struct WorkerSite {
    pub site: Arc<FileSite>,
    /// The turns on threads for blocking work.
    pub turns: BlockingTurns,
    /// The descriptors that the worker's exchanges use.
    descriptors: WorkerDescriptors,
    /// The open folder, and the time at which it was last seen at its path; `None` if it was not there.
    root: RefCell<Option<(Arc<Root>, Instant)>>,
}

/// The time for which an open folder is taken for the one at its path: deployments replace it by another.
const ROOT_CHECK: Duration = Duration::from_secs(1);

/// The time for finding a file, which only a network or a broken disk exceeds.
const FIND_TIMEOUT: Duration = Duration::from_secs(30);

impl WorkerSite {
    /// Returns a site whose folder is opened for its first request.
    pub fn new(site: Arc<FileSite>, descriptors: WorkerDescriptors) -> Self {
        WorkerSite { site, turns: BlockingTurns::default(), descriptors, root: RefCell::default() }
    }

    /// Finds what answers for a query of a client; `None` if that needs a wait.
    pub fn find_now(&self, query: &FileQuery, client: Holder, now: Instant) -> Option<Result<PathAnswer, Error>> {
        let root = self.root.borrow();
        let (root, _) = root.as_ref().filter(|(_, seen)| now.saturating_duration_since(*seen) < ROOT_CHECK)?;
        let descriptor = match self.descriptor(client) {
            Ok(descriptor) => descriptor,
            Err(error) => return Some(Err(error)),
        };
        match self.site.find(root, query, descriptor, Wait::Never) {
            Ok(found) => Some(Ok(found)),
            Err(FindFailure::WouldWait) => None,
            Err(FindFailure::Failed(error)) => Some(Err(failed(&error))),
        }
    }

    /// Finds what answers for a query of a client, on a thread for blocking work.
    pub async fn find(&self, query: FileQuery, client: Holder, step: &Deadline) -> Result<PathAnswer, Error> {
        let finding = async {
            let turn = self.turns.begin().await;
            let descriptor = self.descriptor(client)?;
            let (site, known) = (self.site.clone(), self.root.borrow().as_ref().map(|(root, _)| root.clone()));
            let found = spawn_blocking(move || {
                let _turn = turn;
                let root = root_at(&site.root, known)?;
                let found = site.find(&root, &query, descriptor, Wait::Allowed);
                Ok::<_, Error>((root, found))
            });
            found.await.unwrap_or_else(|error| Err(failed(&io::Error::other(error))))
        };
        let late = |_| Error::new(FailureKind::ResponseTimeout, "the file system did not open a file in 30 s");
        let found = step.limit(FIND_TIMEOUT, finding).await.map_err(late)?;
        let (root, found) = found.inspect_err(|_| drop(self.root.take()))?;
        self.root.replace(Some((root, step.clock().now())));
        found.map_err(|failure| match failure {
            FindFailure::Failed(error) => failed(&error),
            FindFailure::WouldWait => failed(&io::Error::other("files were renamed each time that it was looked for")),
        })
    }

    /// Returns the page with the list of a folder's files, which was found to have no index file; `None` if it is gone
    /// meanwhile. `memory`, which is empty, counts the page.
    pub async fn list(
        &self,
        path: SitePath,
        client: Option<ClientNet>,
        memory: MadeMemory,
        step: &Deadline,
    ) -> Result<Option<Bytes>, Error> {
        let root = self.root.borrow().as_ref().map(|(root, _)| root.clone());
        let (Some(root), Some(listings)) = (root, &self.site.listings) else { return Ok(None) };
        let listing = listings.list(ListingQuery { root, path, client, prefix: self.site.prefix.clone(), memory });
        let late = |_| Error::new(FailureKind::ResponseTimeout, "the list of a folder was not made in 30 s");
        match step.limit(FIND_TIMEOUT, listing).await.map_err(late)? {
            Ok(page) => Ok(Some(page)),
            Err(failure) => match &*failure {
                ListingFailure::NoMemory => {
                    let cause = "the list of a folder does not fit into the memory for bodies";
                    Err(Error::new(FailureKind::LimitReached, cause).with_limit("buffers.memory"))
                }
                ListingFailure::Open(OpenFailure::Absent | OpenFailure::Denied) => Ok(None),
                ListingFailure::Open(OpenFailure::Failed(error)) => Err(failed(error)),
                ListingFailure::Open(OpenFailure::WouldWait) | ListingFailure::Unwanted => {
                    Err(failed(&io::Error::other("the list of a folder was given up")))
                }
            },
        }
    }

    /// Takes the descriptor of a file that is served to a client.
    fn descriptor(&self, client: Holder) -> Result<DescriptorUse, Error> {
        self.descriptors.take(client).ok_or_else(|| Error::no_descriptor(descriptor_shares::PART_IN_USE))
    }
}

/// Returns the known root, or another one if that is at the path now.
fn root_at(path: &Path, known: Option<Arc<Root>>) -> Result<Arc<Root>, Error> {
    if let Some(root) = known.filter(|root| root.is_at(path)) {
        return Ok(root);
    }
    Root::open(path).map(Arc::new).map_err(|error| {
        if lacks_descriptor(&error) {
            return failed(&error);
        }
        let cause = format!("no folder to serve files from: `{}`: {error}", path.display());
        Error::new(FailureKind::DestinationUnavailable, cause)
    })
}

/// Returns the error of an exchange whose file can't be opened.
fn failed(error: &io::Error) -> Error {
    let cause = io::Error::new(error.kind(), format!("a file can't be opened: {error}"));
    if lacks_descriptor(error) { Error::no_descriptor(cause) } else { Error::new(FailureKind::InternalError, cause) }
}
