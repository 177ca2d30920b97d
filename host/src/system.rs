//! The facilities of the system and the process that every other part uses: guarded tasks and threads, files, descriptors,
//! and text that is safe to print.

pub(crate) mod allocator;
pub(crate) mod background;
pub(crate) mod bind_error;
pub(crate) mod client_parts;
pub(crate) mod client_places;
pub(crate) mod descriptor_shares;
pub mod descriptors;
pub(crate) mod fair_queue;
pub(crate) mod files;
pub mod holder_counts;
pub(crate) mod local_limit;
pub mod printable;
pub mod random;
pub(crate) mod service_manager;
pub mod supervise;
pub(crate) mod thread_time;
pub(crate) mod wait_queue;
