//! What a hook decides.

use crate::PlanId;
use crate::bindings::types;

/// One change to a message; see `types.edit` in the WIT for the rules.
pub use crate::bindings::types::Edit;

/// What a hook decides: go on with some edits, answer, or give up.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Go on, with these edits.
    Proceed(Vec<Edit>),
    /// Go on, with the edits of a plan; costs least.
    Plan(PlanId),
    /// Answer the client with this response.
    Respond(Response),
    /// The plugin can't decide: its `on-error` says what the client gets, the text goes to the log.
    Fail(String),
}

/// A response made by a plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// The fields, without `content-length`, which is the host's.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The content.
    pub body: Vec<u8>,
}

impl Verdict {
    /// Go on; edits can follow.
    pub fn proceed() -> Self {
        Verdict::Proceed(Vec::new())
    }

    /// Adds an edit; without effect on other verdicts than [`Verdict::Proceed`].
    pub fn edit(mut self, edit: Edit) -> Self {
        if let Verdict::Proceed(edits) = &mut self {
            edits.push(edit);
        }
        self
    }

    /// Replaces all lines of a field by one.
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

    /// Leaves a note for later hooks, other plugins, templates and the access log.
    pub fn set_note(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.edit(Edit::SetNote((name.into(), value.into())))
    }

    /// Sends the request to another upstream of the manifest.
    pub fn set_upstream(self, name: &str) -> Self {
        self.edit(Edit::SetUpstream(name.into()))
    }

    /// Carries out a plan.
    pub fn plan(self, plan: PlanId) -> Self {
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
    /// An empty response.
    pub fn new(status: u16) -> Self {
        Response { status, fields: Vec::new(), body: Vec::new() }
    }

    /// Adds a field line.
    pub fn field(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Gives it content of a media type.
    pub fn body(self, media_type: &str, content: impl Into<Vec<u8>>) -> Self {
        Response { body: content.into(), ..self.field("content-type", media_type) }
    }
}

impl From<PlanId> for Verdict {
    fn from(plan: PlanId) -> Self {
        Verdict::Plan(plan)
    }
}

impl From<Response> for Verdict {
    fn from(response: Response) -> Self {
        Verdict::Respond(response)
    }
}
