//! Queries, and forms in the same syntax: parameters that are read decoded, changed, and written again.
//!
//! Parameters that no call changes keep their spelling and their order, so that an origin receives them as the client sent
//! them.
//!
//! ```
//! use plugway_sdk::query::Parameters;
//! use plugway_sdk::testing::{Harness, Request};
//! use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Setup, ValueName, Values, Verdict};
//!
//! /// A filter that removes the parameters of campaigns, and sets the language.
//! struct Clean {
//!     query: Input,
//! }
//!
//! impl Plugin for Clean {
//!     type Config = ();
//!
//!     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(Clean { query: setup.request.value(ValueName::Query) })
//!     }
//! }
//!
//! impl RequestFilter for Clean {
//!     fn on_request(&mut self, request: &Values) -> Verdict {
//!         let query = Parameters::parse(request.bytes(self.query).unwrap_or_default());
//!         let query = query.retain(|name, _| !name.starts_with(b"utm_")).set("lang", "en & fr");
//!         Verdict::proceed().set_query(query)
//!     }
//! }
//!
//! let mut filter = Harness::<Clean>::new(serde_json::json!({})).unwrap();
//! let passed = filter.request(Request::get("/?a=1%2C2&utm_source=x&%75tm_id=3")).expect_passed();
//! assert_eq!(passed.query(), Some("a=1%2C2&lang=en%20%26%20fr"));
//! ```

use std::borrow::Cow;
use std::fmt;

use crate::percent;

/// The parameters of a query or of a form (`application/x-www-form-urlencoded`), in their order.
///
/// Names and values are decoded when they are read: percent-encoding, and `+`, which stands for a space. What is set is
/// encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters<'a> {
    /// The parameters as they are written, none of them empty.
    pairs: Vec<Cow<'a, [u8]>>,
}

impl<'a> Parameters<'a> {
    /// Parses a query, without its `?`, or a form. Every text has parameters; empty ones (`&&`) are skipped.
    pub fn parse(text: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        let pairs = text.as_ref().split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
        Parameters { pairs: pairs.map(Cow::Borrowed).collect() }
    }

    /// Returns all parameters as names and values. A parameter without a `=` has an empty value.
    ///
    /// ```
    /// use plugway_sdk::query::Parameters;
    ///
    /// let form = Parameters::parse("name=A+B&tag=1&tag");
    /// let pairs: Vec<_> = form.iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    /// assert_eq!(pairs, [(b"name".into(), b"A B".into()), (b"tag".into(), b"1".into()), (b"tag".into(), vec![])]);
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
        self.pairs.iter().map(|pair| {
            let (name, value) = split(pair);
            (decoded(name), decoded(value))
        })
    }

    /// Returns the values of all parameters of a name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = Cow<'_, [u8]>> {
        self.written(name).map(decoded)
    }

    /// Returns the first value of a name; `None` if there is none, or if it is not UTF-8.
    ///
    /// ```
    /// use plugway_sdk::query::Parameters;
    ///
    /// assert_eq!(Parameters::parse("q=caf%C3%A9").text("q").as_deref(), Some("caf\u{e9}"));
    /// ```
    pub fn text(&self, name: &str) -> Option<String> {
        String::from_utf8(self.all(name).next()?.into_owned()).ok()
    }

    /// Whether there is a parameter of a name.
    pub fn contains(&self, name: &str) -> bool {
        self.written(name).next().is_some()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Replaces all parameters of a name by one, at the end.
    pub fn set(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.remove(name).append(name, value)
    }

    /// Adds a parameter at the end.
    pub fn append(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let mut pair = percent::encode(name);
        pair.push('=');
        percent::push_encoded(&mut pair, value.as_ref(), percent::is_unreserved);
        self.pairs.push(Cow::Owned(pair.into_bytes()));
        self
    }

    /// Removes all parameters of a name.
    pub fn remove(self, name: &str) -> Self {
        self.retain(|known, _| known != name.as_bytes())
    }

    /// Renames the parameters for whose name `renamed` returns another name. Places and values stay.
    ///
    /// ```
    /// use plugway_sdk::query::Parameters;
    ///
    /// let query = Parameters::parse("q=a%2Cb&page=2").rename(|name| (name == b"q").then_some("search"));
    /// assert_eq!(query.to_string(), "search=a%2Cb&page=2");
    /// ```
    pub fn rename<'n>(mut self, renamed: impl Fn(&[u8]) -> Option<&'n str>) -> Self {
        for pair in &mut self.pairs {
            let (name, _) = split(pair);
            if let Some(to) = renamed(&decoded(name)) {
                let rest = &pair[name.len()..];
                *pair = Cow::Owned([percent::encode(to).as_bytes(), rest].concat());
            }
        }
        self
    }

    /// Keeps only the parameters whose name and value `is_kept` accepts.
    pub fn retain(mut self, mut is_kept: impl FnMut(&[u8], &[u8]) -> bool) -> Self {
        self.pairs.retain(|pair| {
            let (name, value) = split(pair);
            is_kept(&decoded(name), &decoded(value))
        });
        self
    }

    /// Sorts the parameters by name. Those of one name keep their order.
    pub fn sort(mut self) -> Self {
        self.pairs.sort_by(|one, other| decoded(split(one).0).cmp(&decoded(split(other).0)));
        self
    }

    /// Returns the values of a name as they are written.
    pub(crate) fn written(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let pairs = self.pairs.iter().map(|pair| split(pair));
        pairs.filter(move |(known, _)| *decoded(known) == *name.as_bytes()).map(|(_, value)| value)
    }
}

