//! The error pages of a manifest, as the proxy sends them.

use std::borrow::Cow;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use super::units::status_class;
use super::{Assembly, beside};
use crate::config::diagnostic::Source;
use crate::config::manifest::{Manifest, RouteTable, StatusWord};
use crate::config::spanned::Spanned;
use crate::generation::error_pages::ErrorPages;
use crate::system::files;
use crate::upstream::status_codes::StatusCodes;

impl Assembly<'_> {
    /// Returns the pages at the top of the manifest.
    pub(super) fn error_pages(&mut self, files: &[(Arc<Source>, Manifest)]) -> ErrorPages {
        let named = files.iter().flat_map(|(source, file)| file.error_page.iter().map(move |page| (source, page)));
        self.pages_of(named)
    }

    /// Returns the pages of a route.
    pub(super) fn route_pages(&mut self, source: &Arc<Source>, route: &RouteTable) -> ErrorPages {
        self.pages_of(route.error_page.iter().map(|page| (source, page)))
    }

    /// Returns the statuses that a route intercepts.
    pub(super) fn intercepted(&mut self, source: &Arc<Source>, route: &RouteTable) -> StatusCodes {
        let mut statuses = StatusCodes::default();
        for word in &route.intercept {
            match codes_of_word(word.get_ref()) {
                Some(codes) => statuses.add(codes),
                None => {
                    let text = text_of(word.get_ref());
                    let message = format!(
                        "invalid status to intercept: `{text}`; expected an error such as 404, or a class such as \"5xx\""
                    );
                    self.problems.at(source, word.span(), message);
                }
            }
        }
        statuses
    }

    fn pages_of<'p>(
        &mut self,
        named: impl Iterator<Item = (&'p Arc<Source>, (&'p Spanned<String>, &'p Spanned<String>))>,
    ) -> ErrorPages {
        let mut pages = ErrorPages::default();
        let mut named: Vec<_> = named.collect();
        // Single codes first, so that they go before their class.
        named.sort_by_key(|(_, (codes, _))| codes.get_ref().ends_with("xx"));
        for (source, (codes, file)) in named {
            let Some(range) = codes_of(codes.get_ref()) else {
                let message = format!(
                    "invalid status of an error page: `{}`; expected an error such as 404, or a class such as \"5xx\"",
                    codes.get_ref()
                );
                self.problems.at(source, codes.span(), message);
                continue;
            };
            let path = beside(source, file.get_ref());
            match self.page(&path) {
                Ok(page) => pages.add(range, &page),
                Err(error) => self.problems.at(source, file.span(), files::unreadable(&path, &error)),
            }
        }
        pages
    }

    /// Returns the text of a page. Thousands of routes may name one file, which is read and held once.
    fn page(&mut self, path: &Path) -> io::Result<Arc<str>> {
        if let Some(page) = self.pages.get(path) {
            return Ok(page.clone());
        }
        let page: Arc<str> = files::read_text(path, files::PAGE)?.into();
        self.pages.insert(path.into(), page.clone());
        Ok(page)
    }
}

/// Returns the status codes that a route intercepts by a word; `None` if it names no error.
pub(super) fn codes_of_word(word: &StatusWord) -> Option<RangeInclusive<u16>> {
    codes_of(&text_of(word))
}

fn text_of(word: &StatusWord) -> Cow<'_, str> {
    match word {
        StatusWord::Code(code) => code.to_string().into(),
        StatusWord::Word(word) => word.into(),
    }
}

/// Returns the status codes of an error, or of a class of errors; `None` if the text is neither.
fn codes_of(text: &str) -> Option<RangeInclusive<u16>> {
    let is_code = text.len() == 3 && text.bytes().all(|digit| digit.is_ascii_digit());
    let code = text.parse().ok().filter(|_| is_code).map(|code| code..=code);
    let codes = status_class(text).or(code);
    codes.filter(|codes| (400..=599).contains(codes.start()))
}
