//! The report for a person.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Report, UnixMs};

/// Width of the first column.
const LABEL: usize = 14;

/// One line for each thing that somebody asks first when something is wrong.
pub fn status(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| _ = writeln!(text, "{label:<LABEL$}{value}");
    let mount = &report.mount;
    let mut flags = String::new();
    for (set, flag) in [(mount.read_only, ", read-only"), (mount.sync, ", sync")] {
        flags += if set { flag } else { "" };
    }
    line("mounted on", format!("{}, since {}{flags}", mount.mountpoint, time(mount.since)));
    line("prefix", mount.prefix.clone());
    line("identity", mount.identity.clone());
    line("time-out", duration(mount.timeout_ms));
    let daemon = &report.daemon;
    line("daemon", format!("fsd {}, pid {}, {}", report.version, daemon.pid, bytes(daemon.memory)));
    if let Some(supervisor) = daemon.supervisor {
        line("supervisor", format!("pid {supervisor}"));
    }
    let link = &report.link;
    let age = duration(report.at.saturating_sub(link.since));
    line(
        "connected to",
        match (&link.node, &link.problem) {
            (Some(node), _) => format!("{node}, for {age}"),
            (None, Some(problem)) => format!("no node, for {age}: {problem}"),
            (None, None) => format!("no node, for {age}"),
        },
    );
    line("quorum", quorum(report));
    let cluster = &report.cluster;
    let leader = cluster.leader();
    line("leader", leader.map_or("none".to_string(), |m| format!("{} at {}", m.name, m.addr)));
    let unknown = || "unknown".to_string();
    let said = cluster.said.as_ref();
    line("term", said.map_or_else(unknown, |said| said.term.to_string()));
    let lag = report.mirror.lag.map_or_else(unknown, |lag| lag.to_string());
    line("revision", format!("{}, lag {lag}", report.mirror.revision));
    let keys = said.map_or_else(unknown, |said| said.keys.to_string());
    line("keys", format!("{} in this mount, {keys} in the store", report.mirror.keys));
    let store =
        said.map_or_else(unknown, |said| format!("{} of {}", bytes(said.bytes), bytes(said.bytes_max)));
    line("store", store);
    let session = report.session.as_ref();
    line(
        "session",
        session.map_or("none".to_string(), |s| format!("{}, good for {}", s.id, duration(s.valid_ms))),
    );
    line("replay queue", format!("{} waiting, {} done", report.replay.waiting, report.replay.done));
    line("open", format!("{} files and directories, {} locks", report.open.handles, report.open.locks));
    for (number, member) in members(report).lines().enumerate() {
        line(if number == 0 { "members" } else { "" }, member.to_string());
    }
    text
}

fn quorum(report: &Report) -> String {
    let cluster = &report.cluster;
    if cluster.quorum {
        return "yes".to_string();
    }
    let since = match cluster.without_quorum_since {
        Some(since) => {
            format!(
                "no, the leader was last heard of {} ago, at {}",
                duration(report.at.saturating_sub(since)),
                time(since)
            )
        }
        None => "no, the leader was never heard of".to_string(),
    };
    match &cluster.problem {
        Some(problem) => format!("{since}: {problem}"),
        None => since,
    }
}

/// The members, one a line.
pub fn members(report: &Report) -> String {
    let members = report.cluster.said.iter().flat_map(|said| &said.members);
    members.fold(String::new(), |mut text, member| {
        let role = match (member.leader, member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let _ = writeln!(text, "{} {} {} {role}", member.id, member.name, member.addr);
        text
    })
}

fn duration(ms: u64) -> String {
    quorumfs_api::client::settings::format_duration(Duration::from_millis(ms))
}

fn time(at: UnixMs) -> String {
    let time = OffsetDateTime::from(SystemTime::UNIX_EPOCH + Duration::from_secs(at / 1000));
    time.format(&Rfc3339).unwrap_or_else(|_| format!("{} s after 1970", at / 1000))
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
