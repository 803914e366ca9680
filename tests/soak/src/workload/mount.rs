//! Mounts: programs on each host write files of their own and follow those of all hosts by inotify.
//!
//! A value is a number, a blank, and so many letters: whoever reads a part of it knows. Numbers of
//! one file only grow, so whoever sees an older one than before knows, too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quorumfs_api::record::Kind;
use quorumfs_tests::inotify::{Event, Inotify};
use quorumfs_tests::tree::{self, Entry, Tree};
use rustix::fs::inotify::ReadFlags;
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::report::Ended;
use crate::shared::Shared;
use crate::store::{self, FINAL_TIMEOUT, key};
use crate::workload::ROOT;
use crate::workload::writer::{Answer, Writer};

const NAME: &str = "mount";
const READABLE: &str = "what an inotify event tells of is readable, whole, and never older than before";
const SLOW: &str = "(not judged: reading took longer than a mount waits)";
const LAST: &str = "after its last event a file has its last value";
const EQUAL: &str = "all mounts and the store are equal after healing";
/// Files of each host. A lost event shows where it was the last one of its file: many files have many last ones.
const FILES: usize = 8;
const PAUSE: Duration = Duration::from_millis(60);
/// Longest time that one call on a mount may take, whatever happens to the cluster.
const CALL_MAX: Duration = Duration::from_secs(30);
/// An observer reads so many bytes at a time: a value takes several reads.
const PIECE: usize = 300;
/// How long a mount waits for a reader of a quiet file who has just opened it: `fsd::core::PASS`. What
/// took longer to read may be of two values, so it says nothing (SEMANTICS.md, edges).
const PASS: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(50);

/// The directory of one host, from the top of the store.
pub fn dir(host: usize) -> String {
    format!("{ROOT}/{NAME}/h{host}")
}

fn on_mount(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// The value with this number.
pub fn value(number: u64) -> String {
    format!("{number} {}\n", "x".repeat((number * 37 % 2000) as usize))
}

/// The number of a value; `None` for a part of one.
pub fn number(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let number = text.split(' ').next()?.parse().ok()?;
    (value(number) == text).then_some(number)
}

/// The number of each file, which is named by its host and its name.
pub type Files = BTreeMap<(usize, String), u64>;

/// What one observer has seen of each file: the only state of its checker.
#[derive(Default)]
pub struct Observer {
    last: Files,
}

impl Observer {
    /// An event came for a file, and this is what a read gave right then. `own`: the observer is on
    /// the host that writes, where a file that is being made is there and empty.
    pub fn saw(
        &mut self,
        host: usize,
        name: &str,
        read: Result<Vec<u8>, String>,
        own: bool,
    ) -> Option<String> {
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                return Some(format!("{name} of host {host}: an event came, and a read gave {error}"));
            }
        };
        if bytes.is_empty() && own {
            return None;
        }
        let Some(number) = number(&bytes) else {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            return Some(format!(
                "{name} of host {host}: {} bytes {start:?} are no whole value",
                bytes.len()
            ));
        };
        let before = self.last.insert((host, name.to_string()), number);
        before
            .filter(|before| *before > number)
            .map(|before| format!("{name} of host {host}: {number} was read after {before}"))
    }

    /// Holds what was read last, because an event told to, against what the store has.
    pub fn check_last(&self, store: &Files) -> Vec<String> {
        let differs = |(file, number): (&(usize, String), &u64)| {
            let last = self.last.get(file);
            (last != Some(number))
                .then(|| format!("{file:?} has {number}; what was read after its last event: {last:?}"))
        };
        store.iter().filter_map(differs).collect()
    }
}

/// The writer and the observer of one host; ends after the run has settled and all was checked.
pub fn run(shared: &Shared, host: usize) {
    let runtime = Handle::current();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(shared, host));
        observe(shared, host, &runtime);
        let _ = writer.join().map_err(|_| {
            shared.report.violation("the harness works", format!("writer of host {host}"), "it panicked");
        });
    });
}

fn write(shared: &Shared, host: usize) {
    if let Err(error) = try_write(shared, host) {
        shared.report.violation("the harness works", format!("writer of host {host}"), error.to_string());
    }
    shared.writers.fetch_sub(1, Ordering::SeqCst);
}

