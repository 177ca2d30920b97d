//! Finds what answers for a path: a file or its compressed copy, the index file of a folder, a folder whose files are to be
//! listed, or the site's fallback.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use smallvec::SmallVec;

use super::root::{OpenFailure, Opened, Root, Wait};
use super::shared_listings::SharedListings;
use super::site_path::SitePath;
use crate::protocol::content_coding::ContentCoding;
use crate::system::descriptor_shares::DescriptorUse;

/// A folder whose files are served.
#[derive(Debug)]
pub struct FileSite {
    /// The folder that paths are looked up in.
    pub root: PathBuf,
    /// The names of index files. The first that exists is the response for its folder.
    pub index: Vec<String>,
    /// The file that answers for paths without a file; `None` if these have no answer.
    pub fallback: Option<SitePath>,
    /// The path of the site's root for clients, such as `/files`, in the titles of lists; empty if they agree.
    pub prefix: String,
    /// The codings of copies beside a file, in the order of preference.
    pub precompressed: Vec<ContentCoding>,
    /// The lists of folders without an index file; `None` if such folders have no answer.
    pub listings: Option<SharedListings>,
}

/// A client's request to a site.
#[derive(Clone, Debug)]
pub struct FileQuery {
    pub path: SitePath,
    /// The codings of copies that the client gets rather than the file, in the order of the client's preference.
    pub codings: SmallVec<[ContentCoding; 3]>,
}

/// The answer for a path.
#[derive(Debug)]
pub enum PathAnswer {
    File(FoundFile),
    /// A folder, whose path lacks the slash at its end.
    Folder,
    /// A folder without an index file, whose files are to be listed.
    Unindexed,
    Absent,
    /// The user that runs the proxy may not read the file.
    Denied,
}

/// A file that answers for a path.
#[derive(Debug)]
pub struct FoundFile {
    pub file: SiteFile,
    /// The path of the file without a coding.
    pub path: SitePath,
    /// The coding of the file; `None` if it has none.
    pub coding: Option<ContentCoding>,
}

/// An open file of a site, with its properties at the time of opening.
#[derive(Debug)]
pub struct SiteFile {
    pub file: File,
    /// The length in bytes.
    pub length: u64,
    pub modified: FileTime,
    pub changed: FileTime,
    _descriptor: DescriptorUse,
}

/// A time of a file, since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileTime {
    pub seconds: i64,
    pub nanoseconds: i64,
}

impl FileTime {
    /// Returns the time at which the content of a file was modified. Tools that unpack files may set it.
    pub fn modified(metadata: &Metadata) -> Self {
        FileTime { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() }
    }

    /// Returns the time at which the system last changed the content, the name or a property of a file. No tool sets it.
    pub fn changed(metadata: &Metadata) -> Self {
        FileTime { seconds: metadata.ctime(), nanoseconds: metadata.ctime_nsec() }
    }

    /// Whether builds give this time to all files, so that the time does not change with the content.
    pub fn is_fixed(self) -> bool {
        self.seconds < FIRST_OWN_TIME
    }
}

/// The beginning of 1980-01-03 in UTC, in seconds. Reproducible builds give all files the time 0 or 1, or 1980-01-01, the first
/// that archives of ZIP hold, which a time zone may shift by a day.
const FIRST_OWN_TIME: i64 = 315_705_600;

/// The reason why a search has no answer.
#[derive(Debug)]
pub enum FindFailure {
    /// The answer needs a wait.
    WouldWait,
    Failed(io::Error),
}

impl FileSite {
    /// Finds what answers for a query.
    pub fn find(
        &self,
        root: &Root,
        query: &FileQuery,
        descriptor: DescriptorUse,
        wait: Wait,
    ) -> Result<PathAnswer, FindFailure> {
        let search = SiteSearch { site: self, root, query, wait };
        search.find(descriptor).or_else(|failure| match failure {
            OpenFailure::WouldWait => Err(FindFailure::WouldWait),
            OpenFailure::Failed(error) => Err(FindFailure::Failed(error)),
            OpenFailure::Absent => Ok(PathAnswer::Absent),
            OpenFailure::Denied => Ok(PathAnswer::Denied),
        })
    }
}

