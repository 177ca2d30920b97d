//! Forms (`application/x-www-form-urlencoded`) in the bodies of requests.
//!
//! A form has the syntax of a query, so that [`Parameters`] reads and writes it:
//!
//! ```
//! use plugway_sdk::testing::transform;
//! use plugway_sdk::{BodyError, BodyFilter, BodyMode, ConfigError, OverLimit, Plugin, RequestBody, Setup, Values, form};
//!
//! /// A filter that removes the passwords from forms.
//! struct Redact;
//!
//! impl Plugin for Redact {
//!     type Config = ();
//!
//!     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
//!         setup.request_body.mode = BodyMode::Buffered(64 << 10, OverLimit::Reject);
//!         Ok(Redact)
//!     }
//! }
//!
//! struct Form;
//!
//! impl BodyFilter for Form {
//!     fn push(&mut self, content: Vec<u8>) -> Result<Vec<u8>, BodyError> {
//!         Ok(form::parse(&content).set("password", "***").into())
//!     }
//! }
//! # impl RequestBody for Redact { type Body = Form; fn request_body(&mut self, _: &Values) -> Form { Form } }
//!
//! assert_eq!(transform(&mut Form, &[b"user=a+b&p%61ssword=x"]).unwrap(), b"user=a+b&password=%2A%2A%2A");
//! assert!(form::is_form("application/x-www-form-urlencoded; charset=UTF-8"));
//! ```

use crate::media_type;
use crate::query::Parameters;

/// The media type of forms.
pub const MEDIA_TYPE: &str = "application/x-www-form-urlencoded";

/// Whether a value of `Content-Type` says that the content is a form.
pub fn is_form(content_type: &str) -> bool {
    media_type::is(content_type, MEDIA_TYPE)
}

/// Parses the content of a form.
pub fn parse(content: &[u8]) -> Parameters<'_> {
    Parameters::parse(content)
}