/// Writes the parameters as a query or a form.
impl From<Parameters<'_>> for Vec<u8> {
    fn from(parameters: Parameters<'_>) -> Self {
        parameters.pairs.join(&b'&')
    }
}

/// Formats the parameters as a query or a form; bytes that are not UTF-8 are replaced.
impl fmt::Display for Parameters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.pairs.join(&b'&')))
    }
}

/// Returns the name and the value of a parameter, as they are written.
fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|byte| *byte == b'=') {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &[]),
    }
}

/// Decodes a name or a value as forms encode it.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent::decode(text);
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(percent::decode(&spaced).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_no_call_changes_keep_their_spelling() {
        let query = Parameters::parse("b=%7e&&a=1+2&c&b=3&=x");
        assert_eq!(query.to_string(), "b=%7e&a=1+2&c&b=3&=x");
        assert_eq!(query.clone().sort().to_string(), "=x&a=1+2&b=%7e&b=3&c");
        let rename = |from: &'static str, to| query.clone().rename(move |name| (name == from.as_bytes()).then_some(to));
        assert_eq!(rename("b", "n m").to_string(), "n%20m=%7e&a=1+2&c&n%20m=3&=x");
        assert_eq!(rename("c", "d").remove("b").to_string(), "a=1+2&d&=x");
        assert_eq!(query.set("b", "=&").to_string(), "a=1+2&c&=x&b=%3D%26");
        assert!(Parameters::parse("").is_empty() && Parameters::parse("&&").is_empty());
    }

    #[test]
    fn names_are_compared_decoded() {
        let query = Parameters::parse("i%64=1&id=%32&ID=3&a+b=4");
        assert_eq!(query.all("id").collect::<Vec<_>>(), [&b"1"[..], b"2"]);
        assert_eq!(query.written("id").collect::<Vec<_>>(), [&b"1"[..], b"%32"]);
        assert_eq!((query.text("a b").as_deref(), query.text("a+b")), (Some("4"), None));
        assert_eq!(query.remove("id").to_string(), "ID=3&a+b=4");
        assert_eq!(Parameters::parse("a=%ff").text("a"), None);
    }

    #[test]
    fn what_is_set_is_read_again() {
        for text in ["", " ", "+", "a&b=c", "%41", "\u{e9}\u{0}", "#?/"] {
            let query: Vec<u8> = Parameters::default().append(text, text).append("z", "").into();
            let parsed = Parameters::parse(&query);
            assert_eq!(parsed.text(text).as_deref(), Some(text), "{query:?}");
            assert_eq!(parsed.iter().count(), 2, "{query:?}");
        }
    }
}
