//! Bodies in native tests: a filter receives them in chunks of every size.

use super::{Harness, Outcome, Request, checks, current, resolve};
use crate::{
    BodyError, BodyFilter, BodyMode, BodyVerdict, BufferedRequestBody, BufferedResponseBody, Edit, OverLimit,
    RequestBody, Response, ResponseBody,
};

/// The maximum length of a body that is split in every possible way: there are 2,048 of them.
const LONGEST_FOR_ALL: usize = 12;

/// Passes a body through a filter, chunk by chunk, and returns what leaves the filter, with what it held back.
///
/// ```
/// # use plugway_sdk::*;
/// # struct Shout;
/// # impl BodyFilter for Shout {
/// #     fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> { Ok(chunk.to_ascii_uppercase()) }
/// # }
/// use plugway_sdk::testing::transform;
///
/// assert_eq!(transform(&mut Shout, &[b"the c", b"at"]).unwrap(), b"THE CAT");
/// ```
pub fn transform<F: BodyFilter>(filter: &mut F, chunks: &[&[u8]]) -> Result<Vec<u8>, BodyError> {
    pass_chunks(filter, chunks)
}

/// Passes chunks through a filter, and returns what leaves the filter, with what it held back.
pub(super) fn pass_chunks<C: AsRef<[u8]>>(
    filter: &mut impl BodyFilter,
    chunks: impl IntoIterator<Item = C>,
) -> Result<Vec<u8>, BodyError> {
    let mut passed = Vec::new();
    // The host passes no empty chunk.
    for chunk in chunks.into_iter().filter(|chunk| !chunk.as_ref().is_empty()) {
        passed.extend(filter.push(chunk.as_ref().to_vec())?);
    }
    passed.extend(filter.finish()?);
    Ok(passed)
}

/// Calls a check with a body that is split into chunks, in many ways: the network decides where the chunks of a streamed
/// body end, and a filter has to return the same content for all of them.
///
/// A body of up to 12 bytes is split in every possible way. A longer body is split in two at every place, into three
/// around each piece of up to 4 bytes, and into chunks of each length. If the check panics, the chunks are printed.
///
/// ```
/// use plugway_sdk::testing::{every_split, transform};
/// use plugway_sdk::{BodyError, BodyFilter};
///
/// /// A filter that replaces `cat` by `dog`, also if it is split.
/// #[derive(Default)]
/// struct Pets {
///     held: Vec<u8>,
/// }
///
/// impl BodyFilter for Pets {
///     fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
///         self.held.extend(chunk);
///         let text = String::from_utf8_lossy(&self.held).replace("cat", "dog");
///         // What may be the beginning of the word waits for the next chunk.
///         let kept = [2, 1].into_iter().find(|length| text.ends_with(&"cat"[..*length])).unwrap_or(0);
///         let (passed, held) = text.split_at(text.len() - kept);
///         self.held = held.into();
///         Ok(passed.into())
///     }
///
///     fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
///         Ok(std::mem::take(&mut self.held))
///     }
/// }
///
/// every_split(b"a cat, a ca", |chunks| assert_eq!(transform(&mut Pets::default(), chunks).unwrap(), b"a dog, a ca"));
/// ```
pub fn every_split(body: &[u8], mut check: impl FnMut(&[&[u8]])) {
    let mut checked = |chunks: &[&[u8]]| {
        let _shown = Shown(chunks);
        check(chunks);
    };
    if body.len() <= LONGEST_FOR_ALL {
        for cuts in 0..1_u32 << body.len().saturating_sub(1) {
            checked(&cut(body, |at| cuts & 1 << (at - 1) != 0));
        }
        return;
    }
    for length in 1..=body.len() {
        checked(&body.chunks(length).collect::<Vec<_>>());
    }
    for begin in 1..body.len() {
        for end in begin..(begin + 5).min(body.len()) {
            checked(&cut(body, |at| at == begin || at == end));
        }
    }
}

/// Splits a body before each index for which `is_cut` holds.
fn cut(body: &[u8], is_cut: impl Fn(usize) -> bool) -> Vec<&[u8]> {
    let (mut chunks, mut begin) = (Vec::new(), 0);
    for at in 1..body.len() {
        if is_cut(at) {
            chunks.push(&body[begin..at]);
            begin = at;
        }
    }
    // No chunk is empty, and an empty body has none.
    chunks.extend((begin < body.len()).then(|| &body[begin..]));
    chunks
}

/// The chunks of a check, which are printed if the check panics.
struct Shown<'a>(&'a [&'a [u8]]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let chunks: Vec<_> = self.0.iter().map(|chunk| String::from_utf8_lossy(chunk)).collect();
            eprintln!("the body was split into {chunks:?}");
        }
    }
}

impl<P: RequestBody> Harness<P> {
    /// Runs the body hook on the content of a request, which arrives in these chunks. Returns what is sent on.
    pub fn request_body<C: AsRef<[u8]>>(
        &mut self,
        request: &Request,
        chunks: impl IntoIterator<Item = C>,
    ) -> Result<Vec<u8>, BodyError> {
        let values = resolve(&self.setup.request_body, request, None);
        bodies::pass_chunks(&mut self.plugin.request_body(&values), chunks)
    }
}

