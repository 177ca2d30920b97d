//! The limits of what a plugin declares and returns, as documented in the WIT at each item. The host enforces them, and
//! so does [`test`](crate::testing).

/// The maximum number of edit plans of a plugin.
pub const PLANS: usize = 256;

/// The maximum number of edits of one plan, of one verdict, and of one call with its plans expanded.
pub const EDITS: usize = 256;

/// The maximum number of parts of one template.
pub const TEMPLATE_PARTS: usize = 64;

/// The maximum number of values in the templates of one plan, and of all plans that one call applies.
pub const TEMPLATE_VALUES: usize = 256;

/// The maximum size of all plans of a plugin in bytes: names and texts, plus [`DECLARED_ITEM`] for each edit and
/// template part.
pub const DECLARED: usize = 1 << 20;

/// The bytes that an edit or a template part counts besides its text.
pub const DECLARED_ITEM: usize = 64;

/// The maximum number of values that one hook declares, and of exceptions of a lookup plan.
pub const VALUES: usize = 128;

/// The maximum number of parts of the key of a lookup plan.
pub const KEY_PARTS: usize = 256;

/// The maximum length of a name in bytes: of a field, note, cookie, query parameter, method, upstream, cache or tag,
/// and of an authority.
pub const NAME: usize = 1 << 10;

/// The maximum length in bytes of the value of a field or a note, and of the result of a template.
pub const VALUE: usize = 64 << 10;

/// The maximum number of fields of a response or of trailers that a plugin makes.
pub const FIELDS: usize = 256;

/// The maximum size of the fields of such a response in bytes, with [`FIELD_OVERHEAD`] for each. Trailers have 16 KiB.
pub const FIELD_BYTES: usize = 256 << 10;

/// The maximum length of the body of a response that a plugin makes, in bytes.
pub const RESPONSE_BODY: usize = 4 << 20;

/// The bytes that the host adds to the length of each field.
pub const FIELD_OVERHEAD: usize = 32;

/// The maximum number of fields that all plugins of a chain may add to one message.
pub const ADDED_FIELDS: usize = 1_000;

/// The maximum number of bytes that all plugins of a chain may add to the head of a request.
pub const ADDED_TO_REQUEST: usize = 128 << 10;

/// The maximum number of bytes that all plugins of a chain may add to the head of a response.
pub const ADDED_TO_RESPONSE: usize = 512 << 10;

/// The maximum number of field lines that the renames of one call may move. Each rename counts all lines of the
/// message.
pub const MOVED_LINES: usize = 16 << 10;

/// The maximum number of notes of one exchange.
pub const NOTES: usize = 256;

/// The maximum size in bytes of all notes that plugins set on one exchange, names included.
pub const NOTE_BYTES: usize = 128 << 10;

/// The maximum length of a cache key, in bytes.
pub const KEY: usize = 8 << 10;

/// The maximum number of keys, tags or field names that a cache policy returns in one list.
pub const CACHE_LIST: usize = 256;

/// The maximum number of metrics that a plugin defines.
pub const METRICS: usize = 64;

/// The maximum length of the name of a metric, in bytes.
pub const METRIC_NAME: usize = 64;

/// The maximum length of the content of a request that a plugin sends to another service, in bytes.
pub const CALLOUT_REQUEST: usize = 256 << 10;

/// The maximum length of the content of the response to such a request, in bytes.
pub const CALLOUT_RESPONSE: usize = 1 << 20;
