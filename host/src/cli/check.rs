//! The command `check`: its report for people, and the one for programs.

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::print;
use crate::assemble::{self, AssembledManifest, Assembler};
use crate::config::diagnostic::{Diagnostic, Diagnostics, Position};
use crate::config::load;
use crate::config::references::Environment;
use crate::loading::{Loader, Stop};
use crate::plugin::engine::Runtime;
use crate::tls::validity;

/// The form of a report.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ReportForm {
    Text,
    Json,
}

/// Checks a manifest, and prints a report. The exit code is that of a failure if the manifest has errors.
pub fn check(
    manifest: &Path,
    form: ReportForm,
    environment: &Environment,
    cache: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let checked = match load::load(manifest, environment) {
        Ok(files) => {
            let loader = Loader::in_children(Stop::default());
            Assembler::for_check(Runtime::start(cache)?, loader)?.assemble(files)
        }
        Err(problems) => Err(problems),
    };
    if form == ReportForm::Json {
        print(&(document(&checked).to_string() + "\n"))?;
        return Ok(if checked.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let AssembledManifest { generation, warnings, .. } = checked?;
    assemble::log(&warnings);
    validity::warn_of(&generation.certificates, SystemTime::now());
    let (routes, plugins) = (generation.routes.len(), generation.bindings.len());
    print(&format!("{} is good: {routes} routes, {plugins} configured plugins\n", manifest.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the report for programs, whose form is documented.
fn document(checked: &Result<AssembledManifest, Diagnostics>) -> Value {
    let (errors, count, warnings): (&[_], _, _) = match checked {
        Ok(assembled) => (&[], 0, assembled.warnings.as_slice()),
        Err(problems) => (problems.errors(), problems.count(), problems.warnings()),
    };
    let warnings = warnings.iter().map(|warning| entry("warning", &warning.diagnostic));
    let mut entries: Vec<Value> = errors.iter().map(|error| entry("error", error)).chain(warnings).collect();
    if let Ok(assembled) = checked {
        entries.extend(expired(assembled));
    }
    let shown = entries.len() - errors.len();
    json!({ "version": 1, "ok": checked.is_ok(), "errors": count, "warnings": shown, "diagnostics": entries })
}

/// Returns warnings of certificates that are not valid now.
fn expired(assembled: &AssembledManifest) -> impl Iterator<Item = Value> {
    let now = SystemTime::now();
    let invalid = assembled.generation.certificates.iter().filter(move |dated| dated.validity.invalid(now).is_some());
    invalid.map(|dated| {
        let (file, line) = dated.place.rsplit_once(':').unwrap_or((&dated.place, ""));
        json!({
            "severity": "warning",
            "message": format!("certificate that is not valid now: `{}`", dated.chain.display()),
            "help": "renew it, or set the clock of this machine",
            "file": file,
            "line": line.parse::<usize>().ok(),
            "column": null,
            "end": null,
        })
    })
}

fn entry(severity: &str, diagnostic: &Diagnostic) -> Value {
    let Diagnostic { source, span, .. } = diagnostic;
    let text = diagnostic.shown_message();
    let (message, help) = split(&text);
    let start = span.as_ref().map(|span| source.position(span.start));
    let end = span.as_ref().map(|span| source.position(span.end));
    json!({
        "severity": severity,
        "message": message,
        "help": help,
        "file": source.path.display().to_string(),
        "line": start.map(|start| start.line),
        "column": start.map(|start| start.column),
        "end": end.map(|Position { line, column }| json!({ "line": line, "column": column })),
    })
}

/// Splits a message into what is wrong and what to do: at the first semicolon that is not in a quotation.
fn split(text: &str) -> (&str, Option<&str>) {
    let mut quote = None;
    for (at, character) in text.char_indices() {
        match (character, quote) {
            ('`' | '"', None) => quote = Some(character),
            (_, Some(open)) if open == character => quote = None,
            (';', None) => {
                let help = text[at + 1..].trim_start();
                return (&text[..at], (!help.is_empty()).then_some(help));
            }
            _ => {}
        }
    }
    (text, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_begins_after_what_is_wrong() {
        for (text, wanted) in [
            ("invalid size: `a;b`; expected one", ("invalid size: `a;b`", Some("expected one"))),
            ("no route: add one", ("no route: add one", None)),
            ("a; b; c", ("a", Some("b; c"))),
            ("open `quote; here", ("open `quote; here", None)),
            ("", ("", None)),
        ] {
            assert_eq!(split(text), wanted);
        }
    }
}