fn try_write(shared: &Shared, host: usize) -> io::Result<()> {
    let mount = &shared.mounts[host];
    let mut writer = Writer::start()?;
    let mut random = shared.random(&format!("{NAME}{host}"));
    let dir = on_mount(&mount.path, &dir(host));
    for number in 1.. {
        if !shared.runs() {
            break;
        }
        let Some(epoch) = mount.up() else {
            std::thread::sleep(LOOK);
            continue;
        };
        let path = dir.join(format!("f{}", random.below(FILES)));
        let place = path.display().to_string();
        let begun = Instant::now();
        let answer = writer.write(&path, number, random.chance(60))?;
        let taken = begun.elapsed();
        // What a dead mount says means nothing.
        let stayed = mount.stayed(epoch);
        if stayed && taken > CALL_MAX {
            let seen = format!("{taken:?}, then {answer:?}");
            shared.report.violation("calls on a mount end in time", place.clone(), seen);
        }
        match answer {
            Answer::Written(wrong) => {
                shared.report.operation(NAME, Ended::Done);
                if stayed {
                    let found = wrong.into_iter().collect();
                    shared.report.verdict("a mount shows its own writes at once", &place, 1, found);
                }
            }
            Answer::Failed(code, text) => {
                shared.report.operation(NAME, Ended::Unknown);
                if stayed && code == Errno::IO.raw_os_error() {
                    shared.report.violation("no bare EIO on a mount", place, text);
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn observe(shared: &Shared, host: usize, runtime: &Handle) {
    let mount = &shared.mounts[host];
    let mut goal: Option<(Instant, Files)> = None;
    loop {
        let Some(epoch) = mount.up() else {
            std::thread::sleep(LOOK);
            continue;
        };
        // A mount that is new may come from a node that is a little behind: compare within one only.
        let mut observer = Observer::default();
        let mut inotify = Inotify::new();
        await_directories(shared, host, epoch);
        for watched in 0..shared.mounts.len() {
            let dir = on_mount(&mount.path, &dir(watched));
            if let Err(error) = inotify.watch(&dir, &watched.to_string())
                && mount.stayed(epoch)
            {
                let place = dir.display().to_string();
                shared.report.violation("a directory of a mount can be watched", place, error.to_string());
            }
            scan(shared, host, &mut observer, watched);
        }
        while mount.stayed(epoch) {
            if let Some(event) = inotify.next(LOOK) {
                take(shared, host, epoch, &mut observer, &event);
            }
            if goal.is_none() && !shared.runs() && shared.writers.load(Ordering::SeqCst) == 0 {
                match runtime.block_on(stored(shared)) {
                    Ok(files) => goal = Some((Instant::now(), files)),
                    Err(error) => {
                        let place = format!("{ROOT}/{NAME}");
                        shared.report.violation("a healed cluster can be read", place, error);
                        return;
                    }
                }
            }
            let Some((since, files)) = &goal else { continue };
            let found = observer.check_last(files);
            if found.is_empty() || since.elapsed() > FINAL_TIMEOUT {
                shared.report.verdict(LAST, &mount.name, files.len(), found);
                compare(shared, host, runtime);
                return;
            }
        }
    }
}

/// Reads a file in pieces, as many programs do: one descriptor reads one value. `None` if it took so long
/// that the mount may not have waited.
fn read_in_pieces(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let begun = Instant::now();
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    loop {
        let start = bytes.len();
        bytes.resize(start + PIECE, 0);
        let length = file.read(&mut bytes[start..])?;
        bytes.truncate(start + length);
        if length == 0 {
            return Ok((begun.elapsed() < PASS || number(&bytes).is_some()).then_some(bytes));
        }
    }
}

/// A mount that is new may not have come to the directories yet.
fn await_directories(shared: &Shared, host: usize, epoch: u64) {
    let mount = &shared.mounts[host];
    let begun = Instant::now();
    let there = |watched| on_mount(&mount.path, &dir(watched)).is_dir();
    while !(0..shared.mounts.len()).all(there) && mount.stayed(epoch) && begun.elapsed() < FINAL_TIMEOUT {
        std::thread::sleep(LOOK);
    }
}

/// What is there before any event.
fn scan(shared: &Shared, host: usize, observer: &mut Observer, watched: usize) {
    let dir = on_mount(&shared.mounts[host].path, &dir(watched));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('f')
            && let Ok(Some(bytes)) = read_in_pieces(&entry.path())
        {
            observer.saw(watched, &name, Ok(bytes), true);
        }
    }
}

fn take(shared: &Shared, host: usize, epoch: u64, observer: &mut Observer, event: &Event) {
    let mount = &shared.mounts[host];
    if event.mask.contains(ReadFlags::QUEUE_OVERFLOW) {
        (0..shared.mounts.len()).for_each(|watched| scan(shared, host, observer, watched));
        return;
    }
    let told = ReadFlags::CREATE | ReadFlags::MODIFY | ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO;
    let (Some(name), Ok(watched)) = (&event.name, event.label.parse::<usize>()) else { return };
    let name = name.to_string_lossy();
    if !event.mask.intersects(told) || !name.starts_with('f') {
        return;
    }
    let path = on_mount(&mount.path, &dir(watched)).join(&*name);
    let read = match read_in_pieces(&path) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => return shared.report.checked(SLOW, 1),
        Err(error) => Err(error.to_string()),
    };
    let found = observer.saw(watched, &name, read, watched == host);
    // What a dead mount says means nothing.
    if mount.stayed(epoch) {
        let found = found.map(|text| format!("{text} ({:?})", event.mask));
        shared.report.verdict(READABLE, &mount.name, 1, found.into_iter().collect());
    }
}

/// The files of all hosts, as the store has them.
async fn stored(shared: &Shared) -> Result<Files, String> {
    let client = shared.client();
    let mut files = BTreeMap::new();
    for host in 0..shared.mounts.len() {
        let (_, items) = store::range(&client, &key(&dir(host)), FINAL_TIMEOUT)
            .await
            .map_err(|error| error.to_string())?;
        for (key, record) in items {
            let path = key.to_string();
            let name = path.rsplit('/').next().unwrap_or_default();
            if let (true, Some(number)) = (name.starts_with('f'), number(&record.value)) {
                files.insert((host, name.to_string()), number);
            }
        }
    }
    Ok(files)
}

/// Compares the whole tree of one mount with the store's, until they are equal. Other workloads may
/// still be ending, and leases with them.
fn compare(shared: &Shared, host: usize, runtime: &Handle) {
    let mount = &shared.mounts[host];
    let root = on_mount(&mount.path, ROOT);
    let begun = Instant::now();
    loop {
        let stored = runtime.block_on(store_tree(shared));
        // fsync of a directory waits until the mount has everything that was committed before.
        let shown = File::open(&root)
            .and_then(|dir| dir.sync_all())
            .and_then(|()| tree::try_read(&root))
            .map_err(|error| error.to_string());
        let found = match (&stored, &shown) {
            (Ok(stored), Ok(shown)) => tree::difference(("the store", stored), (&mount.name, shown)),
            (stored, shown) => {
                format!("the store: {:?}, the mount: {:?}", stored.as_ref().err(), shown.as_ref().err())
            }
        };
        if found.is_empty() || begun.elapsed() > FINAL_TIMEOUT {
            let checks = stored.map_or(1, |tree| tree.len());
            let found = if found.is_empty() { Vec::new() } else { vec![found] };
            shared.report.verdict(EQUAL, &mount.name, checks, found);
            return;
        }
        std::thread::sleep(LOOK);
    }
}

async fn store_tree(shared: &Shared) -> Result<Tree, String> {
    let (_, items) =
        store::range(&shared.client(), &key(ROOT), FINAL_TIMEOUT).await.map_err(|error| error.to_string())?;
    let prefix = format!("{ROOT}/");
    let entry = |(key, record): &(quorumfs_api::Key, quorumfs_api::Record)| {
        let path = key.to_string();
        let path = path.strip_prefix(&prefix)?;
        let entry = match record.kind {
            Kind::Dir => Entry::Dir,
            Kind::Symlink => Entry::Symlink(String::from_utf8_lossy(&record.value).into_owned().into()),
            // This workload makes no special files: one would show as a difference.
            _ => Entry::File(record.value.to_vec()),
        };
        Some((PathBuf::from(path), entry))
    };
    Ok(items.iter().filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u64) -> Result<Vec<u8>, String> {
        Ok(value(number).into_bytes())
    }

    #[test]
    fn a_newer_value_than_the_event_told_of_is_fine() {
        let mut observer = Observer::default();
        assert_eq!(observer.saw(0, "f1", bytes(3), false), None);
        assert_eq!(observer.saw(0, "f1", bytes(5), false), None);
        assert_eq!(observer.saw(0, "f1", bytes(5), false), None);
        assert!(observer.check_last(&BTreeMap::from([((0, "f1".to_string()), 5)])).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_found() {
        let mut observer = Observer::default();
        assert!(observer.saw(0, "f1", Err("No such file".into()), false).unwrap().contains("No such file"));
        assert!(observer.saw(0, "f1", Ok(Vec::new()), false).is_some(), "empty on another host");
        assert_eq!(observer.saw(0, "f1", Ok(Vec::new()), true), None, "being made on this host");
    }

    #[test]
    fn a_part_of_a_value_is_found() {
        let whole = value(9).into_bytes();
        let mut observer = Observer::default();
        let part = whole[..whole.len() - 1].to_vec();
        assert!(observer.saw(0, "f1", Ok(part), false).unwrap().contains("no whole value"));
    }

    #[test]
    fn going_back_is_found() {
        let mut observer = Observer::default();
        observer.saw(0, "f1", bytes(8), false);
        assert!(observer.saw(0, "f1", bytes(7), false).unwrap().contains("7 was read after 8"));
    }

    #[test]
    fn a_missing_last_event_is_found() {
        let mut observer = Observer::default();
        observer.saw(0, "f1", bytes(8), false);
        let store = BTreeMap::from([((0, "f1".to_string()), 9), ((1, "f2".to_string()), 1)]);
        assert_eq!(observer.check_last(&store).len(), 2);
    }
}
