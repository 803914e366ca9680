//! What shells and the usual tools do on one host arrives on the other, whole: each script runs once
//! on tmpfs and once on host A, in bash, dash and busybox, and all three trees have to be the same.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::pair::{PROPAGATION, Place, pair};
use quorumfs_tests::process::{describe, run};
use quorumfs_tests::shell::Shell;
use quorumfs_tests::{guard, tree};

/// What is there before each script.
const PREPARE: &str = "umask 022; mkdir dir; printf 'one\\ntwo\\nthree\\n' > old; printf x > dir/inside; \
     ln -s old link; chmod 640 old";

/// One line each; each begins with [`PREPARE`] done.
const SCRIPTS: &[&str] = &[
    // Writing: with and without a value, new and existing, whole and at the end.
    "echo x > new",
    "echo x > old",
    ": > new",
    ": > old",
    "> old",
    "echo > old",
    "printf '' > new",
    "echo more >> old",
    "echo first >> new",
    ": >> new",
    "echo x > link",
    "echo a > old; echo b > old; echo c >> old",
    "{ echo a; echo b; } > new",
    "( echo a; cat old; echo b ) > new",
    "for i in 1 2 3 4 5 6 7 8 9; do echo $i >> new; done",
    "for i in 1 2 3; do echo $i; done > new",
    "exec 3> new; echo a >&3; echo b >&3; exec 3>&-; cat new",
    "exec 3>> old; echo a >&3; exec 3>&-; cat old",
    "exec 3< old; rm old; cat <&3; exec 3<&-",
    "exec 3< old; echo changed > old; cat old; exec 3<&-",
    "set -C; echo x > new; if (echo y > new) 2>/dev/null; then echo overwritten; fi; cat new",
    "cat > new <<E\nhere\nE",
    "echo a | tee new old",
    "echo a | tee -a old",
    "while read -r l; do echo \"<$l>\"; done < old > new",
    "read -r l < old; echo $l",
    "echo x > dir/deep; echo y > dir/inside",
    "echo 'name with blanks' > 'a b  c'; echo ü > ü; echo d > -- ; ls",
    // Lengths.
    "truncate -s 3 old",
    "truncate -s 0 old",
    "truncate -s 100 old",
    "truncate -s 10 new",
    "dd if=old of=new bs=2 2>/dev/null",
    "dd if=/dev/zero of=new bs=1000 count=70 2>/dev/null; wc -c < new",
    "dd if=old of=new bs=1 skip=2 seek=5 2>/dev/null",
    "printf XX | dd of=old bs=1 seek=4 conv=notrunc 2>/dev/null",
    "dd if=old of=new conv=fsync 2>/dev/null",
    // Tools that write a file and rename it, or copy.
    "cp old new",
    "cp old dir/inside",
    "cp -p old new; ls -l new | cut -c1-10",
    "cp -a dir copy",
    "cp -r dir copy; cp -r dir copy",
    "sed -i s/two/zwei/ old",
    "sed -i -e 1d -e s/three/drei/ old; cat old",
    "sort -r old > sorted; mv sorted old",
    "sort -o old old",
    "mv old new",
    "mv old dir",
    "mv old dir/inside",
    "mv dir moved; cat moved/inside",
    "mkdir into; mv dir old link into",
    "ln -s nowhere dangling; readlink dangling",
    "ln -sfn dir link; ls link/",
    "ln -s v1 ..data; ln -s v2 tmp; mv -T tmp ..data; readlink ..data",
    "mkdir -p a/b/c/d; mkdir -p a/b; echo x > a/b/c/d/e",
    "mkdir one two; rmdir one",
    "rm old link",
    "rm -f nothing old",
    "rm -r dir",
    "mkdir -p a/b/c; echo x > a/b/f; rm -rf a dir",
    "touch new; touch old; touch -c nothing",
    "touch -d '2001-02-03 04:05:06' old; TZ=UTC ls -l old | tr -s ' ' | cut -d' ' -f5-8",
    "chmod 600 old; chmod u+x,g-r dir; chmod -R go= dir",
    "f=$(mktemp ./tmp.XXXXXX); echo x > $f; mv $f new",
    "tar cf - old dir | (mkdir out; cd out; tar xf -)",
    "find . -type f | sort | xargs cat; find . -name inside -exec rm {} \\;",
    "install -m 600 old new; install -d -m 700 made",
    "test ! -e nothing; test -s old; test -d dir; test -L link; test -w old; [ old -nt nothing ]",
    "cd dir; echo x > ../up; cd ..; ls; pwd | grep -c .",
    "cat old old > new; cmp old old; ! cmp -s old new",
    "head -c 70000 /dev/zero | tr '\\0' a > new; wc -c < new; md5sum < new",
    "printf 'abc' > new; printf 'X' 1<> new; cat new",
    "rmdir dir 2>/dev/null || echo refused; mkdir dir 2>/dev/null || echo exists",
    "echo x > missing/file 2>/dev/null || echo no",
    "cat dir 2>/dev/null || echo no",
];

