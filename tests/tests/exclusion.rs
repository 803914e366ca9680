//! Promise 9 of SEMANTICS.md: O_EXCL, mkdir and rename with NOREPLACE exclude each other on all hosts of the
//! cluster, and appends of several hosts are all kept. For locks see `locks.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use quorumfs_tests::pair::{PROPAGATION, pair};
use quorumfs_tests::{guard, until};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Lets two threads of each host race for one thing, many times: exactly one may win.
#[track_caller]
fn one_winner(
    label: &str,
    rounds: usize,
    refusal: i32,
    attempt: impl Fn(&Path, usize, usize) -> io::Result<()> + Sync,
) {
    let place = pair().place(label);
    let start = Barrier::new(4);
    for round in 0..rounds {
        let results: Vec<io::Result<()>> = thread::scope(|scope| {
            let racers: Vec<_> = [&place.a, &place.a, &place.b, &place.b]
                .into_iter()
                .enumerate()
                .map(|(racer, dir)| {
                    let (start, attempt) = (&start, &attempt);
                    scope.spawn(move || {
                        start.wait();
                        attempt(dir, round, racer)
                    })
                })
                .collect();
            racers.into_iter().map(|r| r.join().unwrap()).collect()
        });
        let winners = results.iter().filter(|r| r.is_ok()).count();
        assert_eq!(winners, 1, "round {round}: {results:?}");
        for error in results.iter().filter_map(|r| r.as_ref().err()) {
            assert_eq!(error.raw_os_error(), Some(refusal), "round {round}: {results:?}");
        }
    }
}

#[test]
fn p9_o_excl_has_one_winner() {
    let _guard = guard(120);
    one_winner("p9-excl", 40, libc::EEXIST, |dir, round, _| {
        OpenOptions::new().write(true).create_new(true).open(dir.join(format!("f{round}"))).map(drop)
    });
}

#[test]
fn p9_mkdir_has_one_winner() {
    let _guard = guard(120);
    one_winner("p9-mkdir", 40, libc::EEXIST, |dir, round, _| fs::create_dir(dir.join(format!("d{round}"))));
}

#[test]
fn p9_rename_noreplace_has_one_winner() {
    let _guard = guard(120);
    one_winner("p9-rename", 30, libc::EEXIST, |dir, round, racer| {
        let own = dir.join(format!("own{round}-{racer}"));
        fs::write(&own, "x")?;
        renameat_with(CWD, &own, CWD, dir.join(format!("f{round}")), RenameFlags::NOREPLACE)?;
        Ok(())
    });
}

/// Appends are commands of their own: two hosts that append to one file lose nothing.
#[test]
fn p9_appends_of_two_hosts_are_all_kept() {
    let _guard = guard(120);
    let place = pair().place("p9-append");
    fs::write(place.a.join("log"), "").unwrap();
    until("B has the file", PROPAGATION, || place.b.join("log").exists());
    thread::scope(|scope| {
        for (host, dir) in [("a", &place.a), ("b", &place.b)] {
            scope.spawn(move || {
                for n in 0..60 {
                    let mut file = OpenOptions::new().append(true).open(dir.join("log")).unwrap();
                    file.write_all(format!("{host}{n}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    File::open(&place.b).unwrap().sync_all().unwrap();
    let text = fs::read_to_string(place.b.join("log")).unwrap();
    for host in ["a", "b"] {
        let own: Vec<&str> = text.lines().filter(|l| l.starts_with(host)).collect();
        let wanted: Vec<String> = (0..60).map(|n| format!("{host}{n}")).collect();
        assert_eq!(own, wanted, "lines of host {host}");
    }
    assert_eq!(text.lines().count(), 120);
}
