//! The decisions of a shared cache by RFC 9111.

use std::time::{Duration, UNIX_EPOCH};

use super::directives::{Directives, seconds};
use super::key::KeyParts;
use super::{CREDENTIALS, Cookies, Options, Query, http_date};
use crate::bounds;
use crate::token::is_token;
use crate::{
    BypassReason, CacheKey, FetchTimes, Input, Lookup, LookupPlan, Part, Refusal, Reuse, Setup, Storage, StoreDecision,
    StoredResponse, ValueName, Values, cookie,
};

/// The policy of a shared cache. Create it in [`Plugin::new`](crate::Plugin::new), and call its methods in the hooks.
#[derive(Debug)]
pub struct Standard {
    options: Options,
    request: RequestNeeds,
    response: ResponseNeeds,
}

#[derive(Debug)]
struct RequestNeeds {
    method: Input,
    key: KeyParts,
    control: Input,
    pragma: Input,
    if_match: Input,
    if_unmodified: Input,
    bypass: Vec<Input>,
    /// The field `Cookie`; `None` if no cookies are bypassed by the beginning of their names.
    cookies: Option<Input>,
}

#[derive(Debug)]
struct ResponseNeeds {
    key: KeyParts,
    authorization: Input,
    credentials: Input,
    status: Input,
    control: Input,
    targeted: Vec<Input>,
    expires: Input,
    date: Input,
    age: Input,
    modified: Input,
    tag: Input,
    vary: Input,
    cookie: Input,
    tags: Vec<Input>,
    location: Input,
    content_location: Input,
}

/// The fields that clients can send and that origins are known to obey. They are in the cache key, so that no client
/// gets a response that was made for another client's field.
const OBEYED: [&str; 17] = [
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "front-end-https",
    "x-url-scheme",
    "x-original-url",
    "x-rewrite-url",
    "x-original-host",
    "x-host",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
];

/// The part of a request's `Cache-Control` that is read, in bytes.
const MAX_ASKED: usize = 1 << 10;

/// The safe methods of IANA's registry, except GET and HEAD.
const SAFE: [&[u8]; 7] = [b"OPTIONS", b"TRACE", b"PROPFIND", b"REPORT", b"SEARCH", b"QUERY", b"PRI"];

/// The status codes that are cacheable by default (RFC 9110 §15.1), except errors.
const HEURISTIC: [u16; 6] = [200, 203, 204, 300, 301, 308];

/// The errors that depend on the client or the moment; they are stored only if the configuration says so.
const ANOTHERS: [u16; 9] = [400, 408, 413, 421, 425, 429, 431, 505, 511];

/// The status codes of RFC 9110 §15 and of later RFCs, none of which has special rules for storing.
const UNDERSTOOD: [std::ops::RangeInclusive<u16>; 5] = [200..=205, 300..=308, 400..=417, 421..=431, 500..=505];

impl Standard {
    /// Creates the policy and declares the values that it needs.
    pub fn new(setup: &mut Setup, options: Options) -> Self {
        let fields = OBEYED.iter().map(|name| ValueName::RequestField((*name).into()));
        let labelled = |name: ValueName| (name.clone(), label(&name));
        let (fields, extra): (Vec<_>, Vec<_>) =
            (fields.map(labelled).collect(), options.key.iter().cloned().map(labelled).collect());
        let needs = &mut setup.cache_request;
        let request = RequestNeeds {
            method: needs.value(ValueName::Method),
            key: KeyParts::new(needs, &fields, &extra),
            control: needs.field("cache-control"),
            pragma: needs.field("pragma"),
            if_match: needs.field("if-match"),
            if_unmodified: needs.field("if-unmodified-since"),
            bypass: options.bypass.iter().map(|name| needs.value(name.clone())).collect(),
            cookies: (!options.bypass_cookies.is_empty()).then(|| needs.field("cookie")),
        };
        let needs = &mut setup.cache_response;
        let response = ResponseNeeds {
            key: KeyParts::new(needs, &fields, &extra),
            authorization: needs.field("authorization"),
            credentials: needs.note(CREDENTIALS),
            status: needs.value(ValueName::Status),
            control: needs.response_field("cache-control"),
            targeted: options.targeted.iter().map(|name| needs.response_field(name)).collect(),
            expires: needs.response_field("expires"),
            date: needs.response_field("date"),
            age: needs.response_field("age"),
            modified: needs.response_field("last-modified"),
            tag: needs.response_field("etag"),
            vary: needs.response_field("vary"),
            cookie: needs.response_field("set-cookie"),
            tags: options.tags.iter().map(|name| needs.response_field(name)).collect(),
            location: needs.response_field("location"),
            content_location: needs.response_field("content-location"),
        };
        Standard { options, request, response }
    }

