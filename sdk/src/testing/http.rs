//! The other services of native tests: a test says how the requests of its plugin are answered.
//!
//! [`Callouts`] is a script: the requests that the test expects, each with its answer. [`answer`] is a function for all
//! requests. As in the proxy, a malformed request is [`Error::Invalid`], and content beyond the bounds is an error too.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use super::{clock, paths};
use crate::Response;
use crate::bounds;
use crate::http::{Error, Request};
use crate::token::is_token;

/// An answer of a test.
type Answer = Box<dyn FnMut(&Request) -> Result<Response, Error>>;

/// The time that a request without a timeout of its own waits for its response.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The fields that belong to a connection or to the host; a plugin can't send them.
const FORBIDDEN: [&str; 9] = [
    "connection",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
];

thread_local! {
    static ANSWER: RefCell<Option<Answer>> = const { RefCell::new(None) };
}

/// Answers all further requests on this thread by a function. Without an answer, destinations are not granted.
pub fn answer(answer: impl FnMut(&Request) -> Result<Response, Error> + 'static) {
    ANSWER.set(Some(Box::new(answer)));
}

/// The requests that a plugin is to send, each with its answer; while the value lives, it answers the requests of this
/// thread.
///
/// The requests are expected in the order of the script. A request that differs from the next one, one beyond the last, and
/// one that was never sent fail the test, with a message that shows the difference. A request of the script is one of
/// [`plugway_sdk::http`](crate::http): method and URL have to be the same, and so do the fields, the content and the
/// timeout that it has; the plugin's request may have other fields.
///
/// ```
/// use std::time::Duration;
///
/// use plugway_sdk::testing::http::Callouts;
/// use plugway_sdk::testing::{Harness, Request};
/// use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Response, Setup, Values, Verdict, http};
///
/// /// Asks a service who the client is.
/// struct Who {
///     cookie: Input,
/// }
///
/// impl Plugin for Who {
///     type Config = ();
///
///     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
///         Ok(Who { cookie: setup.request.field("cookie") })
///     }
/// }
///
/// impl RequestFilter for Who {
///     fn on_request(&mut self, request: &Values) -> Verdict {
///         let cookie = request.bytes(self.cookie).unwrap_or_default();
///         match http::get("http://users/me").header("cookie", cookie).timeout(Duration::from_secs(1)).send() {
///             Ok(answer) if answer.status == 200 => Verdict::proceed().set_field("x-user", answer.body),
///             Ok(_) => Response::new(401).into(),
///             Err(http::Error::Timeout) => Response::new(504).into(),
///             Err(_) => Response::new(502).into(),
///         }
///     }
/// }
///
/// let me = || http::get("http://users/me");
/// let callouts = Callouts::new()
///     .answer(me().header("cookie", "session=1"), Response::new(200).body("text/plain", "alice"))
///     .answer(me(), Response::new(403))
///     .fail(me(), http::Error::Refused)
///     .fail(me(), http::Error::Terminated)
///     // An answer that comes after the plugin's timeout.
///     .answer(me(), Response::new(200))
///     .after(Duration::from_secs(3));
/// let mut filter = Harness::<Who>::new(serde_json::json!({})).unwrap();
/// let passed = filter.request(Request::get("/").field("cookie", "session=1")).expect_passed();
/// assert_eq!(passed.text("x-user"), Some("alice"));
/// for status in [401, 502, 502, 504] {
///     assert_eq!(filter.request(Request::get("/")).expect_answered().status, status);
/// }
/// assert_eq!(callouts.sent().len(), 5);
/// assert_eq!(callouts.sent()[0].timeout, Some(Duration::from_secs(1)));
/// ```
#[derive(Debug)]
#[must_use = "the script ends with this value"]
pub struct Callouts {
    script: Rc<RefCell<Script>>,
}

/// The state of a script.
#[derive(Debug, Default)]
struct Script {
    steps: VecDeque<Step>,
    /// The number of steps that were taken.
    taken: usize,
    is_ordered: bool,
    sent: Vec<Request>,
}

/// A request of a script, and its answer.
#[derive(Clone, Debug)]
struct Step {
    expected: Request,
    answer: Result<Response, Error>,
    delay: Duration,
}

impl Callouts {
    /// Begins a script in which no request is expected yet. It replaces the answers of the thread.
    #[expect(clippy::new_without_default, reason = "the script begins with this call")]
    pub fn new() -> Self {
        let script = Rc::new(RefCell::new(Script { is_ordered: true, ..Script::default() }));
        let answering = script.clone();
        answer(move |request| Script::play(&answering, request));
        Callouts { script }
    }

