//! A plugin that counts request bodies in the shared state, from the hook that receives them whole.

use plugway_sdk::{
    BodyMode, BodyVerdict, BufferedRequestBody, ConfigError, OverLimit, Plugin, Setup, Values, export, shared,
};

pub struct Counted;

impl Plugin for Counted {
    type Config = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        setup.request_body.mode = BodyMode::Buffered(1 << 10, OverLimit::Reject);
        Ok(Counted)
    }
}

impl BufferedRequestBody for Counted {
    fn on_request_body(&mut self, _: &Values, _: Vec<u8>) -> BodyVerdict {
        match shared::add("bodies", 1, None) {
            Ok(_) => BodyVerdict::Proceed(Vec::new()),
            Err(error) => BodyVerdict::Fail(error.to_string()),
        }
    }
}

export!(Counted: BufferedRequestBody);
