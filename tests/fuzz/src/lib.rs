//! The pure modules of the host, for the targets in `fuzz_targets`. Run one with
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz framing` (after `cargo install cargo-fuzz`).
//!
//! The folders beside this file are links to those of the host.

pub mod config {
    pub mod diagnostic;
    pub mod foreign;
    pub mod foreign_keys;
    pub mod load;
    pub mod manifest;
    pub mod plugin_grants;
    pub mod redaction;
    pub mod references;
    pub mod replaced;
    pub mod schema;
    pub mod serde_messages;
    pub mod shape;
    pub mod spanned;
    pub mod spans;
    pub mod structure;
}

pub mod context;

pub mod generation {
    pub mod ids;
    pub mod query_conditions;
    pub mod router;
}

pub mod net {
    pub mod waiting_bytes;
}

pub mod protocol {
    pub mod authority;
    pub mod client_address;
    pub mod client_net;
    pub mod content_length;
    pub mod field_alias;
    pub mod framing;
    pub mod hop_by_hop;
    pub mod path;
    pub mod proxy_protocol;
    pub mod query;
    pub mod trusted_peers;
}

pub mod system {
    pub mod files;
    pub mod holder_counts;
    pub mod printable;
    pub mod random;
}

pub mod upstream {
    pub mod response_head_limits;

    pub mod http1 {
        pub mod body_length;
        pub mod head_search;
        pub mod response_body;
        pub mod response_head;
    }
}
