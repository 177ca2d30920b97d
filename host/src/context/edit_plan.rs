//! Edit plans: edits that a plugin declared when it was configured, with templates whose values are filled in for each
//! exchange.

use std::borrow::Cow;

use http::header::{self, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::context::bounds;
use crate::context::edit_check::{EditError, MessageSide, check_count, trimmed};
use crate::context::{ExchangeContext, Value, ValueName};
use crate::protocol::client_address::X_FORWARDED_FOR;
use crate::protocol::field_alias::are_alike;

/// An edit plan with its cost, which is known before any exchange except for the values of its templates.
#[derive(Debug)]
pub struct EditPlan {
    pub edits: Vec<PlannedEdit>,
    pub cost: EditCost,
    /// Whether a template reads what an earlier edit of the plan changes.
    pub is_chained: bool,
}

/// An edit whose value is a template.
#[derive(Debug)]
pub enum PlannedEdit {
    Set(HeaderName, Template),
    Append(HeaderName, Template),
    Default(HeaderName, Template),
    Remove(HeaderName),
    Rename(HeaderName, HeaderName),
    Note(String, Template),
    /// The maximum length of the request's content, in bytes.
    MaxBody(u64),
}

/// Text with values.
#[derive(Debug)]
pub struct Template(pub Vec<TemplatePart>);

/// A piece of a template.
#[derive(Debug)]
pub enum TemplatePart {
    Text(HeaderValue),
    Value(ValueName),
}

/// The cost of edits, as far as it is known without the values of templates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EditCost {
    pub edits: usize,
    /// Edits that can add a field.
    pub fields: usize,
    /// The bytes of the names of these fields, with [`bounds::FIELD_OVERHEAD`] for each, and of values that are no
    /// template.
    pub bytes: usize,
    pub renames: usize,
    /// The length of the longest new name of a rename, in bytes.
    pub longest_rename: usize,
    pub notes: usize,
    /// The bytes of the names of notes, and of their values that are no template.
    pub note_bytes: usize,
    /// The number of values in templates.
    pub values: usize,
    /// Edits of plans that no response can have.
    pub request_only: usize,
}

impl EditCost {
    /// The cost of two lists of edits together.
    pub fn and(self, other: EditCost) -> EditCost {
        EditCost {
            edits: self.edits + other.edits,
            fields: self.fields + other.fields,
            bytes: self.bytes + other.bytes,
            renames: self.renames + other.renames,
            longest_rename: self.longest_rename.max(other.longest_rename),
            notes: self.notes + other.notes,
            note_bytes: self.note_bytes + other.note_bytes,
            values: self.values + other.values,
            request_only: self.request_only + other.request_only,
        }
    }

    /// Returns the cost of an edit that adds a field with a value of `value` bytes.
    pub fn field(name: &HeaderName, value: usize) -> EditCost {
        let bytes = name.as_str().len() + value + bounds::FIELD_OVERHEAD;
        EditCost { edits: 1, fields: 1, bytes, ..EditCost::default() }
    }

    /// Returns the cost of a note with a value of `value` bytes.
    pub fn note(name: &str, value: usize) -> EditCost {
        EditCost { edits: 1, notes: 1, note_bytes: name.len() + value, ..EditCost::default() }
    }

    /// The cost of a rename to a name.
    pub fn rename(to: &HeaderName) -> EditCost {
        EditCost { edits: 1, renames: 1, longest_rename: to.as_str().len(), ..EditCost::default() }
    }

    /// Rejects edits of requests for a response.
    pub fn check_side(&self, side: MessageSide) -> Result<(), EditError> {
        match side {
            MessageSide::Response if self.request_only > 0 => Err(EditError::Side("request's limit of content")),
            MessageSide::Request | MessageSide::Response => Ok(()),
        }
    }

    /// Returns the cost of an edit that adds nothing to a head.
    pub fn plain() -> EditCost {
        EditCost { edits: 1, ..EditCost::default() }
    }
}

impl EditPlan {
    /// Returns the plan of some edits; an error if they are too many or have too many values.
    pub fn new(edits: Vec<PlannedEdit>) -> Result<Self, EditError> {
        check_count(bounds::EDITS, edits.len(), "edits of a plan")?;
        let cost = edits.iter().map(PlannedEdit::cost).fold(EditCost::default(), EditCost::and);
        check_count(bounds::TEMPLATE_VALUES, cost.values, "values in the templates of a plan")?;
        let is_chained = edits.iter().enumerate().any(|(index, edit)| {
            let mut values = edit.template().into_iter().flat_map(Template::values);
            values.any(|value| edits[..index].iter().any(|earlier| earlier.changes(value)))
        });
        Ok(EditPlan { edits, cost, is_chained })
    }

    /// Returns the number of bytes that the plan counts against [`bounds::DECLARED`].
    pub fn declared_bytes(&self) -> usize {
        self.edits.iter().map(PlannedEdit::declared_bytes).sum()
    }
}

