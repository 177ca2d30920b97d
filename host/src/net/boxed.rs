//! Futures that are created and polled outside their caller's frame.

use std::pin::Pin;

/// Boxes a future that few exchanges need. A future that is created or polled in its caller's frame takes room there,
/// 55 KiB for a connection that is being made. Each poll of any exchange then steps over that room to other lines of
/// the processor's cache. The boxed future is created in a frame of its own, and polled through a pointer.
#[inline(never)]
pub fn boxed<'a, F: Future + 'a>(make: impl FnOnce() -> F) -> Pin<Box<dyn Future<Output = F::Output> + 'a>> {
    Box::pin(make())
}

/// Returns the size in bytes of the future that a function makes, without calling the function.
#[cfg(test)]
pub fn size_of_future<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}
