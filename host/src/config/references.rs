//! References in the strings of a manifest: `${env:NAME}`, `${file:path}` and `${credential:name}` stand for values that
//! are kept elsewhere. They are resolved before the types of a manifest are read, so that each key can have them.
//!
//! [`super::structure`] calls this for each file. The values are remembered for [`super::redaction`].

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::redaction::Redaction;
use super::replaced::{Replaced, doubled};
use super::serde_messages::hint;
use crate::system::files;
use crate::system::printable::one_line;

/// The environment of the process, as it was at the start. All clones share one copy.
#[derive(Clone, Debug, Default)]
pub struct Environment(Arc<HashMap<OsString, OsString>>);

/// The references of a manifest and of the files that belong to it, as far as they were read.
#[derive(Debug, Default)]
pub struct References {
    environment: Environment,
    /// The texts of files that were read, or why reading failed, by the paths of the files.
    read: HashMap<PathBuf, Result<Arc<str>, String>>,
    /// The number of bytes that references were replaced by.
    bytes: usize,
    /// The values, which no message may show.
    pub(super) redaction: Redaction,
}

/// The strings of a file that had references.
#[derive(Debug, Default)]
pub struct Resolution {
    pub replaced: Vec<Replaced>,
    pub unresolved: Vec<Unresolved>,
}

/// A reference that has no value.
#[derive(Debug)]
pub struct Unresolved {
    /// The place of the string that has the reference.
    pub text_span: Range<usize>,
    /// The place of the reference itself.
    pub span: Range<usize>,
    pub message: String,
}

/// The maximum number of bytes that all references of a manifest are replaced by: a manifest is held in memory, and so is
/// each reload.
const MAX_BYTES: usize = 16 << 20;

/// The maximum number of bytes of a reference that a message repeats.
const MAX_SHOWN_BYTES: usize = 80;

/// The kinds of references.
const KINDS: [&str; 3] = ["env", "file", "credential"];

/// The variable by which systemd names the folder of credentials.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The hint for texts with a dollar and a brace that are no reference.
const ESCAPE: &str = "write `$${` for the text `${`";

/// The meaning of `${…}` without a kind, by the key that a string belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Braces {
    /// `${…}` is an error.
    Unknown,
    /// `${…}` may have a meaning for the plugin that the configuration is for.
    OfPlugin,
    /// `${…}` is a group of a regular expression, and `$$` is a dollar.
    OfRegex,
}

