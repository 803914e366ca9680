//! inotify(7), thin: watches have labels, events are kept with their time, and a sequence can be
//! written down as text such as `CREATE f; OPEN f; MODIFY f; CLOSE_WRITE f`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// The names of inotify(7), in the order in which they are written when an event has several.
const NAMES: [(ReadFlags, &str); 15] = [
    (ReadFlags::CREATE, "CREATE"),
    (ReadFlags::DELETE, "DELETE"),
    (ReadFlags::MOVED_FROM, "MOVED_FROM"),
    (ReadFlags::MOVED_TO, "MOVED_TO"),
    (ReadFlags::OPEN, "OPEN"),
    (ReadFlags::ACCESS, "ACCESS"),
    (ReadFlags::MODIFY, "MODIFY"),
    (ReadFlags::ATTRIB, "ATTRIB"),
    (ReadFlags::CLOSE_WRITE, "CLOSE_WRITE"),
    (ReadFlags::CLOSE_NOWRITE, "CLOSE_NOWRITE"),
    (ReadFlags::DELETE_SELF, "DELETE_SELF"),
    (ReadFlags::MOVE_SELF, "MOVE_SELF"),
    (ReadFlags::UNMOUNT, "UNMOUNT"),
    (ReadFlags::QUEUE_OVERFLOW, "Q_OVERFLOW"),
    (ReadFlags::IGNORED, "IGNORED"),
];

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Which watch.
    pub watch: i32,
    /// The label of the watch, empty for the main one.
    pub label: String,
    /// What happened.
    pub mask: ReadFlags,
    /// What joins a MOVED_FROM and its MOVED_TO; else 0.
    pub cookie: u32,
    /// Name in the watched directory.
    pub name: Option<OsString>,
    /// When it was read here.
    pub at: Instant,
}

impl Event {
    /// Whether it is this event for this name.
    pub fn is(&self, mask: ReadFlags, name: &str) -> bool {
        self.mask.contains(mask) && self.name.as_deref().is_some_and(|n| n == name)
    }
}

/// An inotify descriptor and the events that were read from it.
pub struct Inotify {
    descriptor: OwnedFd,
    labels: BTreeMap<i32, String>,
    queue: std::collections::VecDeque<Event>,
}

impl Inotify {
    /// Watches nothing yet.
    pub fn new() -> Inotify {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        Inotify { descriptor, labels: BTreeMap::new(), queue: Default::default() }
    }

    /// Watches one directory for everything.
    #[track_caller]
    pub fn on(path: &Path) -> Inotify {
        let mut inotify = Inotify::new();
        inotify.watch(path, "").unwrap_or_else(|e| panic!("watch of {path:?}: {e}"));
        inotify
    }

    /// Watches one more path for everything. A label that is not empty is put before its events.
    pub fn watch(&mut self, path: &Path, label: &str) -> std::io::Result<i32> {
        let watch = inotify::add_watch(&self.descriptor, path, WatchFlags::ALL_EVENTS)?;
        self.labels.insert(watch, label.to_string());
        Ok(watch)
    }

    /// Ends a watch; an IGNORED event follows.
    pub fn unwatch(&mut self, watch: i32) {
        let _ = inotify::remove_watch(&self.descriptor, watch);
    }

    /// The next event, if one comes in time.
    pub fn next(&mut self, timeout: Duration) -> Option<Event> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            let left = end.saturating_duration_since(Instant::now());
            let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut ready = [PollFd::new(&self.descriptor, PollFlags::IN)];
            match poll(&mut ready, Some(&wait)) {
                Ok(0) => return None,
                Ok(_) => self.read(),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => panic!("poll of inotify: {e}"),
            }
        }
    }

    fn read(&mut self) {
        let mut buffer = [MaybeUninit::uninit(); 64 << 10];
        let mut reader = inotify::Reader::new(&self.descriptor, &mut buffer);
        // `next` would read again when the buffer is used up; what is here now is enough.
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|n| OsString::from_vec(n.to_bytes().to_vec()));
                    let label = self.labels.get(&event.wd()).cloned().unwrap_or_default();
                    self.queue.push_back(Event {
                        watch: event.wd(),
                        label,
                        mask: event.events(),
                        cookie: event.cookie(),
                        name,
                        at: Instant::now(),
                    });
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                Err(e) => panic!("read of inotify: {e}"),
            }
            if reader.is_buffer_empty() {
                return;
            }
        }
    }

    /// All events up to, and without, the one that `last` is true for.
    #[track_caller]
    pub fn until(
        &mut self,
        what: &str,
        timeout: Duration,
        mut last: impl FnMut(&Event) -> bool,
    ) -> Vec<Event> {
        let end = Instant::now() + timeout;
        let mut events = Vec::new();
        loop {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Some(event) if last(&event) => return events,
                Some(event) => events.push(event),
                None => panic!("no event within {timeout:?}: {what}; what came: {}", text(&events)),
            }
        }
    }

    /// All events up to the CREATE of `name`, which the caller makes after what it wants to see.
    #[track_caller]
    pub fn until_created(&mut self, name: &str, timeout: Duration) -> Vec<Event> {
        self.until(&format!("CREATE {name}"), timeout, |e| e.is(ReadFlags::CREATE, name))
    }

    /// Forgets what has come so far.
    pub fn clear(&mut self) {
        while self.next(Duration::ZERO).is_some() {}
    }
}

impl Default for Inotify {
    fn default() -> Inotify {
        Inotify::new()
    }
}

/// Writes a sequence down. Cookies are numbered in order of appearance, so that two sequences with the
/// same meaning have the same text.
pub fn text<'a>(events: impl IntoIterator<Item = &'a Event>) -> String {
    let mut cookies: Vec<u32> = Vec::new();
    let words: Vec<String> = events
        .into_iter()
        .map(|event| {
            let mut word = String::new();
            if !event.label.is_empty() {
                word.push_str(&format!("[{}] ", event.label));
            }
            let kinds: Vec<&str> =
                NAMES.iter().filter(|(flag, _)| event.mask.contains(*flag)).map(|(_, name)| *name).collect();
            word.push_str(&kinds.join("|"));
            if event.mask.contains(ReadFlags::ISDIR) {
                word.push_str(",ISDIR");
            }
            if let Some(name) = &event.name {
                word.push(' ');
                word.push_str(&name.to_string_lossy());
            }
            if event.cookie != 0 {
                let known = cookies.iter().position(|c| *c == event.cookie);
                let number = known.unwrap_or_else(|| {
                    cookies.push(event.cookie);
                    cookies.len() - 1
                });
                word.push_str(&format!(" #{}", number + 1));
            }
            word
        })
        .collect();
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cleanup::Scratch;
    use std::fs;

    #[test]
    fn a_local_file_system_gives_what_the_manual_says() {
        let dir = Scratch::on_tmpfs("inotify");
        let mut inotify = Inotify::on(dir.path());
        fs::write(dir.path().join("f"), "x").unwrap();
        fs::rename(dir.path().join("f"), dir.path().join("g")).unwrap();
        fs::create_dir(dir.path().join("end")).unwrap();
        let events = inotify.until_created("end", Duration::from_secs(5));
        assert_eq!(
            text(&events),
            "CREATE f; OPEN f; MODIFY f; CLOSE_WRITE f; MOVED_FROM f #1; MOVED_TO g #1"
        );
    }
}
