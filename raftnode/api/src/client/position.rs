//! Where a watch is in the store's history. Pure: it decides what of a node's frames may be shown, so
//! that a watcher never goes back and never sees an event twice, whichever node it is resumed at.

use crate::event::Event;
use crate::record::Revision;
use crate::wire::{WatchFrame, WatchStart};

/// See the module.
#[derive(Debug)]
pub(super) struct Position {
    start: WatchStart,
    /// Everything up to here was shown.
    seen: Option<Revision>,
    /// Revision of the copy that is being shown.
    copying: Option<Revision>,
}

/// What to do with a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Accept {
    /// Show it (of events: those that are new).
    Show(WatchFrame),
    /// It brings nothing new.
    Skip,
    /// The node does not keep to the protocol; leave it.
    Reject(String),
}

impl Position {
    pub fn new(start: WatchStart) -> Position {
        Position { seen: start.after, start, copying: None }
    }

    /// What to ask the next node for.
    pub fn resume(&mut self) -> WatchStart {
        // An unfinished copy is void: the next node begins again from what was whole.
        self.copying = None;
        WatchStart { after: self.seen, ..self.start.clone() }
    }

    pub fn accept(&mut self, frame: WatchFrame) -> Accept {
        match frame {
            WatchFrame::CopyBegin { revision, .. } => {
                if let Some(seen) = self.seen.filter(|seen| revision < *seen) {
                    return Accept::Reject(format!(
                        "a copy of revision {revision} came after revision {seen}"
                    ));
                }
                self.copying = Some(revision);
                Accept::Show(frame)
            }
            WatchFrame::CopyPart(_) if self.copying.is_none() => {
                Accept::Reject("a part of a copy came without its beginning".into())
            }
            WatchFrame::CopyPart(_) => Accept::Show(frame),
            WatchFrame::CopyEnd => match self.copying.take() {
                Some(revision) => {
                    self.seen = Some(revision);
                    Accept::Show(frame)
                }
                None => Accept::Reject("the end of a copy came without its beginning".into()),
            },
            WatchFrame::Events(events) => self.events(events),
            WatchFrame::Progress(revision) => match (self.copying, self.seen) {
                (None, Some(seen)) if revision >= seen => {
                    self.seen = Some(revision);
                    Accept::Show(frame)
                }
                (None, None) => Accept::Reject("progress came before the copy that was asked for".into()),
                // A node that is behind what another one showed.
                _ => Accept::Skip,
            },
            WatchFrame::Compacted(_) | WatchFrame::Rights(_) => Accept::Show(frame),
        }
    }

    fn events(&mut self, mut events: Vec<Event>) -> Accept {
        if self.copying.is_some() {
            return Accept::Reject("events came in the middle of a copy".into());
        }
        let Some(seen) = self.seen else {
            return Accept::Reject("events came before the copy that was asked for".into());
        };
        if !events.windows(2).all(|two| two[0].revision < two[1].revision) {
            return Accept::Reject("events came out of order".into());
        }
        events.retain(|event| event.revision > seen);
        match events.last() {
            None => Accept::Skip,
            Some(last) => {
                self.seen = Some(last.revision);
                Accept::Show(WatchFrame::Events(events))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::key::Key;
    use crate::record::Timestamp;

    fn event(revision: u64) -> Event {
        Event { revision, time: Timestamp(0), session: None, author: String::new(), changes: Vec::new() }
    }
    fn from_copy() -> Position {
        Position::new(WatchStart { prefix: Key::root(), after: None, copy_when_behind: true })
    }
    fn begin(revision: u64) -> WatchFrame {
        WatchFrame::CopyBegin { revision, root: None }
    }

    #[test]
    fn a_copy_then_events_then_resume_where_it_was() {
        let mut position = from_copy();
        assert_eq!(position.resume().after, None);
        assert_eq!(position.accept(begin(7)), Accept::Show(begin(7)));
        assert_eq!(position.resume().after, None, "half a copy is none");
        assert!(matches!(position.accept(WatchFrame::CopyEnd), Accept::Reject(_)));
        position.accept(begin(7));
        position.accept(WatchFrame::CopyPart(Vec::new()));
        position.accept(WatchFrame::CopyEnd);
        assert_eq!(position.resume().after, Some(7));
        let frame = WatchFrame::Events(vec![event(7), event(9)]);
        assert_eq!(position.accept(frame), Accept::Show(WatchFrame::Events(vec![event(9)])));
        assert_eq!(position.accept(WatchFrame::Progress(12)), Accept::Show(WatchFrame::Progress(12)));
        assert_eq!(position.resume().after, Some(12));
    }

    #[test]
    fn a_node_that_is_behind_cannot_take_us_back() {
        let mut position =
            Position::new(WatchStart { prefix: Key::root(), after: Some(10), copy_when_behind: true });
        assert_eq!(position.accept(WatchFrame::Progress(4)), Accept::Skip);
        assert_eq!(position.accept(WatchFrame::Events(vec![event(9), event(10)])), Accept::Skip);
        assert!(matches!(position.accept(begin(9)), Accept::Reject(_)));
        assert_eq!(position.resume().after, Some(10));
    }

    fn frames() -> impl Strategy<Value = Option<WatchFrame>> {
        prop_oneof![
            (0u64..30).prop_map(|r| Some(begin(r))),
            Just(Some(WatchFrame::CopyPart(Vec::new()))),
            Just(Some(WatchFrame::CopyEnd)),
            proptest::collection::vec(0u64..30, 0..4)
                .prop_map(|rs| Some(WatchFrame::Events(rs.into_iter().map(event).collect()))),
            (0u64..30).prop_map(|r| Some(WatchFrame::Progress(r))),
            Just(None),
        ]
    }

    proptest! {
        #[test]
        fn what_is_shown_only_goes_forward(all in proptest::collection::vec(frames(), 0..60)) {
            let mut position = from_copy();
            let mut seen = 0;
            let mut copying = None;
            for frame in all {
                let Some(frame) = frame else {
                    prop_assert!(position.resume().after.unwrap_or(0) >= seen);
                    copying = None;
                    continue;
                };
                match position.accept(frame) {
                    Accept::Show(WatchFrame::CopyBegin { revision, .. }) => {
                        prop_assert!(revision >= seen);
                        copying = Some(revision);
                    }
                    Accept::Show(WatchFrame::CopyEnd) => seen = copying.take().unwrap(),
                    Accept::Show(WatchFrame::Events(events)) => {
                        prop_assert!(copying.is_none() && !events.is_empty());
                        for event in events {
                            prop_assert!(event.revision > seen);
                            seen = event.revision;
                        }
                    }
                    Accept::Show(WatchFrame::Progress(revision)) => {
                        prop_assert!(copying.is_none() && revision >= seen);
                        seen = revision;
                    }
                    Accept::Show(_) | Accept::Skip => {}
                    // The connection is left, and the next node asked.
                    Accept::Reject(_) => {
                        position.resume();
                        copying = None;
                    }
                }
            }
        }
    }
}
