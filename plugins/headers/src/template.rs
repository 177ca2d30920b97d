//! Templates: text with values in braces.

use plugway_sdk::{Part, ValueName};

/// Parses a template. The error says what is wrong and what is expected.
pub fn parse(text: &str) -> Result<Vec<Part>, String> {
    if let Some(control) = text.chars().find(|letter| letter.is_control() && *letter != '\t') {
        let found = if matches!(control, '\n' | '\r') { "a line break" } else { "a control character" };
        return Err(format!("no field can have {found}; remove it"));
    }
    let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            plain.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err("a `}` closes nothing; write `}}` for a brace".into());
        }
        let Some((name, after)) = rest.split_once('}') else {
            return Err("a `{` is not closed; write `{{` for a brace".into());
        };
        let is_of_shell = plain.ends_with('$') && !name.contains(':');
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain).into()));
        }
        let hint =
            if is_of_shell { format!("; a variable of the environment is `${{env:{name}}}`") } else { String::new() };
        parts.push(Part::Value(name.parse().map_err(|error: String| error + &hint)?));
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain.into()));
    }
    Ok(parts)
}

/// Returns the name of a value that is known with the response only; `None` for other parts.
pub fn of_response(part: &Part) -> Option<String> {
    match part {
        Part::Value(ValueName::Status) => Some("status".into()),
        Part::Value(ValueName::Endpoint) => Some("endpoint".into()),
        Part::Value(ValueName::ResponseField(name)) => Some(format!("response.header.{name}")),
        _ => None,
    }
}
