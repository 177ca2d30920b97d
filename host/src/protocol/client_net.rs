//! The networks by which clients are told apart where each has a share.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::system::holder_counts::Holder;

/// The network of a client: an IPv4 address, or the /64 network of an IPv6 address, in which a client can choose any
/// address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientNet(u64);

impl ClientNet {
    /// The prefix of IPv4 addresses; no IPv6 client has an address that begins like that.
    const IPV4: u64 = 0xffff << 48;

    /// Returns the network of a client; `None` if it has no address, as behind a unix socket.
    pub fn new(client: Option<IpAddr>) -> Option<Self> {
        Some(match client?.to_canonical() {
            IpAddr::V4(address) => ClientNet(ClientNet::IPV4 | u64::from(address.to_bits())),
            IpAddr::V6(address) => ClientNet((address.to_bits() >> 64) as u64),
        })
    }

    /// Returns a client as the holder of a share.
    pub fn holder(client: Option<IpAddr>) -> Holder {
        ClientNet::new(client).map_or(Holder::UNKNOWN, |net| Holder::numbered(net.0))
    }

    /// Returns the network of the client that is a holder; `None` for holders without an address.
    pub fn of_holder(holder: Holder) -> Option<Self> {
        (!holder.is_nameless()).then_some(ClientNet(holder.number()))
    }

    pub fn from_bits(bits: u64) -> Self {
        ClientNet(bits)
    }

    pub fn to_bits(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ClientNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u32::try_from(self.0 ^ ClientNet::IPV4) {
            Ok(bits) => write!(f, "{}", Ipv4Addr::from_bits(bits)),
            Err(_) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(self.0) << 64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(address: &str) -> ClientNet {
        ClientNet::new(Some(address.parse().unwrap())).unwrap()
    }

    #[test]
    fn a_client_of_ipv6_is_its_network() {
        assert_eq!(net("2001:db8:0:1::1"), net("2001:db8:0:1:ffff::2"));
        assert_ne!(net("2001:db8:0:1::1"), net("2001:db8:0:2::1"));
        assert_ne!(net("192.0.2.1"), net("192.0.2.2"));
        assert_eq!(net("192.0.2.1"), net("::ffff:192.0.2.1"));
        assert_ne!(net("::1"), net("0.0.0.1"));
        assert_eq!(ClientNet::new(None), None);
    }

    #[test]
    fn a_holder_has_the_network_of_its_client() {
        let shown = |address: &str| {
            let holder = ClientNet::holder(Some(address.parse().unwrap()));
            ClientNet::of_holder(holder).map(|net| net.to_string())
        };
        assert_eq!(shown("192.0.2.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(shown("2001:db8:0:1::1").as_deref(), Some("2001:db8:0:1::/64"));
        assert_eq!(ClientNet::of_holder(ClientNet::holder(None)), None);
        assert_eq!(ClientNet::of_holder(Holder::PLUGIN), None);
    }
}
