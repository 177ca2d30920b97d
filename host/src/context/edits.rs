//! Edits that plugins ask for: checked first, then carried out, all or none.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue, IntoHeaderName};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use smallvec::SmallVec;

use crate::context::Head;
use crate::context::bounds;
use crate::context::edit_plan::{Cost, Plan, Planned};
use crate::context::edit_room::{Kept, Room};
use crate::protocol::authority;
use crate::protocol::field_alias::{is_plain, remove_aliases};
use crate::protocol::framing::is_forbidden_trailer;
use crate::protocol::path;

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

impl Edit {
    /// Bytes that the edit takes of [`bounds::DECLARED`].
    pub fn declared(&self) -> usize {
        let text = match self {
            Edit::Set(name, value) | Edit::Append(name, value) | Edit::Default(name, value) => {
                name.as_str().len() + value.len()
            }
            Edit::Remove(name) => name.as_str().len(),
            Edit::Rename(from, to) => from.as_str().len() + to.as_str().len(),
            Edit::Path(text) | Edit::Query(Some(text)) => text.len(),
            Edit::Note(name, value) => name.len() + value.len(),
            Edit::Upstream(name) => name.len(),
            Edit::Authority(value) => value.len(),
            Edit::Method(_) | Edit::Query(None) | Edit::Status(_) | Edit::Plan(_) => 0,
        };
        bounds::DECLARED_ITEM + text
    }

    /// The cost, with that of the plan if the edit is one.
    fn cost(&self, plans: &[Plan]) -> Result<Cost, Refused> {
        Ok(match self {
            Edit::Set(name, value) | Edit::Append(name, value) | Edit::Default(name, value) => {
                Cost::field(name, value.len())
            }
            Edit::Authority(value) => Cost::field(&header::HOST, value.len()),
            Edit::Rename(_, to) => Cost::rename(to),
            Edit::Note(name, value) => Cost::note(name, value.len()),
            Edit::Plan(place) => plans.get(*place as usize).ok_or(Refused::Plan(*place))?.cost,
            _ => Cost::plain(),
        })
    }
}

/// Which message an edit of a field concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Request,
    Response,
}

