//! Checks the description and the declarations of a plugin, and converts them into the host's form.

use std::time::Duration;

use http::HeaderName;

use super::bindings::lifecycle::exports::plugway::plugin::lifecycle::{Description, LookupPlan as LookupPlanSettings};
use super::bindings::types;
use super::call_error::shortened;
use super::host::value_name;
use super::time_share::DEFAULT_SHARE;
use crate::context::body_mode::{BodyMode, OverLimit};
use crate::context::bounds;
use crate::context::edit_check::{
    self, EditError, MessageSide, check_count, field_name, field_text, field_value, repeatable_name,
};
use crate::context::edit_plan::{EditPlan, PlannedEdit, Template, TemplatePart};
use crate::context::{ExchangeContext, ValueName};
use crate::protocol::content_decoder::DecodingBounds;
use crate::protocol::transformed_content::{CodedContent, ContentRules};

/// The inputs that a cache policy declared.
pub struct CacheInputs {
    /// Values for the request side.
    pub request: Vec<ValueName>,
    /// Values for the response side.
    pub response: Vec<ValueName>,
    /// The lookup of most requests, which needs no call.
    pub plan: Option<LookupPlan>,
    /// The name of the cache in `Cache-Status`; `None` if the field is not added.
    pub name: Option<String>,
    /// Whether `Cache-Status` has the key.
    pub tells_key: bool,
    /// The last line of the plugin's keys in the store, with the line break before it.
    pub owner: Vec<u8>,
}

/// The inputs of a body hook, as a plugin declared them.
pub struct BodyInputs {
    pub mode: BodyMode,
    /// The values that the hook gets when a body begins.
    pub values: Vec<ValueName>,
    pub ability: BodyAbility,
    pub rules: ContentRules,
}

/// The modes in which a plugin can take the bodies of one side.
#[derive(Clone, Copy, Debug)]
pub struct BodyAbility {
    /// The longest body that the plugin's memory holds, in bytes.
    pub memory: u64,
    /// Whether the plugin transforms bodies chunk by chunk.
    pub streams: bool,
    /// Whether the plugin decides about whole bodies.
    pub gathers: bool,
}

/// The default of `limits.bodies`. Each body holds an instance, and slow clients of one plugin must not use up the
/// instances that others need.
const DEFAULT_BODIES: u32 = 256;

/// Longer than most bodies pass, and no longer than a client has patience for.
const DEFAULT_BODY_WAIT: Duration = Duration::from_secs(1);

/// How many times a call's limit making and configuring an instance may take where no request waits: off the workers.
pub(super) const SETUP_TIME_FACTOR: u32 = 20;

impl CacheInputs {
    /// Returns the last line of the keys of a plugin that has this name in the manifest.
    pub fn owner_of(name: &str) -> Vec<u8> {
        // In one line, whatever the name is: no key that another plugin chooses can end so.
        format!("\nplugin:{}", name.escape_default()).into_bytes()
    }

    /// Turns a key of the policy into the one in the store, which is the plugin's own.
    pub fn own(&self, key: &mut Vec<u8>) {
        key.extend_from_slice(&self.owner);
    }

    /// Returns a key in the store as the policy knows it.
    pub fn policy_key<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        key.strip_suffix(&*self.owner).unwrap_or(key)
    }
}

/// The kind of a hook.
pub enum Hook {
    /// The plugin has no such hook.
    Absent,
    /// The host carries out this plan.
    Plan(usize),
    /// The hook is called with these values.
    Call(Vec<ValueName>),
}

/// The limits of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PluginLimits {
    /// Linear memory, in bytes.
    pub memory: usize,
    /// CPU time per call.
    pub cpu: Duration,
    /// The share of a worker's time, in percent; 100 is no limit.
    pub share: u8,
    /// Bodies that pass through the plugin at a time, over all workers.
    pub bodies: u32,
    /// The time for which one more body waits until another ends.
    pub body_wait: Duration,
    /// The limits of calls that may wait.
    pub waiting: WaitingLimits,
    /// The limits of content that is decoded for the plugin.
    pub decoding: DecodingLimits,
}

