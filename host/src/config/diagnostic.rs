//! Errors in a manifest, shown with file, line, column and the line itself.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::redaction::{MessageText, without_parts};
use super::references::{Environment, References};
use super::replaced::Replaced;
use crate::system::printable::{cut, one_line, record};

/// A file of the manifest.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
    /// Whether the text comes from a file. Text that this program made has a name instead of a path.
    pub is_file: bool,
}

/// An error in a manifest, with its place.
#[derive(Debug)]
pub struct Diagnostic {
    pub source: Arc<Source>,
    /// The bytes of the text that the diagnostic is about; `None` if it is about the whole file.
    pub span: Option<Range<usize>>,
    /// The message: what was found, what is expected, and what to do.
    pub message: String,
}

/// A part of a manifest that works, but probably not as intended.
#[derive(Debug)]
pub struct Warning {
    pub doubt: Doubt,
    /// The place of the part, and what to change.
    pub diagnostic: Diagnostic,
}

/// The kind of a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The part has no effect.
    NoEffect,
    /// The part probably means something other than its author intended.
    Meaning,
    /// The part was not checked.
    Unchecked,
}

/// A place in a file as editors count, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    /// The column, in characters rather than bytes.
    pub column: usize,
}

/// All errors of a manifest; beyond [`MAX_SHOWN`], their number only.
#[derive(Debug, Default)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    /// The number of errors that are not in the list.
    more: usize,
    warnings: Vec<Warning>,
    /// Tables with a known error that may be the cause of others.
    excused: Vec<(Arc<Source>, Range<usize>)>,
    replaced: Box<ReplacedStrings>,
    /// The files that were searched for, whether they exist or not: a change of one of them may remove all errors.
    pub files: Vec<PathBuf>,
    /// The references that were resolved so far; no message shows their values.
    pub(super) references: Box<References>,
}

/// The strings in which references were replaced.
#[derive(Debug, Default)]
struct ReplacedStrings {
    files: Vec<ReplacedInFile>,
}

#[derive(Debug)]
struct ReplacedInFile {
    source: Arc<Source>,
    /// The strings by the places where they start.
    strings: BTreeMap<usize, Arc<Replaced>>,
}

/// The maximum number of errors that are shown: more than anyone corrects at once. A generated file may have one in
/// each of its lines.
pub const MAX_SHOWN: usize = 50;

/// The warnings that are kept: a generated manifest may have one in each of its tables.
const MAX_WARNINGS: usize = 200;

/// The bytes of a message that are shown: a value that is quoted in it may be long.
const MAX_MESSAGE_BYTES: usize = 2 << 10;

/// The maximum number of bytes of a line that are shown before and after the position of an error.
const MAX_SIDE_BYTES: usize = 200;

impl Diagnostics {
    /// Returns an empty list of errors, for a manifest whose references are resolved by an environment.
    pub fn new(environment: &Environment) -> Self {
        Diagnostics { references: Box::new(References::new(environment)), ..Diagnostics::default() }
    }

    /// Returns the files whose texts replace references, whether they exist or not.
    pub fn files_of_values(&self) -> impl Iterator<Item = &PathBuf> {
        self.references.files()
    }

    /// Records an error at a position of a file.
    pub fn at(&mut self, source: &Arc<Source>, span: Range<usize>, message: impl Into<String>) {
        self.push(source, Some(span), message.into());
    }

    /// Records an error of a whole file.
    pub fn of_file(&mut self, source: &Arc<Source>, message: impl Into<String>) {
        self.push(source, None, message.into());
    }

    /// Ignores further errors of these tables as a whole, because the known errors may be their cause.
    pub(super) fn excuse(&mut self, source: &Arc<Source>, tables: Vec<Range<usize>>) {
        self.excused.extend(tables.into_iter().map(|table| (source.clone(), table)));
    }

    /// Returns the value of a variable that a plugin is to see. No message shows the value from then on.
    pub fn granted_variable(&mut self, name: &str) -> Result<String, String> {
        self.references.granted_variable(name)
    }

    /// Notes the strings of a file in which references were replaced.
    pub(super) fn note_replaced(&mut self, source: &Arc<Source>, strings: Vec<Replaced>) {
        if !strings.is_empty() {
            let strings = strings.into_iter().map(|string| (string.span.start, Arc::new(string))).collect();
            self.replaced.files.push(ReplacedInFile { source: source.clone(), strings });
        }
    }

    /// Returns the strings of a file in which references were replaced.
    pub fn replaced(&self, source: &Arc<Source>) -> impl Iterator<Item = &Arc<Replaced>> {
        let of_file = self.replaced.files.iter().filter(|file| Arc::ptr_eq(&file.source, source));
        of_file.flat_map(|file| file.strings.values())
    }

