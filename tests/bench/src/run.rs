//! One run: starts both sides, takes turns, and collects.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::etcd::EtcdCluster;
use crate::etcd_api::Etcd;
use crate::files::{self, Access};
use crate::load::{self, Operation, Target};
use crate::quorum::QuorumCluster;
use crate::report::{Aim, Machine, PutLoad, Report, Row};
use crate::stats::{Samples, Summary};
use crate::{disk, events, failover, fanout, replay, scale, trees};

/// Numbers of clients, with the aims of issue 3: puts a second, and latency, as ratios to etcd's.
const PUTS: [(usize, f64, f64); 4] = [(1, 1.3, 0.75), (16, 2.5, 0.4), (64, 4.0, 0.25), (256, 5.0, 0.2)];
/// Clients of the gets.
const GET_CLIENTS: usize = 64;
/// What an event may take beyond a put, in milliseconds.
const EVENT_EXTRA_MS: f64 = 0.5;

/// Kills of the leader, in a full and in a short run.
const KILLS: usize = 50;
const KILLS_QUICK: usize = 5;
/// What the next write may take after a kill, in milliseconds.
const FAILOVER_P50_MS: f64 = 700.0;
const FAILOVER_P99_MS: f64 = 1500.0;
/// What a node with a large store may take to serve again, in seconds.
const RESTART_S: f64 = 2.0;

/// Changes of others that a mount is to show as events, a second.
const REPLAY_UPDATES: f64 = 20_000.0;
const REPLAY_CREATES: f64 = 15_000.0;

/// What a mount may take to appear, in seconds, and a key in the memory of `fsd`, in bytes.
const MOUNT_S: f64 = 5.0;
const KEY_B: f64 = 400.0;
/// What listing a directory may take, and walking a tree, in milliseconds: 20 and 50 microseconds for each name.
const LIST_MS: f64 = 200.0;
const WALK_MS: f64 = 5_000.0;
/// "Not slower", with what one run differs from the next.
const SLOWER: f64 = 1.2;

/// A part that can be measured alone.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Part {
    /// From `close` on one mount to the event on another.
    Events,
    /// One put, many watchers.
    FanOut,
    /// Files on a mount and on tmpfs.
    Files,
    /// Bursts, and their events on a mount.
    Replay,
    /// Large trees on a mount.
    Trees,
}

/// What to do.
pub struct Plan {
    /// Where the programs are.
    pub bin: PathBuf,
    /// Where the data go; on a disk, and removed afterwards.
    pub data: PathBuf,
    /// Rounds of each side.
    pub rounds: usize,
    /// Length of a round.
    pub time: Duration,
    /// Whether this is a short run.
    pub quick: bool,
}

pub fn progress(text: &str) {
    eprintln!("bench: {text}");
}

