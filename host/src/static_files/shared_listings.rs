//! The lists of a site's folders. Few are made at a time, and requests that wait for the list of one folder share one, whichever
//! worker they are on: a list of a large folder takes a thread for a while, and some megabytes.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;

use super::listing::{ListedFolder, ListingFailure, ListingPage};
use super::listing_turns::ListingTurns;
use super::root::{OpenFailure, Opened, Root, Wait};
use super::site_path::SitePath;
use crate::body::buffer_space::MadeMemory;
use crate::protocol::client_net::ClientNet;

/// The lists of a site that are made or that clients read.
#[derive(Debug)]
pub struct SharedListings {
    /// The permits to make a list.
    turns: ListingTurns,
    folders: Mutex<Folders>,
}

#[derive(Debug, Default)]
struct Folders {
    known: HashMap<SitePath, KnownFolder>,
    /// The number of known folders at which those without a list are removed.
    removal_at: usize,
}

#[derive(Debug)]
struct KnownFolder {
    /// The requests that wait for a list.
    waiting: Weak<FolderListing>,
    page: Arc<LastPage>,
}

/// The last list of a folder, as long as a client reads it. A list that is equal takes no memory of its own.
#[derive(Debug, Default)]
struct LastPage(Mutex<Weak<ListingPage>>);

/// The list of one folder for the requests that wait for one. They own it together.
#[derive(Debug)]
struct FolderListing {
    /// The number of lists that were begun.
    begun: AtomicU64,
    /// The result of the last list, locked while the next one is made.
    last: Arc<tokio::sync::Mutex<Option<NumberedListing>>>,
    page: Arc<LastPage>,
}

/// A result and the number of its list.
#[derive(Debug)]
struct NumberedListing {
    number: u64,
    listing: SharedListing,
}

/// A page with a list, or the reason why there is none.
pub type SharedListing = Result<Bytes, Arc<ListingFailure>>;

/// A request for a list.
pub struct ListingQuery {
    pub root: Arc<Root>,
    pub path: SitePath,
    /// The client of the request; `None` if it has no address.
    pub client: Option<ClientNet>,
    /// The path of the site's root for clients.
    pub prefix: String,
    /// The memory, which is empty, that the list is counted in.
    pub memory: MadeMemory,
}

/// A page that several responses share.
struct PageBytes(Arc<ListingPage>);

/// The maximum number of lists of a site that are made at a time: one can't keep others waiting alone.
const AT_A_TIME: usize = 2;

/// The number of known folders up to which none is removed.
const KEPT: usize = 64;

impl Default for SharedListings {
    fn default() -> Self {
        SharedListings { turns: ListingTurns::new(AT_A_TIME), folders: Mutex::default() }
    }
}

impl SharedListings {
    /// Returns a list that was begun after this call: one of its own, or that of another request. Dropping the future
    /// gives up the list, unless others wait for it.
    pub async fn list(&self, query: ListingQuery) -> SharedListing {
        let folder = self.folder(&query.path);
        let seen = folder.begun.load(Ordering::Relaxed);
        let last = folder.last.clone().lock_owned().await;
        if let Some(last) = last.as_ref().filter(|last| last.number > seen) {
            return last.listing.clone();
        }
        let turn = self.turns.next(query.client).await;
        let made_for = folder.clone();
        let making = spawn_blocking(move || {
            let listing = made_for.make(query, last);
            drop(turn);
            listing
        });
        let listing = making.await;
        drop(folder);
        listing.unwrap_or_else(|error| Err(Arc::new(OpenFailure::Failed(io::Error::other(error)).into())))
    }

    /// Returns the list of a folder for the requests that wait for it.
    fn folder(&self, path: &SitePath) -> Arc<FolderListing> {
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = folders.known.get(path).and_then(|known| known.waiting.upgrade()) {
            return known;
        }
        folders.remove_unused();
        let page = folders.known.get(path).map(|known| known.page.clone()).unwrap_or_default();
        let folder = FolderListing { begun: AtomicU64::new(0), last: Arc::default(), page: page.clone() };
        let folder = Arc::new(folder);
        folders.known.insert(path.clone(), KnownFolder { waiting: Arc::downgrade(&folder), page });
        folder
    }
}

impl Folders {
    /// Removes the folders whose lists neither wait nor are read, if there are many folders.
    fn remove_unused(&mut self) {
        if self.known.len() >= self.removal_at.max(KEPT) {
            self.known.retain(|_, folder| folder.waiting.strong_count() > 0 || folder.page.is_read());
            // Each removal halves the folders, or is followed by as many requests.
            self.removal_at = 2 * self.known.len();
        }
    }
}

