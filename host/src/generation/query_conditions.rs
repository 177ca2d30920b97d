//! The conditions of all routes for the query. One pass over a request's query decides about all of them: routes are many, and
//! a query may have thousands of parameters.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::protocol::query;

/// The conditions of all routes for the query.
#[derive(Debug, Default)]
pub struct QueryConditions {
    /// The conditions by the normal form of the parameter's name.
    names: HashMap<String, NameConditions>,
    count: usize,
}

/// The conditions for the parameters with a name.
#[derive(Debug, Default)]
struct NameConditions {
    /// The condition for any value.
    any: Option<QueryCondition>,
    /// The conditions for one value each, by its normal form.
    values: HashMap<String, QueryCondition>,
}

/// The index of a condition for the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryCondition(usize);

/// The conditions that a request meets, a bit for each.
#[derive(Debug)]
pub struct MetConditions(SmallVec<[u64; 2]>);

impl QueryConditions {
    /// Adds the condition that a parameter is there, with a value or any; equal conditions are one.
    pub fn add(&mut self, name: &str, value: Option<&str>) -> QueryCondition {
        let of_name = self.names.entry(name.into()).or_default();
        let condition = match value {
            Some(value) => of_name.values.entry(value.into()).or_insert(QueryCondition(self.count)),
            None => of_name.any.get_or_insert(QueryCondition(self.count)),
        };
        self.count += usize::from(condition.0 == self.count);
        *condition
    }

    /// Returns the conditions that parameters meet, in one pass over them. Only those with escapes are copied.
    pub fn met_by<'a>(&self, parameters: impl Iterator<Item = (&'a str, &'a str)>) -> MetConditions {
        let mut met = MetConditions(SmallVec::from_elem(0, self.count.div_ceil(64)));
        for (name, value) in parameters {
            // An origin reads `%61=1` as `a=1`.
            let Some(of_name) = self.names.get(&*query::normal(name)) else { continue };
            let of_value = if of_name.values.is_empty() { None } else { of_name.values.get(&*query::normal(value)) };
            of_name.any.iter().chain(of_value).for_each(|condition| met.add(*condition));
        }
        met
    }
}

impl MetConditions {
    /// Whether a condition is met.
    pub fn has(&self, QueryCondition(index): QueryCondition) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    fn add(&mut self, QueryCondition(index): QueryCondition) {
        self.0[index / 64] |= 1 << (index % 64);
    }
}

/// Returns the parameters of a query: each has its name and its value, which is empty if there is none.
pub fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn one_pass_over_a_query_decides_about_all_conditions() {
        let mut conditions = QueryConditions::default();
        let wanted: Vec<_> = (0..500)
            .flat_map(|number| {
                let name = format!("v{number}");
                [conditions.add(&name, Some("1")), conditions.add(&name, None)]
            })
            .collect();
        assert_eq!(conditions.add("v7", Some("1")), wanted[14], "equal conditions are one");
        let (query, read) = (format!("{}v3=1&v%34=%31&v499", "a&".repeat(4000)), Cell::new(0));
        let met = conditions.met_by(parameters(&query).inspect(|_| read.set(read.get() + 1)));
        assert_eq!(read.get(), 4003, "each parameter is read once");
        let met: Vec<usize> = (0..wanted.len()).filter(|index| met.has(wanted[*index])).collect();
        assert_eq!(met, [6, 7, 8, 9, 999]);
    }

    #[test]
    fn a_parameter_without_a_value_has_an_empty_one() {
        let mut conditions = QueryConditions::default();
        let (empty, other) = (conditions.add("a", Some("")), conditions.add("", None));
        for (query, expected) in [("a", [true, false]), ("a=", [true, false]), ("a=b", [false; 2]), ("", [false, true])]
        {
            let met = conditions.met_by(parameters(query));
            assert_eq!([met.has(empty), met.has(other)], expected, "{query}");
        }
    }
}