    /// Returns the string at a place if references were replaced in it.
    pub fn replaced_at(&self, source: &Arc<Source>, span: &Range<usize>) -> Option<&Arc<Replaced>> {
        let of_file = self.replaced.files.iter().filter(|file| Arc::ptr_eq(&file.source, source));
        let mut before = of_file.filter_map(|file| file.strings.range(..=span.start).next_back());
        before.find_map(|(_, string)| (span.end <= string.span.end).then_some(string))
    }

    /// Returns a message without the values of references; in one about a string that has references, no part of a value
    /// is too short.
    fn redacted(&self, source: &Arc<Source>, span: Option<&Range<usize>>, message: &str) -> String {
        let string = span.and_then(|span| self.replaced_at(source, span));
        let without = |string| without_parts(message, std::slice::from_ref(string), MessageText::default());
        let message = string.map_or(message.into(), without);
        self.references.redaction.redact(&message, &HashSet::new()).into_owned()
    }

    /// Records an error whose message has no value that must be hidden, except those of references not in `public`.
    pub fn at_redacted(&mut self, source: &Arc<Source>, span: Range<usize>, message: &str, public: &HashSet<String>) {
        let message = self.references.redaction.redact(message, public).into_owned();
        self.push_redacted(source, Some(span), message);
    }

    /// Records a warning, unless there are too many, or an error at the same position.
    pub fn warn(&mut self, doubt: Doubt, source: &Arc<Source>, span: Range<usize>, message: &str) {
        let is_here = |error: &Diagnostic| {
            let touches = |other: &Range<usize>| other.start < span.end && span.start < other.end;
            Arc::ptr_eq(&error.source, source) && error.span.as_ref().is_some_and(touches)
        };
        if self.warnings.len() < MAX_WARNINGS && !self.list.iter().any(is_here) {
            let message = self.redacted(source, Some(&span), message);
            let diagnostic = Diagnostic { source: source.clone(), span: Some(span), message };
            self.warnings.push(Warning { doubt, diagnostic });
        }
    }

    /// Returns the errors that are shown.
    pub fn errors(&self) -> &[Diagnostic] {
        &self.list
    }

    /// Returns the warnings.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Returns the warnings of a manifest without errors.
    pub fn into_warnings(self) -> Vec<Warning> {
        self.warnings
    }

    /// Records further errors by their number only.
    pub fn and_more(&mut self, count: usize) {
        self.more += count;
    }

    /// Returns the number of errors, shown or not.
    pub fn count(&self) -> usize {
        self.list.len() + self.more
    }

    /// Whether one more error would be shown.
    pub fn has_room(&self) -> bool {
        self.list.len() < MAX_SHOWN
    }

    pub(super) fn push(&mut self, source: &Arc<Source>, span: Option<Range<usize>>, message: String) {
        let message = if self.has_room() { self.redacted(source, span.as_ref(), &message) } else { message };
        self.push_redacted(source, span, message);
    }

    fn push_redacted(&mut self, source: &Arc<Source>, span: Option<Range<usize>>, message: String) {
        let is_here = |excused: &(Arc<Source>, Range<usize>)| {
            Arc::ptr_eq(&excused.0, source) && span.as_ref() == Some(&excused.1)
        };
        if self.excused.iter().any(is_here) {
            return;
        }
        if self.has_room() {
            self.list.push(Diagnostic { source: source.clone(), span, message });
        } else {
            self.more += 1;
        }
    }
}

impl Diagnostic {
    /// Returns the message as it is shown: truncated, with control characters escaped.
    pub fn shown_message(&self) -> String {
        record(&cut(&self.message, MAX_MESSAGE_BYTES)).into_owned()
    }
}

impl Doubt {
    /// Returns the log message for this kind of warning.
    pub fn phrase(self) -> &'static str {
        match self {
            Doubt::NoEffect => "part of the manifest without effect",
            Doubt::Meaning => "part of the manifest in doubt",
            Doubt::Unchecked => "part of the manifest not checked",
        }
    }
}

/// The weight of a diagnostic, as it is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Severity {
    Error,
    Warning,
}

impl Diagnostic {
    fn write(&self, severity: Severity, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let path = self.source.path.display().to_string();
        let (path, message) = (one_line(&path, usize::MAX), self.shown_message());
        let Some(span) = &self.span else { return write!(f, "{severity}: {message}\n --> {path}") };
        let Line { number, column, text, before, marked } = self.source.line(span);
        let (margin, marks) = (" ".repeat(number.to_string().len()), "^".repeat(marked.max(1)));
        writeln!(f, "{severity}: {message}")?;
        writeln!(f, "{margin}--> {path}:{number}:{}", column + 1)?;
        writeln!(f, "{margin} |\n{number} | {text}")?;
        write!(f, "{margin} | {}{marks}", " ".repeat(before))
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(Severity::Error, f)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnostic.write(Severity::Warning, f)
    }
}