/// The limits of content that is decoded for a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodingLimits {
    /// The bounds of the content of one message.
    pub bounds: DecodingBounds,
    /// The bytes that the decoders of all messages hold, over all workers.
    pub memory: u64,
}

/// The limits of the calls of a plugin that may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingLimits {
    /// Calls under way at a time, over all workers.
    pub calls: u32,
    /// Calls that wait at a time until another call has ended.
    pub queued: u32,
    /// The longest time that a call is queued.
    pub queue_time: Duration,
    /// The longest time that a call takes, with all that it waits for.
    pub call_time: Duration,
    /// Requests of the plugin's own under way at a time, over all workers.
    pub callouts: u32,
}

/// The effect of a plugin's failure on the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The client gets 502.
    Fail,
    /// The exchange continues as if the plugin were absent.
    Skip,
    /// The client gets this status.
    Respond(http::StatusCode),
}

/// The lifetime of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// An instance serves one request of its worker after the other.
    Worker,
    /// An instance serves one call: nothing that it stores can reach another request.
    Request,
}

impl Default for PluginLimits {
    /// 16 MiB hold any filter that doesn't keep bodies; 50 ms is two and a half scheduler rounds of a busy machine.
    fn default() -> Self {
        PluginLimits {
            memory: 16 << 20,
            cpu: Duration::from_millis(50),
            share: DEFAULT_SHARE,
            bodies: DEFAULT_BODIES,
            body_wait: DEFAULT_BODY_WAIT,
            waiting: WaitingLimits::default(),
            decoding: DecodingLimits::default(),
        }
    }
}

impl Default for DecodingLimits {
    /// Text has ratios of up to 20, and logs or tables of up to 100; bombs begin at 1,000. The memory is that of 32 decoders
    /// with a window of 4 MiB, which encoders of brotli have by default.
    fn default() -> Self {
        DecodingLimits { bounds: DecodingBounds { ratio: 200, bytes: 256 << 20 }, memory: 128 << 20 }
    }
}

impl Default for WaitingLimits {
    /// At 20 ms a call, 256 at a time are 12,800 a second; a queue of four times as many is over in a tenth of a second.
    /// Ten seconds are longer than most clients wait. Each call may have one request under way, as most plugins do.
    fn default() -> Self {
        let (queue_time, call_time) = (Duration::from_secs(1), Duration::from_secs(10));
        WaitingLimits { calls: 256, queued: 1024, queue_time, call_time, callouts: 256 }
    }
}

impl PluginLimits {
    /// Returns the CPU time of a step in making an instance, off the workers. Parsing a large configuration, or tables
    /// for a thousand endpoints, may take longer than a request should.
    pub fn making_time(self) -> Duration {
        self.cpu * SETUP_TIME_FACTOR
    }
}

/// A lookup that needs no call.
pub struct LookupPlan {
    key: Vec<KeyPart>,
    /// Fields that a request may not have.
    fields: Vec<HeaderName>,
    /// Other values that a request may not have.
    values: Vec<ValueName>,
}

/// The room for a key, in bytes: most have less with their plugin's line, and are not copied as they grow.
const USUAL_KEY: usize = 128;

/// A piece of a key.
enum KeyPart {
    /// A literal text.
    Text(Vec<u8>),
    /// A value; an absent value adds nothing.
    Value(ValueName),
}

impl LookupPlan {
    /// Returns the cache key of a request; `None` if the plan leaves the request to the plugin, because of a field or
    /// value that the plan excepts.
    pub fn key(&self, context: &ExchangeContext) -> Option<Vec<u8>> {
        // What an origin may take for one of the fields is a matter for the plugin.
        if context.has_aliases {
            return None;
        }
        let fields = &context.request.headers;
        // Most requests have none of them, which one look at the names they do have nearly always tells.
        let present = fields.keys().fold(0, |present, name| present | trace(name));
        let has = |name: &HeaderName| present & trace(name) != 0 && fields.contains_key(name);
        if self.fields.iter().any(has) || self.values.iter().any(|name| context.value_with_aliases(name).is_some()) {
            return None;
        }
        let mut key = Vec::with_capacity(USUAL_KEY);
        for part in &self.key {
            if key.len() > bounds::KEY {
                break;
            }
            match part {
                KeyPart::Text(text) => key.extend_from_slice(text),
                KeyPart::Value(ValueName::Uri) => context.put_uri(&mut key),
                KeyPart::Value(name) => {
                    let value = context.value_with_aliases(name);
                    key.extend_from_slice(value.as_ref().map_or(b"", |value| value.bytes()))
                }
            }
        }
        Some(key)
    }
}

