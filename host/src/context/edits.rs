//! The edits that plugins ask for: they are checked first, and then carried out, either all or none.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue, IntoHeaderName};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use smallvec::SmallVec;

use crate::context::body_mode::BodyMode;
use crate::context::bounds;
use crate::context::edit_check::{EditError, MessageSide, full, uri_text};
use crate::context::edit_plan::{EditCost, EditPlan, PlannedEdit};
use crate::context::edit_room::{EditRoom, SavedMessage};
use crate::context::edited_names::EditedNames;
use crate::context::{ContentLength, ExchangeContext};
use crate::protocol::authority;
use crate::protocol::field_alias::is_plain;
use crate::protocol::path;

/// An edit that has passed the checks.
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
    /// A plan of the plugin, by its index.
    Plan(u32),
    /// The maximum length of the request's content, in bytes.
    MaxBody(u64),
    /// The way in which the plugin takes the content of the message.
    Body(BodyMode),
}

impl Edit {
    /// Returns the number of bytes that the edit counts against [`bounds::DECLARED`].
    pub fn declared_bytes(&self) -> usize {
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
            Edit::Method(_)
            | Edit::Query(None)
            | Edit::Status(_)
            | Edit::Plan(_)
            | Edit::MaxBody(_)
            | Edit::Body(_) => 0,
        };
        bounds::DECLARED_ITEM + text
    }

    /// Returns the cost, with that of the plan if the edit names one.
    fn cost(&self, plans: &[EditPlan]) -> Result<EditCost, EditError> {
        Ok(match self {
            Edit::Set(name, value) | Edit::Append(name, value) | Edit::Default(name, value) => {
                EditCost::field(name, value.len())
            }
            Edit::Authority(value) => EditCost::field(&header::HOST, value.len()),
            Edit::Rename(_, to) => EditCost::rename(to),
            Edit::Note(name, value) => EditCost::note(name, value.len()),
            Edit::Plan(plan_index) => plans.get(*plan_index as usize).ok_or(EditError::Plan(*plan_index))?.cost,
            _ => EditCost::plain(),
        })
    }
}

/// Carries out checked edits; none of them if one can't be carried out.
pub fn apply(
    edits: SmallVec<[Edit; 4]>,
    plans: &[EditPlan],
    side: MessageSide,
    context: &mut ExchangeContext,
) -> Result<(), EditError> {
    if let [Edit::Plan(plan_index)] = edits[..] {
        return apply_plan(plans.get(plan_index as usize).ok_or(EditError::Plan(plan_index))?, side, context);
    }
    let cost = edits.iter().try_fold(EditCost::default(), |cost, edit| edit.cost(plans).map(|more| cost.and(more)))?;
    let mut room = EditRoom::of(cost, side, context)?;
    let uri = target(&edits, context)?;
    let is_asterisk = uri.as_ref().unwrap_or(&context.request.uri).path() == "*";
    let leaves_options = |edit: &Edit| matches!(edit, Edit::Method(method) if *method != Method::OPTIONS);
    if is_asterisk && edits.iter().any(leaves_options) {
        return Err(EditError::Target("`*` is a target for OPTIONS alone"));
    }
    // Only the values of templates can still exceed a bound.
    let saved_message = (cost.values > 0).then(|| SavedMessage::of(side, context));
    if let Some(uri) = uri {
        context.request.uri = uri;
    }
    let done = edits.into_iter().try_for_each(|edit| carry_out(edit, plans, side, &mut room, context));
    finish(done, saved_message, room, side, context)
}

/// Carries out a plan, or nothing of it if a value exceeds a bound.
pub fn apply_plan(plan: &EditPlan, side: MessageSide, context: &mut ExchangeContext) -> Result<(), EditError> {
    let mut room = EditRoom::of(plan.cost, side, context)?;
    if plan.is_chained {
        let saved_message = Some(SavedMessage::of(side, context));
        let done = carry_out_plan(plan, side, &mut room, context);
        return finish(done, saved_message, room, side, context);
    }
    // What no edit changes is read before the first of them.
    let values: SmallVec<[Option<HeaderValue>; 8]> =
        plan.edits.iter().map(|edit| room.fill(edit, side, context)).collect::<Result<_, _>>()?;
    let done =
        plan.edits.iter().zip(values).try_for_each(|(edit, value)| carry_out_planned(edit, value, side, context));
    finish(done, None, room, side, context)
}

