//! Whether the history of one register is linearizable: Wing and Gong's search with Lowe's memory of
//! what was tried, pruned by the revisions that the store gave to the operations.
//!
//! A write whose fate is unknown stays pending for ever: it may take effect at any time after its
//! call, or never. The store numbers its changes, so an order that contradicts the numbers is no
//! order of the store: that prunes the search to almost nothing, and checks the numbers as well.

use std::collections::{HashMap, HashSet};

use crate::shared::Micros;

/// States that one check may look at before it gives up.
const STATES_MAX: usize = 200_000;

/// What an operation was, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The register was set; its revision, if it was acknowledged.
    Write {
        /// What was written.
        value: u64,
        /// The revision of it.
        revision: Option<u64>,
    },
    /// The register was read.
    Read {
        /// What was read; `None` if there was nothing.
        value: Option<u64>,
        /// The revision that wrote it, and the revision of the answer, where the reader was told of them: a
        /// mount tells neither.
        revisions: Option<Revisions>,
    },
    /// Compare and swap (`None` expects nothing to be there): whether it swapped, and its revision.
    Swap {
        /// What had to be there.
        expected: Option<u64>,
        /// What takes its place.
        value: u64,
        /// Whether it did; `None` if nobody knows.
        swapped: Option<bool>,
        /// The revision of the answer.
        revision: Option<u64>,
    },
}

/// What the store says with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revisions {
    /// The revision that wrote it, 0 for nothing.
    pub modified: u64,
    /// The revision of the answer.
    pub answer: u64,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// When it was called.
    pub call: Micros,
    /// When it returned; `None` if its fate is unknown.
    pub ret: Option<Micros>,
    /// What it was.
    pub kind: Kind,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Legal,
    /// There is none; why.
    Illegal(String),
    /// The search was given up.
    Unknown(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    value: Option<u64>,
    /// The latest revision that is known to be behind.
    revision: u64,
}

/// Decides. All values written to one register must be different.
pub fn check(history: &[Operation]) -> Verdict {
    match complete(history) {
        Ok(history) => search(&history),
        Err(why) => Verdict::Illegal(why),
    }
}

/// Gives writes whose answer was lost the revision that a read has told of them.
fn complete(history: &[Operation]) -> Result<Vec<Operation>, String> {
    let mut writers = HashMap::new();
    for (index, operation) in history.iter().enumerate() {
        if let Kind::Write { value, .. } | Kind::Swap { value, .. } = operation.kind
            && writers.insert(value, index).is_some()
        {
            return Err(format!("the harness wrote {value} twice: {operation:?}"));
        }
    }
    let mut completed = history.to_vec();
    let mut seen = HashSet::new();
    for read in history {
        let Kind::Read { value: Some(value), revisions } = read.kind else { continue };
        let Some(index) = writers.get(&value) else {
            return Err(format!("a value was read that nobody wrote: {read:?}"));
        };
        let (Kind::Write { revision, .. } | Kind::Swap { revision, .. }) = &mut completed[*index].kind else {
            continue;
        };
        let Some(Revisions { modified, .. }) = revisions else {
            seen.insert(*index);
            continue;
        };
        match revision {
            Some(known) if *known != modified => {
                return Err(format!("{:?} was read as written at {modified}: {read:?}", history[*index]));
            }
            _ => *revision = Some(modified),
        }
    }
    // A write of unknown fate that nobody has read can be taken to have never happened, and each one
    // that is left out halves the search. Only a swap that failed may owe it to such a write.
    let failed = |operation: &Operation| matches!(operation.kind, Kind::Swap { swapped: Some(false), .. });
    if !completed.iter().any(failed) {
        let mut index = 0;
        completed.retain(|operation| {
            index += 1;
            operation.ret.is_some()
                || seen.contains(&(index - 1))
                || matches!(
                    operation.kind,
                    Kind::Write { revision: Some(_), .. } | Kind::Swap { revision: Some(_), .. }
                )
        });
    }
    Ok(completed)
}

fn step(state: State, kind: &Kind) -> Option<State> {
    let later = |revision: Option<u64>| match revision {
        None => Some(state.revision),
        Some(revision) => (revision > state.revision).then_some(revision),
    };
    match *kind {
        Kind::Write { value, revision } => {
            later(revision).map(|revision| State { value: Some(value), revision })
        }
        Kind::Read { value, revisions } => {
            let revision = revisions.map_or(state.revision, |revisions| revisions.answer);
            (value == state.value && revision >= state.revision).then_some(State { value, revision })
        }
        Kind::Swap { expected, value, swapped, revision } => match swapped {
            Some(false) => {
                let revision = revision.unwrap_or(state.revision);
                (expected != state.value && revision >= state.revision)
                    .then_some(State { value: state.value, revision })
            }
            // Of one whose fate is unknown only the swap matters: else nothing has happened.
            _ if expected == state.value => {
                later(revision).map(|revision| State { value: Some(value), revision })
            }
            _ => None,
        },
    }
}

