//! The PROXY protocol, versions 1 and 2: the first bytes of a connection, in which one proxy tells the next for whom it
//! speaks (HAProxy's proxy-protocol.txt).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ppp::{HeaderResult, PartialResult, v1, v2};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    V1,
    V2,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header.
    Incomplete,
    /// A header. None where the connection's own addresses stand: it is the proxy's own, or of a client without any.
    Done(Option<Addresses>),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Addresses {
    pub client: SocketAddr,
    pub destination: SocketAddr,
}

/// These bytes are no header.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

const START_V1: &[u8] = b"PROXY ";
/// The longest header of version 1, as the protocol has it.
const LONGEST_V1: usize = 107;
/// Addresses and everything that proxies are known to add: certificates' names, identifiers.
const LONGEST_V2: usize = 16 + 2048;

/// Parses a header that is all there is of the bytes.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    // ppp takes a line that lacks but its LF for a bad one.
    let is_begun_line = bytes.len() < LONGEST_V1 && !bytes.ends_with(b"\n");
    let known = bytes.len().min(START_V1.len());
    if is_begun_line && bytes[..known] == START_V1[..known] {
        return Ok(Parsed::Incomplete);
    }
    let header = HeaderResult::parse(bytes);
    match header {
        HeaderResult::V2(_) if header.is_incomplete() && bytes.len() < LONGEST_V2 => Ok(Parsed::Incomplete),
        HeaderResult::V1(Ok(header)) => Ok(Parsed::Done(of_v1(header.addresses))),
        HeaderResult::V2(Ok(header)) if header.command == v2::Command::Local => Ok(Parsed::Done(None)),
        HeaderResult::V2(Ok(header)) => Ok(Parsed::Done(of_v2(header.addresses))),
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Err(Malformed),
    }
}

/// A header.
pub fn encode(version: Version, client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (client, destination) = same_family(client, destination);
    let header = match version {
        Version::V1 => Ok(text(client, destination).into_bytes()),
        Version::V2 => v2::Builder::with_addresses(
            v2::Version::Two | v2::Command::Proxy,
            v2::Protocol::Stream,
            (client, destination),
        )
        .build(),
    };
    // Only what is longer than 64 KiB can't be built.
    header.unwrap_or_default()
}

fn text(client: SocketAddr, destination: SocketAddr) -> String {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), destination.port())
}

/// Where one end speaks IPv4 and the other IPv6, both are written as IPv6.
fn same_family(client: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (client, destination) = (canonical(client), canonical(destination));
    if client.is_ipv4() == destination.is_ipv4() {
        return (client, destination);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(client), mapped(destination))
}

fn of_v1(addresses: v1::Addresses) -> Option<Addresses> {
    let (client, destination) = match addresses {
        v1::Addresses::Unknown => return None,
        v1::Addresses::Tcp4(ends) => {
            let source = SocketAddr::from((ends.source_address, ends.source_port));
            (source, SocketAddr::from((ends.destination_address, ends.destination_port)))
        }
        v1::Addresses::Tcp6(ends) => {
            let source = SocketAddr::from((ends.source_address, ends.source_port));
            (source, SocketAddr::from((ends.destination_address, ends.destination_port)))
        }
    };
    Some(Addresses { client, destination })
}

fn of_v2(addresses: v2::Addresses) -> Option<Addresses> {
    let (client, destination) = match addresses {
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => return None,
        v2::Addresses::IPv4(ends) => {
            let source = SocketAddr::from((ends.source_address, ends.source_port));
            (source, SocketAddr::from((ends.destination_address, ends.destination_port)))
        }
        v2::Addresses::IPv6(ends) => {
            let source = SocketAddr::from((ends.source_address, ends.source_port));
            (source, SocketAddr::from((ends.destination_address, ends.destination_port)))
        }
    };
    Some(Addresses { client, destination })
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no header of the PROXY protocol")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(client: &str, destination: &str) -> (SocketAddr, SocketAddr) {
        (client.parse().unwrap(), destination.parse().unwrap())
    }

    #[test]
    fn what_is_encoded_is_parsed_however_far_it_has_come() {
        let cases = [
            (ends("192.0.2.1:1000", "192.0.2.2:80"), ends("192.0.2.1:1000", "192.0.2.2:80")),
            (ends("[2001:db8::1]:1", "[2001:db8::2]:2"), ends("[2001:db8::1]:1", "[2001:db8::2]:2")),
            (ends("[::ffff:192.0.2.1]:1", "192.0.2.2:2"), ends("192.0.2.1:1", "192.0.2.2:2")),
            (ends("192.0.2.1:1", "[2001:db8::2]:2"), ends("[::ffff:192.0.2.1]:1", "[2001:db8::2]:2")),
        ];
        for ((client, destination), wanted) in cases {
            for version in [Version::V1, Version::V2] {
                let header = encode(version, client, destination);
                for length in 0..header.len() {
                    assert_eq!(parse(&header[..length]), Ok(Parsed::Incomplete), "{version:?} {length}");
                }
                let (client, destination) = wanted;
                assert_eq!(parse(&header), Ok(Parsed::Done(Some(Addresses { client, destination }))), "{version:?}");
            }
        }
    }

    #[test]
    fn connections_of_the_proxy_itself_keep_their_addresses() {
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
        for header in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ::1 ::1 1 1\r\n", local] {
            assert_eq!(parse(header), Ok(Parsed::Done(None)), "{header:?}");
        }
    }

    #[test]
    fn what_cannot_become_a_header_is_refused_at_once() {
        let long = [&b"PROXY UNKNOWN "[..], &[b'a'; 100]].concat();
        let cases: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 99999 80\r\n",
            b"PROXY TCP4 ::1 ::1 1 1\r\n",
            b"PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x00",
            &long,
        ];
        for bytes in cases {
            assert_eq!(parse(bytes), Err(Malformed), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let starts: [&[u8]; 4] = [b"", b"PROXY ", b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n"];
        let mut refused = 0;
        for round in 0..100_000 {
            let tail: Vec<u8> = (0..next() % 64).map(|_| next() as u8).collect();
            refused += usize::from(parse(&[starts[round % 4], &tail].concat()).is_err());
        }
        assert!(refused > 20_000, "{refused}");
    }
}
