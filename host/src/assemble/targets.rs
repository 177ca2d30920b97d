//! The assembly of a route's target.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::config::spanned::Spanned;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode};

use super::{Assembly, beside, idioms, named_table, some_of};
use crate::config::diagnostic::{Doubt, Source};
use crate::config::manifest::{FilesTable, RespondTable, RouteTable};
use crate::config::serde_messages::hint;
use crate::context::edit_check;
use crate::context::template::{self, UriTemplate};
use crate::generation::ids::{Id, UpstreamId};
use crate::generation::target::{FixedResponse, Redirect, Target};
use crate::protocol::content_coding::ContentCoding;
use crate::protocol::media_type;
use crate::static_files::find::FileSite;
use crate::static_files::shared_listings::SharedListings;
use crate::static_files::site_path::{PathLevel, SitePath, is_served};
use crate::system::files;

/// The statuses of a redirect that clients follow (RFC 9110 §15.4).
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// The statuses that have no content (RFC 9110 §15.3.5, §15.3.6, §15.4.5).
const WITHOUT_CONTENT: [u16; 3] = [204, 205, 304];

/// Statuses with the field that responses with them need (RFC 9110 §15.3.7, §15.4, §15.5.2, §15.5.6, §15.5.8, §15.5.22),
/// and the remedy if it is missing.
const REQUIRED: [(&[u16], &str, &str); 6] = [
    (&[206], "Content-Range", "write the status 200"),
    (&REDIRECTS, "Location", "write `redirect = \"https://www.example.org{uri}\"` in place of `respond`"),
    (
        &[401],
        "WWW-Authenticate",
        "add `fields = { WWW-Authenticate = 'Basic realm=\"site\"' }`, or write the status 403",
    ),
    (&[405], "Allow", "add the methods that the path has, such as `fields = { Allow = \"GET, HEAD\" }`"),
    (&[407], "Proxy-Authenticate", "write the status 401 or 403: 407 is for forward proxies"),
    (&[426], "Upgrade", "write another status, such as 400: a fixed response can't have this field"),
];

/// The value of error pages that is not written in other pages; `{status}` may be JavaScript.
const PAGE_VALUE: &[u8] = b"{request-id}";

