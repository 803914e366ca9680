//! Every write and sync of raft.log and state.redb as a crash point: what a power cut there would have
//! left is opened again and compared with what was acknowledged.
//!
//! `CRASH_POINTS` is how many of them are tried: a number, or `all`. `CRASH_RUNS` is among how many runs
//! they are divided, and `CRASH_SEED` chooses these and the points. A failure says how to try its point
//! again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/crash/mod.rs"]
mod crash;

use std::cell::Cell;
use std::env;
use std::hash::{BuildHasher, RandomState};
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crash::check;
use crash::disk::{Disk, Kind, Trace};
use crash::image::{Cursor, Variant};
use crash::model::Model;
use crash::quick_dir;
use crash::random::Random;
use crash::run::Run;
use parking_lot::Mutex;

/// Crash points that are tried when nothing else is asked for.
const POINTS: u64 = 2400;
/// Runs among which they are divided.
const RUNS: u64 = 3;
/// Steps of one run.
const STEPS: u64 = 60;
/// Of so many points one is tried with another crash in the middle of the start.
const CRASH_AGAIN: u64 = 3;
/// Failures that are told in full.
const TOLD: usize = 3;

/// Name of the threads that try points.
const WORKER: &str = "crash";

/// One crash: a point in the trace, and what became of what was not synced.
type Point = (usize, Variant);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A run of so many steps on a disk that `prepare` may break.
fn run(seed: u64, steps: u64, prepare: impl FnOnce(&Disk)) -> (Trace, Model) {
    let run = runtime().block_on(Run::new(seed, steps, prepare));
    (run.disk.trace(), run.model)
}

fn points(trace: &Trace) -> Vec<Point> {
    let mut cursor = Cursor::new(trace);
    let mut points = Vec::new();
    for at in trace.points() {
        cursor.advance(at);
        points.extend(
            Variant::ALL.into_iter().filter(|variant| cursor.has(*variant)).map(|variant| (at, variant)),
        );
    }
    points
}

/// So many of them, in their order.
fn sample(points: Vec<Point>, count: u64, random: &mut Random) -> Vec<Point> {
    let (mut left, mut wanted) = (points.len() as u64, count);
    let mut chosen = Vec::new();
    for point in points {
        if random.below(left) < wanted {
            wanted -= 1;
            chosen.push(point);
        }
        left -= 1;
    }
    chosen
}

/// Tries one crash, and sometimes another one while it starts again.
async fn try_point(
    seed: u64,
    model: &Model,
    cursor: &Cursor<'_>,
    point: Point,
    dir: &Path,
) -> Result<(), String> {
    let (at, variant) = point;
    let mut random = Random::of(&[seed, at as u64, variant as u64]);
    let expected = model.at(at);
    let image = cursor.image(variant, &mut random);
    let mut started = check::start(dir, image, &expected, None).await?;
    if random.below(CRASH_AGAIN) == 0 {
        let trace = &started.2.trace;
        let points = trace.points();
        let again = points[random.below(points.len() as u64) as usize];
        let variant = Variant::ALL[random.below(4) as usize];
        let mut cursor = Cursor::new(trace);
        cursor.advance(again);
        let image = cursor.image(variant, &mut random);
        // Gone like a process that is killed: what it still writes goes nowhere.
        let (store, _, first) = started;
        store.guard.close().await.map_err(|error| format!("it does not close: {error}"))?;
        let second = check::start(dir, image, &expected, Some(&first)).await;
        started =
            second.map_err(|error| format!("crashed again at {again} of its start, {variant:?}: {error}"))?;
    }
    check::go_on(dir, started, &expected).await
}

thread_local! {
    /// What the last panic of this thread said, and where.
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
}

/// Panics of the threads that try points are failures of those points: they are told with them.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = panic::take_hook();
        panic::set_hook(Box::new(move |info| match thread::current().name() {
            Some(WORKER) => PANIC.set(Some(info.to_string())),
            _ => other(info),
        }));
    });
}

