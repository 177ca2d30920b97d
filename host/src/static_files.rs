//! Files below a folder: finds the file that a request's path names, and reads it for the client. The heads of requests
//! and responses are handled in `exchange/serve_files.rs`.

pub mod blocking_turns;
pub mod file_body;
pub mod find;
mod listing;
mod listing_turns;
mod root;
pub mod shared_listings;
pub mod site_path;
pub mod worker_site;
