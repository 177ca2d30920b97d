//! Receiving the content of a request before an endpoint is asked, so that a slow client holds no endpoint.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};

use crate::body::backlog::Piece;
use crate::body::buffer_space::BufferSpace;
use crate::body::collected::{CollectedBody, CollectedContent};
use crate::body::early_content::{EarlyContent, NextContent, poll_next_content};
use crate::body::spool::{Overflow, Spool};
use crate::body::upload::{RequestBody, UploadProgress};
use crate::body::{BodyError, longer};
use crate::error::{Error, FailureKind, causes};
use crate::generation::{BufferedContent, RequestBuffer};

/// Content of which the beginning was read before an endpoint takes it, and the rest.
pub struct BegunBody {
    beginning: EarlyContent,
    rest: RequestBody,
}

/// Returns the rule for the content of a request; `None` if it is sent as it arrives. `length` is declared by the
/// head.
pub fn rule(buffer: Option<RequestBuffer>, length: Option<u64>) -> Option<RequestBuffer> {
    let rule = buffer?;
    match length {
        Some(length) => (length <= rule.max).then_some(rule),
        None => (rule.which == BufferedContent::AnyLength).then_some(rule),
    }
}

/// Receives content to its end. If there is too little room, the rest is sent as it arrives. Dropping the future discards
/// what was received.
pub async fn collect(
    mut body: RequestBody,
    upload: &UploadProgress,
    rule: RequestBuffer,
    space: &Rc<BufferSpace>,
) -> Result<RequestBody, Error> {
    let overflow = match rule.which {
        BufferedContent::KnownLength => Overflow::Refused,
        BufferedContent::AnyLength => Overflow::File,
    };
    // The content may have exactly the length of the rule, and its end may still be to come.
    let mut spool = Spool::new(space, rule.max.saturating_add(1), overflow);
    let trailers = loop {
        match poll_fn(|cx| poll_next_content(&mut body, &mut spool, cx)).await {
            Ok(NextContent::Piece(piece)) => {
                spool.push(piece);
                if body.is_end_stream() {
                    break None;
                }
            }
            Ok(NextContent::End(trailers)) => break trailers,
            Ok(NextContent::Full) => return Ok(BegunBody { beginning: spool.into(), rest: body }.into_body(upload)),
            Err(error) => return Err(failure(upload, &error)),
        }
    };
    spool.finish();
    poll_fn(|cx| spool.poll_settled(cx)).await;
    let length = spool.bytes();
    let content = Rc::new(CollectedContent { pieces: spool.into_content(), length, trailers, permit: None });
    Ok(RequestBody::Collected(Box::new(CollectedBody::new(content, upload.forwarded()))))
}

/// Returns the error of the exchange for content that has failed.
fn failure(upload: &UploadProgress, error: &BodyError) -> Error {
    let cause = causes(&**error);
    match upload.fault() {
        Some(fault) => fault.error(cause),
        None => Error::new(FailureKind::RequestError, cause),
    }
}

impl BegunBody {
    /// Returns the content as the body of a request, from the pieces of the beginning on.
    fn into_body(self, upload: &UploadProgress) -> RequestBody {
        match self.beginning.end() {
            None if self.beginning.bytes() == 0 => self.rest,
            _ => RequestBody::Stream(Box::pin(self), Some(upload.clone())),
        }
    }
}

impl Body for BegunBody {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        match ready!(self.beginning.poll_frame(cx)) {
            None if self.beginning.end().is_none() => Pin::new(&mut self.rest).poll_frame(cx),
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.beginning.is_taken() && (self.beginning.end().is_some() || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        longer(self.rest.size_hint(), self.beginning.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_received_first_as_the_route_says() {
        let known = RequestBuffer { max: 10, which: BufferedContent::KnownLength };
        let any = RequestBuffer { which: BufferedContent::AnyLength, ..known };
        assert_eq!(
            (rule(Some(known), Some(10)), rule(Some(known), Some(11)), rule(Some(known), None)),
            (Some(known), None, None)
        );
        assert_eq!(
            (rule(Some(any), Some(10)), rule(Some(any), Some(11)), rule(Some(any), None)),
            (Some(any), None, Some(any))
        );
        assert_eq!(rule(None, Some(1)), None);
    }
}
