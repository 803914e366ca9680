//! The `certs` program itself, as an operator runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

use certs::{Credentials, Paths};

fn certs(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_certs"));
    command.args(args).current_dir(dir).env_remove("QUORUMFS_CERTS").output().unwrap()
}

fn succeeds(dir: &Path, args: &[&str]) -> String {
    let output = certs(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(dir: &Path, args: &[&str]) -> String {
    let output = certs(dir, args);
    assert!(!output.status.success(), "{args:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn from_nothing_to_working_credentials() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    assert!(fails(dir, &["issue", "--client", "web"]).contains("certs init"));
    let said = succeeds(dir, &["init", "pki", "--days", "30"]);
    assert!(said.contains("pki/ca.crt") && said.contains("pki/ca.key"), "{said}");
    assert!(fails(dir, &["init", "pki"]).contains("--force"));

    let said = succeeds(
        dir,
        &["issue", "--dir", "pki", "--node", "n1", "--san", "10.0.0.1", "--san", "a.example,::1"],
    );
    assert!(said.contains("n1, 10.0.0.1, a.example, ::1"), "{said}");
    assert!(said.contains("because the CA itself ends then"), "{said}");
    let said = succeeds(dir, &["issue", "--dir", "pki", "--client", "web", "--days", "7", "--out", "web"]);
    assert!(said.contains("web/web.key") && said.contains("web/ca.crt"), "{said}");
    assert!(fails(dir, &["issue", "--dir", "pki", "--node", "n1"]).contains("--force"));
    succeeds(dir, &["issue", "--dir", "pki", "--node", "n1", "--force"]);
    let environment = Command::new(env!("CARGO_BIN_EXE_certs"))
        .args(["issue", "--client", "by-env"])
        .env("QUORUMFS_CERTS", dir.join("pki"))
        .output()
        .unwrap();
    assert!(environment.status.success());

    for (place, name) in [("pki", "n1"), ("web", "web"), ("pki", "by-env")] {
        Credentials::load(&Paths::in_dir(&dir.join(place), name)).unwrap();
    }
    let shown = succeeds(dir, &["show", "pki/n1.crt"]);
    assert!(
        shown.contains("node/n1") && shown.contains("days left") && shown.contains("quorumfs CA"),
        "{shown}"
    );
    assert!(succeeds(dir, &["show", "web/ca.crt"]).contains("this is a CA"));
    assert!(fails(dir, &["show", "pki/n1.key"]).contains("no usable certificate"));
}

#[test]
fn refuses_contradictions() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    for args in [
        &["issue"][..],
        &["issue", "--node", "a", "--client", "b"],
        &["issue", "--client", "b", "--san", "x"],
        &["issue", "--client", "b", "--days", "0"],
        &["init"],
    ] {
        assert_eq!(certs(dir, args).status.code(), Some(2), "{args:?}: a mistake in the arguments");
    }
    assert!(fails(dir, &["issue", "--client", "a/b"]).contains("only letters"));
}
