//! The signature of a request: HMAC-SHA-256 (RFC 2104) over the text that [`Message`] describes.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The values of a request that are signed.
///
/// The signed text is `v1`, the time, the method, the path with its query, and the value of each field, each with a line
/// feed behind it, and then the body. No value has a line feed, so that the text stands for one request only.
pub struct Message<'a> {
    pub method: &'a [u8],
    pub path: &'a [u8],
    pub query: Option<&'a [u8]>,
    /// The values of the fields, empty for absent ones. Several lines of a field are joined by `, `.
    pub fields: Vec<&'a [u8]>,
    pub body: &'a [u8],
}

/// A signature as its field has it: `t=SECONDS,v1=HEX`.
#[derive(Debug, PartialEq)]
pub struct Signature {
    /// The time at which the request was signed, in seconds since 1970.
    pub time: u64,
    mac: [u8; 32],
}

/// A key, prepared for signing.
pub struct Key(Hmac<Sha256>);

impl Key {
    /// Creates a key from a secret; `None` if the length of the secret is wrong for the algorithm.
    pub fn new(secret: &[u8]) -> Option<Self> {
        Hmac::new_from_slice(secret).ok().map(Key)
    }

    /// Signs a request at a time.
    pub fn sign(&self, message: &Message, time: u64) -> Signature {
        Signature { time, mac: self.mac(message, time).finalize().into_bytes().into() }
    }

    /// Whether a signature is that of a request. The comparison takes the same time whatever differs.
    pub fn is_valid(&self, signature: &Signature, message: &Message) -> bool {
        self.mac(message, signature.time).verify_slice(&signature.mac).is_ok()
    }

    fn mac(&self, message: &Message, time: u64) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(format!("v1\n{time}\n").as_bytes());
        let query = message.query.map_or_else(Vec::new, |query| [b"?", query].concat());
        for part in [message.method, b"\n", message.path, &query, b"\n"] {
            mac.update(part);
        }
        for field in &message.fields {
            mac.update(field);
            mac.update(b"\n");
        }
        mac.update(message.body);
        mac
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t={},v1=", self.time)?;
        self.mac.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Signature {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (time, digits) = text.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).ok_or(())?;
        let is_plain =
            time.bytes().all(|byte| byte.is_ascii_digit()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_plain || digits.len() != 64 {
            return Err(());
        }
        let mut mac = [0; 32];
        for (byte, at) in mac.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| ())?;
        }
        Ok(Signature { time: time.parse().map_err(|_| ())?, mac })
    }
}
