//! `Cache-Control` (RFC 9111 §5.2) and targeted cache control fields (RFC 9213).

use super::dictionary::{self, Item};
use crate::token::is_token;

/// The caching directives of a message. If a directive is repeated, the first one counts (RFC 9111 §4.2.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// Whether `no-store` is present.
    pub no_store: bool,
    /// The field names of `no-cache`, empty for the whole response; `None` without the directive.
    pub no_cache: Option<Vec<String>>,
    /// The field names of `private`, empty for the whole response; `None` without the directive.
    pub private: Option<Vec<String>>,
    /// Whether `public` is present.
    pub public: bool,
    /// Whether `must-revalidate` is present.
    pub must_revalidate: bool,
    /// Whether `proxy-revalidate` is present.
    pub proxy_revalidate: bool,
    /// Whether `must-understand` is present.
    pub must_understand: bool,
    /// Whether `only-if-cached` is present.
    pub only_if_cached: bool,
    /// The value of `max-age`, in seconds.
    pub max_age: Option<u64>,
    /// The value of `s-maxage`, in seconds.
    pub s_maxage: Option<u64>,
    /// The value of `min-fresh`, in seconds.
    pub min_fresh: Option<u64>,
    /// The value of `max-stale`, in seconds; the maximum if the directive has no value.
    pub max_stale: Option<u64>,
    /// The value of `stale-while-revalidate` (RFC 5861 §3), in seconds.
    pub stale_while_revalidate: Option<u64>,
    /// The value of `stale-if-error` (RFC 5861 §4), in seconds.
    pub stale_if_error: Option<u64>,
}

/// The directives whose values are times.
const TIMES: [&str; 4] = ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"];

/// The maximum time, in seconds (RFC 9111 §1.2.2).
const MAX_SECONDS: u64 = 1 << 31;

impl Directives {
    /// Parses `Cache-Control`. Unknown and malformed directives are ignored, except that a malformed lifetime is 0,
    /// because a response that can't be understood should be fetched again.
    pub fn parse(field: &[u8]) -> Self {
        let mut directives = Directives::default();
        for (name, value) in members(field) {
            directives.take(&name.to_ascii_lowercase(), value.as_deref());
        }
        directives
    }

    /// Parses a targeted field, a dictionary (RFC 9651 §3.2). `None` if the field is not a dictionary, has no members,
    /// or has a time that is not an integer (RFC 9213 §2.1).
    pub fn parse_targeted(field: &[u8]) -> Option<Self> {
        let mut directives = Directives::default();
        let members = dictionary::parse(field).filter(|members| !members.is_empty())?;
        for (name, value) in members {
            match value {
                Item::True | Item::False | Item::Other(_) if TIMES.contains(&name.as_str()) => return None,
                Item::True => directives.take(&name, None),
                Item::False => {}
                Item::Integer(value) | Item::Other(value) => directives.take(&name, Some(&value)),
            }
        }
        Some(directives)
    }

    fn take(&mut self, name: &str, value: Option<&str>) {
        let names = || {
            let names = value.unwrap_or_default().split(',').map(|name| name.trim().to_ascii_lowercase());
            let names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
            // An invalid name may have been meant for any field, so the directive applies to the whole response.
            if names.iter().all(|name| is_token(name)) { names } else { Vec::new() }
        };
        let set = |time: &mut Option<u64>| *time = time.or(Some(seconds(value)));
        match name {
            "no-store" => self.no_store = true,
            // A directive without fields applies to the whole response, even if it is repeated with fields.
            "no-cache" => self.no_cache = Some(narrower(self.no_cache.take(), names())),
            "private" => self.private = Some(narrower(self.private.take(), names())),
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "only-if-cached" => self.only_if_cached = true,
            "max-age" => set(&mut self.max_age),
            "s-maxage" => set(&mut self.s_maxage),
            "min-fresh" => set(&mut self.min_fresh),
            "max-stale" if value.is_none() => self.max_stale = self.max_stale.or(Some(MAX_SECONDS)),
            "max-stale" => set(&mut self.max_stale),
            "stale-while-revalidate" => set(&mut self.stale_while_revalidate),
            "stale-if-error" => set(&mut self.stale_if_error),
            _ => {}
        }
    }
}

fn narrower(before: Option<Vec<String>>, now: Vec<String>) -> Vec<String> {
    match before {
        Some(before) if before.is_empty() || now.is_empty() => Vec::new(),
        Some(before) => [before, now].concat(),
        None => now,
    }
}

/// Parses delta-seconds (RFC 9111 §1.2.2).
pub(super) fn seconds(value: Option<&str>) -> u64 {
    let digits = value.filter(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()));
    digits.map_or(0, |digits| digits.parse().unwrap_or(MAX_SECONDS).min(MAX_SECONDS))
}

