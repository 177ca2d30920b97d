//! The exchange that [`exchange`](crate::exchange) reads in native tests.
#![cfg_attr(target_family = "wasm", expect(dead_code, reason = "in the proxy, the host knows the exchange"))]

use std::cell::RefCell;

use super::Request;
use crate::{Response, ValueName};

/// The messages of an exchange.
struct Messages {
    request: Request,
    response: Option<Response>,
}

thread_local! {
    /// The exchange of the hook that runs on this thread.
    static CURRENT: RefCell<Option<Messages>> = const { RefCell::new(None) };
}

/// A guard that ends the exchange, also if the hook panics.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// Calls a hook of an exchange.
pub fn during<R>(request: &Request, response: Option<&Response>, hook: impl FnOnce() -> R) -> R {
    CURRENT.set(Some(Messages { request: request.clone(), response: response.cloned() }));
    let _end = End;
    hook()
}

/// Returns a value of the exchange; `None` if it is absent.
pub fn value(name: &ValueName) -> Option<Vec<u8>> {
    read(|messages| messages.request.value(name, messages.response.as_ref()))
}

/// Returns all values of a name.
pub fn values(name: &ValueName) -> Vec<Vec<u8>> {
    read(|messages| messages.request.values(name, messages.response.as_ref()))
}

/// Returns the fields of the request.
pub fn request_fields() -> Vec<(String, Vec<u8>)> {
    read(|messages| messages.request.fields.clone())
}

/// Returns the fields of the response; an empty list if there is no response.
pub fn response_fields() -> Vec<(String, Vec<u8>)> {
    read(|messages| messages.response.as_ref().map(|response| response.fields.clone()).unwrap_or_default())
}

/// Reads the exchange; the default if no hook runs.
fn read<R: Default>(read: impl FnOnce(&Messages) -> R) -> R {
    CURRENT.with_borrow(|current| current.as_ref().map(read).unwrap_or_default())
}
