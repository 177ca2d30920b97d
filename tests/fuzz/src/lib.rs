//! The pure modules of the host, for the targets in `fuzz_targets`. Run one with
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz framing` (after `cargo install cargo-fuzz`).

#[path = "../../../host/src/authority.rs"]
pub mod authority;
#[path = "../../../host/src/bounds.rs"]
pub mod bounds;
#[path = "../../../host/src/client_address.rs"]
pub mod client_address;
pub mod config;
#[path = "../../../host/src/edit.rs"]
pub mod edit;
#[path = "../../../host/src/edit_plan.rs"]
pub mod edit_plan;
#[path = "../../../host/src/edit_room.rs"]
pub mod edit_room;
#[path = "../../../host/src/field_alias.rs"]
pub mod field_alias;
#[path = "../../../host/src/files.rs"]
mod files;
#[path = "../../../host/src/framing.rs"]
pub mod framing;
#[path = "../../../host/src/head.rs"]
pub mod head;
#[path = "../../../host/src/path.rs"]
pub mod path;
#[path = "../../../host/src/printable.rs"]
mod printable;
#[path = "../../../host/src/proxy_protocol.rs"]
pub mod proxy_protocol;
#[path = "../../../host/src/router.rs"]
pub mod router;
#[path = "../../../host/src/trust.rs"]
pub mod trust;
