//! The first promises, on two mounts of one store.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{World, can_mount, sh, shell};

const SHELLS: [&[&str]; 3] = [&["bash"], &["dash"], &["busybox", "sh"]];

#[test]
fn what_is_written_on_one_mount_is_read_on_the_other() {
    if !can_mount() {
        return;
    }
    let world = World::new("write_read", 2);
    let (a, b) = (world.a(), world.b());
    fs::write(a.join("hello"), "world").unwrap();
    assert_eq!(fs::read_to_string(a.join("hello")).unwrap(), "world");
    sh(b, "sync .");
    assert_eq!(fs::read_to_string(b.join("hello")).unwrap(), "world");
    fs::write(b.join("hello"), "back").unwrap();
    sh(a, "sync .");
    assert_eq!(fs::read_to_string(a.join("hello")).unwrap(), "back");
    fs::create_dir(a.join("d")).unwrap();
    fs::write(a.join("d/x"), "1").unwrap();
    fs::rename(a.join("d"), a.join("e")).unwrap();
    sh(b, "sync .");
    assert_eq!(fs::read_to_string(b.join("e/x")).unwrap(), "1");
    assert_eq!(sh(b, "ls"), "e\nhello\n");
    fs::remove_file(b.join("e/x")).unwrap();
    fs::remove_dir(b.join("e")).unwrap();
    sh(a, "sync .");
    assert_eq!(sh(a, "ls"), "hello\n");
}

#[test]
fn shells_write_as_they_do_locally() {
    if !can_mount() {
        return;
    }
    let world = World::new("shells", 2);
    let (a, b) = (world.a(), world.b());
    let local = tempfile::tempdir().unwrap();
    let lines = [
        "echo x > f; cat f",
        "echo x > f; echo y >> f; cat f",
        "echo long line > f; echo s > f; cat f",
        "echo x > f; : > f; wc -c < f; [ -s f ] || echo empty",
        ": > new; ls; wc -c < new",
        "echo abc > f; truncate -s 2 f; cat f; wc -c < f",
        "echo abc > f; truncate -s 10 f; wc -c < f",
        "echo one > f; cp f g; cat g",
        "echo one > f; cp f g; echo two > f; cp f g; cat g",
        "echo abcdef > f; dd if=/dev/zero of=f bs=1 count=2 conv=notrunc 2>/dev/null; wc -c < f; tail -c 5 f",
        "dd if=/dev/zero of=f bs=1000 count=300 2>/dev/null; wc -c < f",
        "echo foo > f; sed -i s/foo/bar/ f; cat f; ls",
        "echo x > f; mv f g; cat g; ls",
        "echo x > f; echo y > g; mv f g; cat g; ls",
        "echo x > f; ln -s f l; cat l; readlink l",
        "mkdir d; echo x > d/f; mv d e; cat e/f; rm -r e; ls",
        "exec 3> f; echo one >&3; echo two >&3; exec 3>&-; cat f",
        "echo a > f; exec 3< f; echo b > f; cat <&3; cat f",
        "echo x > f; chmod 600 f; stat -c %a f; touch -d '2020-01-01 00:00:00 UTC' f; stat -c %Y f",
        "(echo a; echo b) > f; cat f; touch t; ls; stat -c %s t",
        "echo x > f; exec 3< f; rm f; cat <&3; ls",
        "umask 027; echo x > f; mkdir d; stat -c '%a %n' f d",
        "set -C; echo x > f; echo y > f 2>/dev/null || echo refused; cat f",
        "echo x > f; cat f f f > g; cat g; cat g >> f; wc -l < f",
        "mkdir -p a/b/c; touch a/b/c/f; find . | sort; rm -rf a; ls",
        "echo v > f; cp -p f g; [ f -nt g ] || [ g -nt f ] || echo same",
    ];
    for (i, shell_name) in SHELLS.iter().enumerate() {
        for (j, line) in lines.iter().enumerate() {
            let name = format!("t{i}-{j}");
            for dir in [a, local.path()] {
                fs::create_dir(dir.join(&name)).unwrap();
            }
            let here = shell(shell_name, &a.join(&name), line);
            let there = shell(shell_name, &local.path().join(&name), line);
            let text = |output: &std::process::Output| {
                format!(
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                )
            };
            assert_eq!(text(&here), text(&there), "{shell_name:?}: {line}");
        }
    }
    world.settle();
    // What the other mount shows is what this one shows, and what a local directory would hold.
    let listing = "find . -type f -o -type l | sort | while read -r f; do echo \"$f $(md5sum < $f)\"; done";
    let wanted = sh(local.path(), listing);
    assert_eq!(sh(a, listing), wanted);
    sh(b, "sync .");
    assert_eq!(sh(b, listing), wanted);
}
