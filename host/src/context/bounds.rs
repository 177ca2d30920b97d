//! The bounds of what a plugin declares, returns and asks for. The WIT names each at its item; `sdk/src/bounds.rs` repeats
//! those that the test host of the SDK enforces.
//!
//! Each is far more than a filter needs, and small enough that the worst of all calls costs a worker a few milliseconds
//! and the process a few MiB. A bound that users may need to raise is a key of the manifest, not a constant here.

// === Declared by `configure` ===

/// The maximum number of edit plans of a plugin: one for each case that a configuration distinguishes.
pub const PLANS: usize = 256;

/// The maximum number of edits of one plan, of one verdict, and of one call once its plans are expanded.
pub const EDITS: usize = 256;

/// The maximum number of parts of one template.
pub const TEMPLATE_PARTS: usize = 64;

/// The maximum number of values in the templates of one plan, and of all plans that one call has carried out. Each may
/// cost a search through a whole head.
pub const TEMPLATE_VALUES: usize = 256;

/// The maximum number of bytes that a plugin declares, in names and texts, with [`DECLARED_ITEM`] for each edit and
/// template part. The host keeps them for as long as the generation.
pub const DECLARED: usize = 1 << 20;

/// The number of bytes that an edit or a template part counts besides its text: about the size of its copy in the host.
pub const DECLARED_ITEM: usize = 64;

/// The maximum number of values that one hook declares, and of exceptions of a lookup plan. All are looked up for each
/// call. The stock cache policy declares some 35 besides those that its configuration names.
pub const VALUES: usize = 128;

/// The maximum number of parts of the key of a lookup plan: two for each value that it may be made of.
pub const KEY_PARTS: usize = 256;

/// The maximum length of a name, in bytes: of a field, note, cookie, query parameter, method, upstream, cache or tag,
/// and of an authority.
pub const NAME: usize = 1 << 10;

/// The maximum length of the value of a field or a note, and of a filled template, in bytes: twice the default of
/// `limits.head`.
pub const VALUE: usize = 64 << 10;

// === Returned by a call ===

/// The maximum number of fields of a response or of trailers that a plugin makes.
pub const FIELDS: usize = 256;

/// The maximum number of bytes of the fields of a response that a plugin makes.
pub const FIELD_BYTES: usize = 256 << 10;

/// The maximum number of bytes of trailers that a plugin makes. Over HTTP/2, they wait for the client beside its content, and
/// peers end a connection for longer lists.
pub const TRAILER_BYTES: usize = 16 << 10;

/// The maximum length of the body of a response that a plugin makes, in bytes: an error page or a form. Longer bodies
/// belong into an upstream.
pub const RESPONSE_BODY: usize = 4 << 20;

/// The number of bytes that the host adds to the length of each field, as HTTP/2 does (RFC 9113 §10.5.1).
pub const FIELD_OVERHEAD: usize = 32;

/// The maximum number of fields that all plugins of a chain may add to one message, besides those that the client or
/// the endpoint sent.
pub const ADDED_FIELDS: usize = 1_000;

/// The maximum number of fields of a message that plugins edit, those of the client or the endpoint included:
/// `limits.fields` is 10,000 at most. An `http::HeaderMap` with 24,576 names can't grow, and its simpler methods panic.
pub const MESSAGE_FIELDS: usize = 12_000;

/// The maximum number of bytes that all plugins of a chain may add to the head of a request.
pub const ADDED_TO_REQUEST: usize = 128 << 10;

/// The maximum number of bytes that all plugins of a chain may add to the head of a response: more than to a request,
/// as endpoints may send longer heads than clients.
pub const ADDED_TO_RESPONSE: usize = 512 << 10;

/// The maximum number of field lines that the renames of one call may move, if each moves all lines of the message:
/// about a millisecond.
pub const MOVED_LINES: usize = 16 << 10;

/// The maximum number of notes of one exchange. The host searches them in turn.
pub const NOTES: usize = 256;

/// The maximum number of bytes of all notes of one exchange, names included.
pub const NOTE_BYTES: usize = 128 << 10;

/// The maximum length of a reason or a detail that a plugin returns for the log, `Cache-Status` or an error, in bytes.
pub const REASON: usize = 4 << 10;

/// The maximum length of the detail in `Cache-Status` for a bypass or a rejection, in bytes.
pub const DETAIL: usize = 128;

/// The maximum length of a cache key, in bytes.
pub const KEY: usize = 8 << 10;

/// The maximum number of keys, tags or field names that a cache policy returns in one list.
pub const CACHE_LIST: usize = 256;

/// The maximum number of edit plans that a balancer declares for responses, besides one for each endpoint.
pub const RESPONSE_PLANS: usize = 256;

/// The number of bytes that a balancer has in addition to [`DECLARED`], for each endpoint.
pub const DECLARED_PER_ENDPOINT: usize = 1 << 10;

// === Said by `describe` and `configure` ===

/// The maximum length of the JSON Schema of a configuration, in bytes.
pub const SCHEMA: usize = 1 << 20;

/// The maximum number of nested objects and arrays in the schema of a configuration, because parsers recurse.
pub const SCHEMA_DEPTH: usize = 64;

/// The maximum number of values in the schema of a configuration: texts, numbers, arrays, objects and so on. Each takes up to
/// 650 bytes once it is parsed. The schema of the manifest, with 130 KB, has 2,500.
pub const SCHEMA_VALUES: usize = 32 << 10;

/// The maximum number of errors that a plugin reports of a configuration.
pub const CONFIG_ERRORS: usize = 100;

// === Asked of the host ===

/// The maximum number of metrics that a plugin defines.
pub const METRICS: usize = 64;

/// The maximum length of the name of a metric, in bytes.
pub const METRIC_NAME: usize = 64;

/// Values of a field, cookie or query parameter that a plugin asks for at once. A head within the default of
/// `limits.head` has fewer.
pub const REPEATED_VALUES: usize = 16 << 10;

/// Bytes of random numbers in one call: they take about a tenth of a millisecond.
pub const RANDOM: u64 = 64 << 10;

/// The maximum number of bytes of one write to standard output or error, as WASI defines it.
pub const WRITE: usize = 4 << 10;

/// The maximum number of bytes that a call hands over to the host, as the host keeps them, if `limits.memory` is not
/// less. More than the largest response of a plugin, and about a millisecond of copying. Bodies are handed over up to
/// `limits.memory`.
pub const HANDED_OVER: usize = RESPONSE_BODY + (1 << 20);

/// The maximum number of resources, of the plugin and of the host, that an instance holds at a time. A plugin needs one
/// for each body.
pub const HANDLES: usize = 10_000;

/// The maximum number of endpoints whose load a balancer asks for in one call, if the upstream doesn't have more.
pub const IN_FLIGHT_COUNTS: usize = 16 << 10;

/// Bytes of a key of shared state: as many as of a name.
pub const SHARED_KEY: usize = NAME;

/// Bytes of a value of shared state: as many as of a field.
pub const SHARED_VALUE: usize = VALUE;

/// The maximum length of the path and query of a request that a plugin sends to another service, in bytes.
pub const CALLOUT_TARGET: usize = 16 << 10;

/// The maximum length of the content of a request that a plugin sends to another service, in bytes.
pub const CALLOUT_REQUEST: usize = 256 << 10;

/// The maximum length of the content of the response to such a request, in bytes.
pub const CALLOUT_RESPONSE: usize = 1 << 20;