    /// Expects a request, and answers it with a response.
    pub fn answer(self, expected: Request, response: Response) -> Self {
        self.step(expected, Ok(response))
    }

    /// Expects a request, and gives it an error for an answer. An [`Error::Timeout`] takes the time that the request has.
    pub fn fail(self, expected: Request, error: Error) -> Self {
        self.step(expected, Err(error))
    }

    /// Has the last answer take this time on the test's [clock]. Beyond the timeout of the request, the answer is
    /// [`Error::Timeout`] in its place.
    ///
    /// # Panics
    ///
    /// Panics if no request is expected yet.
    pub fn after(self, delay: Duration) -> Self {
        self.last(|step| step.delay = delay);
        self
    }

    /// Expects the last request so many times in all, with the same answer.
    ///
    /// # Panics
    ///
    /// Panics if no request is expected yet.
    pub fn times(self, count: usize) -> Self {
        self.last(|_| ());
        let mut script = self.script.borrow_mut();
        let step = script.steps.pop_back();
        script.steps.extend(step.into_iter().cycle().take(count));
        drop(script);
        self
    }

    /// Accepts the requests of the script in any order.
    pub fn in_any_order(self) -> Self {
        self.script.borrow_mut().is_ordered = false;
        self
    }

    /// Returns the requests that the plugin has sent so far, in order.
    pub fn sent(&self) -> Vec<Request> {
        self.script.borrow().sent.clone()
    }

    fn step(self, expected: Request, answer: Result<Response, Error>) -> Self {
        self.script.borrow_mut().steps.push_back(Step { expected, answer, delay: Duration::ZERO });
        self
    }

    fn last(&self, change: impl FnOnce(&mut Step)) {
        let mut script = self.script.borrow_mut();
        change(script.steps.back_mut().unwrap_or_else(|| panic!("the script has no request yet")));
    }
}

impl Drop for Callouts {
    fn drop(&mut self) {
        ANSWER.set(None);
        let script = self.script.borrow();
        if !script.steps.is_empty() && !std::thread::panicking() {
            let missing: String = script.steps.iter().map(|step| format!("\n  {}", shown(&step.expected))).collect();
            panic!("the plugin did not send {} of the requests that the test expects:{missing}", script.steps.len());
        }
    }
}

impl Script {
    /// Answers a request by the script.
    fn play(script: &RefCell<Script>, request: &Request) -> Result<Response, Error> {
        let step = script.borrow_mut().take(request);
        let Step { answer, delay, .. } = step.unwrap_or_else(|unexpected| panic!("{unexpected}"));
        let timeout = request.timeout.unwrap_or(DEFAULT_TIMEOUT);
        if delay > timeout || answer == Err(Error::Timeout) {
            clock::advance(timeout);
            return Err(Error::Timeout);
        }
        clock::advance(delay);
        answer
    }

    /// Takes the step for a request from the script. An error says why there is none.
    fn take(&mut self, request: &Request) -> Result<Step, String> {
        self.sent.push(request.clone());
        let considered = if self.is_ordered { 1 } else { self.steps.len() };
        let place = self.steps.iter().take(considered).position(|step| difference(&step.expected, request).is_none());
        if let Some(step) = place.and_then(|place| self.steps.remove(place)) {
            self.taken += 1;
            return Ok(step);
        }
        let mut message = format!("the plugin sent a request that the test does not expect:\n  {}", shown(request));
        let number = self.taken + 1;
        match self.steps.front() {
            None => _ = write!(message, "\nthe script has no request {number}"),
            Some(step) if self.is_ordered => {
                let difference = difference(&step.expected, request).unwrap_or_default();
                _ = write!(message, "\nrequest {number} of the script is:\n  {}\n{difference}", shown(&step.expected));
            }
            Some(_) => {
                message += "\nthe script still has:";
                self.steps.iter().for_each(|step| _ = write!(message, "\n  {}", shown(&step.expected)));
            }
        }
        Err(message)
    }
}

