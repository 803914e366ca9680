//! kvctl, as a person or a script runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::binaries::binary;
use crate::process::{describe, run, run_with_input, succeed};

/// No kvctl of these tests takes longer, whatever happened to the cluster.
const KVCTL_TIMEOUT: Duration = Duration::from_secs(30);

/// Which nodes to ask, and as whom.
#[derive(Clone, Debug)]
pub struct Kv {
    nodes: String,
    certs: PathBuf,
    name: String,
    timeout: String,
}

/// One member of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: u64,
    /// Whether it votes.
    pub voter: bool,
}

impl Kv {
    /// As the client called `client`.
    pub fn new(nodes: String, certs: &Path) -> Kv {
        Kv { nodes, certs: certs.to_path_buf(), name: "admin".into(), timeout: "10s".into() }
    }

    /// The same as somebody else.
    pub fn named(mut self, name: &str) -> Kv {
        self.name = name.into();
        self
    }

    /// The same with another `--timeout`.
    pub fn timeout(mut self, timeout: &str) -> Kv {
        self.timeout = timeout.into();
        self
    }

    /// The command, ready to run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("kvctl"));
        command.args(["--nodes", &self.nodes, "--name", &self.name, "--timeout", &self.timeout]);
        command.arg("--certs").arg(&self.certs).args(arguments);
        command
    }

    /// Runs it, and gives all that came of it.
    #[track_caller]
    pub fn output(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments), KVCTL_TIMEOUT)
    }

    /// Runs it; panics unless it exits with 0; gives what it printed.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "kvctl {arguments:?}: {}", describe(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs it; `Err` says how it failed.
    pub fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.output(arguments);
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(describe(&output)),
        }
    }

    /// Runs it with `--json`; gives each line as JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Vec<Value> {
        parse_lines(&self.run(&[&["--json"], arguments].concat()))
    }

    /// Sets a key.
    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        self.run(&["put", key, value]);
    }

    /// Sets a key to bytes that need not be text.
    #[track_caller]
    pub fn put_bytes(&self, key: &str, value: &[u8]) {
        succeed(&run_with_input(self.command(&["put", key, "-"]), value, KVCTL_TIMEOUT));
    }

    /// A key's value; `None` if there is no such key.
    #[track_caller]
    pub fn get(&self, key: &str) -> Option<String> {
        self.try_get(key).unwrap_or_else(|e| panic!("kvctl get {key}: {e}"))
    }

    /// The same; `Err` when the cluster could not be asked.
    pub fn try_get(&self, key: &str) -> Result<Option<String>, String> {
        let output = self.output(&["get", "--raw", key]);
        match output.status.code() {
            Some(0) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
            Some(NOT_FOUND) => Ok(None),
            _ => Err(describe(&output)),
        }
    }

    /// Number of the leader. A node that was stopped for a while may still think that it leads: the one of
    /// the latest term does.
    pub fn leader(&self) -> Option<u64> {
        let text = self.try_run(&["--json", "status"]).ok()?;
        parse_lines(&text)
            .iter()
            .filter(|node| node["role"] == "leader")
            .max_by_key(|node| node["term"].as_u64())?["id"]
            .as_u64()
    }

    /// All members.
    pub fn members(&self) -> Vec<Member> {
        let Ok(text) = self.try_run(&["--json", "member", "list"]) else { return Vec::new() };
        let member =
            |value: &Value| Some(Member { id: value["id"].as_u64()?, voter: value["voter"].as_bool()? });
        parse_lines(&text).iter().filter_map(member).collect()
    }

    /// One of them.
    pub fn member(&self, id: u64) -> Option<Member> {
        self.members().into_iter().find(|m| m.id == id)
    }
}

/// kvctl's exit code for a key that does not exist.
pub const NOT_FOUND: i32 = 1;

/// JSON as kvctl prints it: one value, or one a line.
fn parse_lines(text: &str) -> Vec<Value> {
    match serde_json::from_str(text) {
        Ok(Value::Array(values)) => values,
        Ok(value) => vec![value],
        Err(_) => text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("kvctl printed {line:?}: {e}")))
            .collect(),
    }
}