/// An edit, or a declaration of edits, that is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("`{0}` is no field name (RFC 9110 §5.1)")]
    Name(String),
    #[error("the value of `{0}` has bytes that no field may have (RFC 9110 §5.5)")]
    Value(String),
    #[error("`{0}` belongs to the framing of the connection and is the proxy's own (RFC 9110 §7.6.1)")]
    Framing(HeaderName),
    #[error("`{0}` is no authority, as Host has to be (RFC 9110 §7.2)")]
    Host(String),
    #[error(
        "`host` can be set and removed, but not appended to, nor be what a rename makes: a request has one (RFC 9112 §3.2)"
    )]
    OneHost,
    #[error("`{0}` can't stand in trailers (RFC 9110 §6.5.1)")]
    Trailer(HeaderName),
    #[error("`{0}` is no method, or none that is served here")]
    Method(String),
    #[error("the path or query can't stand in a request target: {0}")]
    Target(&'static str),
    #[error("{0} is no status between 200 and 599")]
    Status(u16),
    #[error("a {0} can't be changed here")]
    Side(&'static str),
    #[error("it declared no plan {0}")]
    Plan(u32),
    /// A bound of [`bounds`] was exceeded.
    #[error("{found} {what}; at most {most} are allowed")]
    Many { what: &'static str, found: usize, most: usize },
    #[error("it wants bodies whole up to {0} bytes, which its memory limit doesn't hold")]
    Buffer(u64),
}

/// Returns an error if so many of something are more than allowed.
pub fn at_most(most: usize, found: usize, what: &'static str) -> Result<(), Refused> {
    if found > most { Err(Refused::Many { what, found, most }) } else { Ok(()) }
}

const FRAMING: [HeaderName; 10] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A field name that plugins may edit.
pub fn field_name(name: &str) -> Result<HeaderName, Refused> {
    let name = any_field_name(name)?;
    if FRAMING.contains(&name) { Err(Refused::Framing(name)) } else { Ok(name) }
}

/// A field name that plugins may append to, or give to other fields.
pub fn repeatable_name(name: &str) -> Result<HeaderName, Refused> {
    let name = field_name(name)?;
    if name == header::HOST { Err(Refused::OneHost) } else { Ok(name) }
}

/// A field name that plugins may read or name.
pub fn any_field_name(name: &str) -> Result<HeaderName, Refused> {
    self::name(name)?;
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| Refused::Name(shown(name)))
}

/// Refuses names that are too long.
pub fn name(name: &str) -> Result<(), Refused> {
    at_most(bounds::NAME, name.len(), "bytes of a name")
}

/// As much of a name as belongs into a message.
pub fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// A field value. Spaces around it are no part of it (RFC 9110 §5.5).
pub fn field_value(name: &str, value: &[u8]) -> Result<HeaderValue, Refused> {
    let value = field_text(name, trimmed(value))?;
    if name.eq_ignore_ascii_case("host") { host(value) } else { Ok(value) }
}

/// A piece of a field value.
pub fn field_text(name: &str, text: &[u8]) -> Result<HeaderValue, Refused> {
    at_most(bounds::VALUE, text.len(), "bytes of a value")?;
    HeaderValue::from_bytes(text).map_err(|_| Refused::Value(shown(name)))
}

/// A value without the spaces around it.
pub fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// The value of `Host` in its normal form: an error if it could not come from a client.
pub fn host(value: HeaderValue) -> Result<HeaderValue, Refused> {
    let normal = match authority::normal(value.as_bytes(), None) {
        Ok(Cow::Borrowed(_)) => return Ok(value),
        Ok(Cow::Owned(normal)) => HeaderValue::try_from(normal).ok(),
        Err(_) => None,
    };
    normal.ok_or_else(|| Refused::Host(shown(&String::from_utf8_lossy(value.as_bytes()))))
}

/// Returns a method; an error if it is malformed, too long or not served.
pub fn method(method: &str) -> Result<Method, Refused> {
    name(method)?;
    let is_served = |method: &Method| *method != Method::CONNECT;
    Method::from_bytes(method.as_bytes()).ok().filter(is_served).ok_or_else(|| Refused::Method(shown(method)))
}

/// A path or query, as far as it can be checked without the message.
pub fn target_part(bytes: Vec<u8>) -> Result<Vec<u8>, Refused> {
    at_most(bounds::VALUE, bytes.len(), "bytes of a path or query").map(|()| bytes)
}

/// A status that a plugin may give.
pub fn status(code: u16) -> Result<StatusCode, Refused> {
    StatusCode::from_u16(code).ok().filter(|status| (200..600).contains(&status.as_u16())).ok_or(Refused::Status(code))
}

/// The fields of a response or of trailers that a plugin made.
pub fn checked_fields(given: &[(String, Vec<u8>)]) -> Result<HeaderMap, Refused> {
    at_most(bounds::FIELDS, given.len(), "fields")?;
    let bytes = given.iter().map(|(name, value)| name.len() + value.len() + bounds::FIELD_OVERHEAD).sum();
    at_most(bounds::FIELD_BYTES, bytes, "bytes of fields")?;
    let mut fields = HeaderMap::new();
    for (name, value) in given {
        fields.try_append(field_name(name)?, field_value(name, value)?).map_err(full)?;
    }
    Ok(fields)
}

/// Checks the trailers that a plugin has returned.
pub fn checked_trailers(given: &[(String, Vec<u8>)]) -> Result<HeaderMap, Refused> {
    let fields = checked_fields(given)?;
    match fields.keys().find(|name| is_forbidden_trailer(name.as_str().as_bytes())) {
        Some(name) => Err(Refused::Trailer(name.clone())),
        None => Ok(fields),
    }
}

/// Carries out checked edits, or none if one of them can't be.
pub fn apply(edits: SmallVec<[Edit; 4]>, plans: &[Plan], side: Side, head: &mut Head) -> Result<(), Refused> {
    if let [Edit::Plan(place)] = edits[..] {
        return apply_plan(plans.get(place as usize).ok_or(Refused::Plan(place))?, side, head);
    }
    let cost = edits.iter().try_fold(Cost::default(), |cost, edit| edit.cost(plans).map(|more| cost.and(more)))?;
    let mut room = Room::of(cost, side, head)?;
    let uri = target(&edits, head)?;
    let is_asterisk = uri.as_ref().unwrap_or(&head.request.uri).path() == "*";
    let leaves_options = |edit: &Edit| matches!(edit, Edit::Method(method) if *method != Method::OPTIONS);
    if is_asterisk && edits.iter().any(leaves_options) {
        return Err(Refused::Target("`*` is a target for OPTIONS alone"));
    }
    // Only the values of templates can still exceed a bound.
    let kept = (cost.values > 0).then(|| Kept::of(side, head));
    if let Some(uri) = uri {
        head.request.uri = uri;
    }
    let done = edits.into_iter().try_for_each(|edit| carry_out(edit, plans, side, &mut room, head));
    finish(done, kept, room, side, head)
}

/// Carries out a plan, or nothing of it if a value exceeds a bound.
pub fn apply_plan(plan: &Plan, side: Side, head: &mut Head) -> Result<(), Refused> {
    let mut room = Room::of(plan.cost, side, head)?;
    if plan.is_chained {
        let kept = Some(Kept::of(side, head));
        let done = carry_out_plan(plan, side, &mut room, head);
        return finish(done, kept, room, side, head);
    }
    // What no edit changes is read before the first of them.
    let values: SmallVec<[Option<HeaderValue>; 8]> =
        plan.edits.iter().map(|edit| room.fill(edit, side, head)).collect::<Result<_, _>>()?;
    let done = plan.edits.iter().zip(values).try_for_each(|(edit, value)| carry_out_planned(edit, value, side, head));
    finish(done, None, room, side, head)
}

/// Counts what was added or, where an edit failed, brings the message back to what it was.
fn finish(
    done: Result<(), Refused>,
    kept: Option<Kept>,
    room: Room,
    side: Side,
    head: &mut Head,
) -> Result<(), Refused> {
    match done {
        Ok(()) => room.close(side, head),
        Err(_) => kept.into_iter().for_each(|kept| kept.restore(head)),
    }
    done
}

fn carry_out(edit: Edit, plans: &[Plan], side: Side, room: &mut Room, head: &mut Head) -> Result<(), Refused> {
    match edit {
        Edit::Path(_) | Edit::Query(_) | Edit::Upstream(_) => {}
        Edit::Method(method) => head.request.method = method,
        Edit::Authority(host) => set_host(host, head)?,
        Edit::Note(name, value) => head.set_note(name, value),
        Edit::Plan(place) => {
            let plan = plans.get(place as usize).ok_or(Refused::Plan(place))?;
            carry_out_plan(plan, side, room, head)?;
        }
        Edit::Status(status) => {
            if let Some(response) = &mut head.response {
                response.status = status;
            }
        }
        Edit::Set(name, value) => set(&name, value, edited(&name, side, head))?,
        Edit::Append(name, value) => append(&name, value, edited(&name, side, head))?,
        Edit::Default(name, value) => {
            edited(&name, side, head).try_entry(name).map_err(full)?.or_try_insert(value).map_err(full)?;
        }
        Edit::Remove(name) => drop(edited(&name, side, head).remove(name)),
        Edit::Rename(from, to) => rename(&from, &to, side, head)?,
    }
    Ok(())
}

/// Sets `Host` without the port of the scheme, as that of a client is (RFC 9110 §4.2.3).
fn set_host(host: HeaderValue, head: &mut Head) -> Result<(), Refused> {
    let port = if head.peer.is_secure() { 443 } else { 80 };
    let shorter = match authority::normal(host.as_bytes(), Some(port)) {
        Ok(Cow::Owned(normal)) => HeaderValue::try_from(normal).ok(),
        // What is still to be refused is refused elsewhere.
        Ok(Cow::Borrowed(normal)) if normal.len() < host.len() => HeaderValue::from_bytes(normal).ok(),
        Ok(Cow::Borrowed(_)) | Err(_) => None,
    };
    set(header::HOST, shorter.unwrap_or(host), &mut head.request.headers)
}

/// Carries out a plan edit by edit, each with the values that those before it left.
fn carry_out_plan(plan: &Plan, side: Side, room: &mut Room, head: &mut Head) -> Result<(), Refused> {
    plan.edits.iter().try_for_each(|edit| {
        let value = room.fill(edit, side, head)?;
        carry_out_planned(edit, value, side, head)
    })
}

fn carry_out_planned(edit: &Planned, value: Option<HeaderValue>, side: Side, head: &mut Head) -> Result<(), Refused> {
    match (edit, value) {
        (Planned::Set(name, _), Some(value)) if *name == header::HOST && side == Side::Request => set_host(value, head),
        (Planned::Set(name, _), Some(value)) => set(name, value, edited(name, side, head)),
        (Planned::Append(name, _), Some(value)) => append(name, value, edited(name, side, head)),
        (Planned::Default(name, _), Some(value)) => {
            let fields = edited(name, side, head);
            if fields.contains_key(name) { Ok(()) } else { set(name, value, fields) }
        }
        (Planned::Note(name, _), Some(value)) => {
            head.set_note(name.clone(), value);
            Ok(())
        }
        (Planned::Rename(from, to), _) => rename(from, to, side, head),
        (Planned::Set(name, _), None) | (Planned::Remove(name), _) => {
            edited(name, side, head).remove(name);
            Ok(())
        }
        (Planned::Append(..) | Planned::Default(..) | Planned::Note(..), None) => Ok(()),
    }
}

fn fields(side: Side, head: &mut Head) -> &mut HeaderMap {
    match (side, &mut head.response) {
        (Side::Response, Some(response)) => &mut response.headers,
        _ => &mut head.request.headers,
    }
}

/// The fields of a message for an edit of one of them, without those that an origin would take for it: an edit of a
/// field concerns its aliases too.
fn edited<'a>(name: &HeaderName, side: Side, head: &'a mut Head) -> &'a mut HeaderMap {
    if side == Side::Request {
        head.has_aliases |= !is_plain(name.as_str());
        if head.has_aliases {
            remove_aliases(&mut head.request.headers, name);
        }
    }
    fields(side, head)
}

