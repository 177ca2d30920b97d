//! The `plugway` program.

/// The allocator, faster than the system's for many small allocations from several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    plugway::cli::main()
}
