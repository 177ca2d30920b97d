//! Unit tests of the disk cache, with files in a temporary folder.

use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use http::Response;

use super::directory::{Directory, MARKER};
use super::*;
use crate::store::index::hash_key;
use crate::store::purge_log::PurgeTarget;
use crate::store::stored_response::Freshness;
use crate::store::variant::PurgeKind;
use crate::system::descriptor_shares::WorkerDescriptors;
use crate::system::holder_counts::Holder;

const KEY: &[u8] = b"http://a/";

/// Opens the directory as a new process does, and waits for the end of the scan.
fn open(folder: &Path) -> Arc<Disk> {
    let disk = Disk::open(folder, 64 << 20, &Arc::default()).unwrap();
    let is_found = disk.is_found.lock().unwrap();
    drop(disk.scanned.wait_while(is_found, |is_found| !*is_found).unwrap());
    disk
}

/// Drops the disk and waits until the directory is released.
fn close(disk: Arc<Disk>) {
    disk.flush(Duration::from_secs(60));
    let weak = Arc::downgrade(&disk);
    drop(disk);
    while weak.strong_count() > 0 {
        std::thread::yield_now();
    }
}

/// Returns the current moment for the response under [`KEY`].
fn moment(disk: &Disk) -> PurgeEpoch {
    disk.purges.moment(hash_key(KEY, disk.seed()))
}

/// Writes a response that was requested just now; returns the number of its file.
fn put(disk: &Disk, content: &'static str) -> u64 {
    put_at(disk, content, &moment(disk))
}

fn put_at(disk: &Disk, content: &'static str, epoch: &PurgeEpoch) -> u64 {
    let (head, ()) = Response::new(()).into_parts();
    let variant_info = VariantInfo::new(1, VaryValue::default(), None, ["t".into()].into());
    let object = StoredResponse::new(variant_info, &head, Content::Whole(content.into()), Freshness::default(), 0);
    let object = Arc::new(object.with_sequence(disk.number()));
    disk.keep(hash_key(KEY, disk.seed()), KEY, &object, epoch);
    disk.flush(Duration::from_secs(60));
    object.sequence
}

fn read(disk: &Arc<Disk>) -> Option<Bytes> {
    let filed = disk.find(hash_key(KEY, disk.seed()), KEY, 1, &HeaderMap::new())?;
    match &disk.recall(&filed, KEY, u64::MAX, descriptor())?.object.content {
        Content::Whole(content) => Some(content.clone()),
        other => panic!("{other:?}"),
    }
}

fn descriptor() -> DescriptorUse {
    WorkerDescriptors::unlimited().count(Holder::UNKNOWN)
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    Directory::at(folder).file(number)
}

#[test]
fn of_two_files_for_the_same_the_newer_counts() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let old = path_of(folder.path(), put(&disk, "old"));
    let aside = folder.path().join("aside");
    std::fs::copy(&old, &aside).unwrap();
    let new = path_of(folder.path(), put(&disk, "new"));
    close(disk);
    assert!(!old.exists() && new.exists());
    // As if the process had ended between the two steps.
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
    // As if the write had happened a year later.
    let later = number + ((366 * 24 * 3_600_000) << 16);
    std::fs::rename(path_of(folder.path(), number), path_of(folder.path(), later)).unwrap();
    let left = folder.path().join("tmp/left");
    std::fs::write(&left, "half").unwrap();
    let disk = open(folder.path());
    assert_eq!(read(&disk).as_deref(), Some(&b"old"[..]));
    assert!(!left.exists());
    assert!(put(&disk, "new") > later);
    assert_eq!(read(&disk).as_deref(), Some(&b"new"[..]));
    assert!(!path_of(folder.path(), later).exists());
}

#[test]
fn a_file_is_kept_while_no_file_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    put(&disk, "old");
    let filed = disk.find(hash_key(KEY, disk.seed()), KEY, 1, &HeaderMap::new()).unwrap();
    disk.read_failed(&filed, &io::Error::from_raw_os_error(libc::EMFILE));
    assert_eq!(disk.figures.failures.load(Ordering::Relaxed), 1);
    assert_eq!(read(&disk).as_deref(), Some(&b"old"[..]));
    disk.read_failed(&filed, &io::Error::from_raw_os_error(libc::EIO));
    assert!(read(&disk).is_none());
}

/// A reader took the end of the file for that of a record: a file to which one was appended meanwhile counted as damaged.
#[test]
fn a_file_is_read_while_a_record_is_appended() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let number = put(&disk, "content");
    let mut file = std::fs::OpenOptions::new().append(true).open(path_of(folder.path(), number)).unwrap();
    file.write_all(&[1; 100]).unwrap();
    assert_eq!(read(&disk).as_deref(), Some(&b"content"[..]));
}

#[test]
fn a_file_whose_newer_entry_is_in_the_index_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let (id, number) = (hash_key(KEY, disk.seed()), put(&disk, "content"));
    let filed = disk.find(id, KEY, 1, &HeaderMap::new()).unwrap();
    // The entry leaves the index while the writer enters a newer one for the same file.
    disk.jobs.send(Job::Remove { id, number }).unwrap();
    disk.flush(Duration::from_secs(60));
    assert_eq!(read(&disk).as_deref(), Some(&b"content"[..]));
    disk.index.remove_if(id, |known| std::ptr::eq(known, &*filed));
    disk.flush(Duration::from_secs(60));
    assert!(!path_of(folder.path(), number).exists());
}

