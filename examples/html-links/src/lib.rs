//! A filter that rewrites links in HTML, while the page passes: an application that writes `http://app.internal/cart` into
//! its pages is served as `https://shop.example/cart`. Other content passes without a call of the body hook.

mod replacer;

use std::collections::BTreeMap;
use std::rc::Rc;

use plugway_sdk::{
    BodyError, BodyFilter, BodyMode, CodedContent, ConfigError, Input, Plugin, ResponseBody, ResponseFilter, Setup,
    Values, Verdict, export, media_type,
};

use replacer::{Replacements, Replacer};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The texts to replace, such as the beginnings of links, with their replacements.
    replace: BTreeMap<String, String>,
}

pub struct HtmlLinks {
    texts: Rc<Replacements>,
    content_type: Input,
}

/// One page.
pub struct Page {
    texts: Rc<Replacements>,
    replacer: Replacer,
}

impl Plugin for HtmlLinks {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.replace.is_empty() || config.replace.contains_key("") {
            return Err(ConfigError::at("/replace", "expected texts to replace, such as `\"http://app.internal\"`"));
        }
        setup.response_body.mode = BodyMode::Skipped;
        // The application may compress its pages.
        setup.response_body.content.coded = CodedContent::Decode;
        let content_type = setup.response.response_field("content-type");
        Ok(HtmlLinks { texts: Rc::new(Replacements::new(config.replace)), content_type })
    }
}

impl ResponseFilter for HtmlLinks {
    fn on_response(&mut self, response: &Values) -> Verdict {
        let content_type = response.text(self.content_type).unwrap_or_default();
        match media_type::is(content_type, "text/html") {
            true => Verdict::proceed().body(BodyMode::Streamed),
            false => Verdict::proceed(),
        }
    }
}

impl ResponseBody for HtmlLinks {
    type Body = Page;

    fn response_body(&mut self, _: &Values) -> Page {
        Page { texts: self.texts.clone(), replacer: Replacer::default() }
    }
}

impl BodyFilter for Page {
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
        Ok(self.replacer.push(chunk, &self.texts))
    }

    fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
        Ok(self.replacer.finish(&self.texts))
    }
}

export!(HtmlLinks: ResponseFilter, ResponseBody);

#[cfg(test)]
mod tests {
    use plugway_sdk::testing::{Harness, Request, every_split};
    use plugway_sdk::{BodyMode, Response};

    use super::HtmlLinks;

    fn filter() -> Harness<HtmlLinks> {
        let replace = serde_json::json!({ "http://app.internal": "https://shop.example", "http://a": "/a", "ab": "-" });
        Harness::new(serde_json::json!({ "replace": replace })).unwrap()
    }

    #[test]
    fn links_are_rewritten_wherever_the_body_is_split() {
        let mut filter = filter();
        let html = Response::new(200).field("content-type", "text/html");
        filter.response(&Request::get("/"), html.clone()).expect_passed();
        let page = "\n<a href=\"http://app.internal/cart\">http://app.interna</a> http://app";
        let wanted = "\n<a href=\"https://shop.example/cart\">/app.interna</a> /app";
        for (body, wanted) in [(page, wanted), ("<aab>abab", "<a->--"), ("<p>a", "<p>a"), ("", "")] {
            every_split(body.as_bytes(), |chunks| {
                let passed = filter.response_body(&Request::get("/"), &html, chunks).unwrap();
                assert_eq!(String::from_utf8_lossy(&passed), wanted);
            });
        }
    }

    #[test]
    fn only_html_is_passed_to_the_body_hook() {
        let mut filter = filter();
        for (content_type, mode) in [
            ("text/html", Some(BodyMode::Streamed)),
            ("Text/HTML; charset=utf-8", Some(BodyMode::Streamed)),
            ("text/plain", None),
            ("application/xhtml+xml", None),
        ] {
            let response = Response::new(200).field("content-type", content_type);
            filter.response(&Request::get("/"), response).expect_passed();
            assert_eq!(filter.decided_body(), mode, "{content_type}");
        }
        filter.response(&Request::get("/"), Response::new(200)).expect_passed();
        assert_eq!(filter.decided_body(), None);
    }

    #[test]
    fn empty_texts_are_errors() {
        for replace in [serde_json::json!({}), serde_json::json!({ "": "x" })] {
            let errors = Harness::<HtmlLinks>::errors(serde_json::json!({ "replace": replace }));
            assert_eq!(errors[0].path, "/replace");
        }
    }
}
