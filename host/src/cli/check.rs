//! The command `check`: its report for people, and its report for programs.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::print;
use crate::assemble::process::has_cache_among_compiled;
use crate::assemble::{AssembledManifest, Assembler};
use crate::config::diagnostic::{Diagnostic, Diagnostics, Position, Warning};
use crate::config::load;
use crate::config::references::Environment;
use crate::loading::{Loader, Stop};
use crate::plugin::engine::Runtime;
use crate::telemetry::process_log;

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
            // A check changes nothing in the folder of a cache: not even by compiled plugins, which are kept elsewhere.
            let kept = cache.filter(|compiled| !has_cache_among_compiled(&files.list, compiled));
            Assembler::for_check(Runtime::start(kept)?, loader, cache, SystemTime::now())?.assemble(files)
        }
        Err(problems) => Err(problems),
    };
    if form == ReportForm::Json {
        print(&(document(&checked).to_string() + "\n"))?;
        return Ok(if checked.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let warnings = warnings(&checked);
    for warning in warnings {
        process_log::print(&format!("{warning}\n"), FLUSH_WARNING);
    }
    let count = match warnings.len() {
        0 => String::new(),
        1 => ", 1 warning".into(),
        count => format!(", {count} warnings"),
    };
    let AssembledManifest { generation, .. } = checked?;
    let (routes, plugins) = (generation.routes.len(), generation.bindings.len());
    print(&format!("{} is good: {routes} routes, {plugins} configured plugins{count}\n", manifest.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The maximum time for a warning: on a busy machine, a write to a file may take longer than a second.
const FLUSH_WARNING: Duration = Duration::from_secs(5);

fn warnings(checked: &Result<AssembledManifest, Diagnostics>) -> &[Warning] {
    match checked {
        Ok(assembled) => &assembled.warnings,
        Err(problems) => problems.warnings(),
    }
}

/// Returns the report for programs, whose form is documented.
fn document(checked: &Result<AssembledManifest, Diagnostics>) -> Value {
    let (errors, count): (&[_], _) = match checked {
        Ok(_) => (&[], 0),
        Err(problems) => (problems.errors(), problems.count()),
    };
    let warnings = warnings(checked).iter().map(|warning| entry("warning", &warning.diagnostic));
    let entries: Vec<Value> = errors.iter().map(|error| entry("error", error)).chain(warnings).collect();
    let shown = entries.len() - errors.len();
    json!({ "version": 1, "ok": checked.is_ok(), "errors": count, "warnings": shown, "diagnostics": entries })
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

/// Splits a message into its error and its remedy: at the first semicolon that is not in a quotation.
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
