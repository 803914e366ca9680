//! Certificates are replaced while nodes and mounts run: nobody who works meanwhile notices, and files
//! that do not fit together are refused with the old ones kept.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use quorumfs_tests::binaries::binary;
use quorumfs_tests::load::{self, Load};
use quorumfs_tests::process::{SIGHUP, run, succeed};
use quorumfs_tests::{Cluster, Host, eventually, guard, until};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn identities_are_replaced_while_everything_runs() {
    let _guard = guard(180);
    let mut cluster = Cluster::start(3);
    let host = Host::mount(&cluster, "host-a");
    let load = Load::start(vec![cluster.kv(), cluster.kv()]);
    load.advance(5, PATIENCE);

    // Files that do not fit together: the key of one identity, the certificate of another.
    let key = cluster.certs().join("n1.key");
    let good = fs::read(&key).unwrap();
    fs::copy(cluster.certs().join("n2.key"), &key).unwrap();
    cluster.node(1).signal(SIGHUP);
    eventually("n1 says that they do not fit", PATIENCE, || {
        let log = cluster.node(1).log();
        if log.contains("WARN") || log.contains("ERROR") { Ok(()) } else { Err(log) }
    });
    load.advance(5, PATIENCE);
    fs::write(&key, good).unwrap();

    let dir = cluster.certs().to_str().unwrap().to_string();
    for id in cluster.ids() {
        let before = fs::read(cluster.certs().join(format!("n{id}.crt"))).unwrap();
        issue(&["--dir", &dir, "--force", "--node", &format!("n{id}"), "--san", "127.0.0.1"]);
        assert_ne!(fs::read(cluster.certs().join(format!("n{id}.crt"))).unwrap(), before);
        cluster.node(id).signal(SIGHUP);
    }
    issue(&["--dir", &dir, "--force", "--client", "host-a"]);
    host.signal(SIGHUP);
    until("fsd has taken them up", PATIENCE, || host.log().contains("new certificates in use"));
    host.signal(SIGHUP);
    until("fsd says that there is nothing new", PATIENCE, || {
        host.log().contains("SIGHUP: the certificates are the ones in use")
    });
    load.advance(10, PATIENCE);
    fs::write(host.join("written"), "with the new identity").unwrap();

    // A node that starts now has only the new files; the others accept it, and it accepts them.
    let leader = cluster.leader();
    cluster.node_mut(leader).kill();
    cluster.node_mut(leader).start();
    until("the restarted node answers", PATIENCE, || cluster.kv_through(leader).get("/written").is_some());
    fs::write(host.join("written"), "again").unwrap();
    let (acknowledged, failures) = load.stop();
    assert!(failures.is_empty(), "{failures:?}");
    load::check(&cluster.kv(), &acknowledged);
}

fn issue(arguments: &[&str]) {
    let mut command = Command::new(binary("certs"));
    command.arg("issue").args(arguments);
    succeed(&run(command, PATIENCE));
}
