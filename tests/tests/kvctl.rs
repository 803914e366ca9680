//! kvctl as a person and as a script use it: the five commands of etcd's own tour as they stand, what
//! is printed, the exit codes, and what is said when something is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use quorumfs_tests::process::{self, SIGKILL, SIGTERM, describe, run};
use quorumfs_tests::{Cluster, Kv, guard};

/// One cluster for this file; each test has keys of its own.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start(1))
}

fn kv() -> Kv {
    cluster().kv()
}

/// With nodes, certificates and name from the environment, the commands are exactly etcd's.
fn as_it_stands(words: &str) -> std::process::Command {
    let mut command = std::process::Command::new(quorumfs_tests::binaries::binary("kvctl"));
    command.args(words.split(' ').skip(1));
    command
        .env("QUORUMFS_NODES", cluster().addresses())
        .env("QUORUMFS_CERTS", cluster().certs())
        .env("QUORUMFS_NAME", "admin");
    command
}

#[track_caller]
fn tour(words: &str) -> String {
    process::succeed(&run(as_it_stands(words), Duration::from_secs(20)))
}

#[test]
fn the_five_commands_of_etcds_tour() {
    let _guard = guard(60);
    tour("kvctl put hello world");
    assert_eq!(tour("kvctl get hello"), "/hello\nworld\n");
    tour("kvctl put /users/user1 zs");
    tour("kvctl put /users/user2 ls");
    let users = tour("kvctl get /users/ --prefix");
    assert_eq!(users, "/users/user1\nzs\n/users/user2\nls\n");

    let mut command = as_it_stands("kvctl watch /users/ --prefix");
    command.stdout(Stdio::piped());
    let mut watch = process::spawn(command, SIGKILL).unwrap();
    let mut lines = Lines::of(watch.stdout.take().unwrap());
    // The watch has begun when it shows something; until then, put again.
    let first = quorumfs_tests::eventually("the watch shows a put", Duration::from_secs(20), || {
        tour("kvctl put /users/user3 ww");
        lines.next(Duration::from_millis(300)).ok_or("nothing")
    });
    assert!(first.contains("/users/user3") || first.to_lowercase().contains("put"), "{first:?}");
    tour("kvctl del /users/user1");
    lines.until("/users/user1");
    process::signal(watch.id(), SIGTERM);
    let _ = watch.wait();
    // A leading slash may be left out: it is the same key.
    assert_eq!(tour("kvctl get /hello"), tour("kvctl get hello"));
}

#[test]
fn a_watch_resumes_from_a_revision() {
    let _guard = guard(60);
    let kv = kv();
    kv.put("/resume/a", "1");
    let start = kv.json(&["get", "/resume/a"])[0]["mod_revision"].as_u64().expect("a revision");
    kv.put("/resume/a", "2");
    kv.put("/resume/b", "3");
    let mut command =
        kv.command(&["--json", "watch", "--prefix", "/resume/", "--from-revision", &start.to_string()]);
    command.stdout(Stdio::piped());
    let mut watch = process::spawn(command, SIGKILL).unwrap();
    let mut lines = Lines::of(watch.stdout.take().unwrap());
    let seen = lines.until("/resume/b");
    assert!(seen.iter().any(|l| l.contains("\"2\"")), "the change in between is there: {seen:?}");
    assert!(seen.iter().any(|l| l.contains("\"1\"")), "--from-revision is included: {seen:?}");
    for line in &seen {
        serde_json::from_str::<serde_json::Value>(line)
            .unwrap_or_else(|e| panic!("{line:?} is no JSON: {e}"));
    }
    process::signal(watch.id(), SIGKILL);
    let _ = watch.wait();
}

#[test]
fn exit_codes_and_messages() {
    let _guard = guard(120);
    let kv = kv();
    kv.put("/codes/f", "x");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["get", "/codes/f"], 0, ""),
        (&["get", "/codes/none"], 1, "/codes/none"),
        (&["del", "/codes/none"], 1, "/codes/none"),
        (&["get", "/codes//none"], 2, "empty component"),
        (&["get", "/codes/../f"], 2, ".."),
        (&["mkdir", "/codes/f"], 1, "exists"),
        (&["rmdir", "/codes"], 1, "not empty"),
        (&["put", "/codes/f/below", "x"], 1, "not a directory"),
        (&["put", "/codes", "x"], 1, "directory"),
        (&["mv", "/codes", "/codes/inside"], 1, "codes"),
        (&["no-such-command"], 2, "no-such-command"),
        (&["member", "promote", "99"], 2, "99"),
        (&["member", "remove", "99"], 1, "no member 99"),
    ];
    for (arguments, code, text) in cases {
        let output = kv.output(arguments);
        assert_eq!(output.status.code(), Some(*code), "kvctl {arguments:?}: {}", describe(&output));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(text), "kvctl {arguments:?} does not say {text:?}: {said}");
        if *code != 0 {
            assert!(output.stdout.is_empty(), "an error belongs on standard error: {}", describe(&output));
        }
    }
}

