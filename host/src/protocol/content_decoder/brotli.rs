//! The decoder of `br` (RFC 7932).

use std::cell::Cell;
use std::rc::Rc;

use brotli_decompressor::{Allocator, BrotliDecompressStream, BrotliResult, BrotliState, SliceWrapper, StandardAlloc};

use super::{CodingDecoder, CodingFault, Passed};

/// A decoder of `br`. Its window grows with the content, to 16 MiB at most; the large windows of the unregistered variant
/// are rejected.
pub struct BrotliDecoder {
    state: Box<BrotliState<CountingAlloc, CountingAlloc, CountingAlloc>>,
    memory: Rc<Cell<usize>>,
    stage: BrotliStage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BrotliStage {
    Empty,
    Within,
    Over,
}

/// An allocator that counts the bytes of a decoder: besides the window, the prefix codes take up to 3 MiB.
#[derive(Clone)]
struct CountingAlloc(Rc<Cell<usize>>);

impl<T: Clone + Default> Allocator<T> for CountingAlloc {
    type AllocatedMemory = <StandardAlloc as Allocator<T>>::AllocatedMemory;

    fn alloc_cell(&mut self, len: usize) -> Self::AllocatedMemory {
        self.0.set(self.0.get() + len * size_of::<T>());
        StandardAlloc::default().alloc_cell(len)
    }

    fn free_cell(&mut self, data: Self::AllocatedMemory) {
        self.0.set(self.0.get().saturating_sub(size_of_val(data.slice())));
    }
}

impl Default for BrotliDecoder {
    fn default() -> Self {
        let memory: Rc<Cell<usize>> = Rc::default();
        let alloc = || CountingAlloc(memory.clone());
        let state = Box::new(BrotliState::new_strict(alloc(), alloc(), alloc()));
        memory.set(memory.get() + size_of::<BrotliState<CountingAlloc, CountingAlloc, CountingAlloc>>());
        BrotliDecoder { state, memory, stage: BrotliStage::Empty }
    }
}

impl CodingDecoder for BrotliDecoder {
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Passed, CodingFault> {
        match self.stage {
            BrotliStage::Over if input.is_empty() => return Ok(Passed::default()),
            BrotliStage::Over => return Err(CodingFault::Trailing),
            BrotliStage::Empty if input.first().is_some_and(|first| first & 0x7f == LARGE_WINDOW) => {
                return Err(CodingFault::Window);
            }
            BrotliStage::Empty | BrotliStage::Within => {}
        }
        self.stage = BrotliStage::Within;
        let Passed { mut read, mut written } = Passed::default();
        let (mut unread, mut unwritten) = (input.len(), output.len());
        let result = BrotliDecompressStream(
            &mut unread,
            &mut read,
            input,
            &mut unwritten,
            &mut written,
            output,
            &mut 0,
            &mut self.state,
        );
        match result {
            BrotliResult::ResultFailure => return Err(CodingFault::Corrupt),
            BrotliResult::ResultSuccess => self.stage = BrotliStage::Over,
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
        }
        Ok(Passed { read, written })
    }

    fn is_complete(&self) -> bool {
        self.stage != BrotliStage::Within
    }

    fn memory(&self) -> usize {
        self.memory.get()
    }
}

/// The bits with which a stream of the variant with large windows begins, which are reserved in RFC 7932 §9.1.
const LARGE_WINDOW: u8 = 0b001_0001;