/// Returns one of 64 bits, chosen by the length and the last byte of a name.
fn trace(name: &HeaderName) -> u64 {
    let name = name.as_str().as_bytes();
    1 << ((name.len() * 7 + usize::from(name.last().copied().unwrap_or(0))) % 64)
}

/// Returns the description of a plugin; an error if a text is too long, or the schema has too many levels or values.
pub fn description(description: Description) -> Result<Description, EditError> {
    let texts = [
        (&description.name, "bytes of its name"),
        (&description.version, "bytes of its version"),
        (&description.summary, "bytes of its summary"),
    ];
    texts.into_iter().try_for_each(|(text, what)| check_count(bounds::NAME, text.len(), what))?;
    if let Some(schema) = &description.config_schema {
        check_count(bounds::SCHEMA, schema.len(), "bytes of a configuration schema")?;
        let JsonShape { levels, values } = JsonShape::of(schema);
        check_count(bounds::SCHEMA_DEPTH, levels, "levels of a configuration schema")?;
        check_count(bounds::SCHEMA_VALUES, values, "values of a configuration schema")?;
    }
    Ok(description)
}

/// The size of a JSON text once it is parsed, which is known before.
#[derive(Debug, PartialEq, Eq)]
struct JsonShape {
    /// The number of arrays and objects in each other.
    levels: usize,
    /// The number of values, of which an array or object is one.
    values: usize,
}

impl JsonShape {
    fn of(json: &str) -> Self {
        let (mut depth, mut levels, mut values) = (0_usize, 0, 1);
        let (mut is_text, mut is_escaped, mut is_opened) = (false, false, false);
        for byte in json.bytes() {
            let is_end = matches!(byte, b'}' | b']');
            // The first item of an array or object; a comma stands before each other one.
            if is_opened && !byte.is_ascii_whitespace() {
                values += usize::from(!is_end);
                is_opened = false;
            }
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = is_text,
                b'"' => is_text = !is_text,
                b',' if !is_text => values += 1,
                b'{' | b'[' if !is_text => {
                    depth += 1;
                    is_opened = true;
                }
                _ if is_end && !is_text => depth = depth.saturating_sub(1),
                _ => {}
            }
            levels = levels.max(depth);
        }
        JsonShape { levels, values }
    }
}

/// The errors that a plugin reports of its configuration, truncated for a message.
#[derive(Debug, Default)]
pub struct ConfigErrors {
    /// The JSON pointers and messages that are shown.
    pub shown: Vec<(String, String)>,
    /// The number of errors that are left out.
    pub more: usize,
}

/// Returns the errors that a plugin reports, at most [`bounds::CONFIG_ERRORS`] of them.
pub fn config_errors(errors: Vec<(String, String)>) -> ConfigErrors {
    let more = errors.len().saturating_sub(bounds::CONFIG_ERRORS);
    let cut = |(path, message)| (shortened(path, bounds::NAME), shortened(message, bounds::REASON));
    ConfigErrors { shown: errors.into_iter().take(bounds::CONFIG_ERRORS).map(cut).collect(), more }
}

impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: Vec<&str> = self.shown.iter().map(|(_, message)| message.as_str()).collect();
        f.write_str(&shown.join("; "))?;
        if self.more > 0 { write!(f, "; and {} more", self.more) } else { Ok(()) }
    }
}

/// Returns the values of a hook.
pub fn names(values: Vec<types::ValueName>) -> Result<Vec<ValueName>, EditError> {
    check_count(bounds::VALUES, values.len(), "values of a hook")?;
    values.into_iter().map(value_name).collect()
}