/// Runs all scripts in one shell.
fn all_scripts(shell: Shell) {
    let _guard = guard(200);
    let mut failures = Vec::new();
    for (number, script) in SCRIPTS.iter().enumerate() {
        let label = format!("{}-{number}", shell.name());
        if let Err(reason) = one_script(shell, &label, script) {
            failures.push(format!("{script}\n    {reason}"));
        }
    }
    assert!(failures.is_empty(), "{} scripts in {shell:?} failed:\n{}", failures.len(), failures.join("\n"));
}

fn one_script(shell: Shell, label: &str, script: &str) -> Result<(), String> {
    let place = pair().place(label);
    let tmpfs = Scratch::on_tmpfs(label);
    let mut printed = Vec::new();
    for dir in [tmpfs.path(), &place.a] {
        shell.run(dir, PREPARE);
        let output = shell.output(dir, script);
        printed.push((
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            describe(&output),
        ));
    }
    let (here, there) = (&printed[1], &printed[0]);
    if (here.0, &here.1) != (there.0, &there.1) {
        return Err(format!("on the mount: {}\n    on tmpfs: {}", here.2, there.2));
    }
    // What was only emptied is published when the kernel lets go of the file, a moment after its close.
    let begun = Instant::now();
    loop {
        match compare(&place, tmpfs.path()) {
            Err(_) if begun.elapsed() < PROPAGATION => std::thread::yield_now(),
            result => return result,
        }
    }
}

/// Compares both hosts with a local directory, as of now.
fn compare(place: &Place, tmpfs: &Path) -> Result<(), String> {
    File::open(&place.b).and_then(|d| d.sync_all()).map_err(|e| format!("fsync on B: {e}"))?;
    let wanted = tree::read(tmpfs);
    for (host, dir) in [("A", &place.a), ("B", &place.b)] {
        let difference = tree::difference(("tmpfs", &wanted), (host, &tree::read(dir)));
        if !difference.is_empty() {
            return Err(difference);
        }
        let (ours, theirs) = (tree::modes(dir), tree::modes(tmpfs));
        if ours != theirs {
            return Err(format!("modes on {host}: {ours:?}\n    on tmpfs: {theirs:?}"));
        }
    }
    Ok(())
}

#[test]
fn bash() {
    all_scripts(Shell::Bash);
}

#[test]
fn dash() {
    all_scripts(Shell::Dash);
}

#[test]
fn busybox() {
    all_scripts(Shell::Busybox);
}

/// vim in both of its ways to write (in place, and by renaming), with and without a swap file.
#[test]
fn vim_writes_a_file_that_the_other_host_reads() {
    let _guard = guard(60);
    let place = pair().place("vim");
    let editor = ["vim.tiny", "vim"]
        .into_iter()
        .find(|e| std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| dir.join(e).exists()));
    let Some(editor) = editor else {
        eprintln!("SKIPPED: no vim on this machine");
        return;
    };
    for (number, settings) in [
        "set backupcopy=yes",
        "set backupcopy=no",
        "set backupcopy=no writebackup",
        "set nowritebackup",
        "set backup",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("f{number}");
        fs::write(place.a.join(&name), "one\ntwo\n").unwrap();
        let mut command = Command::new(editor);
        command.args(["-u", "NONE", "-i", "NONE", "-es", "-c", settings, "-c", "%s/two/zwei/", "-c", "wq"]);
        if number % 2 == 0 {
            command.arg("-n");
        }
        command.arg(&name).current_dir(&place.a).env("TERM", "dumb");
        let output = run(command, std::time::Duration::from_secs(20));
        assert!(output.status.success(), "{settings}: {}", describe(&output));
        barrier(&place.b);
        assert_eq!(fs::read_to_string(place.b.join(&name)).unwrap(), "one\nzwei\n", "{settings}");
        let left: Vec<_> = fs::read_dir(&place.b).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(
            !left.iter().any(|n| n.to_string_lossy().ends_with(".swp")),
            "{settings}: a swap file is left: {left:?}"
        );
    }
}

