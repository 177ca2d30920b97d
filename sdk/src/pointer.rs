//! JSON pointers (RFC 6901), by which [`ConfigError`](crate::ConfigError) names the wrong value of a configuration.

/// Returns the pointer to a member of the object at `parent`. A name may have any characters: `~` and `/` are escaped.
///
/// ```
/// use plugway_sdk::pointer::member;
///
/// assert_eq!(member("/request/set", "Host"), "/request/set/Host");
/// assert_eq!(member("", "a/b~c"), "/a~1b~0c");
/// ```
pub fn member(parent: &str, name: &str) -> String {
    // In this order, since the escape of a slash has a tilde.
    format!("{parent}/{}", name.replace('~', "~0").replace('/', "~1"))
}
