//! The state on disk: a redb database, read as of one moment.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use quorumfs_machine::tables::Visit;
use quorumfs_machine::{ReadTables, StorageError, Table};
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition, WriteTransaction};

use crate::state::overlay::{Merged, Overlay};

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

/// An error of the database as one of the state.
pub(crate) fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> StorageError {
    StorageError(error.into())
}

/// All tables as of one moment. It keeps its database open, also after another has taken its place.
pub(crate) struct Base {
    // In this order they are dropped: the tables before the database.
    tables: Vec<Rows>,
    database: Arc<Database>,
}

impl Base {
    /// The tables as they are now.
    pub fn now(database: &Arc<Database>) -> Result<Base, StorageError> {
        let transaction = database.begin_read().map_err(failed)?;
        let mut tables = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            tables.push(transaction.open_table(definition(table)).map_err(failed)?);
        }
        Ok(Base { tables, database: database.clone() })
    }

    pub fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// Its rows with those of two layers over them.
    pub fn scan_under(
        &self,
        table: Table,
        (start, end): (&[u8], Option<&[u8]>),
        mut over: Merged<'_>,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        let mut next = over.next();
        for row in self.tables[table as usize].range::<&[u8]>(bounds).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let key = key.value();
            let mut hidden = false;
            // Rows of the layers that come before this one are new; one at the same key hides it.
            while let Some((above, row)) = &next
                && *above <= key
            {
                hidden = *above == key;
                if let Some(row) = row.as_ref()
                    && visit(above, row).is_break()
                {
                    return Ok(());
                }
                next = over.next();
            }
            if !hidden && visit(key, &Bytes::copy_from_slice(value.value())).is_break() {
                return Ok(());
            }
        }
        while let Some((key, row)) = next {
            if let Some(row) = row.as_ref()
                && visit(key, row).is_break()
            {
                return Ok(());
            }
            next = over.next();
        }
        Ok(())
    }
}

impl ReadTables for Base {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let row = self.tables[table as usize].get(key).map_err(failed)?;
        Ok(row.map(|row| Bytes::copy_from_slice(row.value())))
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
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        for row in self.tables[table as usize].range::<&[u8]>(bounds).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            if let ControlFlow::Break(()) = visit(key.value(), &Bytes::copy_from_slice(value.value())) {
                break;
            }
        }
        Ok(())
    }
}

/// Makes all tables in a database that may be new.
pub(crate) fn make_tables(database: &Database) -> Result<(), StorageError> {
    let transaction = begin(database, true)?;
    for table in Table::ALL {
        transaction.open_table(definition(table)).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

/// A transaction that will be durable. With `quick_repair` the database opens at once after a crash,
/// for a second sync now.
pub(crate) fn begin(database: &Database, quick_repair: bool) -> Result<WriteTransaction, StorageError> {
    let mut transaction = database.begin_write().map_err(failed)?;
    transaction.set_durability(Durability::Immediate).map_err(failed)?;
    transaction.set_quick_repair(quick_repair);
    Ok(transaction)
}

/// Writes a layer, durably.
pub(crate) fn write(database: &Database, overlay: &Overlay) -> Result<(), StorageError> {
    let transaction = begin(database, true)?;
    for table in Table::ALL {
        let mut rows = overlay.rows(table).peekable();
        if rows.peek().is_none() {
            continue;
        }
        let mut open = transaction.open_table(definition(table)).map_err(failed)?;
        for (key, value) in rows {
            match value {
                Some(value) => drop(open.insert(key, value.as_ref()).map_err(failed)?),
                None => drop(open.remove(key).map_err(failed)?),
            }
        }
    }
    transaction.commit().map_err(failed)
}

/// Writes rows of any tables into a transaction; they come sorted by table.
pub(crate) fn insert(
    transaction: &WriteTransaction,
    table: Table,
    rows: impl Iterator<Item = (Bytes, Bytes)>,
) -> Result<(), StorageError> {
    let mut open = transaction.open_table(definition(table)).map_err(failed)?;
    for (key, value) in rows {
        open.insert(key.as_ref(), value.as_ref()).map_err(failed)?;
    }
    Ok(())
}
