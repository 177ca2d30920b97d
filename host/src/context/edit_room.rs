//! The room that a call's edits have in a message, and what is kept to bring a message back to what it was: edits are
//! carried out all or none.

use http::header::{HeaderMap, HeaderValue};

use crate::context::Head;
use crate::context::bounds;
use crate::context::edit_check::{self, Refused, Side, at_most};
use crate::context::edit_plan::{Cost, Planned};

/// The cost of the edits of one call, which has passed all bounds; only the values of templates are still added.
pub struct Room {
    fields: usize,
    bytes: usize,
    note_bytes: usize,
}

impl Room {
    /// Returns the room for edits of a cost; an error if they exceed a bound.
    pub fn of(cost: Cost, side: Side, head: &Head) -> Result<Self, Refused> {
        at_most(bounds::EDITS, cost.edits, "edits of a call, with those of its plans")?;
        at_most(bounds::TEMPLATE_VALUES, cost.values, "values in the templates of a call")?;
        at_most(bounds::NOTES, head.notes.len() + cost.notes, "notes of an exchange")?;
        let added = head.added.to(side);
        let fields = added.fields + cost.fields;
        at_most(bounds::ADDED_FIELDS, fields, "fields that plugins add to a message")?;
        let lines = fields_of(side, head).len() + cost.fields;
        at_most(bounds::MESSAGE_FIELDS, lines, "fields of a message")?;
        at_most(bounds::MOVED_LINES, lines * cost.renames, "field lines that the renames of a call may move")?;
        // A line has at most the longest of the new names.
        let bytes = added.bytes + cost.bytes + if cost.renames == 0 { 0 } else { lines * cost.longest_rename };
        let room = Room { fields, bytes, note_bytes: head.added.note_bytes + cost.note_bytes };
        room.check(side)?;
        Ok(room)
    }

    /// Returns the value of an edit's template, or `None` if it has none or comes out empty; an error if it exceeds a
    /// bound.
    pub fn fill(&mut self, planned: &Planned, side: Side, head: &Head) -> Result<Option<HeaderValue>, Refused> {
        let Some(template) = planned.template() else { return Ok(None) };
        let mut value = template.fill(head)?;
        if planned.makes_host() {
            value = value.map(edit_check::host).transpose()?;
        }
        let length = value.as_ref().map_or(0, HeaderValue::len);
        match planned {
            Planned::Note(..) => self.note_bytes += length,
            _ => self.bytes += length,
        }
        self.check(side)?;
        Ok(value)
    }

    /// Counts the edits as made.
    pub fn close(self, side: Side, head: &mut Head) {
        let added = head.added.to_mut(side);
        (added.fields, added.bytes) = (self.fields, self.bytes);
        head.added.note_bytes = self.note_bytes;
    }

    fn check(&self, side: Side) -> Result<(), Refused> {
        match side {
            Side::Request => {
                at_most(bounds::ADDED_TO_REQUEST, self.bytes, "bytes that plugins add to the head of a request")?;
            }
            Side::Response => {
                at_most(bounds::ADDED_TO_RESPONSE, self.bytes, "bytes that plugins add to the head of a response")?;
            }
        }
        at_most(bounds::NOTE_BYTES, self.note_bytes, "bytes of notes")
    }
}

/// A message as it was before a call's edits, with the notes.
pub struct Kept {
    message: Message,
    notes: Vec<(String, HeaderValue)>,
}

enum Message {
    Request(http::Method, http::Uri, HeaderMap),
    Response(http::StatusCode, HeaderMap),
}

impl Kept {
    /// Copies what edits of one side can change.
    pub fn of(side: Side, head: &Head) -> Self {
        let message = match (side, &head.response) {
            (Side::Response, Some(response)) => Message::Response(response.status, response.headers.clone()),
            _ => Message::Request(head.request.method.clone(), head.request.uri.clone(), head.request.headers.clone()),
        };
        Kept { message, notes: head.notes.clone() }
    }

    /// Brings the message and the notes back.
    pub fn restore(self, head: &mut Head) {
        head.notes = self.notes;
        match (self.message, &mut head.response) {
            (Message::Request(method, uri, headers), _) => {
                (head.request.method, head.request.uri, head.request.headers) = (method, uri, headers);
            }
            (Message::Response(status, headers), Some(response)) => {
                (response.status, response.headers) = (status, headers);
            }
            (Message::Response(..), None) => {}
        }
    }
}

fn fields_of(side: Side, head: &Head) -> &HeaderMap {
    match (side, &head.response) {
        (Side::Response, Some(response)) => &response.headers,
        _ => &head.request.headers,
    }
}
