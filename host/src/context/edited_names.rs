//! The names of a request's fields while edits are made, by their normal forms: an edit of a field removes the fields that
//! an origin confuses with it, and must not compare its name with all others for that.

use std::collections::HashMap;

use http::header::{HeaderMap, HeaderName};
use smallvec::SmallVec;

use crate::context::host_work::HostWork;
use crate::protocol::field_alias::{self, NormalName};

/// The names that are known during a call's edits.
#[derive(Debug, Default)]
pub enum EditedNames {
    /// No edit has asked for aliases.
    #[default]
    Unknown,
    /// One edit has compared its name with all others. Most calls have no second one.
    Compared,
    /// The names of the request, with some that it doesn't have any more.
    Known(HashMap<NormalName, SmallVec<[HeaderName; 1]>>),
}

impl EditedNames {
    /// Removes the aliases of a field that is edited, but not the field.
    pub fn remove_aliases(&mut self, fields: &mut HeaderMap, of: &HeaderName, work: &HostWork) {
        match self {
            EditedNames::Unknown => {
                work.add_names(fields.keys_len(), of.as_str().len());
                field_alias::remove_aliases(fields, of);
                *self = EditedNames::Compared;
                return;
            }
            EditedNames::Compared => *self = EditedNames::of(fields, work),
            EditedNames::Known(_) => {}
        }
        let EditedNames::Known(names) = self else { return };
        work.add_names(1, of.as_str().len());
        let alike = names.entry(field_alias::normal(of.as_str())).or_default();
        alike.drain(..).filter(|name| name != of).for_each(|alias| drop(fields.remove(alias)));
        alike.push(of.clone());
    }

    fn of(fields: &HeaderMap, work: &HostWork) -> Self {
        let mut names: HashMap<NormalName, SmallVec<[HeaderName; 1]>> = HashMap::with_capacity(fields.keys_len());
        for name in fields.keys() {
            names.entry(field_alias::normal(name.as_str())).or_default().push(name.clone());
        }
        work.add_names(10 * fields.keys_len(), fields.keys().map(|name| name.as_str().len()).sum());
        EditedNames::Known(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn aliases_are_removed_as_by_comparison() {
        let edits = ["x-a", "x_b", "x.a", "x-c", "x-b", "x_a", "y-q", "x-a"];
        let value = HeaderValue::from_static("1");
        let (mut one, mut other) = (HeaderMap::new(), HeaderMap::new());
        for name in ["x_a", "x.a", "x-b", "x.b", "x_c", "y", "x-ab"] {
            one.append(name, value.clone());
            other.append(name, value.clone());
        }
        let (mut names, work) = (EditedNames::default(), HostWork::default());
        for name in edits.map(HeaderName::from_static) {
            names.remove_aliases(&mut one, &name, &work);
            field_alias::remove_aliases(&mut other, &name);
            one.append(&name, value.clone());
            other.append(&name, value.clone());
            assert_eq!(one, other, "after {name}");
        }
    }

    #[test]
    fn work_grows_with_the_edits_and_not_with_their_square() {
        let work_of = |edits: usize| {
            let (mut fields, mut names, work) = (HeaderMap::new(), EditedNames::default(), HostWork::default());
            for number in 0..edits {
                let name = HeaderName::try_from(format!("{}_{number:03}", "x".repeat(400))).unwrap();
                names.remove_aliases(&mut fields, &name, &work);
                fields.append(name, HeaderValue::from_static("1"));
            }
            work.nanoseconds()
        };
        assert!(work_of(240) < 3 * work_of(120), "{} {}", work_of(240), work_of(120));
    }
}