/// Returns the members of a list of directives. Only a complete quoted string, from `=` to the end of its member, may
/// contain commas. Any other quote ends at the next one, so that it can't hide a directive.
fn members(field: &[u8]) -> Vec<(String, Option<String>)> {
    let (mut members, mut rest) = (Vec::new(), field);
    while !rest.is_empty() {
        let end = end_of_member(rest);
        let member = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        let (name, value) = match member.iter().position(|byte| *byte == b'=') {
            Some(at) => (&member[..at], Some(unquoted(member[at + 1..].trim_ascii()))),
            None => (member, None),
        };
        let name = String::from_utf8_lossy(name.trim_ascii()).into_owned();
        if !name.is_empty() {
            members.push((name, value));
        }
    }
    members
}

fn end_of_member(rest: &[u8]) -> usize {
    let comma = |from: usize| rest[from..].iter().position(|byte| *byte == b',').map_or(rest.len(), |at| from + at);
    let first = comma(0);
    let Some(open) = rest[..first].iter().position(|byte| *byte == b'"') else { return first };
    if !rest[..open].trim_ascii_end().ends_with(b"=") {
        return first;
    }
    let mut at = open + 1;
    while let Some(byte) = rest.get(at) {
        match byte {
            b'\\' => at += 1,
            b'"' => {
                let end = comma(at + 1);
                return if rest[at + 1..end].trim_ascii().is_empty() { end } else { first };
            }
            _ => {}
        }
        at += 1;
    }
    first
}

fn unquoted(value: &[u8]) -> String {
    let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let mut text = Vec::new();
    let mut bytes = inner.unwrap_or(value).iter();
    while let Some(byte) = bytes.next() {
        let is_escape = *byte == b'\\' && inner.is_some();
        text.extend(if is_escape { bytes.next() } else { Some(byte) });
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(field: &str) -> Directives {
        Directives::parse(field.as_bytes())
    }

    #[test]
    fn section_5_2_names_in_any_case_and_values_in_either_form() {
        assert_eq!(parse("MAX-AGE=60, Public").max_age, Some(60));
        assert_eq!(parse("max-age=\"60\"").max_age, Some(60));
        assert!(parse("max-age=60, Public").public);
        assert_eq!(parse("private=\"Set-Cookie, X-A\"").private, Some(vec!["set-cookie".into(), "x-a".into()]));
        assert_eq!(parse("private").private, Some(vec![]));
        assert_eq!(parse("private=\"a b\"").private, Some(vec![]), "what is no name may mean any field");
        assert_eq!(parse("private=\"a, b").private, Some(vec![]));
        assert_eq!(parse("private=\"a\", private").private, Some(vec![]), "the whole is more than a field");
        assert_eq!(parse("max-stale").max_stale, Some(MAX_SECONDS));
        assert_eq!(parse("max-stale=5").max_stale, Some(5));
    }

    #[test]
    fn section_4_2_1_the_first_of_two_counts_and_nonsense_is_no_lifetime() {
        assert_eq!(parse("max-age=1, max-age=60").max_age, Some(1));
        for nonsense in ["max-age=", "max-age", "max-age=-1", "max-age=1.5", "max-age=a", "max-age='60'"] {
            assert_eq!(parse(nonsense).max_age, Some(0), "{nonsense}");
        }
        assert_eq!(parse("max-age=99999999999999999999999").max_age, Some(MAX_SECONDS));
        assert_eq!(parse("max-age=007").max_age, Some(7));
    }

    #[test]
    fn quotes_hide_commas_and_nothing_else() {
        assert!(!parse("x=\"no-store\"").no_store);
        assert!(!parse("x=\"a, no-store, b\"").no_store);
        assert!(parse("x=\"a, no-store").no_store, "an open quote hides no directive");
        assert!(parse("x=\"a, no-store, y=\"b\"").no_store, "nor does one that another's opening would close");
        assert!(parse("x\"a, no-store, b\"").no_store, "nor one within a name");
        assert!(!parse("x= \"a, no-store\" , y").no_store);
        assert!(parse("x=\"a\\\", b\", no-store").no_store);
        assert!(parse(",, ,no-store,").no_store);
    }

    #[test]
    fn rfc_9213_a_targeted_field_is_a_dictionary_or_nothing() {
        let targeted = |field: &str| Directives::parse_targeted(field.as_bytes());
        assert_eq!(targeted("max-age=60, must-revalidate").unwrap().max_age, Some(60));
        assert!(targeted("no-store").unwrap().no_store);
        assert!(!targeted("no-store=?0, max-age=1").unwrap().no_store);
        assert!(targeted("no-store, x=(a \"b\");y, z=:YQ==:").unwrap().no_store, "whatever else is in it");
        for wrong in
            ["", "max-age=\"60\"", "max-age=1.5", "max-age", "max-age=?0", "Max-Age=60", "max-age=60,", "a=\"open"]
        {
            assert_eq!(targeted(wrong), None, "{wrong}");
        }
    }
}
