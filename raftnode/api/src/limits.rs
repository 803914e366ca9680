//! Every limit of the protocol and the data model, with its unit.

/// Longest component of a key, in bytes (`NAME_MAX` of Linux).
pub const NAME_MAX: usize = 255;
/// Longest key, in bytes, with its leading slash (`PATH_MAX` less its terminating NUL).
pub const KEY_MAX: usize = 4095;
/// Largest value in bytes that a node accepts when its configuration says nothing.
pub const VALUE_MAX_DEFAULT: u64 = 1 << 20;
/// Largest value in bytes that a configuration may allow: a command has to fit into one frame.
pub const VALUE_MAX_LIMIT: u64 = 8 << 20;
/// Size of the store in bytes (names, values and [`RECORD_COST`] for each) at which writes that
/// grow it are refused, when the configuration says nothing.
pub const STORE_MAX_DEFAULT: u64 = 2 << 30;
/// What one key is taken to cost beyond its name and value, in bytes, when the quota is counted.
pub const RECORD_COST: u64 = 256;
/// Largest frame on any stream, in bytes, its header left out. A frame that claims more is refused
/// before anything is allocated for it.
pub const FRAME_MAX: usize = 16 << 20;
/// Most comparisons, and most commands in either branch, of one transaction.
pub const TXN_MAX: usize = 128;
/// Longest extended attribute: name in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// Longest extended attribute: value in bytes.
pub const XATTR_VALUE_MAX: usize = 4096;
/// Most extended attributes of one key.
pub const XATTRS_MAX: usize = 64;
/// Longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Most locks that are held on one key at a time.
pub const LOCKS_MAX: usize = 1024;
/// Most locks that one owner waits for at a time: one for each of its threads.
pub const WAITS_MAX: usize = 1024;
/// Most locks that are looked at to find out whether a wait would never end. Beyond it, it is not detected.
pub const DEADLOCK_SEARCH_MAX: usize = 16_384;
/// Shortest and longest time to live of a lease, in milliseconds.
pub const LEASE_TTL_MIN_MS: u64 = 500;
/// See [`LEASE_TTL_MIN_MS`].
pub const LEASE_TTL_MAX_MS: u64 = 365 * 24 * 3600 * 1000;
/// Most requests of one session whose results are remembered for a retry. A client keeps at most
/// this many writes under way.
pub const SESSION_WINDOW: u64 = 1024;
/// Most revisions that the event log keeps for watchers to resume from.
pub const EVENT_LOG_REVISIONS: u64 = 10_000;
/// Most bytes that the event log keeps. The newest revision is always kept, whatever its size.
pub const EVENT_LOG_BYTES: u64 = 64 << 20;
/// Most keys that one answer to a range request holds; the rest is asked for with `after`.
pub const RANGE_PAGE_KEYS: usize = 4096;
/// About how many bytes of values one answer to a range request holds.
pub const RANGE_PAGE_BYTES: usize = 2 << 20;
/// Most keys that one recursive delete takes away: all of them share one revision, so all of them
/// have to fit into one event.
pub const DELETE_TREE_MAX: usize = 16_384;
