//! The programs under test, built once if they are missing or older than their sources.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Packages whose programs the tests run.
const PACKAGES: [&str; 5] = ["raftnode", "fsd", "kvctl", "certs", "quorumfs-faults"];

/// Path of one of the programs.
///
/// `QUORUMFS_BIN_DIR` names a directory that already holds them (for example of a release build);
/// without it they are looked for beside the test, and cargo is asked to bring them up to date.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let path = DIR.get_or_init(locate).join(name);
    assert!(path.is_file(), "the program {path:?} is not there");
    path
}

fn locate() -> PathBuf {
    if let Some(dir) = std::env::var_os("QUORUMFS_BIN_DIR") {
        return PathBuf::from(dir);
    }
    // target/debug/deps/cluster-0123456789abcdef
    let test = std::env::current_exe().unwrap();
    let dir = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").to_path_buf();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.arg("build").arg("--quiet").current_dir(env!("CARGO_MANIFEST_DIR"));
    if dir.ends_with("release") {
        command.arg("--release");
    }
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    let status = command.status().expect("cargo can be started");
    assert!(status.success(), "the programs under test could not be built: {command:?}");
    dir
}
