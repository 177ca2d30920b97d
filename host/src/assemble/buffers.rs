//! The room for bodies that wait for a slow peer, and the bodies of each route that use it.
#![expect(clippy::disallowed_methods, reason = "the folder for temporary files is the environment's to choose")]

use std::sync::Arc;

use crate::config::load::ManifestFile;
use crate::config::spanned::Spanned;

use super::{Assembly, beside, units};
use crate::body::buffer_space::BufferLimits;
use crate::config::diagnostic::{Doubt, Source};
use crate::config::manifest::{RouteTable, SizeOrOff};
use crate::generation::{BufferedContent, RequestBuffer};
use crate::system::files;

/// The default memory: room for one large body of each of many clients.
const MEMORY: usize = 64 << 20;
/// The minimum memory: a body has a sixteenth of it, which has to be more than a piece.
const MIN_MEMORY: usize = 4 << 20;
/// The default size of all files together: four times what nginx lets one response have.
const DISK: usize = 4 << 30;
/// The default bytes of a response that may wait, as much as nginx has (`proxy_max_temp_file_size`).
const RESPONSE: u64 = 1 << 30;
/// The default length of a request that is received first: the maximum of nginx (`client_max_body_size`).
const REQUEST: u64 = 1 << 20;

impl Assembly<'_> {
    /// Returns the limits of bodies that wait for a slow peer.
    pub(super) fn buffer_limits(&mut self, files: &[ManifestFile]) -> BufferLimits {
        let named = files.iter().find_map(|file| Some((&file.source, file.manifest.buffers.as_ref()?)));
        let default = || BufferLimits { memory: MEMORY as u64, disk: DISK as u64, folder: std::env::temp_dir().into() };
        let Some((source, buffers)) = named else { return default() };
        let memory = self.bytes(source, buffers.memory.as_ref(), MEMORY);
        if let Some(text) = buffers.memory.as_ref().filter(|_| memory < MIN_MEMORY) {
            let message = format!("`memory` too small: `{}`; expected at least `4 MiB`", text.get_ref());
            self.problems.at(source, text.span(), message);
        }
        let disk = self.bytes(source, buffers.disk.as_ref(), DISK) as u64;
        let folder = buffers.folder.as_ref().map(|folder| beside(source, folder.get_ref()));
        if let (Some(path), Some(named)) = (&folder, &buffers.folder)
            && let Some(reason) = files::no_folder(path)
        {
            self.problems.at(source, named.span(), format!("no folder for buffers: {reason}"));
        }
        let folder = folder.map_or_else(|| default().folder, Into::into);
        BufferLimits { memory: memory as u64, disk, folder }
    }

    /// Returns the bytes of a route's responses that may wait for a slow client; 0 for none.
    pub(super) fn response_buffer(&mut self, source: &Arc<Source>, route: &RouteTable) -> u64 {
        route.response_buffer.as_ref().map_or(RESPONSE, |size| self.size_or_off(source, size))
    }

    /// Returns the requests of a route that are received before an endpoint is asked; `None` for none. No body of the route is
    /// longer than `max_body` bytes.
    pub(super) fn request_buffer(
        &mut self,
        source: &Arc<Source>,
        route: &RouteTable,
        max_body: u64,
    ) -> Option<RequestBuffer> {
        let Some(size) = &route.request_buffer else {
            return Some(RequestBuffer { max: REQUEST, which: BufferedContent::KnownLength });
        };
        let max = self.size_or_off(source, size);
        if max > max_body {
            let limit = route.max_body.as_ref().map_or("1 GiB by default", |limit| limit.get_ref());
            let why = format!(
                "`request-buffer` above `max-body`, {limit}: a longer body gets 413; raise `max-body`, or write the same size"
            );
            self.problems.warn(Doubt::NoEffect, source, size.span(), &why);
        }
        (max > 0).then_some(RequestBuffer { max, which: BufferedContent::AnyLength })
    }

    fn size_or_off(&mut self, source: &Arc<Source>, size: &Spanned<SizeOrOff>) -> u64 {
        let SizeOrOff::Size(text) = size.get_ref() else { return 0 };
        match units::bytes(text) {
            Some(bytes) => bytes as u64,
            None => {
                let found = units::found_size(text);
                let message =
                    format!("invalid size: {found}; expected a number with a unit, such as `16 MiB`, or `false`");
                self.problems.at(source, size.span(), message);
                0
            }
        }
    }
}
