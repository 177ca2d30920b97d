//! Finds what was stored when the process began, while it serves already.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::Instant;

use tracing::{debug, info, warn};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::{Disk, format, path, remove};
use crate::cache::purges::Moment;

/// Looks through a folder, as long as anybody has it.
pub fn run(disk: &Weak<Disk>) {
    let began = Instant::now();
    let Some((folder, asked)) = disk.upgrade().map(|disk| (disk.folder.clone(), disk.purges.moment())) else { return };
    let numbers: Vec<u64> = (0..=u8::MAX).flat_map(|place| numbers(&folder.join(format!("{place:02x}")))).collect();
    if let (Some(disk), Some(newest)) = (disk.upgrade(), numbers.iter().max()) {
        // A clock that was set back makes nothing that comes now the older one.
        disk.next.fetch_max(newest.saturating_add(1), Ordering::Relaxed);
    }
    let (mut found, mut broken, mut unreadable) = (0, 0, 0);
    for number in numbers {
        let Some(disk) = disk.upgrade() else { return };
        match find(&disk, number, asked) {
            Ok(()) => found += 1,
            Err(error) if format::is_broken(&error) => {
                debug!(path = %path(&folder, number).display(), %error, "not whole");
                broken += 1;
                remove(&path(&folder, number));
            }
            // One that has just been replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                debug!(path = %path(&folder, number).display(), %error, "unreadable");
                unreadable += 1;
            }
        }
    }
    let Some(disk) = disk.upgrade() else { return };
    *disk.is_found.lock().unwrap_or_else(PoisonError::into_inner) = true;
    disk.found.notify_all();
    let (folder, took) = (folder.display(), began.elapsed());
    match broken + unreadable {
        0 => info!(%folder, found, ?took, "cache on disk"),
        _ => warn!(%folder, found, broken, unreadable, ?took, "cache on disk: what wasn't whole is removed"),
    }
}

fn find(disk: &Disk, number: u64, asked: Moment) -> io::Result<()> {
    let read = format::read(&File::open(path(&disk.folder, number))?, disk.seed)?;
    let id = xxh3_128_with_seed(&read.key, disk.seed);
    // What this process has written needs not to be found.
    if disk.index.same(id, &read.label).is_some_and(|known| known.number == number) {
        return Ok(());
    }
    disk.place(id, &read.key, &read.label, (number, read.size), asked);
    Ok(())
}

/// The numbers of the files in a folder.
fn numbers(folder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder);
    if let Err(error) = &entries {
        warn!(folder = %folder.display(), %error, "a part of the cache can't be read");
    }
    let number = |entry: std::fs::DirEntry| u64::from_str_radix(entry.file_name().to_str()?, 16).ok();
    entries.into_iter().flatten().flatten().filter_map(number).collect()
}
