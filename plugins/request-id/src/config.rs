//! The configuration as written in the manifest.

use schemars::JsonSchema;
use serde::Deserialize;

/// The identifier of each request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The field that has the identifier, in requests and responses; `X-Request-ID` by default.
    pub field: Option<String>,
    /// The form of the identifiers that the plugin makes.
    pub format: Format,
    /// `true`: an identifier that the client has sent is kept if it is valid. By default it is replaced.
    pub trust: bool,
    /// The maximum length of a trusted identifier, in characters, from 1 to 1024; 128 by default.
    pub max_length: Option<usize>,
    /// `false`: responses don't get the field.
    pub response: Option<bool>,
    /// The note that has the identifier, for other plugins and the access log; `request-id` by default.
    pub note: Option<String>,
    /// The handling of the field `traceparent` (W3C Trace Context).
    pub traceparent: Traceparent,
    /// `true`: a `traceparent` that the plugin makes asks for the trace to be recorded.
    pub sampled: bool,
}

/// The form of an identifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// 32 hexadecimal digits: the identifier that the access log has as `request_id`.
    #[default]
    Hex,
    /// A UUID of version 7 (RFC 9562 §5.7), which begins with the time.
    Uuid,
    /// A ULID: 26 characters, which begin with the time.
    Ulid,
}

/// The handling of `traceparent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Traceparent {
    /// The field passes unchanged.
    #[default]
    Pass,
    /// The field is made. With `trust`, a valid one from the client is kept.
    Create,
}
