//! The structure of a file: which keys it has, of which types. All mistakes in it are found in one go: what can't be
//! understood is left out, and the rest is tried again.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer, Error};

use super::diagnostic::MAX_SHOWN;
use super::foreign;
use super::references::{References, Resolution, Unresolved};
use super::replaced::Replaced;
use super::serde_messages::worded;
use super::shape::{self, Misshape, Step};

/// The longest value that a message repeats, in bytes.
const MAX_FOUND_BYTES: usize = 60;

/// A file, as far as it could be parsed.
pub struct Structure<T> {
    /// The parsed file; `None` if too little of it could be parsed.
    pub content: Option<T>,
    pub mistakes: Vec<StructureError>,
    pub left_out: LeftOut,
    /// The positions of tables that lack parts that were left out: a missing part is no further error.
    pub damaged: Vec<Range<usize>>,
    /// The strings in which references were replaced.
    pub replaced: Vec<Replaced>,
}

/// An error and its position in the text.
pub struct StructureError {
    pub span: Option<Range<usize>>,
    pub message: String,
}

/// The tables that could not be understood, or only in part. What refers to one of them is no mistake by itself.
#[derive(Debug, Default)]
pub struct LeftOut {
    /// Whether any table may have been left out.
    all: bool,
    /// The tables that were left out, by their keys such as `upstream.app`; `upstream` stands for all upstreams.
    tables: BTreeSet<String>,
}

/// The maximum number of letters in which a misspelt key may differ from a known one.
const MISSPELT: usize = 2;

/// Parses the structure of a text whose file is in `folder`, and replaces the references in it.
pub fn parse<T: DeserializeOwned>(text: &str, folder: &Path, references: &mut References) -> Structure<T> {
    let (mut document, errors) = DeTable::parse_recoverable(text);
    let (mistakes, damaged, replaced) = (Vec::new(), Vec::new(), Vec::new());
    let mut structure = Structure { content: None, mistakes, left_out: LeftOut::default(), damaged, replaced };
    if !errors.is_empty() {
        structure.mistakes = syntax_errors(&errors, text);
        structure.left_out.all = true;
        return structure;
    }
    let Resolution { replaced, unresolved } = references.resolve(text, folder, document.get_mut());
    structure.replaced = replaced;
    structure.add_unresolved(unresolved);
    for Misshape { way, span, message } in shape::misshapes(document.get_ref()) {
        structure.mistakes.insert(0, StructureError { span: Some(span), message });
        structure.left_out.add(&way);
        if let [around @ .., Step::Key(_)] = way.as_slice() {
            structure.damaged.extend(span_at(document.get_ref(), around));
        }
        remove(&mut document, &way);
    }
    while structure.mistakes.len() < MAX_SHOWN {
        let error = match T::deserialize(Deserializer::from(document.clone())) {
            Ok(content) => {
                structure.content = Some(content);
                return structure;
            }
            Err(error) => error,
        };
        let span = error.span();
        let found_value = span.as_ref().and_then(|span| find(document.get_ref(), span));
        if !span.as_ref().is_some_and(|span| structure.damaged.contains(span)) {
            let key = found_value.as_ref().and_then(|found_value| found_value.key());
            let is_date = found_value.as_ref().is_some_and(|found_value| found_value.is_date);
            let mut mistake = StructureError::of(&error, text, key, is_date.then_some("a date"));
            if structure.replaced.iter().any(|string| span.as_ref() == Some(&string.span)) {
                mistake.name_reference();
            }
            structure.mistakes.push(mistake);
        }
        let Some(FoundValue { way, around, .. }) = found_value else { break };
        structure.left_out.add(&way);
        structure.damaged.extend(around);
        remove(&mut document, &way);
    }
    structure.left_out.all = true;
    structure
}

/// Returns the errors of a text that is no TOML, or one error if the text is in another format.
fn syntax_errors(errors: &[Error], text: &str) -> Vec<StructureError> {
    if let Some(kind) = foreign::kind(text) {
        let message = format!(
            "not a manifest: this looks like {kind}; expected TOML, such as `[[listener]]` and below it `address = \
             \"127.0.0.1:8080\"`"
        );
        return vec![StructureError { span: Some(0..0), message }];
    }
    let mistake = |error| {
        let mut mistake = StructureError::of(error, text, None, None);
        mistake.hint_at_quotes(text);
        mistake
    };
    errors.iter().map(mistake).collect()
}

