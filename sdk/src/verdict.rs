//! The decision of a hook.

use crate::bindings::types;
use crate::{BodyMode, EditPlanId};

/// A change to a message; see `types.edit` in the WIT for the rules.
pub use crate::bindings::types::Edit;

/// The decision of a hook: continue with some edits, respond, or fail.
///
/// Names of fields and methods may be constants of the `http` crate, and a status code of that crate is a response without
/// content:
///
/// ```
/// use http::{Method, StatusCode, header};
/// use plugway_sdk::{Response, Verdict};
///
/// let verdict = Verdict::proceed().set_method(Method::GET).set_field(header::ACCEPT, "text/html").remove_field("range");
/// let refused: Verdict = StatusCode::FORBIDDEN.into();
/// assert_eq!(refused, Verdict::Respond(Response::new(403)));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Continue with these edits.
    Proceed(Vec<Edit>),
    /// Continue with the edits of a plan, which costs least.
    Plan(EditPlanId),
    /// Respond to the client with this response.
    Respond(Response),
    /// Fail the call: the plugin's `on-error` decides about the response, and the text is logged.
    Fail(String),
}

/// The decision of a hook that has received a whole body: continue with the content or with another one, respond, or fail.
#[derive(Clone, Debug, PartialEq)]
pub enum BodyVerdict {
    /// Continue with the content as it is, and with these edits of the head.
    Proceed(Vec<Edit>),
    /// Continue with this content in place of the received one, and with these edits of the head.
    Replace(Vec<u8>, Vec<Edit>),
    /// Respond to the client with this response.
    Respond(Response),
    /// Fail the call: the plugin's `on-error` decides about the response, and the text is logged.
    Fail(String),
}

/// A response made by a plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The status code, 200 to 599.
    pub status: u16,
    /// The fields without `content-length`, which the host sets.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The complete content.
    pub body: Vec<u8>,
}

impl Verdict {
    /// Continues without edits; edits can be added.
    pub fn proceed() -> Self {
        Verdict::Proceed(Vec::new())
    }

    /// Adds an edit to [`Verdict::Proceed`]; has no effect on other verdicts.
    pub fn edit(mut self, edit: Edit) -> Self {
        if let Verdict::Proceed(edits) = &mut self {
            edits.push(edit);
        }
        self
    }

    /// Replaces all lines of a field by one line.
    pub fn set_field(self, name: impl AsRef<str>, value: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::SetField((name.as_ref().into(), value.into())))
    }

    /// Adds a line to a field.
    pub fn append_field(self, name: impl AsRef<str>, value: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::AppendField((name.as_ref().into(), value.into())))
    }

    /// Adds a line to a field if the field is absent.
    pub fn default_field(self, name: impl AsRef<str>, value: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::DefaultField((name.as_ref().into(), value.into())))
    }

    /// Removes all lines of a field.
    pub fn remove_field(self, name: impl AsRef<str>) -> Self {
        self.edit(Edit::RemoveField(name.as_ref().into()))
    }

    /// Renames all lines of the field `from` to `to`, and removes any older lines of `to`.
    pub fn rename_field(self, from: impl AsRef<str>, to: impl AsRef<str>) -> Self {
        self.edit(Edit::RenameField((from.as_ref().into(), to.as_ref().into())))
    }

    /// Changes the method of the request.
    pub fn set_method(self, method: impl AsRef<str>) -> Self {
        self.edit(Edit::SetMethod(method.as_ref().into()))
    }

    /// Changes the path of the request. The path is percent-encoded and begins with `/`;
    /// [`PathBuilder`](crate::path::PathBuilder) makes one from texts. The request is not routed again.
    pub fn set_path(self, path: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::SetPath(path.into()))
    }

    /// Changes the query of the request. The query is percent-encoded and has no `?`; an empty one is removed.
    /// [`Parameters`](crate::query::Parameters) makes one from names and values.
    pub fn set_query(self, query: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::SetQuery(Some(query.into()).filter(|query| !query.is_empty())))
    }

    /// Changes the Host that the upstream receives.
    pub fn set_authority(self, authority: impl AsRef<str>) -> Self {
        self.edit(Edit::SetAuthority(authority.as_ref().into()))
    }

    /// Changes the status code of the response, 200 to 599.
    pub fn set_status(self, status: u16) -> Self {
        self.edit(Edit::SetStatus(status))
    }

    /// Sets a note for later hooks, other plugins, templates and the access log.
    pub fn set_note(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::SetNote((name.into(), value.into())))
    }

    /// Selects another upstream of the manifest for the request.
    pub fn set_upstream(self, name: &str) -> Self {
        self.edit(Edit::SetUpstream(name.into()))
    }

    /// Limits the content of the request to this number of bytes, whether its client announces the length or not. The
    /// lowest limit applies: of the route and of all plugins.
    pub fn max_body(self, bytes: u64) -> Self {
        self.edit(Edit::MaxBody(bytes))
    }

    /// Decides how this plugin's own body hook receives the content of the message at hand, in place of the mode that was
    /// declared. The mode [`Skipped`](BodyMode::Skipped) costs nothing.
    ///
    /// ```
    /// # use plugway_sdk::*;
    /// # struct Html { content_type: Input }
    /// # impl Plugin for Html {
    /// #     type Config = ();
    /// fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
    ///     setup.response_body.mode = BodyMode::Skipped;
    ///     Ok(Html { content_type: setup.response.response_field("content-type") })
    /// }
    /// # }
    /// # impl ResponseFilter for Html {
    /// fn on_response(&mut self, response: &Values) -> Verdict {
    ///     let is_html = response.text(self.content_type).is_some_and(|media| media.starts_with("text/html"));
    ///     if is_html { Verdict::proceed().body(BodyMode::Streamed) } else { Verdict::proceed() }
    /// }
    /// # }
    /// ```
    pub fn body(self, mode: BodyMode) -> Self {
        self.edit(Edit::Body(mode.into_wit()))
    }

    /// Adds the edits of a plan.
    pub fn plan(self, plan: EditPlanId) -> Self {
        self.edit(Edit::Plan(plan.0))
    }

    #[doc(hidden)]
    pub fn into_wit(self) -> types::Verdict {
        match self {
            Verdict::Proceed(edits) => types::Verdict::Proceed(edits),
            Verdict::Plan(plan) => types::Verdict::Plan(plan.0),
            Verdict::Respond(response) => types::Verdict::Respond(response.into_wit()),
            Verdict::Fail(reason) => types::Verdict::Fail(reason),
        }
    }
}

