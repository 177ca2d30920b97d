//! The scan at start: finds the stored responses of earlier processes while this one already serves requests.
#![expect(clippy::disallowed_methods, reason = "the scan is measured on a thread of its own")]

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::Instant;

use tracing::{debug, info, warn};

use super::directory::remove;
use super::{Disk, FinishedFile, blocks, record};
use crate::store::index::hash_key;
use crate::store::purge_log::PurgeScan;
use crate::system::files;
use crate::system::supervise::{Task, guard};

/// Scans the directory as long as the disk is in use. A panic ends the scan, and the remaining files are not found.
pub fn run(disk: &Weak<Disk>, scan: PurgeScan) {
    let _ = guard(Task::CacheScan, || find_all(disk, &scan));
    drop(scan);
    // Purges wait for the end of the scan.
    let Some(disk) = disk.upgrade() else { return };
    *disk.is_found.lock().unwrap_or_else(PoisonError::into_inner) = true;
    disk.scanned.notify_all();
}

fn find_all(disk: &Weak<Disk>, scan: &PurgeScan) {
    let began = Instant::now();
    let Some(folder) = disk.upgrade().map(|disk| disk.claim.folder.clone()) else { return };
    let mut numbers = folder.numbers();
    // In ascending order, so that the newest file is inserted last, as when it was written.
    numbers.sort_unstable();
    if let (Some(disk), Some(newest)) = (disk.upgrade(), numbers.last()) {
        // New files get greater numbers even if the clock was set back.
        disk.next.fetch_max(newest.saturating_add(1), Ordering::Relaxed);
    }
    let (mut found, mut broken, mut unreadable) = (0, 0, 0);
    for number in numbers {
        let Some(disk) = disk.upgrade() else { return };
        match find(&disk, number, scan) {
            Ok(()) => found += 1,
            Err(error) if blocks::is_broken(&error) => {
                debug!(path = %folder.file(number).display(), %error, "not whole");
                broken += 1;
                remove(&folder.file(number));
            }
            // The file was replaced a moment ago.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                debug!(path = %folder.file(number).display(), %error, "unreadable");
                unreadable += 1;
            }
        }
    }
    let (folder, took) = (folder.path().display(), began.elapsed());
    match broken + unreadable {
        0 => info!(%folder, found, ?took, "cache on disk"),
        _ => warn!(%folder, found, broken, unreadable, ?took, "cache on disk: what wasn't whole is removed"),
    }
}

fn find(disk: &Disk, number: u64, scan: &PurgeScan) -> io::Result<()> {
    let read = record::read(&files::open(&disk.claim.folder.file(number), files::STORED)?, disk.claim.seed)?;
    let id = hash_key(&read.key, disk.claim.seed);
    // Files that this process has written are in the index already.
    if disk.index.find_numbered(id, number).is_some() {
        return Ok(());
    }
    let variant_info = &read.object.variant;
    disk.enter(FinishedFile { id, key: &read.key, variant_info, number, size: read.size }, &scan.moment(id));
    Ok(())
}