// === Structure ===

impl<T> Structure<T> {
    /// Adds the errors of references. Further errors in the same strings are left out, because the references may be the
    /// reason for them.
    fn add_unresolved(&mut self, unresolved: Vec<Unresolved>) {
        for Unresolved { text_span, span, message } in unresolved {
            self.mistakes.push(StructureError { span: Some(span), message });
            self.damaged.push(text_span);
        }
    }
}

// === LeftOut ===

impl LeftOut {
    /// Whether a table of some kind may have been left out.
    pub fn has(&self, kind: &str, name: &str) -> bool {
        self.all
            || self.has_misspelt(kind)
            || self.tables.contains(kind)
            || self.tables.contains(&format!("{kind}.{name}"))
    }

    /// Whether a table of this kind, or a part of one, may have been left out.
    pub fn has_any(&self, kind: &str) -> bool {
        let is_of_kind =
            |table: &String| table.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.all || self.has_misspelt(kind) || self.tables.iter().any(is_of_kind)
    }

    /// Whether a key was left out that may be a misspelt kind of table.
    fn has_misspelt(&self, kind: &str) -> bool {
        let is_near = |key: &str| key != kind && strsim::damerau_levenshtein(key, kind) <= MISSPELT;
        self.tables.iter().any(|table| is_near(table.split('.').next().unwrap_or_default()))
    }

    /// Notes that a whole file was left out.
    pub fn add_file(&mut self) {
        self.all = true;
    }

    /// Adds the parts that were left out of another file.
    pub fn extend(&mut self, other: LeftOut) {
        self.all |= other.all;
        self.tables.extend(other.tables);
    }

    fn add(&mut self, way: &[Step]) {
        let table = match way {
            [Step::Key(kind)] => kind.clone(),
            [Step::Key(kind), Step::Key(name), ..] => format!("{kind}.{name}"),
            [Step::Key(kind), Step::At(index), ..] => format!("{kind}.{index}"),
            _ => return,
        };
        self.tables.insert(table);
    }
}

// === Mistake ===

impl StructureError {
    fn of(error: &Error, text: &str, key: Option<&str>, found: Option<&str>) -> Self {
        // The parser names no place where it gives up.
        let span = error.span().unwrap_or_else(|| deepest(text));
        let mut message = worded(error.message(), key, found);
        // The parser tries several types there, and says of none what it has found.
        if let Some(expected) = message.strip_prefix("wrong value: expected ") {
            let found = text.get(span.clone()).filter(|found| found.len() <= MAX_FOUND_BYTES && !found.contains('\n'));
            message =
                found.map_or(message.clone(), |found| format!("wrong value: found `{found}`; expected {expected}"));
        }
        StructureError { span: Some(span), message }
    }
}

impl StructureError {
    /// Adds that a reference needs quotes, if the error is about a reference without quotes.
    fn hint_at_quotes(&mut self, text: &str) {
        let at = self.span.as_ref().map_or(0, |span| text.floor_char_boundary(span.start));
        if text[at..].starts_with("${") {
            self.message += "; `${…}` stands between quotes only, in a string";
        }
    }

    /// Names the reference in an error about a string that a reference makes where another type is expected.
    fn name_reference(&mut self) {
        let expected = self.message.strip_prefix("wrong type: ").and_then(|rest| rest.split_once("; expected "));
        if let Some((_, expected)) = expected {
            // A number that is found is an example of itself.
            let expected = expected.split(", such as").next().unwrap_or(expected);
            self.message = format!(
                "wrong type: a reference such as `${{env:NAME}}` makes a string; expected {expected}, so write the value itself"
            );
        }
    }
}

/// Returns the position of the line that seems to be nested most deeply.
fn deepest(text: &str) -> Range<usize> {
    let lines = text.split_inclusive('\n').scan(0, |end, line| {
        *end += line.len();
        Some((*end - line.len(), line))
    });
    let depth = |line: &str| line.bytes().filter(|byte| matches!(byte, b'.' | b'[' | b'{')).count();
    let deepest = lines.max_by_key(|(_, line)| depth(line));
    deepest.map_or(0..0, |(start, line)| start..start + line.trim_end().len())
}

