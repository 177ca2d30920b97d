//! The stock plugins, as components: built from the folders beside this one, embedded into the proxy, and loaded
//! through the same door as a user's.
#![forbid(unsafe_code)]

/// Name, as in a manifest's `use`, and component.
pub const STOCK: &[(&str, &[u8])] = &[
    ("headers", include_bytes!(env!("PLUGIN_HEADERS"))),
    ("balance", include_bytes!(env!("PLUGIN_BALANCE"))),
    ("cache", include_bytes!(env!("PLUGIN_CACHE"))),
    ("rewrite", include_bytes!(env!("PLUGIN_REWRITE"))),
    ("ip-filter", include_bytes!(env!("PLUGIN_IP_FILTER"))),
    ("auth-basic", include_bytes!(env!("PLUGIN_AUTH_BASIC"))),
    ("auth-key", include_bytes!(env!("PLUGIN_AUTH_KEY"))),
    ("request-id", include_bytes!(env!("PLUGIN_REQUEST_ID"))),
    ("body-limit", include_bytes!(env!("PLUGIN_BODY_LIMIT"))),
    ("cors", include_bytes!(env!("PLUGIN_CORS"))),
    ("log-fields", include_bytes!(env!("PLUGIN_LOG_FIELDS"))),
    ("security-headers", include_bytes!(env!("PLUGIN_SECURITY_HEADERS"))),
];