/// Returns the first difference between an expected request and a sent one; `None` if there is none.
fn difference(expected: &Request, sent: &Request) -> Option<String> {
    let differs = |what: &str, expected: &str, sent: &str| {
        Some(format!("{what} differs: the script has {expected:?}, the plugin sent {sent:?}"))
    };
    if expected.method != sent.method {
        return differs("the method", &expected.method, &sent.method);
    }
    if expected.url != sent.url {
        return differs("the URL", &expected.url, &sent.url);
    }
    for (name, value) in &expected.fields {
        let mut lines = sent.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, line)| line);
        if !lines.clone().any(|line| line == value) {
            let found = lines.next().map_or("no such field".into(), |line| String::from_utf8_lossy(line));
            return differs(&format!("the field `{name}`"), &String::from_utf8_lossy(value), &found);
        }
    }
    if !expected.body.is_empty() && expected.body != sent.body {
        let (expected, sent) = (String::from_utf8_lossy(&expected.body), String::from_utf8_lossy(&sent.body));
        return differs("the content", &expected, &sent);
    }
    if expected.timeout.is_some() && expected.timeout != sent.timeout {
        return differs("the timeout", &format!("{:?}", expected.timeout), &format!("{:?}", sent.timeout));
    }
    None
}

/// Returns a request as a message shows it.
fn shown(request: &Request) -> String {
    let mut text = format!("{} {}", request.method, request.url);
    for (name, value) in &request.fields {
        _ = write!(text, ", {name}: {}", String::from_utf8_lossy(value));
    }
    if !request.body.is_empty() {
        _ = write!(text, ", with {:?}", String::from_utf8_lossy(&request.body));
    }
    text
}

#[cfg_attr(target_family = "wasm", expect(dead_code, reason = "in the proxy, the host sends requests"))]
pub(crate) fn send(request: Request) -> Result<Response, Error> {
    // The answer is away meanwhile: it may put another one in its place.
    let Some(mut answer) = ANSWER.take() else { return Err(Error::NotGranted) };
    let answered = match is_valid(&request) {
        true => answer(&request),
        false => Err(Error::Invalid),
    };
    ANSWER.with_borrow_mut(|next| _ = next.get_or_insert(answer));
    let mut response = answered?;
    if response.body.len() > bounds::CALLOUT_RESPONSE {
        return Err(Error::TooLarge);
    }
    // As the host hands fields over.
    response.fields.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
    Ok(response)
}

