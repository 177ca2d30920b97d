//! The limit of the log lines of libraries. They write a line for what a peer sends, such as each datagram that is no answer
//! to a name server's client, and know no limits of their own.

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::failure_log::{self, Topic};

/// A layer that suppresses the lines of libraries beyond those of [`Topic::Library`]. Lines of the levels `debug` and `trace`
/// are not limited: they are written for those who ask for them.
pub struct LibraryLines;

impl<S: Subscriber> Layer<S> for LibraryLines {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        let is_own = target.starts_with("plugway");
        is_own || level > Level::INFO || failure_log::admits(Topic::Library, target)
    }
}
