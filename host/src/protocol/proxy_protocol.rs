//! The PROXY protocol, versions 1 and 2: the first bytes of a connection, in which one proxy names the client to the
//! next (HAProxy's proxy-protocol.txt). TLVs are not read, and so CRC32C is not verified.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ppp::{v1, v2};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// The result of parsing the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The bytes are the beginning of a header.
    Incomplete,
    /// The bytes are a header. `None` if the connection's own addresses apply: it is the proxy's own, or its client has
    /// no address.
    Done(Option<ConnectionAddresses>),
}

/// The addresses of a client connection: the client's, and the address that it connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionAddresses {
    pub client: SocketAddr,
    pub destination: SocketAddr,
}

/// The error of bytes that are no header.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Parses a header that consists of all the bytes. More bytes than the header are malformed: the result would not say
/// where the header ends, and the rest would be lost.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let known = bytes.len().min(v2::PROTOCOL_PREFIX.len());
    if bytes[..known] == v2::PROTOCOL_PREFIX[..known] { binary(bytes) } else { line(bytes) }
}

/// Returns a PROXY header that names a client and the address that it connected to. With `None`, the header says that
/// there is no client to name: the connection is this proxy's own, or its client has no address.
pub fn encode(version: ProxyVersion, addresses: Option<ConnectionAddresses>) -> Vec<u8> {
    let Some(addresses) = addresses else { return unnamed(version) };
    let ConnectionAddresses { client, destination } = same_family(addresses);
    let header = match version {
        ProxyVersion::V1 => Ok(text(client, destination).into_bytes()),
        ProxyVersion::V2 => v2::Builder::with_addresses(
            v2::Version::Two | v2::Command::Proxy,
            v2::Protocol::Stream,
            (client, destination),
        )
        .build(),
    };
    // Only headers longer than 64 KiB can't be built.
    header.unwrap_or_default()
}

fn unnamed(version: ProxyVersion) -> Vec<u8> {
    match version {
        ProxyVersion::V1 => [UNKNOWN, b"\r\n"].concat(),
        // The family is unspecified, and no addresses follow.
        ProxyVersion::V2 => [v2::PROTOCOL_PREFIX, &[LOCAL, 0, 0, 0]].concat(),
    }
}

fn line(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let length = bytes.iter().take(MAX_V1_BYTES).position(|byte| *byte == b'\n').map(|at| at + 1);
    match length {
        None if bytes.len() < MAX_V1_BYTES && is_begun_line(bytes) => Ok(Parsed::Incomplete),
        Some(length) if length == bytes.len() && is_begun_line(&bytes[..length - 1]) => whole_line(bytes),
        _ => Err(Malformed),
    }
}

fn whole_line(line: &[u8]) -> Result<Parsed, Malformed> {
    // Text behind UNKNOWN is to be ignored; ppp rejects it if it is more than addresses.
    if line.starts_with(UNKNOWN) {
        return if line.ends_with(b"\r\n") { Ok(Parsed::Done(None)) } else { Err(Malformed) };
    }
    let header = v1::Header::try_from(line).map_err(|_| Malformed)?;
    Ok(Parsed::Done(of_v1(header.addresses)))
}

const UNKNOWN: &[u8] = b"PROXY UNKNOWN";
const TCP4: &[u8] = b"PROXY TCP4 ";
const TCP6: &[u8] = b"PROXY TCP6 ";

/// Whether a text can be the beginning of a line, before its LF. ppp can't decide that: it rejects a line that ends
/// just before the second port. It accepts bad addresses until that port has arrived.
fn is_begun_line(line: &[u8]) -> bool {
    let agrees = |start: &[u8]| line.iter().zip(start).all(|(byte, wanted)| byte == wanted);
    let rest = |start: &[u8]| line.get(start.len()..).unwrap_or_default();
    agrees(UNKNOWN) && matches!(rest(UNKNOWN), [] | [b'\r'] | [b' ', ..])
        || agrees(TCP4) && are_begun_ends::<Ipv4Addr>(rest(TCP4))
        || agrees(TCP6) && are_begun_ends::<Ipv6Addr>(rest(TCP6))
}