impl Assembly<'_> {
    /// Returns the target of a route, or any target if the route has an error there. `prefix` has the segments that the
    /// route strips from paths.
    pub(super) fn target(
        &mut self,
        source: &Arc<Source>,
        route: &Spanned<RouteTable>,
        upstreams: &HashMap<Arc<str>, UpstreamId>,
        prefix: Option<&[String]>,
    ) -> Target {
        let table = route.get_ref();
        let targets = [
            ("upstream", table.upstream.as_ref().map(Spanned::span)),
            ("redirect", table.redirect.as_ref().map(Spanned::span)),
            ("respond", table.respond.as_ref().map(Spanned::span)),
            ("files", table.files.as_ref().map(Spanned::span)),
        ];
        let given: Vec<(&str, Range<usize>)> =
            targets.into_iter().filter_map(|(key, span)| Some((key, span?))).collect();
        match &given[..] {
            [] => {
                let message =
                    "route without a target: add `upstream = \"app\"`, or one of `redirect`, `respond` and `files`";
                self.problems.at(source, route.span(), message);
            }
            [(first, _), (second, span), ..] => {
                let message = format!("route with two targets: `{first}` and `{second}`; keep one of them");
                self.problems.at(source, span.clone(), message);
            }
            [_] => {}
        }
        if let (Some(status), None) = (&table.status, &table.redirect) {
            let message = "`status` without `redirect`: a response of this route's own is `respond = { status = 404 }`; remove it";
            self.problems.at(source, status.span(), message);
        }
        if let Some(location) = &table.redirect {
            return Target::Redirect(self.redirect(source, location, table.status.as_ref()));
        }
        if let Some(respond) = &table.respond {
            let fixed = self.fixed_response(source, respond.get_ref());
            // A plugin may add the field.
            if table.plugins.is_empty() {
                self.check_required_field(source, respond.get_ref(), &fixed);
            }
            return Target::Respond(fixed);
        }
        if let Some(files) = &table.files {
            self.check_methods_of_files(source, table);
            let prefix = prefix.unwrap_or_default().iter().map(|segment| format!("/{segment}")).collect();
            return Target::Files(Arc::new(FileSite { prefix, ..self.files_target(source, files.get_ref()) }));
        }
        let upstream_id = table.upstream.as_ref().and_then(|name| self.upstream_of(source, name, upstreams));
        Target::Upstream(upstream_id.unwrap_or_else(|| UpstreamId::new(0)))
    }

    /// Looks up the upstream of a route.
    fn upstream_of(
        &mut self,
        source: &Arc<Source>,
        name: &Spanned<String>,
        upstreams: &HashMap<Arc<str>, UpstreamId>,
    ) -> Option<UpstreamId> {
        let upstream_id = upstreams.get(name.get_ref().as_str()).copied();
        // The errors of an upstream that was left out are reported already.
        if upstream_id.is_some() || self.left_out.has("upstream", name.get_ref()) {
            return upstream_id;
        }
        if !self.problems.has_room() {
            self.problems.and_more(1);
            return None;
        }
        let mut known: Vec<&str> = upstreams.keys().map(|name| &**name).collect();
        known.sort_unstable();
        let (span, name) = (name.span(), name.get_ref());
        let message = match address_of_no_upstream(name, &known) {
            Some(remedy) => format!("unknown upstream `{name}`; {remedy}"),
            None => {
                let meant = hint(name, &known);
                let known = if known.is_empty() { String::new() } else { format!("known: {}; or ", some_of(&known)) };
                format!("unknown upstream `{name}`; {meant}{known}add it as `{}`", named_table("upstream", name))
            }
        };
        self.problems.at(source, span, message);
        None
    }

    fn redirect(
        &mut self,
        source: &Arc<Source>,
        location: &Spanned<String>,
        status: Option<&Spanned<u16>>,
    ) -> Redirect {
        if let Some(status) = status.filter(|status| !REDIRECTS.contains(status.get_ref())) {
            let message =
                format!("invalid status of a redirect: {}; expected 301, 302, 303, 307 or 308", status.get_ref());
            self.problems.at(source, status.span(), message);
        }
        let status = status.and_then(|status| StatusCode::from_u16(*status.get_ref()).ok());
        // Values of references are literal.
        let string = self.problems.replaced_at(source, &location.span()).cloned();
        let written = string.as_ref().map_or(location.get_ref().clone(), |string| string.without_values());
        let template = string.as_ref().map_or(location.get_ref().clone(), |string| string.as_template());
        if let Some(remedy) = idioms::template(&written) {
            let remedy = remedy.replace("{path}?{query}", "{uri}");
            self.problems.at(source, location.span(), format!("variable of another program in a location: {remedy}"));
        }
        let location = UriTemplate::parse(&template).unwrap_or_else(|reason| {
            let message = format!(
                "invalid location `{}`: {reason}; expected one such as `https://www.example.org{{uri}}`",
                location.get_ref()
            );
            self.problems.at(source, location.span(), message);
            UriTemplate::default()
        });
        Redirect { status: status.unwrap_or(StatusCode::FOUND), location }
    }

    fn fixed_response(&mut self, source: &Arc<Source>, table: &RespondTable) -> FixedResponse {
        let code = table.status.as_ref().map_or(200, |status| *status.get_ref());
        let status = edit_check::status(code).unwrap_or_else(|_| {
            if let Some(status) = &table.status {
                let message = format!("invalid status: {code}; expected 200 to 599, such as 404");
                self.problems.at(source, status.span(), message);
            }
            StatusCode::OK
        });
        let content = table.body.as_ref().or(table.file.as_ref());
        if let (Some(content), true) = (content, WITHOUT_CONTENT.contains(&code)) {
            let message = format!("body of a response without content: the status {code} has none; remove it");
            self.problems.at(source, content.span(), message);
        }
        if let (Some(_), Some(file)) = (&table.body, &table.file) {
            let message = "`file` beside `body`: a response has one body; remove one of them";
            self.problems.at(source, file.span(), message);
        }
        let body = match &table.file {
            Some(file) => self.body_of_file(source, file),
            None => table.body.as_ref().map_or(Bytes::new(), |body| Bytes::from(body.get_ref().clone())),
        };
        let mut fields = self.fields_of_response(source, table);
        if content.is_some() && !fields.contains_key(header::CONTENT_TYPE) {
            let name = table.file.as_ref().map_or("body.txt", |file| file.get_ref().as_str());
            fields.insert(header::CONTENT_TYPE, media_type::of_file(name));
        }
        self.warn_of_values_in_content(source, table);
        let is_error = status.is_client_error() || status.is_server_error();
        let has_page = is_error && content.is_none() && !fields.contains_key(header::CONTENT_TYPE);
        FixedResponse { status, fields, body, has_page }
    }

    /// Checks that a response has the field without which its status says nothing.
    fn check_required_field(&mut self, source: &Arc<Source>, table: &RespondTable, fixed: &FixedResponse) {
        let code = fixed.status.as_u16();
        let Some((_, field, remedy)) = REQUIRED.iter().find(|(codes, ..)| codes.contains(&code)) else { return };
        let has_it = table.fields.keys().any(|name| name.get_ref().eq_ignore_ascii_case(field));
        if let (Some(status), false) = (&table.status, has_it) {
            let message = format!("status {code} without `{field}`: clients can't use such a response; {remedy}");
            self.problems.at(source, status.span(), message);
        }
    }

    /// Warns of values in braces, and of variables of nginx, in a response that is the same for all requests.
    fn warn_of_values_in_content(&mut self, source: &Arc<Source>, table: &RespondTable) {
        let texts = table.body.iter().chain(table.fields.values());
        for text in texts {
            let named = template::first_value(text.get_ref());
            if let Some(value) = named.or_else(|| idioms::template(text.get_ref()).map(|_| text.get_ref().clone())) {
                let why = format!(
                    "value in a response that is the same for all requests: `{value}` stands for itself; remove it, or use a \
                     plugin"
                );
                self.problems.warn(Doubt::Meaning, source, text.span(), &why);
            }
        }
    }

    /// Returns the content of a file, and warns if the file is an error page.
    fn body_of_file(&mut self, source: &Arc<Source>, file: &Spanned<String>) -> Bytes {
        let path = beside(source, file.get_ref());
        let body = files::read(&path, files::RESPONSE).map(Bytes::from).unwrap_or_else(|error| {
            self.problems.at(source, file.span(), files::unreadable(&path, &error));
            Bytes::new()
        });
        if memchr::memmem::find(&body, PAGE_VALUE).is_some() {
            let why = "the file is an error page: `{request-id}` stands for itself in `respond`; name the file in `error-page`, \
                       and leave it out here";
            self.problems.warn(Doubt::Meaning, source, file.span(), why);
        }
        body
    }

    /// Returns the fields of a response, which have to follow the rules for fields that plugins set.
    fn fields_of_response(&mut self, source: &Arc<Source>, table: &RespondTable) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in &table.fields {
            let checked: Result<(HeaderName, HeaderValue), _> = edit_check::field_name(name.get_ref())
                .and_then(|field| Ok((field, edit_check::field_value(name.get_ref(), value.get_ref().as_bytes())?)));
            let (field, value) = match checked {
                Ok(checked) => checked,
                Err(error) => {
                    let message = format!("invalid field of a response: {error}; change it, or remove it");
                    self.problems.at(source, name.span(), message);
                    continue;
                }
            };
            if fields.insert(field, value).is_some() {
                let message =
                    format!("field named twice: `{}`; names of fields have no case, so keep one", name.get_ref());
                self.problems.at(source, name.span(), message);
            }
        }
        fields
    }

    /// Checks that a route with files matches requests for files, unless a plugin may answer others.
    fn check_methods_of_files(&mut self, source: &Arc<Source>, route: &RouteTable) {
        let Some(methods) = route.methods.as_ref().filter(|methods| !methods.get_ref().is_empty()) else { return };
        let serves = methods.get_ref().iter().any(|method| matches!(method.get_ref().as_str(), "GET" | "HEAD"));
        if !serves && route.plugins.is_empty() {
            let message = "`methods` without GET and HEAD beside `files`: no request of the route gets a file; add them, or remove `methods`";
            self.problems.at(source, methods.span(), message);
        }
    }

    fn files_target(&mut self, source: &Arc<Source>, table: &FilesTable) -> FileSite {
        let root = beside(source, table.root.get_ref());
        if let Some(reason) = files::no_folder(&root) {
            let message = format!("no folder to serve files from: {reason}");
            self.problems.at(source, table.root.span(), message);
        }
        let is_barred = files::is_barred(&root) && root.is_dir();
        if is_barred {
            // No error: another user than the one of `check` may run the proxy.
            let why = format!(
                "no file of `root` can be served: the user that runs plugway may not enter `{}`, so that requests get 403; \
                 allow it, such as by `chmod a+x`",
                root.display()
            );
            self.problems.warn(Doubt::Meaning, source, table.root.span(), &why);
        }
        for name in table.index.iter().flatten() {
            if name.get_ref().is_empty() || !is_served(name.get_ref().as_bytes(), PathLevel::Below) {
                let message =
                    format!("invalid name of an index file: `{}`; expected one such as `index.html`", name.get_ref());
                self.problems.at(source, name.span(), message);
            }
        }
        let index = table.index.as_ref().map(|names| names.iter().map(|name| name.get_ref().clone()).collect());
        let fallback = table.fallback.as_ref().and_then(|path| self.fallback_file(source, path));
        if let (Some(path), true) = (&table.fallback, fallback.is_some() && root.is_dir() && !is_barred) {
            self.warn_of_no_fallback(source, path, &root);
        }
        FileSite {
            root,
            index: index.unwrap_or_else(|| vec!["index.html".into()]),
            fallback,
            prefix: String::new(),
            precompressed: self.codings(source, &table.precompressed),
            listings: table.browse.then(SharedListings::default),
        }
    }

    fn fallback_file(&mut self, source: &Arc<Source>, path: &Spanned<String>) -> Option<SitePath> {
        let text = path.get_ref().trim_start_matches('/');
        let parsed = SitePath::parse(&format!("/{text}")).filter(|path| !path.is_folder());
        if parsed.is_none() {
            let message = format!(
                "invalid path of a fallback: `{}`; expected that of a file below `root`, such as `index.html`",
                path.get_ref()
            );
            self.problems.at(source, path.span(), message);
        }
        parsed
    }

    /// Warns if the file of a fallback is missing, or can't be reached. This is no error, as a build may make it later.
    fn warn_of_no_fallback(&mut self, source: &Arc<Source>, path: &Spanned<String>, root: &Path) {
        let file = root.join(path.get_ref().trim_start_matches('/'));
        let reason = match file.metadata() {
            Ok(found) if found.is_file() => return,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => files::no_permission(&file),
            _ => format!(
                "there is no file `{}`, so paths without a file get 404; correct it, or make the file",
                file.display()
            ),
        };
        self.problems.warn(Doubt::Meaning, source, path.span(), &format!("no file for `fallback`: {reason}"));
    }

    fn codings(&mut self, source: &Arc<Source>, names: &[Spanned<String>]) -> Vec<ContentCoding> {
        let mut codings = Vec::new();
        for name in names {
            match ContentCoding::ALL.into_iter().find(|coding| coding.token() == name.get_ref()) {
                Some(coding) if !codings.contains(&coding) => codings.push(coding),
                Some(_) => {
                    let message = format!("coding named twice: `{}`; remove it", name.get_ref());
                    self.problems.at(source, name.span(), message);
                }
                None => {
                    let message = format!("unknown coding `{}`: expected `br`, `zstd` or `gzip`", name.get_ref());
                    self.problems.at(source, name.span(), message);
                }
            }
        }
        codings
    }
}

/// Returns the remedy for an address or a URL in place of the name of an upstream; `None` for other names.
fn address_of_no_upstream(name: &str, known: &[&str]) -> Option<String> {
    let address = name.strip_prefix("http://").or_else(|| name.strip_prefix("https://"));
    let authority = address.unwrap_or(name).split('/').next().unwrap_or_default();
    let host = authority.split_once(':').map_or(authority, |(host, _)| host);
    let is_address = address.is_some() || name.contains([':', '/']);
    let meant = [authority, host].into_iter().find(|host| known.contains(host)).filter(|_| is_address);
    match meant {
        Some(upstream) => Some(format!("expected the name of one alone; write `{upstream}`")),
        None => is_address.then(|| {
            let scheme = if name.starts_with("https://") { "https://" } else { "" };
            format!(
                "an address is an endpoint of an upstream: add `[upstream.NAME]` with `endpoints = \
                 [\"{scheme}{authority}\"]`, and write that name"
            )
        }),
    }
}
