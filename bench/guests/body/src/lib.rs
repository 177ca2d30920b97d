//! The filter of `bodies`: passes each chunk of a response on as it is.

use plugway_sdk::{BodyError, BodyFilter, ConfigError, Plugin, ResponseBody, Setup, Values, export};

pub struct Identity;

impl Plugin for Identity {
    type Config = ();

    fn new((): (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Identity)
    }
}

impl ResponseBody for Identity {
    type Body = Unchanged;

    fn response_body(&mut self, _: &Values) -> Unchanged {
        Unchanged
    }
}

/// A body that stays as it is.
pub struct Unchanged;

impl BodyFilter for Unchanged {
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
        Ok(chunk)
    }
}

export!(Identity: ResponseBody);
