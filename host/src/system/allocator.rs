//! The allocator of the process, and the return of its free memory to the system.

use mimalloc::MiMalloc;

/// The allocator, faster than the system's for many small allocations from several threads.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Returns the free memory of this thread to the system. The allocator does so only at later allocations: a worker that is
/// quiet after a burst would keep all memory of the burst.
pub fn return_free_memory() {
    #[expect(unsafe_code, reason = "the crate of the allocator has no safe name for it; it has no requirements")]
    // SAFETY: the function takes a flag, works on the calling thread's own heap, and keeps all memory that is in use.
    unsafe {
        mi_collect(false);
    }
}

#[expect(unsafe_code, reason = "a declaration of the allocator's own function")]
unsafe extern "C" {
    /// Frees what the calling thread's heap has cached, and purges the memory whose purge is due.
    fn mi_collect(force: bool);
}
