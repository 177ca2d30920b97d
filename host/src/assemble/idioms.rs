//! Idioms of nginx, Apache and Caddy in hosts, paths and templates: each function tells what to write instead.

/// Returns what to write instead of a host in the form of another proxy; `None` if the text has no such form.
pub fn host(text: &str) -> Option<String> {
    if let Some(remedy) = variable(text) {
        return Some(remedy);
    }
    if let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) {
        let name = rest.split(['/', ':']).next().unwrap_or(rest);
        return Some(format!("write `{name}`; whether clients use TLS is a matter of the listener"));
    }
    if text.starts_with('~') {
        return Some(
            "hosts are no regular expressions: list them, or write `*.example.org` for all names below".into(),
        );
    }
    if let Some(name) = text.strip_prefix('.').filter(|name| !name.is_empty()) {
        return Some(format!("write `{name}` and `*.{name}`"));
    }
    if text == "_" || text == "*" || text.starts_with(':') || text.starts_with("*:") {
        return Some("remove `hosts` for a route of any host".into());
    }
    if text.starts_with('$') {
        return Some("a route's hosts are names: list them, or remove `hosts` for a route of any host".into());
    }
    let has_star_at_end = text.strip_suffix(".*").is_some_and(|name| !name.is_empty() && !name.contains('*'));
    has_star_at_end.then(|| "list the hosts; `*` stands at the beginning only, such as `*.example.org`".into())
}

/// Returns what to write instead of a path in the form of another proxy; `None` if the text has no such form.
pub fn path(text: &str) -> Option<String> {
    if let Some(remedy) = variable(text) {
        return Some(remedy);
    }
    if let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) {
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        return Some(format!("write `hosts = [\"{name}\"]` and `path = \"{path}\"`"));
    }
    if let Some(regex) = text.strip_prefix("~*") {
        return Some(format!("write `path = {{ regex = '(?i){}' }}`", regex.trim()));
    }
    // The order matters: `^~` is no regular expression.
    if let Some(prefix) = text.strip_prefix("^~") {
        return Some(format!("write `path = \"{}\"`", prefix.trim()));
    }
    if let Some(regex) = text.strip_prefix('~') {
        return Some(format!("write `path = {{ regex = '{}' }}`", regex.trim()));
    }
    if let Some(exact) = text.strip_prefix('=') {
        return Some(format!("write `path = {{ exact = \"{}\" }}`", exact.trim()));
    }
    if text.starts_with('^') || text.ends_with('$') {
        return Some(format!("write `path = {{ regex = '{text}' }}`"));
    }
    if let Some(end) = text.strip_prefix("*.").or_else(|| text.strip_prefix("/*.")) {
        return Some(format!("write `path = {{ regex = '\\.{end}$' }}`"));
    }
    starred(text)
}

/// Returns what to write instead of a path with stars; a path stands for all paths below it.
fn starred(text: &str) -> Option<String> {
    let before = text.split('*').next().filter(|before| before.len() < text.len())?;
    if !text[before.len()..].trim_start_matches('*').is_empty() {
        let regex = text.split("**").map(|part| part.replace('*', "[^/]+")).collect::<Vec<_>>().join(".*");
        return Some(format!("write `path = {{ regex = '^{regex}$' }}`"));
    }
    match before.strip_suffix('/') {
        Some("") => Some("remove `path` for a route of any path".into()),
        Some(folder) => Some(format!("write `path = \"{folder}\"`, which stands for all below it too")),
        None => Some(format!("write `path = {{ regex = '^{before}' }}`")),
    }
}

/// Returns what to write instead of a variable of nginx in a template; `None` if there is none.
pub fn template(text: &str) -> Option<String> {
    if let Some(remedy) = variable(text).or_else(|| in_percent_signs(text)) {
        return Some(remedy);
    }
    let mut pieces = text.split('$');
    let (mut written, mut names) = (pieces.next().unwrap_or_default().to_string(), Vec::new());
    for rest in pieces {
        let end = rest.find(|letter: char| !letter.is_ascii_lowercase() && !letter.is_ascii_digit() && letter != '_');
        let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
        match value(name) {
            Some(value) => {
                written += &value;
                written += after;
                names.push((name, value));
            }
            None => written = written + "$" + rest,
        }
    }
    match names.as_slice() {
        [] => None,
        [(name, value)] => Some(format!("write `{value}` for nginx's `${name}`")),
        // All at once, since each would be an error of its own.
        _ => Some(format!("write `{}`", written.trim_matches('"'))),
    }
}

/// Returns what to write instead of a value in the form of Envoy, such as `%REQ(X-A)%`, or of HAProxy, such as `%[src]`.
fn in_percent_signs(text: &str) -> Option<String> {
    if text.contains("%[") {
        return Some("write a value in braces for HAProxy's `%[…]`, such as `{client.ip}` for `%[src]`".into());
    }
    let is_of_name = |letter: char| letter.is_ascii_uppercase() || letter == '_';
    let mut between = text.split('%').skip(1).peekable();
    while let Some(piece) = between.next() {
        let (name, after) = piece.split_at(piece.find(|letter| !is_of_name(letter)).unwrap_or(piece.len()));
        let is_closed = between.peek().is_some() && (after.is_empty() || after.starts_with('('));
        // An escape such as `%AB` is shorter.
        if is_closed && name.len() > 2 {
            return Some(format!(
                "write a value in braces for Envoy's `%{name}%`, such as `{{client.ip}}` or `{{request.header.x-a}}`"
            ));
        }
    }
    None
}

