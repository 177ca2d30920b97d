//! Tables and lists in place of each other. The parser of types would read a list as the keys of a table in their order,
//! or say of a table what it wants of a key in it.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A step from a table or list to an item in it.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Key(String),
    At(usize),
}

/// A table where a list is expected, or a list where a table is expected.
pub struct Misshape {
    pub way: Vec<Step>,
    pub span: Range<usize>,
    pub message: String,
}

/// Keys that are a list of tables at the top of a manifest.
const LISTS: [&str; 2] = ["listener", "route"];
/// Keys that are tables of named tables, each with a key of the named table, and a name as an example.
const NAMED: [(&str, &[&str], &str); 2] =
    [("upstream", &["endpoints"], "app"), ("plugin", &["use", "config"], "guard")];
/// Keys that are one table at any position.
const TABLES: [&str; 15] = [
    "access-log",
    "admin",
    "buffers",
    "cache",
    "certificate",
    "disk",
    "grants",
    "health",
    "limits",
    "load",
    "resolver",
    "respond",
    "rewrite",
    "shared",
    "tls",
];
/// A key that is one table in a route.
const ROUTE_TABLE: &str = "files";
/// Keys whose values are not the manifest's to judge.
const FREE: [&str; 3] = ["config", "fields", "query"];

/// Finds the misshaped values of a manifest, the last one first, so that they can be removed one after the other.
pub fn misshapes(document: &DeTable) -> Vec<Misshape> {
    let mut misshapes = Vec::new();
    for (key, value) in document {
        let (name, way) = (&**key.get_ref(), vec![Step::Key(key.get_ref().to_string())]);
        let mut report =
            |span: Range<usize>, message: String| misshapes.push(Misshape { way: way.clone(), span, message });
        if let (true, DeValue::Table(_)) = (LISTS.contains(&name), value.get_ref()) {
            report(
                key.span(),
                format!("single table: found `[{name}]`; expected a list of tables, written `[[{name}]]`"),
            );
            continue;
        }
        if let Some((_, own, example)) = NAMED.iter().find(|(known, ..)| *known == name) {
            match value.get_ref() {
                DeValue::Array(_) => {
                    let message = format!("table without a name: found `[[{name}]]`; expected `[{name}.{example}]`");
                    report(key.span(), message);
                    continue;
                }
                DeValue::Table(table) => {
                    let stray = table.keys().find(|key| own.contains(&&**key.get_ref()));
                    if let Some(stray) =
                        stray.filter(|stray| !matches!(table[&**stray.get_ref()].get_ref(), DeValue::Table(_)))
                    {
                        let message = format!(
                            "table without a name: found `{}` in `[{name}]`; expected it in `[{name}.{example}]`",
                            stray.get_ref()
                        );
                        report(stray.span(), message);
                        continue;
                    }
                    for (entry, value) in table.iter().filter(|(_, value)| matches!(value.get_ref(), DeValue::Array(_)))
                    {
                        let message = format!(
                            "list in place of a table: found `[[{name}.{0}]]`; expected `[{name}.{0}]`",
                            entry.get_ref()
                        );
                        let way = vec![Step::Key(name.into()), Step::Key(entry.get_ref().to_string())];
                        let span = if entry.span().is_empty() { value.span() } else { entry.span() };
                        misshapes.push(Misshape { way, span, message });
                    }
                }
                _ => {}
            }
        }
        below(key, value, &way, &mut misshapes);
    }
    misshapes.reverse();
    misshapes
}

fn below(
    key: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Spanned<DeValue>,
    way: &[Step],
    misshapes: &mut Vec<Misshape>,
) {
    let name = &**key.get_ref();
    if FREE.contains(&name) {
        return;
    }
    let is_table = TABLES.contains(&name) || name == ROUTE_TABLE && is_in_route(way);
    match value.get_ref() {
        DeValue::Array(_) if is_table => {
            let message = format!("list in place of a table: `{name}`; expected a table, such as `{name} = {{ … }}`");
            misshapes.push(Misshape { way: way.to_vec(), span: value.span(), message });
        }
        DeValue::Array(list) => {
            // Without its items, such a list would be empty, which may be one more mistake.
            let has_no_other = list.iter().all(|item| matches!(item.get_ref(), DeValue::Array(_)));
            for (index, item) in list.iter().enumerate() {
                let mut to_item = way.to_vec();
                to_item.push(Step::At(index));
                match item.get_ref() {
                    DeValue::Table(table) => in_table(table, &to_item, misshapes),
                    DeValue::Array(_) => {
                        let way = if has_no_other { way.to_vec() } else { to_item };
                        let message = format!(
                            "list in a list: found one in `{name}`; expected its items without further brackets"
                        );
                        misshapes.push(Misshape { way, span: item.span(), message });
                    }
                    _ => {}
                }
            }
        }
        DeValue::Table(table) => in_table(table, way, misshapes),
        _ => {}
    }
}

fn is_in_route(way: &[Step]) -> bool {
    matches!(way, [Step::Key(list), Step::At(_), Step::Key(_)] if list == "route")
}

fn in_table(table: &DeTable, way: &[Step], misshapes: &mut Vec<Misshape>) {
    for (key, value) in table {
        let mut way = way.to_vec();
        way.push(Step::Key(key.get_ref().to_string()));
        below(key, value, &way, misshapes);
    }
}
