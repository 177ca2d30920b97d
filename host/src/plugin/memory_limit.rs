//! The bounds of an instance's memory and tables. Remembers a refusal, so that the trap by which most guests answer it
//! can be told from others.

use wasmtime::{ResourceLimiter, StoreLimits};

/// The limits of one instance.
pub struct MemoryLimit {
    limits: StoreLimits,
    /// Whether memory was refused since the last call of [`MemoryLimit::forget`].
    pub(super) is_refused: bool,
}

impl MemoryLimit {
    /// Limits under which nothing was refused yet.
    pub fn new(limits: StoreLimits) -> Self {
        MemoryLimit { limits, is_refused: false }
    }

    /// Forgets refusals: the guest has survived them.
    pub fn forget(&mut self) {
        self.is_refused = false;
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let grows = self.limits.memory_growing(current, desired, maximum)?;
        self.is_refused |= !grows;
        Ok(grows)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.memory_grow_failed(error)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.table_grow_failed(error)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}
