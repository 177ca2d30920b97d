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

/// Methods that pass bodies through a hook in chunks. If the mode of the body is [`BodyMode::Buffered`], the hook receives
/// it as one chunk within the limit, whatever the chunks were, as it does in the proxy. If the mode is
/// [`BodyMode::Skipped`], the hook isn't called, and the content passes unchanged: run a head hook that asks for the body
/// first, by [`Harness::request`] or [`Harness::response`].
///
/// ```
/// # use plugway_sdk::*;
/// # struct Shout;
/// # impl Plugin for Shout {
/// #     type Config = ();
/// #     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Shout) }
/// # }
/// # impl BodyFilter for Shout {
/// #     fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> { Ok(chunk.to_ascii_uppercase()) }
/// # }
/// # impl RequestBody for Shout { type Body = Shout; fn request_body(&mut self, _: &Values) -> Shout { Shout } }
/// # impl ResponseBody for Shout { type Body = Shout; fn response_body(&mut self, _: &Values) -> Shout { Shout } }
/// use plugway_sdk::testing::{Harness, Request};
///
/// let (request, response) = (Request::new("PUT", "/"), Response::new(200));
/// let mut shout = Harness::<Shout>::new(serde_json::json!({})).unwrap();
/// assert_eq!(shout.request_body(&request, ["the c", "at"]).unwrap(), b"THE CAT");
/// // In one line: the result is the same wherever the network splits the body.
/// assert_eq!(shout.request_body_in_every_split(&request, "the cat").unwrap(), b"THE CAT");
/// assert_eq!(shout.response_body_in_every_split(&request, &response, "the cat").unwrap(), b"THE CAT");
/// ```
impl<P: RequestBody> Harness<P> {
    /// Runs the body hook on the content of a request, which arrives in these chunks. Returns the content that is sent on.
    pub fn request_body<C: AsRef<[u8]>>(
        &mut self,
        request: &Request,
        chunks: impl IntoIterator<Item = C>,
    ) -> Result<Vec<u8>, BodyError> {
        let values = resolve(&self.setup.request_body, request, None);
        let mode = self.request_mode();
        pass_in_mode(|| self.plugin.request_body(&values), chunks, mode)
    }

    /// Runs the body hook on the content of a request in [every split](every_split), and returns the result.
    ///
    /// # Panics
    ///
    /// Panics if two splits have different results, and says which.
    #[track_caller]
    pub fn request_body_in_every_split(
        &mut self,
        request: &Request,
        body: impl AsRef<[u8]>,
    ) -> Result<Vec<u8>, BodyError> {
        same_in_every_split(body.as_ref(), |chunks| self.request_body(request, chunks))
    }
}

/// Methods for the content of responses, as there are for that of requests.
impl<P: ResponseBody> Harness<P> {
    /// Runs the body hook on the content of a response, which arrives in these chunks. Returns the content that is sent on.
    pub fn response_body<C: AsRef<[u8]>>(
        &mut self,
        request: &Request,
        response: &Response,
        chunks: impl IntoIterator<Item = C>,
    ) -> Result<Vec<u8>, BodyError> {
        let values = resolve(&self.setup.response_body, request, Some(response));
        let mode = self.response_mode();
        pass_in_mode(|| self.plugin.response_body(&values), chunks, mode)
    }

    /// Runs the body hook on the content of a response in [every split](every_split), and returns the result.
    ///
    /// # Panics
    ///
    /// Panics if two splits have different results, and says which.
    #[track_caller]
    pub fn response_body_in_every_split(
        &mut self,
        request: &Request,
        response: &Response,
        body: impl AsRef<[u8]>,
    ) -> Result<Vec<u8>, BodyError> {
        same_in_every_split(body.as_ref(), |chunks| self.response_body(request, response, chunks))
    }
}

impl<P> Harness<P> {
    /// Returns the mode of the next body of a request: as the last request hook decided, or else as declared.
    fn request_mode(&self) -> BodyMode {
        self.decided.request.unwrap_or(self.setup.request_body.mode)
    }

