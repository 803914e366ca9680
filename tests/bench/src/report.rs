//! The table: what was measured, what was aimed at, and whether it was met.

use std::fmt::Write;

use serde::Serialize;

use crate::stats::Summary;

/// What was found out about aims that are not met.
const WHERE: &str = include_str!("where.md");

/// What a row is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Aim {
    /// ours / other is to be this or more.
    RatioAtLeast(f64),
    /// ours / other is to be this or less.
    RatioAtMost(f64),
    /// Ours is to be this or less, whatever the other's.
    AtMost(f64),
    /// Ours is to be this or more, whatever the other's.
    AtLeast(f64),
    /// It stands there to be compared; the aim is that of another row.
    None,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Unit of both figures.
    pub unit: &'static str,
    /// Our figure.
    pub ours: f64,
    /// The figure beside it.
    pub other: f64,
    /// Whose that is.
    pub against: &'static str,
    /// `ours / other`.
    pub ratio: f64,
    /// What was aimed at.
    pub aim: Aim,
    /// Whether it was reached, if there is one.
    pub met: Option<bool>,
}

impl Row {
    /// Compares two figures.
    pub fn new(
        what: impl Into<String>,
        unit: &'static str,
        ours: f64,
        other: f64,
        against: &'static str,
        aim: Aim,
    ) -> Row {
        let ratio = ours / other;
        // A figure that is missing (NaN) meets nothing.
        let met = match aim {
            Aim::RatioAtLeast(least) => Some(ratio >= least),
            Aim::RatioAtMost(most) => Some(ratio <= most),
            Aim::AtMost(most) => Some(ours <= most),
            Aim::AtLeast(least) => Some(ours >= least),
            Aim::None => None,
        };
        Row { what: what.into(), unit, ours, other, against, ratio, aim, met }
    }
}

/// Puts at one number of clients, on both sides.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PutLoad {
    /// How many clients.
    pub clients: usize,
    /// Ours.
    pub ours: Summary,
    /// etcd's.
    pub etcd: Summary,
    /// etcd's with TLS.
    pub etcd_tls: Summary,
}

/// All that one run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where and on what.
    pub machine: Machine,
    /// Whether this was a short run.
    pub quick: bool,
    /// The table.
    pub rows: Vec<Row>,
    /// The puts, with everything that was kept of them.
    pub puts: Vec<PutLoad>,
    /// Every other measurement by name.
    pub details: Vec<(String, Summary)>,
}

/// The machine of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Kind of processor.
    pub cpu: String,
    /// How many of them.
    pub cpus: usize,
    /// Main memory in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// File system type under the data.
    pub file_system: String,
    /// Version of etcd.
    pub etcd: String,
}

impl Machine {
    /// Looks around.
    pub fn describe(data: &std::path::Path, etcd: String) -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_string()).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
            file_system: file_system(data, &read("/proc/self/mountinfo")),
            etcd,
        }
    }
}

fn file_system(data: &std::path::Path, mountinfo: &str) -> String {
    let lines = mountinfo.lines().filter_map(|line| {
        let point = line.split(' ').nth(4)?;
        let kind = line.split(" - ").nth(1)?.split(' ').next()?;
        data.starts_with(point).then_some((point.len(), kind))
    });
    lines.max_by_key(|(length, _)| *length).map(|(_, kind)| kind.to_string()).unwrap_or_default()
}

impl Report {
    /// The table as Markdown.
    pub fn table(&self) -> String {
        table(&self.rows)
    }

