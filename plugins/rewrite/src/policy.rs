//! The decision about a request, and its edits.

use plugway_sdk::{ConfigError, Input, Response, Setup, ValueName, Values, Verdict};

use crate::config::Config;
use crate::location::Location;
use crate::query::QueryEdits;
use crate::rewriter::{Decision, Failure, Rewriter};

/// The rules of a configuration.
pub struct Policy {
    rewriter: Rewriter,
    query: QueryEdits,
    path: Input,
    /// The query of the request.
    received: Input,
    /// `None` if no rule needs to know the site of a request.
    site: Option<Site>,
}

/// The values that name the site of a request.
struct Site {
    authority: Input,
    scheme: Input,
    /// The scheme by which the client reached a trusted proxy; the host removes the field of other clients.
    proxied_scheme: Input,
}

impl Policy {
    /// Parses the rules; errors are reported.
    pub fn new(config: &Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let rewriter = Rewriter::new(config, setup);
        let query = QueryEdits::new(&config.query, setup);
        let canonical = &config.canonical;
        let has_canonical = canonical.lower_case || canonical.trailing_slash.is_some() || rewriter.canonical.has_host();
        if !has_canonical && config.map.is_none() && config.rules.is_empty() && query.is_empty() {
            return Err(ConfigError::at("", "nothing to rewrite: expected `canonical`, `map`, `rules` or `query`"));
        }
        let needs = &mut setup.request;
        let needs_site = rewriter.canonical.has_host() || rewriter.names_sites();
        Ok(Policy {
            query,
            path: needs.value(ValueName::Path),
            received: needs.value(ValueName::Query),
            site: needs_site.then(|| Site {
                authority: needs.value(ValueName::Authority),
                scheme: needs.value(ValueName::Scheme),
                proxied_scheme: needs.field("x-forwarded-proto"),
            }),
            rewriter,
        })
    }

    /// Returns the decision about a request.
    pub fn decide(&self, request: &Values) -> Verdict {
        let path = request.text(self.path).unwrap_or_default();
        // `OPTIONS *` has no path.
        if !path.starts_with('/') {
            return Verdict::proceed();
        }
        let scheme = || self.site.as_ref().map_or("http", |site| site.scheme(request));
        let authority = self.site.as_ref().and_then(|site| request.text(site.authority)).unwrap_or_default();
        let decision = match self.rewriter.decide(path, || format!("{}://{authority}", scheme())) {
            Ok(decision) => decision,
            Err(Failure::Path(_)) => return bad_path(),
            Err(Failure::Loop(message)) => return Verdict::Fail(message),
        };
        let received = request.text(self.received);
        let host = self.rewriter.canonical.authority(authority);
        match (host, self.rewriter.canonical.status) {
            (Some(host), Some(status)) => match to_host(decision, path, format!("{}://{host}", scheme()), status) {
                Ok((location, status)) => redirect(&location, status, received),
                Err(_) => bad_path(),
            },
            (host, _) => self.verdict(decision, host, received),
        }
    }

    fn verdict(&self, decision: Decision, host: Option<String>, received: Option<&str>) -> Verdict {
        let mut verdict = Verdict::proceed();
        let mut query = received.map(String::from);
        match decision {
            Decision::Redirect(location, status) => return redirect(&location, status, received),
            Decision::Internal(location) => {
                verdict = verdict.set_path(location.path);
                query = location.query.or(query);
            }
            Decision::Stay => {}
        }
        if !self.query.is_empty() {
            let edited = self.query.apply(query.as_deref().unwrap_or_default());
            query = Some(edited).filter(|query| !query.is_empty());
        }
        if query.as_deref() != received {
            verdict = verdict.set_query(query.unwrap_or_default());
        }
        match host {
            Some(host) => verdict.set_authority(host),
            None => verdict,
        }
    }
}

impl Site {
    /// Returns the scheme that the client used.
    fn scheme<'a>(&self, request: &'a Values) -> &'a str {
        let proxied = request.text(self.proxied_scheme).filter(|scheme| ["http", "https"].contains(scheme));
        proxied.or(request.text(self.scheme)).unwrap_or("http")
    }
}

/// Returns the redirect to the canonical site, with the path that the other rules redirect to.
fn to_host(decision: Decision, path: &str, site: String, status: u16) -> Result<(Location, u16), String> {
    Ok(match decision {
        Decision::Redirect(location, other) if location.site.is_some() => (location, other),
        Decision::Redirect(location, _) => (Location { site: Some(site), ..location }, status),
        // The path that the upstream would get is none of the client's.
        Decision::Internal(_) | Decision::Stay => (Location { site: Some(site), ..Location::path(path)? }, status),
    })
}

/// Returns the response to a client whose path can't be rewritten. The path is the client's, so the plugin has not failed. The
/// result of a rule may be a path that only the upstream knows, and isn't shown.
fn bad_path() -> Verdict {
    let words = "400 Bad Request\nthe path can't be rewritten to one that a request can have\n";
    Response::new(400).body("text/plain; charset=utf-8", words).into()
}

fn redirect(location: &Location, status: u16, query: Option<&str>) -> Verdict {
    Response::new(status).field("location", location.text(query)).into()
}
