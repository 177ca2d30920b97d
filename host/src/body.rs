//! The bodies of requests on their way from a client to an endpoint, and the room in which bodies of both directions
//! wait for a slower peer.

pub mod backlog;
pub mod buffer_space;
pub mod collected;
pub mod content_end;
pub mod early_content;
pub mod joined_pieces;
pub mod replay;
pub mod shared_window;
pub mod spill_file;
pub mod spool;
pub mod upload;

use std::pin::Pin;

use http_body::{Body, SizeHint};

use backlog::Piece;

/// A request body that is not the client's own as it arrives: one that passes plugins, or that is sent again.
pub type BoxBody = Pin<Box<dyn Body<Data = Piece, Error = BodyError>>>;

/// The error that ends a body before its end.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Returns the size of content with some more bytes before it.
pub fn longer(rest: SizeHint, bytes: u64) -> SizeHint {
    let mut hint = SizeHint::new();
    if let Some(upper) = rest.upper() {
        hint.set_upper(upper.saturating_add(bytes));
    }
    hint.set_lower(rest.lower().saturating_add(bytes));
    hint
}
