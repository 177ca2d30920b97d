//! Content in memory: one allocation, or pieces.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

/// Content that is in memory to its last byte.
#[derive(Debug)]
pub enum MemoryContent {
    Whole(Bytes),
    /// Content that is too long for one allocation, or has trailers.
    Pieces(Arc<Pieces>),
}

/// Content in pieces, none of them empty.
#[derive(Debug)]
pub struct Pieces {
    pub list: Vec<Bytes>,
    /// The length of all pieces together, in bytes.
    pub length: u64,
    pub trailers: Option<HeaderMap>,
}
