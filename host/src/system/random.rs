//! Random identifiers. The random numbers of many of them come from the system at once: a system call for each would cost as
//! much as a short hook of a plugin.

use std::cell::RefCell;

/// The number of identifiers whose random numbers a thread takes at once.
const AT_ONCE: usize = 64;

/// The random numbers of a thread that no identifier has used yet.
struct Unused {
    ids: [[u8; 16]; AT_ONCE],
    left: usize,
}

thread_local! {
    static UNUSED: RefCell<Unused> = const { RefCell::new(Unused { ids: [[0; 16]; AT_ONCE], left: 0 }) };
}

/// Returns 16 random bytes; zeros if the system has no random numbers.
pub fn id() -> [u8; 16] {
    UNUSED.with_borrow_mut(|unused| {
        if unused.left == 0 && getrandom::fill(unused.ids.as_flattened_mut()).is_ok() {
            unused.left = AT_ONCE;
        }
        let Some(index) = unused.left.checked_sub(1) else { return [0; 16] };
        unused.left = index;
        // No identifier can be found out of the memory of the process afterwards.
        std::mem::take(&mut unused.ids[index])
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_identifier_occurs_twice_on_any_thread() {
        let ids = || (0..5 * AT_ONCE + 1).map(|_| id()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(ids)).collect();
        let all: Vec<[u8; 16]> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        assert!(!all.contains(&[0; 16]));
    }
}
