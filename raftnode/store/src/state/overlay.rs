//! Rows that are newer than the database, in memory.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;
use quorumfs_machine::Table;

/// What a row is taken to cost in memory beyond its bytes.
const ROW_COST: usize = 96;

type Rows = BTreeMap<Box<[u8]>, Option<Bytes>>;

/// Rows by table and key; `None` stands for a row that was removed.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    tables: [Rows; Table::ALL.len()],
    bytes: usize,
    /// Log entries whose effect is in it.
    pub entries: u64,
}

/// One table's rows of a range, in order.
pub(crate) type Range<'a> = btree_map::Range<'a, Box<[u8]>, Option<Bytes>>;

impl Overlay {
    /// The row, if this layer says anything about it.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Bytes>> {
        self.tables[table as usize].get(key)
    }

    /// Sets or removes a row.
    pub fn set(&mut self, table: Table, key: &[u8], value: Option<Bytes>) {
        let rows = &mut self.tables[table as usize];
        self.bytes += value.as_ref().map_or(0, Bytes::len);
        // Some rows change with each command: they need no new key.
        if let Some(row) = rows.get_mut(key) {
            self.bytes -= row.as_ref().map_or(0, Bytes::len);
            *row = value;
        } else {
            self.bytes += ROW_COST + key.len();
            rows.insert(key.into(), value);
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(BTreeMap::is_empty)
    }

    /// About how much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All rows of a table.
    pub fn rows(&self, table: Table) -> impl Iterator<Item = (&[u8], &Option<Bytes>)> {
        self.tables[table as usize].iter().map(|(key, value)| (key.as_ref(), value))
    }

    /// The rows from `start` to `end`; `start` must not be after `end`.
    pub fn range(&self, table: Table, start: &[u8], end: Option<&[u8]>) -> Range<'_> {
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        self.tables[table as usize].range::<[u8], _>((Bound::Included(start), end))
    }
}

/// Two layers as one: where both have a key, the upper one counts.
pub(crate) struct Merged<'a> {
    upper: Peekable<Range<'a>>,
    lower: Peekable<Range<'a>>,
}

impl<'a> Merged<'a> {
    pub fn new(upper: Range<'a>, lower: Range<'a>) -> Merged<'a> {
        Merged { upper: upper.peekable(), lower: lower.peekable() }
    }
}

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a [u8], &'a Option<Bytes>);

    fn next(&mut self) -> Option<Self::Item> {
        let row = match (self.upper.peek(), self.lower.peek()) {
            (Some((upper, _)), Some((lower, _))) => {
                if upper == lower {
                    self.lower.next();
                    self.upper.next()
                } else if upper < lower {
                    self.upper.next()
                } else {
                    self.lower.next()
                }
            }
            (Some(_), None) => self.upper.next(),
            (None, _) => self.lower.next(),
        };
        row.map(|(key, value)| (key.as_ref(), value))
    }
}
