//! Edits that plugins ask for: checked first, then carried out, all or none.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue, IntoHeaderName};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use smallvec::SmallVec;

use crate::context::Head;
use crate::context::bounds;
use crate::context::edit_check::{Refused, Side, full, uri_text};
use crate::context::edit_plan::{Cost, Plan, Planned};
use crate::context::edit_room::{Kept, Room};
use crate::protocol::authority;
use crate::protocol::field_alias::{is_plain, remove_aliases};
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
