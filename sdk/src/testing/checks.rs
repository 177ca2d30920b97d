//! The limits of the host, enforced in native tests with the same error texts.

use super::{Request, planned, rules};
use crate::bindings::types::{PlannedEdit, TemplatePart};
use crate::{BypassReason, Edit, Lookup, Part, Response, Setup, StoreDecision, bounds};

/// The cost of the edits of one call, as the host counts it before it applies them.
#[derive(Default)]
pub struct Room {
    edits: usize,
    fields: usize,
    bytes: usize,
    renames: usize,
    longest_rename: usize,
    notes: usize,
    note_bytes: usize,
    values: usize,
    max_bytes: usize,
}

/// Rejects a declaration that the host would reject.
pub fn setup(setup: &Setup) -> Result<(), String> {
    let hooks = [
        &setup.request,
        &setup.response,
        &setup.request_body,
        &setup.response_body,
        &setup.balancer,
        &setup.observer,
        &setup.cache_request,
        &setup.cache_response,
    ];
    hooks.iter().try_for_each(|needs| at_most(bounds::VALUES, needs.names().len(), "values of a hook"))?;
    let plans = setup.plans();
    at_most(bounds::PLANS, plans.len(), "plans")?;
    plans.iter().try_for_each(|edits| plan(edits))?;
    let declared = plans.iter().flat_map(|plan| plan.iter()).map(declared).sum();
    at_most(bounds::DECLARED, declared, "bytes of plans, with 64 for each edit and part of a template")?;
    let Some(plan) = &setup.lookup_plan else { return Ok(()) };
    at_most(bounds::KEY_PARTS, plan.key.len(), "parts of a key")?;
    at_most(bounds::VALUES, plan.unless.len(), "exceptions of a lookup plan")?;
    let text = |part: &Part| if let Part::Text(text) = part { text.len() } else { 0 };
    plan.key.iter().try_for_each(|part| at_most(bounds::KEY, text(part), "bytes of a key"))
}

/// Returns a response in the form in which the host sends it. An error says why the host rejects it.
pub fn response(response: Response) -> Result<Response, String> {
    at_most(bounds::RESPONSE_BODY, response.body.len(), "bytes of a response's body")?;
    at_most(bounds::FIELDS, response.fields.len(), "fields")?;
    let bytes = response.fields.iter().map(|(name, value)| field(name, value.len())).sum();
    at_most(bounds::FIELD_BYTES, bytes, "bytes of fields")?;
    rules::response(response)
}

/// Returns a lookup as the host handles it: a key that is too long bypasses the cache.
pub fn lookup(lookup: Lookup) -> Lookup {
    match lookup {
        Lookup::UseCache(cache_key) if cache_key.key.len() > bounds::KEY => {
            Lookup::Bypass(BypassReason::Other("key-too-long".into()))
        }
        lookup => lookup,
    }
}

/// Rejects lists of a cache policy that the host would reject.
pub fn decision(decision: &StoreDecision) -> Result<(), String> {
    let StoreDecision::Store(storage) = decision else { return Ok(()) };
    let lists = [
        (&storage.tags, "tags of a stored response"),
        (&storage.vary, "names of `vary`"),
        (&storage.drop_fields, "fields to drop"),
    ];
    lists.into_iter().try_for_each(|(names, what)| {
        at_most(bounds::CACHE_LIST, names.len(), what)?;
        names.iter().try_for_each(|name| at_most(bounds::NAME, name.len(), "bytes of a name"))
    })
}

/// Rejects keys that the host would reject.
pub fn keys(keys: &[Vec<u8>]) -> Result<(), String> {
    at_most(bounds::CACHE_LIST, keys.len(), "keys that a change concerns")?;
    keys.iter().try_for_each(|key| at_most(bounds::KEY, key.len(), "bytes of a key"))
}

/// Panics if the host would reject the result of the plugin.
pub fn accepted(checked: Result<(), String>) {
    if let Err(refused) = checked {
        panic!("the host refuses the call: {refused}");
    }
}

fn plan(plan: &[PlannedEdit]) -> Result<(), String> {
    at_most(bounds::EDITS, plan.len(), "edits of a plan")?;
    let values = plan.iter().flat_map(template).filter(|part| matches!(part, TemplatePart::Value(_))).count();
    at_most(bounds::TEMPLATE_VALUES, values, "values in the templates of a plan")?;
    plan.iter().try_for_each(|edit| {
        names(edit).iter().try_for_each(|name| at_most(bounds::NAME, name.len(), "bytes of a name"))?;
        at_most(bounds::TEMPLATE_PARTS, template(edit).len(), "parts of a template")?;
        at_most(bounds::VALUE, template(edit).iter().map(text).sum(), "bytes of text in a template")?;
        rules::planned(edit).map_err(|refused| format!("what can't be: {refused}"))
    })
}