/// Tries all of `points`; gives what went wrong.
fn try_points(seed: u64, trace: &Trace, model: &Model, points: &[Point]) -> Vec<(Point, String)> {
    catch_panics();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let failures = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..workers {
            let worker = thread::Builder::new().name(WORKER.into());
            let spawned = worker.spawn_scoped(scope, || {
                let runtime = runtime();
                let mut cursor = Cursor::new(trace);
                let mut dir = quick_dir();
                while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    cursor.advance(point.0);
                    let tried = catch_unwind(AssertUnwindSafe(|| {
                        runtime.block_on(try_point(seed, model, &cursor, *point, dir.path()))
                    }));
                    let failed = match tried {
                        Ok(Ok(())) => continue,
                        Ok(Err(failed)) => failed,
                        Err(_) => PANIC.take().unwrap_or_default(),
                    };
                    failures.lock().push((*point, failed));
                    // What failed may still have the directory open.
                    dir = quick_dir();
                }
            });
            spawned.unwrap();
        }
    });
    let mut failures = failures.into_inner();
    failures.sort_by_key(|((at, _), _)| *at);
    failures
}

fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value}")))
}

/// Tries `points` of a run; says which failed, and how to try them again.
fn assert_none_fails(seed: u64, trace: &Trace, model: &Model, points: &[Point], test: &str) {
    let failures = try_points(seed, trace, model, points);
    for ((at, variant), failed) in failures.iter().take(TOLD) {
        println!(
            "FAILED at {at}, {variant:?}: {failed}\n  again: CRASH_SEED={seed} CRASH_POINT={at} CRASH_VARIANT={variant:?} \
             cargo test -p quorumfs-store --test crash_points {test} -- --nocapture\n  \
             (it is the same run where its trace is {:016x})",
            trace.digest()
        );
    }
    assert!(failures.is_empty(), "{} of {} crash points of seed {seed} failed", failures.len(), points.len());
}

/// The one that `CRASH_POINT` and `CRASH_VARIANT` name.
fn wanted_point() -> Option<Point> {
    let at = number("CRASH_POINT")?;
    let variant = env::var("CRASH_VARIANT").ok().and_then(|name| Variant::named(&name));
    Some((at as usize, variant.expect("CRASH_VARIANT is lost, kept, some or torn")))
}

#[test]
fn a_power_cut_at_any_write_or_sync_loses_nothing_that_was_acknowledged() {
    let begin = Instant::now();
    let first = number("CRASH_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) % 1_000_000);
    let one = wanted_point();
    let runs = if one.is_some() { 1 } else { number("CRASH_RUNS").unwrap_or(RUNS) };
    let all = env::var("CRASH_POINTS").is_ok_and(|points| points == "all");
    let count = if all { u64::MAX } else { number("CRASH_POINTS").unwrap_or(POINTS) / runs };
    let mut tried = 0;
    for seed in first..first + runs {
        let (trace, model) = run(seed, STEPS, |_| ());
        let points = points(&trace);
        let (writes, digest) = (trace.points().len() - 1, trace.digest());
        println!(
            "seed {seed}: {writes} writes and syncs, {} crash points, trace {digest:016x}",
            points.len()
        );
        let points = match one {
            Some(point) => vec![point],
            None => sample(points, count, &mut Random::of(&[seed, 1])),
        };
        tried += points.len();
        assert_none_fails(seed, &trace, &model, &points, "a_power_cut");
    }
    println!("{tried} crash points in {:.1} s", begin.elapsed().as_secs_f64());
}

#[test]
fn a_power_cut_anywhere_in_the_first_start_is_recovered_from() {
    let seed = number("CRASH_SEED").unwrap_or(1);
    let (trace, model) = run(seed, 0, |_| ());
    let points = wanted_point().map_or_else(|| points(&trace), |point| vec![point]);
    assert_none_fails(seed, &trace, &model, &points, "first_start");
}

/// The same checks find a bug that is put in on purpose.
fn assert_found(what: &str, bug: impl FnOnce(&Disk)) {
    let seed = number("CRASH_SEED").unwrap_or(1);
    let (trace, model) = run(seed, STEPS, bug);
    let points = sample(points(&trace), 60, &mut Random::of(&[seed]));
    let failures = try_points(seed, &trace, &model, &points);
    println!("{what}: {} of {} crash points failed; {:?}", failures.len(), points.len(), failures.first());
    assert!(failures.len() * 4 > points.len(), "{what} was found at {} crash points only", failures.len());
}

#[test]
fn a_log_that_is_not_synced_is_found() {
    assert_found("a log that is not synced", |disk| disk.lose_syncs(Kind::Log));
}

#[test]
fn a_state_that_is_not_synced_is_found() {
    assert_found("a state that is not synced", |disk| disk.lose_syncs(Kind::State));
}

#[test]
fn a_directory_that_is_not_synced_is_found() {
    assert_found("a directory that is not synced", Disk::lose_name_syncs);
}
