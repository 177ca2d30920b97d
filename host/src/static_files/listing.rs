//! The list of a folder's files as a page.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustix::fs::{AtFlags, Dir, FileType, statat};

use super::root::{OpenFailure, Opened, Root, Wait};
use super::site_path::{PathLevel, SitePath, is_served};

/// The maximum number of names in a list: a page of some megabytes, which browsers still show.
const MAX_ENTRIES: usize = 10_000;

/// The bytes of a name that a link has as escapes: all but the unreserved ones (RFC 3986 §2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A file or a folder in a list.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    kind: EntryKind,
    name: Vec<u8>,
    /// The length in bytes.
    length: u64,
    /// The time of the entry's last change, in seconds since the epoch.
    modified: i64,
}

/// The kinds of entries, in the order in which a list has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EntryKind {
    Folder,
    File,
}

/// Whether a list has all names of its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    All,
    Some,
}

/// Returns the page with the list of an open folder, given with its path, to which clients add a prefix. Only what is
/// served is listed.
pub fn listing(root: &Root, path: &SitePath, folder: &File, prefix: &str) -> Result<Vec<u8>, OpenFailure> {
    let failed = |error: rustix::io::Errno| OpenFailure::Failed(io::Error::from(error));
    let (mut entries, mut extent) = (Vec::new(), Extent::All);
    let level = if path.is_root() { PathLevel::Top } else { PathLevel::Below };
    for found in Dir::read_from(folder).map_err(failed)? {
        let found = found.map_err(failed)?;
        let name = found.file_name().to_bytes();
        if !is_served(name, level) {
            continue;
        }
        if entries.len() == MAX_ENTRIES {
            extent = Extent::Some;
            break;
        }
        entries.extend(entry(root, path, folder, name));
    }
    entries.sort();
    Ok(page(path, prefix, &entries, extent).into_bytes())
}

/// Returns the entry of a list for a name; `None` if the name is of nothing that is served.
fn entry(root: &Root, path: &SitePath, folder: &File, name: &[u8]) -> Option<Entry> {
    let found = statat(folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let entry = |kind, length, modified| Some(Entry { kind, name: name.to_vec(), length, modified });
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => entry(EntryKind::File, u64::try_from(found.st_size).ok()?, found.st_mtime),
        FileType::Directory => entry(EntryKind::Folder, 0, found.st_mtime),
        FileType::Symlink => {
            let target = path.join(name);
            match root.find(&target, Wait::Allowed).ok()? {
                Opened::File(_, metadata) => entry(EntryKind::File, metadata.len(), metadata.mtime()),
                Opened::Folder(_) => entry(EntryKind::Folder, 0, found.st_mtime),
                Opened::Other => None,
            }
        }
        _ => None,
    }
}

fn page(path: &SitePath, prefix: &str, entries: &[Entry], extent: Extent) -> String {
    let title = escape(&format!("{prefix}/{}", path.to_text()));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<h1>{title}</h1>\n<table>\n"
    );
    if !path.is_root() {
        page.push_str("<tr><td><a href=\"../\">../</a></td></tr>\n");
    }
    for Entry { kind, name, length, modified } in entries {
        let (slash, length) = match kind {
            EntryKind::Folder => ("/", String::new()),
            EntryKind::File => ("", length.to_string()),
        };
        let (link, shown) = (percent_encode(name, ESCAPED), escape(&String::from_utf8_lossy(name)));
        let modified = date(*modified);
        let _ = writeln!(
            page,
            "<tr><td><a href=\"./{link}{slash}\">{shown}{slash}</a></td><td>{length}</td><td>{modified}</td></tr>"
        );
    }
    page.push_str("</table>\n");
    if extent == Extent::Some {
        let _ = writeln!(page, "<p>This folder has more than {MAX_ENTRIES} names, the most that are listed.</p>");
    }
    page.push_str("</html>\n");
    page
}

/// Returns a time as text; empty if it is before the epoch.
fn date(seconds: i64) -> String {
    let time = u64::try_from(seconds).ok().and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    // The format has years up to 9999.
    let time = time.filter(|_| seconds < 253_402_300_800);
    time.map_or(String::new(), httpdate::fmt_http_date)
}

/// Returns a text with the characters escaped that have a meaning in HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_in_a_page_and_paths_in_a_link() {
        let entry = |name: &[u8]| Entry { kind: EntryKind::File, name: name.to_vec(), length: 5, modified: 0 };
        let path = SitePath::parse("/%3Cscript%3E/").unwrap();
        let page =
            page(&path, "/dl", &[entry(b"<img src=x onerror='a'>"), entry(b"a:b?\"#%"), entry(b"\xff")], Extent::Some);
        for part in [
            "<title>/dl/&lt;script&gt;/</title>",
            "<a href=\"./%3Cimg%20src%3Dx%20onerror%3D%27a%27%3E\">&lt;img src=x onerror=&#39;a&#39;&gt;</a>",
            "<a href=\"./a%3Ab%3F%22%23%25\">a:b?&quot;#%</a>",
            "<a href=\"./%FF\">\u{fffd}</a>",
            "<td>5</td><td>Thu, 01 Jan 1970 00:00:00 GMT</td>",
            "<a href=\"../\">",
            "more than 10000 names",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
    }

    #[test]
    fn folders_come_before_files_and_hidden_names_not_at_all() {
        let site = tempfile::tempdir().unwrap();
        let at = |name: &str| site.path().join(name);
        for name in ["b.txt", ".env", "a.txt", "z/inner"] {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), "x").unwrap();
        }
        std::os::unix::fs::symlink("a.txt", at("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("out")).unwrap();
        let root = Root::open(site.path()).unwrap();
        let path = SitePath::parse("/").unwrap();
        let Ok(Opened::Folder(folder)) = root.find(&path, Wait::Allowed) else { panic!("the root is a folder") };
        let page = String::from_utf8(listing(&root, &path, &folder, "").unwrap()).unwrap();
        let links: Vec<&str> = page.split("href=\"./").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(links, ["z/", "a.txt", "b.txt", "link"]);
    }
}
