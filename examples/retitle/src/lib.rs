//! A filter that replaces a text in a field of responses.

use plugway_sdk::{ConfigError, Input, Plugin, ResponseFilter, Setup, Values, Verdict, export};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name of the field.
    field: String,
    /// The text to search for.
    from: String,
    /// The replacement of the text.
    to: String,
}

pub struct Retitle {
    config: Config,
    field: Input,
}

impl Plugin for Retitle {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Retitle { field: setup.response.response_field(&config.field), config })
    }
}

impl ResponseFilter for Retitle {
    fn on_response(&mut self, response: &Values) -> Verdict {
        let Config { field, from, to } = &self.config;
        match response.text(self.field) {
            Some(value) => Verdict::proceed().set_field(field, value.replace(from.as_str(), to)),
            None => Verdict::proceed(),
        }
    }
}

export!(Retitle: ResponseFilter);

#[cfg(test)]
mod tests {
    use plugway_sdk::Response;
    use plugway_sdk::testing::{Harness, Request};

    use super::Retitle;

    #[test]
    fn the_text_is_replaced_where_the_field_is() {
        let config = serde_json::json!({ "field": "location", "from": "http:", "to": "https:" });
        let mut filter = Harness::<Retitle>::new(config).unwrap();
        let response = Response::new(302).field("location", "http://example.org/");
        let passed = filter.response(&Request::get("/"), response).passed().unwrap();
        assert_eq!(passed.fields, [("location".to_string(), b"https://example.org/".to_vec())]);
        let untouched = filter.response(&Request::get("/"), Response::new(200)).passed().unwrap();
        assert!(untouched.fields.is_empty());
    }
}
