//! The resource `bucket` of `wasi:keyvalue`, as an instance holds it.

/// An open bucket: a part of the plugin's keys.
pub struct KeyValueBucket {
    /// The beginning of its keys in the plugin's state.
    pub prefix: Vec<u8>,
}
