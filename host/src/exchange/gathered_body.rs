//! Content that was gathered for a plugin that takes it whole, on its further way.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::body::{BodyError, longer};
use crate::plugin::body_permit::BodyPermit;

/// Content that is in memory, or the beginning of it with the rest behind.
pub struct GatheredBody<B> {
    content: Bytes,
    /// The rest of the content; `None` if all of it was gathered.
    rest: Option<B>,
    trailers: Option<HeaderMap>,
    /// Counts the memory as that of a body in the plugin.
    permit: BodyPermit,
}

/// Content that is all there.
pub struct WholeContent {
    pub content: Bytes,
    pub trailers: Option<HeaderMap>,
    /// Counts the memory as that of a body in the plugin.
    pub permit: BodyPermit,
}

/// The content that a plugin takes whole, as far as it was received.
pub struct GatheredContent {
    pub content: Bytes,
    pub trailers: Option<HeaderMap>,
    /// Whether this is all of the content.
    pub is_whole: bool,
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> GatheredBody<B> {
    /// Returns the beginning of content with its rest.
    pub fn begun(content: Bytes, rest: B, permit: BodyPermit) -> Self {
        GatheredBody { content, rest: Some(rest), trailers: None, permit }
    }

    /// Returns the rest of the content; `None` if all of it was gathered.
    pub fn rest(&self) -> Option<&B> {
        self.rest.as_ref()
    }

    /// Returns the rest of the content, to read of it early; `None` if all of it was gathered.
    pub fn rest_mut(&mut self) -> Option<&mut B> {
        self.rest.as_mut()
    }

    /// Returns the content if all of it was gathered; otherwise the body itself.
    pub fn into_whole(self: Box<Self>) -> Result<WholeContent, Box<Self>> {
        if self.rest.is_some() {
            return Err(self);
        }
        let GatheredBody { content, trailers, permit, .. } = *self;
        Ok(WholeContent { content, trailers, permit })
    }
}

impl<B> From<WholeContent> for GatheredBody<B> {
    fn from(whole: WholeContent) -> Self {
        let WholeContent { content, trailers, permit } = whole;
        GatheredBody { content, rest: None, trailers, permit }
    }
}

/// Receives content to its end, or until it is longer than a number of bytes.
pub async fn gather<B: Body<Data = Bytes, Error = BodyError> + Unpin>(
    body: &mut B,
    max: u64,
) -> Result<GatheredContent, BodyError> {
    let (mut content, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(piece) => {
                content.extend_from_slice(&piece);
                if content.len() as u64 > max {
                    return Ok(GatheredContent { content: content.freeze(), trailers, is_whole: false });
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok(GatheredContent { content: content.freeze(), trailers, is_whole: true })
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Body for GatheredBody<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if !this.content.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.content)))));
        }
        match &mut this.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_empty() && self.trailers.is_none() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Returns the length of the content. It is unknown if trailers follow, because HTTP/1 has no trailers after content
    /// of a known length.
    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Some(rest) => rest.size_hint(),
            None if self.trailers.is_some() => return SizeHint::default(),
            None => SizeHint::with_exact(0),
        };
        longer(rest, self.content.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of pieces, then trailers.
    struct ContentInPieces(Vec<&'static [u8]>, Option<HeaderMap>);

    impl Body for ContentInPieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            if self.0.is_empty() {
                return Poll::Ready(self.1.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(self.0.remove(0))))))
        }
    }

    fn now<F: Future>(future: F) -> F::Output {
        match std::pin::pin!(future).poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("it waits"),
        }
    }

    #[test]
    fn content_is_gathered_up_to_its_limit() {
        for (max, is_whole, wanted) in [(4, true, "abcd"), (3, false, "abcd"), (1, false, "ab")] {
            let mut body = ContentInPieces(vec![b"ab", b"cd"], Some(HeaderMap::new()));
            let gathered = now(gather(&mut body, max)).unwrap();
            assert_eq!((&gathered.content[..], gathered.is_whole), (wanted.as_bytes(), is_whole), "{max}");
            assert_eq!(gathered.trailers.is_some(), is_whole, "{max}");
        }
    }
}
