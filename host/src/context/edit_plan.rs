//! Edit plans: edits that a plugin declared when it was configured, with templates whose values are filled in for each
//! exchange.

use std::borrow::Cow;

use http::header::{self, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::context::bounds;
use crate::context::edit_check::{Refused, at_most, trimmed};
use crate::context::{Head, Value, ValueName};
use crate::protocol::client_address::X_FORWARDED_FOR;
use crate::protocol::field_alias::are_alike;

/// An edit plan with what it costs, which is known before any exchange but for the values of its templates.
#[derive(Debug)]
pub struct Plan {
    pub edits: Vec<Planned>,
    pub cost: Cost,
    /// Whether a template reads what an earlier edit of the plan changes.
    pub is_chained: bool,
}

/// An edit whose value is a template.
#[derive(Debug)]
pub enum Planned {
    Set(HeaderName, Template),
    Append(HeaderName, Template),
    Default(HeaderName, Template),
    Remove(HeaderName),
    Rename(HeaderName, HeaderName),
    Note(String, Template),
}

/// Text with values.
#[derive(Debug)]
pub struct Template(pub Vec<Part>);

/// A piece of a template.
#[derive(Debug)]
pub enum Part {
    Text(HeaderValue),
    Value(ValueName),
}

/// The cost of edits, as far as it is known without the values of templates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub edits: usize,
    /// Edits that can add a field.
    pub fields: usize,
    /// Bytes of the names of such fields, with [`bounds::FIELD_OVERHEAD`] for each, and of values that are no template.
    pub bytes: usize,
    pub renames: usize,
    /// Bytes of the longest name that a rename gives.
    pub longest_rename: usize,
    pub notes: usize,
    /// Bytes of the names of notes, and of their values that are no template.
    pub note_bytes: usize,
    /// Values in templates.
    pub values: usize,
}

impl Cost {
    /// The cost of two lists of edits together.
    pub fn and(self, other: Cost) -> Cost {
        Cost {
            edits: self.edits + other.edits,
            fields: self.fields + other.fields,
            bytes: self.bytes + other.bytes,
            renames: self.renames + other.renames,
            longest_rename: self.longest_rename.max(other.longest_rename),
            notes: self.notes + other.notes,
            note_bytes: self.note_bytes + other.note_bytes,
            values: self.values + other.values,
        }
    }

    /// The cost of an edit that adds a field with a value of so many bytes.
    pub fn field(name: &HeaderName, value: usize) -> Cost {
        let bytes = name.as_str().len() + value + bounds::FIELD_OVERHEAD;
        Cost { edits: 1, fields: 1, bytes, ..Cost::default() }
    }

    /// The cost of a note with a value of so many bytes.
    pub fn note(name: &str, value: usize) -> Cost {
        Cost { edits: 1, notes: 1, note_bytes: name.len() + value, ..Cost::default() }
    }

    /// The cost of a rename to a name.
    pub fn rename(to: &HeaderName) -> Cost {
        Cost { edits: 1, renames: 1, longest_rename: to.as_str().len(), ..Cost::default() }
    }

    /// The cost of an edit that adds nothing to a head.
    pub fn plain() -> Cost {
        Cost { edits: 1, ..Cost::default() }
    }
}

impl Plan {
    /// Returns the plan of some edits; an error if they are too many or have too many values.
    pub fn new(edits: Vec<Planned>) -> Result<Self, Refused> {
        at_most(bounds::EDITS, edits.len(), "edits of a plan")?;
        let cost = edits.iter().map(Planned::cost).fold(Cost::default(), Cost::and);
        at_most(bounds::TEMPLATE_VALUES, cost.values, "values in the templates of a plan")?;
        let is_chained = edits.iter().enumerate().any(|(place, edit)| {
            let mut values = edit.template().into_iter().flat_map(Template::values);
            values.any(|value| edits[..place].iter().any(|earlier| earlier.changes(value)))
        });
        Ok(Plan { edits, cost, is_chained })
    }

    /// Bytes that the plan takes of [`bounds::DECLARED`].
    pub fn declared(&self) -> usize {
        self.edits.iter().map(Planned::declared).sum()
    }
}

