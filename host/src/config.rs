//! The manifest: its keys, its files, and messages about its mistakes.

mod foreign;
pub mod load;
pub mod locate;
pub mod manifest;
pub mod problem;
mod shape;
pub mod structure;
pub mod wording;