/// Does it all.
pub async fn run(plan: &Plan) -> anyhow::Result<Report> {
    let dir = tempfile::Builder::new().prefix("quorumfs-bench.").tempdir_in(&plan.data)?;
    let mut rows = Vec::new();
    let mut details: Vec<(String, Summary)> = Vec::new();

    progress("the disk by itself: append of 4 KiB + fdatasync");
    let raw = disk::append_and_sync(dir.path(), plan.time)?.summary();
    details.push(("raw append + fdatasync".into(), raw));

    progress("one node, one client");
    let single = one_node(plan, &make(dir.path(), "single")?).await?;
    details.push(("put, one node, 1 client".into(), single));
    rows.push(Row::new(
        "put p50, one node, 1 client",
        "ms",
        single.p50_ms,
        raw.p50_ms,
        "raw",
        Aim::RatioAtMost(2.0),
    ));

    progress("starting three raftnodes, three etcds, and three with TLS");
    let mut etcd = EtcdCluster::start(&make(dir.path(), "etcd")?).await?;
    let mut etcd_tls = EtcdCluster::start_tls(&make(dir.path(), "etcd-tls")?).await?;
    let mut quorum = QuorumCluster::start(&plan.bin, &make(dir.path(), "quorumfs")?, 3).await?;
    let machine = Machine::describe(dir.path(), etcd.version.clone());
    let sides = [
        connect_quorum(&quorum, load::CONNECTIONS_MAX).await?,
        connect_etcd(&mut etcd, load::CONNECTIONS_MAX).await?,
        connect_etcd(&mut etcd_tls, load::CONNECTIONS_MAX).await?,
    ];
    let puts = put_rows(plan, &sides, &mut rows).await?;
    get_rows(plan, &sides, &mut rows, &mut details).await?;
    let [ours, theirs, with_tls] = sides;
    drop((theirs, with_tls, etcd_tls));

    let (a, b) = (quorum.mount().await?, quorum.mount().await?);
    let put = puts.first().map_or(f64::NAN, |load| load.ours.p50_ms);
    event_rows(plan, (&a, &b), &mut etcd, put, &mut rows, &mut details).await?;
    fan_out_row(plan, &quorum, &mut etcd, &mut rows, &mut details).await?;
    drop(etcd);
    file_rows(plan, &b, &ours[0], &mut rows, &mut details).await?;
    drop(ours);
    quorum.unmount()?;
    failover_rows(plan, &mut quorum, &mut rows, &mut details).await?;
    drop(quorum);
    replay_rows(plan, dir.path(), &mut rows).await?;
    scale_rows(plan, dir.path(), &mut rows).await?;
    rows.extend(tree_rows(plan, dir.path()).await?);
    dir.close().context("removing the data of the run")?;
    Ok(Report { machine, quick: plan.quick, rows, puts, details })
}

/// Only one part, in a cluster of its own.
pub async fn only(plan: &Plan, part: Part) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("quorumfs-bench.").tempdir_in(&plan.data)?;
    let dir = dir.path();
    let (mut rows, mut details) = (Vec::new(), Vec::new());
    match part {
        Part::Replay => replay_rows(plan, dir, &mut rows).await?,
        Part::Trees => rows = tree_rows(plan, dir).await?,
        Part::Events | Part::FanOut | Part::Files => {
            let mut etcd = EtcdCluster::start(&make(dir, "etcd")?).await?;
            let mut quorum = QuorumCluster::start(&plan.bin, &make(dir, "quorumfs")?, 3).await?;
            match part {
                Part::FanOut => fan_out_row(plan, &quorum, &mut etcd, &mut rows, &mut details).await?,
                Part::Files => {
                    let (mount, target) = (quorum.mount().await?, connect_quorum(&quorum, 1).await?);
                    file_rows(plan, &mount, &target[0], &mut rows, &mut details).await?;
                }
                _ => {
                    let ours = connect_quorum(&quorum, 1).await?;
                    let put = load::run(&ours, Operation::Put, 1, plan.time).await?.summary().p50_ms;
                    let (a, b) = (quorum.mount().await?, quorum.mount().await?);
                    event_rows(plan, (&a, &b), &mut etcd, put, &mut rows, &mut details).await?;
                }
            }
        }
    }
    Ok(rows)
}

pub fn make(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    std::fs::create_dir(&path).with_context(|| format!("making {path:?}"))?;
    Ok(path)
}

async fn one_node(plan: &Plan, dir: &Path) -> anyhow::Result<Summary> {
    let cluster = QuorumCluster::start(&plan.bin, dir, 1).await?;
    let targets = connect_quorum(&cluster, 1).await?;
    Ok(load::run(&targets, Operation::Put, 1, plan.time).await?.summary())
}

pub async fn connect_quorum(cluster: &QuorumCluster, connections: usize) -> anyhow::Result<Vec<Target>> {
    let mut targets = Vec::new();
    for _ in 0..connections {
        targets.push(Target::Quorum(cluster.connect().await?));
    }
    Ok(targets)
}

