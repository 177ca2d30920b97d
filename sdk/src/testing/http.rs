//! The other services of native tests: a test answers the requests of its plugin.

use std::cell::RefCell;

use crate::Response;
use crate::http::{Error, Request};

/// An answer of a test.
type Answer = Box<dyn FnMut(&Request) -> Result<Response, Error>>;

thread_local! {
    static ANSWER: RefCell<Option<Answer>> = const { RefCell::new(None) };
}

/// Answers all further requests on this thread by a function. Without an answer, destinations are not granted.
pub fn answer(answer: impl FnMut(&Request) -> Result<Response, Error> + 'static) {
    ANSWER.set(Some(Box::new(answer)));
}

#[cfg(not(target_family = "wasm"))]
pub(crate) fn send(request: Request) -> Result<Response, Error> {
    ANSWER.with_borrow_mut(|answer| answer.as_mut().map_or(Err(Error::NotGranted), |answer| answer(&request)))
}
