//! The ways in which a plugin takes bodies, and the decisions of head hooks about them.

use std::ops::Range;

use crate::context::edit_check::MessageSide;

/// The way in which a plugin takes bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyMode {
    /// The plugin takes no body.
    Skipped,
    /// The plugin takes the body chunk by chunk.
    Streamed,
    /// The plugin takes the whole body, up to so many bytes.
    Buffered(u64, OverLimit),
}

/// The handling of a body beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverLimit {
    Reject,
    PassThrough,
}

/// The decisions of the head hooks of an exchange about the body hooks of their plugins.
#[derive(Debug, Default)]
pub struct BodyDecisions {
    /// The decision that the edits of the call at hand have made.
    asked: Option<BodyMode>,
    made: Vec<BodyDecision>,
}

/// The decision of a plugin, by its place in the chain.
#[derive(Debug)]
struct BodyDecision {
    side: MessageSide,
    place: usize,
    mode: BodyMode,
}

impl BodyDecisions {
    /// Notes the decision of an edit, until the call that made the edit is settled.
    pub fn ask(&mut self, mode: BodyMode) {
        self.asked = Some(mode);
    }

    /// Takes the decision of the last call away.
    pub fn take_asked(&mut self) -> Option<BodyMode> {
        self.asked.take()
    }

    /// Keeps the decision of a plugin, at a place in the chain.
    pub fn make(&mut self, side: MessageSide, place: usize, mode: BodyMode) {
        self.made.retain(|known| (known.side, known.place) != (side, place));
        self.made.push(BodyDecision { side, place, mode });
    }

    /// Drops the decisions of some plugins, whose head hooks run once more.
    pub fn forget(&mut self, side: MessageSide, places: &Range<usize>) {
        self.made.retain(|known| known.side != side || !places.contains(&known.place));
    }

    /// Returns the decision of a plugin, at a place in the chain; `None` if the plugin made none.
    pub fn of(&self, side: MessageSide, place: usize) -> Option<BodyMode> {
        self.made.iter().find(|known| (known.side, known.place) == (side, place)).map(|known| known.mode)
    }
}

/// Formats the mode as `plugway inspect` shows it.
impl std::fmt::Display for BodyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BodyMode::Skipped => f.write_str("only if a head hook asks for it"),
            BodyMode::Streamed => f.write_str("chunk by chunk"),
            BodyMode::Buffered(bytes, OverLimit::Reject) => write!(f, "whole, and rejects more than {bytes} bytes"),
            BodyMode::Buffered(bytes, OverLimit::PassThrough) => write!(f, "whole, if it has at most {bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_decision_of_each_plugin_and_side_counts_until_its_hook_runs_again() {
        let (request, response) = (MessageSide::Request, MessageSide::Response);
        let mut decisions = BodyDecisions::default();
        decisions.make(request, 1, BodyMode::Skipped);
        decisions.make(response, 1, BodyMode::Streamed);
        decisions.make(response, 1, BodyMode::Skipped);
        decisions.make(response, 2, BodyMode::Streamed);
        assert_eq!(decisions.of(request, 1), Some(BodyMode::Skipped));
        assert_eq!(decisions.of(response, 1), Some(BodyMode::Skipped));
        assert_eq!(decisions.of(response, 0), None);
        decisions.forget(response, &(0..2));
        assert_eq!((decisions.of(response, 1), decisions.of(request, 1)), (None, Some(BodyMode::Skipped)));
        assert_eq!(decisions.of(response, 2), Some(BodyMode::Streamed));
    }
}
