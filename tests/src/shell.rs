//! Shells and their tools, as programs see the mount.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use crate::cleanup::Scratch;
use crate::process::{describe, run, succeed};

/// No script of these tests takes longer.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(60);

/// A directory in which every tool is busybox's.
fn busybox_tools() -> &'static Path {
    static TOOLS: OnceLock<Scratch> = OnceLock::new();
    let install = || {
        let tools = Scratch::new("busybox");
        let mut command = Command::new("busybox");
        command.args(["--install", "-s"]).arg(tools.path());
        succeed(&run(command, SCRIPT_TIMEOUT));
        tools
    };
    TOOLS.get_or_init(install).path()
}

/// A shell that a test drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// GNU bash, with coreutils.
    Bash,
    /// Debian's /bin/sh, with coreutils.
    Dash,
    /// busybox sh; the tools are busybox's own, too.
    Busybox,
}

impl Shell {
    /// All of them.
    pub const ALL: [Shell; 3] = [Shell::Bash, Shell::Dash, Shell::Busybox];

    /// The command that runs a script in a directory.
    pub fn command(self, dir: &Path, script: &str) -> Command {
        let mut command = match self {
            Shell::Bash => Command::new("bash"),
            Shell::Dash => Command::new("dash"),
            Shell::Busybox => {
                let tools = busybox_tools();
                let mut command = Command::new(tools.join("sh"));
                command.env("PATH", tools);
                command
            }
        };
        // `-e`: a script ends at the first command that fails, so that no failure is passed over.
        command.args(["-e", "-c", script]).current_dir(dir).env("LC_ALL", "C");
        command
    }

    /// Runs a script in a directory and gives what came of it.
    #[track_caller]
    pub fn output(self, dir: &Path, script: &str) -> Output {
        run(self.command(dir, script), SCRIPT_TIMEOUT)
    }

    /// The same; panics unless it succeeds; gives what it printed.
    #[track_caller]
    pub fn run(self, dir: &Path, script: &str) -> String {
        let output = self.output(dir, script);
        assert!(output.status.success(), "{self:?} with {script:?}: {}", describe(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Its name, for paths.
    pub fn name(self) -> &'static str {
        match self {
            Shell::Bash => "bash",
            Shell::Dash => "dash",
            Shell::Busybox => "busybox",
        }
    }
}