    /// Returns the mode of the next body of a response: as the last response hook decided, or else as declared.
    fn response_mode(&self) -> BodyMode {
        self.decided.response.unwrap_or(self.setup.response_body.mode)
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
/// // Beyond the limit, the proxy responds in place of the hook.
/// let long = vec![0; (1 << 20) + 1];
/// assert_eq!(sign.buffered_request_body(Request::new("PUT", "/"), long).expect_answered().status, 413);
/// ```
///
/// A whole body is the same wherever the network splits it. The hook isn't called for a body beyond the limit of
/// [`BodyMode::Buffered`]: the outcome is the response of the proxy, 413 for a request and 502 for a response, or the
/// message passes unchanged ([`OverLimit::PassThrough`]). In the mode [`BodyMode::Skipped`] each message passes unchanged,
/// unless a head hook of the message has asked for the body.
impl<P: BufferedRequestBody> Harness<P> {
    /// Runs the hook on a request with this content. A passed request comes with the content that is sent on.
    pub fn buffered_request_body(
        &mut self,
        request: Request,
        content: impl Into<Vec<u8>>,
    ) -> Outcome<(Request, Vec<u8>)> {
        let content = content.into();
        match handling(content.len(), self.request_mode()) {
            Handling::Reject(_) => return Outcome::Answered(Response::new(413)),
            Handling::Pass => return Outcome::Passed((request, content)),
            Handling::Call => {}
        }
        let values = resolve(&self.setup.request_body, &request, None);
        let hook = || self.plugin.on_request_body(&values, content.clone());
        let verdict = current::during(&request, None, hook);
        let (edits, sent) = match body_edits(verdict, content) {
            Ok(continued) => continued,
            Err(outcome) => return outcome,
        };
        let made = self.make_request_edits(edits, request);
        made.map_or_else(Outcome::Failed, |(request, _)| Outcome::Passed((request, sent)))
    }
}

impl<P: BufferedResponseBody> Harness<P> {
    /// Runs the hook on a response, whose `body` is the content.
    pub fn buffered_response_body(&mut self, request: &Request, response: Response) -> Outcome<Response> {
        match handling(response.body.len(), self.response_mode()) {
            Handling::Reject(_) => return Outcome::Answered(Response::new(502)),
            Handling::Pass => return Outcome::Passed(response),
            Handling::Call => {}
        }
        let values = resolve(&self.setup.response_body, request, Some(&response));
        let hook = || self.plugin.on_response_body(&values, response.body.clone());
        let verdict = current::during(request, Some(&response), hook);
        let (edits, body) = match body_edits(verdict, response.body.clone()) {
            Ok(continued) => continued,
            Err(outcome) => return outcome,
        };
        let made = self.make_response_edits(edits, request, Response { body, ..response });
        made.map_or_else(Outcome::Failed, |(response, _)| Outcome::Passed(response))
    }
}

/// Returns the edits and the content with which a message continues, or the outcome if it doesn't.
fn body_edits<M>(verdict: BodyVerdict, content: Vec<u8>) -> Result<(Vec<Edit>, Vec<u8>), Outcome<M>> {
    let (edits, content) = match verdict {
        BodyVerdict::Proceed(edits) => (edits, content),
        BodyVerdict::Replace(content, edits) => (edits, content),
        BodyVerdict::Respond(response) => {
            return Err(checks::response(response).map_or_else(Outcome::Failed, Outcome::Answered));
        }
        BodyVerdict::Fail(reason) => return Err(Outcome::Failed(reason)),
    };
    if edits.iter().any(|edit| matches!(edit, Edit::Body(_))) {
        return Err(Outcome::Failed("it decided about a body that it has received already".into()));
    }
    Ok((edits, content))
}

/// Passes chunks through a filter in a mode; the filter is only made if it is needed.
fn pass_in_mode<F: BodyFilter, C: AsRef<[u8]>>(
    filter: impl FnOnce() -> F,
    chunks: impl IntoIterator<Item = C>,
    mode: BodyMode,
) -> Result<Vec<u8>, BodyError> {
    if mode == BodyMode::Streamed {
        return pass_chunks(&mut filter(), chunks);
    }
    let whole: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.as_ref().to_vec()).collect();
    match handling(whole.len(), mode) {
        Handling::Reject(limit) => Err(format!("the body has {} bytes, and the plugin takes {limit}", whole.len())),
        Handling::Pass => Ok(whole),
        Handling::Call => pass_chunks(&mut filter(), [whole]),
    }
}

/// The handling of a body.
enum Handling {
    /// The hook is called.
    Call,
    /// The message passes unchanged.
    Pass,
    /// The proxy responds in place of the hook, since the body exceeds this limit.
    Reject(u64),
}

/// Returns the handling of a body of this length in a mode.
fn handling(length: usize, mode: BodyMode) -> Handling {
    match mode {
        BodyMode::Skipped => Handling::Pass,
        BodyMode::Buffered(limit, over_limit) if length as u64 > limit => match over_limit {
            OverLimit::Reject => Handling::Reject(limit),
            OverLimit::PassThrough => Handling::Pass,
        },
        BodyMode::Buffered(..) | BodyMode::Streamed => Handling::Call,
    }
}

/// Returns the result of passing a body, which has to be the same for every split.
#[track_caller]
fn same_in_every_split(
    body: &[u8],
    mut pass: impl FnMut(&[&[u8]]) -> Result<Vec<u8>, BodyError>,
) -> Result<Vec<u8>, BodyError> {
    let whole: &[&[u8]] = if body.is_empty() { &[] } else { &[body] };
    let expected = pass(whole);
    every_split(body, |chunks| {
        let passed = pass(chunks);
        if passed != expected {
            let shown = |passed: &Result<Vec<u8>, BodyError>| match passed {
                Ok(content) => format!("{:?}", String::from_utf8_lossy(content)),
                Err(error) => format!("the error {error:?}"),
            };
            panic!("whole, the body becomes {}, and in pieces {}", shown(&expected), shown(&passed));
        }
    });
    expected
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::{ConfigError, Plugin, RequestFilter, ResponseFilter, Setup, ValueName, Values, Verdict, exchange};

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

    /// A plugin that replaces `cat`, but only within a chunk, and that takes whole bodies.
    struct Pets;

    impl Plugin for Pets {
        type Config = bool;

        fn new(is_buffered: bool, setup: &mut Setup) -> Result<Self, ConfigError> {
            let mode = if is_buffered { BodyMode::Buffered(12, OverLimit::Reject) } else { BodyMode::Streamed };
            (setup.request_body.mode, setup.response_body.mode) = (mode, mode);
            Ok(Pets)
        }
    }

    impl BodyFilter for Pets {
        fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
            Ok(String::from_utf8_lossy(&chunk).replace("cat", "dog").into())
        }
    }