pub async fn connect_etcd(cluster: &mut EtcdCluster, connections: usize) -> anyhow::Result<Vec<Target>> {
    let leader = cluster.leader().await?;
    let mut targets = Vec::new();
    for _ in 0..connections {
        targets.push(Target::Etcd(Etcd::connect(&leader).await?));
    }
    Ok(targets)
}

/// quorumfs, etcd, and etcd with TLS.
type Sides = [Vec<Target>; 3];

/// All sides in turn, round by round; each first warms up for a tenth of a round.
async fn turns(
    plan: &Plan,
    sides: &Sides,
    operation: Operation,
    clients: usize,
) -> anyhow::Result<[Summary; 3]> {
    let mut all: [Samples; 3] = Default::default();
    let connections = load::connections(clients);
    for _ in 0..plan.rounds {
        for (samples, targets) in all.iter_mut().zip(sides) {
            let targets = &targets[..connections.min(targets.len())];
            load::run(targets, operation, clients, plan.time / 10).await?;
            samples.append(load::run(targets, operation, clients, plan.time).await?);
        }
    }
    Ok(all.map(|samples| samples.summary()))
}

/// One figure of ours beside etcd's, by which it is judged, and beside that of etcd with TLS.
fn compare(
    rows: &mut Vec<Row>,
    what: &str,
    unit: &'static str,
    [ours, etcd, with_tls]: [Summary; 3],
    figure: fn(Summary) -> f64,
    aim: Aim,
) {
    rows.push(Row::new(what, unit, figure(ours), figure(etcd), "etcd", aim));
    rows.push(Row::new(what, unit, figure(ours), figure(with_tls), "etcd, TLS", Aim::None));
}

async fn put_rows(plan: &Plan, sides: &Sides, rows: &mut Vec<Row>) -> anyhow::Result<Vec<PutLoad>> {
    let mut puts = Vec::new();
    for (clients, rate, latency) in PUTS {
        let load = if clients == 1 { "1 client".to_string() } else { format!("{clients} clients") };
        progress(&format!("puts, {load}"));
        let found = turns(plan, sides, Operation::Put, clients).await?;
        let most = Aim::RatioAtMost(latency);
        compare(rows, &format!("puts, {load}"), "/s", found, |side| side.rate, Aim::RatioAtLeast(rate));
        compare(rows, &format!("put p50, {load}"), "ms", found, |side| side.p50_ms, most);
        compare(rows, &format!("put p99, {load}"), "ms", found, |side| side.p99_ms, most);
        let [ours, etcd, etcd_tls] = found;
        puts.push(PutLoad { clients, ours, etcd, etcd_tls });
    }
    Ok(puts)
}

async fn get_rows(
    plan: &Plan,
    sides: &Sides,
    rows: &mut Vec<Row>,
    details: &mut Vec<(String, Summary)>,
) -> anyhow::Result<()> {
    for side in sides {
        load::fill(&side[0], load::FILLED).await?;
    }
    for (name, operation) in
        [("linearizable", Operation::GetLinearizable), ("serializable", Operation::GetSerializable)]
    {
        progress(&format!("{name} gets, {GET_CLIENTS} clients"));
        let found = turns(plan, sides, operation, GET_CLIENTS).await?;
        let what = format!("{name} gets, {GET_CLIENTS} clients");
        compare(rows, &what, "/s", found, |side| side.rate, Aim::RatioAtLeast(5.0));
        for (side, summary) in ["quorumfs", "etcd", "etcd, TLS"].into_iter().zip(found) {
            details.push((format!("{name} gets, {side}"), summary));
        }
    }
    Ok(())
}

