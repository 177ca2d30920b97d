//! Futures that are made and polled apart from the way that most exchanges take.

use std::pin::Pin;

/// Boxes a future that few exchanges need. A future that is made or polled in its caller's frame takes room there, 55 KiB
/// for a connection that is being made, and each poll of any exchange steps over that to other lines of the processor's
/// cache. Here it is made in a frame of its own, and polled through a pointer.
#[inline(never)]
pub fn apart<'a, F: Future + 'a>(make: impl FnOnce() -> F) -> Pin<Box<dyn Future<Output = F::Output> + 'a>> {
    Box::pin(make())
}
