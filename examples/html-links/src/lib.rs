//! A filter that rewrites links in HTML, while the page passes: an application that writes `http://app.internal/cart` into
//! its pages is served as `https://shop.example/cart`.

mod replacer;

use std::collections::BTreeMap;
use std::rc::Rc;

use plugway_sdk::{BodyError, BodyFilter, ConfigError, Plugin, ResponseBody, Setup, export};

use replacer::{Replacements, Replacer};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The texts to replace, such as the beginnings of links, with their replacements.
    replace: BTreeMap<String, String>,
}

pub struct HtmlLinks(Rc<Replacements>);

/// One body.
pub struct Page {
    texts: Rc<Replacements>,
    content: Content,
}

/// The kind of the content, as its first bytes show.
enum Content {
    Unknown,
    Html(Replacer),
    Other,
}

impl Plugin for HtmlLinks {
    type Config = Config;

    fn new(config: Config, _: &mut Setup) -> Result<Self, ConfigError> {
        if config.replace.is_empty() || config.replace.contains_key("") {
            return Err(ConfigError::at("/replace", "expected texts to replace, such as `\"http://app.internal\"`"));
        }
        Ok(HtmlLinks(Rc::new(Replacements::new(config.replace))))
    }
}

impl ResponseBody for HtmlLinks {
    type Body = Page;

    fn response_body(&mut self) -> Page {
        Page { texts: self.0.clone(), content: Content::Unknown }
    }
}

impl BodyFilter for Page {
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
        if let Content::Unknown = self.content {
            self.content = match chunk.trim_ascii_start().first() {
                None => Content::Unknown,
                Some(b'<') => Content::Html(Replacer::default()),
                Some(_) => Content::Other,
            };
        }
        Ok(match &mut self.content {
            Content::Html(replacer) => replacer.push(chunk, &self.texts),
            Content::Unknown | Content::Other => chunk,
        })
    }

    fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
        Ok(match &mut self.content {
            Content::Html(replacer) => replacer.finish(&self.texts),
            Content::Unknown | Content::Other => Vec::new(),
        })
    }
}

export!(HtmlLinks: ResponseBody);

#[cfg(test)]
mod tests {
    use plugway_sdk::ResponseBody;
    use plugway_sdk::testing::{Harness, every_split, transform};

    use super::HtmlLinks;

    /// Returns a body after the filter, which is the same for every split of the body.
    fn rewritten(body: &str) -> String {
        let replace = serde_json::json!({ "http://app.internal": "https://shop.example", "http://a": "/a", "ab": "-" });
        let mut filter = Harness::<HtmlLinks>::new(serde_json::json!({ "replace": replace })).unwrap();
        let mut whole = transform(&mut filter.plugin.response_body(), &[body.as_bytes()]).unwrap();
        every_split(body.as_bytes(), |chunks| {
            let split = transform(&mut filter.plugin.response_body(), chunks).unwrap();
            assert_eq!(String::from_utf8_lossy(&split), String::from_utf8_lossy(&whole));
        });
        String::from_utf8(std::mem::take(&mut whole)).unwrap()
    }

    #[test]
    fn links_are_rewritten_wherever_the_body_is_split() {
        let page = "\n<a href=\"http://app.internal/cart\">http://app.interna</a> http://app";
        assert_eq!(rewritten(page), "\n<a href=\"https://shop.example/cart\">/app.interna</a> /app");
        assert_eq!(rewritten("<aab>abab"), "<a->--");
        assert_eq!(rewritten("<p>a"), "<p>a");
    }

    #[test]
    fn other_content_passes_unchanged() {
        for body in ["", "  ", "{\"link\": \"http://app.internal/\"}", "text ab"] {
            assert_eq!(rewritten(body), body);
        }
    }

    #[test]
    fn empty_texts_are_errors() {
        for replace in [serde_json::json!({}), serde_json::json!({ "": "x" })] {
            let errors = Harness::<HtmlLinks>::errors(serde_json::json!({ "replace": replace }));
            assert_eq!(errors[0].path, "/replace");
        }
    }
}
