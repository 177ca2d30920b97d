//! Futures that are made and polled apart from the way that most exchanges take.

use std::pin::Pin;

/// Boxes a future that few exchanges need. Neither is it made where it is awaited, since whoever makes a future has room
/// on the stack for the whole of it, nor is it polled there as part of the caller: an exchange that needs neither would
/// still step over that room with each poll, 55 KiB for a connection that is being made, and so use other lines of the
/// processor's cache than all around it.
#[inline(never)]
pub fn apart<'a, F: Future + 'a>(make: impl FnOnce() -> F) -> Pin<Box<dyn Future<Output = F::Output> + 'a>> {
    Box::pin(make())
}