/// Whether a text can be the beginning of two addresses and two ports.
fn are_begun_ends<Ip: FromStr>(ends: &[u8]) -> bool {
    let mut words = ends.split_inclusive(|byte| matches!(byte, b' ' | b'\r')).enumerate();
    words.all(|(at, word)| match word.strip_suffix(if at == 3 { b"\r" } else { b" " }) {
        Some(word) if at < 2 => str::from_utf8(word).is_ok_and(|word| word.parse::<Ip>().is_ok()),
        Some(word) => at < 4 && is_port(word),
        None => at < 4 && word.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':')),
    })
}

/// Whether a word is a port number; ppp would accept a sign.
fn is_port(word: &[u8]) -> bool {
    let is_number = word.iter().all(u8::is_ascii_digit) && (word == b"0" || !word.starts_with(b"0"));
    is_number && str::from_utf8(word).is_ok_and(|word| word.parse::<u16>().is_ok())
}

fn binary(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let Some(start) = bytes.get(..START_V2) else { return Ok(Parsed::Incomplete) };
    let length = START_V2 + usize::from(u16::from_be_bytes([start[14], start[15]]));
    if length > MAX_V2_BYTES || length < bytes.len() {
        return Err(Malformed);
    }
    if start[12] == LOCAL {
        // The family is to be ignored, whatever it is; ppp requires a known one, with addresses.
        return Ok(if bytes.len() == length { Parsed::Done(None) } else { Parsed::Incomplete });
    }
    match v2::Header::try_from(bytes) {
        Ok(header) if header.protocol == v2::Protocol::Stream => Ok(Parsed::Done(of_v2(header.addresses))),
        // The proxy serves no datagrams: as with HAProxy and nginx, the connection's own addresses apply.
        Ok(_) => Ok(Parsed::Done(None)),
        Err(v2::ParseError::Partial(..)) => Ok(Parsed::Incomplete),
        Err(_) => Err(Malformed),
    }
}

/// The maximum length of a version 1 line, in bytes, as the protocol defines it.
const MAX_V1_BYTES: usize = 107;
/// The maximum length of a version 2 header, in bytes: addresses and all that proxies are known to add (certificates'
/// names, identifiers).
const MAX_V2_BYTES: usize = START_V2 + 2048;
/// The length of the part before the addresses in version 2, in bytes: signature, command, family, length.
const START_V2: usize = 16;
const LOCAL: u8 = v2::Version::Two as u8 | v2::Command::Local as u8;

fn text(client: SocketAddr, destination: SocketAddr) -> String {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), destination.port())
}

