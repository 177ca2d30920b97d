//! Documents that are created when a client requests them, on a thread of their own: thousands of routes and plugins
//! take longer than the control thread can spare.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::task::JoinError;

use super::Admin;

/// A document, created by one thread at a time. Clients that wait for it concurrently share the result.
pub struct Document {
    make: fn(&Admin) -> String,
    last: Arc<Mutex<Option<Made>>>,
}

struct Made {
    /// The time when the creation began: the document shows the state from then on.
    begun: Instant,
    content: Bytes,
}

impl Document {
    /// Creates a document with `make` as its source.
    pub fn new(make: fn(&Admin) -> String) -> Self {
        Document { make, last: Arc::default() }
    }

    /// Returns the document with the state of now, or slightly later.
    pub async fn current(&self, admin: &Arc<Admin>) -> Result<Bytes, JoinError> {
        let requested_at = Instant::now();
        let mut last = self.last.clone().lock_owned().await;
        let made = last.as_ref().filter(|made| made.begun >= requested_at).map(|made| made.content.clone());
        let content = if let Some(content) = made {
            drop(last);
            content
        } else {
            let (admin, make) = (admin.clone(), self.make);
            // The thread keeps the lock even if its client disconnects: there is never a second thread.
            let thread = tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                let content = Bytes::from(make(&admin));
                *last = Some(Made { begun, content: content.clone() });
                content
            });
            thread.await?
        };
        self.forget();
        Ok(content)
    }

    /// Frees the last document, unless another client waits for it.
    fn forget(&self) {
        if Arc::strong_count(&self.last) == 1
            && let Ok(mut last) = self.last.try_lock()
        {
            *last = None;
        }
    }
}