async fn event_rows(
    plan: &Plan,
    (a, b): (&Path, &Path),
    etcd: &mut EtcdCluster,
    put_p50: f64,
    rows: &mut Vec<Row>,
    details: &mut Vec<(String, Summary)>,
) -> anyhow::Result<()> {
    progress("close on one mount to the inotify event on the other");
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..plan.rounds {
        let (a, b, time) = (a.to_path_buf(), b.to_path_buf(), plan.time);
        ours.append(tokio::task::spawn_blocking(move || events::between_mounts(&a, &b, time)).await??);
        theirs.append(events::through_etcd(etcd, plan.time).await?);
    }
    let (ours, theirs) = (ours.summary(), theirs.summary());
    let most = put_p50 + EVENT_EXTRA_MS;
    rows.push(Row::new("close to event, p50", "ms", ours.p50_ms, put_p50, "put p50", Aim::AtMost(most)));
    rows.push(Row::new(
        "close to event, p50",
        "ms",
        ours.p50_ms,
        theirs.p50_ms,
        "etcd put to watch",
        Aim::RatioAtMost(1.0),
    ));
    rows.push(Row::new(
        "close to event, p99",
        "ms",
        ours.p99_ms,
        theirs.p99_ms,
        "etcd put to watch",
        Aim::RatioAtMost(1.0),
    ));
    details.push(("close to inotify event".into(), ours));
    details.push(("etcd put to watch".into(), theirs));
    Ok(())
}

async fn fan_out_row(
    plan: &Plan,
    quorum: &QuorumCluster,
    etcd: &mut EtcdCluster,
    rows: &mut Vec<Row>,
    details: &mut Vec<(String, Summary)>,
) -> anyhow::Result<()> {
    progress(&format!("one put, {} watchers", fanout::WATCHERS));
    let ours = fanout::quorum(quorum, plan.time).await?.summary();
    let theirs = fanout::etcd(etcd, plan.time).await?.summary();
    let what = format!("put to the last of {} watchers, p50", fanout::WATCHERS);
    rows.push(Row::new(what, "ms", ours.p50_ms, theirs.p50_ms, "etcd", Aim::RatioAtMost(0.5)));
    details.push(("fan-out, quorumfs".into(), ours));
    details.push(("fan-out, etcd".into(), theirs));
    Ok(())
}

async fn failover_rows(
    plan: &Plan,
    quorum: &mut QuorumCluster,
    rows: &mut Vec<Row>,
    details: &mut Vec<(String, Summary)>,
) -> anyhow::Result<()> {
    let kills = if plan.quick { KILLS_QUICK } else { KILLS };
    progress(&format!("{kills} kills of the leader"));
    let found = failover::kills(quorum, kills).await?.summary();
    for (name, ms, most) in [("p50", found.p50_ms, FAILOVER_P50_MS), ("p99", found.p99_ms, FAILOVER_P99_MS)] {
        let what = format!("leader killed to next write, {name} of {kills}");
        rows.push(Row::new(what, "ms", ms, most, "aim", Aim::AtMost(most)));
    }
    details.push(("leader killed to next write".into(), found));
    Ok(())
}

async fn replay_rows(plan: &Plan, dir: &Path, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let rates = replay::measure(plan, dir).await?;
    for (what, rate, least) in
        [("updates", rates.updates, REPLAY_UPDATES), ("creates", rates.creates, REPLAY_CREATES)]
    {
        rows.push(Row::new(format!("replayed {what}"), "/s", rate, least, "aim", Aim::AtLeast(least)));
    }
    Ok(())
}

async fn scale_rows(plan: &Plan, dir: &Path, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let found = scale::measure(plan, dir).await?;
    let keys = found.keys;
    let mut row = |what: String, unit, ours, other, against, aim| {
        rows.push(Row::new(what, unit, ours, other, against, aim));
    };
    let most = RESTART_S;
    row(format!("restart after a kill, {keys} keys"), "s", found.restart, most, "aim", Aim::AtMost(most));
    let (ours, theirs) = found.memory;
    row(format!("memory, {keys} keys"), "MiB", ours, theirs, "etcd", Aim::RatioAtMost(1.0));
    let (ours, theirs) = found.disk;
    let what = format!("on disk after {} puts and compaction", scale::PUTS);
    row(what, "MiB", ours, theirs, "etcd", Aim::RatioAtMost(1.0));
    Ok(())
}

