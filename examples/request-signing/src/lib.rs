//! A filter that signs requests for the upstream, or verifies the signatures of clients: an HMAC of the body, of the target
//! and of chosen fields.

mod signature;

use std::time::{Duration, UNIX_EPOCH};

use plugway_sdk::{
    BodyMode, BodyVerdict, BufferedRequestBody, CodedContent, ConfigError, Edit, Input, Inputs, OverLimit, Plugin,
    RequestFilter, Response, Setup, ValueName, Values, Verdict, clock, export, units,
};

use crate::signature::{Key, Message, Signature};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Whether the plugin signs requests or verifies them.
    role: Role,
    /// The secret that signers and verifiers share, of at least 16 bytes.
    key: String,
    /// The fields that are signed besides method, path, query and body, in this order.
    #[serde(default)]
    fields: Vec<String>,
    /// The longest body; longer ones get 413.
    #[serde(default = "default_max_body")]
    max_body: String,
    /// The longest time since a request was signed, and until then if the clock of the signer is ahead.
    #[serde(default = "default_max_age")]
    max_age: String,
}

#[derive(Clone, Copy, PartialEq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Role {
    /// Requests get a signature, in place of any that their client sent.
    Sign,
    /// Requests without a valid signature get 401.
    Verify,
}

pub struct Signing {
    role: Role,
    key: Key,
    max_age: Duration,
    head: Signed,
    body: Signed,
    content: Input,
}

/// The handles of the signed values in one hook.
struct Signed {
    method: Input,
    path: Input,
    query: Input,
    fields: Vec<Input>,
    signature: Input,
}

/// The field with the signature.
const FIELD: &str = "x-signature";

/// The shortest key, in bytes.
const MIN_KEY: usize = 16;

fn default_max_body() -> String {
    "1 MiB".into()
}

fn default_max_age() -> String {
    "5m".into()
}

impl Plugin for Signing {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let Config { role, key, fields, max_body, max_age } = config;
        let key = Key::new(key.as_bytes()).filter(|_| key.len() >= MIN_KEY).ok_or_else(|| {
            let message = format!("{} bytes; expected {MIN_KEY} at least, as from `openssl rand -hex 32`", key.len());
            ConfigError::at("/key", message)
        })?;
        let max_body = units::bytes(&max_body).map_err(|error| ConfigError::at("/max-body", error))?;
        let max_age = units::duration(&max_age).map_err(|error| ConfigError::at("/max-age", error))?;
        setup.request_body.mode = BodyMode::Buffered(max_body, OverLimit::Reject);
        // The body is signed as it is sent, and stays as it is.
        setup.request_body.content.coded = CodedContent::AsIs;
        let head = Signed::declare(&mut setup.request, &fields);
        let body = Signed::declare(&mut setup.request_body, &fields);
        let content = setup.request.value(ValueName::ContentLength);
        Ok(Signing { role, key, max_age, head, body, content })
    }
}

impl RequestFilter for Signing {
    fn on_request(&mut self, request: &Values) -> Verdict {
        // A request with a body is the matter of the other hook, which isn't called without one.
        if request.bytes(self.content).is_some() {
            return Verdict::proceed();
        }
        match self.decide(&self.head, request, b"") {
            Ok(edit) => Verdict::proceed().edit(edit),
            Err(response) => response.into(),
        }
    }
}

impl BufferedRequestBody for Signing {
    fn on_request_body(&mut self, request: &Values, content: Vec<u8>) -> BodyVerdict {
        match self.decide(&self.body, request, &content) {
            Ok(edit) => BodyVerdict::proceed().edit(edit),
            Err(response) => response.into(),
        }
    }
}

impl Signing {
    /// Returns the edit with which a request continues, or the response to it.
    fn decide(&self, signed: &Signed, request: &Values, body: &[u8]) -> Result<Edit, Response> {
        let now = clock::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let message = signed.message(request, body);
        if self.role == Role::Sign {
            return Ok(Edit::SetField((FIELD.into(), self.key.sign(&message, now).to_string().into())));
        }
        let refused = |reason: &str| Response::new(401).body("text/plain", format!("{reason}\n"));
        let signature = request.text(signed.signature).ok_or_else(|| refused("the request has no signature"))?;
        // Two signatures arrive with a comma between them, and are malformed.
        let signature: Signature = signature.parse().map_err(|()| refused("the signature is malformed"))?;
        if signature.time.abs_diff(now) > self.max_age.as_secs() {
            return Err(refused("the signature is too old, or from the future"));
        }
        match self.key.is_valid(&signature, &message) {
            true => Ok(Edit::SetNote(("signed".into(), signature.time.to_string().into()))),
            false => Err(refused("the signature is wrong")),
        }
    }
}

impl Signed {
    fn declare(inputs: &mut Inputs, fields: &[String]) -> Self {
        Signed {
            method: inputs.value(ValueName::Method),
            path: inputs.value(ValueName::Path),
            query: inputs.value(ValueName::Query),
            fields: fields.iter().map(|name| inputs.field(name)).collect(),
            signature: inputs.field(FIELD),
        }
    }

    fn message<'a>(&self, request: &'a Values, body: &'a [u8]) -> Message<'a> {
        let value = |input: Input| request.bytes(input).unwrap_or_default();
        Message {
            method: value(self.method),
            path: value(self.path),
            query: request.bytes(self.query),
            fields: self.fields.iter().map(|field| value(*field)).collect(),
            body,
        }
    }
}

export!(Signing: RequestFilter, BufferedRequestBody);

#[cfg(test)]
mod tests;
