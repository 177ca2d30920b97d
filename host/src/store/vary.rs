//! Selecting one of several responses under a cache key by the request fields in `Vary` (RFC 9111 §4.1).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::protocol::field_alias::{aliases, put_aliases};

/// The `Vary` values of a stored response: the request fields that it depends on, with their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VaryValue(Box<[Selector]>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Selector {
    name: HeaderName,
    /// The value of the field; `None` if the request didn't have the field.
    value: Option<Box<[u8]>>,
}

/// A request that variants are selected for. The values of its fields are normalised once, however many variants depend on
/// them.
pub struct VaryRequest<'a> {
    request: &'a HeaderMap,
    /// The values that were asked for, in the order in which they were.
    known: Vec<Selector>,
}

/// The longest field that is normalised, in bytes. Values of longer ones are compared byte for byte: clients send shorter
/// ones, and to sort thousands of members takes long.
const MAX_NORMALISED: usize = 1 << 10;

impl<'a> VaryRequest<'a> {
    pub fn new(request: &'a HeaderMap) -> Self {
        VaryRequest { request, known: Vec::new() }
    }

    /// Whether a field has a value. `place` is where variants have the name, the same in most of them.
    fn has(&mut self, place: usize, Selector { name, value }: &Selector) -> bool {
        // In most cases the field is equal byte for byte.
        if value.as_deref().is_some_and(|value| is_just(self.request, name, value)) {
            return true;
        }
        let is_it = |known: &Selector| known.name == *name;
        let index = match self.known.get(place).is_some_and(is_it) {
            true => place,
            false => self.known.iter().position(is_it).unwrap_or_else(|| {
                let value = wanted(name, self.request).map(Vec::into_boxed_slice);
                self.known.push(Selector { name: name.clone(), value });
                self.known.len() - 1
            }),
        };
        self.known[index].value == *value
    }
}

impl VaryValue {
    /// Returns a request's values of the given fields.
    pub fn from_request(names: impl Iterator<Item = HeaderName>, request: &HeaderMap) -> Self {
        let selector = |name: HeaderName| {
            let value = wanted(&name, request).map(Vec::into_boxed_slice);
            Selector { name, value }
        };
        VaryValue(names.map(selector).collect())
    }

    /// Returns whether a request has the same values.
    pub fn select(&self, request: &mut VaryRequest<'_>) -> bool {
        self.0.iter().enumerate().all(|(place, selector)| request.has(place, selector))
    }

    /// Restores values that were written to disk.
    pub fn from_values(values: Vec<(HeaderName, Option<Vec<u8>>)>) -> Self {
        let selector =
            |(name, value): (HeaderName, Option<Vec<u8>>)| Selector { name, value: value.map(Vec::into_boxed_slice) };
        VaryValue(values.into_iter().map(selector).collect())
    }

    /// Returns the names with their values.
    pub fn values(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.0.iter().map(|selector| (selector.name.as_str(), selector.value.as_deref()))
    }

    /// Returns the names of the fields.
    pub fn names(&self) -> impl Iterator<Item = HeaderName> + '_ {
        self.0.iter().map(|selector| selector.name.clone())
    }

    /// Returns the number of fields.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns an unambiguous encoding of the names and values.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Selector { name, value } in &self.0 {
            bytes.extend(name.as_str().as_bytes());
            bytes.push(if value.is_some() { b':' } else { b'-' });
            bytes.extend(value.iter().flat_map(|value| value.iter()));
            bytes.push(b'\n');
        }
        bytes
    }

    /// Returns the memory that the values occupy, in bytes.
    pub fn weight(&self) -> usize {
        let text = |Selector { name, value }: &Selector| {
            // A policy may name any field; only the usual names take no memory of their own.
            name.as_str().len() + value.as_ref().map_or(0, |value| value.len())
        };
        self.0.iter().map(|selector| size_of::<Selector>() + text(selector)).sum()
    }
}

fn is_just(request: &HeaderMap, name: &HeaderName, value: &[u8]) -> bool {
    let mut lines = request.get_all(name).iter();
    let is_same = lines.next().is_some_and(|line| line.as_bytes() == value) && lines.next().is_none();
    is_same && aliases(request, name).is_empty()
}

/// Returns the value of a field, together with the lines that an origin may confuse with the field; `None` if the
/// request has neither.
fn wanted(name: &HeaderName, request: &HeaderMap) -> Option<Vec<u8>> {
    let (own, mut value) = (normal(name, request), Vec::new());
    own.iter().for_each(|own| value.extend_from_slice(own));
    let has_more = put_aliases(request, name, &mut value);
    (own.is_some() || has_more).then_some(value)
}

