//! A plugin with body hooks that tell what they were given: the transformed content begins with the declared values.

use plugway_sdk::{
    BodyError, BodyFilter, ConfigError, Input, Plugin, RequestBody, ResponseBody, Setup, ValueName, Values, export,
};

pub struct Bodies {
    request: Vec<Input>,
    response: Vec<Input>,
}

/// A body whose output begins with a text.
pub struct Headed(Vec<u8>);

impl Plugin for Bodies {
    type Config = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        let request = vec![setup.request_body.value(ValueName::Method), setup.request_body.field("content-type")];
        let response =
            vec![setup.response_body.value(ValueName::Status), setup.response_body.response_field("content-type")];
        Ok(Bodies { request, response })
    }
}

fn told(values: &Values, needs: &[Input]) -> Headed {
    let texts: Vec<&str> = needs.iter().map(|need| values.text(*need).unwrap_or("-")).collect();
    Headed(format!("[{}]", texts.join(" ")).into_bytes())
}

impl RequestBody for Bodies {
    type Body = Headed;

    fn request_body(&mut self, request: &Values) -> Headed {
        told(request, &self.request)
    }
}

impl ResponseBody for Bodies {
    type Body = Headed;

    fn response_body(&mut self, response: &Values) -> Headed {
        told(response, &self.response)
    }
}

impl BodyFilter for Headed {
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
        let mut out = std::mem::take(&mut self.0);
        out.extend_from_slice(&chunk);
        Ok(out)
    }

    fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
        Ok(std::mem::take(&mut self.0))
    }
}

export!(Bodies: RequestBody, ResponseBody);
