//! What is due when an exchange is over, whichever way it ended: figures, the access log.

use std::rc::Rc;
use std::time::{Instant, SystemTime};

use crate::access_log::Outcome;
use crate::error::Kind;
use crate::generation::Running;
use crate::head::Head;

/// Rides with the response to its last byte.
pub struct Ending {
    running: Rc<Running>,
    /// None where no route matched, so that there is nobody to count for.
    place: Option<usize>,
    head: Option<Box<Head>>,
    began: Instant,
    pub status: u16,
    pub error: Option<Kind>,
    pub response_bytes: u64,
}

impl Ending {
    /// For an exchange that begins now.
    pub fn new(running: Rc<Running>) -> Self {
        let began = Instant::now();
        Ending { running, place: None, head: None, began, status: 0, error: None, response_bytes: 0 }
    }

    /// Notes where it went.
    pub fn routed(&mut self, place: usize, head: Box<Head>) {
        (self.place, self.head) = (Some(place), Some(head));
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let figures = self.place.and_then(|place| self.running.routes.get(place)).unwrap_or(&self.running.unrouted);
        figures.ended(self.status, self.error, self.response_bytes, took);
        if let (Some(log), Some(head)) = (&self.running.generation.access_log, &self.head) {
            let outcome = Outcome { status: self.status, error: self.error, response_bytes: self.response_bytes, took };
            log.write(head, &outcome, SystemTime::now() - took);
        }
    }
}
