//! Serving the files below a folder.

use http::Response;

use super::response_body::ResponseBody;
use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::generation::target::FilesTarget;

/// Returns the file that a request asks for. The path is that of [`ExchangeContext::forwarded_target`], on which the route's
/// `strip-prefix` and `rewrite` have acted.
pub async fn serve_files(files: &FilesTarget, _context: &ExchangeContext) -> Result<Response<ResponseBody>, Error> {
    Err(Error::new(FailureKind::NoRoute, format!("no such file below `{}`", files.root.display())))
}
