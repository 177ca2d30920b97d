//! The decoder of `zstd` (RFC 8878).

use zstd_safe::zstd_sys::ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::{CodingDecoder, CodingFault, Passed};

/// A decoder of `zstd`, which may have several frames.
#[derive(Default)]
pub struct ZstdDecoder {
    /// The state of the library; `None` before the first byte.
    context: Option<DCtx<'static>>,
    stage: ZstdStage,
    produced: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum ZstdStage {
    #[default]
    Empty,
    WithinFrame,
    BehindFrame,
}

/// The longest window, as a power of two: 8 MiB, which RFC 9659 §3 demands of the content coding.
const WINDOW_LOG_MAX: u32 = 23;

/// The bytes of the state besides the window: tables, and a block on either side.
const MEMORY: usize = 512 << 10;

impl ZstdDecoder {
    fn context(&mut self) -> Result<&mut DCtx<'static>, CodingFault> {
        if self.context.is_none() {
            let mut context = DCtx::try_create().ok_or(CodingFault::Window)?;
            context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(|_| CodingFault::Window)?;
            self.context = Some(context);
        }
        self.context.as_mut().ok_or(CodingFault::Window)
    }
}

impl CodingDecoder for ZstdDecoder {
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Passed, CodingFault> {
        if input.is_empty() && self.stage != ZstdStage::WithinFrame {
            return Ok(Passed::default());
        }
        let stage = self.stage;
        let context = self.context()?;
        let (mut unread, mut unwritten) = (InBuffer::around(input), OutBuffer::around(output));
        let left =
            context.decompress_stream(&mut unwritten, &mut unread).map_err(|code| {
                match zstd_safe::is_error_kind(code, ZSTD_error_frameParameter_windowTooLarge) {
                    true => CodingFault::Window,
                    false if stage == ZstdStage::BehindFrame => CodingFault::Trailing,
                    false => CodingFault::Corrupt,
                }
            })?;
        let passed = Passed { read: unread.pos(), written: unwritten.pos() };
        self.stage = if left == 0 { ZstdStage::BehindFrame } else { ZstdStage::WithinFrame };
        self.produced = self.produced.saturating_add(passed.written);
        Ok(passed)
    }

    fn is_complete(&self) -> bool {
        self.stage != ZstdStage::WithinFrame
    }

    /// Returns at most what has been decoded: the window is reserved whole, and becomes memory as it fills.
    fn memory(&self) -> usize {
        let reserved = self.context.as_ref().map_or(0, DCtx::sizeof);
        reserved.min(self.produced.saturating_add(MEMORY))
    }
}
