//! The content codings of a message (RFC 9110 §8.4), and which of them a request asks for.

use http::header::{self, HeaderMap, HeaderValue};

use crate::protocol::hop_by_hop;
use crate::protocol::weighted::weighted;

/// A content coding that the host decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownCoding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// The codings of content that can be decoded, in the order in which they were applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodingList {
    codings: [KnownCoding; MAX_CODINGS],
    count: usize,
}

/// The coding of a message's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coded {
    /// The content has no coding.
    Uncoded,
    /// All codings are known.
    Known(CodingList),
    /// The content can't be decoded.
    Unknown(UnknownCoding),
}

/// The reason why codings can't be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownCoding {
    /// A coding is none of those that are known.
    Name,
    /// There are more than [`MAX_CODINGS`] codings.
    Number,
}

/// The maximum number of codings of a message. Senders apply one; each further one is a decoder with a window of its own.
pub const MAX_CODINGS: usize = 3;

/// The codings that are decoded, for messages.
pub const KNOWN: &str = "gzip, deflate, br, zstd";

impl KnownCoding {
    /// Returns the coding of a name in any case; `None` if the coding isn't known.
    fn named(name: &[u8]) -> Option<Self> {
        const NAMES: [(&[u8], KnownCoding); 5] = [
            (b"gzip", KnownCoding::Gzip),
            (b"x-gzip", KnownCoding::Gzip),
            (b"deflate", KnownCoding::Deflate),
            (b"br", KnownCoding::Brotli),
            (b"zstd", KnownCoding::Zstd),
        ];
        NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, coding)| *coding)
    }

    /// Returns the registered name of the coding.
    pub fn name(self) -> &'static str {
        match self {
            KnownCoding::Gzip => "gzip",
            KnownCoding::Deflate => "deflate",
            KnownCoding::Brotli => "br",
            KnownCoding::Zstd => "zstd",
        }
    }
}

impl std::fmt::Display for KnownCoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl CodingList {
    /// Returns the codings in the order in which they were applied; the last one is decoded first.
    pub fn codings(&self) -> &[KnownCoding] {
        self.codings.get(..self.count).unwrap_or_default()
    }
}

impl From<KnownCoding> for CodingList {
    fn from(coding: KnownCoding) -> Self {
        CodingList { codings: [coding; MAX_CODINGS], count: 1 }
    }
}

/// Returns the coding that the fields of a message describe.
pub fn coded(fields: &HeaderMap) -> Coded {
    let members = hop_by_hop::members(fields, header::CONTENT_ENCODING);
    let mut list: Option<CodingList> = None;
    for name in members.filter(|name| !name.eq_ignore_ascii_case(IDENTITY)) {
        let Some(coding) = KnownCoding::named(name) else { return Coded::Unknown(UnknownCoding::Name) };
        list = match list {
            None => Some(coding.into()),
            Some(CodingList { mut codings, count }) => {
                let Some(place) = codings.get_mut(count) else { return Coded::Unknown(UnknownCoding::Number) };
                *place = coding;
                Some(CodingList { codings, count: count + 1 })
            }
        };
    }
    list.map_or(Coded::Uncoded, Coded::Known)
}

/// Removes the codings that can't be decoded from the list of acceptable ones. The client's own preference among the others
/// stays, and so does a missing list.
pub fn ask_for_known(fields: &mut HeaderMap) {
    let members = || hop_by_hop::members(fields, header::ACCEPT_ENCODING);
    if members().all(may_ask_for) {
        return;
    }
    let kept: Vec<&[u8]> = members().filter(|member| may_ask_for(member)).collect();
    let list = HeaderValue::from_bytes(&kept.join(&b", "[..])).ok().filter(|list| !list.is_empty());
    // In place of all lines: a list may come in several (RFC 9110 §5.3).
    fields.insert(header::ACCEPT_ENCODING, list.unwrap_or(HeaderValue::from_static("identity")));
}

/// Whether a member of `Accept-Encoding` brings no coding that can't be decoded.
fn may_ask_for(member: &[u8]) -> bool {
    let Some((name, weight)) = std::str::from_utf8(member).ok().and_then(weighted) else {
        return false;
    };
    // `*` is any coding, unless its weight is zero: then none but the listed ones is acceptable.
    (name == "*" && weight == 0)
        || name.as_bytes().eq_ignore_ascii_case(IDENTITY)
        || KnownCoding::named(name.as_bytes()).is_some()
}

const IDENTITY: &[u8] = b"identity";

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(name: header::HeaderName, lines: &[&'static str]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(name.clone(), HeaderValue::from_static(line));
        }
        fields
    }

    #[test]
    fn codings_are_known_in_any_case_and_order() {
        let of = |lines: &[&'static str]| match coded(&fields(header::CONTENT_ENCODING, lines)) {
            Coded::Uncoded => "-".into(),
            Coded::Known(list) => list.codings().iter().map(|coding| coding.name()).collect::<Vec<_>>().join(" "),
            Coded::Unknown(reason) => format!("{reason:?}"),
        };
        for (lines, wanted) in [
            (&[][..], "-"),
            (&["identity"], "-"),
            (&["", " , "], "-"),
            (&["GZip"], "gzip"),
            (&["x-gzip"], "gzip"),
            (&["X-GZIP, identity", "Br ,deflate"], "gzip br deflate"),
            (&["zstd,zstd,zstd"], "zstd zstd zstd"),
            (&["zstd,zstd,zstd,zstd"], "Number"),
            (&["gzip, foo"], "Name"),
            (&["compress"], "Name"),
            (&["gzip;q=1"], "Name"),
        ] {
            assert_eq!(of(lines), wanted, "{lines:?}");
        }
    }

    #[test]
    fn only_codings_that_are_decoded_are_asked_for() {
        for (lines, wanted) in [
            (&[][..], &[][..]),
            (&["gzip, deflate, br, zstd"], &["gzip, deflate, br, zstd"]),
            (&["gzip;q=0.5", "x-gzip, identity;q=0, *;q=0"], &["gzip;q=0.5", "x-gzip, identity;q=0, *;q=0"]),
            (&[""], &[""]),
            (&["gzip, dcb, br;q=0.9", "dcz"], &["gzip, br;q=0.9"]),
            (&["*"], &["identity"]),
            (&["gzip, *;q=0.1"], &["gzip"]),
            (&["gzip, *; Q=0.000"], &["gzip, *; Q=0.000"]),
            (&["compress"], &["identity"]),
        ] {
            let mut fields = fields(header::ACCEPT_ENCODING, lines);
            ask_for_known(&mut fields);
            let left: Vec<&str> =
                fields.get_all(header::ACCEPT_ENCODING).iter().map(|line| line.to_str().unwrap()).collect();
            assert_eq!(left, wanted, "{lines:?}");
        }
    }
}