impl BodyVerdict {
    /// Continues with the content as it is; edits can be added.
    pub fn proceed() -> Self {
        BodyVerdict::Proceed(Vec::new())
    }

    /// Continues with other content; edits can be added.
    pub fn replace(content: impl Into<Vec<u8>>) -> Self {
        BodyVerdict::Replace(content.into(), Vec::new())
    }

    /// Adds an edit of the head; has no effect on verdicts that don't continue.
    pub fn edit(mut self, edit: Edit) -> Self {
        if let BodyVerdict::Proceed(edits) | BodyVerdict::Replace(_, edits) = &mut self {
            edits.push(edit);
        }
        self
    }

    /// Replaces all lines of a field by one line.
    pub fn set_field(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::SetField((name.into(), value.into())))
    }

    /// Adds a line to a field.
    pub fn append_field(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::AppendField((name.into(), value.into())))
    }

    /// Removes all lines of a field.
    pub fn remove_field(self, name: &str) -> Self {
        self.edit(Edit::RemoveField(name.into()))
    }

    /// Sets a note for later hooks, other plugins, templates and the access log.
    pub fn set_note(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::SetNote((name.into(), value.into())))
    }

    /// Adds the edits of a plan.
    pub fn plan(self, plan: EditPlanId) -> Self {
        self.edit(Edit::Plan(plan.0))
    }

    #[doc(hidden)]
    pub fn into_wit(self) -> types::BodyVerdict {
        match self {
            BodyVerdict::Proceed(edits) => types::BodyVerdict::Proceed(edits),
            BodyVerdict::Replace(content, edits) => types::BodyVerdict::Replace(types::Replacement { content, edits }),
            BodyVerdict::Respond(response) => types::BodyVerdict::Respond(response.into_wit()),
            BodyVerdict::Fail(reason) => types::BodyVerdict::Fail(reason),
        }
    }
}

impl Response {
    /// Creates a response without content.
    pub fn new(status: u16) -> Self {
        Response { status, fields: Vec::new(), body: Vec::new() }
    }

    /// Adds a field line.
    pub fn field(mut self, name: impl AsRef<str>, value: impl Into<Vec<u8>>) -> Self {
        self.fields.push((name.as_ref().into(), value.into()));
        self
    }

    /// Returns the first line of a field as text; `None` if the field is absent or not UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// Sets content and its media type.
    pub fn body(self, media_type: &str, content: impl Into<Vec<u8>>) -> Self {
        Response { body: content.into(), ..self.field("content-type", media_type) }
    }

    fn into_wit(self) -> types::Response {
        let Response { status, fields, body } = self;
        types::Response { status, fields, body }
    }
}

impl From<EditPlanId> for Verdict {
    fn from(plan: EditPlanId) -> Self {
        Verdict::Plan(plan)
    }
}

impl From<Response> for Verdict {
    fn from(response: Response) -> Self {
        Verdict::Respond(response)
    }
}

impl From<Response> for BodyVerdict {
    fn from(response: Response) -> Self {
        BodyVerdict::Respond(response)
    }
}

/// Responds with a status code and without content.
impl From<http::StatusCode> for Verdict {
    fn from(status: http::StatusCode) -> Self {
        Verdict::Respond(status.into())
    }
}

/// Creates a response without content.
impl From<http::StatusCode> for Response {
    fn from(status: http::StatusCode) -> Self {
        Response::new(status.as_u16())
    }
}

/// Takes the status code, the fields and the content of a response of the `http` crate.
///
/// ```
/// use plugway_sdk::Response;
///
/// let moved = http::Response::builder().status(301).header("location", "/new").body("moved").unwrap();
/// let response = Response::from(moved);
/// assert_eq!((response.status, response.fields.len(), &response.body[..]), (301, 1, &b"moved"[..]));
/// ```
impl<B: Into<Vec<u8>>> From<http::Response<B>> for Response {
    fn from(response: http::Response<B>) -> Self {
        let (head, body) = response.into_parts();
        let fields = head.headers.iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().to_vec()));
        Response { status: head.status.as_u16(), fields: fields.collect(), body: body.into() }
    }
}
