//! Edits that plugins ask for: checked first, then carried out, all or none.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use smallvec::SmallVec;

use crate::head::{Head, Value, ValueName};

/// One checked edit.
#[derive(Clone, Debug)]
pub enum Edit {
    Set(HeaderName, HeaderValue),
    Append(HeaderName, HeaderValue),
    Default(HeaderName, HeaderValue),
    Remove(HeaderName),
    Rename(HeaderName, HeaderName),
    Method(Method),
    Path(Vec<u8>),
    Query(Option<Vec<u8>>),
    Authority(HeaderValue),
    Upstream(String),
    Status(StatusCode),
    Note(String, HeaderValue),
    /// A plan of the plugin, by its place.
    Plan(u32),
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

/// Which message an edit of a field concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Request,
    Response,
}

/// An edit that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("`{0}` is no field name (RFC 9110 §5.1)")]
    Name(String),
    #[error("the value of `{0}` has bytes that no field may have (RFC 9110 §5.5)")]
    Value(String),
    #[error("`{0}` belongs to the framing of the connection and is the proxy's own (RFC 9110 §7.6.1)")]
    Framing(HeaderName),
    #[error("`{0}` is no method")]
    Method(String),
    #[error("the path or query can't stand in a request target")]
    Target,
    #[error("{0} is no status between 200 and 599")]
    Status(u16),
    #[error("a {0} can't be changed here")]
    Side(&'static str),
    #[error("it declared no plan {0}")]
    Plan(u32),
    #[error("{0} edits, fields or notes are too many; {MOST} are allowed")]
    TooMany(usize),
    #[error("it wants bodies whole up to {0} bytes, which its memory limit doesn't hold")]
    Buffer(u64),
}

/// Edits and fields that one call may ask for, and notes that an exchange may have: far more than any filter needs, and
/// few enough for maps and searches that were made for heads of messages.
pub const MOST: usize = 256;

/// Whether so many edits, fields or notes are few enough.
pub fn count(count: usize) -> Result<(), Refused> {
    if count > MOST { Err(Refused::TooMany(count)) } else { Ok(()) }
}

const FRAMING: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A field name that plugins may edit.
pub fn field_name(name: &str) -> Result<HeaderName, Refused> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Refused::Name(shown(name)))?;
    if FRAMING.contains(&name) { Err(Refused::Framing(name)) } else { Ok(name) }
}

/// As much of a name as belongs into a message.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// A field value.
pub fn field_value(name: &str, value: &[u8]) -> Result<HeaderValue, Refused> {
    HeaderValue::from_bytes(value).map_err(|_| Refused::Value(shown(name)))
}

/// A status that a plugin may give.
pub fn status(code: u16) -> Result<StatusCode, Refused> {
    StatusCode::from_u16(code).ok().filter(|status| (200..600).contains(&status.as_u16())).ok_or(Refused::Status(code))
}

/// Carries out checked edits, or none if their target or a plan can't be.
pub fn apply(edits: SmallVec<[Edit; 4]>, plans: &[Vec<Planned>], side: Side, head: &mut Head) -> Result<(), Refused> {
    count(head.notes.len() + edits.iter().filter(|edit| matches!(edit, Edit::Note(..))).count())?;
    for edit in &edits {
        if let Edit::Plan(place) = edit
            && *place as usize >= plans.len()
        {
            return Err(Refused::Plan(*place));
        }
    }
    if let Some(uri) = target(&edits, head)? {
        head.request.uri = uri;
    }
    for edit in edits {
        match edit {
            Edit::Path(_) | Edit::Query(_) | Edit::Upstream(_) => {}
            Edit::Method(method) => head.request.method = method,
            Edit::Authority(host) => drop(head.request.headers.insert(header::HOST, host)),
            Edit::Note(name, value) => head.set_note(name, value),
            Edit::Plan(place) => {
                if let Some(plan) = plans.get(place as usize) {
                    apply_plan(plan, side, head);
                }
            }
            Edit::Status(status) => {
                if let Some(response) = &mut head.response {
                    response.status = status;
                }
            }
            edit => apply_field(edit, fields(side, head)),
        }
    }
    Ok(())
}

