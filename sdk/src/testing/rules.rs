//! The host's rules for what plugins name and return, enforced in native tests with the same error texts: field names and
//! values, methods, targets, authorities and statuses.

use std::net::Ipv6Addr;

use ::http::uri::PathAndQuery;
use ::http::{HeaderName, HeaderValue, Method};

use super::{Request, paths};
use crate::bindings::types::{PlannedEdit, TemplatePart};
use crate::{Edit, Response, bounds};

/// The fields of a message's framing, which are the proxy's own.
const FRAMING: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
];

/// Returns the edits of a request in the form in which the host makes them.
pub fn request_edits(edits: Vec<Edit>, request: &Request) -> Result<Vec<Edit>, String> {
    let port = Some(if request.scheme == "https" { 443 } else { 80 });
    let edit = |edit| match edit {
        Edit::SetStatus(_) => Err(wrong_side("response's status")),
        edit => checked(edit, port),
    };
    let edits = edits.into_iter().map(edit).collect::<Result<Vec<_>, _>>()?;
    let leaves_options = |edit: &Edit| matches!(edit, Edit::SetMethod(method) if method != "OPTIONS");
    let has_path = edits.iter().any(|edit| matches!(edit, Edit::SetPath(_)));
    if request.path == "*" && !has_path && edits.iter().any(leaves_options) {
        return Err(target("`*` is a target for OPTIONS alone"));
    }
    Ok(edits)
}

/// Returns the edits of a response in the form in which the host makes them.
pub fn response_edits(edits: Vec<Edit>) -> Result<Vec<Edit>, String> {
    let edit = |edit| match edit {
        Edit::SetMethod(_) => Err(wrong_side("request's method")),
        Edit::SetPath(_) => Err(wrong_side("request's path")),
        Edit::SetQuery(_) => Err(wrong_side("request's query")),
        Edit::SetAuthority(_) => Err(wrong_side("request's authority")),
        Edit::SetUpstream(_) => Err(wrong_side("request's upstream")),
        edit => checked(edit, None),
    };
    edits.into_iter().map(edit).collect()
}

/// Returns an edit that results from one of a plan, in the form in which the host makes it.
pub fn filled(edit: Edit, request: &Request, response: Option<&Response>) -> Result<Edit, String> {
    let edits = vec![edit];
    let mut made = if response.is_some() { response_edits(edits)? } else { request_edits(edits, request)? };
    Ok(made.remove(0))
}

/// Returns a response of a plugin in the form in which the host sends it; its size is checked already.
pub fn response(response: Response) -> Result<Response, String> {
    let Response { status, fields, body } = response;
    let status = self::status(status)?;
    let field = |(name, given): (String, Vec<u8>)| {
        field_name(&name)?;
        value(&name, &given, None).map(|value| (name, value))
    };
    let fields = fields.into_iter().map(field).collect::<Result<_, _>>()?;
    Ok(Response { status, fields, body })
}

/// Rejects an edit of a plan that the host would reject; the lengths are checked already.
pub fn planned(edit: &PlannedEdit) -> Result<(), String> {
    match edit {
        PlannedEdit::SetField((name, template)) | PlannedEdit::DefaultField((name, template)) => {
            field_name(name).and_then(|()| text(name, template))
        }
        PlannedEdit::AppendField((name, template)) => repeatable_name(name).and_then(|()| text(name, template)),
        PlannedEdit::SetNote((name, template)) => text(name, template),
        PlannedEdit::RemoveField(name) => field_name(name),
        PlannedEdit::RenameField((from, to)) => field_name(from).and_then(|()| repeatable_name(to)),
        PlannedEdit::MaxBody(_) | PlannedEdit::Body(_) => Ok(()),
    }
}

/// Returns a name with its value in the form that the host gives it.
fn with_value(name: String, given: &[u8], port: Option<u16>) -> Result<(String, Vec<u8>), String> {
    let value = value(&name, given, port)?;
    Ok((name, value))
}

