//! The manifest: its keys, its files, and messages about its mistakes.

pub mod load;
pub mod locate;
pub mod manifest;
pub mod problem;
pub mod structure;
mod wording;
