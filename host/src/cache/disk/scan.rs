//! Finds what was stored when the process began, while it serves already.

use std::fs::{DirEntry, File};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::Instant;

use tracing::{debug, info, warn};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::{Disk, TEMPORARY, format, remove};
use crate::cache::purges::Moment;

/// Looks through a folder, as long as anybody has it.
pub fn run(disk: &Weak<Disk>) {
    let began = Instant::now();
    let Some((folder, first, asked)) =
        disk.upgrade().map(|disk| (disk.folder.clone(), disk.next.load(Ordering::Relaxed), disk.purges.moment()))
    else {
        return;
    };
    let (mut found, mut broken) = (0, 0);
    // What nobody has finished.
    for entry in entries(&folder.join(TEMPORARY)) {
        // Another may have been begun by now.
        if number(&entry).is_none_or(|number| number < first) {
            remove(&entry.path());
        }
    }
    for place in 0..=u8::MAX {
        for entry in entries(&folder.join(format!("{place:02x}"))) {
            let Some(disk) = disk.upgrade() else { return };
            // What came since the start is known.
            let Some(number) = number(&entry).filter(|number| *number < first) else { continue };
            match find(&disk, &entry, number, asked) {
                Ok(()) => found += 1,
                Err(error) => {
                    debug!(path = %entry.path().display(), %error, "not whole");
                    broken += 1;
                    remove(&entry.path());
                }
            }
        }
    }
    let Some(disk) = disk.upgrade() else { return };
    *disk.is_found.lock().unwrap_or_else(PoisonError::into_inner) = true;
    disk.found.notify_all();
    let (folder, took) = (folder.display(), began.elapsed());
    match broken {
        0 => info!(%folder, found, ?took, "cache on disk"),
        _ => warn!(%folder, found, broken, ?took, "cache on disk: what wasn't whole is removed"),
    }
}

fn find(disk: &Disk, entry: &DirEntry, number: u64, asked: Moment) -> io::Result<()> {
    let read = format::read(&File::open(entry.path())?, disk.seed)?;
    let id = xxh3_128_with_seed(&read.key, disk.seed);
    disk.place(id, &read.key, &read.label, (number, read.size), asked);
    Ok(())
}

/// The number of a file, by its name.
fn number(entry: &DirEntry) -> Option<u64> {
    u64::from_str_radix(entry.file_name().to_str()?, 16).ok()
}

fn entries(folder: &std::path::Path) -> impl Iterator<Item = DirEntry> {
    let entries = std::fs::read_dir(folder);
    if let Err(error) = &entries {
        warn!(folder = %folder.display(), %error, "a part of the cache can't be read");
    }
    entries.into_iter().flatten().flatten()
}
