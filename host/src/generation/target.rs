//! The targets of routes: what answers the requests that have passed a route's request hooks.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::context::template::UriTemplate;
use crate::generation::ids::UpstreamId;
use crate::static_files::find::FileSite;

/// The target of a route: exactly one thing that answers its requests.
pub enum Target {
    /// The endpoints of an upstream. Plugins may choose another upstream for a request.
    Upstream(UpstreamId),
    /// A redirect to a location that is made for each request.
    Redirect(Redirect),
    /// A response that is the same for each request.
    Respond(FixedResponse),
    /// The files below a folder.
    Files(Arc<FileSite>),
}

/// A redirect of a route, whose location is made for each request.
pub struct Redirect {
    pub status: StatusCode,
    pub location: UriTemplate,
}

/// A response that was made when the manifest was loaded.
pub struct FixedResponse {
    pub status: StatusCode,
    /// The fields, with `Content-Type` if there is a body.
    pub fields: HeaderMap,
    /// The body; empty if the status has none.
    pub body: Bytes,
    /// Whether the content is the error page of the status.
    pub has_page: bool,
}

impl Target {
    /// Returns the upstream of the route; `None` if the target is another one.
    pub fn upstream(&self) -> Option<UpstreamId> {
        match self {
            Target::Upstream(upstream_id) => Some(*upstream_id),
            Target::Redirect(_) | Target::Respond(_) | Target::Files(_) => None,
        }
    }

    /// Returns the word for the kind of the target, which is its key in the manifest.
    pub fn word(&self) -> &'static str {
        match self {
            Target::Upstream(_) => "upstream",
            Target::Redirect(_) => "redirect",
            Target::Respond(_) => "respond",
            Target::Files(_) => "files",
        }
    }
}
