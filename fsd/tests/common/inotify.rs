//! Events as a program gets them.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// All events of some files and directories.
pub struct Watcher {
    fd: OwnedFd,
    labels: HashMap<i32, String>,
    pending: VecDeque<String>,
}

impl Watcher {
    pub fn new() -> Watcher {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        Watcher { fd, labels: HashMap::new(), pending: VecDeque::new() }
    }

    /// Watches a path; events are shown with `label`.
    pub fn watch(&mut self, path: &Path, label: &str) {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MODIFY
            | WatchFlags::MOVE_SELF
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::OPEN
            | WatchFlags::CLOSE_WRITE;
        let wd = inotify::add_watch(&self.fd, path, flags).unwrap();
        self.labels.insert(wd, label.to_string());
    }

    /// Events until one is called `last`, each as `label EVENT name`.
    pub fn until(&mut self, last: &str) -> Vec<String> {
        self.collect(|event| event.contains(last), Duration::from_secs(10))
    }

    pub fn collect(&mut self, is_last: impl Fn(&str) -> bool, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        let mut events = Vec::new();
        loop {
            while let Some(line) = self.pending.pop_front() {
                let over = is_last(&line);
                events.push(line);
                if over {
                    return events;
                }
            }
            self.read();
            if self.pending.is_empty() {
                assert!(Instant::now() < deadline, "the last event did not come; so far: {events:#?}");
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
    }

    /// Takes over what is there now: what comes after the last event that is wanted belongs to the next look.
    fn read(&mut self) {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 16384];
        let mut reader = Reader::new(&self.fd, &mut buffer);
        while let Ok(event) = reader.next() {
            let names: Vec<String> = event.events().iter_names().map(|(name, _)| name.to_string()).collect();
            let name = event.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let label = self.labels.get(&event.wd()).cloned().unwrap_or_default();
            self.pending.push_back(format!("{label} {} {name}", names.join("|")).trim_end().to_string());
            if reader.is_buffer_empty() {
                break;
            }
        }
    }
}

#[allow(unused_imports)]
use ReadFlags as _;
