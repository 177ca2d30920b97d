pub mod edit;
pub mod error;
pub mod head;
pub mod plugin;