    /// Returns a lookup plan for [`Setup::lookup_plan`]. Use it if your `on_lookup` returns exactly the result of
    /// [`Standard::lookup`]. `None` if the query isn't used unchanged.
    pub fn plan(&self) -> Option<LookupPlan> {
        let options = &self.options;
        if options.query != Query::Whole || options.sort_query {
            return None;
        }
        let extra = options
            .key
            .iter()
            .flat_map(|name| [Part::Text(format!("\n{}:", label(name)).into_bytes()), Part::Value(name.clone())]);
        let key = std::iter::once(Part::Value(ValueName::Uri)).chain(extra).collect();
        let said = ["cache-control", "pragma"].iter().filter(|_| options.obey_requests);
        let cookie = self.request.cookies.map(|_| &"cookie");
        let fields = said.chain(&["if-match", "if-unmodified-since"]).chain(&OBEYED).chain(cookie);
        let fields = fields.map(|name| ValueName::RequestField((*name).into()));
        Some(LookupPlan { key, unless: fields.chain(options.bypass.iter().cloned()).collect() })
    }

    /// Decides about a request; for `on_lookup`.
    pub fn lookup(&self, request: &Values) -> Lookup {
        let needs = &self.request;
        let method = request.bytes(needs.method).unwrap_or_default();
        if method != b"GET" && method != b"HEAD" {
            return if SAFE.contains(&method) { Lookup::Bypass(BypassReason::Method) } else { Lookup::Invalidates };
        }
        let is_bypassed = needs.bypass.iter().any(|need| request.bytes(*need).is_some_and(|value| !value.is_empty()));
        if is_bypassed || self.has_bypassed_cookie(request) {
            return Lookup::Bypass(BypassReason::Configured);
        }
        // Only the origin can evaluate these conditions (RFC 9111 §4.3.2).
        if request.bytes(needs.if_match).is_some() || request.bytes(needs.if_unmodified).is_some() {
            return Lookup::Bypass(BypassReason::Request);
        }
        let use_cache = |allow_fresh, only_if_cached| {
            let key = needs.key.key(request, &self.options.query, self.options.sort_query);
            Lookup::UseCache(CacheKey { key, allow_fresh, only_if_cached })
        };
        let Some(asked) = self.asked(request) else { return use_cache(true, false) };
        if asked.no_store {
            return Lookup::Bypass(BypassReason::Request);
        }
        let allow_fresh = asked.no_cache.is_none() && asked.max_age.is_none() && asked.min_fresh.is_none();
        use_cache(allow_fresh, asked.only_if_cached)
    }

    /// Decides about a stored response; for `on_stored`.
    pub fn stored(&self, request: &Values, stored: &StoredResponse) -> Reuse {
        let asked = self.asked(request).unwrap_or_default();
        let age = stored.age_ms;
        let is_fresh = is_fresh(stored);
        let lacks = asked.min_fresh.is_some_and(|least| stored.lifetime_ms < age.saturating_add(least * 1000));
        if asked.no_cache.is_some() || lacks || asked.max_age.is_some_and(|max| age > max * 1000) {
            return Reuse::Validate;
        }
        if is_fresh {
            return Reuse::Serve;
        }
        if stored.must_revalidate {
            return Reuse::Validate;
        }
        let staleness = age.saturating_sub(stored.lifetime_ms);
        if !stored.purged && asked.max_stale.is_some_and(|max| staleness <= max * 1000) {
            return Reuse::Serve;
        }
        if stored.stale_while_revalidate_ms > 0 && staleness <= stored.stale_while_revalidate_ms {
            return Reuse::ServeAndRevalidate;
        }
        Reuse::Validate
    }

