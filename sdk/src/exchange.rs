//! The exchange at hand, for what was not declared. A call to the host each: declare what you always need.
//! In native tests everything is absent.

use crate::ValueName;

/// A value of the exchange.
pub fn value(name: &ValueName) -> Option<Vec<u8>> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::exchange::value(name);
    #[cfg(not(target_family = "wasm"))]
    {
        let _ = name;
        None
    }
}

/// All fields of the request as it stands now.
pub fn request_fields() -> Vec<(String, Vec<u8>)> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::exchange::request_fields();
    #[cfg(not(target_family = "wasm"))]
    Vec::new()
}

/// All fields of the response as it stands now; none during the request.
pub fn response_fields() -> Vec<(String, Vec<u8>)> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::exchange::response_fields();
    #[cfg(not(target_family = "wasm"))]
    Vec::new()
}
