//! Content codings that a server can choose from, and what a client accepts of them (RFC 9110 §12.5.3).

use http::header::{self, HeaderMap};
use smallvec::SmallVec;

use super::weighted::weighted;

/// A coding that makes content shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentCoding {
    Brotli,
    Zstd,
    Gzip,
}

impl ContentCoding {
    pub const ALL: [ContentCoding; 3] = [ContentCoding::Brotli, ContentCoding::Zstd, ContentCoding::Gzip];

    /// Returns the name of the coding in `Content-Encoding`.
    pub fn token(self) -> &'static str {
        match self {
            ContentCoding::Brotli => "br",
            ContentCoding::Zstd => "zstd",
            ContentCoding::Gzip => "gzip",
        }
    }

    /// Returns the usual end of the names of files with this coding.
    pub fn suffix(self) -> &'static str {
        match self {
            ContentCoding::Brotli => ".br",
            ContentCoding::Zstd => ".zst",
            ContentCoding::Gzip => ".gz",
        }
    }
}

/// Returns the offered codings that a request accepts at least as willingly as content without a coding, the most
/// welcome first. Equally welcome codings keep the order of the offer. Without `Accept-Encoding` the list is empty:
/// such clients are mostly tools that decode nothing.
pub fn preferred(request: &HeaderMap, offered: &[ContentCoding]) -> SmallVec<[ContentCoding; 3]> {
    if offered.is_empty() {
        return SmallVec::new();
    }
    let lines = || request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    let weight_of = |names: &[&str]| {
        let members = lines().flat_map(|line| line.split(','));
        members.filter_map(weighted).find(|(name, _)| names.iter().any(|known| known.eq_ignore_ascii_case(name)))
    };
    let any = weight_of(&["*"]).map(|(_, weight)| weight);
    let identity = weight_of(&["identity"]).map_or(0, |(_, weight)| weight);
    let weight = |coding: ContentCoding| {
        let named = match coding {
            ContentCoding::Gzip => weight_of(&["gzip", "x-gzip"]),
            coding => weight_of(&[coding.token()]),
        };
        named.map(|(_, weight)| weight).or(any).unwrap_or(0)
    };
    let mut welcome: SmallVec<[(ContentCoding, u16); 3]> =
        offered.iter().map(|coding| (*coding, weight(*coding))).collect();
    welcome.retain(|(_, weight)| *weight > 0 && *weight >= identity);
    welcome.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
    welcome.into_iter().map(|(coding, _)| coding).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_client_gets_the_coding_that_it_prefers() {
        use ContentCoding::{Brotli, Gzip, Zstd};
        let cases: [(&str, &[ContentCoding]); 20] = [
            ("", &[]),
            ("gzip", &[Gzip]),
            ("gzip, deflate, br", &[Brotli, Gzip]),
            ("gzip, deflate, br, zstd", &[Brotli, Zstd, Gzip]),
            ("br;q=0.5, gzip", &[Gzip, Brotli]),
            ("br;q=0.5, gzip;q=0.501", &[Gzip, Brotli]),
            ("GZIP;Q=1.000", &[Gzip]),
            ("x-gzip", &[Gzip]),
            ("*", &[Brotli, Zstd, Gzip]),
            ("*;q=0.1, br;q=0", &[Zstd, Gzip]),
            ("gzip;q=0", &[]),
            ("gzip;q=0.000, *", &[Brotli, Zstd]),
            ("identity", &[]),
            ("identity;q=0.5, gzip;q=0.4, br;q=0.6", &[Brotli]),
            ("identity;q=0, gzip;q=0.1", &[Gzip]),
            ("gzip;q=1.001", &[]),
            ("gzip;q=0.1234, br", &[Brotli]),
            ("gzip;q=, br;q=x", &[]),
            (" , ;q=1,gzip ; q=0.3 ;x=y", &[Gzip]),
            ("gzipp, brr", &[]),
        ];
        for (accept, wanted) in cases {
            let request = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(accept))]);
            assert_eq!(&preferred(&request, &ContentCoding::ALL)[..], wanted, "{accept}");
        }
        assert!(preferred(&HeaderMap::new(), &ContentCoding::ALL).is_empty(), "without the field");
    }

    #[test]
    fn several_lines_are_one_list_and_only_what_is_offered_counts() {
        let lines = ["deflate", "br;q=0.1", "gzip"].map(HeaderValue::from_static);
        let request = HeaderMap::from_iter(lines.map(|line| (header::ACCEPT_ENCODING, line)));
        assert_eq!(&preferred(&request, &[ContentCoding::Gzip])[..], [ContentCoding::Gzip]);
        assert_eq!(&preferred(&request, &ContentCoding::ALL)[..], [ContentCoding::Gzip, ContentCoding::Brotli]);
    }
}