    /// Decides whether and how a response is stored; for `on_fetched`.
    pub fn fetched(&self, response: &Values, times: &FetchTimes) -> StoreDecision {
        self.storage(response, times).map_or_else(StoreDecision::Refuse, StoreDecision::Store)
    }

    /// Returns the cache keys that a request invalidates (RFC 9111 §4.4); for `on_invalidate`.
    pub fn invalidated_keys(&self, response: &Values) -> Vec<Vec<u8>> {
        let (needs, query, sorts) = (&self.response, &self.options.query, self.options.sort_query);
        let referred = [needs.location, needs.content_location].into_iter().filter_map(|need| response.bytes(need));
        let referred = referred.filter_map(|reference| needs.key.referred(response, reference, query, sorts));
        let uris = std::iter::once(needs.key.uri(response, query, sorts)).chain(referred);
        let keys = uris.flat_map(|uri| needs.key.keys(response, &uri));
        // No response is stored under a longer key.
        keys.filter(|key| key.len() <= bounds::KEY).collect()
    }

    /// Decides whether a stale response may be served instead of an error (RFC 5861 §4); for `on_upstream_error`.
    pub fn upstream_error(&self, request: &Values, stored: &StoredResponse, status: Option<u16>) -> bool {
        let asked = self.asked(request).unwrap_or_default();
        if !matches!(status, None | Some(500 | 502..=504)) || asked.no_cache.is_some() {
            return false;
        }
        if is_fresh(stored) {
            return true;
        }
        let window = stored.stale_if_error_ms.max(asked.stale_if_error.unwrap_or(0) * 1000);
        let staleness = stored.age_ms.saturating_sub(stored.lifetime_ms);
        !stored.must_revalidate && window > 0 && staleness <= window
    }

    /// Returns the caching directives of a request; `None` if it has none, which is the common case.
    pub fn asked(&self, request: &Values) -> Option<Directives> {
        if !self.options.obey_requests {
            return None;
        }
        match (request.bytes(self.request.control), request.bytes(self.request.pragma)) {
            (Some(control), _) => Some(Directives::parse(beginning(control))),
            // `Pragma` is the directive from before HTTP/1.1 (RFC 9111 §5.4).
            (None, Some(pragma)) => {
                let is_no_cache = pragma.to_ascii_lowercase().windows(8).any(|word| word == b"no-cache");
                is_no_cache.then(|| Directives { no_cache: Some(Vec::new()), ..Directives::default() })
            }
            (None, None) => None,
        }
    }

    /// Whether a request has a cookie that makes it bypass the cache by the beginning of the cookie's name.
    fn has_bypassed_cookie(&self, request: &Values) -> bool {
        let Some(field) = self.request.cookies.and_then(|need| request.bytes(need)) else { return false };
        cookie::all_pairs(field).any(|(name, value)| {
            let is_named = |begin: &String| name.starts_with(begin.as_bytes());
            !value.is_empty() && self.options.bypass_cookies.iter().any(is_named)
        })
    }

