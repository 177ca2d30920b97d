//! Fields that a plugin reads or removes, and that no message has: warnings, since another plugin may set such a field.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::Assembly;
use crate::config::diagnostic::{Doubt, Source};
use crate::context::ValueName;
use crate::context::edit_plan::PlannedEdit;
use crate::plugin::configured::ConfiguredPlugin;
use crate::plugin::settings::Hook;
use crate::protocol::field_alias::is_ambiguous;

impl Assembly<'_> {
    /// Warns of the fields that a configured plugin has declared, and that no message has.
    pub(super) fn warn_of_unmet_names(
        &mut self,
        source: &Arc<Source>,
        use_span: &Range<usize>,
        configured: &ConfiguredPlugin,
    ) {
        // Each once, in the same order at each check.
        let mut reasons = BTreeSet::new();
        for name in read_fields(configured) {
            match name {
                ValueName::RequestField(name) | ValueName::ResponseField(name) if is_pattern(name.as_str()) => {
                    reasons.insert(stands_for_itself(name.as_str(), "reads"));
                }
                ValueName::RequestField(name) if is_ambiguous(name.as_str()) => {
                    reasons.extend(self.reach.obstacle(name.as_str()));
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
    }
}

/// Returns the values that the hooks of a plugin for heads and its observer get.
fn read_fields(configured: &ConfiguredPlugin) -> impl Iterator<Item = &ValueName> {
    let heads = [&configured.request, &configured.response].into_iter().flat_map(|hook| match hook {
        Hook::Call(names) => names.as_slice(),
        Hook::Absent | Hook::Plan(_) => &[],
    });
    heads.chain(configured.observer.iter().flatten())
}

/// Whether the name of a field is meant as a pattern: a star is allowed in it (RFC 9110 §5.1), and no field has one.
fn is_pattern(name: &str) -> bool {
    name.contains('*')
}

fn stands_for_itself(name: &str, does: &str) -> String {
    format!("the plugin {does} the field `{name}`, which no message has: a `*` stands for itself; name each field")
}