/// A part of a string.
#[derive(Debug, PartialEq, Eq)]
enum StringPart<'a> {
    Text(&'a str),
    Reference {
        whole: &'a str,
        kind: &'a str,
        name: &'a str,
    },
    /// `${…}` without a kind.
    Bare(&'a str),
    /// A `${` without its `}`, with whether a kind of reference follows it.
    Unclosed(&'a str, bool),
}

// === Environment ===

impl FromIterator<(OsString, OsString)> for Environment {
    fn from_iter<T: IntoIterator<Item = (OsString, OsString)>>(variables: T) -> Self {
        Environment(Arc::new(variables.into_iter().collect()))
    }
}

impl Environment {
    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }
}

// === References ===

impl References {
    /// Returns an empty set of references for a manifest, of which none is resolved yet.
    pub fn new(environment: &Environment) -> Self {
        References { environment: environment.clone(), ..References::default() }
    }

    /// Returns the environment that references are resolved by.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Returns the value of a variable that a plugin is to see. No message shows the value from then on.
    pub fn granted_variable(&mut self, name: &str) -> Result<String, String> {
        let shown = one_line(name, MAX_SHOWN_BYTES);
        if !is_name_of_variable(name) {
            return Err(format!(
                "invalid name of a variable: `{shown}`; expected letters, digits and `_`, such as `REGION`"
            ));
        }
        let value = self.environment.variable(name).and_then(OsStr::to_str).map(String::from);
        let value = value.ok_or_else(|| {
            format!("the environment has no `{shown}` in UTF-8; set it before the start, or remove it from `env`")
        })?;
        self.redaction.add(&format!("${{env:{name}}}"), &value);
        Ok(value)
    }

    /// Returns the files that references name, whether they exist or not.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.read.keys()
    }

    /// Returns the files that references in a text name, whether they exist or not. The text isn't parsed: comments count
    /// too, and a path is taken as it is written.
    pub fn files_named_in(&self, text: &str, folder: &Path) -> Vec<PathBuf> {
        let named = |part: StringPart<'_>| match part {
            StringPart::Reference { kind: "file", name, .. } if !name.is_empty() => Some(folder.join(name)),
            StringPart::Reference { kind: "credential", name, .. } => {
                self.environment.variable(CREDENTIALS).map(|folder| Path::new(folder).join(name))
            }
            _ => None,
        };
        text.lines().flat_map(|line| parts(line, Braces::Unknown)).filter_map(named).collect()
    }

    /// Replaces the references in the strings of a document; paths are relative to `folder`. `text` is the text of the
    /// document.
    pub fn resolve(&mut self, text: &str, folder: &Path, document: &mut DeTable<'_>) -> Resolution {
        let mut resolution = Resolution::default();
        if text.contains("${") || text.contains("\\u") || text.contains("\\U") || text.contains("\\x") {
            let mut resolver = DocumentResolver { references: self, text, folder, resolution: &mut resolution };
            resolver.table(document, Braces::Unknown, "");
        }
        resolution
    }

    fn value(&mut self, kind: &str, name: &str, folder: &Path) -> Result<Arc<str>, String> {
        match kind {
            "env" => self.variable(name),
            "file" if name.is_empty() => Err("missing path: expected one such as `${file:db-token}`".into()),
            "file" => {
                let path = folder.join(name);
                self.text_of(&path, |error| files::unreadable(&path, error))
            }
            "credential" => self.credential(name),
            other => {
                let hint = hint(other, &KINDS);
                let other = one_line(other, MAX_SHOWN_BYTES);
                Err(format!(
                    "unknown kind of value: `{other}`; {hint}expected one of `env`, `file` and `credential`, such as \
                     `${{env:DB_TOKEN}}`; {ESCAPE}"
                ))
            }
        }
    }

    fn variable(&self, name: &str) -> Result<Arc<str>, String> {
        let shown = one_line(name, MAX_SHOWN_BYTES);
        if !is_name_of_variable(name) {
            return Err(format!(
                "invalid name of a variable: `{shown}`; expected letters, digits and `_`, such as `${{env:DB_TOKEN}}`; there \
                 are no default values"
            ));
        }
        let value = self.environment.variable(name).ok_or_else(|| {
            format!(
                "the environment has no `{shown}`: set it before the start, or put the value in a file and write \
                 `${{file:PATH}}`"
            )
        })?;
        value
            .to_str()
            .map(Arc::from)
            .ok_or_else(|| format!("the variable `{shown}` is no text in UTF-8: set it to one"))
    }

    fn credential(&mut self, name: &str) -> Result<Arc<str>, String> {
        let shown = one_line(name, MAX_SHOWN_BYTES).into_owned();
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(format!(
                "invalid name of a credential: `{shown}`; expected one without folders, such as `${{credential:db-token}}`"
            ));
        }
        let Some(folder) = self.environment.variable(CREDENTIALS).map(PathBuf::from) else {
            return Err(format!(
                "there are no credentials, as `{CREDENTIALS}` is not set: start plugway by a unit of systemd that has \
                 `LoadCredential={shown}:/path`, or write `${{file:PATH}}`"
            ));
        };
        let path = folder.join(name);
        self.text_of(&path, |error| match error.kind() {
            io::ErrorKind::NotFound => format!(
                "there is no credential `{shown}` in `{}`: add `LoadCredential={shown}:/path` to the unit",
                folder.display()
            ),
            _ => files::unreadable(&path, error),
        })
    }

    /// Returns the text of a file without the line break at its end. A file is read once for a manifest.
    fn text_of(&mut self, path: &Path, explain: impl Fn(&io::Error) -> String) -> Result<Arc<str>, String> {
        if let Some(known) = self.read.get(path) {
            return known.clone();
        }
        let text = files::read_text(path, files::VALUE).map_err(|error| explain(&error));
        let text = text.map(|text| {
            let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
            Arc::from(line)
        });
        self.read.insert(path.into(), text.clone());
        text
    }
}