/// Counts the fields that were added or, if an edit failed, restores the message.
fn finish(
    done: Result<(), EditError>,
    saved_message: Option<SavedMessage>,
    room: EditRoom,
    side: MessageSide,
    context: &mut ExchangeContext,
) -> Result<(), EditError> {
    // Between calls, anything may change the fields.
    context.edited_names = EditedNames::Unknown;
    match done {
        Ok(()) => room.close(side, context),
        Err(_) => saved_message.into_iter().for_each(|saved_message| saved_message.restore(context)),
    }
    done
}

fn carry_out(
    edit: Edit,
    plans: &[EditPlan],
    side: MessageSide,
    room: &mut EditRoom,
    context: &mut ExchangeContext,
) -> Result<(), EditError> {
    match edit {
        Edit::Path(_) | Edit::Query(_) | Edit::Upstream(_) => {}
        Edit::Method(method) => context.request.method = method,
        Edit::Authority(host) => set_host(host, context)?,
        Edit::Note(name, value) => context.set_note(name, value),
        Edit::MaxBody(max) => context.limit_body(max),
        Edit::Body(mode) => context.bodies.ask(mode),
        Edit::Plan(plan_index) => {
            let plan = plans.get(plan_index as usize).ok_or(EditError::Plan(plan_index))?;
            carry_out_plan(plan, side, room, context)?;
        }
        Edit::Status(status) => {
            if let Some(response) = &mut context.response {
                response.status = status;
            }
        }
        Edit::Set(name, value) => set_field(&name, value, side, context)?,
        Edit::Append(name, value) => append(&name, value, edited(&name, side, context))?,
        Edit::Default(name, value) => set_default(&name, value, side, context)?,
        Edit::Remove(name) => drop(edited(&name, side, context).remove(name)),
        Edit::Rename(from, to) => rename(&from, &to, side, context)?,
    }
    Ok(())
}

/// Sets a field of a message to one value.
fn set_field(
    name: &HeaderName,
    value: HeaderValue,
    side: MessageSide,
    context: &mut ExchangeContext,
) -> Result<(), EditError> {
    if *name == header::HOST && side == MessageSide::Request {
        return set_host(value, context);
    }
    set(name, value, edited(name, side, context))
}

/// Sets a field of a message that has no line of it.
fn set_default(
    name: &HeaderName,
    value: HeaderValue,
    side: MessageSide,
    context: &mut ExchangeContext,
) -> Result<(), EditError> {
    let is_there = edited(name, side, context).contains_key(name);
    if is_there { Ok(()) } else { set_field(name, value, side, context) }
}

/// Sets `Host` without the port of the scheme, as that of a client is (RFC 9110 §4.2.3).
fn set_host(host: HeaderValue, context: &mut ExchangeContext) -> Result<(), EditError> {
    let port = if context.is_secure() { 443 } else { 80 };
    let shorter = match authority::normal(host.as_bytes(), Some(port)) {
        Ok(Cow::Owned(normal)) => HeaderValue::try_from(normal).ok(),
        // What is still to be refused is refused elsewhere.
        Ok(Cow::Borrowed(normal)) if normal.len() < host.len() => HeaderValue::from_bytes(normal).ok(),
        Ok(Cow::Borrowed(_)) | Err(_) => None,
    };
    set(header::HOST, shorter.unwrap_or(host), &mut context.request.headers)
}

/// Carries out a plan edit by edit. Each edit sees the values that the earlier ones have left.
fn carry_out_plan(
    plan: &EditPlan,
    side: MessageSide,
    room: &mut EditRoom,
    context: &mut ExchangeContext,
) -> Result<(), EditError> {
    plan.edits.iter().try_for_each(|edit| {
        let value = room.fill(edit, side, context)?;
        carry_out_planned(edit, value, side, context)
    })
}

