//! Writes that are not yet done. A command works on an overlay: when it is refused half-way, or the
//! storage fails, the overlay is dropped and the tables are as they were. Unlike a log of previous
//! rows it costs no read for each write.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::tables::{ReadTables, StorageError, Table, Tables, Visit};

/// A key; nearly all are so short that they need no memory of their own.
type RowKey = SmallVec<[u8; 24]>;

/// A row to be written (`Some`) or removed (`None`).
struct Write {
    row: Option<Bytes>,
    /// Nothing is at its key in the tables.
    new: bool,
}

/// Writes by key.
type Pending = BTreeMap<RowKey, Write>;

/// Tables with pending writes over them.
pub(crate) struct Overlay<'a, T: ?Sized> {
    base: &'a mut T,
    pending: [Pending; Table::ALL.len()],
}

impl<'a, T: Tables + ?Sized> Overlay<'a, T> {
    pub fn new(base: &'a mut T) -> Self {
        Overlay { base, pending: Default::default() }
    }

    /// Forgets all pending writes.
    pub fn discard(&mut self) {
        self.pending = Default::default();
    }

    /// Does all pending writes.
    pub fn commit(self) -> Result<(), StorageError> {
        for (table, rows) in Table::ALL.into_iter().zip(self.pending) {
            for (key, write) in rows {
                match write.row {
                    Some(row) if write.new => self.base.put_new(table, &key, row)?,
                    Some(row) => self.base.put(table, &key, row)?,
                    None => self.base.delete(table, &key)?,
                }
            }
        }
        Ok(())
    }

    pub fn put(&mut self, table: Table, key: &[u8], value: Bytes) {
        self.pending[table as usize].insert(key.into(), Write { row: Some(value), new: false });
    }

    /// As `put`, where it is known that nothing is at `key`.
    pub fn put_new(&mut self, table: Table, key: &[u8], value: Bytes) {
        let rows = &mut self.pending[table as usize];
        // What this command did there before may have taken something away.
        let new = !rows.contains_key(key);
        rows.insert(key.into(), Write { row: Some(value), new });
    }

    pub fn delete(&mut self, table: Table, key: &[u8]) {
        self.pending[table as usize].insert(key.into(), Write { row: None, new: false });
    }
}

impl<T: Tables + ?Sized> ReadTables for Overlay<'_, T> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        match self.pending[table as usize].get(key) {
            Some(write) => Ok(write.row.clone()),
            None => self.base.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let bound = end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut pending =
            self.pending[table as usize].range::<[u8], _>((Bound::Included(start), bound)).peekable();
        let mut stopped = false;
        self.base.scan(table, start, end, &mut |key, value| {
            // Pending rows that come before this one are new; one at the same key stands for it.
            while let Some((at, write)) = pending.next_if(|(at, _)| at.as_slice() <= key) {
                if let Some(row) = &write.row
                    && visit(at, row).is_break()
                {
                    stopped = true;
                    return ControlFlow::Break(());
                }
                if at.as_slice() == key {
                    return ControlFlow::Continue(());
                }
            }
            let flow = visit(key, value);
            stopped = flow.is_break();
            flow
        })?;
        if !stopped {
            for (key, write) in pending {
                if let Some(row) = &write.row
                    && visit(key, row).is_break()
                {
                    break;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tables::MemTables;

    fn rows(
        tables: &impl ReadTables,
        start: &[u8],
        end: Option<&[u8]>,
        most: usize,
    ) -> Vec<(Vec<u8>, Bytes)> {
        let mut rows = Vec::new();
        tables
            .scan(Table::Meta, start, end, &mut |key, value| {
                rows.push((key.to_vec(), value.clone()));
                if rows.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        rows
    }

    #[test]
    fn an_overlay_reads_like_the_tables_it_becomes() {
        let mut base = MemTables::default();
        for key in [b"b", b"d", b"f"] {
            base.put(Table::Meta, key, Bytes::from_static(b"old")).unwrap();
        }
        // Every set of put, deleted and untouched keys out of six.
        for choice in 0..3u32.pow(6) {
            let mut written = base.clone();
            let mut copy = base.clone();
            let mut overlay = Overlay::new(&mut copy);
            for (i, key) in [b"a", b"b", b"c", b"d", b"f", b"g"].into_iter().enumerate() {
                match choice / 3u32.pow(i as u32) % 3 {
                    0 => {}
                    1 => {
                        overlay.put(Table::Meta, key, Bytes::from_static(b"new"));
                        written.put(Table::Meta, key, Bytes::from_static(b"new")).unwrap();
                    }
                    _ => {
                        overlay.delete(Table::Meta, key);
                        written.delete(Table::Meta, key).unwrap();
                    }
                }
            }
            for most in 1..=7 {
                assert_eq!(
                    rows(&overlay, b"", None, most),
                    rows(&written, b"", None, most),
                    "choice {choice}"
                );
                assert_eq!(rows(&overlay, b"b", Some(b"f"), most), rows(&written, b"b", Some(b"f"), most));
            }
            assert!(rows(&overlay, b"d", Some(b"b"), 9).is_empty());
            overlay.commit().unwrap();
            assert_eq!(copy, written);
        }
    }

    #[test]
    fn a_discarded_overlay_leaves_nothing() {
        let mut base = MemTables::default();
        base.put(Table::Meta, b"a", Bytes::from_static(b"old")).unwrap();
        let before = base.clone();
        let mut overlay = Overlay::new(&mut base);
        overlay.put(Table::Meta, b"a", Bytes::from_static(b"new"));
        overlay.delete(Table::Meta, b"b");
        overlay.discard();
        overlay.commit().unwrap();
        assert_eq!(base, before);
    }
}