/// Returns the inputs of a body hook, which receives bodies as a stream unless its plugin declares another way.
pub fn body_inputs(
    mode: Option<types::BodyMode>,
    values: Vec<types::ValueName>,
    rules: Option<types::ContentRules>,
    ability: BodyAbility,
) -> Result<BodyInputs, EditError> {
    let mode = body_mode(mode.unwrap_or(types::BodyMode::Streamed), Some(ability))?;
    Ok(BodyInputs { mode, values: names(values)?, ability, rules: content_rules(rules) })
}

/// Returns the rules for content that a plugin departs from.
fn content_rules(rules: Option<types::ContentRules>) -> ContentRules {
    rules.map_or_else(ContentRules::default, |rules| {
        let types::ContentRules { ignore_no_transform, skip_parts, coded } = rules;
        let coded = match coded {
            types::CodedContent::Reject => CodedContent::Reject,
            types::CodedContent::Decode => CodedContent::Decode,
            types::CodedContent::AsIs => CodedContent::AsIs,
        };
        ContentRules { ignores_no_transform: ignore_no_transform, skips_parts: skip_parts, coded }
    })
}

/// Returns the edit plans of a plugin. A plan may be used for either message, so `ability` is that of either body hook.
pub fn plans(plans: Vec<Vec<types::PlannedEdit>>, ability: Option<BodyAbility>) -> Result<Vec<EditPlan>, EditError> {
    check_count(bounds::PLANS, plans.len(), "plans")?;
    let mut declared = 0;
    let plan = |edits: Vec<types::PlannedEdit>| {
        check_count(bounds::EDITS, edits.len(), "edits of a plan")?;
        let plan = EditPlan::new(edits.into_iter().map(|edit| planned(edit, ability)).collect::<Result<_, _>>()?)?;
        declared += plan.declared_bytes();
        check_count(bounds::DECLARED, declared, "bytes of plans, with 64 for each edit and part of a template")?;
        Ok(plan)
    };
    plans.into_iter().map(plan).collect()
}

pub fn lookup_plan(plan: LookupPlanSettings) -> Result<LookupPlan, EditError> {
    check_count(bounds::KEY_PARTS, plan.key.len(), "parts of a key")?;
    check_count(bounds::VALUES, plan.unless.len(), "exceptions of a lookup plan")?;
    let (mut fields, mut values) = (Vec::new(), Vec::new());
    for name in plan.unless {
        match value_name(name)? {
            ValueName::RequestField(name) => fields.push(name),
            name => values.push(name),
        }
    }
    let part = |part| match part {
        types::TemplatePart::Text(text) => {
            check_count(bounds::KEY, text.len(), "bytes of a key").map(|()| KeyPart::Text(text))
        }
        types::TemplatePart::Value(name) => value_name(name).map(KeyPart::Value),
    };
    Ok(LookupPlan { key: plan.key.into_iter().map(part).collect::<Result<_, _>>()?, fields, values })
}

/// Returns a name that is a token (RFC 9110 §5.6.2), as the names of fields are; an error if it is none.
pub fn token(name: String) -> Result<String, EditError> {
    field_name(&name).map(|_| name)
}

pub fn hook(
    plans: &[EditPlan],
    exported: bool,
    values: Vec<types::ValueName>,
    plan: Option<u32>,
) -> Result<Hook, EditError> {
    match plan {
        _ if !exported => Ok(Hook::Absent),
        Some(plan_index) => match plans.get(plan_index as usize) {
            Some(plan) if plan.edits.is_empty() => Ok(Hook::Absent),
            Some(_) => Ok(Hook::Plan(plan_index as usize)),
            None => Err(EditError::Plan(plan_index)),
        },
        None => names(values).map(Hook::Call),
    }
}

/// Rejects a plan for all responses that has an edit of requests.
pub fn check_response_plan(plans: &[EditPlan], plan: Option<u32>) -> Result<(), EditError> {
    match plan.and_then(|plan_index| plans.get(plan_index as usize)) {
        Some(plan) => plan.cost.check_side(MessageSide::Response),
        None => Ok(()),
    }
}

