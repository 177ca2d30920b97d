//! Files that are no manifests, recognised by their beginning: files that a new user may name in error.

/// Returns the likely kind of a text that is no TOML; `None` if it looks like a manifest with errors.
pub fn kind(text: &str) -> Option<&'static str> {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let is_noise = |line: &&str| line.is_empty() || line.starts_with('#');
    let mut lines = text.lines().map(str::trim).filter(|line| !is_noise(line));
    let first = lines.next()?;
    // What follows is a comment, or part of a text.
    let first = first.split(" #").next().unwrap_or(first).trim_end();
    // TOML has a line that ends so only within a string or a list, which begins with a key.
    let has_braces = first.ends_with('{') && !first.contains('=');
    let has_statements = || std::iter::once(first).chain(lines.clone()).filter(|line| line.ends_with(';')).count() > 0;
    let is_mapping =
        |line: &str| !line.starts_with('[') && (line.ends_with(':') || line.contains(": ")) && !line.contains('=');
    let opens_block = |line: &str| {
        let name = line.split_once('{').map(|(before, _)| before.trim());
        name.is_some_and(|name| !name.is_empty() && !name.contains(['=', '"', '\'', '[', '#'])) && line.ends_with('}')
    };
    match first {
        _ if opens_block(first) && first.contains(';') => Some("a configuration of nginx"),
        _ if first.starts_with('{') || first.starts_with("[{") => Some("JSON"),
        _ if first.starts_with('<') => Some("XML or HTML"),
        _ if first.starts_with("-----BEGIN") => Some("a certificate or a key"),
        _ if first.starts_with("#!") => Some("a script"),
        _ if (has_braces || first.ends_with(';')) && has_statements() => Some("a configuration of nginx"),
        _ if has_braces => Some("a configuration of another program, such as Caddy"),
        _ if first == "---" || is_mapping(first) || first.starts_with("- ") => Some("YAML"),
        _ => None,
    }
}

/// Returns the likely kind of a file that is no text.
pub fn binary_kind(bytes: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 4] = [
        (
            b"\0asm",
            "WebAssembly: name it in a manifest, such as `use = \"plugin.wasm\"`, or show it by `plugway inspect`",
        ),
        (b"\x7fELF", "a program"),
        (b"\x1f\x8b", "a compressed file"),
        (b"PK\x03\x04", "a zip archive"),
    ];
    let kind = known.iter().find_map(|(start, kind)| bytes.starts_with(start).then_some(*kind));
    kind.or_else(|| bytes.contains(&0).then_some("binary data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_known_by_how_they_begin() {
        for (text, what) in [
            ("{\n  \"listener\": []\n}", "JSON"),
            ("# old\nserver {\n  listen 80;\n}", "a configuration of nginx"),
            ("user www;\nhttp {\n}", "a configuration of nginx"),
            ("server { listen 80; location / { proxy_pass http://a; } }", "a configuration of nginx"),
            ("example.org {\n  reverse_proxy a:80\n}", "a configuration of another program, such as Caddy"),
            ("listener:\n  - address: a", "YAML"),
            ("---\na: 1", "YAML"),
            ("listener: # at the front\n", "YAML"),
            ("<VirtualHost *:80>", "XML or HTML"),
            ("-----BEGIN CERTIFICATE-----\nAAA", "a certificate or a key"),
        ] {
            assert_eq!(kind(text), Some(what), "{text}");
        }
        for text in [
            "[[listener]] # note: public\naddress = \"x",
            "[a.\"b: c\"]\nd =",
            "",
            "[[listener]]\naddress = 1.2.3",
            "a = {",
            "workers = 2 4",
            "address = \"a:80",
            "[upstream.app",
            "x",
        ] {
            assert_eq!(kind(text), None, "{text}");
        }
        assert!(binary_kind(b"\0asm\r\0\x01\0").unwrap().starts_with("WebAssembly"));
        assert_eq!(binary_kind(b"caf\xe9"), None);
    }
}
