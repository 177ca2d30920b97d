use super::*;

const MS: u64 = 1_000_000;

/// A second after the beginning of time.
const START: u64 = 1000 * MS;

fn state(bytes: usize, entries: usize) -> SharedState {
    SharedState::new(SharedLimits { bytes, entries })
}

fn small() -> SharedState {
    state(MIN_BYTES, MIN_ENTRIES)
}

/// Returns a value as text.
fn text(state: &SharedState, key: &str, now: u64) -> Option<String> {
    state.get(key.as_bytes(), now).unwrap().map(|value| String::from_utf8(value).unwrap())
}

fn set(state: &SharedState, key: &str, value: &str, ttl_ms: Option<u64>, now: u64) {
    state.set(key.into(), value.into(), ttl_ms, now).unwrap();
}

#[test]
fn a_value_is_there_until_it_expires_or_is_deleted() {
    let state = small();
    assert_eq!(text(&state, "a", START), None);
    set(&state, "a", "1", Some(100), START);
    set(&state, "b", "2", None, START);
    assert_eq!(text(&state, "a", START + 99 * MS).as_deref(), Some("1"));
    assert_eq!(text(&state, "a", START + 100 * MS), None);
    assert_eq!(text(&state, "b", u64::MAX - 1).as_deref(), Some("2"));
    // A new value has a new time, and may have none.
    set(&state, "a", "3", Some(100), START);
    set(&state, "a", "4", None, START);
    assert_eq!(text(&state, "a", START + 500 * MS).as_deref(), Some("4"));
    assert_eq!((state.delete(b"a", START), state.delete(b"a", START)), (Ok(true), Ok(false)));
    set(&state, "gone", "5", Some(0), START);
    assert_eq!((text(&state, "gone", START), state.delete(b"gone", START)), (None, Ok(false)));
    assert_eq!(state.usage(), SharedUse { entries: 1, bytes: 1 + 1 + ENTRY_OVERHEAD, evicted: 0 });
}

#[test]
fn a_counter_counts_within_the_time_of_its_first_call() {
    let state = small();
    let add = |amount, now| state.add("n".into(), amount, Some(100), now);
    assert_eq!((add(2, START), add(3, START + 60 * MS), add(-6, START + 99 * MS)), (Ok(2), Ok(5), Ok(-1)));
    assert_eq!(text(&state, "n", START + 99 * MS).as_deref(), Some("-1"));
    assert_eq!(add(7, START + 100 * MS), Ok(7));
    assert_eq!(add(i64::MAX, START + 100 * MS), Err(SharedError::Overflow));
    assert_eq!(add(0, START + 100 * MS), Ok(7));
}

#[test]
fn a_counter_is_a_decimal_number() {
    let state = small();
    set(&state, "n", "41", None, START);
    assert_eq!(state.add("n".into(), 1, None, START), Ok(42));
    assert_eq!(state.compare_and_swap("n".into(), Some(b"42"), "x".into(), None, START), Ok(true));
    for other in ["", "x", "007", "+1", " 1", "9223372036854775808", "1.0", "123456789012345678901234567890"] {
        set(&state, "n", other, None, START);
        assert_eq!(state.add("n".into(), 1, None, START), Err(SharedError::OtherKind), "{other}");
    }
    assert_eq!(text(&state, "n", START).as_deref(), Some("123456789012345678901234567890"));
}

#[test]
fn a_swap_compares_the_value_that_is_there() {
    let state = small();
    let swap = |expected: Option<&str>, value: &str, now| {
        state.compare_and_swap("k".into(), expected.map(str::as_bytes), value.into(), Some(100), now)
    };
    assert_eq!(swap(Some(""), "x", START), Ok(false));
    assert_eq!((swap(None, "1", START), swap(None, "2", START)), (Ok(true), Ok(false)));
    assert_eq!((swap(Some("2"), "3", START), swap(Some("1"), "3", START + 50 * MS)), (Ok(false), Ok(true)));
    assert_eq!(text(&state, "k", START + 149 * MS).as_deref(), Some("3"));
    assert_eq!(swap(Some("3"), "4", START + 150 * MS), Ok(false));
    assert_eq!(swap(None, "4", START + 150 * MS), Ok(true));
}

