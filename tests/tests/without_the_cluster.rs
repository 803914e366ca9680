//! What each system call does without a quorum, without a network, and over a bad one: the table of
//! docs/without-the-cluster.md, which is made from this file and checked against what happens.
//!
//! `QUORUMFS_WRITE_DOCS=1 cargo test -p quorumfs-tests --test without_the_cluster` writes the table.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use quorumfs_tests::binaries::binary;
use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::host::MountConfig;
use quorumfs_tests::inotify::Inotify;
use quorumfs_tests::network::NetHost;
use quorumfs_tests::process::{describe, run, succeed};
use quorumfs_tests::{Cluster, Host, Network, eventually, guard};
use rustix::fs::FlockOperation;

/// `timeout=` of the mounts that lose the cluster.
const TIMEOUT: Duration = Duration::from_secs(4);
/// What is at once has been answered before a time-out could have passed.
const AT_ONCE: Duration = TIMEOUT;
/// Calls that are two requests may take it twice, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(24);
/// Until a cluster is back.
const RECOVERY: Duration = Duration::from_secs(60);
/// Packets of a hundred that a bad network loses, each way.
const LOSS: u8 = 10;

/// The call that makes a process.
const EXECVE: &str = "`execve`";

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// It works, and asks nobody.
    Works,
    /// It works, and may ask a node first, but not for long.
    Soon,
    /// It works when the cluster has answered.
    Later,
    /// ETIMEDOUT.
    TimesOut,
    /// EPERM, as always.
    Never,
}

impl Does {
    fn text(self) -> &'static str {
        match self {
            Does::Works => "works, at once",
            Does::Soon => "works, within a second",
            Does::Later => "works, when a quorum has answered",
            Does::TimesOut => "`ETIMEDOUT`, within the time-out",
            Does::Never => "`EPERM`, at once, as always",
        }
    }

    fn check(self, result: &io::Result<()>, took: Duration) -> Result<(), String> {
        let (errno, bound) = match self {
            Does::Works | Does::Soon => (0, AT_ONCE),
            Does::Later => (0, PATIENCE),
            Does::TimesOut => (libc::ETIMEDOUT, PATIENCE),
            Does::Never => (libc::EPERM, AT_ONCE),
        };
        let got = result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
        if got == errno && took < bound {
            return Ok(());
        }
        Err(format!("{result:?} after {took:?}, not: {}", self.text()))
    }
}

type Act = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// One line of the table.
struct Row {
    call: &'static str,
    /// Makes what the call needs, in a directory of its own while all is well; gives the call.
    prepare: fn(PathBuf) -> Act,
    /// Without a quorum, and the same without a network.
    away: Does,
    /// Over a bad network.
    bad: Does,
}

const fn row(call: &'static str, away: Does, bad: Does, prepare: fn(PathBuf) -> Act) -> Row {
    Row { call, prepare, away, bad }
}

fn os(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A file with something in it, and its path.
fn file(dir: &Path) -> PathBuf {
    let path = dir.join("f");
    fs::write(&path, "before").unwrap();
    path
}

/// A file opened for writing while all is well.
fn writer(dir: &Path, flags: i32) -> File {
    OpenOptions::new().write(true).custom_flags(flags).open(file(dir)).unwrap()
}

/// What `fcntl` is told of a lock on a whole file.
fn whole() -> libc::flock {
    // SAFETY: it is plain numbers, for which 0 is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    lock
}

fn fcntl(file: &File, command: i32) -> io::Result<()> {
    let mut lock = whole();
    // SAFETY: the descriptor is open, and the lock lives as long as the call.
    os(unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) })
}

