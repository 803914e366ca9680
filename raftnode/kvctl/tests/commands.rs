//! The command line against a real node: what it prints, and its exit codes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use certs::{Authority, Request, Validity};
use common::{Cluster, kvctl, run};

#[test]
fn the_five_from_etcds_own_page() {
    let cluster = Cluster::start(1);
    let mut watch = cluster.kvctl();
    let now = run(cluster.kvctl(), &["put", "hello", "world"]);
    assert_eq!(now, (0, "OK\n".into(), String::new()));
    assert_eq!(run(cluster.kvctl(), &["get", "hello"]).1, "/hello\nworld\n");

    // Nothing is there yet, not even the directory. `--from-revision` makes it sure to see the put.
    let mut watch = watch
        .args(["watch", "/users/", "--prefix", "--from-revision", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(run(cluster.kvctl(), &["put", "/users/user1", "zs"]).1, "OK\n");
    assert_eq!(run(cluster.kvctl(), &["get", "/users/", "--prefix"]).1, "/users/user1\nzs\n");
    let lines: Vec<String> =
        BufReader::new(watch.stdout.take().unwrap()).lines().take(3).map(Result::unwrap).collect();
    assert_eq!(lines, ["PUT", "/users/user1", "zs"]);
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn refused_is_1_and_says_why() {
    let cluster = Cluster::start(1);
    let kv = |args: &[&str]| run(cluster.kvctl(), args);
    assert_eq!(kv(&["put", "d/a", "1"]).0, 0);
    for (args, said) in [
        (&["get", "none"][..], "no such key: /none"),
        (&["get", "d"], "is a directory"),
        (&["del", "none"], "no such key"),
        (&["rmdir", "d"], "not empty"),
        (&["put", "--prev-revision", "1", "d/a", "2"], "was changed"),
        (&["put", "d/a/b", "2"], "not a directory"),
        (&["lease", "revoke", "abc"], "does not exist"),
    ] {
        let (code, out, err) = kv(args);
        assert_eq!(code, 1, "{args:?}: {err}");
        assert!(err.contains(said) && out.is_empty(), "{args:?}: {err}");
    }
    assert_eq!(kv(&["del", "--prefix", "d"]).1, "2\n");
    assert_eq!(kv(&["ls"]), (0, String::new(), String::new()));
}

#[test]
fn bytes_that_are_no_text_come_back_as_they_went() {
    let cluster = Cluster::start(1);
    let value = b"\xff\0\n\x01";
    let mut put = cluster.kvctl();
    let mut put = put.args(["put", "bin", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(value).unwrap();
    assert!(put.wait().unwrap().success());
    let got = cluster.kvctl().args(["get", "bin", "--raw"]).output().unwrap();
    assert_eq!(got.stdout, value);
    let (_, json, _) = run(cluster.kvctl(), &["get", "bin", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["value_base64"], "/wAKAQ==");
}

#[test]
fn a_transaction_from_standard_input() {
    let cluster = Cluster::start(1);
    let txn = |text: &str| {
        let mut command = cluster.kvctl();
        let mut child =
            command.args(["txn", "--json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()
    };
    let text = "missing /t\n\nput /t one\nput /u two\n\ndel /t\n";
    assert_eq!(txn(text)["succeeded"], true);
    assert_eq!(txn(text)["succeeded"], false);
    assert_eq!(run(cluster.kvctl(), &["get", "/", "--prefix", "--keys-only"]).1, "/u\n");
}

#[test]
fn wrong_usage_is_2() {
    let home = tempfile::tempdir().unwrap();
    for (args, said) in [
        (&["put"][..], "required"),
        (&["get", "a"], "--nodes"),
        (&["--nodes", "a", "get", "a"], "--certs"),
        (&["--nodes", "a:b", "--certs", "x", "get", "a"], "port"),
        (&["--timeout", "5y", "get", "a"], "unit of time"),
    ] {
        let (code, _, err) = run(kvctl(&home), args);
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(err.contains(said), "{args:?}: {err}");
    }
}

#[test]
fn nobody_there_is_3() {
    let cluster = Cluster::start(0);
    for command in [&["get", "a"][..], &["put", "a", "b"], &["status"], &["watch", "a"]] {
        let args = [&["--nodes", "127.0.0.1:9", "--timeout", "1200ms"], command].concat();
        let (code, _, err) = run(cluster.kvctl(), &args);
        assert_eq!(code, 3, "{command:?}: {err}");
        assert!(err.contains("127.0.0.1:9") && err.contains("1.2s"), "{command:?}: {err}");
    }
}

#[test]
fn a_certificate_that_does_not_fit_is_4_at_once_and_says_why() {
    let cluster = Cluster::start(1);
    // Of another CA; the node's certificate is refused on this side.
    let other = cluster.dir.path().join("other");
    let authority = Authority::create(&other, Validity::days(10), false).unwrap();
    authority.issue(&Request::client("admin").unwrap()).unwrap();
    // The right CA and a client's certificate of the other one: the node refuses it.
    let mixed = cluster.dir.path().join("mixed");
    std::fs::create_dir(&mixed).unwrap();
    for (from, name) in
        [(cluster.certs(), "ca.crt"), (other.clone(), "admin.crt"), (other.clone(), "admin.key")]
    {
        std::fs::copy(from.join(name), mixed.join(name)).unwrap();
    }
    let begun = std::time::Instant::now();
    for dir in [&other, &mixed] {
        let (code, _, err) = run(cluster.kvctl(), &["--certs", &dir.to_string_lossy(), "get", "a"]);
        assert_eq!(code, 4, "{err}");
        assert!(err.contains("CA"), "{err}");
    }
    // The node is good for 127.0.0.1 and its name, not for this one.
    let port = cluster.nodes[0].addr.port();
    let (code, _, err) = run(cluster.kvctl(), &["--nodes", &format!("localhost:{port}"), "get", "a"]);
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("localhost"), "{err}");
    let (code, _, err) = run(cluster.kvctl(), &["--name", "nobody", "get", "a"]);
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("nobody.crt"), "{err}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(8), "it does not wait for the time-out");
}

#[test]
fn a_directory_says_how_its_changes_look() {
    let cluster = Cluster::start(1);
    let kv = |args: &[&str]| run(cluster.kvctl(), args);
    assert_eq!(kv(&["put", "/envoy/lds", "x"]).0, 0);
    assert_eq!(kv(&["events", "/envoy"]).1, "-\n");
    assert_eq!(kv(&["events", "/envoy", "rename"]).1, "OK\n");
    assert_eq!(kv(&["events", "/envoy"]).1, "rename\n");
    assert_eq!(kv(&["--json", "events", "/envoy"]).1, "{\"events\":\"rename\"}\n");
    assert_eq!(kv(&["events", "/envoy", "--clear"]).1, "OK\n");
    assert_eq!(kv(&["events", "/envoy"]).1, "-\n");
    let (code, _, err) = kv(&["events", "/envoy", "move"]);
    assert!(code == 2 && err.contains("write, rename and swap"), "{code} {err}");
    let (code, _, err) = kv(&["events", "/envoy/lds", "rename"]);
    assert!(code == 1 && err.contains("not a directory"), "{code} {err}");
}

#[test]
fn a_lock_is_held_while_the_command_runs() {
    let cluster = Cluster::start(1);
    let (code, out, err) = run(cluster.kvctl(), &["lock", "l", "--", "sh", "-c", "echo held; exit 7"]);
    assert_eq!((code, out.as_str()), (7, "held\n"), "{err}");
    // It was given back.
    assert_eq!(run(cluster.kvctl(), &["lock", "l", "--", "true"]).0, 0);
}
