//! The end of content that was read ahead of its reader.

use http::HeaderMap;
use http_body::Frame;

use super::BodyError;

/// The end of content that was read ahead of its reader.
pub enum ContentEnd {
    Whole,
    Trailers(HeaderMap),
    Failed(BodyError),
}

impl ContentEnd {
    /// Returns the last frame for the reader; `None` if the content just ends.
    pub fn into_frame<D>(self) -> Option<Result<Frame<D>, BodyError>> {
        match self {
            ContentEnd::Whole => None,
            ContentEnd::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            ContentEnd::Failed(error) => Some(Err(error)),
        }
    }
}