fn declared(edit: &PlannedEdit) -> usize {
    let parts = template(edit).iter().map(|part| bounds::DECLARED_ITEM + text(part));
    bounds::DECLARED_ITEM + names(edit).iter().map(|name| name.len()).sum::<usize>() + parts.sum::<usize>()
}

fn names(edit: &PlannedEdit) -> Vec<&str> {
    match edit {
        PlannedEdit::SetField((name, _))
        | PlannedEdit::AppendField((name, _))
        | PlannedEdit::DefaultField((name, _))
        | PlannedEdit::SetNote((name, _))
        | PlannedEdit::RemoveField(name) => vec![name],
        PlannedEdit::RenameField((from, to)) => vec![from, to],
        PlannedEdit::MaxBody(_) | PlannedEdit::Body(_) => Vec::new(),
    }
}

fn template(edit: &PlannedEdit) -> &[TemplatePart] {
    match edit {
        PlannedEdit::SetField((_, template))
        | PlannedEdit::AppendField((_, template))
        | PlannedEdit::DefaultField((_, template))
        | PlannedEdit::SetNote((_, template)) => template,
        PlannedEdit::RemoveField(_) | PlannedEdit::RenameField(_) | PlannedEdit::MaxBody(_) | PlannedEdit::Body(_) => {
            &[]
        }
    }
}

fn text(part: &TemplatePart) -> usize {
    if let TemplatePart::Text(text) = part { text.len() } else { 0 }
}

fn field(name: &str, value: usize) -> usize {
    name.len() + value + bounds::FIELD_OVERHEAD
}

impl Room {
    /// Returns the cost of edits to a request.
    pub fn for_request(edits: &[Edit], setup: &Setup, request: &Request) -> Result<Room, String> {
        let room = Room { max_bytes: bounds::ADDED_TO_REQUEST, ..Room::default() };
        room.with(edits, setup, request.fields.len(), request)
    }

    /// Returns the cost of edits to a response.
    pub fn for_response(edits: &[Edit], setup: &Setup, request: &Request, response: &Response) -> Result<Room, String> {
        let limits_body = |edit: &Edit| match edit {
            Edit::Plan(plan) => setup.planned(*plan).iter().any(|edit| matches!(edit, PlannedEdit::MaxBody(_))),
            edit => matches!(edit, Edit::MaxBody(_)),
        };
        if edits.iter().any(limits_body) {
            return Err("a request's limit of content can't be changed here".into());
        }
        let room = Room { max_bytes: bounds::ADDED_TO_RESPONSE, ..Room::default() };
        room.with(edits, setup, response.fields.len(), request)
    }

    fn with(mut self, edits: &[Edit], setup: &Setup, lines: usize, request: &Request) -> Result<Room, String> {
        for edit in edits {
            match edit {
                Edit::Plan(plan) => setup.planned(*plan).iter().for_each(|edit| self.take_planned(edit)),
                edit => self.take(edit),
            }
        }
        at_most(bounds::EDITS, self.edits, "edits of a call, with those of its plans")?;
        at_most(bounds::TEMPLATE_VALUES, self.values, "values in the templates of a call")?;
        at_most(bounds::NOTES, request.notes.len() + self.notes, "notes of an exchange")?;
        at_most(bounds::ADDED_FIELDS, self.fields, "fields that plugins add to a message")?;
        let lines = lines + self.fields;
        at_most(bounds::MOVED_LINES, lines * self.renames, "field lines that the renames of a call may move")?;
        self.bytes += if self.renames == 0 { 0 } else { lines * self.longest_rename };
        self.check()?;
        Ok(self)
    }

    /// Returns the edit that results from an edit of a plan; `None` if the edit does nothing.
    pub fn fill(
        &mut self,
        edit: &PlannedEdit,
        request: &Request,
        response: Option<&Response>,
    ) -> Result<Option<Edit>, String> {
        let edit = planned(edit, request, response);
        match &edit {
            Some(Edit::SetField((_, value)) | Edit::AppendField((_, value)) | Edit::DefaultField((_, value))) => {
                at_most(bounds::VALUE, value.len(), "bytes of a filled template")?;
                self.bytes += value.len();
            }
            Some(Edit::SetNote((_, value))) => {
                at_most(bounds::VALUE, value.len(), "bytes of a filled template")?;
                self.note_bytes += value.len();
            }
            _ => {}
        }
        self.check()?;
        edit.map(|edit| rules::filled(edit, request, response)).transpose()
    }

