//! Where the plugins of the whole-program tests lie, built.
#![forbid(unsafe_code)]

/// `examples/api-key`.
pub const API_KEY: &str = env!("GUEST_EXAMPLE_API_KEY");
/// `examples/split`.
pub const SPLIT: &str = env!("GUEST_EXAMPLE_SPLIT");
/// `examples/retitle`.
pub const RETITLE: &str = env!("GUEST_EXAMPLE_RETITLE");
/// `examples/tenant`.
pub const TENANT: &str = env!("GUEST_EXAMPLE_TENANT");
/// `examples/shop-cache`.
pub const SHOP_CACHE: &str = env!("GUEST_EXAMPLE_SHOP_CACHE");
/// `tests/guests/greedy`.
pub const GREEDY: &str = env!("GUEST_TEST_GREEDY");
/// `tests/guests/misbehave`.
pub const MISBEHAVE: &str = env!("GUEST_TEST_MISBEHAVE");
/// `tests/guests/noisy`.
pub const NOISY: &str = env!("GUEST_TEST_NOISY");
/// `tests/guests/policy`.
pub const POLICY: &str = env!("GUEST_TEST_POLICY");
/// `tests/guests/hooks`.
pub const HOOKS: &str = env!("GUEST_TEST_HOOKS");
/// `tests/guests/late`.
pub const LATE: &str = env!("GUEST_TEST_LATE");
/// `tests/guests/loading`.
pub const LOADING: &str = env!("GUEST_TEST_LOADING");
