//! `get` and `ls`.

use quorumfs_api::wire::{Consistency, Prefix};
use quorumfs_api::{Key, Kind, Record};
use serde_json::Value;

use crate::cli::{Context, Get, Ls};
use crate::error::Error;
use crate::key::{self, TextPrefix};
use crate::output;
use crate::table::table;

fn consistency(serializable: bool) -> Consistency {
    if serializable { Consistency::Serializable } else { Consistency::Linearizable }
}

/// `kvctl get`.
pub async fn get(context: &Context, args: Get) -> Result<(), Error> {
    let consistency = consistency(args.serializable);
    if args.prefix {
        let prefix = TextPrefix::parse(&args.key)?;
        let mut left = args.limit.unwrap_or(usize::MAX);
        return pages(context, prefix.range(), args.keys_only, consistency, |key, record| {
            if record.kind == Kind::Dir && !args.dirs {
                return Ok(true);
            }
            if left == 0 {
                return Ok(false);
            }
            left -= 1;
            show(context, &args, key, record)?;
            Ok(left > 0)
        })
        .await;
    }
    let key = key::key(&args.key)?;
    let (_, found) = context.client.get(key.clone(), consistency, context.timeout()).await?;
    match found {
        None => Err(Error::Refused(format!("no such key: {key}"))),
        Some(record) if record.kind == Kind::Dir && !context.output.json => Err(Error::Refused(format!(
            "{key} is a directory: use `kvctl ls {key}`, or `kvctl get {}/ --prefix`",
            if key.is_root() { String::new() } else { key.to_string() }
        ))),
        Some(record) => show(context, &args, &key, &record),
    }
}

fn show(context: &Context, args: &Get, key: &Key, record: &Record) -> Result<(), Error> {
    let out = &context.output;
    let value: &[u8] = &record.value;
    match () {
        () if out.json => out.document(&output::record(key, record, !args.keys_only))?,
        () if args.raw => out.raw(value)?,
        () if args.keys_only => out.lines(&[&shown(key, record)])?,
        () if args.print_value_only => out.lines(&[value])?,
        () => out.lines(&[&shown(key, record), value])?,
    }
    Ok(())
}

/// A directory is shown with a slash at its end.
fn shown(key: &Key, record: &Record) -> Vec<u8> {
    let mut text = key.as_bytes().to_vec();
    if record.kind == Kind::Dir && !key.is_root() {
        text.push(b'/');
    }
    text
}

/// Goes through a range page by page, until `each` says that it is enough.
async fn pages(
    context: &Context,
    prefix: Prefix,
    keys_only: bool,
    consistency: Consistency,
    mut each: impl FnMut(&Key, &Record) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut after = None;
    loop {
        let page = context
            .client
            .range(prefix.clone(), keys_only, after, u32::MAX, consistency, context.timeout())
            .await?;
        for (key, record) in &page.items {
            if !each(key, record)? {
                return Ok(());
            }
        }
        after = page.items.last().map(|(key, _)| key.clone());
        if !page.more || after.is_none() {
            return Ok(());
        }
    }
}

/// `kvctl ls`.
pub async fn ls(context: &Context, args: Ls) -> Result<(), Error> {
    let dir = args.dir.as_deref().map_or(Ok(Key::root()), key::key)?;
    let consistency = consistency(args.serializable);
    let (_, found) = context.client.get(dir.clone(), consistency, context.timeout()).await?;
    let Some(found) = found else { return Err(Error::Refused(format!("no such key: {dir}"))) };
    let mut entries: Vec<(Key, Record)> = Vec::new();
    if found.kind == Kind::Dir {
        let prefix = if args.recursive { Prefix::Tree(dir.clone()) } else { Prefix::Children(dir.clone()) };
        // The value is wanted for its length, and a link's for its target.
        pages(context, prefix, !args.long && !context.output.json, consistency, |key, record| {
            entries.push((key.clone(), record.clone()));
            Ok(true)
        })
        .await?;
    } else {
        entries.push((dir.clone(), found));
    }
    if context.output.json {
        for (key, record) in &entries {
            let mut document = output::record(key, record, false);
            document["size"] = Value::from(record.value.len());
            context.output.document(&document)?;
        }
        return Ok(());
    }
    let name = |key: &Key, record: &Record| -> Vec<u8> {
        let below = shown(key, record);
        let skip = if dir.is_root() { 1 } else { dir.as_bytes().len() + 1 };
        below.get(skip..).filter(|rest| !rest.is_empty()).map_or(below.clone(), <[u8]>::to_vec)
    };
    if !args.long {
        let names: Vec<Vec<u8>> = entries.iter().map(|(key, record)| name(key, record)).collect();
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        return Ok(context.output.lines(&names)?);
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|(key, record)| {
            let mut name = String::from_utf8_lossy(&name(key, record)).into_owned();
            if record.kind == Kind::Symlink {
                name = format!("{name} -> {}", String::from_utf8_lossy(&record.value));
            }
            vec![
                output::mode(record),
                format!("{}:{}", record.uid, record.gid),
                record.value.len().to_string(),
                record.mod_revision.to_string(),
                output::moment(record.mtime),
                record.author.to_string(),
                name,
            ]
        })
        .collect();
    if rows.is_empty() { Ok(()) } else { Ok(context.output.lines(&[table(&rows).as_bytes()])?) }
}
