//! The list of a folder's files as a page.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustix::fs::{AtFlags, Dir, FileType, statat};

use super::root::{OpenFailure, Opened, Root, Wait};
use super::site_path::{PathLevel, SitePath, is_served};
use crate::body::buffer_space::MadeMemory;

/// The maximum number of names in a list: a page of some megabytes, which browsers still show.
const MAX_ENTRIES: usize = 10_000;

/// The number of entries after which the thread checks again whether a client still waits for the list.
const CHECKED_EVERY: usize = 64;

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

/// A page with the list of a folder's files, which is counted in the memory for bodies until it is dropped.
#[derive(Debug)]
pub struct ListingPage {
    content: Vec<u8>,
    _memory: MadeMemory,
}

/// A folder whose files are listed.
pub struct ListedFolder<'a> {
    pub root: &'a Root,
    pub path: &'a SitePath,
    pub folder: &'a File,
    /// The path of the site's root for clients.
    pub prefix: &'a str,
}

/// The reason why there is no list.
#[derive(Debug)]
pub enum ListingFailure {
    /// The folder can't be opened or read.
    Open(OpenFailure),
    /// The list does not fit into the memory for bodies.
    NoMemory,
    /// No client waits for the list any more.
    Unwanted,
}

impl ListedFolder<'_> {
    /// Returns the page with the list. Only what is served is listed. `memory`, which is empty, counts names and page before
    /// either takes memory.
    pub fn page(&self, mut memory: MadeMemory, is_wanted: impl Fn() -> bool) -> Result<ListingPage, ListingFailure> {
        let (mut entries, extent) = self.entries(&mut memory, is_wanted)?;
        entries.sort();
        let mut length = PageLength(0);
        let _ = self.write_page(&mut length, &entries, extent);
        if !memory.grow(length.0) {
            return Err(ListingFailure::NoMemory);
        }
        let mut page = String::with_capacity(length.0);
        let _ = self.write_page(&mut page, &entries, extent);
        drop(entries);
        memory.shrink(page.len());
        Ok(ListingPage { content: page.into_bytes(), _memory: memory })
    }

    /// Returns the entries of the list, in the order of the system.
    fn entries(
        &self,
        memory: &mut MadeMemory,
        is_wanted: impl Fn() -> bool,
    ) -> Result<(Vec<Entry>, Extent), ListingFailure> {
        let failed = |error: rustix::io::Errno| ListingFailure::Open(OpenFailure::Failed(io::Error::from(error)));
        let mut entries = Vec::new();
        let level = if self.path.is_root() { PathLevel::Top } else { PathLevel::Below };
        for (number, found) in Dir::read_from(self.folder).map_err(failed)?.enumerate() {
            let found = found.map_err(failed)?;
            if number % CHECKED_EVERY == 0 && !is_wanted() {
                return Err(ListingFailure::Unwanted);
            }
            let name = found.file_name().to_bytes();
            if !is_served(name, level) {
                continue;
            }
            if entries.len() == MAX_ENTRIES {
                return Ok((entries, Extent::Some));
            }
            if !memory.grow(ENTRY_BYTES + name.len()) {
                return Err(ListingFailure::NoMemory);
            }
            entries.extend(entry(self.root, self.path, self.folder, name));
        }
        Ok((entries, Extent::All))
    }

    fn write_page(&self, page: &mut impl fmt::Write, entries: &[Entry], extent: Extent) -> fmt::Result {
        write_page(page, self.path, self.prefix, entries, extent)
    }
}

impl AsRef<[u8]> for ListingPage {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

/// The memory that an entry takes besides its name: vectors grow to twice what is in them.
const ENTRY_BYTES: usize = 2 * size_of::<Entry>();

/// The number of bytes of a page that is not kept.
struct PageLength(usize);

impl fmt::Write for PageLength {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
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

fn write_page(
    page: &mut impl fmt::Write,
    path: &SitePath,
    prefix: &str,
    entries: &[Entry],
    extent: Extent,
) -> fmt::Result {
    let title = escape(&format!("{prefix}/{}", path.to_text()));
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<h1>{title}</h1>\n<table>\n"
    )?;
    if !path.is_root() {
        page.write_str("<tr><td><a href=\"../\">../</a></td></tr>\n")?;
    }
    for Entry { kind, name, length, modified } in entries {
        let (slash, length) = match kind {
            EntryKind::Folder => ("/", String::new()),
            EntryKind::File => ("", length.to_string()),
        };
        let (link, shown) = (percent_encode(name, ESCAPED), escape(&String::from_utf8_lossy(name)));
        let modified = date(*modified);
        writeln!(
            page,
            "<tr><td><a href=\"./{link}{slash}\">{shown}{slash}</a></td><td>{length}</td><td>{modified}</td></tr>"
        )?;
    }
    page.write_str("</table>\n")?;
    if extent == Extent::Some {
        writeln!(page, "<p>This folder has more than {MAX_ENTRIES} names, the most that are listed.</p>")?;
    }
    page.write_str("</html>\n")
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
    use std::path::Path;

    use super::*;
    use crate::body::buffer_space::RouteMade;
    use crate::body::buffer_space::tests::space;
    use crate::system::holder_counts::Holder;

    #[test]
    fn names_are_text_in_a_page_and_paths_in_a_link() {
        let entry = |name: &[u8]| Entry { kind: EntryKind::File, name: name.to_vec(), length: 5, modified: 0 };
        let path = SitePath::parse("/%3Cscript%3E/").unwrap();
        let entries = [entry(b"<img src=x onerror='a'>"), entry(b"a:b?\"#%"), entry(b"\xff")];
        let (mut page, mut length) = (String::new(), PageLength(0));
        write_page(&mut page, &path, "/dl", &entries, Extent::Some).unwrap();
        write_page(&mut length, &path, "/dl", &entries, Extent::Some).unwrap();
        assert_eq!(length.0, page.len());
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
        let (usage, space) = space(Path::new("/"));
        let listed = ListedFolder { root: &root, path: &path, folder: &folder, prefix: "" };
        let page = listed.page(space.memory_for_made(&RouteMade::default(), Holder::UNKNOWN), || true).unwrap();
        assert_eq!(usage.memory(), page.as_ref().len() as u64, "the names are gone");
        let none = listed.page(space.memory_for_made(&RouteMade::default(), Holder::UNKNOWN), || false);
        assert!(matches!(none, Err(ListingFailure::Unwanted)), "{none:?}");
        let _others = [8 << 20, 4 << 20, 1 << 20]
            .map(|bytes| space.count_made(bytes, &RouteMade::default(), Holder::UNKNOWN).unwrap());
        let full = listed.page(space.memory_for_made(&RouteMade::default(), Holder::UNKNOWN), || true);
        assert!(matches!(full, Err(ListingFailure::NoMemory)), "{full:?}");
        let page = String::from_utf8(page.content).unwrap();
        let links: Vec<&str> = page.split("href=\"./").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(links, ["z/", "a.txt", "b.txt", "link"]);
    }
}