// === Finding ===

/// A value in a document.
struct FoundValue {
    way: Vec<Step>,
    /// The position of the table or list around the value; `None` for the document itself.
    around: Option<Range<usize>>,
    /// Whether the value is a date, which the parser reports as a table.
    is_date: bool,
}

impl FoundValue {
    /// Returns the key whose value contains this value; `None` for the document itself.
    fn key(&self) -> Option<&str> {
        self.way.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::At(_) => None,
        })
    }
}

/// Returns the place of the value that steps lead to; `None` for the document itself, and if there is none.
fn span_at(table: &DeTable, way: &[Step]) -> Option<Range<usize>> {
    let [Step::Key(first), rest @ ..] = way else { return None };
    let mut value = table.get(first.as_str())?;
    for step in rest {
        value = match (value.get_ref(), step) {
            (DeValue::Table(table), Step::Key(key)) => table.get(key.as_str())?,
            (DeValue::Array(list), Step::At(place)) => list.get(*place)?,
            _ => return None,
        };
    }
    Some(value.span())
}

/// Returns the value that an error is about: the innermost at the error's position, or around it.
fn find(table: &DeTable, span: &Range<usize>) -> Option<FoundValue> {
    let is_around = |at: &Range<usize>| at.start <= span.start && span.end <= at.end;
    in_table(table, None, &|at| at == span).or_else(|| in_table(table, None, &is_around))
}

type Fits<'a> = &'a dyn Fn(&Range<usize>) -> bool;

fn in_table(table: &DeTable, around: Option<&Range<usize>>, fits: Fits<'_>) -> Option<FoundValue> {
    table.iter().find_map(|(key, value)| {
        let step = Step::Key(key.get_ref().to_string());
        at(step, Some(key.span()), value, around, fits)
    })
}

fn at(
    step: Step,
    key: Option<Range<usize>>,
    value: &Spanned<DeValue>,
    around: Option<&Range<usize>>,
    fits: Fits<'_>,
) -> Option<FoundValue> {
    let span = value.span();
    let within = match value.get_ref() {
        DeValue::Table(table) => in_table(table, Some(&span), fits),
        DeValue::Array(list) => {
            list.iter().enumerate().find_map(|(index, item)| at(Step::At(index), None, item, Some(&span), fits))
        }
        _ => None,
    };
    if let Some(mut found_value) = within {
        found_value.way.insert(0, step);
        return Some(found_value);
    }
    let is_here = key.is_some_and(|key| fits(&key)) || fits(&span);
    let is_date = matches!(value.get_ref(), DeValue::Datetime(_));
    is_here.then(|| FoundValue { way: vec![step], around: around.cloned(), is_date })
}

fn remove(document: &mut Spanned<DeTable>, way: &[Step]) {
    let [Step::Key(first), rest @ ..] = way else { return };
    remove_from_table(document.get_mut(), first, rest);
}

fn remove_from_table(table: &mut DeTable, key: &str, rest: &[Step]) {
    if rest.is_empty() {
        table.remove(key);
        return;
    }
    let entry = table.iter_mut().find(|(known, _)| known.get_ref() == key);
    match (entry.map(|(_, value)| value.get_mut()), rest) {
        (Some(DeValue::Table(table)), [Step::Key(next), rest @ ..]) => remove_from_table(table, next, rest),
        (Some(DeValue::Array(list)), [Step::At(index), rest @ ..]) => remove_from_list(list, *index, rest),
        _ => {}
    }
}

fn remove_from_list(list: &mut DeArray, index: usize, rest: &[Step]) {
    match (list.get_mut(index).map(Spanned::get_mut), rest) {
        (_, []) => {
            let mut remaining = DeArray::new();
            let others = list.iter().enumerate().filter(|(at, _)| *at != index);
            others.for_each(|(_, value)| remaining.push(value.clone()));
            *list = remaining;
        }
        (Some(DeValue::Table(table)), [Step::Key(next), rest @ ..]) => remove_from_table(table, next, rest),
        (Some(DeValue::Array(list)), [Step::At(next), rest @ ..]) => remove_from_list(list, *next, rest),
        _ => {}
    }
}
