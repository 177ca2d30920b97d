//! Cookies and query parameters by name. A plan may read hundreds of values from a long `Cookie`, so the lines are parsed
//! once for all of them, when the second value is read.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};

use http::{HeaderValue, Uri};
use smallvec::SmallVec;

use crate::context::host_work::HostWork;
use crate::context::repeated;

/// The pairs of an exchange's cookies, or of its query.
#[derive(Debug, Default)]
pub struct Pairs {
    index: RefCell<Option<Box<PairIndex>>>,
    /// Whether a value was read from long lines before.
    is_read: Cell<bool>,
}

/// The owner of parsed lines. It is kept so that no other lines can have their addresses.
#[derive(Debug)]
#[expect(dead_code, reason = "the owners are kept, not read")]
pub enum LineOwner {
    Fields(SmallVec<[HeaderValue; 1]>),
    Uri(Uri),
}

/// The kind of pairs in lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairKind {
    Cookies,
    /// Query parameters, whose names are compared as forms decode them.
    Parameters,
}

/// The pairs of some lines, in an order in which a name is found quickly.
#[derive(Debug)]
struct PairIndex {
    _owner: LineOwner,
    /// The addresses and lengths of the lines that were parsed.
    lines: SmallVec<[(usize, usize); 1]>,
    /// The pairs, by the hashes of their names and then in the order of the lines.
    pairs: Vec<Pair>,
    /// Keyed by chance, so that no client can choose names with equal hashes.
    hasher: RandomState,
}

/// A pair in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    hash: u64,
    line: u32,
    start: u32,
    /// The position of the `=`.
    equals: u32,
    end: u32,
}

/// The length up to which lines are searched for each value, in bytes: that takes less time than to parse them.
const SHORT: usize = 256;

impl Pairs {
    /// Returns the value of the first pair of a name in some lines; `None` if there is none.
    pub fn find<'a, I: Iterator<Item = &'a [u8]>>(
        &self,
        lines: impl Fn() -> I,
        owner: impl FnOnce() -> LineOwner,
        kind: PairKind,
        name: &str,
        work: &HostWork,
    ) -> Option<&'a [u8]> {
        let length = lines().map(<[u8]>::len).sum();
        let is_first = length <= SHORT || !self.is_read.replace(true);
        // A pair is parsed up to its first `=`.
        if is_first || name.contains('=') {
            work.add_scan(length);
            return search(lines(), kind, name);
        }
        let mut index = self.index.borrow_mut();
        let parsed = index.take().filter(|index| index.is_of(lines()));
        let parsed = parsed.unwrap_or_else(|| {
            let parsed = Box::new(PairIndex::of(&lines, owner(), kind));
            work.add_parse(length, parsed.pairs.len());
            parsed
        });
        index.insert(parsed).find(lines(), kind, name)
    }

    /// Whether the lines were parsed, for tests.
    #[cfg(test)]
    pub fn is_parsed(&self) -> bool {
        self.index.borrow().is_some()
    }
}

impl PairKind {
    fn separator(self) -> u8 {
        match self {
            PairKind::Cookies => b';',
            PairKind::Parameters => b'&',
        }
    }

    /// Whether a name, as the line has it, is this name.
    fn is_name(self, written: &[u8], name: &[u8]) -> bool {
        match self {
            PairKind::Cookies => written == name,
            PairKind::Parameters => repeated::is_name(written, name),
        }
    }

    /// Returns a name as it is compared.
    fn compared(self, written: &[u8]) -> Cow<'_, [u8]> {
        match self {
            PairKind::Cookies => written.into(),
            PairKind::Parameters => repeated::decoded(written),
        }
    }
}

/// Searches lines for the first pair of a name.
fn search<'a>(lines: impl Iterator<Item = &'a [u8]>, kind: PairKind, name: &str) -> Option<&'a [u8]> {
    let separator = kind.separator();
    let mut pairs = lines.flat_map(|line| line.split(move |byte| *byte == separator)).map(<[u8]>::trim_ascii);
    match kind {
        PairKind::Cookies => pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")),
        PairKind::Parameters => {
            pairs.filter(|pair| !pair.is_empty()).find_map(|pair| repeated::value_of_parameter(pair, name))
        }
    }
}

impl PairIndex {
    fn of<'a, I: Iterator<Item = &'a [u8]>>(lines: &impl Fn() -> I, owner: LineOwner, kind: PairKind) -> Self {
        let (hasher, mut pairs) = (RandomState::new(), Vec::new());
        for (number, line) in lines().enumerate() {
            let mut start = 0;
            for piece in line.split(|byte| *byte == kind.separator()) {
                let pair = piece.trim_ascii();
                let begin = start + (piece.len() - piece.trim_ascii_start().len());
                start += piece.len() + 1;
                let equals = match pair.iter().position(|byte| *byte == b'=') {
                    Some(equals) => equals,
                    // A parameter without a `=` has an empty value; a cookie has none.
                    None if kind == PairKind::Parameters && !pair.is_empty() => pair.len(),
                    None => continue,
                };
                pairs.push(Pair {
                    hash: hasher.hash_one(&*kind.compared(&pair[..equals])),
                    line: number as u32,
                    start: begin as u32,
                    equals: (begin + equals) as u32,
                    end: (begin + pair.len()) as u32,
                });
            }
        }
        pairs.sort_unstable();
        PairIndex { _owner: owner, lines: lines().map(place).collect(), pairs, hasher }
    }

