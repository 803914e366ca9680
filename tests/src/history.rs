//! What was done on one host, operation by operation, and whether what another host saw agrees.

use std::collections::HashMap;
use std::path::Path;

use crate::follower::{Graph, Node, Observation, Said, Slot, TOP};

/// A file, directory or symlink, by a number that is never used again.
type Object = usize;

/// What a name stands for from an operation on.
#[derive(Clone, Debug)]
struct State {
    since: usize,
    node: Option<Node>,
    object: Object,
}

/// All operations that succeeded, and what each name stood for after each of them.
#[derive(Default)]
pub struct History {
    graph: Graph,
    /// Which object each name stands for.
    objects: HashMap<Slot, Object>,
    /// What each name became, with the number of the operation.
    states: HashMap<Slot, Vec<State>>,
    /// What each file held, with the number of the operation, whatever its name was.
    values: HashMap<Object, Vec<(usize, Vec<u8>)>>,
    /// What each operation makes watchers say.
    sayings: Vec<Vec<(Said, Slot)>>,
    attempts: usize,
}

impl History {
    /// All names as they are now.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The name at the end of a path, whether it stands for something or not; `None` if its directory
    /// is not there.
    pub fn slot(&self, path: &Path) -> Option<Slot> {
        let mut dir = TOP;
        let name = path.file_name()?;
        for part in path.parent()? {
            match self.graph.get(&(dir, part.to_os_string())) {
                Some(Node::Dir(number)) => dir = *number,
                _ => return None,
            }
        }
        Some((dir, name.to_os_string()))
    }

    /// What is at the end of a path.
    pub fn node(&self, path: &Path) -> Option<&Node> {
        self.graph.get(&self.slot(path)?)
    }

    /// How many operations were done.
    pub fn len(&self) -> usize {
        self.sayings.len()
    }

    /// Whether nothing was done.
    pub fn is_empty(&self) -> bool {
        self.sayings.is_empty()
    }

    /// How many were tried.
    pub fn attempts(&self) -> usize {
        self.attempts
    }

    /// One more was tried.
    pub fn attempted(&mut self) {
        self.attempts += 1;
    }

    /// A file has this value, and was made if need be.
    #[track_caller]
    pub fn write(&mut self, path: &Path, value: Vec<u8>) {
        let slot = self.slot(path).expect("its directory is there");
        let said = if self.graph.contains_key(&slot) { Said::Modified } else { Said::Created };
        let mut sayings = vec![(said, slot.clone())];
        if said == Said::Created {
            sayings.push((Said::Modified, slot.clone()));
        }
        // The number of the operation that made it is as good a number as any.
        let object = self.objects.get(&slot).copied().unwrap_or(self.sayings.len());
        self.values.entry(object).or_default().push((self.sayings.len(), value.clone()));
        self.set(slot, Some(Node::File(value)), object);
        self.sayings.push(sayings);
    }

    /// Something was added to a file.
    #[track_caller]
    pub fn append(&mut self, path: &Path, data: &[u8]) {
        let Some(Node::File(old)) = self.node(path) else {
            panic!("{path:?} is no file, and took an append")
        };
        self.write(path, [old, data].concat());
    }

    /// A directory or symlink was made.
    #[track_caller]
    pub fn create(&mut self, path: &Path, node: Node) {
        let slot = self.slot(path).expect("its directory is there");
        self.set(slot.clone(), Some(node), self.sayings.len());
        self.sayings.push(vec![(Said::Created, slot)]);
    }

    /// Something is gone.
    #[track_caller]
    pub fn remove(&mut self, path: &Path) {
        let slot = self.slot(path).expect("its directory is there");
        self.set(slot.clone(), None, 0);
        self.sayings.push(vec![(Said::Deleted, slot)]);
    }

    /// Something has another name.
    #[track_caller]
    pub fn rename(&mut self, from: &Path, to: &Path) {
        let (from, to) =
            (self.slot(from).expect("it was there"), self.slot(to).expect("its directory is there"));
        let (node, object) =
            (self.graph.get(&from).cloned(), self.objects.get(&from).copied().unwrap_or_default());
        self.set(from.clone(), None, 0);
        self.set(to.clone(), node, object);
        self.sayings.push(vec![(Said::Left, from), (Said::Came, to)]);
    }

    fn set(&mut self, slot: Slot, node: Option<Node>, object: Object) {
        match &node {
            Some(node) => {
                self.graph.insert(slot.clone(), node.clone());
                self.objects.insert(slot.clone(), object);
            }
            None => {
                self.graph.remove(&slot);
                self.objects.remove(&slot);
            }
        }
        self.states.entry(slot).or_default().push(State { since: self.sayings.len(), node, object });
    }