/// Returns both addresses in one family: if one is IPv4 and the other IPv6, both are written as IPv6.
fn same_family(addresses: ConnectionAddresses) -> ConnectionAddresses {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (client, destination) = (canonical(addresses.client), canonical(addresses.destination));
    if client.is_ipv4() == destination.is_ipv4() {
        return ConnectionAddresses { client, destination };
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    ConnectionAddresses { client: mapped(client), destination: mapped(destination) }
}

fn of_v1(addresses: v1::Addresses) -> Option<ConnectionAddresses> {
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
    Some(ConnectionAddresses { client, destination })
}

fn of_v2(addresses: v2::Addresses) -> Option<ConnectionAddresses> {
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
    Some(ConnectionAddresses { client, destination })
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no header of the PROXY protocol")
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(client: &str, destination: &str) -> ConnectionAddresses {
        ConnectionAddresses { client: client.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn encoded_headers_are_parsed_at_any_split() {
        let cases = [
            (ends("192.0.2.1:1000", "192.0.2.2:80"), ends("192.0.2.1:1000", "192.0.2.2:80")),
            (ends("[2001:db8::1]:1", "[2001:db8::2]:2"), ends("[2001:db8::1]:1", "[2001:db8::2]:2")),
            (ends("[::ffff:192.0.2.1]:1", "192.0.2.2:2"), ends("192.0.2.1:1", "192.0.2.2:2")),
            (ends("192.0.2.1:1", "[2001:db8::2]:2"), ends("[::ffff:192.0.2.1]:1", "[2001:db8::2]:2")),
        ];
        for (addresses, wanted) in cases {
            for version in [ProxyVersion::V1, ProxyVersion::V2] {
                let header = encode(version, Some(addresses));
                for length in 0..header.len() {
                    assert_eq!(parse(&header[..length]), Ok(Parsed::Incomplete), "{version:?} {length}");
                }
                assert_eq!(parse(&header), Ok(Parsed::Done(Some(wanted))), "{version:?}");
            }
        }
    }

    #[test]
    fn connections_of_the_proxy_itself_keep_their_addresses() {
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
        let of_odd_family = b"\r\n\r\n\0\r\nQUIT\n\x20\x45\x00\x01x";
        let datagrams = b"\r\n\r\n\0\r\nQUIT\n\x21\x12\x00\x0c\x01\x01\x01\x01\x02\x02\x02\x02\x00\x01\x00\x02";
        let unspecified = b"\r\n\r\n\0\r\nQUIT\n\x21\x00\x00\x03abc";
        let unix = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x31\x00\xd8"[..], &[0; 216]].concat();
        let lines: [&[u8]; 3] =
            [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ::1 ::1 1 1\r\n", b"PROXY UNKNOWN a  b c d e f \xff\r\n"];
        let own = [encode(ProxyVersion::V1, None), encode(ProxyVersion::V2, None)];
        assert_eq!(own, [lines[0], &local[..]]);
        for header in lines.into_iter().chain([&local[..], of_odd_family, datagrams, unspecified, &unix]) {
            for length in 0..header.len() {
                assert_eq!(parse(&header[..length]), Ok(Parsed::Incomplete), "{header:?} {length}");
            }
            assert_eq!(parse(header), Ok(Parsed::Done(None)), "{header:?}");
        }
    }

    #[test]
    fn impossible_headers_are_rejected_at_once() {
        let long = [&b"PROXY UNKNOWN "[..], &[b'a'; 100]].concat();
        let cases: [&[u8]; 24] = [
            b"GET / HTTP/1.1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 99999 80\r\n",
            b"PROXY TCP4 ::1 ::1 1 1\r\n",
            b"PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x00",
            &long,
            b"PROXZ",
            b"PROXY  ",
            b"PROXY GET",
            b"PROXY TCP5",
            b"PROXY UNKNOWNS",
            b"PROXY UNKNOWN\rx",
            b"PROXY UNKNOWN a\n",
            b"PROXY TCP4 g",
            b"PROXY TCP4 192.0.2 ",
            b"PROXY TCP4 192.0.2.1  ",
            b"PROXY TCP6 192.0.2.1 ",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +80",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 080 ",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 80 443\rx",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 80 443 \r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 80 443\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x08\x01",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0b",
        ];
        for bytes in cases {
            assert_eq!(parse(bytes), Err(Malformed), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn bytes_after_a_header_are_never_swallowed() {
        let addresses = ends("192.0.2.1:1000", "192.0.2.2:80");
        let encoded = [ProxyVersion::V1, ProxyVersion::V2].map(|version| encode(version, Some(addresses)));
        for header in encoded.into_iter().chain([b"PROXY UNKNOWN\r\n".to_vec()]) {
            for after in [&b"G"[..], b"\n", b"\r\n", b"GET / HTTP/1.1\r\n"] {
                assert_eq!(parse(&[&header, after].concat()), Err(Malformed), "{header:?} {after:?}");
            }
        }
    }

    #[test]
    fn the_longest_headers_are_parsed_and_no_longer_ones() {
        let highest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let line = format!("PROXY UNKNOWN {highest} {highest} 65535 65535\r\n");
        assert_eq!((line.len(), parse(line.as_bytes())), (MAX_V1_BYTES, Ok(Parsed::Done(None))));
        assert_eq!(parse(line.replace("\r\n", " \r\n").as_bytes()), Err(Malformed));
        let mut header = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x08\x00"[..], &[1; 2048]].concat();
        assert!(matches!(parse(&header), Ok(Parsed::Done(Some(_)))));
        assert_eq!(parse(&header[..MAX_V2_BYTES - 1]), Ok(Parsed::Incomplete));
        header[15] = 1;
        assert_eq!(parse(&header[..START_V2]), Err(Malformed));
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
            let bytes = [starts[round % 4], &tail].concat();
            let is_refused = parse(&bytes).is_err();
            refused += usize::from(is_refused);
            // A rejected beginning stays rejected, whatever bytes follow.
            let longer = [&bytes[..], &[next() as u8]].concat();
            assert!(!is_refused || parse(&longer).is_err(), "{longer:?}");
        }
        assert!(refused > 20_000, "{refused}");
    }
}
