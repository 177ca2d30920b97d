//! The places of the bodies that pass through a plugin version.

use std::sync::Arc;

use crate::system::client_places::ClientPlaces;

/// The number of bodies for which each plugin has reserved places. Further bodies use free places.
pub const RESERVED_BODIES: u32 = 32;

/// The number of bodies up to which a client has few: it has them whatever its part is.
const FEW: u32 = 4;

/// Returns the places of a version's bodies; as many bodies wait as may pass.
pub(super) fn body_places(max: u32) -> Arc<ClientPlaces> {
    ClientPlaces::new(max, max, FEW)
}
