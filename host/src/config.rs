//! The manifest: its keys, its files, and its diagnostics.

pub mod diagnostic;
mod foreign;
pub mod foreign_keys;
pub mod load;
pub mod manifest;
pub mod plugin_grants;
pub mod redaction;
pub mod references;
pub mod replaced;
pub mod schema;
pub mod serde_messages;
mod shape;
pub mod spanned;
pub mod spans;
pub mod structure;
