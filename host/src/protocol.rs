//! The rules of the wire formats. Every module here is pure: bytes or fields in, values out.

pub mod authority;
pub mod client_address;
pub mod client_net;
pub mod coded_content;
pub mod conditions;
pub mod content_coding;
pub mod content_decoder;
pub mod content_length;
pub mod conversation;
pub mod field_alias;
pub mod field_section;
pub mod framing;
pub mod hop_by_hop;
pub mod http2_frames;
pub mod http2_request;
pub mod http_date;
pub mod media_type;
pub mod path;
pub mod proxy_protocol;
pub mod query;
pub mod ranges;
pub mod request_target;
pub mod transformed_content;
pub mod trusted_peers;
pub mod websocket;
pub mod weighted;
