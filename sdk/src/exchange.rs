//! The current exchange, for values that were not declared. Each function is a call of the host, so declare the values
//! that you always need. In native tests everything is absent.

use crate::ValueName;

/// Returns a value of the exchange; `None` if it is absent.
pub fn value(name: &ValueName) -> Option<Vec<u8>> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::exchange::value(name);
    #[cfg(not(target_family = "wasm"))]
    {
        let _ = name;
        None
    }
}

/// Returns all fields of the request in its current state.
pub fn request_fields() -> Vec<(String, Vec<u8>)> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::exchange::request_fields();
    #[cfg(not(target_family = "wasm"))]
    Vec::new()
}

/// Returns all fields of the response in its current state; an empty list during the request.
pub fn response_fields() -> Vec<(String, Vec<u8>)> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::exchange::response_fields();
    #[cfg(not(target_family = "wasm"))]
    Vec::new()
}
