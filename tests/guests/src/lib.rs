//! The paths of the plugins that the whole-program tests use; the build script builds them.
#![forbid(unsafe_code)]

/// The path of the plugin `examples/api-key`.
pub const API_KEY: &str = env!("GUEST_EXAMPLE_API_KEY");
/// The path of the plugin `examples/quota`.
pub const QUOTA: &str = env!("GUEST_EXAMPLE_QUOTA");
/// The path of the plugin `examples/request-signing`.
pub const REQUEST_SIGNING: &str = env!("GUEST_EXAMPLE_REQUEST_SIGNING");
/// The path of the plugin `examples/split`.
pub const SPLIT: &str = env!("GUEST_EXAMPLE_SPLIT");
/// The path of the plugin `examples/retitle`.
pub const RETITLE: &str = env!("GUEST_EXAMPLE_RETITLE");
/// The path of the plugin `examples/html-links`.
pub const HTML_LINKS: &str = env!("GUEST_EXAMPLE_HTML_LINKS");
/// The path of the plugin `examples/tenant`.
pub const TENANT: &str = env!("GUEST_EXAMPLE_TENANT");
/// The path of the plugin `examples/shop-cache`.
pub const SHOP_CACHE: &str = env!("GUEST_EXAMPLE_SHOP_CACHE");
/// The path of the plugin `examples/waf`.
pub const WAF: &str = env!("GUEST_EXAMPLE_WAF");
/// The path of the plugin `tests/guests/bodies`.
pub const BODIES: &str = env!("GUEST_TEST_BODIES");
/// The path of the plugin `examples/forward-auth`.
pub const FORWARD_AUTH: &str = env!("GUEST_EXAMPLE_FORWARD_AUTH");
/// The path of the plugin `tests/guests/caller`.
pub const CALLER: &str = env!("GUEST_TEST_CALLER");
/// The path of the plugin `tests/guests/counted`.
pub const COUNTED: &str = env!("GUEST_TEST_COUNTED");
/// The path of the plugin `tests/guests/greedy`.
pub const GREEDY: &str = env!("GUEST_TEST_GREEDY");
/// The path of the plugin `tests/guests/misbehave`.
pub const MISBEHAVE: &str = env!("GUEST_TEST_MISBEHAVE");
/// The path of the plugin `tests/guests/noisy`.
pub const NOISY: &str = env!("GUEST_TEST_NOISY");
/// The path of the plugin `tests/guests/overrides`.
pub const OVERRIDES: &str = env!("GUEST_TEST_OVERRIDES");
/// The path of the plugin `tests/guests/policy`.
pub const POLICY: &str = env!("GUEST_TEST_POLICY");
/// The path of the plugin `tests/guests/shared`.
pub const SHARED: &str = env!("GUEST_TEST_SHARED");
/// The path of the plugin `tests/guests/hooks`.
pub const HOOKS: &str = env!("GUEST_TEST_HOOKS");
/// The path of the plugin `tests/guests/key-value`.
pub const KEY_VALUE: &str = env!("GUEST_TEST_KEY_VALUE");
/// The path of the plugin `tests/guests/late`.
pub const LATE: &str = env!("GUEST_TEST_LATE");
/// The path of the plugin `tests/guests/loading`.
pub const LOADING: &str = env!("GUEST_TEST_LOADING");
/// The path of the plugin `tests/guests/waiting`.
pub const WAITING: &str = env!("GUEST_TEST_WAITING");
/// The path of the plugin `tests/guests/values`.
pub const VALUES: &str = env!("GUEST_TEST_VALUES");
