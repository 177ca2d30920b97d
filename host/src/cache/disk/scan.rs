//! Finds what was stored when the process began, while it serves already.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::Instant;

use tracing::{debug, info, warn};

use super::folder::remove;
use super::{Disk, format};
use crate::cache::index::name_of;
use crate::cache::purges::Moment;
use crate::files;
use crate::supervise::{Task, guard};

/// Looks through a folder, as long as anybody has it. A panic ends the search, and leaves what is not found yet.
pub fn run(disk: &Weak<Disk>) {
    let _ = guard(Task::CacheScan, || find_all(disk));
    // Purges wait for the end of the search.
    let Some(disk) = disk.upgrade() else { return };
    *disk.is_found.lock().unwrap_or_else(PoisonError::into_inner) = true;
    disk.found.notify_all();
}

fn find_all(disk: &Weak<Disk>) {
    let began = Instant::now();
    let Some((folder, asked)) = disk.upgrade().map(|disk| (disk.claim.folder.clone(), disk.purges.moment())) else {
        return;
    };
    let mut numbers = folder.numbers();
    // The newest comes last, as it came before.
    numbers.sort_unstable();
    if let (Some(disk), Some(newest)) = (disk.upgrade(), numbers.last()) {
        // A clock that was set back makes nothing that comes now the older one.
        disk.next.fetch_max(newest.saturating_add(1), Ordering::Relaxed);
    }
    let (mut found, mut broken, mut unreadable) = (0, 0, 0);
    for number in numbers {
        let Some(disk) = disk.upgrade() else { return };
        match find(&disk, number, asked) {
            Ok(()) => found += 1,
            Err(error) if format::is_broken(&error) => {
                debug!(path = %folder.file(number).display(), %error, "not whole");
                broken += 1;
                remove(&folder.file(number));
            }
            // One that has just been replaced.
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

fn find(disk: &Disk, number: u64, asked: Moment) -> io::Result<()> {
    let read = format::read(&files::open(&disk.claim.folder.file(number), files::STORED)?, disk.claim.seed)?;
    let id = name_of(&read.key, disk.claim.seed);
    // What this process has written needs not to be found.
    if disk.index.numbered(id, number).is_some() {
        return Ok(());
    }
    disk.enter(id, &read.key, &read.object.label, (number, read.size), asked);
    Ok(())
}