    /// Applies the rules for storing of RFC 9111 §3.
    fn storage(&self, response: &Values, times: &FetchTimes) -> Result<Storage, Refusal> {
        let (needs, options) = (&self.response, &self.options);
        let status = response.text(needs.status).and_then(|status| status.parse().ok()).unwrap_or(0);
        let targeted =
            needs.targeted.iter().filter_map(|need| Directives::parse_targeted(response.bytes(*need)?)).next();
        let is_targeted = targeted.is_some();
        let said = targeted.unwrap_or_else(|| Directives::parse(response.bytes(needs.control).unwrap_or_default()));
        check_directives(status, &said)?;
        let vary = self.vary(response)?;
        let shares = said.public || said.s_maxage.is_some() || said.must_revalidate;
        // A plugin may have removed the field, or let the client pass by other credentials.
        let has_credentials =
            [needs.authorization, needs.credentials].iter().any(|need| response.bytes(*need).is_some());
        if has_credentials && !shares {
            return Err(Refusal::Authorization);
        }
        let drop_fields = self.dropped_fields(response, &said)?;
        let lifetime = self.lifetime(response, times, status, &said, is_targeted)?;
        let no_cache = said.no_cache.as_ref().is_some_and(Vec::is_empty);
        let lifetime = if no_cache { Duration::ZERO } else { lifetime.min(options.longest) };
        // An `s-maxage` implies `proxy-revalidate` (RFC 9111 §5.2.2.10), unless the response itself sets a time for
        // which it may be served stale.
        let says_stale = said.stale_while_revalidate.is_some() || said.stale_if_error.is_some();
        let must_revalidate =
            no_cache || said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some() && !says_stale;
        let window = |said: Option<u64>, default| {
            if must_revalidate { Duration::ZERO } else { said.map_or(default, Duration::from_secs) }
        };
        let stale_while_revalidate = window(said.stale_while_revalidate, options.stale_while_revalidate);
        let stale_if_error = window(said.stale_if_error, options.stale_if_error);
        let is_validated = response.bytes(needs.tag).is_some() || response.bytes(needs.modified).is_some();
        if lifetime.is_zero() && !is_validated && stale_while_revalidate.is_zero() && stale_if_error.is_zero() {
            return Err(Refusal::NoLifetime);
        }
        let tags: Vec<String> = needs.tags.iter().flat_map(|need| words(response.bytes(*need))).collect();
        if !fits(&tags) {
            return Err(Refusal::Other("too-many-tags".into()));
        }
        Ok(Storage {
            lifetime_ms: lifetime.as_millis() as u64,
            initial_age_ms: initial_age(response.bytes(needs.age), response.text(needs.date), times),
            stale_while_revalidate_ms: stale_while_revalidate.as_millis() as u64,
            stale_if_error_ms: stale_if_error.as_millis() as u64,
            must_revalidate,
            vary,
            tags,
            drop_fields,
        })
    }

    /// Returns the names of a response's `Vary`.
    fn vary(&self, response: &Values) -> Result<Vec<String>, Refusal> {
        let vary = list(response.bytes(self.response.vary));
        if !fits(&vary) || vary.iter().any(|name| name == "*" || !is_token(name)) {
            return Err(Refusal::Vary);
        }
        Ok(vary)
    }

    /// Returns the names of the fields that are not stored with a response.
    fn dropped_fields(&self, response: &Values, said: &Directives) -> Result<Vec<String>, Refusal> {
        let mut drop_fields =
            [said.private.clone(), said.no_cache.clone()].into_iter().flatten().flatten().collect::<Vec<_>>();
        if response.bytes(self.response.cookie).is_some() && !drop_fields.iter().any(|name| name == "set-cookie") {
            match self.options.cookies {
                Cookies::Refuse => return Err(Refusal::SetCookie),
                Cookies::Strip => drop_fields.push("set-cookie".into()),
                Cookies::Keep => {}
            }
        }
        if self.options.hide_tags {
            drop_fields.extend(self.options.tags.iter().cloned());
        }
        if !fits(&drop_fields) {
            return Err(Refusal::Other("too-many-fields".into()));
        }
        Ok(drop_fields)
    }

