//! A set of addresses: sorted ranges that don't overlap, in which an address is found by a binary search.

use std::net::IpAddr;

/// A set of addresses and networks. IPv4-mapped addresses (`::ffff:192.0.2.1`) are the IPv4 addresses in them.
#[derive(Debug, Default, PartialEq)]
pub struct Networks {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

/// A network or a range of the set, as its first and its last address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Network {
    V4(u32, u32),
    V6(u128, u128),
}

impl Networks {
    /// Adds a network; the set can be searched after [`Networks::sort`].
    pub fn add(&mut self, network: Network) {
        match network {
            Network::V4(first, last) => self.v4.push((first, last)),
            Network::V6(first, last) => self.v6.push((first, last)),
        }
    }

    /// Sorts the networks, and merges those that overlap.
    pub fn sort(&mut self) {
        merge(&mut self.v4);
        merge(&mut self.v6);
    }

    /// Returns whether an address is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => is_in(&self.v4, address.to_bits()),
            IpAddr::V6(address) => is_in(&self.v6, address.to_bits()),
        }
    }

    /// Returns whether the set has no address.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    /// Parses an address, or a network in CIDR notation. The error says what is expected.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid address: `{text}`; expected one such as `192.0.2.1` or `2001:db8::/32`");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        // A sign is no digit of a prefix length, but Rust would parse it.
        let is_number = |prefix: &&str| prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            Some(prefix) => {
                Some(prefix).filter(is_number).and_then(|prefix| prefix.parse().ok()).ok_or_else(invalid)?
            }
            None => longest,
        };
        if prefix > longest {
            return Err(format!("invalid prefix length: `{text}`; expected at most {longest}"));
        }
        Ok(Network::new(address, prefix))
    }
}

impl Network {
    /// Parses a range by its first and its last address. The error says what is expected.
    pub fn range(first: &str, last: &str) -> Result<Self, String> {
        let invalid = || format!("invalid range: `{first}-{last}`; expected one such as `192.0.2.0-192.0.2.255`");
        let address = |text: &str| text.parse::<IpAddr>().map(|address| address.to_canonical()).map_err(|_| invalid());
        match (address(first)?, address(last)?) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => Ok(Network::V4(first.to_bits(), last.to_bits())),
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => Ok(Network::V6(first.to_bits(), last.to_bits())),
            _ => Err(invalid()),
        }
    }

    /// Returns the network with an address in it; `prefix` is no longer than the address.
    fn new(address: IpAddr, prefix: u32) -> Self {
        match address {
            IpAddr::V4(address) => {
                let rest = u32::MAX.checked_shr(prefix).unwrap_or(0);
                Network::V4(address.to_bits() & !rest, address.to_bits() | rest)
            }
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) if prefix >= MAPPED => Network::new(mapped.into(), prefix - MAPPED),
                _ => {
                    let rest = u128::MAX.checked_shr(prefix).unwrap_or(0);
                    Network::V6(address.to_bits() & !rest, address.to_bits() | rest)
                }
            },
        }
    }
}

/// The length of the prefix of all IPv4-mapped addresses (RFC 4291 §2.5.5.2).
const MAPPED: u32 = 96;

fn merge<A: Copy + Ord>(ranges: &mut Vec<(A, A)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let overlaps = next.0 <= last.1;
        if overlaps {
            last.1 = last.1.max(next.1);
        }
        overlaps
    });
    ranges.shrink_to_fit();
}

fn is_in<A: Copy + Ord>(ranges: &[(A, A)], address: A) -> bool {
    let after = ranges.partition_point(|range| range.0 <= address);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|range| address <= range.1)
}