    fn take_planned(&mut self, edit: &PlannedEdit) {
        self.edits += 1;
        self.values += template(edit).iter().filter(|part| matches!(part, TemplatePart::Value(_))).count();
        match edit {
            PlannedEdit::SetField((name, _))
            | PlannedEdit::AppendField((name, _))
            | PlannedEdit::DefaultField((name, _)) => self.take_field(name, 0),
            PlannedEdit::SetNote((name, _)) => self.take_note(name, 0),
            PlannedEdit::RenameField((_, to)) => self.take_rename(to),
            PlannedEdit::RemoveField(_) | PlannedEdit::MaxBody(_) | PlannedEdit::Body(_) => {}
        }
    }

    fn take(&mut self, edit: &Edit) {
        self.edits += 1;
        match edit {
            Edit::SetField((name, value)) | Edit::AppendField((name, value)) | Edit::DefaultField((name, value)) => {
                self.take_field(name, value.len());
            }
            Edit::SetNote((name, value)) => self.take_note(name, value.len()),
            Edit::RenameField((_, to)) => self.take_rename(to),
            Edit::SetAuthority(text) => self.take_field("host", text.len()),
            Edit::RemoveField(_)
            | Edit::SetMethod(_)
            | Edit::SetUpstream(_)
            | Edit::SetPath(_)
            | Edit::SetQuery(_)
            | Edit::SetStatus(_)
            | Edit::Plan(_)
            | Edit::MaxBody(_)
            | Edit::Body(_) => {}
        }
    }

    fn take_field(&mut self, name: &str, value: usize) {
        (self.fields, self.bytes) = (self.fields + 1, self.bytes + field(name, value));
    }

    fn take_note(&mut self, name: &str, value: usize) {
        (self.notes, self.note_bytes) = (self.notes + 1, self.note_bytes + name.len() + value);
    }

    fn take_rename(&mut self, to: &str) {
        (self.renames, self.longest_rename) = (self.renames + 1, self.longest_rename.max(to.len()));
    }

    fn check(&self) -> Result<(), String> {
        at_most(self.max_bytes, self.bytes, "bytes that plugins add to the head of a message")?;
        at_most(bounds::NOTE_BYTES, self.note_bytes, "bytes of notes")
    }
}

/// Rejects a number above the maximum.
pub fn at_most(max: usize, found: usize, what: &str) -> Result<(), String> {
    if found > max { Err(format!("{found} {what}; at most {max} are allowed")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Harness, Outcome, Request};
    use crate::{ConfigError, EditPlan, Part, Plugin, RequestFilter, Setup, ValueName, Values, Verdict, bounds};

    struct Greedy;

    impl Plugin for Greedy {
        /// The numbers of plans, of edits in each plan, and of values in the template of each edit.
        type Config = (usize, usize, usize);

        fn new(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError> {
            let (plans, edits, values) = config;
            for _ in 0..plans {
                let template = || (0..values).map(|_| Part::Value(ValueName::Path)).collect();
                let plan = (0..edits).fold(EditPlan::default(), |plan, _| plan.append_field("x-a", template()));
                setup.request_plan = Some(setup.plan(plan));
            }
            Ok(Greedy)
        }
    }

    impl RequestFilter for Greedy {
        fn on_request(&mut self, _: &Values) -> Verdict {
            Verdict::proceed()
        }
    }

    fn declared(plans: usize, edits: usize, values: usize) -> Result<Harness<Greedy>, String> {
        Harness::new(serde_json::json!([plans, edits, values])).map_err(|error| error.message)
    }

    #[test]
    fn declarations_have_the_bounds_of_the_host() {
        assert!(declared(bounds::PLANS, 1, 1).is_ok() && declared(1, bounds::EDITS, 1).is_ok());
        for (plans, edits, values, why) in [
            (257, 1, 1, "the plugin declared 257 plans; at most 256 are allowed"),
            (1, 257, 1, "the plugin declared 257 edits of a plan; at most 256 are allowed"),
            (1, 1, 65, "the plugin declared 65 parts of a template; at most 64 are allowed"),
            (1, 5, 60, "the plugin declared 300 values in the templates of a plan; at most 256 are allowed"),
        ] {
            assert_eq!(declared(plans, edits, values).err().as_deref(), Some(why));
        }
        assert!(declared(200, 100, 1).is_err_and(|why| why.contains("bytes of plans")));
    }

    #[test]
    fn a_call_has_the_bounds_of_the_host() {
        let Ok(mut greedy) = declared(1, 250, 1) else { panic!("refused") };
        assert!(greedy.request(Request::get("/a")).passed().is_some());
        let long = format!("/{}", "a".repeat(1000));
        let Outcome::Failed(why) = greedy.request(Request::get(&long)) else { panic!("it passed") };
        assert!(why.contains("at most 131072 are allowed"), "{why}");
    }
}