#[test]
fn a_bucket_is_no_value_and_a_value_no_bucket() {
    let state = small();
    let rate = TakeRate { tokens: 1, period_ms: 1000, burst: 2 };
    let take = |key: &str, now| state.take(key.into(), rate, 1, now);
    assert!(take("b", START).unwrap().allowed && take("b", START).unwrap().allowed);
    assert_eq!(take("b", START).unwrap().retry_after_ms, 1000);
    assert_eq!(state.get(b"b", START), Err(SharedError::OtherKind));
    assert_eq!(state.add("b".into(), 1, None, START), Err(SharedError::OtherKind));
    assert_eq!(state.compare_and_swap("b".into(), None, "x".into(), None, START), Err(SharedError::OtherKind));
    set(&state, "v", "1", None, START);
    assert_eq!(take("v", START), Err(SharedError::OtherKind));
    // A full bucket is none.
    assert_eq!(state.get(b"b", START + 2000 * MS), Ok(None));
    // A value takes the place of a bucket, and a bucket that is deleted is full.
    assert_eq!(state.delete(b"b", START), Ok(false));
    take("b", START).unwrap();
    assert_eq!((state.delete(b"b", START), take("b", START).unwrap().remaining), (Ok(true), 1));
    set(&state, "b", "1", None, START);
    assert_eq!(text(&state, "b", START).as_deref(), Some("1"));
    // A look at a full bucket leaves nothing behind.
    let before = state.usage();
    assert_eq!(state.take("new".into(), rate, 0, START).unwrap().remaining, 2);
    assert_eq!(state.usage(), before);
}

#[test]
fn keys_and_values_have_a_length() {
    let state = small();
    let (key, value) = (vec![b'k'; bounds::SHARED_KEY], vec![b'v'; bounds::SHARED_VALUE]);
    assert_eq!(state.set(key.clone(), value.clone(), None, START), Ok(()));
    assert_eq!(state.get(&key, START).unwrap().map(|value| value.len()), Some(bounds::SHARED_VALUE));
    let (long_key, long_value) = ([&key[..], b"k"].concat(), [&value[..], b"v"].concat());
    assert_eq!(state.set(key.clone(), long_value.clone(), None, START), Err(SharedError::ValueTooLong));
    assert_eq!(
        state.compare_and_swap(key.clone(), Some(&value), long_value, None, START),
        Err(SharedError::ValueTooLong)
    );
    assert_eq!(state.get(&long_key, START), Err(SharedError::KeyTooLong));
    assert_eq!(state.set(long_key.clone(), Vec::new(), None, START), Err(SharedError::KeyTooLong));
    assert_eq!(state.delete(&long_key, START), Err(SharedError::KeyTooLong));
    let rate = TakeRate { tokens: 1, period_ms: 1, burst: 1 };
    assert_eq!(state.take(long_key, rate, 1, START), Err(SharedError::KeyTooLong));
    assert_eq!(state.add(Vec::new(), 1, None, START), Ok(1));
}

#[test]
fn the_entry_that_was_not_used_for_the_longest_time_is_evicted() {
    let mut part = SharedPart::new(SharedLimits { bytes: 3 * (ENTRY_OVERHEAD + 1), entries: 10 });
    let insert = |part: &mut SharedPart, key: u8, value: SharedValue| {
        part.insert(SharedEntry { hash: key.into(), key: [key].into(), value, expires: NEVER }, START);
    };
    let has = |part: &mut SharedPart, key: u8| part.find(key.into(), &[key], START).is_some();
    (1..=3).for_each(|key| insert(&mut part, key, SharedValue::Count(1)));
    assert!(has(&mut part, 1));
    insert(&mut part, 4, SharedValue::Count(1));
    assert_eq!([1, 2, 3, 4].map(|key| has(&mut part, key)), [true, false, true, true]);
    // One that grows is the last to leave.
    let found = part.find(3, &[3], START).unwrap();
    part.replace(found, SharedValue::Bytes([0; ENTRY_OVERHEAD].into()), NEVER);
    assert_eq!([1, 3, 4].map(|key| has(&mut part, key)), [false, true, true]);
    assert_eq!(part.usage(), SharedUse { entries: 2, bytes: 3 * ENTRY_OVERHEAD + 2, evicted: 2 });
    part.resize(SharedLimits { bytes: usize::MAX, entries: 1 });
    assert_eq!([3, 4].map(|key| has(&mut part, key)), [false, true]);
}

#[test]
fn expired_entries_leave_before_others_are_evicted() {
    let mut part = SharedPart::new(SharedLimits { bytes: usize::MAX, entries: 100 });
    let mut insert = |key: u32, ttl: u64, now: u64| {
        let entry = SharedEntry {
            hash: u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            key: key.to_le_bytes().into(),
            value: SharedValue::Count(1),
            expires: now + ttl,
        };
        part.insert(entry, now);
        part.usage()
    };
    // Each lives for forty inserts: at any time, forty are alive.
    let last = (0..10_000).map(|key| insert(key, 40, u64::from(key))).last().unwrap();
    assert_eq!(last.evicted, 0);
    assert!((40..=100).contains(&last.entries), "{last:?}");
}

