//! The room that a call's edits have in a message, and the copy by which a message is restored: either all edits are
//! carried out, or none.

use http::header::{HeaderMap, HeaderValue};

use crate::context::ExchangeContext;
use crate::context::bounds;
use crate::context::edit_check::{self, EditError, MessageSide, check_count};
use crate::context::edit_plan::{EditCost, PlannedEdit};

/// The cost of the edits of one call, which has passed all bounds; only the values of templates are still added.
pub struct EditRoom {
    fields: usize,
    bytes: usize,
    note_bytes: usize,
}

impl EditRoom {
    /// Returns the room for edits of a cost; an error if they exceed a bound.
    pub fn of(cost: EditCost, side: MessageSide, context: &ExchangeContext) -> Result<Self, EditError> {
        check_count(bounds::EDITS, cost.edits, "edits of a call, with those of its plans")?;
        check_count(bounds::TEMPLATE_VALUES, cost.values, "values in the templates of a call")?;
        cost.check_side(side)?;
        check_count(bounds::NOTES, context.notes.len() + cost.notes, "notes of an exchange")?;
        let added = context.added.to(side);
        let fields = added.fields + cost.fields;
        check_count(bounds::ADDED_FIELDS, fields, "fields that plugins add to a message")?;
        let lines = fields_of(side, context).len() + cost.fields;
        check_count(bounds::MESSAGE_FIELDS, lines, "fields of a message")?;
        check_count(bounds::MOVED_LINES, lines * cost.renames, "field lines that the renames of a call may move")?;
        // A line has at most the longest of the new names.
        let bytes = added.bytes + cost.bytes + if cost.renames == 0 { 0 } else { lines * cost.longest_rename };
        context.work.add_edits(cost.edits, cost.bytes);
        let room = EditRoom { fields, bytes, note_bytes: context.added.note_bytes + cost.note_bytes };
        room.check(side)?;
        Ok(room)
    }

    /// Returns the value of an edit's template; `None` if the edit has no template or the value is empty; an error if
    /// the value exceeds a bound.
    pub fn fill(
        &mut self,
        planned: &PlannedEdit,
        side: MessageSide,
        context: &ExchangeContext,
    ) -> Result<Option<HeaderValue>, EditError> {
        let Some(template) = planned.template() else { return Ok(None) };
        let mut value = template.fill(context)?;
        if planned.makes_host() {
            value = value.map(edit_check::host).transpose()?;
        }
        let length = value.as_ref().map_or(0, HeaderValue::len);
        context.work.add_edits(0, length);
        match planned {
            PlannedEdit::Note(..) => self.note_bytes += length,
            _ => self.bytes += length,
        }
        self.check(side)?;
        Ok(value)
    }

    /// Counts the edits as made.
    pub fn close(self, side: MessageSide, context: &mut ExchangeContext) {
        let added = context.added.to_mut(side);
        (added.fields, added.bytes) = (self.fields, self.bytes);
        context.added.note_bytes = self.note_bytes;
    }

    fn check(&self, side: MessageSide) -> Result<(), EditError> {
        match side {
            MessageSide::Request => {
                check_count(bounds::ADDED_TO_REQUEST, self.bytes, "bytes that plugins add to the head of a request")?;
            }
            MessageSide::Response => {
                check_count(bounds::ADDED_TO_RESPONSE, self.bytes, "bytes that plugins add to the head of a response")?;
            }
        }
        check_count(bounds::NOTE_BYTES, self.note_bytes, "bytes of notes")
    }
}

/// A copy of a message, with the notes, from before a call's edits.
pub struct SavedMessage {
    message: MessageHead,
    notes: Vec<(String, HeaderValue)>,
    max_body: Option<u64>,
}

enum MessageHead {
    Request(http::Method, http::Uri, HeaderMap),
    Response(http::StatusCode, HeaderMap),
}

impl SavedMessage {
    /// Copies the parts that edits of one side can change.
    pub fn of(side: MessageSide, context: &ExchangeContext) -> Self {
        let message = match (side, &context.response) {
            (MessageSide::Response, Some(response)) => MessageHead::Response(response.status, response.headers.clone()),
            _ => MessageHead::Request(
                context.request.method.clone(),
                context.request.uri.clone(),
                context.request.headers.clone(),
            ),
        };
        SavedMessage { message, notes: context.notes.clone(), max_body: context.max_body }
    }

    /// Brings the message, the notes and the limit of the content back.
    pub fn restore(self, context: &mut ExchangeContext) {
        (context.notes, context.max_body) = (self.notes, self.max_body);
        match (self.message, &mut context.response) {
            (MessageHead::Request(method, uri, headers), _) => {
                (context.request.method, context.request.uri, context.request.headers) = (method, uri, headers);
            }
            (MessageHead::Response(status, headers), Some(response)) => {
                (response.status, response.headers) = (status, headers);
            }
            (MessageHead::Response(..), None) => {}
        }
    }
}

fn fields_of(side: MessageSide, context: &ExchangeContext) -> &HeaderMap {
    match (side, &context.response) {
        (MessageSide::Response, Some(response)) => &response.headers,
        _ => &context.request.headers,
    }
}