/// Carries out a plan.
pub fn apply_plan(plan: &[Planned], side: Side, head: &mut Head) {
    for edit in plan {
        match edit {
            Planned::Set(name, template) => match template.fill(head) {
                Some(value) => drop(fields(side, head).insert(name, value)),
                None => drop(fields(side, head).remove(name)),
            },
            Planned::Append(name, template) => {
                if let Some(value) = template.fill(head) {
                    fields(side, head).append(name, value);
                }
            }
            Planned::Default(name, template) => {
                if !fields(side, head).contains_key(name)
                    && let Some(value) = template.fill(head)
                {
                    fields(side, head).insert(name, value);
                }
            }
            Planned::Remove(name) => drop(fields(side, head).remove(name)),
            Planned::Rename(from, to) => rename(from, to, fields(side, head)),
            Planned::Note(name, template) => {
                if let Some(value) = template.fill(head) {
                    head.set_note(name.clone(), value);
                }
            }
        }
    }
}

impl Template {
    /// The value for an exchange; none if it comes out empty.
    fn fill(&self, head: &Head) -> Option<HeaderValue> {
        match self.0.as_slice() {
            [Part::Text(text)] => return Some(text.clone()).filter(|text| !text.is_empty()),
            [Part::Value(name)] => {
                if let Value::Field(value) = head.value(name)? {
                    return Some(value.clone()).filter(|value| !value.is_empty());
                }
            }
            _ => {}
        }
        let mut filled: SmallVec<[u8; 128]> = SmallVec::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => filled.extend_from_slice(text.as_bytes()),
                Part::Value(name) => {
                    if let Some(value) = head.value(name) {
                        filled.extend_from_slice(value.bytes());
                    }
                }
            }
        }
        // Values come from a parsed head, so only what no field may have is lost here.
        HeaderValue::from_bytes(&filled).ok().filter(|value| !value.is_empty())
    }
}

fn fields(side: Side, head: &mut Head) -> &mut HeaderMap {
    match (side, &mut head.response) {
        (Side::Response, Some(response)) => &mut response.headers,
        _ => &mut head.request.headers,
    }
}

fn apply_field(edit: Edit, fields: &mut HeaderMap) {
    match edit {
        Edit::Set(name, value) => drop(fields.insert(name, value)),
        Edit::Append(name, value) => drop(fields.append(name, value)),
        Edit::Default(name, value) => drop(fields.entry(name).or_insert(value)),
        Edit::Remove(name) => drop(fields.remove(name)),
        Edit::Rename(from, to) => rename(&from, &to, fields),
        _ => {}
    }
}

fn rename(from: &HeaderName, to: &HeaderName, fields: &mut HeaderMap) {
    let lines: SmallVec<[HeaderValue; 2]> = fields.get_all(from).iter().cloned().collect();
    if lines.is_empty() || from == to {
        return;
    }
    fields.remove(from);
    fields.remove(to);
    for line in lines {
        fields.append(to, line);
    }
}

/// The request target that the edits ask for, if they ask for another.
fn target(edits: &[Edit], head: &Head) -> Result<Option<http::Uri>, Refused> {
    let (mut path, mut query) = (None, None);
    for edit in edits {
        match edit {
            Edit::Path(bytes) => path = Some(bytes.clone()),
            Edit::Query(bytes) => query = Some(bytes.clone()),
            _ => {}
        }
    }
    if path.is_none() && query.is_none() {
        return Ok(None);
    }
    let uri = &head.request.uri;
    let mut target = path.unwrap_or_else(|| uri.path().into());
    let query = query.unwrap_or_else(|| uri.query().map(Into::into));
    let bad = |byte: &u8| byte.is_ascii_control() || *byte == b' ' || *byte == b'#';
    let misplaced = target.first() != Some(&b'/') || target.contains(&b'?');
    if misplaced || target.iter().any(bad) || query.iter().flatten().any(bad) {
        return Err(Refused::Target);
    }
    if let Some(query) = query {
        target.push(b'?');
        target.extend(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| Refused::Target)?);
    http::Uri::from_parts(parts).map(Some).map_err(|_| Refused::Target)
}
