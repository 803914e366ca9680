//! The policy through mounts of different identities.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use quorumfs_tests::host::MountConfig;
use quorumfs_tests::inotify::text;
use quorumfs_tests::{Cluster, Host, Inotify, eventually, guard, until};

const PATIENCE: Duration = Duration::from_secs(30);

const RULES: &str = r#"
[[rule]]
who = ["admin"]
admin = true
write = ["/"]
[[rule]]
who = ["web", "reader"]
read = ["/shared"]
[[rule]]
who = ["web"]
write = ["/apps/{name}"]
"#;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn set_policy(cluster: &Cluster, text: &str) {
    let file = cluster.dir().join("policy.toml");
    fs::write(&file, text).unwrap();
    cluster.kv().run(&["policy", "set", file.to_str().unwrap()]);
}

#[track_caller]
fn denied<T>(result: std::io::Result<T>, what: &str) {
    match result {
        Err(error)
            if error.kind() == ErrorKind::PermissionDenied && error.raw_os_error() == Some(libc::EACCES) => {}
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what}: it is allowed"),
    }
}

/// What one identity may see and do on its mount, and what it is told otherwise.
#[test]
fn a_mount_shows_and_does_what_its_identity_may() {
    let _guard = guard(180);
    let cluster = Cluster::start(1);
    let kv = cluster.kv();
    for key in ["/shared/f", "/private/f", "/apps/web/f", "/apps/other/f"] {
        kv.put(key, "old");
    }
    set_policy(&cluster, RULES);
    let web = Host::mount(&cluster, "web");
    let reader = Host::mount(&cluster, "reader");
    assert_eq!(names(web.path()), ["apps", "shared"]);
    assert_eq!(names(&web.join("/apps")), ["web"]);
    assert_eq!(names(reader.path()), ["shared"]);
    assert_eq!(fs::read_to_string(reader.join("/shared/f")).unwrap(), "old");
    assert_eq!(fs::metadata(web.join("/private")).unwrap_err().kind(), ErrorKind::NotFound);

    // Its own place is its own.
    fs::write(web.join("/apps/web/f"), "new").unwrap();
    fs::create_dir(web.join("/apps/web/d")).unwrap();
    fs::rename(web.join("/apps/web/f"), web.join("/apps/web/d/g")).unwrap();
    assert_eq!(kv.get("/apps/web/d/g").as_deref(), Some("new"));
    fs::remove_dir_all(web.join("/apps/web/d")).unwrap();

    // Everything else is refused, when it is opened.
    let shared = web.join("/shared/f");
    denied(OpenOptions::new().write(true).open(&shared), "open for writing");
    denied(OpenOptions::new().append(true).open(&shared), "open for appending");
    denied(File::create(&shared), "open with O_TRUNC");
    denied(File::create(web.join("/shared/new")), "create");
    denied(
        OpenOptions::new().write(true).create_new(true).open(web.join("/shared/new")),
        "create exclusively",
    );
    denied(fs::create_dir(web.join("/shared/d")), "mkdir");
    denied(fs::create_dir(web.join("/elsewhere")), "mkdir of what is hidden or not there");
    denied(fs::create_dir(web.join("/private")), "mkdir of what is hidden");
    denied(fs::remove_file(&shared), "unlink");
    denied(fs::rename(&shared, web.join("/apps/web/f")), "rename away");
    fs::write(web.join("/apps/web/g"), "1").unwrap();
    denied(fs::rename(web.join("/apps/web/g"), web.join("/shared/g")), "rename into");
    denied(std::os::unix::fs::symlink("x", web.join("/shared/l")), "symlink");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    denied(fs::set_permissions(&shared, mode), "chmod");
    assert_eq!(kv.get("/shared/f").as_deref(), Some("old"));
    assert_eq!(names(&web.join("/shared")), ["f"]);
    until("the log says which line", PATIENCE, || {
        web.log().contains("may not write /shared/f: line 8 of the policy gives read on /shared")
    });
    let node = cluster.node(1).log();
    assert!(node.contains("client/web may not write /shared/d: line 8"), "{node}");
    assert!(node.contains("client/web may not write /elsewhere: no line of the policy"), "{node}");
}

