//! The bounds of what a plugin declares and returns, as the WIT names them at each item. The host enforces them, and so
//! does [`test`](crate::test).

/// Edit plans of a plugin.
pub const PLANS: usize = 256;

/// Edits of one plan, of one verdict, and of one call once its plans are expanded.
pub const EDITS: usize = 256;

/// Parts of one template.
pub const TEMPLATE_PARTS: usize = 64;

/// Values in the templates of one plan, and of all plans that one call has carried out.
pub const TEMPLATE_VALUES: usize = 256;

/// Bytes of all plans of a plugin, in names and texts, with [`DECLARED_ITEM`] for each edit and template part.
pub const DECLARED: usize = 1 << 20;

/// Bytes that an edit or a template part counts besides its text.
pub const DECLARED_ITEM: usize = 64;

/// Values that one hook declares, and exceptions of a lookup plan.
pub const VALUES: usize = 128;

/// Parts of the key of a lookup plan.
pub const KEY_PARTS: usize = 256;

/// Bytes of a name: of a field, note, cookie, query parameter, method, upstream, cache or tag, and of an authority.
pub const NAME: usize = 1 << 10;

/// Bytes of the value of a field or a note, and of a filled template.
pub const VALUE: usize = 64 << 10;

/// Fields of a response or of trailers that a plugin makes.
pub const FIELDS: usize = 256;

/// Bytes of the fields of such a response, or of such trailers, with [`FIELD_OVERHEAD`] for each.
pub const FIELD_BYTES: usize = 256 << 10;

/// Bytes of the body of such a response.
pub const RESPONSE_BODY: usize = 4 << 20;

/// Bytes that the host adds to the length of each field.
pub const FIELD_OVERHEAD: usize = 32;

/// Fields that all plugins of a chain may add to one message.
pub const ADDED_FIELDS: usize = 1_000;

/// Bytes that all plugins of a chain may add to the head of a request.
pub const ADDED_TO_REQUEST: usize = 128 << 10;

/// Bytes that all plugins of a chain may add to the head of a response.
pub const ADDED_TO_RESPONSE: usize = 512 << 10;

/// Field lines that the renames of one call may move, taking each to move all lines of the message.
pub const MOVED_LINES: usize = 16 << 10;

/// Notes of one exchange.
pub const NOTES: usize = 256;

/// Bytes of all notes that plugins leave on one exchange, names included.
pub const NOTE_BYTES: usize = 128 << 10;

/// Bytes of a cache key.
pub const KEY: usize = 8 << 10;

/// Keys, tags or field names that a cache policy returns in one list.
pub const CACHE_LIST: usize = 256;

/// Metrics that a plugin defines.
pub const METRICS: usize = 64;

/// Bytes of the name of a metric.
pub const METRIC_NAME: usize = 64;
