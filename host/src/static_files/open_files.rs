//! The number of files that a worker has open for clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::system::descriptors;

/// The number of files that a worker has open for clients, and its limit. Clients that read a response slowly keep its
/// file open, and over HTTP/2 each may request a hundred.
#[derive(Clone, Debug)]
pub struct OpenFiles {
    /// The number of open files, which the worker changes, and threads that open files for it.
    count: Arc<AtomicUsize>,
    max: usize,
}

/// The right to have a file open, until dropped.
#[derive(Debug)]
pub struct OpenFilePermit(Arc<AtomicUsize>);

/// The divisor of the file descriptors that the open files of a worker may use: one in `SHARE`. The rest is for clients
/// and endpoints.
const SHARE: usize = 8;

/// The minimum and the maximum of open files of a worker. The maximum is for machines without a limit of descriptors.
const BOUNDS: (usize, usize) = (64, 16 << 10);

impl OpenFiles {
    /// Returns an empty count, for a worker of this process.
    pub fn for_worker() -> Self {
        let (min, max) = BOUNDS;
        OpenFiles { count: Arc::default(), max: (descriptors::limit() / SHARE).clamp(min, max) }
    }

    /// Returns the maximum number of open files.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Returns a permit to open a file; `None` if all are in use.
    pub fn permit(&self) -> Option<OpenFilePermit> {
        let permit = OpenFilePermit(self.count.clone());
        // Dropping the permit undoes this.
        (self.count.fetch_add(1, Ordering::Relaxed) < self.max).then_some(permit)
    }
}

impl Drop for OpenFilePermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_permits_and_no_more() {
        let files = OpenFiles { count: Arc::default(), max: 2 };
        let (first, second) = (files.permit(), files.permit());
        assert!(first.is_some() && second.is_some() && files.permit().is_none());
        drop(first);
        assert!(files.permit().is_some(), "a refusal takes no place");
    }
}