const ROWS: &[Row] = &[
    row("`open`, `read`, `close`", Does::Works, Does::Works, |dir| {
        let path = file(&dir);
        Box::new(move || fs::read(path).map(|text| assert_eq!(text, b"before")))
    }),
    row("`stat`, `access`; of a name that is not there: `ENOENT`", Does::Works, Does::Works, |dir| {
        let path = file(&dir);
        Box::new(move || {
            assert!(!dir.join("none").try_exists()?);
            fs::metadata(path).map(drop)
        })
    }),
    row("`readdir`", Does::Works, Does::Works, |dir| {
        file(&dir);
        Box::new(move || fs::read_dir(dir).map(|names| assert_eq!(names.count(), 1)))
    }),
    row("`readlink`", Does::Works, Does::Works, |dir| {
        symlink("to", dir.join("link")).unwrap();
        Box::new(move || fs::read_link(dir.join("link")).map(drop))
    }),
    row("`getxattr`, also of `user.kv.*`", Does::Works, Does::Works, |dir| {
        let path = file(&dir);
        Box::new(move || {
            let mut value = [0; 64];
            rustix::fs::getxattr(path, "user.kv.revision", &mut value)?;
            Ok(())
        })
    }),
    row(EXECVE, Does::Works, Does::Works, |dir| {
        let path = file(&dir);
        fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Box::new(move || {
            let output = run(Command::new(path), PATIENCE);
            assert!(output.status.success(), "{}", describe(&output));
            Ok(())
        })
    }),
    row("`inotify_add_watch`", Does::Works, Does::Works, |dir| {
        Box::new(move || Inotify::new().watch(&dir, "").map(drop))
    }),
    row("`statfs` (`df`)", Does::Soon, Does::Soon, |dir| {
        Box::new(move || {
            rustix::fs::statfs(&dir)?;
            Ok(())
        })
    }),
    row("`open` and `read` of `/.quorumfs/status`", Does::Soon, Does::Soon, |dir| {
        Box::new(move || {
            let mut text = String::new();
            File::open(dir.join("../.quorumfs/status"))?.read_to_string(&mut text)?;
            assert!(text.contains("\nquorum "), "{text}");
            Ok(())
        })
    }),
    row("`open` for writing, with or without `O_TRUNC`", Does::TimesOut, Does::Later, |dir| {
        let path = file(&dir);
        Box::new(move || OpenOptions::new().write(true).open(path).map(drop))
    }),
    row("`open` with `O_CREAT`, with or without `O_EXCL`", Does::TimesOut, Does::Later, |dir| {
        Box::new(move || OpenOptions::new().write(true).create_new(true).open(dir.join("new")).map(drop))
    }),
    row("`write` to a file that was opened before", Does::Works, Does::Works, |dir| {
        let mut file = writer(&dir, 0);
        Box::new(move || {
            let written = file.write_all(b"never seen");
            // Closing it is another line.
            std::thread::spawn(move || drop(file));
            written
        })
    }),
    row("`close` of a file that was written to", Does::TimesOut, Does::Later, |dir| {
        let mut file = writer(&dir, 0);
        Box::new(move || {
            file.write_all(b"after!")?;
            // SAFETY: the descriptor is ours, and is not used any more.
            os(unsafe { libc::close(file.into_raw_fd()) })
        })
    }),
    row("`close` of a file that was only read", Does::Works, Does::Works, |dir| {
        let file = File::open(file(&dir)).unwrap();
        // SAFETY: as above.
        Box::new(move || os(unsafe { libc::close(file.into_raw_fd()) }))
    }),
    row("`fsync` of a file", Does::TimesOut, Does::Later, |dir| {
        let mut file = writer(&dir, 0);
        Box::new(move || {
            file.write_all(b"after!")?;
            file.sync_all()
        })
    }),
    row("`fsync` of a directory, which is a barrier", Does::TimesOut, Does::Later, |dir| {
        Box::new(move || File::open(dir)?.sync_all())
    }),
    row("`write` with `O_SYNC`, or mounted with `-o sync`", Does::TimesOut, Does::Later, |dir| {
        let mut file = writer(&dir, libc::O_SYNC);
        Box::new(move || file.write_all(b"after!"))
    }),
    row("`mkdir`", Does::TimesOut, Does::Later, |dir| Box::new(move || fs::create_dir(dir.join("d")))),
    row("`rmdir`", Does::TimesOut, Does::Later, |dir| {
        fs::create_dir(dir.join("d")).unwrap();
        Box::new(move || fs::remove_dir(dir.join("d")))
    }),
    row("`unlink`", Does::TimesOut, Does::Later, |dir| {
        let path = file(&dir);
        Box::new(move || fs::remove_file(path))
    }),
    row("`rename`, `renameat2`", Does::TimesOut, Does::Later, |dir| {
        let path = file(&dir);
        Box::new(move || fs::rename(path, dir.join("g")))
    }),
    row("`symlink`", Does::TimesOut, Does::Later, |dir| Box::new(move || symlink("to", dir.join("link")))),
    row("`chmod`, `chown`, `utimensat`", Does::TimesOut, Does::Later, |dir| {
        let path = file(&dir);
        Box::new(move || fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
    }),
    row("`truncate`", Does::TimesOut, Does::Later, |dir| {
        let path = std::ffi::CString::new(file(&dir).into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: the path ends with a NUL and lives as long as the call.
        Box::new(move || os(unsafe { libc::truncate(path.as_ptr(), 1) }))
    }),
    row("`setxattr`, `removexattr`", Does::TimesOut, Does::Later, |dir| {
        let path = file(&dir);
        Box::new(move || {
            rustix::fs::setxattr(path, "user.x", b"1", rustix::fs::XattrFlags::empty())?;
            Ok(())
        })
    }),
    row("`flock`, waiting or not", Does::TimesOut, Does::Later, |dir| {
        let file = File::open(file(&dir)).unwrap();
        Box::new(move || Ok(rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)?))
    }),
    row("`fcntl` with `F_SETLK`, `F_SETLKW`", Does::TimesOut, Does::Later, |dir| {
        let file = writer(&dir, 0);
        Box::new(move || fcntl(&file, libc::F_SETLK))
    }),
    row("`fcntl` with `F_GETLK`", Does::TimesOut, Does::Later, |dir| {
        let file = writer(&dir, 0);
        Box::new(move || fcntl(&file, libc::F_GETLK))
    }),
    row("`flock` with `LOCK_UN`", Does::TimesOut, Does::Later, |dir| {
        let file = File::open(file(&dir)).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        Box::new(move || Ok(rustix::fs::flock(file, FlockOperation::Unlock)?))
    }),
    row("`link`", Does::Never, Does::Never, |dir| {
        let path = file(&dir);
        Box::new(move || fs::hard_link(path, dir.join("hard")))
    }),
];

/// What a column of the table looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    NoQuorum,
    NoNetwork,
    BadNetwork,
}