fn carry_out_planned(
    edit: &PlannedEdit,
    value: Option<HeaderValue>,
    side: MessageSide,
    context: &mut ExchangeContext,
) -> Result<(), EditError> {
    match (edit, value) {
        (PlannedEdit::Set(name, _), Some(value)) => set_field(name, value, side, context),
        (PlannedEdit::Append(name, _), Some(value)) => append(name, value, edited(name, side, context)),
        (PlannedEdit::Default(name, _), Some(value)) => set_default(name, value, side, context),
        (PlannedEdit::Note(name, _), Some(value)) => {
            context.set_note(name.clone(), value);
            Ok(())
        }
        (PlannedEdit::MaxBody(max), _) => {
            context.limit_body(*max);
            Ok(())
        }
        (PlannedEdit::Body(mode), _) => {
            context.bodies.ask(*mode);
            Ok(())
        }
        (PlannedEdit::Rename(from, to), _) => rename(from, to, side, context),
        (PlannedEdit::Set(name, _), None) | (PlannedEdit::Remove(name), _) => {
            edited(name, side, context).remove(name);
            Ok(())
        }
        (PlannedEdit::Append(..) | PlannedEdit::Default(..) | PlannedEdit::Note(..), None) => Ok(()),
    }
}

fn fields(side: MessageSide, context: &mut ExchangeContext) -> &mut HeaderMap {
    match (side, &mut context.response) {
        (MessageSide::Response, Some(response)) => &mut response.headers,
        _ => &mut context.request.headers,
    }
}

/// Returns the fields of a message for an edit of one field, without the aliases of the field, which an origin would
/// confuse with it.
fn edited<'a>(name: &HeaderName, side: MessageSide, context: &'a mut ExchangeContext) -> &'a mut HeaderMap {
    if side == MessageSide::Request {
        if context.content != ContentLength::Absent {
            context.edited_fields.push(name.clone());
        }
        context.has_aliases |= !is_plain(name.as_str());
        if context.has_aliases {
            context.edited_names.remove_aliases(&mut context.request.headers, name, &context.work);
        }
    }
    fields(side, context)
}

fn set(name: impl IntoHeaderName, value: HeaderValue, fields: &mut HeaderMap) -> Result<(), EditError> {
    fields.try_insert(name, value).map(drop).map_err(full)
}

fn append(name: impl IntoHeaderName, value: HeaderValue, fields: &mut HeaderMap) -> Result<(), EditError> {
    fields.try_append(name, value).map(drop).map_err(full)
}

fn rename(
    from: &HeaderName,
    to: &HeaderName,
    side: MessageSide,
    context: &mut ExchangeContext,
) -> Result<(), EditError> {
    let fields = edited(from, side, context);
    let lines: SmallVec<[HeaderValue; 2]> = fields.get_all(from).iter().cloned().collect();
    if lines.is_empty() || from == to {
        return Ok(());
    }
    fields.remove(from);
    let fields = edited(to, side, context);
    fields.remove(to);
    lines.into_iter().try_for_each(|line| append(to, line, fields))
}

/// Returns the request target that the edits ask for, in its normal form; `None` if they don't change it.
fn target(edits: &[Edit], context: &ExchangeContext) -> Result<Option<http::Uri>, EditError> {
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
    let uri = &context.request.uri;
    let mut target = path.map_or(Ok(Cow::Borrowed(uri.path())), |path| normal_path(path))?.into_owned();
    let query = query.map_or_else(|| Ok(uri.query()), |query| query.as_deref().map(uri_text).transpose())?;
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    let malformed = "it is no path with a query";
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| EditError::Target(malformed))?);
    http::Uri::from_parts(parts).map(Some).map_err(|_| EditError::Target(malformed))
}

/// Returns the path that a plugin has set, in its normal form.
fn normal_path(path: &[u8]) -> Result<Cow<'_, str>, EditError> {
    let path = uri_text(path)?;
    if !path.starts_with('/') || path.contains('?') {
        return Err(EditError::Target("a path begins with `/`, and has no `?` in it"));
    }
    path::normal(path).map_err(|why| EditError::Target(why.reason()))
}
