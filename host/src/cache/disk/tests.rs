use http::Response;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::super::object::Rules;
use super::super::purges::Purged;
use super::*;

const KEY: &[u8] = b"http://a/";

/// As a process that begins would, once all is found.
fn open(folder: &Path) -> Arc<Disk> {
    let disk = Disk::open(folder, 64 << 20, &Arc::default()).unwrap();
    let is_found = disk.is_found.lock().unwrap();
    drop(disk.found.wait_while(is_found, |is_found| !*is_found).unwrap());
    disk
}

/// Waits until nobody has the folder any more.
fn close(disk: Arc<Disk>) {
    disk.flush(Duration::from_secs(60));
    let weak = Arc::downgrade(&disk);
    drop(disk);
    while weak.strong_count() > 0 {
        std::thread::yield_now();
    }
}

fn put(disk: &Disk, content: &'static str) -> u64 {
    let (head, ()) = Response::new(()).into_parts();
    let label = Label::new(1, Selectors::default(), None, ["t".into()].into());
    let object = Object::new(label, &head, Content::Whole(content.into()), Rules::default(), 0);
    let object = Arc::new(object.numbered(disk.number()));
    disk.keep(xxh3_128_with_seed(KEY, disk.seed), KEY, &object, disk.purges.moment());
    disk.flush(Duration::from_secs(60));
    object.number
}

fn read(disk: &Arc<Disk>) -> Option<Bytes> {
    let filed = disk.find(xxh3_128_with_seed(KEY, disk.seed), KEY, 1, &HeaderMap::new())?;
    match &disk.recall(&filed, KEY, u64::MAX)?.object.content {
        Content::Whole(content) => Some(content.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_two_files_for_the_same_the_newer_counts() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let old = path(folder.path(), put(&disk, "old"));
    let aside = folder.path().join("aside");
    std::fs::copy(&old, &aside).unwrap();
    let new = path(folder.path(), put(&disk, "new"));
    close(disk);
    assert!(!old.exists() && new.exists());
    // As if the process had ended between the one and the other.
    std::fs::rename(&aside, &old).unwrap();
    let disk = open(folder.path());
    assert_eq!(read(&disk).as_deref(), Some(&b"new"[..]));
    disk.flush(Duration::from_secs(60));
    assert!(!old.exists());
}

#[test]
fn a_clock_that_was_set_back_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let number = put(&disk, "old");
    close(disk);
    // As if that had been a year later.
    let later = number + ((366 * 24 * 3_600_000) << 16);
    std::fs::rename(path(folder.path(), number), path(folder.path(), later)).unwrap();
    let left = temporary(folder.path(), later + 1);
    std::fs::write(&left, "half").unwrap();
    let disk = open(folder.path());
    assert_eq!(read(&disk).as_deref(), Some(&b"old"[..]));
    assert!(!left.exists());
    assert!(put(&disk, "new") > later);
    assert_eq!(read(&disk).as_deref(), Some(&b"new"[..]));
    assert!(!path(folder.path(), later).exists());
}

#[test]
fn a_file_is_kept_while_no_file_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    put(&disk, "old");
    let filed = disk.find(xxh3_128_with_seed(KEY, disk.seed), KEY, 1, &HeaderMap::new()).unwrap();
    disk.lost(&filed, &io::Error::from_raw_os_error(libc::EMFILE));
    assert_eq!(disk.figures.failures.load(Ordering::Relaxed), 1);
    assert_eq!(read(&disk).as_deref(), Some(&b"old"[..]));
    disk.lost(&filed, &io::Error::from_raw_os_error(libc::EIO));
    assert!(read(&disk).is_none());
}

#[test]
fn content_that_stays_in_its_file_is_never_told_stale_for_want_of_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let id = xxh3_128_with_seed(KEY, disk.seed);
    let number = put(&disk, "content");
    for since_ms in 1..1_000 {
        let Some(filed) = disk.find(id, KEY, 1, &HeaderMap::new()) else {
            // The order to remove it came while the last flush was waiting.
            disk.flush(Duration::from_secs(60));
            assert!(!path(folder.path(), number).exists());
            return;
        };
        let mut object = Arc::into_inner(disk.recall(&filed, KEY, 0).unwrap().object).unwrap();
        assert_eq!(object.since_ms, since_ms - 1, "the newest record counts");
        object.since_ms = since_ms;
        disk.keep(id, KEY, &Arc::new(object), disk.purges.moment());
        disk.flush(Duration::from_secs(60));
    }
    panic!("its file grows and grows");
}

#[test]
fn what_nobody_finished_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    close(open(folder.path()));
    let left = temporary(folder.path(), 7);
    std::fs::write(&left, "half").unwrap();
    let disk = open(folder.path());
    assert!(!left.exists());
    assert_eq!(disk.keys(), 0);
}

#[test]
fn another_format_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let file = path(folder.path(), put(&disk, "old"));
    close(disk);
    std::fs::write(folder.path().join(MARKER), "0 1234\n").unwrap();
    let disk = open(folder.path());
    assert!(!file.exists() && read(&disk).is_none());
    put(&disk, "new");
    assert_eq!(read(&disk).as_deref(), Some(&b"new"[..]));
}

#[test]
fn what_was_purged_while_it_was_written_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let asked = disk.purges.moment();
    disk.purges.purge(&Purge { what: Purged::Tag("t".into()), soft: false });
    let number = put(&disk, "new");
    assert!(read(&disk).is_some(), "it was asked for after the purge");
    let filed = disk.find(xxh3_128_with_seed(KEY, disk.seed), KEY, 1, &HeaderMap::new()).unwrap();
    let old = put(&disk, "old");
    disk.place(filed.id, KEY, &filed.label, (old, 10), asked);
    disk.flush(Duration::from_secs(60));
    assert!(!path(folder.path(), old).exists() && !path(folder.path(), number).exists());
}
