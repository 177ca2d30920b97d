//! Replaces texts in a body that arrives in chunks. A text that is split over chunks is replaced too.

/// The texts and their replacements.
#[derive(Debug)]
pub struct Replacements(Vec<(Vec<u8>, Vec<u8>)>);

/// The state of one body.
#[derive(Debug, Default)]
pub struct Replacer {
    /// What may be the beginning of a text, and waits for the next chunk.
    held: Vec<u8>,
}

impl Replacements {
    /// Returns the replacements, longer texts before shorter ones. No text is empty.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().map(|(from, to)| (from.into_bytes(), to.into_bytes())).collect();
        pairs.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        Replacements(pairs)
    }

    /// Returns the longest text at the beginning of some bytes, and its replacement.
    fn at(&self, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let pair = self.0.iter().find(|(from, _)| bytes.starts_with(from))?;
        Some((&pair.0, &pair.1))
    }

    /// Whether a text begins with these bytes and is longer than they are.
    fn may_continue(&self, bytes: &[u8]) -> bool {
        self.0.iter().any(|(from, _)| from.len() > bytes.len() && from.starts_with(bytes))
    }

    /// Whether a text begins with this byte.
    fn may_begin(&self, byte: u8) -> bool {
        self.0.iter().any(|(from, _)| from.first() == Some(&byte))
    }
}

impl Replacer {
    /// Receives a chunk, and returns the bytes to pass on.
    pub fn push(&mut self, chunk: Vec<u8>, texts: &Replacements) -> Vec<u8> {
        let bytes = if self.held.is_empty() { chunk } else { [std::mem::take(&mut self.held), chunk].concat() };
        let (passed, rest) = replaced(&bytes, |rest| texts.may_continue(rest), texts);
        self.held = rest.to_vec();
        passed
    }

    /// Receives the end of the body, and returns the bytes that were held back.
    pub fn finish(&mut self, texts: &Replacements) -> Vec<u8> {
        replaced(&std::mem::take(&mut self.held), |_| false, texts).0
    }
}

/// Replaces texts up to the place from which the bytes wait for the next chunk; returns the result and those bytes.
fn replaced<'a>(bytes: &'a [u8], waits: impl Fn(&[u8]) -> bool, texts: &Replacements) -> (Vec<u8>, &'a [u8]) {
    let (mut passed, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
    while !rest.is_empty() {
        let plain = rest.iter().position(|byte| texts.may_begin(*byte)).unwrap_or(rest.len());
        passed.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        if rest.is_empty() || waits(rest) {
            break;
        }
        match texts.at(rest) {
            Some((from, to)) => {
                passed.extend_from_slice(to);
                rest = &rest[from.len()..];
            }
            None => {
                passed.push(rest[0]);
                rest = &rest[1..];
            }
        }
    }
    (passed, rest)
}
