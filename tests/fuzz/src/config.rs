//! As in the host; a module that is taken by its path would look for its own beside itself.

#[path = "../../../host/src/config/load.rs"]
pub mod load;
#[path = "../../../host/src/config/locate.rs"]
pub mod locate;
#[path = "../../../host/src/config/manifest.rs"]
pub mod manifest;
#[path = "../../../host/src/config/problem.rs"]
pub mod problem;
#[path = "../../../host/src/config/wording.rs"]
mod wording;
