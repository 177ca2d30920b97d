//! Fields that a plugin reads or removes, and that no message has: warnings, since another plugin may set such a field.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::Assembly;
use super::plugin_values::note_strings;
use super::unused::has_own_plugin;
use crate::config::diagnostic::{Doubt, Source};
use crate::config::load::ManifestFile;
use crate::context::ValueName;
use crate::context::edit_plan::{PlannedEdit, Template, TemplatePart};
use crate::plugin::configured::ConfiguredPlugin;
use crate::plugin::settings::Hook;
use crate::protocol::field_alias::is_ambiguous;

/// The request fields that a plugin reads, and that listeners remove.
pub(super) struct UnmetFields {
    source: Arc<Source>,
    use_span: Range<usize>,
    names: BTreeSet<String>,
}

impl Assembly<'_> {
    /// Warns of the patterns that a configured plugin has declared, which no message has. Notes its fields that listeners
    /// remove.
    pub(super) fn warn_of_unmet_names(
        &mut self,
        source: &Arc<Source>,
        use_span: &Range<usize>,
        config: &Value,
        configured: &ConfiguredPlugin,
    ) {
        // Each once, in the same order at each check.
        let (mut reasons, mut names) = (BTreeSet::new(), BTreeSet::new());
        let mut written = HashSet::new();
        note_strings(config, &mut String::new(), &mut |_, text| note_names(&text.to_ascii_lowercase(), &mut written));
        for name in read_fields(configured) {
            match name {
                ValueName::RequestField(name) | ValueName::ResponseField(name) if is_pattern(name.as_str()) => {
                    reasons.insert(stands_for_itself(name.as_str(), "reads"));
                }
                // Plugins such as `cache` read some fields in case they are there.
                ValueName::RequestField(name) if is_ambiguous(name.as_str()) || written.contains(name.as_str()) => {
                    names.insert(name.as_str().to_owned());
                }
                _ => {}
            }
        }
        for edit in configured.plans.iter().flat_map(|plan| &plan.edits) {
            match edit {
                PlannedEdit::Remove(name) if is_pattern(name.as_str()) => {
                    reasons.insert(stands_for_itself(name.as_str(), "removes"));
                }
                PlannedEdit::Rename(name, _) if is_pattern(name.as_str()) => {
                    reasons.insert(stands_for_itself(name.as_str(), "renames"));
                }
                _ => {}
            }
        }
        for reason in reasons {
            self.problems.warn(Doubt::Meaning, source, use_span.clone(), &reason);
        }
        names.retain(|name| self.reach.obstacle(name).is_some());
        if !names.is_empty() {
            self.unmet.push(UnmetFields { source: source.clone(), use_span: use_span.clone(), names });
        }
    }

    /// Warns of the fields that plugins read, that listeners remove, and that no plugin sets. A plugin of the user's own may
    /// set any field; an ambiguous one is warned of nevertheless, as it is more often a slip.
    pub(super) fn warn_of_unmet_fields(&mut self, files: &[ManifestFile]) {
        let plans = self.bindings.iter().flat_map(|configured| &configured.plans);
        let set: HashSet<&str> = plans.flat_map(|plan| &plan.edits).filter_map(set_field).collect();
        let has_own = has_own_plugin(files);
        for UnmetFields { source, use_span, names } in &self.unmet {
            for name in names {
                let may_be_set = set.contains(name.as_str()) || has_own && !is_ambiguous(name);
                if let Some(reason) = self.reach.obstacle(name).filter(|_| !may_be_set) {
                    self.problems.warn(Doubt::Meaning, source, use_span.clone(), &reason);
                }
            }
        }
    }
}

/// Notes the unambiguous names of fields that a text of a configuration, in lower case, may be, or may have as a value or in
/// a template.
fn note_names(text: &str, names: &mut HashSet<String>) {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    for rest in text.split("header.").skip(1) {
        let end = rest.bytes().position(|byte| !is_of_name(byte)).unwrap_or(rest.len());
        names.insert(rest[..end].into());
    }
    names.insert(text.into());
}

/// Returns the values that all hooks of a plugin get, and those in its edit plans.
fn read_fields(configured: &ConfiguredPlugin) -> impl Iterator<Item = &ValueName> {
    let heads = [&configured.request, &configured.response].into_iter().flat_map(|hook| match hook {
        Hook::Call(names) => names.as_slice(),
        Hook::Absent | Hook::Plan(_) => &[],
    });
    let bodies = [&configured.request_body, &configured.response_body].into_iter().flatten();
    let cache = configured.cache.iter().flat_map(|inputs| inputs.request.iter().chain(&inputs.response));
    let balancer = configured.balancer.iter().chain(&configured.balancer_key);
    let templates = configured.plans.iter().flat_map(|plan| &plan.edits).filter_map(template);
    let in_templates = templates.flat_map(|template| &template.0).filter_map(|part| match part {
        TemplatePart::Value(name) => Some(name),
        TemplatePart::Text(_) => None,
    });
    let bodies = bodies.flat_map(|inputs| &inputs.values);
    heads.chain(bodies).chain(cache).chain(balancer).chain(in_templates).chain(configured.observer.iter().flatten())
}

/// Returns the template of an edit; `None` if the edit has none.
fn template(edit: &PlannedEdit) -> Option<&Template> {
    match edit {
        PlannedEdit::Set(_, template)
        | PlannedEdit::Append(_, template)
        | PlannedEdit::Default(_, template)
        | PlannedEdit::Note(_, template) => Some(template),
        PlannedEdit::Remove(_) | PlannedEdit::Rename(..) | PlannedEdit::MaxBody(_) | PlannedEdit::Body(_) => None,
    }
}

/// Returns the field to which an edit gives a value; `None` if the edit gives none.
fn set_field(edit: &PlannedEdit) -> Option<&str> {
    match edit {
        PlannedEdit::Set(name, _)
        | PlannedEdit::Append(name, _)
        | PlannedEdit::Default(name, _)
        | PlannedEdit::Rename(_, name) => Some(name.as_str()),
        PlannedEdit::Remove(_) | PlannedEdit::Note(..) | PlannedEdit::MaxBody(_) | PlannedEdit::Body(_) => None,
    }
}

/// Whether the name of a field is meant as a pattern: a star is allowed in it (RFC 9110 §5.1), and no field has one.
fn is_pattern(name: &str) -> bool {
    name.contains('*')
}

fn stands_for_itself(name: &str, does: &str) -> String {
    format!("the plugin {does} the field `{name}`, which no message has: a `*` stands for itself; name each field")
}