/// A single search in a site.
struct SiteSearch<'a> {
    site: &'a FileSite,
    root: &'a Root,
    query: &'a FileQuery,
    wait: Wait,
}

impl SiteSearch<'_> {
    fn find(&self, descriptor: DescriptorUse) -> Result<PathAnswer, OpenFailure> {
        let path = &self.query.path;
        let opened =
            if path.is_folder() { self.open_index(path)? } else { self.open(path)?.map(|it| (path.clone(), it)) };
        let opened = match opened {
            Some((path, Opened::File(file, metadata))) => Some((path, file, metadata)),
            Some((_, Opened::Folder(_))) => return Ok(PathAnswer::Folder),
            Some((_, Opened::Other)) | None if self.is_to_be_listed(path)? => return Ok(PathAnswer::Unindexed),
            Some((_, Opened::Other)) | None => self.open_fallback()?,
        };
        let Some((path, file, metadata)) = opened else { return Ok(PathAnswer::Absent) };
        if let Some((copy, copy_metadata, coding)) = self.open_copy(&path, &metadata)? {
            let file = SiteFile::new(copy, &copy_metadata, descriptor);
            return Ok(PathAnswer::File(FoundFile { file, path, coding: Some(coding) }));
        }
        Ok(PathAnswer::File(FoundFile { file: SiteFile::new(file, &metadata, descriptor), path, coding: None }))
    }

    /// Opens the file at a path; `None` if there is none.
    fn open(&self, path: &SitePath) -> Result<Option<Opened>, OpenFailure> {
        match self.root.find(path, self.wait) {
            Err(OpenFailure::Absent) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Opens the index file of a folder, with its path.
    fn open_index(&self, folder: &SitePath) -> Result<Option<(SitePath, Opened)>, OpenFailure> {
        for name in &self.site.index {
            let path = folder.join(name.as_bytes());
            if let Some(Opened::File(file, metadata)) = self.open(&path)? {
                return Ok(Some((path, Opened::File(file, metadata))));
            }
        }
        Ok(None)
    }

    fn open_fallback(&self) -> Result<Option<(SitePath, File, Metadata)>, OpenFailure> {
        let Some(fallback) = &self.site.fallback else { return Ok(None) };
        Ok(match self.open(fallback)? {
            Some(Opened::File(file, metadata)) => Some((fallback.clone(), file, metadata)),
            Some(Opened::Folder(_) | Opened::Other) | None => None,
        })
    }

    /// Opens the copy of a file that the client likes best. A copy that is older than the file is one of something else.
    fn open_copy(
        &self,
        path: &SitePath,
        of: &Metadata,
    ) -> Result<Option<(File, Metadata, ContentCoding)>, OpenFailure> {
        for coding in &self.query.codings {
            let copy = match self.open(&path.join(coding.suffix().as_bytes())) {
                // The file itself answers as well.
                Err(OpenFailure::Denied) => None,
                copy => copy?,
            };
            // In whole seconds, as tools that make copies, or move them, keep no parts of these.
            if let Some(Opened::File(copy, metadata)) = copy
                && metadata.mtime() >= of.mtime()
            {
                return Ok(Some((copy, metadata, *coding)));
            }
        }
        Ok(None)
    }

    /// Whether a path is that of a folder whose files are listed if it has no index file.
    fn is_to_be_listed(&self, path: &SitePath) -> Result<bool, OpenFailure> {
        Ok(self.site.listings.is_some() && path.is_folder() && matches!(self.open(path)?, Some(Opened::Folder(_))))
    }
}

impl SiteFile {
    fn new(file: File, metadata: &Metadata, descriptor: DescriptorUse) -> Self {
        SiteFile {
            file,
            length: metadata.len(),
            modified: FileTime::modified(metadata),
            changed: FileTime::changed(metadata),
            _descriptor: descriptor,
        }
    }
}