/// Nobody there: an error that says so, within the time-out.
#[test]
fn an_unreachable_cluster_is_an_error_in_time() {
    let _guard = guard(60);
    let nobody = Kv::new("127.0.0.1:9".into(), cluster().certs()).timeout("1s");
    let start = Instant::now();
    let output = nobody.output(&["get", "/x"]);
    assert_eq!(output.status.code(), Some(3), "{}", describe(&output));
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert!(String::from_utf8_lossy(&output.stderr).contains("127.0.0.1:9"), "{}", describe(&output));
}

/// A certificate of another CA is refused, and the message says that it is the certificate.
#[test]
fn a_strangers_certificate_is_refused_with_a_reason() {
    let _guard = guard(60);
    let dir = quorumfs_tests::cleanup::Scratch::new("stranger");
    for arguments in [vec!["init"], vec!["issue", "--client", "admin", "--dir"]] {
        let mut command = std::process::Command::new(quorumfs_tests::binaries::binary("certs"));
        command.args(arguments).arg(dir.path());
        process::succeed(&run(command, Duration::from_secs(20)));
    }
    let output = Kv::new(cluster().addresses(), dir.path()).timeout("3s").output(&["get", "/x"]);
    assert_eq!(output.status.code(), Some(4), "{}", describe(&output));
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(said.contains("certificate"), "{said}");
}

#[test]
fn values_are_bytes() {
    let _guard = guard(60);
    let kv = kv();
    let bytes: Vec<u8> = (0..=255).collect();
    kv.put_bytes("/bytes/all", &bytes);
    assert_eq!(kv.output(&["get", "--raw", "/bytes/all"]).stdout, bytes);
    kv.put("/bytes/empty", "");
    assert_eq!(kv.get("/bytes/empty").as_deref(), Some(""));
    kv.put("/bytes/line", "ends with a line feed\n");
    assert_eq!(kv.get("/bytes/line").as_deref(), Some("ends with a line feed\n"));
}

#[test]
fn what_prints_prints_json_too() {
    let _guard = guard(60);
    let kv = kv();
    kv.put("/json/dir/f", "value");
    let record = &kv.json(&["get", "/json/dir/f"])[0];
    assert_eq!(record["key"], "/json/dir/f");
    assert_eq!(record["value"], "value");
    assert_eq!(record["version"], 1);
    assert_eq!(record["author"], "admin");
    for arguments in [
        &["get", "--prefix", "/json"][..],
        &["ls", "/json"],
        &["put", "/json/x", "1"],
        &["status"],
        &["member", "list"],
        &["lease", "grant", "10s"],
        &["lease", "list"],
        &["del", "/json/x"],
    ] {
        assert!(!kv.json(arguments).is_empty(), "kvctl --json {arguments:?} prints nothing");
    }
}

#[test]
fn the_tree_can_be_shaped() {
    let _guard = guard(60);
    let kv = kv();
    kv.run(&["mkdir", "/tree"]);
    kv.put("/tree/a", "1");
    kv.run(&["mv", "/tree/a", "/tree/b"]);
    assert_eq!(kv.get("/tree/a"), None);
    assert_eq!(kv.get("/tree/b").as_deref(), Some("1"));
    assert!(kv.run(&["ls", "/tree"]).contains('b'));
    kv.put("/tree/c/d", "2");
    kv.run(&["del", "--prefix", "/tree/"]);
    assert_eq!(kv.run(&["ls", "/tree"]).trim(), "");
    kv.run(&["rmdir", "/tree"]);
    assert!(!kv.output(&["ls", "/tree"]).status.success());
}

#[test]
fn people_get_tables() {
    let _guard = guard(60);
    let status = kv().run(&["status"]);
    assert!(status.to_lowercase().contains("leader"), "{status}");
    let members = kv().run(&["member", "list"]);
    assert!(members.contains(&cluster().node(1).address.to_string()), "{members}");
}

/// Lines of a process as they come, without waiting for ever.
struct Lines(std::sync::mpsc::Receiver<String>);

impl Lines {
    fn of(output: std::process::ChildStdout) -> Lines {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Lines(receiver)
    }

    fn next(&mut self, timeout: Duration) -> Option<String> {
        self.0.recv_timeout(timeout).ok()
    }

    /// All lines up to the one that holds `text`.
    #[track_caller]
    fn until(&mut self, text: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            match self.next(Duration::from_secs(20)) {
                Some(line) => {
                    let last = line.contains(text);
                    seen.push(line);
                    if last {
                        return seen;
                    }
                }
                None => panic!("no line with {text:?}; what came: {seen:?}"),
            }
        }
    }
}
