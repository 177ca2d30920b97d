//! The places in a request that have the key: how it is read, and how it is removed.

use std::borrow::Cow;

use plugway_sdk::query::Parameters;
use plugway_sdk::token::is_token;
use plugway_sdk::{ConfigError, EditPlan, Input, Setup, ValueName, Values, Verdict, cookie, percent};

use crate::config::Config;

/// The places that the configuration names.
pub struct Places {
    field: Option<Field>,
    query: Option<Parameter>,
    cookie: Option<Parameter>,
}

struct Field {
    name: String,
    value: Input,
    scheme: Option<String>,
}

/// A query parameter or a cookie.
struct Parameter {
    name: String,
    value: Input,
    /// The whole query, or the whole field `Cookie`; `None` if the key stays in it.
    whole: Option<Input>,
}

impl Places {
    /// Declares the values of the places.
    pub fn new(config: &Config, setup: &mut Setup) -> Self {
        let is_named = config.field.is_some() || config.query.is_some() || config.cookie.is_some();
        let field = config.field.as_deref().or((!is_named).then_some("x-api-key"));
        if config.scheme.is_some() && config.field.is_none() {
            setup.report(ConfigError::at("/scheme", "a scheme without a field; write `field = \"Authorization\"` too"));
        }
        if config.scheme.as_deref().is_some_and(|scheme| !is_token(scheme)) {
            setup.report(ConfigError::at("/scheme", "invalid scheme; expected a token such as `Bearer`"));
        }
        for (key, name) in
            [("/field", field), ("/query", config.query.as_deref()), ("/cookie", config.cookie.as_deref())]
        {
            if name.is_some_and(|name| !is_token(name)) {
                setup.report(ConfigError::at(key, "invalid name; expected letters, digits, `-` and `_`"));
            }
        }
        let needs = &mut setup.request;
        Places {
            field: field.map(|name| Field {
                name: name.into(),
                value: needs.field(name),
                scheme: config.scheme.clone(),
            }),
            query: config.query.as_ref().map(|name| Parameter {
                name: name.clone(),
                value: needs.value(ValueName::QueryParameter(name.clone())),
                whole: (!config.keep).then(|| needs.value(ValueName::Query)),
            }),
            cookie: config.cookie.as_ref().map(|name| Parameter {
                name: name.clone(),
                value: needs.cookie(name),
                whole: (!config.keep).then(|| needs.field("cookie")),
            }),
        }
    }

    /// Returns the key of a request; `None` if no place has one.
    pub fn key<'a>(&self, request: &'a Values) -> Option<Cow<'a, [u8]>> {
        if let Some(field) = &self.field
            && let Some(value) = request.bytes(field.value)
        {
            return without_scheme(value, field.scheme.as_deref()).map(Cow::Borrowed);
        }
        if let Some(query) = &self.query
            && let Some(value) = request.bytes(query.value)
        {
            return Some(percent::decode(value));
        }
        request.bytes(self.cookie.as_ref()?.value).map(Cow::Borrowed)
    }

    /// Adds to a plan what removes the field with the key.
    pub fn remove_field(&self, plan: EditPlan) -> EditPlan {
        match &self.field {
            Some(field) => plan.remove_field(&field.name),
            None => plan,
        }
    }

    /// Adds to a verdict what removes the key from the query and from the cookies, unless it stays there.
    pub fn remove_parameters(&self, request: &Values, mut verdict: Verdict) -> Verdict {
        if let Some(query) = &self.query
            && let Some(whole) = query.whole.and_then(|whole| request.bytes(whole))
        {
            let parameters = Parameters::parse(whole);
            if parameters.contains(&query.name) {
                verdict = verdict.set_query(parameters.remove(&query.name));
            }
        }
        if let Some(parameter) = &self.cookie
            && let Some(whole) = parameter.whole.and_then(|whole| request.bytes(whole))
        {
            match cookie::without(whole, &parameter.name) {
                Some(left) if left.is_empty() => verdict = verdict.remove_field("cookie"),
                Some(left) => verdict = verdict.set_field("cookie", left),
                None => {}
            }
        }
        verdict
    }
}

/// Returns the credentials behind a scheme (RFC 9110 §11.4); `None` if the value has another scheme.
fn without_scheme<'a>(value: &'a [u8], scheme: Option<&str>) -> Option<&'a [u8]> {
    let Some(scheme) = scheme else { return Some(value) };
    let (begin, rest) = value.split_at_checked(scheme.len())?;
    let is_scheme = begin.eq_ignore_ascii_case(scheme.as_bytes()) && rest.starts_with(b" ");
    is_scheme.then(|| rest.trim_ascii_start())
}