/// Values up to the limit travel whole, and one byte more is refused with EFBIG, with nothing left.
#[test]
fn large_values() {
    let _guard = guard(60);
    let place = pair().place("large");
    for size in [1, 4095, 4096, 4097, 131_072, 131_073, 1 << 20] {
        let value: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        fs::write(place.a.join("f"), &value).unwrap();
        barrier(&place.b);
        assert!(fs::read(place.b.join("f")).unwrap() == value, "{size} bytes");
    }
    let before = fs::read(place.a.join("f")).unwrap();
    // At the write, or at the latest at the fsync that follows it.
    let too_large = |path: &Path| {
        let mut file = File::create(path)?;
        file.write_all(&vec![0; (1 << 20) + 1])?;
        file.sync_all()
    };
    let refused = too_large(&place.a.join("f")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EFBIG), "{refused}");
    barrier(&place.b);
    for dir in [&place.a, &place.b] {
        assert!(fs::read(dir.join("f")).unwrap() == before, "a refused write left something in {dir:?}");
    }
    // Tools that look at the errors of write and close say so; what they wrote before it counts for nothing.
    let output = Shell::Bash.output(&place.a, "dd if=/dev/zero of=f bs=1M count=2");
    assert!(!output.status.success() && describe(&output).contains("too large"), "{}", describe(&output));
    barrier(&place.b);
    assert!(fs::read(place.b.join("f")).unwrap() == before, "a part of a value was published");
}

/// Names that are legal are kept byte by byte; those that are not get the errno that POSIX says.
#[test]
fn names() {
    let _guard = guard(60);
    use std::os::unix::ffi::OsStrExt as _;
    let place = pair().place("names");
    let longest = "n".repeat(255);
    let odd: [&[u8]; 5] = [b"...", b" ", b"\xff\xfe", b"a\nb", longest.as_bytes()];
    for name in odd {
        let name = std::ffi::OsStr::from_bytes(name);
        fs::write(place.a.join(name), "x").unwrap_or_else(|e| panic!("{name:?}: {e}"));
        barrier(&place.b);
        assert_eq!(fs::read_to_string(place.b.join(name)).unwrap(), "x", "{name:?}");
    }
    let refused = fs::write(place.a.join("n".repeat(256)), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENAMETOOLONG));
}

/// The computed attributes say what the store knows of a key.
#[test]
fn xattrs_of_the_store() {
    let _guard = guard(60);
    let place = pair().place("xattrs");
    let get = |dir: &Path, name: &str| -> String {
        let mut buffer = [0u8; 256];
        let length =
            rustix::fs::getxattr(dir.join("f"), name, &mut buffer).unwrap_or_else(|e| panic!("{name}: {e}"));
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    fs::write(place.a.join("f"), "1").unwrap();
    fs::write(place.a.join("f"), "2").unwrap();
    barrier(&place.b);
    assert_eq!(get(&place.b, "user.kv.author"), "host-a");
    assert_eq!(get(&place.b, "user.kv.version"), "2");
    let created: u64 = get(&place.b, "user.kv.create_revision").parse().unwrap();
    let changed: u64 = get(&place.b, "user.kv.revision").parse().unwrap();
    assert!(created < changed, "{created} {changed}");
    fs::write(place.b.join("f"), "3").unwrap();
    barrier(&place.a);
    assert_eq!(get(&place.a, "user.kv.author"), "host-b");
    assert_eq!(get(&place.a, "user.kv.version"), "3");
    assert!(get(&place.a, "user.kv.revision").parse::<u64>().unwrap() > changed);
    let refused =
        rustix::fs::setxattr(place.a.join("f"), "user.kv.version", b"9", rustix::fs::XattrFlags::empty());
    assert!(refused.is_err(), "a computed attribute cannot be set");
}

/// Numbers of inodes are the store's: the same on every host, kept by an update and a rename, new after
/// a delete. (A file that a host creates has a number of the host's own there, for as long as its kernel
/// holds it: it had to be known before it was published.)
#[test]
fn inode_numbers_are_the_same_everywhere() {
    use std::os::unix::fs::MetadataExt as _;
    let _guard = guard(60);
    let place = pair().place("inodes");
    let number = |dir: &Path, name: &str| fs::metadata(dir.join(name)).unwrap().ino();
    pair().kv.put(&place.key("f"), "1");
    fs::create_dir(place.a.join("d")).unwrap();
    barrier(&place.a);
    barrier(&place.b);
    let first = number(&place.a, "f");
    assert_eq!(number(&place.b, "f"), first);
    assert_eq!(number(&place.b, "d"), number(&place.a, "d"));
    fs::write(place.b.join("f"), "2").unwrap();
    barrier(&place.a);
    assert_eq!(number(&place.a, "f"), first, "an update keeps the inode");
    fs::rename(place.a.join("f"), place.a.join("g")).unwrap();
    barrier(&place.b);
    assert_eq!(number(&place.b, "g"), first, "a rename keeps the inode");
    fs::remove_file(place.a.join("g")).unwrap();
    pair().kv.put(&place.key("g"), "3");
    barrier(&place.a);
    barrier(&place.b);
    assert_ne!(number(&place.b, "g"), first, "a new file has a new inode");
    assert_eq!(number(&place.a, "g"), number(&place.b, "g"));
}

#[track_caller]
fn barrier(dir: &Path) {
    File::open(dir).and_then(|d| d.sync_all()).unwrap_or_else(|e| panic!("fsync of {dir:?}: {e}"));
}