impl<P: ResponseBody> Harness<P> {
    /// Runs the body hook on the content of a response, which arrives in these chunks. Returns what is sent on.
    pub fn response_body<C: AsRef<[u8]>>(
        &mut self,
        request: &Request,
        response: &Response,
        chunks: impl IntoIterator<Item = C>,
    ) -> Result<Vec<u8>, BodyError> {
        let values = resolve(&self.setup.response_body, request, Some(response));
        bodies::pass_chunks(&mut self.plugin.response_body(&values), chunks)
    }
}

/// Methods that call a hook for whole bodies:
///
/// ```
/// # use plugway_sdk::*;
/// # struct Sign;
/// # impl Plugin for Sign {
/// #     type Config = ();
/// #     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
/// #         setup.request_body.mode = BodyMode::Buffered(1 << 20, OverLimit::Reject);
/// #         Ok(Sign)
/// #     }
/// # }
/// # impl BufferedRequestBody for Sign {
/// #     fn on_request_body(&mut self, _: &Values, content: Vec<u8>) -> BodyVerdict {
/// #         if content.is_empty() { return Response::new(400).into() }
/// #         BodyVerdict::proceed().set_field("x-length", content.len().to_string())
/// #     }
/// # }
/// use plugway_sdk::testing::{Harness, Request};
///
/// let mut sign = Harness::<Sign>::new(serde_json::json!({})).unwrap();
/// let (request, content) = sign.buffered_request_body(Request::new("PUT", "/"), "abc").passed().unwrap();
/// assert_eq!((request.text("x-length"), &content[..]), (Some("3"), &b"abc"[..]));
/// assert_eq!(sign.buffered_request_body(Request::new("PUT", "/"), "").answered().unwrap().status, 400);
/// ```
impl<P: BufferedRequestBody> Harness<P> {
    /// Runs the hook on a request with this content. A passed request comes with the content that is sent on.
    pub fn buffered_request_body(
        &mut self,
        request: Request,
        content: impl Into<Vec<u8>>,
    ) -> Outcome<(Request, Vec<u8>)> {
        let content = content.into();
        let values = resolve(&self.setup.request_body, &request, None);
        let verdict = self.plugin.on_request_body(&values, content.clone());
        let (edits, sent) = match body_edits(verdict, content) {
            Ok(continued) => continued,
            Err(outcome) => return outcome,
        };
        match self.edited_request(edits, request) {
            Outcome::Passed(request) => Outcome::Passed((request, sent)),
            Outcome::Answered(response) => Outcome::Answered(response),
            Outcome::Failed(reason) => Outcome::Failed(reason),
        }
    }
}

impl<P: BufferedResponseBody> Harness<P> {
    /// Runs the hook on a response, whose `body` is the content.
    pub fn buffered_response_body(&mut self, request: &Request, response: Response) -> Outcome<Response> {
        let values = resolve(&self.setup.response_body, request, Some(&response));
        let verdict = self.plugin.on_response_body(&values, response.body.clone());
        let (edits, body) = match body_edits(verdict, response.body) {
            Ok(continued) => continued,
            Err(outcome) => return outcome,
        };
        self.edited_response(edits, request, Response { status: response.status, fields: response.fields, body })
    }
}

/// Returns the edits and the content with which a message continues, or the outcome if it doesn't.
fn body_edits<M>(verdict: BodyVerdict, content: Vec<u8>) -> Result<(Vec<Edit>, Vec<u8>), Outcome<M>> {
    let (edits, content) = match verdict {
        BodyVerdict::Proceed(edits) => (edits, content),
        BodyVerdict::Replace(content, edits) => (edits, content),
        BodyVerdict::Respond(response) => {
            return Err(match checks::response(&response) {
                Ok(()) => Outcome::Answered(response),
                Err(refused) => Outcome::Failed(refused),
            });
        }
        BodyVerdict::Fail(reason) => return Err(Outcome::Failed(reason)),
    };
    if edits.iter().any(|edit| matches!(edit, Edit::Body(_))) {
        return Err(Outcome::Failed("it decided about a body that it has received already".into()));
    }
    Ok((edits, content))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn splits(body: &[u8]) -> Vec<Vec<usize>> {
        let mut splits = Vec::new();
        every_split(body, |chunks| {
            assert_eq!(chunks.concat(), body);
            assert!(chunks.iter().all(|chunk| !chunk.is_empty()));
            splits.push(chunks.iter().map(|chunk| chunk.len()).collect());
        });
        splits
    }

    #[test]
    fn a_short_body_is_split_in_every_way_once() {
        assert_eq!(splits(b""), [Vec::<usize>::new()]);
        assert_eq!(splits(b"a"), [[1]]);
        assert_eq!(splits(b"abc"), [vec![3_usize], vec![1, 2], vec![2, 1], vec![1, 1, 1]]);
        let all = splits(b"abcdefghijkl");
        assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (2048, 2048));
    }

    #[test]
    fn a_long_body_is_cut_at_every_place_and_around_short_pieces() {
        let all = splits(&[b'x'; 40]);
        assert!(all.contains(&vec![40]) && all.contains(&vec![1; 40]) && all.contains(&vec![7, 7, 7, 7, 7, 5]));
        for at in 1..40 {
            assert!(all.contains(&vec![at, 40 - at]), "{at}");
        }
        assert!(all.contains(&vec![17, 4, 19]) && all.contains(&vec![1, 1, 38]));
    }
}
