//! Modes, owners, umask, sticky bits and groups, by the kernel's rules: real processes of several users do the
//! same things on a local file system, on the host where everything was set up, and on the other one. What
//! each of them prints, and what it is refused, is the same in all three places.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::pair::{PROPAGATION, pair};
use quorumfs_tests::process::{run, succeed};
use quorumfs_tests::shell::Shell;
use quorumfs_tests::{eventually, guard, tree};

const COMMAND: Duration = Duration::from_secs(60);

/// Users and groups that no system has: only their numbers count.
const ALICE: Who = Who { uid: 42_001, gid: 42_001, groups: &[] };
const ALICE_IN_TEAM: Who = Who { groups: &[TEAM], ..ALICE };
const BOB: Who = Who { uid: 42_002, gid: 42_002, groups: &[] };
const ROOT: Who = Who { uid: 0, gid: 0, groups: &[] };
const TEAM: u32 = 42_100;

/// Whose process it is.
#[derive(Clone, Copy, Debug)]
struct Who {
    uid: u32,
    gid: u32,
    groups: &'static [u32],
}

/// One thing to try: what root sets up in an empty directory, who comes, what he does, and whether that works.
struct Case {
    setup: &'static str,
    who: Who,
    does: &'static str,
    works: bool,
}

const fn may(setup: &'static str, who: Who, does: &'static str) -> Case {
    Case { setup, who, does, works: true }
}
const fn may_not(setup: &'static str, who: Who, does: &'static str) -> Case {
    Case { setup, who, does, works: false }
}

const CASES: &[Case] = &[
    // Reading and writing, by owner, group and everybody.
    may("echo x > f; chmod 600 f; chown 42001 f", ALICE, "cat f"),
    may_not("echo x > f; chmod 600 f; chown 42001 f", BOB, "cat f"),
    may_not("echo x > f; chmod 640 f; chgrp 42100 f", ALICE, "cat f"),
    may("echo x > f; chmod 640 f; chgrp 42100 f", ALICE_IN_TEAM, "cat f"),
    may_not("echo x > f; chmod 640 f; chgrp 42100 f", ALICE_IN_TEAM, "echo y >> f"),
    may("echo x > f; chmod 660 f; chgrp 42100 f", ALICE_IN_TEAM, "echo y >> f; cat f"),
    // The class of the owner counts for the owner, also where everybody else may.
    may_not("echo x > f; chmod 066 f; chown 42001 f", ALICE, "cat f"),
    may("echo x > f; chmod 000 f", ROOT, "cat f; echo y > f; cat f"),
    may_not("echo x > f", ALICE, "truncate -s 0 f"),
    // Directories: search, list, change.
    may("mkdir d; echo x > d/f; chmod 711 d", ALICE, "cat d/f"),
    may_not("mkdir d; echo x > d/f; chmod 711 d", ALICE, "ls d"),
    may_not("mkdir d; echo x > d/f; chmod 744 d", ALICE, "cat d/f"),
    may_not("mkdir d; chmod 755 d", ALICE, "echo x > d/f"),
    may_not("mkdir d; chmod 755 d", ALICE, "mkdir d/e"),
    may_not("mkdir d; chmod 755 d", ALICE, "ln -s x d/l"),
    may_not("mkdir d; touch d/f; chmod 755 d", ALICE, "rm -f d/f"),
    may_not("mkdir -p d/e; chmod 755 d", ALICE, "rmdir d/e"),
    may_not("mkdir d e; touch d/f; chmod 755 d; chmod 777 e", ALICE, "mv d/f e/f"),
    may("mkdir d e; touch d/f; chmod 777 d e", ALICE, "mv d/f e/f; ls e"),
    // A directory that moves has a new parent: it has to be writable itself.
    may_not("mkdir -p d/sub e; chmod 777 d e; chmod 755 d/sub", ALICE, "mv -T d/sub e/sub"),
    // What is made belongs to whoever makes it, less the umask.
    may("chmod 777 .", ALICE, "umask 027; echo x > f; mkdir d; ln -s f l; stat -c '%n %a %u %g' f d l"),
    may("chmod 777 .", BOB, "umask 077; : > f; mkfifo p; stat -c '%n %a %u %g' f p"),
    may(
        "chmod 777 .; chgrp 42100 .; chmod g+s .",
        ALICE,
        "umask 002; : > f; mkdir d; stat -c '%n %a %g' f d",
    ),
    may(
        "chmod 777 .; chgrp 42100 .; chmod g+s .",
        ALICE_IN_TEAM,
        "umask 002; mkdir d; : > d/f; stat -c '%n %a %g' d d/f",
    ),
    // Sticky.
    may_not("chmod 1777 .; echo x > f; chown 42002 f", ALICE, "rm -f f"),
    may("chmod 1777 .; echo x > f; chown 42002 f", BOB, "rm f; ls"),
    may_not("chmod 1777 .; echo x > f; chown 42002 f", ALICE, "mv f g"),
    may_not("chmod 1777 .; echo x > f; chmod 666 f; chown 42002 f", ALICE, "echo mine > g; mv -f g f"),
    may("chmod 1777 .; chown 42001 .; echo x > f; chown 42002 f", ALICE, "rm -f f; ls"),
    may_not("chmod 1777 .; mkdir d; chown 42002 d", ALICE, "rmdir d"),
    // Modes, owners, times.
    may_not("echo x > f; chmod 666 f", ALICE, "chmod 600 f"),
    may("echo x > f; chown 42001 f", ALICE, "chmod 640 f; stat -c '%a' f"),
    may_not("echo x > f; chown 42001 f", ALICE, "chown 42002 f"),
    may_not("echo x > f; chown 42001:42001 f", ALICE, "chgrp 42100 f"),
    may("echo x > f; chown 42001:42001 f", ALICE_IN_TEAM, "chgrp 42100 f; stat -c '%g' f"),
    may("echo x > f", ROOT, "chown 42002:42100 f; stat -c '%u %g' f"),
    may_not("echo x > f; chmod 666 f", ALICE, "touch -d 2001-02-03 f"),
    may("echo x > f; chmod 666 f", ALICE, "touch f"),
    may_not("echo x > f; chmod 644 f", ALICE, "touch f"),
    may("echo x > f; chown 42001 f", ALICE, "TZ=UTC touch -d 2001-02-03 f; stat -c '%Y %X' f"),
    // What runs as its owner no longer does once somebody else could have changed it.
    may("echo x > f; chown 42001:42001 f; chmod 6755 f", ALICE_IN_TEAM, "chgrp 42100 f; stat -c '%a' f"),
    may("echo x > f; chmod 4777 f", ALICE, "echo y >> f; stat -c '%a' f"),
    may("echo x > f; chmod 6777 f", ALICE, "truncate -s 0 f; stat -c '%a' f"),
    may("echo x > f; chmod 4755 f", ROOT, "echo y >> f; stat -c '%a' f"),
    may("echo x > f; chown 42001:42100 f", ALICE, "chmod 2755 f; stat -c '%a' f"),
    // Execution.
    may("printf '#!/bin/sh\\necho it runs\\n' > p; chmod 755 p", ALICE, "./p"),
    may_not("printf '#!/bin/sh\\necho it runs\\n' > p; chmod 744 p", ALICE, "./p"),
    may_not("printf '#!/bin/sh\\necho it runs\\n' > p; chmod 666 p", ROOT, "./p"),
    // Devices are root's to make; attributes are those' who may write.
    may_not("chmod 777 .", ALICE, "mknod n c 1 3"),
    may_not("echo x > f; chmod 644 f", ALICE, "setfattr -n user.note -v x f"),
    may(
        "echo x > f; chmod 666 f",
        ALICE,
        "setfattr -n user.note -v x f; getfattr --only-values -n user.note f",
    ),
];

