//! The text format of metrics for Prometheus.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::telemetry::metrics::Counter;

/// Returns the sum of one counter over all workers.
pub fn sum<T>(figures: &[Arc<T>], one: impl Fn(&T) -> &Counter) -> u64 {
    figures.iter().map(|figures| one(figures).value()).sum()
}

/// Begins a family of metrics.
pub fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes a sample of a family.
pub fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    out.push_str(name);
    for (index, (label, text)) in labels.iter().enumerate() {
        out.push_str(if index == 0 { "{" } else { "," });
        let _ = write!(out, "{label}=\"");
        escape(out, text);
        out.push('"');
    }
    let end = if labels.is_empty() { "" } else { "}" };
    let _ = writeln!(out, "{end} {value}");
}

/// Writes a label's value. The format has escapes for three characters; other control characters are written as the
/// text of their escapes, since the page is read in terminals too.
fn escape(out: &mut String, text: &str) {
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            letter if letter.is_control() => {
                let _ = write!(out, "\\\\u{{{:x}}}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut out = String::new();
        line(&mut out, "a", &[("x", "b\\\"\n"), ("y", "\r\u{1b}[2Jü\u{9b}\0")], 1.0);
        line(&mut out, "b", &[], 0.5);
        assert_eq!(out, "a{x=\"b\\\\\\\"\\n\",y=\"\\\\u{d}\\\\u{1b}[2Jü\\\\u{9b}\\\\u{0}\"} 1\nb 0.5\n");
    }
}
