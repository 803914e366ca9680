//! `/.quorumfs` in a mount: what a mount says of itself, beside what the store has under that name.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use common::{World, can_mount, eventually, sh, shell};
use quorumfs_api::command::{Command, CreateMode, LeaseChange, Owner, RenameMode, Target};
use quorumfs_api::key::Key;

/// Names of the files, as they are listed.
const FILES: &str = "leader\nlag\nmembers\nprefix\nqueue\nrevision\nsession\nstatus\nstatus.json\nversion\n";

fn read(mount: &Path, name: &str) -> String {
    fs::read_to_string(mount.join(".quorumfs").join(name)).unwrap()
}

fn errno(result: std::io::Result<impl Sized>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

/// Does a command as a client that is no mount.
fn store(world: &World, command: Command) {
    let client = world.client();
    world.runtime.block_on(async {
        let session = client.session(Duration::from_secs(10), Duration::from_secs(10)).await.unwrap();
        session.write(command, Duration::from_secs(10)).await.unwrap().result.unwrap();
        session.close(Duration::from_secs(10)).await.unwrap();
    });
}

fn put(key: &str, value: &'static str) -> Command {
    Command::Put {
        target: Target::At(Key::parse(key.to_string()).unwrap().into()),
        value: value.into(),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease: LeaseChange::Keep,
    }
}

#[test]
fn it_is_found_by_name_and_by_nothing_else() {
    if !can_mount() {
        return;
    }
    let world = World::new("hidden", 1);
    let a = world.a();
    sh(a, "echo 1 > f; mkdir d; echo 2 > d/g");
    assert_eq!(sh(a, "ls -A"), "d\nf\n");
    assert_eq!(sh(a, "find . | sort"), ".\n./d\n./d/g\n./f\n");
    assert_eq!(sh(a, "ls .quorumfs | LC_ALL=C sort"), sh(a, &format!("printf '{FILES}' | LC_ALL=C sort")));
    assert_eq!(
        sh(a, "ls -ld .quorumfs | cut -c1-10; stat -c %A .quorumfs/status"),
        "dr-xr-xr-x\n-r--r--r--\n"
    );
    // `ls -l` asks for attributes of each, `grep -r` and `cp -r` read what is listed.
    sh(a, "ls -la .quorumfs > /dev/null; grep -rq 'connected to' .quorumfs");
    assert_eq!(sh(a, "grep -r . . | sort"), "./d/g:2\n./f:1\n");
    let copy = tempfile::tempdir().unwrap();
    sh(a, &format!("cp -a . {0}/all && cp -r .quorumfs {0}/said", copy.path().display()));
    assert!(!copy.path().join("all/.quorumfs").exists());
    assert_eq!(fs::read_to_string(copy.path().join("said/prefix")).unwrap(), "/\n");
    if shell(&["sh"], a, "command -v rsync").status.success() {
        sh(
            a,
            &format!(
                "mkdir {0}/from && echo 3 > {0}/from/h && rsync -a --delete {0}/from/ ./ && cat h",
                copy.path().display()
            ),
        );
        sh(
            a,
            &format!(
                "rsync -a ./ {0}/to/ && ls -A {0}/to && test ! -e {0}/to/.quorumfs",
                copy.path().display()
            ),
        );
        assert_eq!(sh(a, "ls -A; cat .quorumfs/prefix"), "h\n/\n");
    } else {
        eprintln!("NOT TESTED: there is no rsync here");
    }
    // What takes all away leaves it, and meets no error.
    sh(a, "rm -rf -- * && ls -A && cat .quorumfs/version");
    let output = shell(&["bash"], a, "find . -mindepth 1 -delete");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(read(a, "version"), concat!(env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn it_tells_of_now_at_each_open() {
    if !can_mount() {
        return;
    }
    let world = World::new("report", 2);
    let (a, b) = (world.a(), world.b());
    let number = |mount: &Path, name: &str| read(mount, name).trim().parse::<u64>().unwrap();
    // A session is a revision, too, and is opened beside the mount.
    for mount in [a, b] {
        eventually("the mount has its session", || read(mount, "session").trim() != "none");
    }
    world.settle();
    let before = number(a, "revision");
    fs::write(a.join("f"), "1").unwrap();
    assert_eq!(number(a, "revision"), before + 1);
    sh(b, "sync .");
    assert_eq!(number(b, "revision"), before + 1);
    assert_eq!((number(b, "lag"), number(b, "queue")), (0, 0));
    assert!(read(a, "leader").starts_with("n1 127.0.0.1:"));
    assert!(read(a, "members").starts_with("1 n1 127.0.0.1:") && read(a, "members").ends_with(" leader\n"));
    assert_ne!(read(a, "session"), read(b, "session"));
    let json: serde_json::Value = serde_json::from_str(&read(a, "status.json")).unwrap();
    assert_eq!(json["cluster"]["quorum"], true);
    assert_eq!(json["daemon"]["pid"], std::process::id());
    assert_eq!(json["daemon"]["supervisor"], serde_json::Value::Null);
    assert_eq!(json["mirror"]["keys"], 1);
    assert_eq!(json["mount"]["mountpoint"], a.to_str().unwrap());
    assert!(json["daemon"]["memory"].as_u64().unwrap() > 1 << 20);
    assert!(read(a, "status").contains("\nquorum        yes\n"), "{}", read(a, "status"));
    // One that is open keeps telling of when it was opened.
    let mut open = File::open(a.join(".quorumfs/revision")).unwrap();
    fs::write(a.join("f"), "2").unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text.trim(), (before + 1).to_string());
}

#[test]
fn without_a_quorum_it_says_so_soon() {
    if !can_mount() {
        return;
    }
    let mut world = World::new("report_alone", 1);
    fs::write(world.a().join("f"), "1").unwrap();
    world.stop_node();
    let a = world.a();
    eventually("it tells that nobody is followed", || {
        read(a, "status").contains("connected to  no node, for ")
    });
    let json: serde_json::Value = serde_json::from_str(&read(a, "status.json")).unwrap();
    assert_eq!(json["cluster"]["quorum"], false);
    let (since, at) = (&json["cluster"]["without_quorum_since"], json["at"].as_u64().unwrap());
    assert!(at - since.as_u64().unwrap() < 100_000, "{json}");
    assert_eq!((read(a, "leader").as_str(), read(a, "lag").as_str()), ("none\n", "unknown\n"));
    assert_eq!(read(a, "prefix"), "/\n");
}

#[test]
fn nobody_changes_it() {
    if !can_mount() {
        return;
    }
    let world = World::new("report_fixed", 1);
    let a = world.a();
    let own = a.join(".quorumfs");
    fs::write(a.join("f"), "1").unwrap();
    assert_eq!(errno(OpenOptions::new().write(true).open(own.join("status"))), libc::EPERM);
    assert_eq!(errno(fs::write(own.join("status"), "all is well")), libc::EPERM);
    assert_eq!(errno(fs::remove_file(own.join("status"))), libc::EPERM);
    assert_eq!(errno(fs::remove_dir(&own)), libc::EPERM);
    assert_eq!(errno(fs::create_dir(&own)), libc::EEXIST);
    assert_eq!(errno(fs::rename(&own, a.join("other"))), libc::EPERM);
    assert_eq!(errno(fs::rename(own.join("status"), a.join("other"))), libc::EPERM);
    assert_eq!(errno(fs::rename(a.join("f"), own.join("status"))), libc::EPERM);
    assert_eq!(
        errno(fs::set_permissions(own.join("status"), fs::metadata(a.join("f")).unwrap().permissions())),
        libc::EPERM
    );
    assert_eq!(
        errno(
            rustix::fs::setxattr(own.join("status"), "user.x", b"1", rustix::fs::XattrFlags::empty())
                .map_err(Into::into)
        ),
        libc::EPERM
    );
    let lock =
        rustix::fs::flock(File::open(own.join("status")).unwrap(), rustix::fs::FlockOperation::LockExclusive);
    assert_eq!(errno(lock.map_err(Into::into)), libc::EOPNOTSUPP);
    assert_eq!(sh(a, "cat f; ls -A"), "1f\n");
    assert!(read(a, "status").contains("quorum"));
}

/// The store may have that directory, too: both are there, and what the mount says wins.
#[test]
fn what_the_store_has_there_is_there_too() {
    if !can_mount() {
        return;
    }
    let world = World::new("report_merged", 2);
    let (a, b) = (world.a(), world.b());
    let own = |mount: &Path| mount.join(".quorumfs");
    // Both kernels hold the mount's own directory before the store has one.
    let inside = File::open(own(a)).unwrap();
    assert_eq!(read(b, "prefix"), "/\n");
    store(&world, put("/.quorumfs/notes", "everybody"));
    store(&world, put("/.quorumfs/status", "not to be seen"));
    world.settle();
    for mount in [a, b] {
        assert_eq!(read(mount, "notes"), "everybody");
        assert!(read(mount, "status").contains("connected to"));
        let names = sh(&own(mount), "ls -A | LC_ALL=C sort | tr '\\n' ' '");
        assert_eq!(
            names,
            "lag leader members notes prefix queue revision session status status.json version "
        );
        assert_eq!(sh(mount, "ls -A"), "");
    }
    drop(inside);
    // It is a directory like any other for what is in it.
    sh(a, "cd .quorumfs && echo nobody > notes.new && mv notes.new notes && mkdir old && echo x > old/notes");
    sh(b, "sync .");
    assert_eq!(read(b, "notes"), "nobody\n");
    assert_eq!(read(b, "old/notes"), "x\n");
    assert_eq!(errno(fs::write(own(a).join("status"), "x")), libc::EPERM);
    assert_eq!(errno(fs::remove_dir(own(a))), libc::EPERM);
    // Away with it: the mount's own is left. And back again.
    let at = |key: &str| Key::parse(key.to_string()).unwrap().into();
    store(
        &world,
        Command::Rename { from: at("/.quorumfs"), to: at("/elsewhere"), mode: RenameMode::NoReplace },
    );
    world.settle();
    for mount in [a, b] {
        assert!(!own(mount).join("notes").exists());
        assert!(read(mount, "status").contains("connected to"));
        assert_eq!(fs::read_to_string(mount.join("elsewhere/notes")).unwrap(), "nobody\n");
    }
    store(
        &world,
        Command::Rename { from: at("/elsewhere"), to: at("/.quorumfs"), mode: RenameMode::NoReplace },
    );
    world.settle();
    assert_eq!(read(a, "notes") + &read(b, "notes"), "nobody\nnobody\n");
    assert!(read(a, "status").contains("connected to") && read(b, "status").contains("connected to"));
}

/// On a mount of the whole store, the first name that is made there makes the store's directory.
#[test]
fn a_mount_can_make_the_policy() {
    if !can_mount() {
        return;
    }
    let world = World::new("report_made", 2);
    let (a, b) = (world.a(), world.b());
    assert!(read(a, "status").contains("connected to"));
    let policy = "rule = [{ who = ['admin'], admin = true, write = ['/'] }]\n";
    sh(
        a,
        &format!(
            "echo \"{}\" > .quorumfs/policy && cat .quorumfs/policy .quorumfs/prefix",
            policy.trim_end()
        ),
    );
    sh(b, "sync .");
    assert_eq!(read(b, "policy"), policy);
    assert!(read(b, "status").contains("connected to"));
}

#[test]
fn a_subtree_has_its_own() {
    if !can_mount() {
        return;
    }
    let mut world = World::new("report_subtree", 1);
    fs::create_dir(world.a().join("services")).unwrap();
    store(&world, put("/.quorumfs/notes", "everybody"));
    let part = world.mount(|config| config.prefix = Key::parse("/services").unwrap());
    let part = world.paths[part].clone();
    assert_eq!(read(&part, "prefix"), "/services\n");
    assert!(!part.join(".quorumfs/notes").exists());
    assert_eq!(sh(&part, "ls -A"), "");
    assert_eq!(errno(fs::write(part.join(".quorumfs/notes"), "mine")), libc::EPERM);
}
