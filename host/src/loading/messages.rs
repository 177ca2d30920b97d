//! Messages between the proxy and a child that loads a component. Each has its length in front of it, in four bytes.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::system::printable::cut;

/// The first message to a child; `length` bytes of the component, or of its artifact, follow it.
#[derive(Serialize, Deserialize)]
pub(super) struct Setup {
    /// The ID of the process that waits for the child.
    pub parent: u32,
    /// The memory that the child may write to, in bytes.
    pub memory: u64,
    pub cpu_seconds: u64,
    /// The key and the name of the seal.
    pub key: [u8; 32],
    pub name: String,
    pub form: FileForm,
    pub length: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum FileForm {
    Component,
    Artifact,
}

/// An order to a child that has loaded its component.
#[derive(Serialize, Deserialize)]
pub(super) enum LoadOrder {
    /// Checks a configuration with an instance of these limits, which sees these variables of the environment.
    Check { config: String, memory: u64, cpu_us: u64, env: Vec<(String, String)> },
    /// Returns the compiled code.
    Seal,
}

/// The description that a component returns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub name: String,
    pub version: String,
    pub summary: String,
    /// The JSON Schema of the plugin's configuration.
    pub schema: Option<String>,
}

/// The result of the check of a configuration.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigVerdict {
    Accepted,
    /// The configuration has errors at these positions, and `more` further ones.
    Refused {
        complaints: Vec<ConfigComplaint>,
        more: u64,
    },
    /// The plugin can't be used with the configuration, for a reason that has no position in it.
    Failed(String),
}

/// An error in a configuration.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigComplaint {
    /// A JSON pointer (RFC 6901).
    pub pointer: String,
    /// The known key of that table that is probably meant.
    pub key: Option<String>,
    pub message: String,
    /// Whether the message comes from the schema, instead of from the plugin.
    pub by_schema: bool,
}

/// The most bytes of a message: more than a configuration has, unless references stand for long lists.
pub(super) const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Encodes a message.
pub(super) fn message<T: Serialize>(content: &T) -> io::Result<Vec<u8>> {
    let mut message = postcard::to_extend(content, vec![0; 4]).map_err(io::Error::other)?;
    let length = message.len() - 4;
    if length > MAX_MESSAGE_BYTES {
        // The host writes nothing longer than a configuration with its values.
        let (found, most) = (length.div_ceil(1 << 20), MAX_MESSAGE_BYTES >> 20);
        return Err(io::Error::other(format!(
            "its configuration is too long: {found} MiB with the values of references; {most} MiB are the most, so shorten it"
        )));
    }
    message[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(message)
}

/// Decodes a message.
pub(super) fn content<T: DeserializeOwned>(message: &[u8]) -> io::Result<T> {
    postcard::from_bytes(message).map_err(io::Error::other)
}

/// Reads a message; `None` at the end of the input.
pub(super) fn read<T: DeserializeOwned>(input: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    content(&bytes).map(Some)
}

/// Writes a message.
pub(super) fn write<T: Serialize>(output: &mut impl Write, content: &T) -> io::Result<()> {
    output.write_all(&message(content)?)?;
    output.flush()
}

/// The bytes of a plugin's own words that are passed on.
const MAX_TEXT_BYTES: usize = 4 << 10;

/// A plugin's own words, or an error that holds some.
pub(super) fn text(words: &str) -> String {
    cut(words, MAX_TEXT_BYTES).into_owned()
}