fn set(name: impl IntoHeaderName, value: HeaderValue, fields: &mut HeaderMap) -> Result<(), Refused> {
    fields.try_insert(name, value).map(drop).map_err(full)
}

fn append(name: impl IntoHeaderName, value: HeaderValue, fields: &mut HeaderMap) -> Result<(), Refused> {
    fields.try_append(name, value).map(drop).map_err(full)
}

fn rename(from: &HeaderName, to: &HeaderName, side: Side, head: &mut Head) -> Result<(), Refused> {
    let fields = edited(from, side, head);
    let lines: SmallVec<[HeaderValue; 2]> = fields.get_all(from).iter().cloned().collect();
    if lines.is_empty() || from == to {
        return Ok(());
    }
    fields.remove(from);
    let fields = edited(to, side, head);
    fields.remove(to);
    lines.into_iter().try_for_each(|line| append(to, line, fields))
}

/// A map has no room for another field: [`Room`] has let too many pass.
fn full(_: impl std::fmt::Debug) -> Refused {
    Refused::Many { what: "fields of a message", found: bounds::MESSAGE_FIELDS + 1, most: bounds::MESSAGE_FIELDS }
}

/// The request target that the edits ask for, in its normal form, if they ask for another.
fn target(edits: &[Edit], head: &Head) -> Result<Option<http::Uri>, Refused> {
    let (mut path, mut query) = (None, None);
    for edit in edits {
        match edit {
            Edit::Path(bytes) => path = Some(bytes),
            Edit::Query(bytes) => query = Some(bytes),
            _ => {}
        }
    }
    if path.is_none() && query.is_none() {
        return Ok(None);
    }
    let uri = &head.request.uri;
    let mut target = path.map_or(Ok(Cow::Borrowed(uri.path())), |path| normal_path(path))?.into_owned();
    let query = query.map_or_else(|| Ok(uri.query()), |query| query.as_deref().map(uri_text).transpose())?;
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    let malformed = "it is no path with a query";
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| Refused::Target(malformed))?);
    http::Uri::from_parts(parts).map(Some).map_err(|_| Refused::Target(malformed))
}

/// The path that a plugin gives, in its normal form.
fn normal_path(path: &[u8]) -> Result<Cow<'_, str>, Refused> {
    let path = uri_text(path)?;
    if !path.starts_with('/') || path.contains('?') {
        return Err(Refused::Target("a path begins with `/`, and has no `?` in it"));
    }
    path::normal(path).map_err(|why| Refused::Target(why.reason()))
}

/// Text that can stand in a path or query.
fn uri_text(text: &[u8]) -> Result<&str, Refused> {
    let is_fit = text.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
    std::str::from_utf8(text).ok().filter(|_| is_fit).ok_or(Refused::Target("it has bytes that must be escaped"))
}