fn planned(edit: types::PlannedEdit, ability: Option<BodyAbility>) -> Result<PlannedEdit, EditError> {
    use types::PlannedEdit as Wit;
    Ok(match edit {
        Wit::SetField((name, value)) => PlannedEdit::Set(field_name(&name)?, template(&name, value)?),
        Wit::AppendField((name, value)) => PlannedEdit::Append(repeatable_name(&name)?, template(&name, value)?),
        Wit::DefaultField((name, value)) => PlannedEdit::Default(field_name(&name)?, template(&name, value)?),
        Wit::RemoveField(name) => PlannedEdit::Remove(field_name(&name)?),
        Wit::RenameField((from, to)) => PlannedEdit::Rename(field_name(&from)?, repeatable_name(&to)?),
        Wit::SetNote((name, value)) => {
            edit_check::name(&name)?;
            let value = template(&name, value)?;
            PlannedEdit::Note(name, value)
        }
        Wit::MaxBody(max) => PlannedEdit::MaxBody(max),
        Wit::Body(mode) => PlannedEdit::Body(body_mode(mode, ability)?),
    })
}

fn template(name: &str, parts: Vec<types::TemplatePart>) -> Result<Template, EditError> {
    check_count(bounds::TEMPLATE_PARTS, parts.len(), "parts of a template")?;
    if let [types::TemplatePart::Text(constant)] = parts.as_slice() {
        return Ok(Template(vec![TemplatePart::Text(field_value(name, constant)?)]));
    }
    let mut text = 0;
    let part = |part| match part {
        types::TemplatePart::Text(bytes) => {
            text += bytes.len();
            check_count(bounds::VALUE, text, "bytes of text in a template")?;
            field_text(name, &bytes).map(TemplatePart::Text)
        }
        types::TemplatePart::Value(name) => value_name(name).map(TemplatePart::Value),
    };
    parts.into_iter().map(part).collect::<Result<_, _>>().map(Template)
}

/// Returns a mode of bodies; an error if the plugin can't take bodies so. `ability` is `None` if the plugin has no body hook
/// for the message.
pub fn body_mode(mode: types::BodyMode, ability: Option<BodyAbility>) -> Result<BodyMode, EditError> {
    let ability = ability.ok_or(EditError::NoBodyHook)?;
    Ok(match mode {
        types::BodyMode::Skipped => BodyMode::Skipped,
        types::BodyMode::Streamed if ability.streams => BodyMode::Streamed,
        types::BodyMode::Streamed => return Err(EditError::OnlyWhole),
        // A body that its memory can't hold would only be gathered here for nothing.
        types::BodyMode::Buffered(types::BufferLimit { bytes, .. }) if bytes > ability.memory => {
            return Err(EditError::Buffer(bytes));
        }
        types::BodyMode::Buffered(types::BufferLimit { bytes, over_limit }) => {
            let over_limit = match over_limit {
                types::OverLimit::Reject => OverLimit::Reject,
                types::OverLimit::PassThrough => OverLimit::PassThrough,
            };
            BodyMode::Buffered(bytes, over_limit)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_a_text_is_known_before_it_is_parsed() {
        for (json, levels, values) in [
            ("{}", 1, 1),
            ("[ ]", 1, 1),
            ("[[1],[{}]]", 3, 5),
            (r#"{"[[,[":"]{\"{{"}"#, 1, 2),
            (r#"{ "a": [ true, "b" ], "c": {} }"#, 2, 5),
            ("1", 0, 1),
            ("]]]", 0, 1),
        ] {
            assert_eq!(JsonShape::of(json), JsonShape { levels, values }, "{json}");
        }
        assert_eq!(JsonShape::of(&"[".repeat(100_000)).levels, 100_000);
    }

    #[test]
    fn a_part_of_many_errors_is_shown_and_the_rest_is_counted() {
        let ConfigErrors { shown, more } = config_errors(vec![("/a".into(), "x".repeat(10_000)); 250]);
        assert_eq!((shown.len(), more), (bounds::CONFIG_ERRORS, 150));
        assert_eq!(shown[0].1.len(), bounds::REASON + "…".len());
    }
}
