//! The decision of a hook.

use crate::EditPlanId;
use crate::bindings::types;

/// A change to a message; see `types.edit` in the WIT for the rules.
pub use crate::bindings::types::Edit;

/// The decision of a hook: continue with some edits, respond, or fail.
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

    /// Selects another upstream of the manifest for the request.
    pub fn set_upstream(self, name: &str) -> Self {
        self.edit(Edit::SetUpstream(name.into()))
    }

    /// Limits the content of the request to this number of bytes, whether its client announces the length or not. The
    /// lowest limit applies: of the route and of all plugins.
    pub fn max_body(self, bytes: u64) -> Self {
        self.edit(Edit::MaxBody(bytes))
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
            Verdict::Respond(Response { status, fields, body }) => {
                types::Verdict::Respond(types::Response { status, fields, body })
            }
            Verdict::Fail(reason) => types::Verdict::Fail(reason),
        }
    }
}

impl Response {
    /// Creates a response without content.
    pub fn new(status: u16) -> Self {
        Response { status, fields: Vec::new(), body: Vec::new() }
    }

    /// Adds a field line.
    pub fn field(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.fields.push((name.into(), value.into()));
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