impl Case {
    fn does(self, row: &Row) -> Does {
        if self == Case::BadNetwork { row.bad } else { row.away }
    }
}

/// Prepares all calls, lets `begin` do its damage, and does all of them at the same time, each in a directory of
/// its own: who changes a directory holds its lock.
fn observe(case: Case, host: &Host, begin: impl FnOnce()) {
    let calls: Vec<(&Row, Act)> = (ROWS.iter().enumerate())
        .map(|(number, row)| {
            let dir = host.join(format!("{case:?}-{number}"));
            fs::create_dir(&dir).unwrap();
            (row, (row.prepare)(dir))
        })
        .collect();
    let probe = host.join(format!("{case:?}-probe"));
    fs::write(&probe, "x").unwrap();
    begin();
    if case != Case::BadNetwork {
        // For as long as the leader has answered a moment ago, an open is believed to be good.
        eventually("opening for writing is refused", RECOVERY, || {
            match OpenOptions::new().write(true).open(&probe) {
                Err(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    // A new process has this one's descriptors for a moment, and closing them publishes what was written: the one
    // call that makes a process comes before all that write.
    let (first, rest): (Vec<_>, Vec<_>) = calls.into_iter().partition(|(row, _)| row.call == EXECVE);
    let mut running = Vec::new();
    for (row, act) in first.into_iter().chain(rest) {
        let done = std::thread::spawn(move || {
            let begun = Instant::now();
            let result = act();
            (result, begun.elapsed())
        });
        while row.call == EXECVE && !done.is_finished() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        running.push((row, done));
    }
    let mut wrong = String::new();
    for (row, done) in running {
        let (result, took) = done.join().unwrap_or_else(|_| panic!("{case:?}: {} went wrong", row.call));
        eprintln!("{case:?}: {}: {result:?} after {took:?}", row.call);
        if let Err(what) = case.does(row).check(&result, took) {
            let _ = writeln!(wrong, "{case:?}: {}: {what}", row.call);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn mount(cluster: &Cluster, name: &str, network: &NetHost, timeout: Duration) -> Host {
    let options = vec![format!("timeout={}s", timeout.as_secs())];
    Host::mount_with(
        cluster,
        name,
        MountConfig { options, network: Some(network.clone()), ..Default::default() },
    )
}

#[test]
fn each_system_call_does_what_the_table_says() {
    let _guard = guard(480);
    let Some(network) = Network::start() else { return };
    let places: Vec<NetHost> = (0..3).map(|_| network.host()).collect();
    let mut cluster = Cluster::start_on(&places);

    let bad = network.host();
    let host = mount(&cluster, "bad", &bad, PATIENCE);
    observe(Case::BadNetwork, &host, || bad.lose(LOSS));
    bad.heal();
    drop(host);

    let cut = network.host();
    let host = mount(&cluster, "cut", &cut, TIMEOUT);
    observe(Case::NoNetwork, &host, || cut.cut());
    let refused = try_to_mount(&cluster, "late", &cut);
    assert!(refused.contains("no node could be reached"), "{refused}");
    cut.heal();
    eventually("the host that was cut off writes again", RECOVERY, || fs::write(host.join("again"), "x"));

    // The leader lives, and has nobody to agree with.
    let leader = cluster.leader();
    observe(Case::NoQuorum, &host, || {
        for id in cluster.ids().into_iter().filter(|id| *id != leader) {
            cluster.node_mut(id).kill();
        }
    });
    // A host that boots now can read what a node has.
    let late = mount(&cluster, "late", &network.host(), TIMEOUT);
    assert_eq!(fs::read_to_string(late.join("again")).unwrap(), "x");
    // And nothing holds a mount that has lost the cluster.
    let begun = Instant::now();
    let mut umount = Command::new("umount");
    umount.arg(late.path());
    succeed(&run(umount, PATIENCE));
    let took = begun.elapsed();
    assert!(!late.is_mounted() && took < AT_ONCE, "umount took {took:?}");
    cluster.start_all();
    eventually("writes go on", RECOVERY, || fs::write(host.join("again"), "y"));
}

/// What `fsd mount` says where it cannot mount.
fn try_to_mount(cluster: &Cluster, name: &str, network: &NetHost) -> String {
    cluster.issue_client(name);
    let place = Scratch::new("refused");
    let mut command = Command::new(binary("fsd"));
    command.arg("mount").arg(cluster.addresses()).arg(place.path()).arg("--certs").arg(cluster.certs());
    command.args(["--name", name]);
    network.enter(&mut command);
    let output = run(command, RECOVERY);
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The page says what this file says.
#[test]
fn the_page_has_this_table() {
    const BEGIN: &str = "<!-- The table is made by tests/tests/without_the_cluster.rs. -->\n";
    const END: &str = "\n<!-- End of the table. -->";
    let mut table =
        "| system call | no quorum, or no network | a network that loses packets |\n|---|---|---|\n"
            .to_string();
    for row in ROWS {
        let _ = writeln!(table, "| {} | {} | {} |", row.call, row.away.text(), row.bad.text());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/without-the-cluster.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page says where the table begins");
    let (there, after) = rest.split_once(END).expect("the page says where the table ends");
    if std::env::var_os("QUORUMFS_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(there, table, "QUORUMFS_WRITE_DOCS=1 in the environment of this test writes it anew");
}
