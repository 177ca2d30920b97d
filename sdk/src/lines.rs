//! Lists of many lines in a configuration: `"${file:blocklist.txt}"` in the manifest is replaced by the text of the file,
//! so that one entry of a list can have many lines.
//!
//! ```
//! use plugway_sdk::{ConfigError, lines};
//!
//! fn ports(list: &[String]) -> Result<Vec<u16>, ConfigError> {
//!     let mut ports = Vec::new();
//!     for (place, entry) in list.iter().enumerate() {
//!         for line in lines::of(entry) {
//!             let wrong = |_| line.error(format!("/ports/{place}"), format!("invalid port: `{}`", line.text));
//!             ports.push(line.text.parse().map_err(wrong)?);
//!         }
//!     }
//!     Ok(ports)
//! }
//!
//! assert_eq!(ports(&["80".into(), "# web\n443 # TLS\n\n8080".into()]), Ok(vec![80, 443, 8080]));
//! let error = ports(&["80".into(), "443\nhttp".into()]).unwrap_err();
//! assert_eq!((error.path.as_str(), error.message.as_str()), ("/ports/1", "line 2: invalid port: `http`"));
//! ```

use crate::ConfigError;

/// A line of an entry, without comments and surrounding white space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The text, which is never empty.
    pub text: &'a str,
    /// The number of the line within the entry, from 1.
    pub number: usize,
    /// Whether the entry consists of this line alone.
    is_only: bool,
}

/// Returns the lines of an entry. Empty lines and lines that begin with `#` or `;` are skipped, and so is the rest of a
/// line from a `#` that follows white space. A byte order mark at the beginning is skipped too.
pub fn of(entry: &str) -> impl Iterator<Item = Line<'_>> {
    let entry = entry.strip_prefix('\u{feff}').unwrap_or(entry);
    let is_only = !entry.trim().contains('\n');
    entry.lines().enumerate().filter_map(move |(index, line)| {
        let text = without_comment(line).trim();
        (!text.is_empty()).then_some(Line { text, number: index + 1, is_only })
    })
}

impl Line<'_> {
    /// Returns an error about this line; `pointer` is the JSON pointer to the entry. The number of the line is named if
    /// the entry has several.
    pub fn error(&self, pointer: impl Into<String>, message: impl std::fmt::Display) -> ConfigError {
        match self.is_only {
            true => ConfigError::at(pointer, message.to_string()),
            false => ConfigError::at(pointer, format!("line {}: {message}", self.number)),
        }
    }
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with(['#', ';']) {
        return "";
    }
    let begins = |at: &usize| line[..*at].ends_with(|before: char| before.is_whitespace());
    let comment = line.match_indices('#').map(|(at, _)| at).find(begins);
    &line[..comment.unwrap_or(line.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_empty_lines_are_skipped_and_numbers_kept() {
        let text = "\u{feff}# a list\r\n\r\n  one  \r\n; no\n\ttwo # of them\nthree#3\n #\n";
        let lines: Vec<(usize, &str)> = of(text).map(|line| (line.number, line.text)).collect();
        assert_eq!(lines, [(3, "one"), (5, "two"), (6, "three#3")]);
        assert_eq!(of("").count() + of("\n\n").count(), 0);
    }

    #[test]
    fn an_error_names_the_line_of_a_long_entry_only() {
        let messages = |text| of(text).map(|line| line.error("/x", "bad").message).collect::<Vec<_>>();
        assert_eq!(messages("a\n"), ["bad"]);
        assert_eq!(messages("a\nb"), ["line 1: bad", "line 2: bad"]);
    }
}
