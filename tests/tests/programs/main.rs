//! Programs that know only local directories, on two hosts: each runs once in a directory of tmpfs, and once
//! on host A. What it prints has to be the same, and so has what is found afterwards: there, and on host B.
//! The table in docs/programs.md is made of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cases;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::document::{self, Row};
use quorumfs_tests::pair::pair;
use quorumfs_tests::process::run;
use quorumfs_tests::{guard, network};

use cases::CASES;

/// No script takes longer, on a machine that does much else.
const SCRIPT: Duration = Duration::from_secs(90);
/// Until the other host shows the same.
const SHOWN: Duration = Duration::from_secs(30);

/// One row.
pub struct Case {
    /// What it is called in the table.
    program: &'static str,
    /// Programs that are needed, beside those of every Debian.
    needs: &'static [&'static str],
    /// What is done, in words.
    what: &'static str,
    /// What is done, on host A. `$A` and `$B` are the directory as both hosts see it.
    done: &'static str,
    /// What is looked at on host B.
    look: &'static str,
}

/// What a store of keys does not do, on purpose, and what is said of it.
const DIFFERENT: &[&str] = &["ln"];

fn bash(script: &str, dir: &Path, (a, b): (&Path, &Path), port: u16) -> (Option<i32>, String, String) {
    let mut command = Command::new("bash");
    let prelude = "set -e -o pipefail; umask 022\n";
    command.arg("-c").arg(format!("{prelude}{script}")).current_dir(dir);
    command
        .env("A", a)
        .env("B", b)
        .env("PORT", port.to_string())
        .env("LC_ALL", "C")
        .env("HOME", "/nonexistent");
    command.env("NODE_PATH", "/usr/share/nodejs").env("TERM", "xterm").env_remove("GIT_DIR");
    let output = run(command, SCRIPT);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// `Err` says what is different from a local directory.
fn observe(case: &Case) -> Result<(), String> {
    let label = case.program.split([' ', ',']).next().unwrap_or("program");
    let (place, tmpfs) = (pair().place(label), Scratch::on_tmpfs(label));
    let (local, port) = (tmpfs.path(), network::free_tcp_port());
    let wanted = bash(case.done, local, (local, local), port);
    let look = bash(case.look, local, (local, local), port);
    assert_eq!((wanted.0, look.0), (Some(0), Some(0)), "{} on tmpfs: {wanted:?}, {look:?}", case.program);
    let done = bash(case.done, &place.a, (&place.a, &place.b), port);
    if (done.0, &done.1) != (wanted.0, &wanted.1) {
        // What is printed first says best what is different.
        let said = if done.2.is_empty() { &done.1 } else { &done.2 };
        return Err(format!("{}\n{done:?}\ntmpfs: {wanted:?}", said.lines().next().unwrap_or("it failed")));
    }
    let begun = Instant::now();
    loop {
        let found = bash(case.look, &place.b, (&place.a, &place.b), port);
        if (found.0, &found.1) == (look.0, &look.1) {
            return Ok(());
        }
        if begun.elapsed() > SHOWN {
            return Err(format!("something else is found\n{found:?}\ntmpfs: {look:?}"));
        }
    }
}

#[test]
fn programs_work_as_in_a_local_directory() {
    let _guard = guard(900);
    let mut rows: Vec<Row> = Vec::new();
    let mut failures = Vec::new();
    let only = std::env::var("QUORUMFS_TEST_PROGRAM").ok();
    for case in CASES {
        let first = format!("`{}`", case.program);
        let chosen = only.as_ref().is_none_or(|only| case.program.contains(only.as_str()));
        if !chosen || !document::installed(case.program, case.needs) {
            rows.push((first, None));
            continue;
        }
        let begun = Instant::now();
        let result = observe(case);
        eprintln!("{}: {:?} in {:?}", case.program, result.is_ok(), begun.elapsed());
        let cell = match &result {
            Ok(()) => "as in a local directory".to_string(),
            Err(reason) => format!("no: {}", reason.lines().next().unwrap_or_default()),
        };
        if result.is_ok() == DIFFERENT.contains(&case.program) {
            failures.push(format!("{}: {}: {result:?}", case.program, case.what));
        }
        rows.push((first, Some(vec![case.what.to_string(), cell])));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    document::table(
        "programs.md",
        "programs",
        &["program", "what is done on one host", "what the other shows"],
        &rows,
    );
}
