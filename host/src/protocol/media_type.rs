//! The media types of files, by the ends of their names.

use http::HeaderValue;

/// The type of files whose names say nothing, which clients save instead of showing them.
const UNKNOWN: &str = "application/octet-stream";

/// The types that IANA has registered, or that browsers expect, where the table of `mime_guess` has another one.
const NEWER: [(&str, &str); 12] = [
    ("cjs", "text/javascript"),
    ("ico", "image/vnd.microsoft.icon"),
    ("m3u8", "application/vnd.apple.mpegurl"),
    ("m4a", "audio/mp4"),
    ("m4s", "video/iso.segment"),
    ("map", "application/json"),
    ("mjs", "text/javascript"),
    ("otf", "font/otf"),
    ("rpm", "application/x-redhat-package-manager"),
    ("ts", "video/mp2t"),
    ("woff", "font/woff"),
    ("zst", "application/zstd"),
];

/// Returns the media type of a file, by its name or its path. Text is UTF-8.
pub fn of_file(name: &str) -> HeaderValue {
    let name = name.rsplit('/').next().unwrap_or(name);
    let end = name.rsplit_once('.').map_or("", |(_, end)| end);
    let newer = NEWER.iter().find(|(known, _)| known.eq_ignore_ascii_case(end)).map(|(_, media)| *media);
    let known = newer.or_else(|| mime_guess::from_ext(end).first_raw()).unwrap_or(UNKNOWN);
    if known.starts_with("text/") {
        return HeaderValue::try_from(format!("{known}; charset=utf-8")).unwrap_or(HeaderValue::from_static(UNKNOWN));
    }
    HeaderValue::from_static(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_name_has_a_type() {
        let cases = [
            ("index.html", "text/html; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a/b.JS", "text/javascript; charset=utf-8"),
            ("b.MJS", "text/javascript; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.js.map", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.wasm", "application/wasm"),
            ("a.woff2", "font/woff2"),
            ("a.webmanifest", "application/manifest+json"),
            ("a.avif", "image/avif"),
            ("part1.m4s", "video/iso.segment"),
            ("a.rpm", "application/x-redhat-package-manager"),
            ("a.tar.zst", "application/zstd"),
            ("a.tar.gz", "application/gzip"),
            ("a.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
            ("a.html/b", UNKNOWN),
            ("html", UNKNOWN),
            ("a.", UNKNOWN),
            ("a.unknown-end", UNKNOWN),
            ("", UNKNOWN),
        ];
        for (name, wanted) in cases {
            assert_eq!(of_file(name), wanted, "{name}");
        }
    }

    #[test]
    fn newer_types_differ_from_the_table() {
        for (end, media) in NEWER {
            assert_ne!(mime_guess::from_ext(end).first_raw(), Some(media), "remove {end}");
        }
    }
}