#[test]
fn a_state_stays_within_its_limits_whatever_is_put_in() {
    let state = small();
    for key in 0..50_000_u32 {
        let value = vec![0; (key as usize * 37) % bounds::SHARED_VALUE];
        state.set(key.to_le_bytes().into(), value, Some(u64::MAX), START).unwrap();
        if key % 1000 == 0 {
            let usage = state.usage();
            assert!(usage.entries <= MIN_ENTRIES && usage.bytes <= MIN_BYTES, "{usage:?}");
        }
    }
    let usage = state.usage();
    assert!(usage.evicted > 40_000 && usage.entries > 100 && usage.bytes > MIN_BYTES / 2, "{usage:?}");
    let exact: usize = (0..50_000_u32)
        .filter_map(|key| state.get(&key.to_le_bytes(), START).unwrap())
        .map(|value| value.len() + 4 + ENTRY_OVERHEAD)
        .sum();
    assert_eq!(state.usage().bytes, exact);
    state.resize(SharedLimits { bytes: MIN_BYTES / 4, entries: PARTS });
    assert!(state.usage().entries <= PARTS);
    state.resize(SharedLimits::default());
    (0..50_000_u32).for_each(|key| state.set(key.to_le_bytes().into(), Vec::new(), None, START).unwrap());
    assert_eq!(state.usage().entries, 50_000);
}

#[test]
fn what_several_threads_count_and_swap_is_exact() {
    let state = small();
    let swap = || loop {
        let known = state.get(b"swapped", START).unwrap();
        let next = known.as_ref().map_or(1, |known| known[0] as u16 + 1) as u8;
        if state.compare_and_swap(b"swapped".to_vec(), known.as_deref(), vec![next], None, START).unwrap() {
            return;
        }
    };
    let rate = TakeRate { tokens: 1, period_ms: 1000, burst: 100 };
    let taken = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    state.add(b"added".to_vec(), 1, None, START).unwrap();
                    swap();
                    let allowed = state.take(b"bucket".to_vec(), rate, 1, START).unwrap().allowed;
                    taken.fetch_add(u32::from(allowed), std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(text(&state, "added", START).as_deref(), Some("200"));
    assert_eq!(state.get(b"swapped", START), Ok(Some(vec![200])));
    assert_eq!(taken.into_inner(), 100);
}

#[test]
fn keys_are_listed_a_part_at_a_time() {
    let state = small();
    let list = |prefix: &[u8], now| {
        let (mut keys, mut cursor, mut calls) = (Vec::new(), Some(0), 0);
        while let Some(at) = cursor {
            let page = state.keys(prefix, at, now);
            assert!(page.keys.len() <= MAX_LISTED_KEYS);
            keys.extend(page.keys.into_iter().map(|key| String::from_utf8(key).unwrap()));
            (cursor, calls) = (page.next, calls + 1);
        }
        keys.sort();
        (keys, calls)
    };
    assert_eq!(list(b"", START).0, [""; 0]);
    for (key, ttl) in [("a/1", None), ("a/2", Some(100)), ("b/1", None), ("", None)] {
        set(&state, key, "1", ttl, START);
    }
    state.add("a/n".into(), 0, None, START).unwrap();
    state.take("a/bucket".into(), TakeRate { tokens: 1, period_ms: 1000, burst: 1 }, 1, START).unwrap();
    set(&state, "a/gone", "1", None, START);
    state.delete(b"a/gone", START).unwrap();
    assert_eq!(list(b"a/", START).0, ["1", "2", "n"]);
    assert_eq!(list(b"a/", START + 100 * MS).0, ["1", "n"]);
    assert_eq!(list(b"", START).0, ["", "a/1", "a/2", "a/n", "b/1"]);
    state.resize(SharedLimits::default());
    (0..90_000_u32).for_each(|key| set(&state, &format!("c{key}"), "", None, START));
    let (keys, calls) = list(b"c", START);
    assert!(keys.len() == 90_000 && calls > PARTS, "{} in {calls}", keys.len());
    for cursor in [u64::MAX, 1 << 63, (PARTS as u64) << 32, u32::MAX.into()] {
        assert!(state.keys(b"", cursor, START).keys.is_empty());
    }
}

#[test]
fn a_state_lasts_as_long_as_someone_holds_it() {
    let mut states = SharedStates::default();
    let limits = SharedLimits::default();
    let [quota, other] = ["quota", "other"].map(|name| StateOwner::Plugin(name.into()));
    let one = states.of(&quota, limits);
    set(&one, "a", "1", None, START);
    assert!(Arc::ptr_eq(&one, &states.of(&quota, limits)));
    assert_eq!(text(&states.of(&other, limits), "a", START), None);
    drop(one);
    assert_eq!(text(&states.of(&quota, limits), "a", START), None);
    assert_eq!(states.0.len(), 1);
}