impl FolderListing {
    /// Makes a list, and stores it for the requests that wait.
    fn make(
        self: &Arc<Self>,
        query: ListingQuery,
        mut last: OwnedMutexGuard<Option<NumberedListing>>,
    ) -> SharedListing {
        // What the folder had before is of no use to requests that wait for this list.
        *last = None;
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        // The request that asked, and each that waits, owns a reference besides this thread's.
        let is_wanted = || Arc::strong_count(self) > 1;
        let listing = query.page(is_wanted).map(|page| self.page.replace(page)).map_err(Arc::new);
        *last = Some(NumberedListing { number, listing: listing.clone() });
        listing
    }
}

impl LastPage {
    /// Returns the bytes of a page, or those of the last one if clients read that and it is equal.
    fn replace(&self, page: ListingPage) -> Bytes {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = last.upgrade().filter(|known| (**known).as_ref() == page.as_ref()) {
            return Bytes::from_owner(PageBytes(same));
        }
        let page = Arc::new(page);
        *last = Arc::downgrade(&page);
        Bytes::from_owner(PageBytes(page))
    }

    fn is_read(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).strong_count() > 0
    }
}

impl ListingQuery {
    fn page(self, is_wanted: impl Fn() -> bool) -> Result<ListingPage, ListingFailure> {
        let Opened::Folder(folder) = self.root.find(&self.path, Wait::Allowed)? else {
            return Err(OpenFailure::Absent.into());
        };
        let listed = ListedFolder { root: &self.root, path: &self.path, folder: &folder, prefix: &self.prefix };
        listed.page(self.memory, is_wanted)
    }
}

impl AsRef<[u8]> for PageBytes {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl From<OpenFailure> for ListingFailure {
    fn from(failure: OpenFailure) -> Self {
        ListingFailure::Open(failure)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::body::buffer_space::RouteMade;
    use crate::body::buffer_space::tests::space;
    use crate::system::holder_counts::Holder;

    fn is_pending(future: &mut Pin<Box<impl Future>>) -> bool {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn requests_that_wait_share_a_list_and_none_is_made_for_those_that_have_left() {
        let site = tempfile::tempdir().unwrap();
        std::fs::write(site.path().join("file.txt"), "x").unwrap();
        let (usage, space) = space(Path::new("/"));
        let (listings, root) = (SharedListings::default(), Arc::new(Root::open(site.path()).unwrap()));
        let list = || {
            let (path, memory) =
                (SitePath::parse("/").unwrap(), space.memory_for_made(&RouteMade::default(), Holder::UNKNOWN));
            Box::pin(listings.list(ListingQuery {
                root: root.clone(),
                path,
                client: None,
                prefix: String::new(),
                memory,
            }))
        };
        let busy = [listings.turns.next(None).await, listings.turns.next(None).await];
        let mut left = list();
        assert!(is_pending(&mut left));
        let folder = listings.folder(&SitePath::parse("/").unwrap());
        let (mut one, mut other) = (list(), list());
        assert!(is_pending(&mut one) && is_pending(&mut other));
        drop((left, busy));
        let (one, other) = (one.await.unwrap(), other.await.unwrap());
        assert!(std::str::from_utf8(&one).unwrap().contains("file.txt"));
        assert_eq!((one.as_ptr(), folder.begun.load(Ordering::Relaxed)), (other.as_ptr(), 1), "one list for both");
        let later = list().await.unwrap();
        assert_eq!(
            (later.as_ptr(), folder.begun.load(Ordering::Relaxed)),
            (one.as_ptr(), 2),
            "an equal page is shared"
        );
        std::fs::write(site.path().join("another.txt"), "x").unwrap();
        let changed = list().await.unwrap();
        assert!(std::str::from_utf8(&changed).unwrap().contains("another.txt"));
        assert_eq!(usage.memory(), (one.len() + changed.len()) as u64);
        drop((one, other, later, changed, folder));
        assert_eq!(usage.memory(), 0);
    }

    #[test]
    fn folders_without_a_list_are_forgotten() {
        let listings = SharedListings::default();
        let kept = listings.folder(&SitePath::parse("/kept/").unwrap());
        for number in 0..1000 {
            drop(listings.folder(&SitePath::parse(&format!("/{number}/")).unwrap()));
        }
        assert!(listings.folders.lock().unwrap().known.len() <= KEPT);
        assert!(Arc::ptr_eq(&kept, &listings.folder(&SitePath::parse("/kept/").unwrap())));
    }
}
