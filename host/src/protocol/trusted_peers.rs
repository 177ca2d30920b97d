//! Sets of peers that a listener trusts: by their networks, or all that connect to a unix socket.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// A set of peers.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub struct TrustedPeers {
    networks: Vec<IpNet>,
    has_unix: bool,
}

/// The word for peers at a unix socket, in manifests and in the fields that proxies write about their peers.
pub const UNIX: &str = "unix:";

impl TrustedPeers {
    /// Adds a network, an address, or `unix:`; `false` if the text is none of them.
    pub fn add(&mut self, text: &str) -> bool {
        if text == UNIX {
            self.has_unix = true;
            return true;
        }
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        self.networks.extend(network.iter().map(|network| canonical(*network)));
        network.is_ok()
    }

    /// Whether a peer is in the set; `None` is a peer at a unix socket.
    pub fn has(&self, peer: Option<IpAddr>) -> bool {
        match peer.map(|address| address.to_canonical()) {
            Some(address) => self.networks.iter().any(|network| network.contains(&address)),
            None => self.has_unix,
        }
    }
}

/// Returns a network of IPv4 addresses that is written as IPv6 in IPv4 form, in which addresses are compared.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(net) = network else { return network };
    let mapped = net.addr().to_ipv4_mapped().filter(|_| net.prefix_len() >= 96);
    let net = mapped.and_then(|address: Ipv4Addr| Ipv4Net::new(address, net.prefix_len() - 96).ok());
    net.map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_networks_addresses_and_unix_sockets() {
        let mut peers = TrustedPeers::default();
        for text in ["10.0.0.0/8", "2001:db8::1", "::ffff:192.0.2.0/120"] {
            assert!(peers.add(text), "{text}");
        }
        for text in ["10/8", "unix", "example.org", "", "10.0.0.0/33"] {
            assert!(!peers.add(text), "{text}");
        }
        let has = |peers: &TrustedPeers, address: &str| peers.has(Some(address.parse().unwrap()));
        assert!(has(&peers, "10.255.0.1") && has(&peers, "::ffff:10.0.0.1") && has(&peers, "2001:db8::1"));
        assert!(has(&peers, "192.0.2.255") && !has(&peers, "192.0.3.0") && !has(&peers, "2001:db8::2"));
        assert!(!peers.has(None) && peers.add("unix:") && peers.has(None));
    }
}