impl Planned {
    /// The template, if the edit has one.
    pub fn template(&self) -> Option<&Template> {
        match self {
            Planned::Set(_, template)
            | Planned::Append(_, template)
            | Planned::Default(_, template)
            | Planned::Note(_, template) => Some(template),
            Planned::Remove(_) | Planned::Rename(..) => None,
        }
    }

    /// Whether the value becomes that of `Host`.
    pub fn makes_host(&self) -> bool {
        matches!(self, Planned::Set(name, _) | Planned::Default(name, _) if *name == header::HOST)
    }

    fn cost(&self) -> Cost {
        let cost = match self {
            Planned::Set(name, _) | Planned::Append(name, _) | Planned::Default(name, _) => Cost::field(name, 0),
            Planned::Note(name, _) => Cost::note(name, 0),
            Planned::Rename(_, to) => Cost::rename(to),
            Planned::Remove(_) => Cost::plain(),
        };
        Cost { values: self.template().map_or(0, |template| template.values().count()), ..cost }
    }

    fn declared(&self) -> usize {
        let names = match self {
            Planned::Set(name, _) | Planned::Append(name, _) | Planned::Default(name, _) | Planned::Remove(name) => {
                name.as_str().len()
            }
            Planned::Rename(from, to) => from.as_str().len() + to.as_str().len(),
            Planned::Note(name, _) => name.len(),
        };
        bounds::DECLARED_ITEM + names + self.template().map_or(0, |template| template.declared())
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
            Planned::Set(name, _) | Planned::Append(name, _) | Planned::Default(name, _) | Planned::Remove(name) => {
                changed(name)
            }
            Planned::Rename(from, to) => changed(from) || changed(to),
            Planned::Note(name, _) => matches!(value, ValueName::Note(read) if read == name),
        }
    }
}

impl Template {
    /// The values that the template reads.
    pub fn values(&self) -> impl Iterator<Item = &ValueName> {
        self.0.iter().filter_map(|part| match part {
            Part::Value(name) => Some(name),
            Part::Text(_) => None,
        })
    }

    fn declared(&self) -> usize {
        let part = |part: &Part| match part {
            Part::Text(text) => text.len(),
            Part::Value(name) => name.text_len(),
        };
        self.0.iter().map(|it| bounds::DECLARED_ITEM + part(it)).sum()
    }

    /// Returns the value for an exchange, or `None` if it comes out empty. A value that would be longer than
    /// [`bounds::VALUE`] is refused before it is put together.
    pub fn fill(&self, head: &Head) -> Result<Option<HeaderValue>, Refused> {
        match self.0.as_slice() {
            [Part::Text(text)] => return Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            [Part::Value(name)] => return head.value(name).map_or(Ok(None), field),
            _ => {}
        }
        let mut filled: SmallVec<[u8; 128]> = SmallVec::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => put(&mut filled, text.as_bytes())?,
                Part::Value(name) => {
                    if let Some(value) = head.value(name) {
                        put(&mut filled, value.bytes())?;
                    }
                }
            }
        }
        field(Value::Bytes(Cow::Borrowed(&filled)))
    }
}

/// The value as that of a field, or `None` if it is empty.
fn field(value: Value<'_>) -> Result<Option<HeaderValue>, Refused> {
    bounded(value.bytes().len())?;
    let value = match value {
        Value::Field(value) => Some(value.clone()),
        // Values come from a parsed head, so only what no field may have is lost here.
        Value::Bytes(bytes) => HeaderValue::from_bytes(trimmed(&bytes)).ok(),
    };
    Ok(value.filter(|value| !value.is_empty()))
}

fn put(filled: &mut SmallVec<[u8; 128]>, bytes: &[u8]) -> Result<(), Refused> {
    bounded(filled.len() + bytes.len())?;
    filled.extend_from_slice(bytes);
    Ok(())
}

fn bounded(length: usize) -> Result<(), Refused> {
    at_most(bounds::VALUE, length, "bytes of a filled template")
}