/// Returns what to write instead of a variable of the environment in the form of Caddy.
fn variable(text: &str) -> Option<String> {
    let inner = ["{$", "{env."].into_iter().find_map(|start| text.split_once(start).map(|(_, rest)| rest));
    let name = inner?.split('}').next()?.split(':').next()?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then(|| format!("write `${{env:{name}}}` for a variable of the environment"))
}

/// Returns the template value for a variable of nginx.
fn value(name: &str) -> Option<String> {
    const VALUES: [(&str, &str); 18] = [
        ("args", "{query}"),
        ("host", "{host}"),
        ("http_host", "{authority}"),
        ("proxy_add_x_forwarded_for", "{forwarded-for}"),
        ("proxy_host", "{upstream}"),
        ("query_string", "{query}"),
        ("remote_addr", "{client.ip}"),
        ("remote_port", "{client.port}"),
        ("request_id", "{request-id}"),
        ("request_method", "{method}"),
        ("request_uri", "{path}?{query}"),
        ("scheme", "{scheme}"),
        ("server_protocol", "{protocol}"),
        ("ssl_cipher", "{tls.cipher}"),
        ("ssl_protocol", "{tls.version}"),
        ("ssl_server_name", "{tls.server-name}"),
        ("status", "{status}"),
        ("uri", "{path}"),
    ];
    let known = VALUES.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
    let named = |prefix: &str| name.strip_prefix(prefix).filter(|rest| !rest.is_empty());
    known
        .or_else(|| named("http_").map(|field| format!("{{request.header.{}}}", field.replace('_', "-"))))
        .or_else(|| named("arg_").map(|parameter| format!("{{query.{parameter}}}")))
        .or_else(|| named("cookie_").map(|cookie| format!("{{cookie.{cookie}}}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_idiom_has_a_remedy() {
        for (text, wanted) in [
            ("_", "remove `hosts`"),
            ("*", "remove `hosts`"),
            (":80", "remove `hosts`"),
            (".example.org", "write `example.org` and `*.example.org`"),
            ("~^(www\\.)?example\\.org$", "hosts are no regular expressions"),
            ("http://example.org:8080/", "write `example.org`;"),
            ("example.*", "list the hosts"),
            ("$host", "a route's hosts are names"),
            ("{$DOMAIN}", "write `${env:DOMAIN}`"),
            ("{$DOMAIN:localhost}", "write `${env:DOMAIN}`"),
        ] {
            assert!(host(text).is_some_and(|remedy| remedy.starts_with(wanted)), "{text}: {:?}", host(text));
        }
        for (text, wanted) in [
            ("/api/*", "write `path = \"/api\"`"),
            ("/*", "remove `path`"),
            ("/api*", "write `path = { regex = '^/api' }`"),
            ("/a/*/b", "write `path = { regex = '^/a/[^/]+/b$' }`"),
            ("/a/**/b", "write `path = { regex = '^/a/.*/b$' }`"),
            ("*.php", "write `path = { regex = '\\.php$' }`"),
            ("~* \\.php$", "write `path = { regex = '(?i)\\.php$' }`"),
            ("~ ^/a", "write `path = { regex = '^/a' }`"),
            ("^~ /static/", "write `path = \"/static/\"`"),
            ("= /x", "write `path = { exact = \"/x\" }`"),
            ("^/x", "write `path = { regex = '^/x' }`"),
            ("https://a.example/b", "write `hosts = [\"a.example\"]` and `path = \"/b\"`"),
            ("/{env.X}", "write `${env:X}`"),
        ] {
            assert!(path(text).is_some_and(|remedy| remedy.starts_with(wanted)), "{text}: {:?}", path(text));
        }
        for (text, wanted) in [
            ("https://$host/", "write `{host}` for nginx's `$host`"),
            ("$remote_addr", "write `{client.ip}`"),
            ("https://$host$request_uri", "write `https://{host}{path}?{query}`"),
            ("$unknown $host/$scheme", "write `$unknown {host}/{scheme}`"),
            ("$http_x_user", "write `{request.header.x-user}`"),
            ("{$TOKEN}", "write `${env:TOKEN}`"),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", "write a value in braces for Envoy's `%DOWNSTREAM_REMOTE_ADDRESS%`"),
            ("a %REQ(X-A)%", "write a value in braces for Envoy's `%REQ%`"),
            ("%[src]", "write a value in braces for HAProxy's"),
        ] {
            assert!(template(text).is_some_and(|remedy| remedy.starts_with(wanted)), "{text}: {:?}", template(text));
        }
    }

    #[test]
    fn other_texts_are_none() {
        for text in ["example.org", "*.example.org", "[::1]", "a_b", "", "."] {
            assert_eq!(host(text), None, "{text}");
        }
        for text in ["/", "/api", "/a:b", "/a/{id}", "x", ""] {
            assert_eq!(path(text), None, "{text}");
        }
        for text in ["{host}", "$5", "US$", "$unknown", "a{b}", "100%", "%C3%A9", "%41%42%43", "5%ABC"] {
            assert_eq!(template(text), None, "{text}");
        }
    }
}