fn is_name_of_variable(name: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && name.bytes().all(is_fit) && !name.starts_with(|first: char| first.is_ascii_digit())
}

// === DocumentResolver ===

/// The resolution of one document.
struct DocumentResolver<'a> {
    references: &'a mut References,
    text: &'a str,
    folder: &'a Path,
    resolution: &'a mut Resolution,
}

impl DocumentResolver<'_> {
    /// Resolves the strings of a table, which is the value of a key.
    fn table(&mut self, table: &mut DeTable<'_>, braces: Braces, of: &str) {
        for (key, value) in table.iter_mut() {
            let braces = match (&**key.get_ref(), of) {
                ("config", _) => Braces::OfPlugin,
                ("to", "rewrite") if braces == Braces::Unknown => Braces::OfRegex,
                _ => braces,
            };
            let key = key.get_ref().to_string();
            self.value(value, braces, &key);
        }
    }

    fn value(&mut self, value: &mut Spanned<DeValue<'_>>, braces: Braces, key: &str) {
        let span = value.span();
        match value.get_mut() {
            DeValue::Table(table) => self.table(table, braces, key),
            DeValue::Array(list) => list.iter_mut().for_each(|item| self.value(item, braces, key)),
            DeValue::String(text) if text.contains("${") => {
                if let Some(resolved) = self.string(text, &span, braces) {
                    *text = resolved.into();
                }
            }
            _ => {}
        }
    }

    /// Returns a string with its references replaced; `None` if one of them has no value.
    fn string(&mut self, text: &str, span: &Range<usize>, braces: Braces) -> Option<String> {
        let known = self.resolution.unresolved.len();
        let mut resolved = Replaced::at(span.clone());
        for part in parts(text, braces) {
            let (whole, message) = match part {
                StringPart::Text(plain) => {
                    resolved.push_plain(plain);
                    continue;
                }
                StringPart::Reference { whole, kind, name } => match self.reference(whole, kind, name) {
                    Ok(value) => {
                        // A dollar of a value is no group of the regular expression.
                        match braces {
                            Braces::OfRegex => resolved.push_value(whole, &value.replace('$', "$$")),
                            Braces::Unknown | Braces::OfPlugin => resolved.push_value(whole, &value),
                        }
                        continue;
                    }
                    Err(message) => (whole, message),
                },
                StringPart::Bare(whole) if braces == Braces::Unknown => (whole, bare(whole)),
                StringPart::Unclosed(whole, has_kind) if has_kind || braces == Braces::Unknown => {
                    (whole, unclosed(whole))
                }
                StringPart::Bare(plain) | StringPart::Unclosed(plain, _) => {
                    resolved.push_plain(plain);
                    continue;
                }
            };
            let span_of_part = self.place(whole, span);
            self.resolution.unresolved.push(Unresolved { text_span: span.clone(), span: span_of_part, message });
        }
        let text = (self.resolution.unresolved.len() == known).then(|| resolved.text.clone());
        if resolved.has_values() {
            self.resolution.replaced.push(resolved);
        }
        text
    }

    fn reference(&mut self, whole: &str, kind: &str, name: &str) -> Result<Arc<str>, String> {
        let value = self.references.value(kind, name, self.folder)?;
        if self.references.bytes + value.len() > MAX_BYTES {
            let max = MAX_BYTES >> 20;
            return Err(format!(
                "too many values: this one has {} bytes; all together have {max} MiB at most",
                value.len()
            ));
        }
        self.references.bytes += value.len();
        self.references.redaction.add(whole, &value);
        if value.contains(['{', '}']) {
            // What a plugin gets in a template.
            self.references.redaction.add(whole, &doubled(&value));
        }
        Ok(value)
    }

    /// Returns the place of a reference in a string, or of the whole string if that has escapes.
    fn place(&self, whole: &str, span: &Range<usize>) -> Range<usize> {
        let at = self.text.get(span.clone()).and_then(|written| written.find(whole));
        at.map_or(span.clone(), |at| span.start + at..span.start + at + whole.len())
    }
}