    /// The page for the documentation.
    pub fn page(&self) -> String {
        let machine = &self.machine;
        let length = if self.quick { "A short run (`--quick`)" } else { "A full run" };
        format!(
            "# Benchmarks\n\n\
             Made by `scripts/bench --publish`; the figures are in [benchmarks.json](benchmarks.json).\n\n\
             {length} on {cpus} × {cpu}, {memory} MiB, Linux {kernel}, data on {fs}, etcd {etcd}.\n\n\
             {table}\n\
             ![Puts a second and their latency](benchmarks.svg)\n\n\
             ## Method\n\n\
             - Everything runs on one machine: three `raftnode` processes and three `etcd` members (default settings) with\n  \
               their data on the same disk, and the clients. The two sides take turns, round by round, so that what\n  \
               else happens on the machine hits both.\n\
             - quorumfs speaks mutual TLS over QUIC, as always; etcd speaks gRPC without TLS, its default, and by that it is judged.\n  \
               The rows \"etcd, TLS\" are beside it: three more members, with mutual TLS among each other and for their clients (TLS\n  \
               1.3, certificates of the same kind). They take their turns in the same rounds, and have no aim.\n\
             - A client is a task with one request under way; clients share up to 16 connections, the same number on both\n  \
               sides. A value has 256 bytes, and the keys are 10,000 in turn. etcd is asked at its leader; so is quorumfs.\n\
             - \"close to event\" is the time from the call of `close` on one mount to the return of `poll` on an inotify\n  \
               descriptor on another mount, with the new value read; etcd's is from the put at the leader to the answer of a watch at a\n  \
               follower.\n\
             - \"put to the last of 1000 watchers\" is from the put to when the last of them has the value; they share 16\n  \
               connections on both sides, and are in one process.\n\
             - \"replayed\" is a burst of 20,000 changes, each of another file, in transactions of 128 with eight under way, on one node\n  \
               with one mount: from the first put until a watcher of the directory has 20,000 CLOSE_WRITE. The kernel\n  \
               holds the files that are updated. The figure is the median of the bursts.\n\
             - \"leader killed to next write\" is from SIGKILL to the acknowledgement of the next write of a client that wrote\n  \
               just before; the node comes back before the next kill.\n\
             - The large store, and what stays on disk, are those of one node. The restart is from the start of the process after\n  \
               SIGKILL to a linearizable read. Compaction is a snapshot on our side; on etcd's it is compaction and\n  \
               defragmentation, after which etcd's files are as small as they get.\n\
             - The trees have 20 keys of 256 bytes in each directory, and one directory of 10,000. \"to mount\" is from the start of\n  \
               `fsd` until a file is found; memory is what `fsd` has beyond what it has with two keys, and beyond the values.\n\
             - `stat` and `pread` are timed in batches, everything else call by call.\n\
             - \"raw\" is an append of 4 KiB and `fdatasync`, on the same disk, while nothing else runs.\n\n\
             {WHERE}",
            cpus = machine.cpus,
            cpu = if machine.cpu.is_empty() { "CPU" } else { &machine.cpu },
            memory = machine.memory_mib,
            kernel = machine.kernel,
            fs = machine.file_system,
            etcd = machine.etcd,
            table = self.table(),
        )
    }
}

/// The table as Markdown, which a terminal shows well too.
pub fn table(rows: &[Row]) -> String {
    let mut cells = vec![["what", "quorumfs", "compared with", "ratio", "aim", "met"].map(str::to_string)];
    for row in rows {
        cells.push([
            row.what.clone(),
            figure(row.ours, row.unit),
            format!("{} {}", row.against, figure(row.other, row.unit)),
            format!("{:.2}", row.ratio),
            match row.aim {
                Aim::RatioAtLeast(least) => format!("{least} times or more"),
                Aim::RatioAtMost(most) => format!("{most} times or less"),
                Aim::AtMost(most) => format!("{} or less", figure(most, row.unit)),
                Aim::AtLeast(least) => format!("{} or more", figure(least, row.unit)),
                Aim::None => String::new(),
            },
            row.met.map_or("", |met| if met { "yes" } else { "NO" }).to_string(),
        ]);
    }
    let widths: Vec<usize> =
        (0..6).map(|i| cells.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (line, row) in cells.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if line == 0 {
            for width in &widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// A figure with as many digits as mean something.
fn figure(value: f64, unit: &str) -> String {
    let number = match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_aim_is_met_or_not() {
        let met = |ours, aim| Row::new("x", "/s", ours, 10.0, "etcd", aim).met.unwrap();
        assert!(met(20.0, Aim::RatioAtLeast(2.0)) && !met(19.0, Aim::RatioAtLeast(2.0)));
        assert!(met(5.0, Aim::RatioAtMost(0.5)) && !met(6.0, Aim::RatioAtMost(0.5)));
        assert!(met(5.0, Aim::AtMost(5.0)) && !met(f64::NAN, Aim::AtMost(5.0)));
        assert!(met(5.0, Aim::AtLeast(5.0)) && !met(f64::NAN, Aim::AtLeast(5.0)));
        assert_eq!(Row::new("x", "/s", 1.0, 10.0, "etcd, TLS", Aim::None).met, None);
    }

    #[test]
    fn the_deepest_mount_holds_the_data() {
        let info = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:9 / /tmp rw shared:1 - tmpfs tmpfs rw\n";
        assert_eq!(file_system(std::path::Path::new("/tmp/x"), info), "tmpfs");
        assert_eq!(file_system(std::path::Path::new("/home"), info), "ext4");
    }
}