/// The line of an error.
struct Line {
    number: usize,
    /// The number of characters before the position of the error.
    column: usize,
    /// The line as it is shown: truncated at both ends if it is long.
    text: String,
    /// Characters of the shown text before the place.
    before: usize,
    /// The number of characters that are marked.
    marked: usize,
}

impl Source {
    /// Returns the file and line of a place, such as `plugway.toml:14`.
    pub fn location(&self, span: &Range<usize>) -> String {
        format!("{}:{}", self.path.display(), self.position(span.start).line)
    }

    /// Returns the position of a byte of the text.
    pub fn position(&self, offset: usize) -> Position {
        let before = &self.text[..self.text.floor_char_boundary(offset)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = memchr::memchr_iter(b'\n', before.as_bytes()).count() + 1;
        Position { line, column: before[line_start..].chars().count() + 1 }
    }

    fn line(&self, span: &Range<usize>) -> Line {
        let bytes = self.text.as_bytes();
        let start = self.text.floor_char_boundary(span.start);
        let line_start = memchr::memrchr(b'\n', &bytes[..start]).map_or(0, |at| at + 1);
        let line_end = memchr::memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |at| start + at);
        let line = self.text[line_start..line_end].trim_end_matches('\r');
        let offset = (start - line_start).min(line.len());
        let number = memchr::memchr_iter(b'\n', &bytes[..start]).count() + 1;
        let end =
            line.floor_char_boundary(span.end.saturating_sub(line_start).min(offset + MAX_SIDE_BYTES)).max(offset);
        let shown_from = line.floor_char_boundary(offset.saturating_sub(MAX_SIDE_BYTES));
        let shown_to = line.floor_char_boundary((offset + MAX_SIDE_BYTES).max(end));
        let (head, tail) = (if shown_from > 0 { "…" } else { "" }, if shown_to < line.len() { "…" } else { "" });
        let before = format!("{head}{}", safe(&line[shown_from..offset]));
        let text = format!("{before}{}{tail}", safe(&line[offset..shown_to]));
        Line {
            number,
            column: line[..offset].chars().count(),
            text,
            before: before.chars().count(),
            marked: safe(&line[offset..end]).chars().count(),
        }
    }
}

/// A piece of a line, with tabs as they are.
fn safe(piece: &str) -> String {
    piece.split('\t').map(|part| one_line(part, usize::MAX)).collect::<Vec<_>>().join("\t")
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.list.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "\n\n" })?;
        }
        if self.more > 0 {
            write!(f, "\n\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Arc<Source> {
        Arc::new(Source { path: "plugway.toml".into(), text: text.into(), is_file: false })
    }

    #[test]
    fn as_many_as_help_are_shown() {
        let (source, mut problems) = (source("a = 1"), Diagnostics::default());
        (0..MAX_SHOWN + 7).for_each(|_| problems.at(&source, 0..1, "wrong"));
        let shown = problems.to_string();
        assert_eq!(shown.matches("error: wrong").count(), MAX_SHOWN);
        assert!(shown.ends_with("\n\nand 7 more"), "{shown}");
        assert_eq!(problems.count(), MAX_SHOWN + 7);
    }

    #[test]
    fn of_a_long_line_the_place_is_shown() {
        let text = format!("a = [{}\"x\", {}]", "1, ".repeat(100_000), "2, ".repeat(100_000));
        let start = text.find("\"x\"").unwrap();
        let mut problems = Diagnostics::default();
        problems.at(&source(&text), start..start + 3, "y".repeat(100_000));
        let shown = problems.to_string();
        assert!(shown.len() < 4_000, "{}", shown.len());
        assert!(shown.contains("1, \"x\", 2") && shown.contains("^^^"), "{shown}");
        assert!(shown.contains("plugway.toml:1:300006"), "{shown}");
    }

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        let mut problems = Diagnostics::default();
        problems.at(&source("a = \u{1b}[2J"), 4..5, "\u{1b}[31m no\nerror: forged");
        let shown = problems.to_string();
        assert!(!shown.contains('\u{1b}') && shown.contains("\\u{1b}[2J"), "{shown}");
        assert_eq!(shown.lines().filter(|line| line.starts_with("error:")).count(), 1, "{shown}");
    }
}