/// Whether the host would send a request.
fn is_valid(request: &Request) -> bool {
    let Request { method, url, fields, body, .. } = request;
    let rest = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let rest = rest.and_then(|rest| rest.split(['?', '#']).next()).unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_field = |(name, value): &(String, Vec<u8>)| {
        let is_forbidden = FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden));
        let is_value = !value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
        is_token(name) && is_value && !is_forbidden
    };
    !authority.is_empty()
        && paths::is_sent(path)
        && !url.contains(|letter: char| letter.is_ascii_control() || letter == ' ')
        && is_token(method)
        && fields.iter().all(is_field)
        && body.len() <= bounds::CALLOUT_REQUEST
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::http;

    /// Returns the message of a test that fails.
    fn failure(test: impl FnOnce()) -> String {
        let failure = catch_unwind(AssertUnwindSafe(test)).unwrap_err();
        *failure.downcast::<String>().unwrap()
    }

    fn ask(path: &str) -> Result<Response, Error> {
        http::get(format!("http://auth{path}")).header("x-from", "me").send()
    }

    #[test]
    fn requests_are_answered_in_the_order_of_the_script() {
        let get = |path: &str| http::get(format!("http://auth{path}"));
        let callouts = Callouts::new()
            .answer(get("/1").header("X-From", "me"), Response::new(200).field("X-User", "a"))
            .fail(get("/2"), Error::Refused)
            .times(2);
        assert_eq!(ask("/1").unwrap().fields, [("x-user".into(), b"a".to_vec())]);
        assert_eq!((ask("/2"), ask("/2")), (Err(Error::Refused), Err(Error::Refused)));
        let urls: Vec<_> = callouts.sent().into_iter().map(|request| request.url).collect();
        assert_eq!(urls, ["http://auth/1", "http://auth/2", "http://auth/2"]);
        drop(callouts);
        assert_eq!(ask("/1"), Err(Error::NotGranted), "the script has ended");
    }

    #[test]
    fn a_request_that_differs_fails_the_test_with_the_difference() {
        let expected = [
            (http::post("http://auth/"), "the method differs: the script has \"POST\", the plugin sent \"GET\""),
            (http::get("http://auth/x"), "the URL differs: the script has \"http://auth/x\""),
            (
                http::get("http://auth/").header("x-from", "you"),
                "`x-from` differs: the script has \"you\", the plugin sent \"me\"",
            ),
            (http::get("http://auth/").header("cookie", "a"), "the plugin sent \"no such field\""),
            (Request { body: b"a".into(), ..http::get("http://auth/") }, "the content differs"),
            (http::get("http://auth/").timeout(Duration::from_secs(1)), "the timeout differs"),
        ];
        for (expected, difference) in expected {
            let message = failure(|| {
                let _callouts = Callouts::new().answer(expected, Response::new(200));
                _ = ask("/");
            });
            assert!(message.contains("does not expect:\n  GET http://auth/, x-from: me"), "{message}");
            assert!(message.contains("request 1 of the script is:") && message.contains(difference), "{message}");
        }
    }

    #[test]
    fn a_request_too_many_or_too_few_fails_the_test() {
        let get = http::get("http://auth/");
        let message = failure(|| {
            let _callouts = Callouts::new().answer(get.clone(), Response::new(200));
            (0..2).for_each(|_| _ = ask("/"));
        });
        assert!(message.ends_with("the script has no request 2"), "{message}");
        let message = failure(|| drop(Callouts::new().answer(get, Response::new(200)).times(2)));
        let missing = "did not send 2 of the requests that the test expects:\n  GET http://auth/\n  GET http://auth/";
        assert!(message.ends_with(missing), "{message}");
    }

    #[test]
    fn a_script_may_have_no_order() {
        let get = |path: &str| http::get(format!("http://auth{path}"));
        let script = || {
            let script = Callouts::new().answer(get("/1"), Response::new(201)).answer(get("/2"), Response::new(202));
            script.in_any_order()
        };
        let callouts = script();
        assert_eq!((ask("/2").unwrap().status, ask("/1").unwrap().status), (202, 201));
        drop(callouts);
        let message = failure(|| {
            let _callouts = script();
            _ = (ask("/2"), ask("/3"));
        });
        assert!(message.ends_with("the script still has:\n  GET http://auth/1"), "{message}");
    }

    #[test]
    fn answers_take_their_time_and_no_longer_than_the_request_waits() {
        let get = || http::get("http://auth/");
        let _callouts = Callouts::new()
            .answer(get(), Response::new(200))
            .after(Duration::from_secs(2))
            .answer(get(), Response::new(200))
            .after(Duration::from_secs(4))
            .fail(get(), Error::Timeout);
        let timed = |request: Request| {
            let begin = clock::monotonic();
            (request.send().map(|answer| answer.status), clock::monotonic() - begin)
        };
        assert_eq!(timed(get().timeout(Duration::from_secs(3))), (Ok(200), Duration::from_secs(2)));
        assert_eq!(timed(get().timeout(Duration::from_secs(3))), (Err(Error::Timeout), Duration::from_secs(3)));
        assert_eq!(timed(get()), (Err(Error::Timeout), DEFAULT_TIMEOUT));
    }

    #[test]
    fn what_the_host_refuses_is_refused() {
        answer(|request| {
            let length = request.body.len();
            Ok(Response::new(200).body("text/plain", vec![0; length * 5]))
        });
        for url in ["auth/verify", "ftp://auth/", "http:///verify", "http://auth/a b"] {
            assert_eq!(http::get(url).send(), Err(Error::Invalid), "{url}");
        }
        for path in
            ["/./y", "/x/..", "/%2e%2e/y", "/..;a/y", "/..%2Fadmin", "/x%2f..%2fadmin", "/x%zz", "/x%00", "/x%5Cy"]
        {
            assert_eq!(http::get(format!("http://auth{path}")).send(), Err(Error::Invalid), "{path}");
        }
        for path in ["/a%2Fb", "/a%2fb/%7e", "//x", "/caf%c3%a9", "/%7Ejoe", "/ok%20b", "?a=b", ""] {
            assert!(http::get(format!("http://auth{path}")).send().is_ok(), "{path}");
        }
        for (name, value) in [("host", "a"), ("a b", "a"), ("a", "b\r\nc: d"), ("Transfer-Encoding", "chunked")] {
            assert_eq!(http::get("http://auth/").header(name, value).send(), Err(Error::Invalid), "{name}: {value}");
        }
        assert_eq!(http::request("A B", "http://auth/").send(), Err(Error::Invalid));
        let post = |length: usize| http::post("http://auth/").body("text/plain", vec![0; length]).send();
        assert!(post(1000).is_ok());
        assert_eq!((post(256 << 10), post((256 << 10) + 1)), (Err(Error::TooLarge), Err(Error::Invalid)));
    }
}
