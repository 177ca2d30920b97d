//! The stock plugin `security-headers`, which sets the fields by which browsers protect a site.

mod config;
mod csp;
mod fields;
mod hsts;
mod permissions;

use plugway_sdk::{
    ConfigError, EditPlan, EditPlanId, Input, Part, Plugin, RequestFilter, ResponseFilter, Setup, ValueName, Values,
    Verdict, export,
};

use config::Config;
use fields::{Fields, Scheme};

/// The configured plugin.
pub struct SecurityHeaders {
    scheme: Input,
    secure: EditPlanId,
    plain: EditPlanId,
    /// The request field that has the nonce; `None` if no policy has nonces.
    nonce_field: Option<String>,
}

impl Plugin for SecurityHeaders {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let mut fields = Fields::new(&config, setup);
        let [secure, plain] = [Scheme::Https, Scheme::Http].map(|scheme| setup.plan(fields.plan(scheme)));
        let nonce_field = fields.nonce_field.take();
        if let Some(field) = &nonce_field {
            // The host checks plans before there are requests: some fields can't be set.
            setup.plan(EditPlan::default().set_field(field, vec![Part::Text(Vec::new())]));
        }
        setup.request_plan = nonce_field.is_none().then(|| setup.plan(EditPlan::default()));
        setup.response_plan = (!fields.depend_on_scheme()).then_some(plain);
        Ok(SecurityHeaders { scheme: setup.response.value(ValueName::Scheme), secure, plain, nonce_field })
    }
}

impl RequestFilter for SecurityHeaders {
    fn on_request(&mut self, _: &Values) -> Verdict {
        match (&self.nonce_field, csp::nonce()) {
            (Some(field), Some(nonce)) => Verdict::proceed().set_field(field, nonce),
            (Some(_), None) => Verdict::Fail("there are no random numbers for a nonce".into()),
            (None, _) => Verdict::proceed(),
        }
    }
}

impl ResponseFilter for SecurityHeaders {
    fn on_response(&mut self, response: &Values) -> Verdict {
        if response.bytes(self.scheme) == Some(b"https") { self.secure.into() } else { self.plain.into() }
    }
}

export!(SecurityHeaders: RequestFilter, ResponseFilter);

#[cfg(test)]
mod tests;
