//! The bounds of an instance's memory and tables. Remembers a refusal, so that the trap by which most guests answer it
//! can be told from others.

use wasmtime::{ResourceLimiter, StoreLimits};

/// The limits of one instance.
pub struct MemoryLimit {
    limits: StoreLimits,
    /// The current number of elements of all tables, at most `most_elements`.
    elements: usize,
    most_elements: usize,
    /// Whether memory was refused since the last call of [`MemoryLimit::forget`].
    pub(super) is_refused: bool,
}

impl MemoryLimit {
    /// Returns limits under which nothing was refused yet. `most_elements` limits the elements of all tables together:
    /// each takes eight bytes besides the instance's memory.
    pub fn new(limits: StoreLimits, most_elements: usize) -> Self {
        MemoryLimit { limits, elements: 0, most_elements, is_refused: false }
    }

    /// Forgets refusals, because the guest has survived them.
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
        let elements = self.elements.saturating_add(desired.saturating_sub(current));
        let grows = elements <= self.most_elements && self.limits.table_growing(current, desired, maximum)?;
        if grows {
            self.elements = elements;
        }
        Ok(grows)
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

#[cfg(test)]
mod tests {
    use wasmtime::StoreLimitsBuilder;

    use super::*;

    #[test]
    fn tables_share_their_elements() {
        let mut limits = MemoryLimit::new(StoreLimitsBuilder::new().table_elements(100).build(), 100);
        let mut grow = |current, desired| limits.table_growing(current, desired, None).unwrap();
        assert!(grow(0, 60) && !grow(0, 41) && grow(0, 30) && grow(60, 70) && !grow(70, 71));
        assert!(grow(0, 0) && !grow(0, usize::MAX));
    }
}
