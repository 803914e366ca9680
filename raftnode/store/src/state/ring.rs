//! The newest events, in memory: a watcher that keeps up never touches the tables.

use std::collections::VecDeque;
use std::sync::Arc;

use quorumfs_api::event::Event;
use quorumfs_api::record::Revision;
use quorumfs_machine::event_bytes;

/// Most events that it holds.
const EVENTS: usize = 65_536;
/// Most bytes that it holds; the newest event always stays.
const BYTES: usize = 64 << 20;

#[derive(Debug, Default)]
pub(crate) struct Ring {
    events: VecDeque<(Arc<Event>, usize)>,
    bytes: usize,
    newest: Revision,
}

impl Ring {
    /// Empty, where `newest` is the revision of the state.
    pub fn new(newest: Revision) -> Ring {
        Ring { newest, ..Ring::default() }
    }

    pub fn push(&mut self, event: Arc<Event>) {
        if event.revision != self.newest + 1 {
            self.events.clear();
            self.bytes = 0;
        }
        self.newest = event.revision;
        let bytes = event_bytes(&event);
        self.bytes += bytes;
        self.events.push_back((event, bytes));
        while self.events.len() > EVENTS || (self.bytes > BYTES && self.events.len() > 1) {
            if let Some((_, bytes)) = self.events.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    /// The events after `after`, at most `max` and about `max_bytes`, but one if there is one; `None`
    /// when the ring does not reach back so far.
    pub fn after(&self, after: Revision, max: usize, max_bytes: usize) -> Option<Vec<Arc<Event>>> {
        if after >= self.newest {
            return Some(Vec::new());
        }
        let oldest = self.newest + 1 - self.events.len() as u64;
        let skip = (after + 1).checked_sub(oldest)?;
        let mut events = Vec::new();
        let mut left = max_bytes;
        for (event, bytes) in self.events.range(skip as usize..).take(max) {
            events.push(event.clone());
            if *bytes >= left {
                break;
            }
            left -= bytes;
        }
        Some(events)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use quorumfs_api::record::Timestamp;

    fn event(revision: Revision) -> Arc<Event> {
        Arc::new(Event {
            revision,
            time: Timestamp(0),
            session: None,
            author: String::new(),
            changes: Vec::new(),
        })
    }

    fn revisions(ring: &Ring, after: Revision, max: usize) -> Option<Vec<Revision>> {
        Some(ring.after(after, max, usize::MAX)?.iter().map(|event| event.revision).collect())
    }

    #[test]
    fn a_ring_gives_what_it_holds_and_says_when_it_does_not() {
        let mut ring = Ring::new(10);
        assert_eq!(revisions(&ring, 10, 9), Some(vec![]));
        assert_eq!(revisions(&ring, 9, 9), None, "what was before it was made is in the tables");
        for revision in 11..=15 {
            ring.push(event(revision));
        }
        assert_eq!(revisions(&ring, 10, 9), Some(vec![11, 12, 13, 14, 15]));
        assert_eq!(revisions(&ring, 13, 1), Some(vec![14]));
        assert_eq!(revisions(&ring, 15, 9), Some(vec![]));
        assert_eq!(revisions(&ring, 9, 9), None);
        assert_eq!(ring.after(10, 9, 1).unwrap().len(), 1, "one always fits");
        ring.push(event(20));
        assert_eq!(revisions(&ring, 15, 9), None, "it never skips a revision");
    }
}