impl PlannedEdit {
    /// Returns the template of the edit; `None` if it has none.
    pub fn template(&self) -> Option<&Template> {
        match self {
            PlannedEdit::Set(_, template)
            | PlannedEdit::Append(_, template)
            | PlannedEdit::Default(_, template)
            | PlannedEdit::Note(_, template) => Some(template),
            PlannedEdit::Remove(_) | PlannedEdit::Rename(..) | PlannedEdit::MaxBody(_) => None,
        }
    }

    /// Whether the edit sets the value of `Host`.
    pub fn makes_host(&self) -> bool {
        matches!(self, PlannedEdit::Set(name, _) | PlannedEdit::Default(name, _) if *name == header::HOST)
    }

    fn cost(&self) -> EditCost {
        let cost = match self {
            PlannedEdit::Set(name, _) | PlannedEdit::Append(name, _) | PlannedEdit::Default(name, _) => {
                EditCost::field(name, 0)
            }
            PlannedEdit::Note(name, _) => EditCost::note(name, 0),
            PlannedEdit::Rename(_, to) => EditCost::rename(to),
            PlannedEdit::MaxBody(_) => EditCost { request_only: 1, ..EditCost::plain() },
            PlannedEdit::Remove(_) => EditCost::plain(),
        };
        EditCost { values: self.template().map_or(0, |template| template.values().count()), ..cost }
    }

    fn declared_bytes(&self) -> usize {
        let names = match self {
            PlannedEdit::Set(name, _)
            | PlannedEdit::Append(name, _)
            | PlannedEdit::Default(name, _)
            | PlannedEdit::Remove(name) => name.as_str().len(),
            PlannedEdit::Rename(from, to) => from.as_str().len() + to.as_str().len(),
            PlannedEdit::Note(name, _) => name.len(),
            PlannedEdit::MaxBody(_) => 0,
        };
        bounds::DECLARED_ITEM + names + self.template().map_or(0, |template| template.declared_bytes())
    }

    /// Whether the edit can change a value.
    fn changes(&self, value: &ValueName) -> bool {
        let changed = |changed: &HeaderName| match value {
            // An edit of a field concerns its aliases too.
            ValueName::RequestField(name) => are_alike(name.as_str(), changed.as_str()),
            ValueName::ResponseField(name) => name == changed,
            ValueName::Authority | ValueName::Host | ValueName::Uri => *changed == header::HOST,
            ValueName::Cookie(_) => *changed == header::COOKIE,
            ValueName::ForwardedFor => *changed == X_FORWARDED_FOR,
            _ => false,
        };
        match self {
            PlannedEdit::Set(name, _)
            | PlannedEdit::Append(name, _)
            | PlannedEdit::Default(name, _)
            | PlannedEdit::Remove(name) => changed(name),
            PlannedEdit::Rename(from, to) => changed(from) || changed(to),
            PlannedEdit::Note(name, _) => matches!(value, ValueName::Note(read) if read == name),
            PlannedEdit::MaxBody(_) => false,
        }
    }
}

impl Template {
    /// The values that the template reads.
    pub fn values(&self) -> impl Iterator<Item = &ValueName> {
        self.0.iter().filter_map(|part| match part {
            TemplatePart::Value(name) => Some(name),
            TemplatePart::Text(_) => None,
        })
    }

    fn declared_bytes(&self) -> usize {
        let part = |part: &TemplatePart| match part {
            TemplatePart::Text(text) => text.len(),
            TemplatePart::Value(name) => name.text_len(),
        };
        self.0.iter().map(|it| bounds::DECLARED_ITEM + part(it)).sum()
    }

    /// Returns the value for an exchange; `None` if the value is empty. A value that would be longer than
    /// [`bounds::VALUE`] is rejected before it is built.
    pub fn fill(&self, context: &ExchangeContext) -> Result<Option<HeaderValue>, EditError> {
        match self.0.as_slice() {
            [TemplatePart::Text(text)] => return Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            [TemplatePart::Value(name)] => return context.value(name).map_or(Ok(None), field),
            _ => {}
        }
        let mut filled: SmallVec<[u8; 128]> = SmallVec::new();
        for part in &self.0 {
            match part {
                TemplatePart::Text(text) => put(&mut filled, text.as_bytes())?,
                TemplatePart::Value(name) => {
                    if let Some(value) = context.value(name) {
                        put(&mut filled, value.bytes())?;
                    }
                }
            }
        }
        field(Value::Bytes(Cow::Borrowed(&filled)))
    }
}

/// Returns the value as a field value; `None` if it is empty.
fn field(value: Value<'_>) -> Result<Option<HeaderValue>, EditError> {
    bounded(value.bytes().len())?;
    let value = match value {
        Value::Field(value) => Some(value.clone()),
        // Values come from a parsed head, so only what no field may have is lost here.
        Value::Bytes(bytes) => HeaderValue::from_bytes(trimmed(&bytes)).ok(),
    };
    Ok(value.filter(|value| !value.is_empty()))
}

fn put(filled: &mut SmallVec<[u8; 128]>, bytes: &[u8]) -> Result<(), EditError> {
    bounded(filled.len() + bytes.len())?;
    filled.extend_from_slice(bytes);
    Ok(())
}

fn bounded(length: usize) -> Result<(), EditError> {
    check_count(bounds::VALUE, length, "bytes of a filled template")
}