struct Frame {
    state: State,
    candidates: Vec<usize>,
    chosen: Option<usize>,
}

fn search(history: &[Operation]) -> Verdict {
    let mut done = vec![false; history.len()];
    let mut left = history.iter().filter(|operation| operation.ret.is_some()).count();
    let mut seen: HashSet<(Vec<bool>, State)> = HashSet::new();
    let mut stack =
        vec![Frame { state: State::default(), candidates: candidates(history, &done), chosen: None }];
    let mut best: (usize, Vec<bool>, State) = (usize::MAX, done.clone(), State::default());
    while let Some(frame) = stack.last_mut() {
        if left == 0 {
            return Verdict::Legal;
        }
        if let Some(index) = frame.chosen.take() {
            done[index] = false;
            left += usize::from(history[index].ret.is_some());
        }
        let Some(index) = frame.candidates.pop() else {
            stack.pop();
            continue;
        };
        let Some(state) = step(frame.state, &history[index].kind) else { continue };
        done[index] = true;
        if !seen.insert((done.clone(), state)) {
            done[index] = false;
            continue;
        }
        if seen.len() > STATES_MAX {
            return Verdict::Unknown(format!("{STATES_MAX} states were not enough"));
        }
        left -= usize::from(history[index].ret.is_some());
        frame.chosen = Some(index);
        if left < best.0 {
            best = (left, done.clone(), state);
        }
        let candidates = candidates(history, &done);
        stack.push(Frame { state, candidates, chosen: None });
    }
    if left == 0 { Verdict::Legal } else { Verdict::Illegal(explain(history, &best.1, best.2)) }
}

/// What may come next: what was called before anything else that is not placed yet has returned.
/// The likeliest is last: acknowledged before unknown, and by revision.
fn candidates(history: &[Operation], done: &[bool]) -> Vec<usize> {
    let open = || history.iter().zip(done).enumerate().filter(|(_, (_, done))| !**done);
    let first = open().filter_map(|(_, (operation, _))| operation.ret).min().unwrap_or(Micros::MAX);
    let mut found: Vec<usize> =
        open().filter(|(_, (operation, _))| operation.call <= first).map(|(index, _)| index).collect();
    let order = |index: &usize| match history[*index].kind {
        Kind::Write { revision, .. } | Kind::Swap { revision, .. } => {
            (history[*index].ret.is_none(), revision.unwrap_or(u64::MAX), 0)
        }
        // At one revision the write comes before those who read it.
        Kind::Read { revisions, .. } => (false, revisions.map_or(0, |revisions| revisions.answer), 1),
    };
    found.sort_by_key(|index| std::cmp::Reverse(order(index)));
    found
}