/// Returns an edit in the form in which the host makes it. `port` is that of the scheme, which no host has.
fn checked(edit: Edit, port: Option<u16>) -> Result<Edit, String> {
    Ok(match edit {
        Edit::SetField((name, given)) => {
            field_name(&name)?;
            Edit::SetField(with_value(name, &given, port)?)
        }
        Edit::AppendField((name, given)) => {
            repeatable_name(&name)?;
            Edit::AppendField(with_value(name, &given, port)?)
        }
        Edit::DefaultField((name, given)) => {
            field_name(&name)?;
            Edit::DefaultField(with_value(name, &given, port)?)
        }
        Edit::RenameField((from, to)) => {
            field_name(&from)?;
            repeatable_name(&to)?;
            Edit::RenameField((from, to))
        }
        Edit::SetNote((name, given)) => {
            self::name(&name)?;
            Edit::SetNote(with_value(name, &given, None)?)
        }
        Edit::RemoveField(name) => field_name(&name).map(|()| Edit::RemoveField(name))?,
        Edit::SetMethod(method) => self::method(&method).map(|()| Edit::SetMethod(method))?,
        Edit::SetUpstream(upstream) => name(&upstream).map(|()| Edit::SetUpstream(upstream))?,
        Edit::SetAuthority(authority) => {
            name(&authority)?;
            let host = value("host", authority.as_bytes(), port)?;
            Edit::SetAuthority(String::from_utf8_lossy(&host).into_owned())
        }
        Edit::SetPath(path) => Edit::SetPath(self::path(&path)?),
        Edit::SetQuery(Some(query)) => self::query(&query).map(|()| Edit::SetQuery(Some(query)))?,
        Edit::SetStatus(status) => Edit::SetStatus(self::status(status)?),
        edit @ (Edit::SetQuery(None) | Edit::Plan(_) | Edit::MaxBody(_) | Edit::Body(_)) => edit,
    })
}

fn name(name: &str) -> Result<(), String> {
    super::checks::at_most(bounds::NAME, name.len(), "bytes of a name")
}

fn field_name(name: &str) -> Result<(), String> {
    self::name(name)?;
    let known = HeaderName::from_bytes(name.as_bytes());
    let known = known.map_err(|_| format!("`{}` is no field name (RFC 9110 §5.1)", shown(name)))?;
    // An origin may take such a name for that of the framing.
    let normal = known.as_str().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    match FRAMING.contains(&normal.as_str()) {
        true => {
            Err(format!("`{known}` belongs to the framing of the connection and is the proxy's own (RFC 9110 §7.6.1)"))
        }
        false => Ok(()),
    }
}

fn repeatable_name(name: &str) -> Result<(), String> {
    field_name(name)?;
    match is_host(name) {
        true => {
            Err("`host` can be set and removed, but not appended to, nor be what a rename makes: a request has one \
                     (RFC 9112 §3.2)"
                .into())
        }
        false => Ok(()),
    }
}

/// Rejects text of a template that the host would reject.
fn text(name: &str, template: &[TemplatePart]) -> Result<(), String> {
    if let [TemplatePart::Text(constant)] = template {
        return value(name, constant, None).map(drop);
    }
    template.iter().try_for_each(|part| match part {
        TemplatePart::Text(text) => check_text(name, text),
        TemplatePart::Value(_) => Ok(()),
    })
}

/// Returns a value without the spaces around it; a host in its normal form.
fn value(name: &str, value: &[u8], port: Option<u16>) -> Result<Vec<u8>, String> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(begin, |last| last + 1);
    let value = &value[begin..end];
    super::checks::at_most(bounds::VALUE, value.len(), "bytes of a value")?;
    check_text(name, value)?;
    if !is_host(name) {
        return Ok(value.to_vec());
    }
    let text = String::from_utf8_lossy(value);
    let host = authority(&text, port);
    host.map(Into::into).ok_or_else(|| format!("`{}` is no authority, as Host has to be (RFC 9110 §7.2)", shown(&text)))
}

fn check_text(name: &str, text: &[u8]) -> Result<(), String> {
    let refused = |_| format!("the value of `{}` has bytes that no field may have (RFC 9110 §5.5)", shown(name));
    HeaderValue::from_bytes(text).map(drop).map_err(refused)
}

fn method(method: &str) -> Result<(), String> {
    name(method)?;
    let is_served = Method::from_bytes(method.as_bytes()).is_ok() && !["CONNECT", "PRI"].contains(&method);
    if is_served { Ok(()) } else { Err(format!("`{}` is no method, or none that is served here", shown(method))) }
}

fn path(path: &[u8]) -> Result<Vec<u8>, String> {
    let text = uri_text(path)?;
    if !text.starts_with('/') || text.contains('?') {
        return Err(target("a path begins with `/`, and has no `?` in it"));
    }
    let normal = paths::normal(text).map_err(target)?;
    PathAndQuery::try_from(normal.as_str()).map_err(|_| target("it is no path with a query"))?;
    Ok(normal.into())
}

fn query(query: &[u8]) -> Result<(), String> {
    let whole = format!("/?{}", uri_text(query)?);
    PathAndQuery::try_from(whole).map(drop).map_err(|_| target("it is no path with a query"))
}

/// Returns a text that can stand in a path or query.
fn uri_text(text: &[u8]) -> Result<&str, String> {
    super::checks::at_most(bounds::VALUE, text.len(), "bytes of a path or query")?;
    let is_fit = text.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
    std::str::from_utf8(text).ok().filter(|_| is_fit).ok_or_else(|| target("it has bytes that must be escaped"))
}

