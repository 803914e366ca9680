//! What a run has done and found.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use parking_lot::Mutex;

/// Violations of one kind that are printed in full; a broken build gives thousands of the same.
const SHOWN_MAX: usize = 4;
/// Bytes of one violation that are printed.
const TEXT_MAX: usize = 6000;

/// How operations ended.
#[derive(Clone, Copy, Debug, Default)]
struct Operations {
    done: u64,
    refused: u64,
    failed: u64,
    unknown: u64,
}

/// How one operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Acknowledged.
    Done,
    /// The store said no.
    Refused,
    /// It surely did not happen.
    Failed,
    /// It may have happened, or may happen later.
    Unknown,
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which promise, in a few words.
    pub what: String,
    /// Where: a key, a mount, a node.
    pub place: String,
    /// What was seen.
    pub seen: String,
}

/// Counts and violations of a run; shared by all of its parts.
#[derive(Default)]
pub struct Report {
    operations: Mutex<BTreeMap<&'static str, Operations>>,
    faults: Mutex<BTreeMap<String, u64>>,
    checks: Mutex<BTreeMap<&'static str, u64>>,
    violations: Mutex<Vec<Violation>>,
}

impl Report {
    /// One more operation of a workload has ended.
    pub fn operation(&self, workload: &'static str, ended: Ended) {
        let mut all = self.operations.lock();
        let counts = all.entry(workload).or_default();
        match ended {
            Ended::Done => counts.done += 1,
            Ended::Refused => counts.refused += 1,
            Ended::Failed => counts.failed += 1,
            Ended::Unknown => counts.unknown += 1,
        }
    }

    /// One more fault was made.
    pub fn fault(&self, name: &str) {
        *self.faults.lock().entry(name.to_string()).or_default() += 1;
    }

    /// So many more checks of a kind were made.
    pub fn checked(&self, check: &'static str, times: usize) {
        *self.checks.lock().entry(check).or_default() += times as u64;
    }

    /// A promise was broken. Said at once, so that it can be put beside the logs.
    pub fn violation(&self, what: impl Into<String>, place: impl Into<String>, seen: impl Into<String>) {
        let violation = Violation { what: what.into(), place: place.into(), seen: seen.into() };
        let mut all = self.violations.lock();
        if all.iter().filter(|before| before.what == violation.what).count() < SHOWN_MAX {
            eprintln!("VIOLATED: {} at {}: {}", violation.what, violation.place, cut(&violation.seen));
        }
        all.push(violation);
    }

    /// Takes over what a checker has found.
    pub fn verdict(&self, check: &'static str, place: &str, checks: usize, found: Vec<String>) {
        self.checked(check, checks);
        for seen in found {
            self.violation(check, place, seen);
        }
    }

    /// Whether everything held.
    pub fn held(&self) -> bool {
        self.violations.lock().is_empty()
    }

    /// Whether at least one operation of each of these workloads was acknowledged: a run in which
    /// nothing happened proves nothing.
    pub fn idle(&self, workloads: &[&'static str]) -> Vec<&'static str> {
        let all = self.operations.lock();
        workloads
            .iter()
            .filter(|name| all.get(*name).is_none_or(|counts| counts.done == 0))
            .copied()
            .collect()
    }

    /// The summary that is printed at the end.
    pub fn summary(&self, replay: &str) -> String {
        let mut out = String::from("operations            done  refused   failed  unknown\n");
        let mut sum = Operations::default();
        for (name, o) in self.operations.lock().iter() {
            let _ =
                writeln!(out, "  {name:<16} {:>8} {:>8} {:>8} {:>8}", o.done, o.refused, o.failed, o.unknown);
            sum.done += o.done;
            sum.refused += o.refused;
            sum.failed += o.failed;
            sum.unknown += o.unknown;
        }
        let _ = writeln!(
            out,
            "  {:<16} {:>8} {:>8} {:>8} {:>8}",
            "all", sum.done, sum.refused, sum.failed, sum.unknown
        );
        for (title, counts) in [
            ("faults", self.faults.lock().clone()),
            ("checks", self.checks.lock().iter().map(|(name, n)| (name.to_string(), *n)).collect()),
        ] {
            let _ = writeln!(out, "{title}: {}", counts.values().sum::<u64>());
            for (name, count) in counts {
                let _ = writeln!(out, "  {count:>8}  {name}");
            }
        }
        let violations = self.violations.lock();
        let _ = writeln!(out, "violations: {}", violations.len());
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for violation in violations.iter() {
            let count = kinds.entry(&violation.what).or_default();
            *count += 1;
            if *count > SHOWN_MAX {
                continue;
            }
            let _ = writeln!(
                out,
                "\nVIOLATED  {}\n  where   {}\n  seen    {}\n  replay  {replay}",
                violation.what,
                violation.place,
                cut(&violation.seen).replace('\n', "\n          "),
            );
        }
        for (what, count) in kinds {
            let _ = writeln!(out, "{count:>8}  times violated: {what}");
        }
        out
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        None => text.to_string(),
        Some((end, _)) => format!("{} ... ({} bytes in all)", &text[..end], text.len()),
    }
}