fn explain(history: &[Operation], done: &[bool], state: State) -> String {
    let mut stuck: Vec<&Operation> =
        history.iter().zip(done).filter(|(_, done)| !**done).map(|(operation, _)| operation).collect();
    stuck.sort_by_key(|operation| operation.call);
    let lines: Vec<String> = stuck.iter().take(12).map(|operation| format!("  {operation:?}")).collect();
    format!(
        "no order explains the history; the longest ends with {state:?} after {} of {} operations, and none of these can follow:\n{}",
        done.iter().filter(|done| **done).count(),
        history.len(),
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(call: u64, ret: u64, value: u64, revision: u64) -> Operation {
        Operation { call, ret: Some(ret), kind: Kind::Write { value, revision: Some(revision) } }
    }
    fn lost(call: u64, value: u64) -> Operation {
        Operation { call, ret: None, kind: Kind::Write { value, revision: None } }
    }
    fn read(call: u64, ret: u64, value: u64, modified: u64, answer: u64) -> Operation {
        let revisions = Some(Revisions { modified, answer });
        Operation { call, ret: Some(ret), kind: Kind::Read { value: Some(value), revisions } }
    }
    fn on_mount(call: u64, ret: u64, value: u64) -> Operation {
        Operation { call, ret: Some(ret), kind: Kind::Read { value: Some(value), revisions: None } }
    }
    fn swap(call: u64, ret: u64, expected: u64, value: u64, swapped: bool, revision: u64) -> Operation {
        let kind =
            Kind::Swap { expected: Some(expected), value, swapped: Some(swapped), revision: Some(revision) };
        Operation { call, ret: Some(ret), kind }
    }
    fn illegal(history: &[Operation]) -> bool {
        matches!(check(history), Verdict::Illegal(_))
    }

    #[test]
    fn concurrent_operations_may_take_either_order() {
        let reads = [read(12, 18, 1, 5, 5), read(13, 30, 2, 6, 7)];
        let legal = [write(0, 10, 1, 5), write(11, 20, 2, 6), reads[0], reads[1]];
        assert_eq!(check(&legal), Verdict::Legal);
        assert_eq!(check(&[]), Verdict::Legal);
    }

    #[test]
    fn a_stale_read_is_found() {
        assert!(illegal(&[write(0, 10, 1, 5), write(11, 20, 2, 6), read(21, 30, 1, 5, 5)]));
        // Also where the answer claims to be new.
        assert!(illegal(&[write(0, 10, 1, 5), write(11, 20, 2, 6), read(21, 30, 1, 5, 9)]));
        let nothing = Kind::Read { value: None, revisions: Some(Revisions { modified: 0, answer: 9 }) };
        assert!(illegal(&[write(0, 10, 1, 5), Operation { call: 11, ret: Some(12), kind: nothing }]));
    }

    #[test]
    fn a_stale_read_on_a_mount_is_found() {
        let writes = [write(0, 10, 1, 5), write(11, 20, 2, 6), lost(30, 3)];
        let history = |reads: &[Operation]| [writes.as_slice(), reads].concat();
        assert_eq!(check(&history(&[on_mount(15, 30, 1), on_mount(40, 50, 2)])), Verdict::Legal);
        assert!(illegal(&history(&[on_mount(21, 30, 1)])), "the second write was acknowledged before");
        assert_eq!(check(&history(&[on_mount(40, 50, 3), read(51, 60, 3, 9, 9)])), Verdict::Legal);
        assert!(illegal(&history(&[on_mount(40, 50, 3), on_mount(51, 60, 2)])), "it went back");
    }

    #[test]
    fn reads_that_go_back_are_found() {
        let history = [write(0, 10, 1, 5), write(11, 90, 2, 6), read(20, 30, 2, 6, 6), read(31, 40, 1, 5, 5)];
        assert!(illegal(&history));
    }

    #[test]
    fn a_lost_write_is_found_and_an_unknown_one_may_be_either() {
        let unknown = [write(0, 10, 1, 5), lost(11, 2), read(40, 50, 1, 5, 5)];
        assert_eq!(check(&unknown), Verdict::Legal);
        let later = [unknown.as_slice(), &[read(60, 70, 2, 8, 8), read(80, 90, 2, 8, 9)]].concat();
        assert_eq!(check(&later), Verdict::Legal);
        assert!(illegal(&[later.as_slice(), &[read(91, 99, 1, 5, 9)]].concat()), "it cannot be undone");
        assert!(illegal(&[read(0, 1, 7, 1, 1)]), "nobody wrote it");
        assert!(illegal(&[lost(20, 3), read(0, 10, 3, 4, 4)]), "it was read before it was called");
    }

    #[test]
    fn a_write_that_was_applied_twice_is_found() {
        let twice = [
            write(0, 10, 1, 5),
            read(11, 12, 1, 5, 5),
            write(13, 20, 2, 6),
            read(21, 22, 2, 6, 6),
            read(31, 32, 1, 7, 7),
        ];
        assert!(illegal(&twice));
    }

    #[test]
    fn two_swaps_from_one_value_are_found() {
        let one = [write(0, 10, 1, 5), swap(11, 20, 1, 2, true, 6), swap(12, 21, 1, 3, false, 6)];
        assert_eq!(check(&one), Verdict::Legal);
        let both = [write(0, 10, 1, 5), swap(11, 20, 1, 2, true, 6), swap(12, 21, 1, 3, true, 7)];
        assert!(illegal(&both));
        let none = [write(0, 10, 1, 5), swap(11, 20, 1, 2, false, 6)];
        assert!(illegal(&none), "nothing stood in its way");
    }

    #[test]
    fn revisions_that_contradict_time_are_found() {
        assert!(illegal(&[write(0, 10, 1, 9), write(11, 20, 2, 6)]));
    }

    #[test]
    fn a_long_history_with_many_unknown_writes_is_decided() {
        let mut history = Vec::new();
        for n in 0..60 {
            history.push(write(n * 10, n * 10 + 15, n + 1, n + 10));
            history.push(lost(n * 10 + 1, 1000 + n));
            history.push(read(n * 10 + 16, n * 10 + 18, n + 1, n + 10, n + 10));
        }
        // Each read comes while the next write is under way.
        assert_eq!(check(&history), Verdict::Legal);
        history.push(read(700, 710, 59, 68, 68));
        assert!(illegal(&history));
    }
}
