//! The memory of the decoders that make content plain for a plugin: a sender chooses how long their windows are.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::version::PluginVersion;

/// The memory that one message's decoders hold, counted for a plugin. Dropping it releases the memory.
pub struct DecoderMemory {
    version: Arc<PluginVersion>,
    bytes: u64,
}

/// An error of decoders that would hold more than `limits.decoded-memory`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the decoders of all content for the plugin hold more than {0} bytes")]
pub struct DecoderMemoryFull(pub u64);

impl DecoderMemory {
    /// Returns an empty share.
    pub fn new(version: &Arc<PluginVersion>) -> Self {
        DecoderMemory { version: version.clone(), bytes: 0 }
    }

    /// Counts the bytes that the decoders hold now.
    pub fn set(&mut self, bytes: u64) -> Result<(), DecoderMemoryFull> {
        let held = &self.version.decoders;
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes <= before {
            if bytes < before {
                held.fetch_sub(before - bytes, Ordering::Relaxed);
            }
            return Ok(());
        }
        let more = bytes - before;
        let most = self.version.recipe.limits.decoding.memory;
        if held.fetch_add(more, Ordering::Relaxed) + more > most { Err(DecoderMemoryFull(most)) } else { Ok(()) }
    }

    /// Releases the memory of decoders that are no more.
    pub fn release(&mut self) {
        self.version.decoders.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for DecoderMemory {
    fn drop(&mut self) {
        self.release();
    }
}
