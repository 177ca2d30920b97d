//! Media types (RFC 9110 §8.3.1), and lists of those that are meant.

use plugway_sdk::media_type;

/// A list of media types and of ranges such as `image/*`, in lower case.
#[derive(Clone, Debug, Default)]
pub struct MediaTypes(Vec<String>);

impl MediaTypes {
    /// Parses a list. The error has the place of the wrong entry.
    pub fn parse(texts: &[String]) -> Result<Self, (usize, String)> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
        let is_name = |text: &str| !text.is_empty() && text.bytes().all(is_part);
        let parse = |(place, text): (usize, &String)| match text.split_once('/') {
            Some((kind, name)) if is_name(kind) && (name == "*" || is_name(name)) => Ok(text.to_ascii_lowercase()),
            _ => Err((
                place,
                format!("invalid media type: `{text}`; expected one such as `application/json` or `image/*`"),
            )),
        };
        texts.iter().enumerate().map(parse).collect::<Result<_, _>>().map(MediaTypes)
    }

    /// Whether the list has no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the value of a `Content-Type` field, with or without parameters, is in the list.
    pub fn contain(&self, content_type: &str) -> bool {
        let name = media_type::without_parameters(content_type);
        let is_it = |entry: &String| match entry.strip_suffix('*') {
            Some(range) => {
                let parts = name.split_at_checked(range.len());
                parts.is_some_and(|(begin, rest)| begin.eq_ignore_ascii_case(range) && !rest.is_empty())
            }
            None => entry.eq_ignore_ascii_case(name),
        };
        self.0.iter().any(is_it)
    }

    /// Returns the list as the value of a field.
    pub fn list(&self) -> String {
        self.0.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_do_not_matter_and_ranges_are_of_one_kind() {
        let types = MediaTypes::parse(&["Application/JSON".into(), "image/*".into()]).unwrap();
        for accepted in ["application/json", "application/JSON ; charset=utf-8", "image/png", "image/svg+xml"] {
            assert!(types.contain(accepted), "{accepted}");
        }
        for refused in
            ["", "application/json5", "application/json, text/html", "images/png", "image/", "text/plain; a=image/png"]
        {
            assert!(!types.contain(refused), "{refused}");
        }
        for wrong in ["json", "*/*", "image/", "/png", "image/p ng", "image/*g"] {
            assert!(MediaTypes::parse(&["a/b".into(), wrong.into()]).is_err_and(|(place, _)| place == 1), "{wrong}");
        }
    }
}
