//! Mounting as one mounts: mount(8), fstab, umount(8), ordinary users, containers. Each test has mount and pid
//! namespaces of its own, so that nothing of it is seen outside, and nothing is left when it ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use quorumfs_tests::binaries::binary;
use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::process::{self, SIGKILL, describe, run, succeed};
use quorumfs_tests::{Cluster, Host, guard, until};

/// How long one of the scripts may take on a busy machine.
const SCRIPT: Duration = Duration::from_secs(90);
/// How long a change may take from one mount to another.
const SHOWN: Duration = Duration::from_secs(30);

/// What every script begins with: a private mount namespace in which `/sbin` can be written.
const PRELUDE: &str = r#"
set -eu
fail() { echo "FAILED: $*" >&2; exit 1; }
# Polls for 20 s.
eventually() { local n=0; until "$@" >/dev/null 2>&1; do n=$((n + 1)); [ $n -lt 400 ] || fail "not in time: $*"; sleep 0.05; done; }
refused() { # CODE WORD COMMAND...: it fails with that code, and says the word
    local code=$1 word=$2 got=0 said; shift 2
    said=$("$@" 2>&1) || got=$?
    [ "$got" = "$code" ] || fail "$* ended with $got, not $code: $said"
    case $said in *"$word"*) ;; *) fail "$* does not say '$word' but: $said" ;; esac
}
sbin=$(readlink -f /sbin)
mkdir -p "$S/orig" "$S/sbin" "$S/kv" "$S/ro" "$S/web"
mount --bind "$sbin" "$S/orig"
for f in "$S"/orig/*; do ln -s "$f" "$S/sbin/"; done
mount --bind "$S/sbin" "$sbin"
"#;

fn is_root() -> bool {
    // SAFETY: geteuid cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("SKIPPED: mount(8) and namespaces need root; this test proved nothing");
    }
    root
}

/// A command in new mount and pid namespaces, which end with it.
fn apart() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command
}

/// A script apart, with what it needs to know in its environment.
fn script(cluster: &Cluster, dir: &Path, text: &str) -> Command {
    let mut command = apart();
    command.args(["bash", "-c", &format!("{PRELUDE}{text}")]);
    command.env("S", dir).env("NODES", cluster.addresses()).env("CERTS", cluster.certs());
    command.env("BIN", binary("fsd").parent().unwrap()).env("LC_ALL", "C");
    command.env("REPO", Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    for name in ["QUORUMFS_NODES", "QUORUMFS_CERTS", "QUORUMFS_NAME"] {
        command.env_remove(name);
    }
    command
}

/// mount(8), its options, fstab, umount(8), with what `scripts/install` installs.
#[test]
fn mount_and_fstab_work_as_for_any_file_system() {
    let _guard = guard(180);
    if !is_root() {
        return;
    }
    let cluster = Cluster::start(1);
    let kv = cluster.kv();
    kv.put("/services/web", "80");
    cluster.issue_client("host1");
    let scratch = Scratch::new("mounting");
    let text = r#"
"$REPO/scripts/install" --from "$BIN" --prefix "$S/usr"
who="certs=$CERTS,name=host1"
gone() { ! pgrep -x fsd; }
# Other tests have mounts, which this namespace has copies of.
mounted() { findmnt -rno TARGET -t fuse.quorumfs | grep "^$S/" || true; }

# It is usable when mount returns, and named as one would expect.
mount -t quorumfs "$NODES" "$S/kv" -o "cert=$CERTS/host1.crt,noexec"
[ "$(cat "$S/kv/services/web")" = 80 ] || fail "it cannot be read at once"
echo 1 > "$S/kv/f"
[ "$(findmnt -no FSTYPE,SOURCE "$S/kv" | tr -s ' ')" = "fuse.quorumfs $NODES" ] || fail "$(findmnt -no FSTYPE,SOURCE "$S/kv")"
mount | grep -q " on $S/kv type fuse.quorumfs (rw,nosuid,nodev,noexec,noatime," || fail "$(mount | grep quorumfs)"
refused 32 "mounted quorumfs already" mount -t quorumfs "$NODES" "$S/kv" -o "$who"
refused 32 "unmount it" mount -o remount,ro "$S/kv"
umount "$S/kv"
eventually gone
[ -z "$(ls -A "$S/kv")" ] || fail "the mount is still there"

# A whole line, then fstab. `mount -a` knows what is mounted.
cat > "$S/fstab" <<TAB
$NODES $S/ro  quorumfs $who,ro,_netdev,nofail,noauto,x-systemd.automount 0 0
$NODES $S/web quorumfs $who,prefix=/services,uid=1234,gid=4321,umask=027,timeout=3s,_netdev,nofail 0 0
TAB
mount -T "$S/fstab" -a
mount -T "$S/fstab" -a
[ "$(mounted)" = "$S/web" ] || fail "mounted twice: $(mounted)"
[ "$(stat -c '%u %g %a' "$S/web/web")" = "1234 4321 640" ] || fail "$(stat -c '%u %g %a' "$S/web/web")"
[ "$(cat "$S/web/.quorumfs/prefix")" = /services ] || fail prefix
mount -T "$S/fstab" "$S/ro"
refused 1 "Read-only file system" touch "$S/ro/g"
refused 1 "Read-only file system" rm "$S/ro/f"
[ "$(cat "$S/ro/f")" = 1 ] || fail "read-only"
mounted | xargs umount
eventually gone

# What is wrong is said by mount, with its exit codes.
refused 32 "color" mount -t quorumfs "$NODES" "$S/kv" -o "$who,color=red"
refused 32 "octal" mount -t quorumfs "$NODES" "$S/kv" -o "$who,umask=rwx"
refused 32 "prefix /none does not exist" mount -t quorumfs "$NODES" "$S/kv" -o "$who,prefix=/none"
refused 32 "nobody" mount -t quorumfs "$NODES" "$S/kv" -o "certs=$CERTS,name=nobody"
refused 32 "127.0.0.1:1:" mount -t quorumfs 127.0.0.1:1 "$S/kv" -o "$who"
refused 32 "n1:x" mount -t quorumfs n1:x "$S/kv" -o "$who"
refused 1 "mount.quorumfs" mount.quorumfs "$NODES"
[ -z "$(mounted)" ] || fail "something is mounted"

# -f mounts nothing, -s passes over what is not known, -N mounts elsewhere.
mount -f -t quorumfs "$NODES" "$S/kv" -o "$who"
[ -z "$(mounted)" ] || fail "mount -f mounted"
mount -s -t quorumfs "$NODES" "$S/kv" -o "$who,color=red"
umount "$S/kv"
unshare --mount --propagation private sleep 1000 &
elsewhere() { [ "$(readlink /proc/$!/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; }
eventually elsewhere
mount -N $! -t quorumfs "$NODES" "$S/kv" -o "$who"
[ -z "$(mounted)" ] || fail "mount -N mounted here"
nsenter --mount=/proc/$!/ns/mnt cat "$S/kv/f" || fail "mount -N did not mount there"
kill $!
eventually gone

"$REPO/scripts/install" --uninstall --prefix "$S/usr"
refused 32 "quorumfs" mount -t quorumfs "$NODES" "$S/kv" -o "$who"
"#;
    succeed(&run(script(&cluster, scratch.path(), text), SCRIPT));
    assert_eq!(kv.get("/f").as_deref(), Some("1\n"));
}

/// What users who are not root can do, and what they are told where they cannot.
#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    let _guard = guard(180);
    if !is_root() {
        return;
    }
    let cluster = Cluster::start(1);
    cluster.kv().put("/f", "1");
    cluster.issue_client("client");
    let scratch = Scratch::new("user");
    let text = r#"
# A home of somebody, with programs that everybody can reach.
chmod 755 "$S"
mkdir "$S/home" "$S/home/kv" "$S/home/pki" "$S/bin"
cp "$BIN/fsd" "$S/bin/"
ln -s "$S/bin/fsd" "$sbin/mount.quorumfs"
cp "$CERTS/ca.crt" "$CERTS/client.crt" "$CERTS/client.key" "$S/home/pki"
# fusermount3 wants a user with a name.
uid=$(id -u nobody) gid=$(id -g nobody)
chown -R "$uid:$gid" "$S/home"
cat > "$S/fstab" <<TAB
$NODES $S/home/kv quorumfs certs=$S/home/pki,name=client,user,noauto 0 0
TAB
mount --bind "$S/fstab" /etc/fstab
: > "$S/fuse.conf"
[ -e /etc/fuse.conf ] || touch /etc/fuse.conf
mount --bind "$S/fuse.conf" /etc/fuse.conf
user() { HOME=$S/home setpriv --reuid $uid --regid $gid --clear-groups -- "$@"; }
gone() { ! pgrep -x fsd; }
# udev gives it to everybody; where there is no udev, it is given here.
user test -w /dev/fuse || { mknod "$S/fuse" c 10 229; chmod 666 "$S/fuse"; mount --bind "$S/fuse" /dev/fuse; }
me="--certs $S/home/pki --name client"

cd /
user "$S/bin/fsd" mount "$NODES" "$S/home/kv" $me --daemon
[ "$(user cat "$S/home/kv/f")" = 1 ] || fail "it cannot be read"
user sh -c "echo 2 > $S/home/kv/f; mkdir $S/home/kv/d"
[ "$(user stat -c '%u %U' "$S/home/kv/d" | cut -d' ' -f1)" = "$uid" ] || fail "it is not the user's"
[ "$(findmnt -no FSTYPE,SOURCE "$S/home/kv" | tr -s ' ')" = "fuse.quorumfs $NODES" ] || fail "$(findmnt -no FSTYPE,SOURCE "$S/home/kv")"
user "$S/bin/fsd" status "$S/home/kv" | grep -q "^quorum  *yes" || fail status
# Root is another user here, as with every FUSE mount.
refused 1 "another user" "$S/bin/fsd" status "$S/home/kv"
refused 1 "chown" user chown 0 "$S/home/kv/d"
user fusermount3 -u "$S/home/kv"
eventually gone

# By a line of fstab that says so.
user mount "$S/home/kv"
[ "$(user cat "$S/home/kv/f")" = 2 ] || fail "mounted by fstab, it cannot be read"
user umount "$S/home/kv"
eventually gone

# And what does not work.
refused 1 "/kv" user "$S/bin/fsd" mount "$NODES" "$S/kv" $me
refused 1 "user_allow_other" user "$S/bin/fsd" mount "$NODES" "$S/home/kv" $me -o allow_other
echo user_allow_other > "$S/fuse.conf"
user "$S/bin/fsd" mount "$NODES" "$S/home/kv" $me -o allow_other --daemon
[ "$(cat "$S/home/kv/f")" = 2 ] || fail "allow_other"
user "$S/bin/fsd" umount "$S/home/kv"
eventually gone
chmod 600 "$S/home/pki/client.key"; chown 0 "$S/home/pki/client.key"
refused 1 "client.key" user "$S/bin/fsd" mount "$NODES" "$S/home/kv" $me
"#;
    succeed(&run(script(&cluster, scratch.path(), text), SCRIPT));
}

/// A directory of the mount is bound into a container: events, writes and locks work through it.
#[test]
fn a_container_sees_a_bind_mount() {
    let _guard = guard(180);
    if !is_root() {
        return;
    }
    let cluster = Cluster::start(1);
    let (a, b) = (Host::mount(&cluster, "host-a"), Host::mount(&cluster, "host-b"));
    fs::create_dir(a.join("app")).unwrap();
    fs::write(a.join("app/config"), "1").unwrap();
    fs::write(a.join("app/lock"), "").unwrap();
    until("B shows it", SHOWN, || b.join("app/lock").exists());
    let scratch = Scratch::new("container");
    let root = scratch.path().to_path_buf();
    let text = r#"
mkdir "$S/in"
mount --bind "$A/app" "$S/in"
cd "$S/in"
# The way around is closed.
umount -l "$A"
inotifywait -q -m --format '%e %f' . > "$S/events" 2> "$S/errors" &
echo "$$" > "$S/pid"
read -r _ < "$S/go"
cat config > "$S/seen"
echo from-inside > answer
# Waits for the lock that the other host has, and is interrupted.
got=0; timeout -s TERM 1 flock lock true || got=$?
[ "$got" = 124 ] || fail "timeout ended with $got"
touch "$S/interrupted"
flock lock sh -c 'echo held > held'
"#;
    succeed(&run(
        {
            let mut c = Command::new("mkfifo");
            c.arg(root.join("go"));
            c
        },
        SHOWN,
    ));
    let mut command = apart();
    command.args(["bash", "-euc", &format!("fail() {{ echo \"FAILED: $*\" >&2; exit 1; }}\n{text}")]);
    command.env("S", &root).env("A", a.path()).stdout(Stdio::null()).stderr(Stdio::piped());
    let held = fs::File::open(b.join("app/lock")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let container = process::spawn(command, SIGKILL).unwrap();
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    until("it is watched inside", SHOWN, || !read("pid").is_empty() && is_watched(container.id()));
    fs::write(b.join("app/config"), "2").unwrap();
    until("the event is seen inside", SHOWN, || read("events").contains("CLOSE_WRITE,CLOSE config"));
    assert_eq!(read("events").lines().next(), Some("OPEN config"), "{}", read("events"));
    fs::write(root.join("go"), "\n").unwrap();
    until("what is written inside is seen outside", SHOWN, || {
        fs::read_to_string(b.join("app/answer")).is_ok_and(|text| text == "from-inside\n")
    });
    assert_eq!(read("seen"), "2");
    until("a waiter for a lock can be interrupted", SHOWN, || root.join("interrupted").exists());
    assert!(!b.join("app/held").exists());
    drop(held);
    let output = container.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    until("the lock was had inside", SHOWN, || b.join("app/held").exists());
}

/// The other way round: the daemon is in a container, and whoever waits is outside: the kernel then calls every
/// process 0.
#[test]
fn a_waiter_that_the_daemon_cannot_see_can_be_interrupted() {
    let _guard = guard(180);
    if !is_root() {
        return;
    }
    let cluster = Cluster::start(1);
    let b = Host::mount(&cluster, "host-b");
    fs::write(b.join("lock"), "").unwrap();
    let scratch = Scratch::new("inside");
    let point = scratch.path().join("kv");
    fs::create_dir(&point).unwrap();
    cluster.issue_client("host-a");
    let mut command = apart();
    command.arg(binary("fsd")).arg("mount").arg(cluster.addresses()).arg(&point);
    command.arg("--certs").arg(cluster.certs()).args(["--name", "host-a"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut container = process::spawn(command, SIGKILL).unwrap();
    let inside = || children(container.id()).first().map(|pid| PathBuf::from(format!("/proc/{pid}/root")));
    let there = |name: &str| inside().map(|root| root.join(point.strip_prefix("/").unwrap()).join(name));
    until("it is mounted inside", SHOWN, || there(".quorumfs/version").is_some_and(|path| path.exists()));
    let held = fs::File::open(b.join("lock")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let flock = |words: &[&str]| {
        let mut command = Command::new("timeout");
        command.args(words).arg("flock").arg(there("lock").unwrap()).arg("true");
        command
    };
    let begun = Instant::now();
    let output = run(flock(&["-s", "TERM", "1"]), SHOWN);
    assert_eq!(output.status.code(), Some(124), "{} after {:?}", describe(&output), begun.elapsed());
    // One that waits gets the lock when it is free; after a few seconds it would be sent away, and asks again.
    let waiter = process::spawn(flock(&["60"]), SIGKILL).unwrap();
    until("it waits", SHOWN, || !children(waiter.id()).is_empty());
    drop(held);
    let output = waiter.wait_with_output().unwrap();
    if !output.status.success() {
        succeed(&run(flock(&["60"]), SHOWN));
    }
    process::signal(container.id(), SIGKILL);
    let _ = container.wait();
}

/// Processes that a process has started.
fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    tasks.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Whether some process below this one has an inotify watch.
fn is_watched(pid: u32) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let watches = |path: PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("inotify wd:"));
    fds.map(|entry| entry.path()).any(watches) || children(pid).into_iter().any(is_watched)
}

/// The examples for systemd are what systemd understands.
#[test]
fn systemd_understands_the_units() {
    let available = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status();
    if !available.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no systemd-analyze here; this test proved nothing");
        return;
    }
    let scratch = Scratch::new("units");
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/systemd");
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]);
    for entry in fs::read_dir(units).unwrap() {
        let path = entry.unwrap().path();
        // Here nothing is installed where the example says.
        let program = binary("raftnode");
        let text = fs::read_to_string(&path).unwrap();
        let unit = scratch.path().join(path.file_name().unwrap());
        fs::write(&unit, text.replace("/usr/local/bin/raftnode", program.to_str().unwrap())).unwrap();
        command.arg(unit);
    }
    let output = run(command, SCRIPT);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", describe(&output));
}