    /// What a name stood for at operation `from`, and after each later one that changed it.
    fn states(&self, slot: &Slot, from: usize) -> impl Iterator<Item = State> + '_ {
        let states = self.states.get(slot).map(Vec::as_slice).unwrap_or_default();
        let next = states.partition_point(|state| state.since <= from);
        let now = match next.checked_sub(1) {
            Some(n) => State { since: from, ..states[n].clone() },
            None => State { since: from, node: None, object: 0 },
        };
        std::iter::once(now).chain(states[next..].iter().cloned())
    }

    /// The first operation from number `from` on after which the file held `value`.
    fn held(&self, object: Object, value: &[u8], from: usize) -> Option<usize> {
        let values = self.values.get(&object)?;
        let next = values.partition_point(|(number, _)| *number <= from);
        let now = next.checked_sub(1).map(|n| (from, &values[n].1));
        let later = values[next..].iter().map(|(number, value)| (*number, value));
        now.into_iter().chain(later).find(|(_, held)| *held == value).map(|(number, _)| number)
    }

    /// The first operation that the host can have been at when it showed `node` there.
    ///
    /// A name that the kernel knows is good until its change is replayed, so it may be old, back to the last
    /// event. What it leads to is asked for with every open, and never older than what was seen before; so
    /// is a name that is not there.
    fn first(&self, slot: &Slot, node: &Option<Node>, event: usize, seen: usize) -> Option<usize> {
        match node {
            None => self.states(slot, seen).find(|state| state.node.is_none()).map(|state| state.since),
            Some(Node::File(value)) => self
                .states(slot, event)
                .filter(|state| matches!(state.node, Some(Node::File(_))))
                .filter_map(|state| self.held(state.object, value, seen.max(state.since)))
                .min(),
            Some(_) => {
                let mut states = self.states(slot, event);
                states.find(|state| state.node == *node).map(|state| seen.max(state.since))
            }
        }
    }

    /// The first operation from number `from` on that says this.
    fn said(&self, said: Said, slot: &Slot, from: usize) -> Option<usize> {
        (from..self.sayings.len()).find(|n| self.sayings[*n].iter().any(|(s, at)| (*s, at) == (said, slot)))
    }

    /// Holds what a follower saw against what was done.
    ///
    /// Each event is matched with the first operation that can have caused it and is not before the one
    /// of the last event: if there is none, an event was made up, came twice, or came out of order. As it is
    /// the first, the look that followed must show the state after it or a later one; and as a host goes
    /// through one order, no look may show an older value than the last look did.
    #[track_caller]
    pub fn check(&self, observations: &[Observation]) {
        let (mut event, mut seen) = (0, 0);
        for (position, observation) in observations.iter().enumerate() {
            let Observation { said, slot, seen: node } = observation;
            if !matches!(said, Said::Scan | Said::Closed) {
                event = self.said(*said, slot, event).unwrap_or_else(|| {
                    panic!(
                        "no operation from number {event} on gives {}",
                        self.context(observations, position)
                    )
                });
                seen = seen.max(event);
            }
            seen = self.first(slot, node, event, seen).unwrap_or_else(|| {
                panic!(
                    "the event is of operation {event}, and from number {seen} on the name never stood for that: {}",
                    self.context(observations, position)
                )
            });
        }
    }

    /// An observation, those before it, and what was done to its name, for a message.
    fn context(&self, observations: &[Observation], position: usize) -> String {
        let before: Vec<String> = observations[position.saturating_sub(12)..position]
            .iter()
            .map(|o| format!("    {o:?}"))
            .collect();
        let slot = &observations[position].slot;
        let states: Vec<String> =
            self.states.get(slot).into_iter().flatten().map(|state| format!("    {state:?}")).collect();
        let said: Vec<String> = (0..self.sayings.len())
            .filter(|n| self.sayings[*n].iter().any(|(_, at)| at == slot))
            .map(|n| format!("    {n} {:?}", self.sayings[n]))
            .collect();
        format!(
            "{:?}\nbefore it:\n{}\nstates of the name:\n{}\noperations on it:\n{}",
            observations[position],
            before.join("\n"),
            states.join("\n"),
            said.join("\n")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(said: Said, name: &str, text: Option<&str>) -> Observation {
        let seen = text.map(|text| Node::File(text.as_bytes().to_vec()));
        Observation { said, slot: (TOP, name.into()), seen }
    }

    fn history() -> History {
        let mut history = History::default();
        history.write(Path::new("f"), b"one".to_vec());
        history.write(Path::new("f"), b"two".to_vec());
        history.rename(Path::new("f"), Path::new("g"));
        history
    }

    #[test]
    fn a_newer_value_is_fine() {
        history().check(&[
            observation(Said::Created, "f", Some("two")),
            observation(Said::Modified, "f", None),
            observation(Said::Left, "f", None),
            observation(Said::Came, "g", Some("two")),
        ]);
    }

    #[test]
    #[should_panic(expected = "never stood")]
    fn an_older_value_is_found() {
        history().check(&[
            observation(Said::Created, "f", Some("two")),
            observation(Said::Modified, "f", Some("one")),
        ]);
    }

    #[test]
    #[should_panic(expected = "no operation")]
    fn a_made_up_event_is_found() {
        history()
            .check(&[observation(Said::Created, "f", Some("one")), observation(Said::Deleted, "f", None)]);
    }
}