/// An append to a file that was gone counted as a failure of the disk, after which nothing was stored for ten seconds.
#[test]
fn an_append_to_a_file_that_is_gone_is_no_failure_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let id = hash_key(KEY, disk.seed());
    let number = put(&disk, "content");
    let filed = disk.find(id, KEY, 1, &HeaderMap::new()).unwrap();
    let object = disk.recall(&filed, KEY, 0, descriptor()).unwrap().object;
    std::fs::remove_file(path_of(folder.path(), number)).unwrap();
    disk.keep(id, KEY, &object, &disk.purges.moment(id));
    disk.flush(Duration::from_secs(60));
    assert!(!disk.rests());
    assert!(disk.find(id, KEY, 1, &HeaderMap::new()).is_none());
}

#[test]
fn content_that_stays_in_its_file_is_never_told_stale_for_want_of_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let id = hash_key(KEY, disk.seed());
    let number = put(&disk, "content");
    for since_ms in 1..1_000 {
        let Some(filed) = disk.find(id, KEY, 1, &HeaderMap::new()) else {
            assert!(!path_of(folder.path(), number).exists());
            return;
        };
        let mut object = Arc::into_inner(disk.recall(&filed, KEY, 0, descriptor()).unwrap().object).unwrap();
        assert_eq!(object.since_ms, since_ms - 1, "the newest record counts");
        object.since_ms = since_ms;
        disk.keep(id, KEY, &Arc::new(object), &disk.purges.moment(id));
        disk.flush(Duration::from_secs(60));
    }
    panic!("its file grows and grows");
}

#[test]
fn unfinished_files_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    close(open(folder.path()));
    let left = folder.path().join("tmp/7");
    std::fs::write(&left, "half").unwrap();
    let disk = open(folder.path());
    assert!(!left.exists());
    assert_eq!(disk.keys(), 0);
}

#[test]
fn another_format_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let file = path_of(folder.path(), put(&disk, "old"));
    close(disk);
    std::fs::write(folder.path().join(MARKER), "0 1234\n").unwrap();
    let disk = open(folder.path());
    assert!(!file.exists() && read(&disk).is_none());
    put(&disk, "new");
    assert_eq!(read(&disk).as_deref(), Some(&b"new"[..]));
}

#[test]
fn response_purged_while_written_is_absent() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let epoch = moment(&disk);
    disk.purges.purge(&Purge { what: PurgeTarget::Tag("t".into()), strength: PurgeKind::Hard });
    let number = put_at(&disk, "content", &epoch);
    assert!(read(&disk).is_none() && !path_of(folder.path(), number).exists());
    put(&disk, "newer");
    assert!(read(&disk).is_some(), "it was asked for after the purge");
}

#[test]
fn response_soft_purged_while_written_stays_stale() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let is_purged = |disk: &Disk| {
        let filed = disk.find(hash_key(KEY, disk.seed()), KEY, 1, &HeaderMap::new());
        filed.is_some_and(|filed| filed.variant_info.is_purged())
    };
    let epoch = moment(&disk);
    disk.purges.purge(&Purge { what: PurgeTarget::All, strength: PurgeKind::Soft });
    put_at(&disk, "content", &epoch);
    assert!(is_purged(&disk));
    close(disk);
    assert!(is_purged(&open(folder.path())));
}

#[test]
fn only_regular_files_of_a_folder_are_opened() {
    let pipe = |path: PathBuf| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    let refused = |folder: &Path| Disk::open(folder, 64 << 20, &Arc::default()).err().unwrap().to_string();
    let locked = tempfile::tempdir().unwrap();
    pipe(locked.path().join("lock"));
    assert!(refused(locked.path()).contains("a named pipe"), "{}", refused(locked.path()));
    let marked = tempfile::tempdir().unwrap();
    pipe(marked.path().join(MARKER));
    assert!(refused(marked.path()).contains("a named pipe"));
    let endless = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/zero", endless.path().join(MARKER)).unwrap();
    assert!(refused(endless.path()).contains("a device"), "{}", refused(endless.path()));
    // The scan skips a pipe and finds the other files.
    let stored = tempfile::tempdir().unwrap();
    let disk = open(stored.path());
    let number = put(&disk, "content");
    close(disk);
    pipe(path_of(stored.path(), number + 1));
    let disk = open(stored.path());
    assert_eq!(read(&disk), Some("content".into()));
    close(disk);
}

#[test]
fn a_folder_of_others_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("theirs"), "").unwrap();
    assert!(Disk::open(folder.path(), 64 << 20, &Arc::default()).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_system_of_its_own_is_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("lost+found")).unwrap();
    assert_eq!(check(folder.path()), Ok(()));
    let disk = open(folder.path());
    put(&disk, "content");
    close(disk);
    assert_eq!(read(&open(folder.path())), Some("content".into()));
    assert!(folder.path().join("lost+found").exists());
}

#[test]
fn entries_with_long_names_and_tags_count_for_the_memory_that_they_take() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    put(&disk, "short");
    assert_eq!(disk.bytes() / CLUSTER, 1, "{} bytes", disk.bytes());
    let (head, ()) = Response::new(()).into_parts();
    let tags = (0..256).map(|n| format!("{n}{}", "t".repeat(1_000)).into()).collect();
    let label = VariantInfo::new(1, VaryValue::default(), None, tags);
    let object = StoredResponse::new(label, &head, Content::Whole("long".into()), Freshness::default(), 0);
    let object = Arc::new(object.with_sequence(disk.number()));
    let key = b"http://a/long";
    let id = hash_key(key, disk.seed());
    disk.keep(id, key, &object, &disk.purges.moment(id));
    disk.flush(Duration::from_secs(60));
    assert!(disk.bytes() > 8 * 256_000, "{} bytes", disk.bytes());
}
