//! Rows that are newer than the database, in memory.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;
use quorumfs_machine::Table;
use smallvec::SmallVec;

/// What a row is taken to cost in memory beyond its bytes.
const ROW_COST: usize = 96;

/// A key; nearly all are so short that they need no memory of their own.
type Key = SmallVec<[u8; 24]>;

/// A row, or that it was removed.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// `None` stands for a row that was removed.
    pub value: Option<Bytes>,
    /// Nothing is at its key in the layers below: when it goes, nothing has to be removed there.
    new: bool,
}

type Rows = BTreeMap<Key, Row>;

/// Rows by table and key.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    tables: [Rows; Table::ALL.len()],
    bytes: usize,
    /// Log entries whose effect is in it.
    pub entries: u64,
}

/// One table's rows of a range, in order.
pub(crate) type Range<'a> = btree_map::Range<'a, Key, Row>;

impl Overlay {
    /// The row, if this layer says anything about it.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Bytes>> {
        self.tables[table as usize].get(key).map(|row| &row.value)
    }

    /// Sets a row. `new` says that the layers below have nothing at its key.
    pub fn set(&mut self, table: Table, key: &[u8], value: Bytes, new: bool) {
        self.bytes += value.len();
        match self.tables[table as usize].entry(key.into()) {
            btree_map::Entry::Occupied(mut row) => {
                // What is below does not change by what was here.
                let row = row.get_mut();
                self.bytes -= row.value.as_ref().map_or(0, Bytes::len);
                row.value = Some(value);
            }
            btree_map::Entry::Vacant(place) => {
                self.bytes += ROW_COST + key.len();
                place.insert(Row { value: Some(value), new });
            }
        }
    }

    /// Removes a row.
    pub fn remove(&mut self, table: Table, key: &[u8]) {
        match self.tables[table as usize].entry(key.into()) {
            btree_map::Entry::Occupied(mut row) => {
                self.bytes -= row.get().value.as_ref().map_or(0, Bytes::len);
                if row.get().new {
                    self.bytes -= ROW_COST + key.len();
                    row.remove();
                } else {
                    row.get_mut().value = None;
                }
            }
            btree_map::Entry::Vacant(place) => {
                self.bytes += ROW_COST + key.len();
                place.insert(Row { value: None, new: false });
            }
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
        self.tables[table as usize].iter().map(|(key, row)| (key.as_ref(), &row.value))
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
        row.map(|(key, row)| (key.as_ref(), &row.value))
    }
}
