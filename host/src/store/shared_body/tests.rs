//! Unit tests of bodies that are read while they arrive.

use http_body::Body;

use super::*;
use crate::store::memory_content::HeldBytes;
use crate::store::stored_body::StoredBody;
use crate::store::stored_response::Content;
use crate::system::descriptor_shares::WorkerDescriptors;
use crate::system::holder_counts::Holder;

/// The bytes that may wait in memory.
const WINDOW: usize = 16;

pub fn read(stored: &mut StoredBody) -> Vec<u8> {
    let (mut cx, mut all) = (Context::from_waker(Waker::noop()), Vec::new());
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut *stored).poll_frame(&mut cx) {
        all.extend(frame.into_data().unwrap_or_default());
    }
    all
}

pub fn filled(pieces: &[&'static str]) -> (Arc<SharedBody>, Content) {
    let fill = SharedBody::new(None);
    pieces.iter().for_each(|piece| fill.push(Bytes::from_static(piece.as_bytes())));
    (fill.clone(), Content::Filling(fill))
}

#[test]
fn readers_get_all_whenever_they_come() {
    let (fill, content) = filled(&["abc", "def"]);
    let mut early = StoredBody::all(&content).unwrap();
    assert_eq!(read(&mut early), b"abcdef");
    fill.push(Bytes::from_static(b"ghi"));
    fill.finish(None);
    let whole = fill.content(None).into();
    let mut late = StoredBody::all(&content).unwrap();
    assert_eq!((read(&mut early), read(&mut late)), (b"ghi".to_vec(), b"abcdefghi".to_vec()));
    assert_eq!(read(&mut StoredBody::all(&whole).unwrap()), b"abcdefghi");
    assert_eq!(whole.length(), Some(9));
}

#[test]
fn unkept_body_waits_for_its_slowest_reader_and_ends_with_the_last() {
    let (fill, content) = filled(&["abc"]);
    let mut cx = Context::from_waker(Waker::noop());
    let (mut quick, slow) = (StoredBody::all(&content).unwrap(), StoredBody::all(&content).unwrap());
    fill.pass();
    fill.set_window(WINDOW as u64);
    for _ in 3..WINDOW {
        assert_eq!(fill.poll_ready(&mut cx), Poll::Ready(Ok(())));
        fill.push(Bytes::from_static(b"d"));
    }
    read(&mut quick);
    assert!(fill.poll_ready(&mut cx).is_pending());
    drop(slow);
    assert_eq!(fill.poll_ready(&mut cx), Poll::Ready(Ok(())));
    assert!(StoredBody::all(&content).is_none(), "its beginning is gone");
    drop(quick);
    assert_eq!(fill.poll_ready(&mut cx), Poll::Ready(Err(Abandoned)));
}

#[test]
fn short_pieces_are_joined_and_readers_notice_nothing() {
    let (fill, content) = filled(&[]);
    let mut early = StoredBody::all(&content).unwrap();
    let mut all: Vec<u8> = Vec::new();
    for at in 0..1000_u32 {
        let piece = vec![at as u8; if at % 300 == 0 { SHORT } else { 1 }];
        all.extend(&piece);
        fill.push(piece.into());
        if at % 7 == 0 {
            let some = read(&mut early);
            assert_eq!(some, all[all.len() - some.len()..]);
        }
    }
    assert!(fill.state().pieces.len() < 4 * (JOINED + 2), "{}", fill.state().pieces.len());
    fill.finish(None);
    assert!(read(&mut StoredBody::all(&content).unwrap()) == all);
    assert!(read(&mut StoredBody::part(&content, 500, 100).unwrap()) == all[500..600]);
    assert!(read(&mut StoredBody::all(&fill.content(None).into()).unwrap()) == all);
}

#[test]
fn a_reader_that_stands_still_while_others_wait_is_left_behind() {
    let (fill, content) = filled(&["abc"]);
    let [mut quick, mut slow, mut slower] = [(); 3].map(|()| StoredBody::all(&content).unwrap());
    fill.pass();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(Pin::new(&mut slow).poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
    fill.set_window(WINDOW as u64);
    (3..WINDOW).for_each(|_| fill.push(Bytes::from_static(b"d")));
    fill.leave_behind(2);
    assert!(fill.poll_ready(&mut cx).is_pending() && !fill.has_waiting_reader(), "nobody waits for more");
    read(&mut quick);
    // The slow one takes as much as is asked of it, again and again.
    (0..2).for_each(|_| drop(Pin::new(&mut slow).poll_frame(&mut cx)));
    fill.leave_behind(2);
    assert_eq!(fill.poll_ready(&mut cx), Poll::Ready(Ok(())));
    assert!(matches!(Pin::new(&mut slower).poll_frame(&mut cx), Poll::Ready(Some(Err(_)))));
    assert_eq!(read(&mut slow).len(), WINDOW - 5);
    drop(slower);
    drop(StoredBody::part(&content, 15, 1));
    let state = fill.state();
    assert_eq!((state.reading, state.readers.len()), (2, 3));
}

/// Content that is not stored passes through files for a slow reader, and the files are closed behind it.
#[tokio::test(flavor = "current_thread")]
async fn slow_readers_of_unkept_content_read_files() {
    use http_body_util::BodyExt;

    use crate::body::buffer_space::tests::space;
    let folder = tempfile::tempdir().unwrap();
    let (usage, space) = space(folder.path());
    let (fill, content) = filled(&["abc"]);
    let (mut quick, slow) = (StoredBody::all(&content).unwrap(), StoredBody::all(&content).unwrap());
    fill.pass();
    fill.set_window(WINDOW as u64);
    let (mut all, mut got) = (b"abc".to_vec(), Vec::new());
    for at in 0..100_u8 {
        let piece = vec![at; 7];
        all.extend(&piece);
        fill.push(piece.into());
        got.extend(read(&mut quick));
        while let Some((start, pieces)) = fill.next_to_spill(1 << 20) {
            let (file, end) =
                (SpillFile::new(&space).unwrap(), start + pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
            assert!(file.grow(end - start, &space));
            file.write(start, pieces, &space).await.unwrap().unwrap();
            fill.set_spilled(start, end, file);
        }
        assert!(fill.in_memory() < WINDOW as u64);
    }
    assert!(fill.is_behind() && usage.files() > 500, "{}", usage.files());
    assert!(StoredBody::all(&content).is_some(), "all is there");
    fill.finish(None);
    assert!(got == all);
    assert!(slow.collect().await.unwrap().to_bytes() == all);
    while usage.files() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(!fill.is_behind());
}

#[test]
fn content_waits_for_a_lone_reader_and_for_one_that_is_far_behind() {
    let (fill, content) = filled(&["abc"]);
    let (mut quick, slow) = (StoredBody::all(&content).unwrap(), StoredBody::all(&content).unwrap());
    fill.pass();
    fill.set_window(WINDOW as u64);
    (0..WINDOW).for_each(|_| fill.push(Bytes::from_static(b"d")));
    read(&mut quick);
    assert!(fill.next_to_spill(10).is_none() && fill.next_to_spill(100).is_some());
    drop(quick);
    assert!(fill.next_to_spill(100).is_none());
    drop(slow);
}

/// Content that had arrived before a response turned out to be too long for the store stayed in memory for a slow client.
#[test]
fn content_that_was_retained_goes_into_a_file_for_a_lone_reader() {
    let (fill, content) = filled(&["abc"]);
    let _slow = StoredBody::all(&content).unwrap();
    (0..10).for_each(|_| fill.push(Bytes::from(vec![7; 10_000])));
    fill.pass();
    let (at, pieces) = fill.next_to_spill(1 << 20).expect("it does not fit into the window");
    assert_eq!((at, pieces.iter().map(Bytes::len).sum::<usize>()), (0, 100_003));
}

/// The memory of a reader that was there before the content was stored was counted by nothing.
#[test]
fn readers_have_the_memory_of_the_stored_content() {
    let (fill, content) = filled(&[]);
    (0..3).for_each(|_| fill.push(Bytes::from(vec![7; 100_000])));
    let slow = StoredBody::all(&content).unwrap();
    fill.finish(None);
    let MemoryContent::Pieces(pieces) = fill.content(None) else { panic!("300 kB in one allocation") };
    let held = HeldBytes::default();
    pieces.enter(&held);
    pieces.leave();
    drop((pieces, fill, content));
    assert_eq!(held.bytes(), 300_000);
    drop(slow);
    assert_eq!(held.bytes(), 0);
}

#[test]
fn a_reader_that_takes_little_holds_no_more_than_that() {
    let (fill, content) = filled(&[]);
    fill.push(Bytes::from(vec![7; 100_000]));
    let mut body = StoredBody::all(&content).unwrap();
    body.limit_reads(1_000);
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else { panic!("a piece is there") };
    let piece = frame.into_data().unwrap();
    assert!(piece.len() == 1_000 && piece.is_unique(), "{}", piece.len());
}

#[test]
fn readers_that_leave_make_room_for_others() {
    let (fill, content) = filled(&["abc"]);
    let stays = StoredBody::all(&content).unwrap();
    for _ in 0..100 {
        drop((StoredBody::all(&content).unwrap(), StoredBody::all(&content).unwrap()));
    }
    assert!(fill.state().readers.len() <= 3, "{}", fill.state().readers.len());
    assert!(!fill.state().is_unread());
    drop(stays);
    assert!(fill.state().is_unread());
}

#[test]
fn broken_content_has_no_end_that_looks_like_one() {
    let (fill, content) = filled(&["abc"]);
    let mut body = StoredBody::all(&content).unwrap();
    read(&mut body);
    fill.fail();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(Some(Err(_)))));
}

#[test]
fn long_content_is_repacked() {
    let fill = SharedBody::new(None);
    for _ in 0..3 {
        fill.push(Bytes::from(vec![7; 700 << 10]));
    }
    let MemoryContent::Pieces(pieces) = fill.content(None) else { panic!("2.1 MiB in one allocation") };
    assert_eq!(pieces.length, 3 * (700 << 10));
    assert!(pieces.list[..pieces.list.len() - 1].iter().all(|piece| piece.len() == PIECE));
    assert_eq!(pieces.list.iter().map(Bytes::len).sum::<usize>(), 3 * (700 << 10));
}

/// Slow readers read the file, and the others read the memory, which holds little.
#[tokio::test(flavor = "current_thread")]
async fn body_in_a_file_is_read_from_the_file() {
    use http_body_util::BodyExt;
    const BLOCK: usize = 4 << 10;
    let descriptor = WorkerDescriptors::unlimited().count(Holder::UNKNOWN);
    let file = Arc::new(CountedFile::new(tempfile::tempfile().unwrap(), descriptor));
    let (fill, content) = filled(&["abc"]);
    let early = StoredBody::all(&content).unwrap();
    fill.spill(file.clone());
    let mut all = b"abc".to_vec();
    for at in 0..200 {
        let piece = vec![at as u8; 700];
        all.extend(&piece);
        fill.push(piece.into());
        while let Some((offset, block)) = fill.next_block(BLOCK, WriteProgress::Arriving) {
            file.write_all_at(&block, offset).unwrap();
            fill.set_written(offset + block.len() as u64);
        }
        assert!(fill.in_memory() <= KEPT + 2 * BLOCK as u64);
    }
    let (offset, block) = fill.next_block(BLOCK, WriteProgress::Whole).unwrap();
    assert!(block.len() < BLOCK);
    // The last block isn't written any more.
    fill.pass();
    let late = StoredBody::all(&content).unwrap();
    let part = StoredBody::part(&content, 500, 100).unwrap();
    fill.finish(None);
    assert_eq!(offset as usize + block.len(), all.len());
    for (body, wanted) in [(early, &all[..]), (late, &all[..]), (part, &all[500..600])] {
        assert!(body.collect().await.unwrap().to_bytes() == wanted);
    }
}