/// A policy that changes shows at once, with events, on mounts that run; and on those of a prefix.
#[test]
fn a_change_of_the_policy_is_a_change_of_the_tree() {
    let _guard = guard(180);
    let cluster = Cluster::start(3);
    let kv = cluster.kv();
    for key in ["/shared/f", "/private/f", "/private/d/g"] {
        kv.put(key, "1");
    }
    let open = RULES.replace("[\"/shared\"]", "[\"/shared\", \"/private\"]");
    let open = open.replace("\"web\", \"reader\"", "\"web\", \"reader\", \"part\"");
    set_policy(&cluster, &open);
    let config = MountConfig { prefix: Some("/private".into()), ..MountConfig::default() };
    let part = Host::mount_with(&cluster, "part", config);
    assert_eq!(names(part.path()), ["d", "f"]);
    set_policy(&cluster, RULES);
    let reader = Host::mount(&cluster, "reader");
    assert_eq!(names(reader.path()), ["shared"]);
    until("the mount of the prefix is empty", PATIENCE, || names(part.path()).is_empty());
    let mut root = Inotify::on(reader.path());

    set_policy(&cluster, &open);
    root.until_created("private", PATIENCE);
    assert_eq!(fs::read_to_string(reader.join("/private/d/g")).unwrap(), "1");
    until("the mount of the prefix has what is in it", PATIENCE, || names(part.path()) == ["d", "f"]);

    let mut private = Inotify::on(&reader.join("/private"));
    let _ = fs::read_dir(reader.join("/private")).unwrap().count();
    let held = File::open(reader.join("/private/f")).unwrap();
    set_policy(&cluster, RULES);
    let mut seen = Vec::new();
    eventually("the file is deleted here", PATIENCE, || {
        seen.extend(private.next(Duration::from_millis(200)));
        match seen.iter().any(|event| event.is(rustix::fs::inotify::ReadFlags::DELETE, "f")) {
            true => Ok(()),
            false => Err(text(&seen)),
        }
    });
    until("it is gone", PATIENCE, || names(reader.path()) == ["shared"]);
    until("the other mount is empty again", PATIENCE, || names(part.path()).is_empty());
    assert_eq!(kv.get("/private/f").as_deref(), Some("1"), "only out of sight");
    // What was open stays readable, as a file that was deleted does.
    assert_eq!(std::io::read_to_string(held).unwrap(), "1");
    // And the mount goes on.
    kv.put("/shared/new", "2");
    until("the next change arrives", PATIENCE, || reader.join("/shared/new").exists());
}

/// The policy is a file: an admin edits it where everything else is edited.
#[test]
fn an_admin_edits_the_policy_on_a_mount() {
    let _guard = guard(120);
    let cluster = Cluster::start(1);
    let admin = Host::mount(&cluster, "admin");
    let web = Host::mount(&cluster, "web");
    fs::write(web.join("/x"), "1").unwrap();
    let write = |text: &str| -> std::io::Result<()> {
        let mut file = File::create(admin.join("/.quorumfs/policy"))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    let refused = File::create(web.join("/.quorumfs/policy")).map(drop);
    assert!(refused.is_err(), "the policy is for admins");
    cluster.kv().run(&["mkdir", "-p", "/.quorumfs"]);
    eventually("the policy can be written", PATIENCE, || write(RULES));
    denied(File::create(web.join("/y")), "create under the new policy");
    let error = write(&RULES.replace("read", "reed")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
    until("the log says where", PATIENCE, || admin.log().contains("line 8, column 1"));
    assert_eq!(cluster.kv().run(&["policy", "show"]), RULES, "the old one stays in force");
    denied(fs::remove_file(admin.join("/.quorumfs/policy")), "unlink of the policy");
}

/// A certificate that was lost: its mount gets nothing any more.
#[test]
fn a_denied_client_is_cut_off() {
    let _guard = guard(120);
    let cluster = Cluster::start(1);
    cluster.kv().put("/f", "1");
    let lost = Host::mount(&cluster, "lost");
    assert_eq!(fs::read_to_string(lost.join("/f")).unwrap(), "1");
    let rule = "[[rule]]\nwho = [\"*\"]\nwrite = [\"/\"]\n[[rule]]\nwho = [\"admin\"]\nadmin = true\n";
    set_policy(&cluster, &format!("deny = [\"lost\"]\n{rule}"));
    until("the log says why", PATIENCE, || lost.log().contains("is denied by line 1 of the policy"));
    cluster.kv().put("/f", "2");
    eventually("writes are denied", PATIENCE, || match fs::create_dir(lost.join("/d")) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(fs::read_to_string(lost.join("/f")).unwrap(), "1", "no news, but what is there stays");
    set_policy(&cluster, rule);
    until("it is let in again", PATIENCE, || {
        fs::read_to_string(lost.join("/f")).is_ok_and(|text| text == "2")
    });
}