fn bare(whole: &str) -> String {
    let name = whole.trim_start_matches("${").trim_end_matches('}');
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let meant = if is_name { format!("${{env:{name}}}") } else { "${env:NAME}".into() };
    let shown = one_line(whole, MAX_SHOWN_BYTES);
    format!(
        "`{shown}` without a kind: expected `{meant}` for a variable of the environment, `${{file:PATH}}` or \
         `${{credential:NAME}}`; {ESCAPE}"
    )
}

fn unclosed(whole: &str) -> String {
    format!(
        "`${{` without `}}`: found `{}`; expected one such as `${{env:DB_TOKEN}}`; {ESCAPE}",
        one_line(whole, MAX_SHOWN_BYTES)
    )
}

/// Splits a string at its references. A dollar in front of `${` stands for the text `${` itself.
fn parts(text: &str, braces: Braces) -> Vec<StringPart<'_>> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find("${") {
        let has_escape = rest[..at].ends_with('$');
        let plain = &rest[..at - usize::from(has_escape)];
        if !plain.is_empty() {
            parts.push(StringPart::Text(plain));
        }
        if has_escape {
            let from = if braces == Braces::OfRegex { at - 1 } else { at };
            parts.push(StringPart::Text(&rest[from..at + 2]));
            rest = &rest[at + 2..];
            continue;
        }
        let body = &rest[at + 2..];
        let end = body.find('}');
        let inner = &body[..end.unwrap_or(body.len())];
        let kind = inner.split_once(':').filter(|(kind, _)| is_kind(kind));
        let whole = &rest[at..at + 2 + inner.len() + usize::from(end.is_some())];
        parts.push(match (end, kind) {
            (None, kind) => StringPart::Unclosed(whole, kind.is_some()),
            (Some(_), Some((kind, name))) => StringPart::Reference { whole, kind, name },
            (Some(_), None) => StringPart::Bare(whole),
        });
        rest = &rest[at + whole.len()..];
    }
    if !rest.is_empty() {
        parts.push(StringPart::Text(rest));
    }
    parts
}