    /// Returns the freshness lifetime (RFC 9111 §4.2.1, §4.2.2).
    fn lifetime(
        &self,
        response: &Values,
        times: &FetchTimes,
        status: u16,
        said: &Directives,
        is_targeted: bool,
    ) -> Result<Duration, Refusal> {
        let (needs, options) = (&self.response, &self.options);
        let date = response.text(needs.date).and_then(unix_ms).unwrap_or(times.received_ms);
        let expires = response.bytes(needs.expires).filter(|_| !is_targeted);
        // An invalid date is in the past (RFC 9111 §5.3).
        let expires = expires.map(|expires| std::str::from_utf8(expires).ok().and_then(unix_ms).unwrap_or(0));
        let expires = expires.map(|expires| expires.saturating_sub(date));
        let explicit = said.s_maxage.or(said.max_age).map(Duration::from_secs);
        let explicit = explicit.or(expires.map(Duration::from_millis));
        let configured = options.lifetimes.iter().find(|(codes, _)| codes.contains(&status)).map(|(_, time)| *time);
        if ANOTHERS.contains(&status) && configured.is_none() {
            return Err(Refusal::Status);
        }
        if let Some(explicit) = explicit {
            return Ok(explicit);
        }
        if said.no_cache.as_ref().is_some_and(Vec::is_empty) && status < 400 {
            return Ok(Duration::ZERO);
        }
        let modified = response.text(needs.modified).and_then(unix_ms);
        let may_guess = HEURISTIC.contains(&status) || said.public && status < 400;
        let guess = modified.filter(|_| may_guess).map(|modified| {
            let part = date.saturating_sub(modified) / 100 * options.heuristic_percent;
            Duration::from_millis(part).min(options.heuristic_most)
        });
        let refusal = if may_guess { Refusal::NoLifetime } else { Refusal::Status };
        configured.or(guess.filter(|guess| !guess.is_zero())).ok_or(refusal)
    }
}

/// Returns the beginning of a request's `Cache-Control`, in which all directives of honest clients are. A client could make
/// each of its requests expensive by thousands of them.
fn beginning(control: &[u8]) -> &[u8] {
    if control.len() <= MAX_ASKED {
        return control;
    }
    let end = control[..MAX_ASKED].iter().rposition(|byte| *byte == b',');
    &control[..end.unwrap_or(0)]
}

/// Checks that neither the status nor a directive forbids to store a response.
fn check_directives(status: u16, said: &Directives) -> Result<(), Refusal> {
    let is_understood = UNDERSTOOD.iter().any(|codes| codes.contains(&status));
    if status < 200 || status == 206 || status == 304 || said.must_understand && !is_understood {
        return Err(Refusal::Status);
    }
    if said.no_store && !said.must_understand {
        return Err(Refusal::NoStore);
    }
    if said.private.as_ref().is_some_and(Vec::is_empty) {
        return Err(Refusal::Private);
    }
    Ok(())
}

/// Whether the host accepts a list of names: it rejects longer lists and names, so a response with one isn't stored.
fn fits(names: &[String]) -> bool {
    names.len() <= bounds::CACHE_LIST && names.iter().all(|name| name.len() <= bounds::NAME)
}

fn label(name: &ValueName) -> String {
    match name {
        ValueName::RequestField(name) => name.clone(),
        ValueName::Cookie(name) => format!("cookie {name}"),
        other => format!("{other:?}"),
    }
}

fn is_fresh(stored: &StoredResponse) -> bool {
    !stored.purged && stored.age_ms < stored.lifetime_ms
}

/// Returns the age at arrival (RFC 9111 §4.2.3), in milliseconds.
fn initial_age(age: Option<&[u8]>, date: Option<&str>, times: &FetchTimes) -> u64 {
    let apparent = date.and_then(unix_ms).map_or(0, |date| times.received_ms.saturating_sub(date));
    let first = age.and_then(|age| std::str::from_utf8(age.split(|byte| *byte == b',').next()?.trim_ascii()).ok());
    let corrected = (seconds(first) * 1000).saturating_add(times.delay_ms);
    // Dates and ages are in whole seconds, so an age of less than a second is noise.
    Some(apparent.max(corrected)).filter(|age| *age >= 1000).unwrap_or(0)
}

/// Parses a date into milliseconds of Unix time.
fn unix_ms(date: &str) -> Option<u64> {
    http_date::parse(date)?.duration_since(UNIX_EPOCH).ok().map(|since| since.as_millis() as u64)
}

/// Returns the members of a list, in lower case and without duplicates.
fn list(field: Option<&[u8]>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in field.unwrap_or_default().split(|byte| *byte == b',') {
        let name = String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase();
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn words(field: Option<&[u8]>) -> Vec<String> {
    let words = field.unwrap_or_default().split(|byte| *byte == b',' || byte.is_ascii_whitespace());
    let words = words.filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests;