/// Runs a script as somebody, in a directory.
fn run_as(who: Who, dir: &Path, script: &str) -> Output {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={}", who.uid)).arg(format!("--regid={}", who.gid));
    if who.groups.is_empty() {
        command.arg("--clear-groups");
    } else {
        let groups: Vec<String> = who.groups.iter().map(u32::to_string).collect();
        command.arg(format!("--groups={}", groups.join(",")));
    }
    command.args(["sh", "-e", "-c", script]).current_dir(dir).env("LC_ALL", "C");
    run(command, COMMAND)
}

/// What the user sees of it.
fn seen(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Sets a case up in a new directory of root's.
#[track_caller]
fn set_up(base: &Path, name: &str, case: &Case) {
    let dir = base.join(name);
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    succeed(&run(Shell::Dash.command(&dir, &format!("umask 022; {}", case.setup)), COMMAND));
}

/// What somebody finds below a directory, with whose it is and who may what.
fn found(dir: &Path) -> std::io::Result<Vec<String>> {
    let names = tree::try_read(dir)?.into_iter().chain([(PathBuf::new(), tree::Entry::Dir)]);
    names
        .map(|(path, entry)| {
            let meta = fs::symlink_metadata(dir.join(&path))?;
            Ok(format!("{path:?} {entry:?} {:o} {} {}", meta.mode(), meta.uid(), meta.gid()))
        })
        .collect()
}

#[track_caller]
fn shows_the_same(done: &Path, other: &Path) {
    let wanted = found(done).unwrap();
    eventually("the other host shows it all", PROPAGATION, || match found(other) {
        Ok(there) if there == wanted => Ok(()),
        there => Err(format!("{there:?} where {wanted:?} is wanted")),
    });
}

#[test]
fn what_is_refused_locally_is_refused_on_every_host() {
    if !rustix::process::geteuid().is_root() {
        // Needs to become other users. In CI everything runs as root.
        eprintln!("NOT RUN: only root can act as several users");
        assert!(std::env::var_os("CI").is_none(), "CI has to run this as root");
        return;
    }
    let _guard = guard(300);
    let local = Scratch::new("permissions");
    let place = pair().place("permissions");
    for dir in [local.path(), pair().a.path(), pair().b.path()] {
        // The way there must not be what refuses.
        for dir in dir.ancestors().filter(|dir| dir.starts_with(std::env::temp_dir())) {
            let mode = fs::metadata(dir).unwrap().permissions().mode();
            assert!(mode & 0o001 != 0, "others cannot come through {dir:?}");
        }
    }
    for (number, case) in CASES.iter().enumerate() {
        let what = format!("{} does {:?} after {:?}", case.who.uid, case.does, case.setup);
        let (on_a, on_b) = (format!("a{number}"), format!("b{number}"));
        set_up(local.path(), &on_a, case);
        set_up(&place.a, &on_a, case);
        set_up(&place.a, &on_b, case);
        shows_the_same(&place.a.join(&on_b), &place.b.join(&on_b));
        let here = seen(&run_as(case.who, &local.path().join(&on_a), case.does));
        assert_eq!(here.0 == Some(0), case.works, "a local file system, {what}: {here:?}");
        assert_eq!(seen(&run_as(case.who, &place.a.join(&on_a), case.does)), here, "on A, {what}");
        assert_eq!(seen(&run_as(case.who, &place.b.join(&on_b), case.does)), here, "on B, {what}");
        // And the other host shows the outcome.
        shows_the_same(&place.b.join(&on_b), &place.a.join(&on_b));
    }
}