    impl RequestBody for Pets {
        type Body = Pets;

        fn request_body(&mut self, _: &Values) -> Pets {
            Pets
        }
    }

    impl ResponseBody for Pets {
        type Body = Pets;

        fn response_body(&mut self, _: &Values) -> Pets {
            Pets
        }
    }

    impl BufferedRequestBody for Pets {
        fn on_request_body(&mut self, _: &Values, _: Vec<u8>) -> BodyVerdict {
            let lines = exchange::values(&ValueName::RequestField("a".into()));
            BodyVerdict::proceed().set_field("x-lines", lines.len().to_string())
        }
    }

    impl BufferedResponseBody for Pets {
        fn on_response_body(&mut self, _: &Values, _: Vec<u8>) -> BodyVerdict {
            let status = exchange::value(&ValueName::Status).unwrap_or_default();
            BodyVerdict::proceed().set_field("x-status", status)
        }
    }

    fn pets(is_buffered: bool) -> Harness<Pets> {
        Harness::new(serde_json::json!(is_buffered)).unwrap()
    }

    #[test]
    fn a_result_that_depends_on_the_split_fails_the_test() {
        let (request, response) = (Request::get("/"), Response::new(200));
        let failure = |test: &mut dyn FnMut(&mut Harness<Pets>)| {
            let mut pets = pets(false);
            *catch_unwind(AssertUnwindSafe(|| test(&mut pets))).unwrap_err().downcast::<String>().unwrap()
        };
        let message = "whole, the body becomes \"a dog\", and in pieces \"a cat\"";
        assert_eq!(failure(&mut |pets| _ = pets.request_body_in_every_split(&request, "a cat")), message);
        assert_eq!(failure(&mut |pets| _ = pets.response_body_in_every_split(&request, &response, "a cat")), message);
    }