fn is_kind(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references() -> References {
        let variables = [("NAME", "value"), ("EMPTY", ""), ("DOLLAR", "a$1"), ("LONG", &"x".repeat(1 << 20))];
        References::new(&variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// Returns the string `a` of a document, with messages about it.
    fn resolved(references: &mut References, table: &str, written: &str) -> Result<String, Vec<String>> {
        let text = format!("{table} = {written}\n");
        let mut document = DeTable::parse(&text).unwrap();
        let Resolution { unresolved, .. } = references.resolve(&text, Path::new("/nowhere"), document.get_mut());
        if !unresolved.is_empty() {
            let place = |one: &Unresolved| format!("{}: {}", &text[one.span.clone()], one.message);
            return Err(unresolved.iter().map(place).collect());
        }
        fn string(table: &DeTable<'_>) -> String {
            match table.values().next().unwrap().get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Table(table) => string(table),
                other => panic!("{other:?}"),
            }
        }
        Ok(string(document.get_ref()))
    }

    #[test]
    fn files_that_a_text_names_are_found_without_parsing_it() {
        let text = "# `${` begins one\naddress = \"${file:port}:${file:/run/b}\"\nzone = \"$${file:no} ${env:NAME}\"\n\
                    dns = '${credential:c}'\n";
        let found = references().files_named_in(text, Path::new("/etc"));
        assert_eq!(found, [Path::new("/etc/port"), Path::new("/run/b")]);
        let variables = [("CREDENTIALS_DIRECTORY", "/run/credentials")];
        let environment = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let found = References::new(&environment).files_named_in(text, Path::new("/etc"));
        assert_eq!(found[2], Path::new("/run/credentials/c"));
    }

    #[test]
    fn references_are_replaced_wherever_they_stand() {
        for (table, written, wanted) in [
            ("a", r#""${env:NAME}""#, "value"),
            ("a", r#""Bearer ${env:NAME}, ${env:NAME}!""#, "Bearer value, value!"),
            ("a", r#""[${env:EMPTY}]""#, "[]"),
            ("a", r#""\u0024{env:NAME}""#, "value"),
            ("a", r#""$${env:NAME}""#, "${env:NAME}"),
            ("a", r#""$$${env:NAME}""#, "$${env:NAME}"),
            ("a", r#""$${""#, "${"),
            ("a", r#""{host} $1 $host $ {x}""#, "{host} $1 $host $ {x}"),
            ("p.config.a", r#""${own} ${env:NAME} ${""#, "${own} value ${"),
            ("p.config.a", r#""$${own}""#, "${own}"),
            ("rewrite.to", r#""/${env:NAME}/${name}/$${x}""#, "/value/${name}/$${x}"),
            ("rewrite.to", r#""/${env:DOLLAR}/$1""#, "/a$$1/$1"),
            ("a", r#""${env:DOLLAR}/$1""#, "a$1/$1"),
        ] {
            assert_eq!(resolved(&mut references(), table, written).as_deref(), Ok(wanted), "{table} = {written}");
        }
    }

    #[test]
    fn a_reference_without_a_value_is_an_error_in_its_place() {
        for (table, written, wanted) in [
            ("a", r#""x${env:NONE}""#, "${env:NONE}: the environment has no `NONE`"),
            ("a", r#""${env:NAME:-x}""#, "${env:NAME:-x}: invalid name of a variable: `NAME:-x`"),
            ("a", r#""${NAME}""#, "${NAME}: `${NAME}` without a kind: expected `${env:NAME}`"),
            ("a", r#""${vault:x}""#, "${vault:x}: unknown kind of value: `vault`; expected one of"),
            ("p.config.a", r#""${fil:x}""#, "${fil:x}: unknown kind of value: `fil`; did you mean `file`?"),
            ("p.config.a", r#""${env:NAME""#, "${env:NAME: `${` without `}`: found `${env:NAME`"),
            ("a", r#""b ${""#, "${: `${` without `}`"),
            ("a", r#""${file:none}""#, "${file:none}: no such file: `/nowhere/none`"),
            ("a", r#""${file:}""#, "${file:}: missing path"),
            (
                "a",
                r#""${credential:x}""#,
                "${credential:x}: there are no credentials, as `CREDENTIALS_DIRECTORY` is not set",
            ),
            ("a", r#""${credential:../x}""#, "${credential:../x}: invalid name of a credential: `../x`"),
        ] {
            let found = resolved(&mut references(), table, written).unwrap_err();
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{table} = {written}\n{found:?}");
        }
    }

    #[test]
    fn the_bytes_of_all_values_are_bounded() {
        let mut references = references();
        let fits = r#""${env:LONG}""#;
        (0..16).for_each(|_| drop(resolved(&mut references, "a", fits).unwrap()));
        let error = resolved(&mut references, "a", fits).unwrap_err();
        assert!(error[0].contains("too many values") && error[0].contains("16 MiB"), "{error:?}");
        assert_eq!(resolved(&mut references, "a", r#""${env:EMPTY}""#).as_deref(), Ok(""));
    }
}
