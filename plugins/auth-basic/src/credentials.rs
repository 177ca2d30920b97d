//! The credentials of a request (RFC 7617 §2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A name and a password as a client sent them.
pub struct Credentials {
    pub name: String,
    pub password: Vec<u8>,
}

/// The longest value of `Authorization` that is read. The host verifies no password of more than 4 KiB.
const LONGEST: usize = 8 << 10;

impl Credentials {
    /// Parses the value of `Authorization`; returns `None` if it has no credentials of the scheme `Basic`. Several lines
    /// of the field arrive as one, with a comma between them, which is no credentials.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (scheme, rest) = value.split_at_checked(5).filter(|_| value.len() <= LONGEST)?;
        let is_basic = scheme.eq_ignore_ascii_case(b"basic") && rest.first() == Some(&b' ');
        let decoded = STANDARD.decode(rest.trim_ascii()).ok().filter(|_| is_basic)?;
        let colon = decoded.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&decoded[..colon]).ok()?.to_string();
        Some(Credentials { name, password: decoded[colon + 1..].to_vec() })
    }
}