/// Returns the lines of a field as one normalised value. Spaces, case and order are ignored where the definition of the
/// field allows that (RFC 9110 §12.5.3, §12.5.4). In other fields a comma may be part of a value. `None` if the field
/// is absent.
fn normal(name: &HeaderName, request: &HeaderMap) -> Option<Vec<u8>> {
    let mut lines = request.get_all(name).iter();
    let first = lines.next()?;
    let is_long = request.get_all(name).iter().map(HeaderValue::len).sum::<usize>() > MAX_NORMALISED;
    if is_long {
        return Some(request.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]));
    }
    let is_list = [header::ACCEPT, header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE].contains(name);
    let mut members: Vec<Vec<u8>> = Vec::new();
    for line in std::iter::once(first).chain(lines) {
        if is_list {
            members.extend(line.as_bytes().split(|byte| *byte == b',').map(|member| member.trim_ascii().to_vec()));
        } else {
            members.push(line.as_bytes().to_vec());
        }
    }
    if name == header::ACCEPT_ENCODING || name == header::ACCEPT_LANGUAGE {
        members.iter_mut().for_each(|member| {
            member.retain(|byte| !byte.is_ascii_whitespace());
            member.make_ascii_lowercase();
        });
    }
    if name == header::ACCEPT_ENCODING {
        // Members are ranked by their weights, not by their order.
        members.sort_unstable();
    }
    members.retain(|member| !member.is_empty());
    Some(members.join(&b", "[..]))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            fields.append(*name, HeaderValue::from_static(value));
        }
        fields
    }

    #[test]
    fn names_weigh_as_much_as_values() {
        let names = (0..256).map(|n| HeaderName::try_from(format!("x-{n:04}-{}", "v".repeat(1_000))).unwrap());
        let weight = VaryValue::from_request(names, &HeaderMap::new()).weight();
        assert!((256 * 1_000..300_000).contains(&weight), "{weight} bytes");
    }

    fn select(stored: &[(&'static str, &'static str)], request_fields: &[(&'static str, &'static str)]) -> bool {
        let names = stored.iter().map(|(name, _)| HeaderName::from_static(name));
        VaryValue::from_request(names, &request(stored)).select(&mut VaryRequest::new(&request(request_fields)))
    }

    #[test]
    fn equivalent_values_select_the_same_response() {
        assert!(select(&[("accept-encoding", "gzip, br")], &[("accept-encoding", "BR,gzip")]));
        assert!(select(&[("accept-encoding", "gzip;q=0.5")], &[("accept-encoding", "gzip; q=0.5")]));
        assert!(select(&[("accept-language", "de, en")], &[("accept-language", "DE,en")]));
        assert!(select(&[("accept", "a/b,c/d")], &[("accept", "a/b , c/d")]));
        assert!(select(&[("x-flags", "a, b")], &[("x-flags", "a"), ("x-flags", "b")]));
    }

    #[test]
    fn different_values_select_different_responses() {
        assert!(!select(&[("accept-language", "de, en")], &[("accept-language", "en, de")]));
        assert!(!select(&[("x-flags", "a, b")], &[("x-flags", "A, b")]));
        assert!(!select(&[("cookie", "a=1, b")], &[("cookie", "a=1,b")]));
        assert!(!select(&[("x-when", "Fri, 1")], &[("x-when", "Fri,1")]));
        assert!(!select(&[("x-flags", "a")], &[]), "absent is not the same as there");
        let absent = VaryValue::from_request([HeaderName::from_static("x-flags")].into_iter(), &HeaderMap::new());
        assert!(absent.select(&mut VaryRequest::new(&HeaderMap::new())));
        assert!(!absent.select(&mut VaryRequest::new(&request(&[("x-flags", "")]))));
    }

    /// To normalise the field anew for each of 64 variants took 40 ms of a worker for a value of 30 KB.
    #[test]
    fn fields_are_normalised_once_for_all_variants() {
        let variants: Vec<VaryValue> = (0..64)
            .map(|number| {
                let mut stored = request(&[("accept-language", "de")]);
                stored.insert(header::ACCEPT_ENCODING, HeaderValue::try_from(format!("e{number}")).unwrap());
                VaryValue::from_request([header::ACCEPT_LANGUAGE, header::ACCEPT_ENCODING].into_iter(), &stored)
            })
            .collect();
        let asking = request(&[("accept-language", "DE"), ("accept-encoding", "br, gzip")]);
        let mut asking = VaryRequest::new(&asking);
        assert!(!variants.iter().any(|variant| variant.select(&mut asking)));
        assert_eq!(asking.known.len(), 2);
    }

    #[test]
    fn a_long_field_is_compared_as_it_is() {
        let long = |member: &str| request_of(&vec![member; 500].join(","));
        let names = || [header::ACCEPT_ENCODING].into_iter();
        let stored = VaryValue::from_request(names(), &long("br"));
        assert!(stored.select(&mut VaryRequest::new(&long("br"))));
        assert!(!stored.select(&mut VaryRequest::new(&long("BR"))));
    }

    fn request_of(accept_encoding: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::try_from(accept_encoding).unwrap())])
    }
}