fn status(status: u16) -> Result<u16, String> {
    if (200..600).contains(&status) { Ok(status) } else { Err(format!("{status} is no status between 200 and 599")) }
}

/// Returns the normal form of an authority, without the port of the scheme; `None` if no client could have sent it. An
/// IPv4 address that isn't four decimal numbers stays as it is, unlike in the host.
pub fn authority(text: &str, scheme_port: Option<u16>) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let end = if text.starts_with('[') { text.find(']').map(|at| at + 1) } else { text.find(':') };
    let (host, port) = text.split_at(end.unwrap_or(text.len()));
    let digits = if port.is_empty() { port } else { port.strip_prefix(':')? };
    let port = match digits {
        "" => None,
        digits if digits.bytes().all(|digit| digit.is_ascii_digit()) => Some(digits.parse::<u16>().ok()?),
        _ => return None,
    };
    let host = match host.strip_prefix('[') {
        Some(literal) => format!("[{}]", literal.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
        None => {
            let is_fit = |byte: u8| byte.is_ascii_graphic() && !b"/@,\\?#\"<>{}|^`[]%".contains(&byte);
            let name = host.strip_suffix('.').unwrap_or(host);
            if !host.bytes().all(is_fit) || !host.is_empty() && name.split('.').any(str::is_empty) {
                return None;
            }
            name.into()
        }
    };
    let port = port.filter(|port| Some(*port) != scheme_port);
    Some(port.map_or(host.clone(), |port| format!("{host}:{port}")))
}

fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host")
}

fn target(why: &str) -> String {
    format!("the path or query can't stand in a request target: {why}")
}

fn wrong_side(what: &str) -> String {
    format!("a {what} can't be changed here")
}