    /// Whether these are the lines that were parsed.
    fn is_of<'a>(&self, lines: impl Iterator<Item = &'a [u8]>) -> bool {
        lines.map(place).eq(self.lines.iter().copied())
    }

    fn find<'a>(&self, mut lines: impl Iterator<Item = &'a [u8]>, kind: PairKind, name: &str) -> Option<&'a [u8]> {
        let hash = self.hasher.hash_one(name.as_bytes());
        let first = self.pairs.partition_point(|pair| pair.hash < hash);
        let pair = self.pairs.get(first).filter(|pair| pair.hash == hash)?;
        let line = lines.nth(pair.line as usize)?;
        let written = line.get(pair.start as usize..pair.equals as usize)?;
        let value = line.get(pair.equals as usize + 1..pair.end as usize).unwrap_or_default();
        kind.is_name(written, name.as_bytes()).then_some(value)
    }
}

/// Returns the address and the length of a line.
fn place(line: &[u8]) -> (usize, usize) {
    (line.as_ptr().addr(), line.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(pairs: &Pairs, lines: &[HeaderValue], name: &str, work: &HostWork) -> Option<String> {
        let texts = || lines.iter().map(HeaderValue::as_bytes);
        let owner = || LineOwner::Fields(lines.iter().cloned().collect());
        pairs.find(texts, owner, PairKind::Cookies, name, work).map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    fn long_lines() -> [HeaderValue; 2] {
        let many: String = (0..2_000).map(|number| format!("c{number}={number}; ")).collect();
        let lines = [format!("a=1; a=2;b = 3;{many}; =none; flag"), "c7=second; d=4=5 ; e=".into()];
        lines.map(|line| HeaderValue::try_from(line).unwrap())
    }

    #[test]
    fn parsed_pairs_are_those_that_a_search_finds() {
        let (lines, pairs, work) = (long_lines(), Pairs::default(), HostWork::default());
        for name in ["a", "b", "b ", "c0", "c7", "c1999", "c2000", "d", "d=4", "e", "", "flag", "none", "A"] {
            let searched = search(lines.iter().map(HeaderValue::as_bytes), PairKind::Cookies, name);
            for _ in 0..2 {
                assert_eq!(find(&pairs, &lines, name, &work).as_deref().map(str::as_bytes), searched, "{name}");
            }
        }
        assert!(pairs.is_parsed());
        let parameters: String = (0..200).map(|number| format!("p{number}={number}&")).collect();
        let (query, pairs) = (format!("{parameters}%69d=1&id=2&flag&a+b=3&p%31=x&=&"), Pairs::default());
        let owner = || LineOwner::Uri(Uri::default());
        for name in ["id", "flag", "a b", "p1", "p199", "p200", "a+b"] {
            let wanted = repeated::query_parameters(&query, name).next();
            for _ in 0..2 {
                let lines = || std::iter::once(query.as_bytes());
                assert_eq!(pairs.find(lines, owner, PairKind::Parameters, name, &work), wanted, "{name}");
            }
        }
        assert!(pairs.is_parsed());
        let other = [HeaderValue::try_from(format!("a=other; {}", "x".repeat(SHORT))).unwrap()];
        assert_eq!(find(&pairs, &other, "a", &work).as_deref(), Some("other"), "other lines are parsed anew");
        assert_eq!(find(&pairs, &other, "c7", &work), None);
    }

    #[test]
    fn long_lines_are_parsed_once_however_many_values_are_read() {
        let (lines, pairs, work) = (long_lines(), Pairs::default(), HostWork::default());
        assert_eq!(find(&pairs, &lines, "c1", &work).as_deref(), Some("1"));
        assert!(!pairs.is_parsed(), "a single value needs no index");
        assert_eq!(find(&pairs, &lines, "c2", &work).as_deref(), Some("2"));
        let after_two = work.nanoseconds();
        assert!(after_two > 0);
        for number in 3..256 {
            assert_eq!(find(&pairs, &lines, &format!("c{number}"), &work), Some(number.to_string()));
        }
        assert_eq!(work.nanoseconds(), after_two, "no line is read again");
    }

    #[test]
    fn nothing_is_kept_for_short_lines() {
        let (lines, pairs, work) = ([HeaderValue::from_static("a=1; b=2")], Pairs::default(), HostWork::default());
        for (name, value) in [("a", "1"), ("b", "2"), ("a", "1")] {
            assert_eq!(find(&pairs, &lines, name, &work).as_deref(), Some(value));
        }
        assert!(!pairs.is_parsed());
    }
}
