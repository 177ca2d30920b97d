//! The parts of its client that a connection counts for while it serves an exchange.

use super::connection_limit::ConnectionUse;
use crate::system::descriptor_shares::DescriptorUse;

/// The parts of a client in what its connection to an endpoint takes, until dropped.
#[derive(Debug)]
pub struct ClientHold {
    pub descriptor: DescriptorUse,
    pub connection_use: ConnectionUse,
}