async fn tree_rows(plan: &Plan, dir: &Path) -> anyhow::Result<Vec<Row>> {
    let found = trees::measure(plan, dir).await?;
    let small = found.first().map_or([f64::NAN; 3], |tree| tree.one);
    let small_keys = found.first().map_or(0, |tree| tree.keys);
    let mut rows = Vec::new();
    for tree in found {
        let keys = tree.keys;
        let mut row = |what: String, unit, ours, other, against, aim| {
            rows.push(Row::new(format!("{keys} keys: {what}"), unit, ours, other, against, aim));
        };
        row("to mount".into(), "s", tree.mount, MOUNT_S, "aim", Aim::AtMost(MOUNT_S));
        row("fsd, each key".into(), "B", tree.bytes, KEY_B, "aim", Aim::AtMost(KEY_B));
        row("ls of 10000".into(), "ms", tree.list, LIST_MS, "aim", Aim::AtMost(LIST_MS));
        if let Some(walk) = tree.walk {
            row("find of 100000".into(), "ms", walk, WALK_MS, "aim", Aim::AtMost(WALK_MS));
        }
        if keys > small_keys {
            for ((what, ours), other) in ["stat", "open+read+close", "echo"].iter().zip(tree.one).zip(small) {
                row((*what).into(), "µs", ours, other, "with 10000", Aim::RatioAtMost(SLOWER));
            }
        }
    }
    Ok(rows)
}

async fn file_rows(
    plan: &Plan,
    mount: &Path,
    target: &Target,
    rows: &mut Vec<Row>,
    details: &mut Vec<(String, Summary)>,
) -> anyhow::Result<()> {
    progress("files on the mount and on tmpfs");
    let tmpfs = tempfile::Builder::new().prefix("quorumfs-bench.").tempdir_in("/dev/shm")?;
    files::prepare(mount)?;
    files::prepare(tmpfs.path())?;
    for (name, access, aim) in [
        ("stat", Access::Stat, 1.1),
        ("pread, cached", Access::Pread, 1.1),
        ("open+read+close, cached", Access::OpenReadClose, 5.0),
    ] {
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        for _ in 0..plan.rounds {
            for (samples, dir) in
                [(&mut ours, mount.to_path_buf()), (&mut theirs, tmpfs.path().to_path_buf())]
            {
                let time = plan.time / 3;
                samples
                    .append(tokio::task::spawn_blocking(move || files::measure(&dir, access, time)).await??);
            }
        }
        let (ours, theirs) = (ours.summary(), theirs.summary());
        // Microseconds: these are the only figures that are so small.
        rows.push(Row::new(
            name,
            "µs",
            ours.p50_ms * 1e3,
            theirs.p50_ms * 1e3,
            "tmpfs",
            Aim::RatioAtMost(aim),
        ));
        details.push((format!("{name}, mount"), ours));
        details.push((format!("{name}, tmpfs"), theirs));
    }
    progress("echo v > f on the mount and the API's put");
    let (mut echo, mut put) = (Samples::default(), Samples::default());
    for _ in 0..plan.rounds {
        let (dir, time) = (mount.to_path_buf(), plan.time);
        echo.append(tokio::task::spawn_blocking(move || files::measure(&dir, Access::Echo, time)).await??);
        put.append(load::run(std::slice::from_ref(target), Operation::Put, 1, plan.time).await?);
    }
    let (echo, put) = (echo.summary(), put.summary());
    rows.push(Row::new("echo v > f, p50", "ms", echo.p50_ms, put.p50_ms, "API put", Aim::RatioAtMost(1.3)));
    details.push(("echo v > f on the mount".into(), echo));
    details.push(("put beside it".into(), put));
    Ok(())
}
