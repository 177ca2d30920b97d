//! The assembly of an upstream's tables for health checks, outlier detection and retries.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::uri::PathAndQuery;

use super::Assembly;
use super::endpoints::ListedEndpoints;
use super::units::status_class;
use crate::config::diagnostic::Source;
use crate::config::manifest::{self, StatusWord, TableOrOff};
use crate::config::spanned::Spanned;
use crate::protocol::authority;
use crate::upstream::health::{HealthRules, OutlierRules};
use crate::upstream::health_check::{CheckKind, HealthCheck, HttpCheck};
use crate::upstream::retry::{BUFFER, Methods, RetryPolicy, Triggers};
use crate::upstream::status_codes::StatusCodes;
use crate::upstream::{ConnectionSettings, EndpointProtocol};

impl Assembly<'_> {
    /// Builds the health rules of an upstream.
    pub(super) fn health(&mut self, source: &Arc<Source>, upstream: &manifest::UpstreamTable) -> HealthRules {
        let none = manifest::HealthChecksTable::default();
        let (checks, defaults) = (upstream.health.as_ref().map_or(&none, Spanned::get_ref), HealthRules::default());
        let slow_start = upstream.slow_start.as_ref();
        HealthRules {
            are_checked: upstream.health.is_some(),
            healthy: self.up_to(source, checks.healthy.as_ref(), defaults.healthy as usize, 1..=100) as u32,
            unhealthy: self.up_to(source, checks.unhealthy.as_ref(), defaults.unhealthy as usize, 1..=100) as u32,
            outliers: match &upstream.outliers {
                TableOrOff::Off => None,
                TableOrOff::On(outliers) => Some(self.outliers(source, outliers)),
            },
            slow_start: slow_start.map(|text| self.duration(source, Some(text), Duration::ZERO)),
            panic: self.up_to(source, upstream.panic_threshold.as_ref(), defaults.panic as usize, 0..=100) as u32,
        }
    }

    fn outliers(&mut self, source: &Arc<Source>, outliers: &manifest::OutliersTable) -> OutlierRules {
        let defaults = OutlierRules::default();
        let rate = outliers.error_rate.as_ref();
        let latency = outliers.latency.as_ref();
        let ejection = self.duration(source, outliers.ejection.as_ref(), defaults.ejection);
        let longest = self.duration(source, outliers.longest_ejection.as_ref(), defaults.longest.max(ejection));
        if let Some(span) = outliers.longest_ejection.as_ref().filter(|_| longest < ejection).map(Spanned::span) {
            let message = format!("`longest-ejection` shorter than `ejection`: expected at least {ejection:?}");
            self.problems.at(source, span, message);
        }
        OutlierRules {
            consecutive: self.up_to(source, outliers.consecutive.as_ref(), defaults.consecutive as usize, 0..=1_000_000)
                as u32,
            statuses: self.statuses(source, &outliers.statuses),
            error_rate: rate.map(|rate| self.up_to(source, Some(rate), 1, 1..=100) as u32),
            latency: latency.map(|percent| self.up_to(source, Some(percent), 200, 101..=100_000) as u32),
            requests: self.up_to(source, outliers.requests.as_ref(), defaults.requests as usize, 1..=1_000_000) as u64,
            interval: self.duration(source, outliers.interval.as_ref(), defaults.interval),
            ejection,
            longest,
            most: self.up_to(source, outliers.most.as_ref(), defaults.most as usize, 0..=100) as u32,
        }
    }

    /// Returns the settings of health checks; `None` if one of them has an error.
    pub(super) fn check(
        &mut self,
        source: &Arc<Source>,
        checks: &manifest::HealthChecksTable,
        rules: &ConnectionSettings,
    ) -> Option<HealthCheck> {
        let word = checks.kind.as_ref().map_or("http", |kind| kind.get_ref().as_str());
        self.of_no_use(source, checks, word);
        let kind = match word {
            "http" => CheckKind::Http(self.http_check(source, checks)?),
            "tcp" => CheckKind::Tcp,
            "grpc" => {
                CheckKind::Grpc(checks.service.as_ref().map(|service| service.get_ref().clone()).unwrap_or_default())
            }
            other => {
                let message =
                    format!("unknown kind of health check: `{other}`; expected \"http\", \"tcp\" or \"grpc\"");
                let span = checks.kind.as_ref().map(Spanned::span).unwrap_or_default();
                self.problems.at(source, span, message);
                return None;
            }
        };
        let interval = self.duration(source, checks.interval.as_ref(), Duration::from_secs(5));
        let timeout = self.duration(source, checks.timeout.as_ref(), Duration::from_secs(2));
        let (proxy_protocol, head) = (rules.proxy_protocol, rules.head);
        Some(HealthCheck { kind, interval, timeout, proxy_protocol, head })
    }

    /// Keys that a kind of check has no use for.
    fn of_no_use(&mut self, source: &Arc<Source>, checks: &manifest::HealthChecksTable, kind: &str) {
        let of_http = [
            ("path", checks.path.as_ref().map(Spanned::span)),
            ("host", checks.host.as_ref().map(Spanned::span)),
            ("statuses", checks.statuses.as_ref().map(Spanned::span)),
            ("content", checks.content.as_ref().map(Spanned::span)),
        ];
        let of_grpc = [("service", checks.service.as_ref().map(Spanned::span))];
        let of_http = of_http.into_iter().filter(|_| kind != "http").map(|(key, span)| (key, span, "http"));
        let of_grpc = of_grpc.into_iter().filter(|_| kind != "grpc").map(|(key, span)| (key, span, "grpc"));
        for (key, span, needed) in of_http.chain(of_grpc) {
            if let Some(span) = span {
                let message =
                    format!("`{key}` without `kind = \"{needed}\"`: it has no effect; remove it, or set that kind");
                self.problems.at(source, span, message);
            }
        }
    }

    fn http_check(&mut self, source: &Arc<Source>, checks: &manifest::HealthChecksTable) -> Option<HttpCheck> {
        let target = match &checks.path {
            None => PathAndQuery::from_static("/"),
            Some(path) => match PathAndQuery::try_from(path.get_ref().as_str()) {
                Ok(target) if is_target(path.get_ref()) => target,
                _ => {
                    self.problems.at(
                        source,
                        path.span(),
                        format!(
                            "invalid path: `{}`; expected one such as `/healthz`, with other characters escaped, such as \
                             `%20` for a space",
                            path.get_ref()
                        ),
                    );
                    return None;
                }
            },
        };
        let host = match &checks.host {
            None => None,
            Some(host) => match HeaderValue::from_str(host.get_ref()) {
                Ok(value) if authority::normal(value.as_bytes(), None).is_ok() && !value.is_empty() => Some(value),
                _ => {
                    self.problems.at(
                        source,
                        host.span(),
                        format!("invalid host: `{}`; expected one such as `app.internal`", host.get_ref()),
                    );
                    return None;
                }
            },
        };
        let statuses = match &checks.statuses {
            Some(statuses) if statuses.get_ref().is_empty() => {
                self.problems.at(
                    source,
                    statuses.span(),
                    "no status: `statuses` is empty, so that no endpoint is healthy; expected some, such as [\"2xx\"]",
                );
                return None;
            }
            Some(statuses) => self.statuses(source, statuses.get_ref()),
            None => {
                let mut good = StatusCodes::default();
                good.add(200..=399);
                good
            }
        };
        Some(HttpCheck { target, host, statuses, content: checks.content.as_ref().map(|text| text.get_ref().clone()) })
    }

    /// gRPC needs HTTP/2.
    pub(super) fn speaks_grpc(
        &mut self,
        source: &Arc<Source>,
        upstream: &manifest::UpstreamTable,
        members: &ListedEndpoints,
    ) {
        let kind = upstream.health.as_ref().and_then(|checks| checks.get_ref().kind.as_ref());
        let Some(kind) = kind.filter(|kind| kind.get_ref() == "grpc") else { return };
        if members.speak().any(|speaks| *speaks == EndpointProtocol::Http1) {
            let message = "gRPC over HTTP/1: an endpoint has neither `h2c://` nor `https://`; write one of them, such as \"h2c://127.0.0.1:50051\"";
            self.problems.at(source, kind.span(), message);
        }
        let is_refused = upstream.tls.as_ref().is_some_and(|tls| tls.get_ref().http2 == Some(false));
        if is_refused && members.speak().any(|speaks| matches!(speaks, EndpointProtocol::Tls(_))) {
            let message = "gRPC without HTTP/2: an endpoint with `https://` speaks HTTP/1 by `http2 = false` of `tls`; remove `http2`";
            self.problems.at(source, kind.span(), message);
        }
    }

    /// Returns the retry policy of an upstream.
    pub(super) fn retry(&mut self, source: &Arc<Source>, retry: &TableOrOff<manifest::RetryTable>) -> RetryPolicy {
        let TableOrOff::On(retry) = retry else { return RetryPolicy::never() };
        let on = match &retry.on {
            None => Triggers { connect: true, reset: true, ..Triggers::default() },
            Some(words) => self.triggers(source, words),
        };
        let methods = match retry.methods.as_ref().map(|word| (word.get_ref().as_str(), word.span())) {
            None | Some(("idempotent", _)) => Methods::Idempotent,
            Some(("any", _)) => Methods::Any,
            Some((word, span)) => {
                let message = format!("unknown value: `{word}`; expected \"idempotent\" or \"any\"");
                self.problems.at(source, span, message);
                Methods::Idempotent
            }
        };
        RetryPolicy {
            retries: self.up_to(source, retry.retries.as_ref(), 2, 0..=MAX_RETRIES) as u32,
            on,
            methods,
            budget: self.up_to(source, retry.budget.as_ref(), 20, 0..=100) as u32,
            buffer: self.bytes(source, retry.buffer.as_ref(), BUFFER),
        }
    }

    fn triggers(&mut self, source: &Arc<Source>, words: &[Spanned<StatusWord>]) -> Triggers {
        let mut triggers = Triggers::default();
        for word in words {
            match word.get_ref() {
                StatusWord::Word(name) if name == "connect" => triggers.connect = true,
                StatusWord::Word(name) if name == "reset" => triggers.reset = true,
                StatusWord::Word(name) if name == "timeout" => triggers.timeout = true,
                StatusWord::Word(name) if name == "malformed" => triggers.malformed = true,
                status => match codes(status).filter(|codes| *codes.start() >= 400) {
                    Some(codes) => triggers.statuses.add(codes),
                    None => {
                        let message = format!(
                            "unknown reason for a retry: {}; expected \"connect\", \"reset\", \"timeout\", \"malformed\", the \
                             status code of an error such as 503, or a class such as \"5xx\"",
                            shown(word.get_ref())
                        );
                        self.problems.at(source, word.span(), message);
                    }
                },
            }
        }
        triggers
    }

    fn statuses(&mut self, source: &Arc<Source>, words: &[Spanned<StatusWord>]) -> StatusCodes {
        let mut statuses = StatusCodes::default();
        for word in words {
            match codes(word.get_ref()) {
                Some(codes) => statuses.add(codes),
                None => self.problems.at(
                    source,
                    word.span(),
                    format!(
                        "invalid status: {}; expected a code from 200 to 599, or a class such as \"5xx\"",
                        shown(word.get_ref())
                    ),
                ),
            }
        }
        statuses
    }
}

/// The maximum of `retries`. Each retry goes to another endpoint if there is one, and more of them only keep a client
/// waiting.
const MAX_RETRIES: usize = 10;

/// Whether a text can stand in a request line. `http` accepts bytes beyond ASCII.
fn is_target(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

fn shown(word: &StatusWord) -> String {
    match word {
        StatusWord::Code(code) => code.to_string(),
        StatusWord::Word(word) => format!("`{word}`"),
    }
}

fn codes(word: &StatusWord) -> Option<RangeInclusive<u16>> {
    match word {
        StatusWord::Code(code) => Some(*code..=*code).filter(|code| (200..=599).contains(code.start())),
        StatusWord::Word(class) => status_class(class),
    }
}
