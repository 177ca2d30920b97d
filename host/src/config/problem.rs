//! Mistakes of a manifest, shown with file, line, column and the line itself.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// A file of the manifest.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
    /// Not a text that was made by this program, and has a name instead of a path.
    pub is_file: bool,
}

/// One mistake.
#[derive(Debug)]
pub struct Problem {
    pub source: Arc<Source>,
    /// Bytes of the text; none if it concerns the whole file.
    pub span: Option<Range<usize>>,
    /// What was found, what is allowed, what to do.
    pub message: String,
}

/// All mistakes of a manifest.
#[derive(Debug, Default)]
pub struct Problems {
    pub list: Vec<Problem>,
    /// The files that were looked for, be they there or not: mending one of them may mend it all.
    pub files: Vec<PathBuf>,
}

impl Problems {
    /// Notes a mistake at a place.
    pub fn at(&mut self, source: &Arc<Source>, span: Range<usize>, message: impl Into<String>) {
        self.list.push(Problem { source: source.clone(), span: Some(span), message: message.into() });
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.source.path.display();
        let Some(span) = &self.span else { return write!(f, "error: {}\n --> {path}", self.message) };
        let text = &self.source.text;
        let start = span.start.min(text.len());
        let line_start = text.as_bytes()[..start].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
        let number = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = text.get(line_start..start).unwrap_or_default().chars().count();
        let marked = text.get(start..span.end.min(line_start + line.len())).map_or(1, |marked| marked.chars().count());
        let (margin, marks) = (" ".repeat(number.to_string().len()), "^".repeat(marked.max(1)));
        writeln!(f, "error: {}", self.message)?;
        writeln!(f, "{margin}--> {path}:{number}:{}", column + 1)?;
        writeln!(f, "{margin} |\n{number} | {line}")?;
        write!(f, "{margin} | {}{marks}", " ".repeat(column))
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.list.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "\n\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