    #[test]
    fn a_buffered_body_is_one_chunk_in_every_split_and_has_a_limit() {
        let (request, response, mut pets) = (Request::get("/"), Response::new(200), pets(true));
        assert_eq!(pets.request_body_in_every_split(&request, "a cat").unwrap(), b"a dog");
        assert_eq!(pets.response_body_in_every_split(&request, &response, "a cat").unwrap(), b"a dog");
        let error = pets.request_body(&request, ["a cat in the", " hat"]).unwrap_err();
        assert_eq!(error, "the body has 16 bytes, and the plugin takes 12");
    }

    /// A plugin that takes the bodies of messages with the field `ask`.
    struct Asking;

    impl Plugin for Asking {
        type Config = ();

        fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
            (setup.request_body.mode, setup.response_body.mode) = (BodyMode::Skipped, BodyMode::Skipped);
            Ok(Asking)
        }
    }

    fn asking(name: ValueName) -> Verdict {
        let is_asked = exchange::value(&name).is_some();
        if is_asked { Verdict::proceed().body(BodyMode::Streamed) } else { Verdict::proceed() }
    }

    impl RequestFilter for Asking {
        fn on_request(&mut self, _: &Values) -> Verdict {
            asking(ValueName::RequestField("ask".into()))
        }
    }

    impl ResponseFilter for Asking {
        fn on_response(&mut self, _: &Values) -> Verdict {
            asking(ValueName::ResponseField("ask".into()))
        }
    }

    impl RequestBody for Asking {
        type Body = Pets;

        fn request_body(&mut self, _: &Values) -> Pets {
            Pets
        }
    }

    impl ResponseBody for Asking {
        type Body = Pets;

        fn response_body(&mut self, _: &Values) -> Pets {
            Pets
        }
    }

    impl BufferedRequestBody for Asking {
        fn on_request_body(&mut self, _: &Values, _: Vec<u8>) -> BodyVerdict {
            BodyVerdict::replace("a dog")
        }
    }

    impl BufferedResponseBody for Asking {
        fn on_response_body(&mut self, _: &Values, _: Vec<u8>) -> BodyVerdict {
            BodyVerdict::replace("a dog")
        }
    }

    #[test]
    fn a_skipped_body_passes_unless_the_head_hook_of_its_side_asks_for_it() {
        let mut asking = Harness::<Asking>::new(serde_json::json!({})).unwrap();
        let (get, response) = (Request::get("/"), Response::new(200).body("text/plain", "a cat"));
        let mut bodies = |head: &mut dyn FnMut(&mut Harness<Asking>)| {
            head(&mut asking);
            let whole = asking.buffered_request_body(get.clone(), "a cat").expect_passed().1;
            assert_eq!(asking.request_body(&get, ["a cat"]).unwrap(), whole);
            let whole_response = asking.buffered_response_body(&get, response.clone()).expect_passed().body;
            assert_eq!(asking.response_body(&get, &response, ["a cat"]).unwrap(), whole_response);
            [whole, whole_response].map(|body| String::from_utf8(body).unwrap())
        };
        assert_eq!(bodies(&mut |_| ()), ["a cat", "a cat"]);
        let ask = get.clone().field("ask", "1");
        assert_eq!(bodies(&mut |asking| _ = asking.request(ask.clone())), ["a dog", "a cat"]);
        let asked = response.clone().field("ask", "1");
        assert_eq!(bodies(&mut |asking| _ = asking.response(&get, asked.clone())), ["a dog", "a dog"]);
        assert_eq!(bodies(&mut |asking| _ = asking.request_edits(get.clone())), ["a cat", "a dog"]);
        assert_eq!(bodies(&mut |asking| _ = asking.response_edits(&get, response.clone())), ["a cat", "a cat"]);
    }

    #[test]
    fn whole_body_hooks_read_the_exchange() {
        let (mut pets, request) = (pets(true), Request::get("/").field("a", "1").field("a", "2"));
        let (passed, _) = pets.buffered_request_body(request.clone(), "x").expect_passed();
        assert_eq!(passed.text("x-lines"), Some("2"));
        let response = pets.buffered_response_body(&request, Response::new(201).body("text/plain", "x"));
        assert_eq!(response.expect_passed().text("x-status"), Some("201"));
        let long = Response::new(200).body("text/plain", "a cat in the hat");
        assert_eq!(pets.buffered_response_body(&request, long).expect_answered().status, 502);
    }
}