/// Truncates a text for a message.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Harness;
    use crate::{
        BodyMode, BodyVerdict, BufferedRequestBody, ConfigError, EditPlan, OverLimit, Part, Plugin, RequestFilter,
        ResponseFilter, Setup, ValueName, Values, Verdict,
    };

    /// A plugin that returns a verdict for a request, and one for a response.
    struct Told(Verdict);

    impl Plugin for Told {
        /// The name and the text of a plan, if there is one.
        type Config = Option<(String, String)>;

        fn new(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError> {
            setup.request_body.mode = BodyMode::Buffered(100, OverLimit::Reject);
            let Some((name, text)) = config else { return Ok(Told(Verdict::proceed())) };
            let part = if text == "path" { Part::Value(ValueName::Path) } else { Part::Text(text.into()) };
            let plan = setup.plan(EditPlan::default().set_field(&name, vec![part]));
            Ok(Told(plan.into()))
        }
    }

    impl RequestFilter for Told {
        fn on_request(&mut self, _: &Values) -> Verdict {
            self.0.clone()
        }
    }

    impl ResponseFilter for Told {
        fn on_response(&mut self, _: &Values) -> Verdict {
            self.0.clone()
        }
    }

    impl BufferedRequestBody for Told {
        fn on_request_body(&mut self, _: &Values, _: Vec<u8>) -> BodyVerdict {
            Response::new(101).into()
        }
    }

    fn told(verdict: Verdict) -> Harness<Told> {
        let mut harness = Harness::<Told>::new(serde_json::json!(null)).unwrap();
        harness.plugin.0 = verdict;
        harness
    }

    #[test]
    fn edits_that_the_host_refuses_fail_with_its_text() {
        let proceed = Verdict::proceed;
        for (verdict, why) in [
            (proceed().set_field("x-user", "alice\n"), "the value of `x-user` has bytes that no field may have"),
            (proceed().set_field("Connection", "close"), "`connection` belongs to the framing of the connection"),
            (proceed().set_path("x"), "can't stand in a request target: a path begins with `/`"),
            (proceed().set_path("/../x"), "can't stand in a request target: the path leads above its root"),
            (proceed().edit(Edit::SetStatus(200)), "a response's status can't be changed here"),
            (proceed().set_note(&"n".repeat(2000), "1"), "bytes of a name; at most"),
            (Response::new(101).into(), "101 is no status between 200 and 599"),
            (Response::new(200).field("te", "x").into(), "`te` belongs to the framing"),
            (Response::new(200).field("x", "a\0").into(), "the value of `x` has bytes"),
        ] {
            let failed = told(verdict).request(Request::get("/")).expect_failed();
            assert!(failed.contains(why), "{failed}");
        }
        let failed = told(proceed().edit(Edit::SetMethod("GET".into()))).request(Request::new("OPTIONS", "*"));
        assert!(failed.expect_failed().ends_with("`*` is a target for OPTIONS alone"));
        for (verdict, why) in [
            (proceed().set_path("/x"), "a request's path can't be changed here"),
            (proceed().edit(Edit::SetStatus(99)), "99 is no status between 200 and 599"),
            (proceed().set_field("x", "a\r\nb: c"), "the value of `x` has bytes"),
        ] {
            let failed = told(verdict).response(&Request::get("/"), Response::new(200)).expect_failed();
            assert!(failed.contains(why), "{failed}");
        }
        let failed = told(proceed()).buffered_request_body(Request::get("/"), "x").expect_failed();
        assert_eq!(failed, "101 is no status between 200 and 599");
    }

    #[test]
    fn plans_have_the_rules_of_edits() {
        let plan = |name: &str, text: &str| Harness::<Told>::new(serde_json::json!([name, text]));
        for (name, text, why) in [
            ("x a", "1", "the plugin declared what can't be: `x a` is no field name"),
            ("te", "path", "the plugin declared what can't be: `te` belongs to the framing"),
            ("x", "a\n", "the plugin declared what can't be: the value of `x` has bytes"),
            ("host", "a b", "the plugin declared what can't be: `a b` is no authority"),
        ] {
            let refused = plan(name, text).err().map(|error| error.message).unwrap_or_default();
            assert!(refused.starts_with(why), "{refused}");
        }
        let mut host = plan("host", "path").unwrap();
        assert_eq!(
            host.request(Request::get("/a")).expect_failed(),
            "`/a` is no authority, as Host has to be (RFC 9110 §7.2)"
        );
        let mut spaces = plan("x", " a ").unwrap();
        assert_eq!(spaces.request(Request::get("/a")).expect_passed().text("x"), Some("a"));
    }

    /// A filter with a plan whose fields have the host and the authority.
    struct Named;

    impl Plugin for Named {
        type Config = ();

        fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
            let value = |name| vec![Part::Value(name)];
            let plan = EditPlan::default()
                .set_field("x-authority", value(ValueName::Authority))
                .set_field("x-host", value(ValueName::Host))
                .set_field("x-field", value(ValueName::RequestField("host".into())))
                .set_field("x-uri", value(ValueName::Uri));
            setup.request_plan = Some(setup.plan(plan));
            Ok(Named)
        }
    }

    impl RequestFilter for Named {
        fn on_request(&mut self, _: &Values) -> Verdict {
            Verdict::proceed()
        }
    }

    #[test]
    fn authorities_and_values_have_their_normal_form() {
        let request = Request::get("/").authority("A.Example.:81").field("x-a", "\t sp ");
        assert_eq!((request.host(), request.text("x-a")), ("a.example:81", Some("sp")));
    }

    #[test]
    fn the_host_and_the_authority_are_one_value() {
        let read = |request: Request| {
            let request = Harness::<Named>::new(serde_json::json!(null)).unwrap().request(request).expect_passed();
            ["x-authority", "x-host", "x-field", "x-uri"].map(|name| request.text(name).unwrap_or("-").to_string())
        };
        assert_eq!(read(Request::get("/")), ["example.org", "example.org", "example.org", "http://example.org/"]);
        for (authority, host) in [("a.example:81", "a.example"), ("[::1]:81", "[::1]"), ("[::1]", "[::1]")] {
            let wanted = [authority, host, authority, &format!("http://{authority}/")];
            assert_eq!(read(Request::get("/").authority(authority)), wanted);
            assert_eq!(read(Request::get("/").field("Host", authority)), wanted);
        }
        let edited = |verdict: Verdict| told(verdict).request(Request::get("/")).expect_passed();
        for verdict in [
            Verdict::proceed().set_field("Host", "backend"),
            Verdict::proceed().set_authority("backend"),
            Verdict::proceed().remove_field("host").default_field("host", "backend"),
        ] {
            let request = edited(verdict);
            assert_eq!((request.host(), request.lines("host")), ("backend", vec!["backend".to_string()]));
            assert_eq!(read(request), ["backend", "backend", "backend", "http://backend/"]);
        }
        assert_eq!(edited(Verdict::proceed().default_field("host", "backend")).host(), "example.org");
        let without = edited(Verdict::proceed().remove_field("host"));
        assert_eq!((without.host(), without.text("host")), ("", None));
        assert_eq!(read(without), ["-", "-", "-", "http:///"]);
        let renamed = edited(Verdict::proceed().rename_field("host", "x-old"));
        assert_eq!((renamed.host(), renamed.text("x-old")), ("", Some("example.org")));
    }

    #[test]
    fn a_response_has_its_values_without_the_spaces_around_them() {
        let answered =
            told(Response::new(200).field("x", "\t a b ").into()).request(Request::get("/")).expect_answered();
        assert_eq!(answered.fields, [("x".into(), b"a b".to_vec())]);
    }
}
