//! What a plugin's schema has against its configuration, told in the manifest's place and words.

use std::ops::Range;
use std::sync::Arc;

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind as Kind;

use crate::config::locate;
use crate::config::problem::{Problems, Source};

/// Notes an error about the configuration of the plugin whose `use` stands at `place`.
pub fn tell(problems: &mut Problems, source: &Arc<Source>, place: &Range<usize>, error: &ValidationError<'_>) {
    let pointer = error.instance_path().to_string();
    let mut at = |message: String| {
        let span = locate::config(&source.text, place, &pointer);
        problems.at(source, span, format!("config{}: {message}", pointed(&pointer)));
    };
    match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            for key in unexpected {
                let span = locate::config_key(&source.text, place, &pointer, key);
                let message = format!("config{}: the plugin knows no key `{key}` here", pointed(&pointer));
                problems.at(source, span, message);
            }
        }
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => match (words(context), closest(context)) {
            (Some(words), _) => at(format!("{} is none of {words}", error.instance())),
            (None, Some(branch)) => branch.iter().for_each(|error| tell(problems, source, place, error)),
            (None, None) => at(error.to_string()),
        },
        _ => at(error.to_string()),
    }
}

/// A JSON pointer as people write keys.
pub fn pointed(pointer: &str) -> String {
    pointer.replace('/', ".").replace("~1", "/").replace("~0", "~")
}

/// The words that would have done, if words were wanted: a documented enum is a choice among constants.
fn words(branches: &[Vec<ValidationError<'static>>]) -> Option<String> {
    let word = |branch: &Vec<ValidationError<'static>>| match branch.first()?.kind() {
        Kind::Constant { expected_value } => Some(expected_value.to_string()),
        Kind::Enum { options } => {
            Some(options.as_array()?.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
        _ => None,
    };
    branches.iter().map(word).collect::<Option<Vec<_>>>().map(|words| words.join(", "))
}

/// The branch that fits furthest: what was meant, most likely.
fn closest<'a>(branches: &'a [Vec<ValidationError<'static>>]) -> Option<&'a Vec<ValidationError<'static>>> {
    let depth = |error: &ValidationError<'_>| error.instance_path().to_string().matches('/').count();
    branches.iter().max_by_key(|branch| branch.iter().map(depth).max())
}
