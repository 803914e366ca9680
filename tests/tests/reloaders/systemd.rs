//! Path units of systemd, in a user manager that is started for each of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorumfs_tests::cgroup::Cgroup;
use quorumfs_tests::cleanup::watch_log;
use quorumfs_tests::document;
use quorumfs_tests::pair::pair;
use quorumfs_tests::process::{run, succeed};

use crate::Site;
use crate::running::{Printer, Reloader};

/// The program that is PID 1 where it is the system's; here it is a user's.
pub const MANAGER: &str = "/usr/lib/systemd/systemd";
/// What has to be installed.
pub const NEEDS: &[&str] = &[MANAGER, "systemd-escape", "unshare"];
/// The units are those that are documented.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/systemd");
const UNIT: &str = "web-reload";

/// A call of systemd-escape, on a machine that does much else.
const CALL: Duration = Duration::from_secs(30);

/// Whether a user manager can be started here.
pub fn can_run(what: &str) -> bool {
    // SAFETY: geteuid cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: {what}: namespaces need root; nothing was proved");
        return false;
    }
    match Cgroup::new() {
        Ok(_) => true,
        Err(why) => document::not_tested(what, &format!("systemd needs a control group, and {why}")),
    }
}

/// A user manager with one path unit and its service.
pub struct PathUnit {
    /// The manager; it is the first to be dropped.
    program: Printer,
    _cgroup: Cgroup,
    watched: PathBuf,
    log: PathBuf,
}

impl PathUnit {
    /// The documented pair, with another condition, and with a script as what the service does. Watches when this returns.
    pub fn start(dir: &Path, condition: &str, watched: &Path, script: &str) -> PathUnit {
        let (units, log) = (dir.join("units"), dir.join("log"));
        fs::create_dir(&units).unwrap();
        for name in ["log", "console"] {
            fs::write(dir.join(name), "").unwrap();
        }
        fs::write(dir.join("script"), script).unwrap();
        let mut command = Command::new("systemd-escape");
        command.args(["--path", "--suffix=mount"]).arg(pair().b.path());
        let mount = succeed(&run(command, CALL));
        let example = |kind: &str| fs::read_to_string(format!("{EXAMPLES}/{UNIT}.{kind}")).unwrap();
        let with = |text: String, key: &str, line: &str| {
            let is_it = |line: &&str| line.starts_with(&format!("{key}="));
            let old = text.lines().find(is_it).unwrap_or_else(|| panic!("{UNIT} has no {key}=")).to_string();
            text.replace(&old, line)
        };
        let condition = format!("{condition}={}", watched.display());
        let path = with(example("path"), "PathChanged", &condition).replace("kv.mount", mount.trim());
        let shell = format!(
            "ExecStart=/bin/sh {}\nStandardOutput=append:{}",
            dir.join("script").display(),
            log.display()
        );
        let service = with(example("service"), "ExecStart", &shell);
        fs::write(units.join(format!("{UNIT}.path")), path).unwrap();
        fs::write(units.join(format!("{UNIT}.service")), service).unwrap();
        // What every unit asks for; those of the machine would start more.
        for target in ["basic", "shutdown", "exit"] {
            fs::write(units.join(format!("{target}.target")), "[Unit]\n").unwrap();
        }
        watch_log("systemd", &dir.join("console"));
        let cgroup = Cgroup::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", include_str!("systemd.sh")]).current_dir("/");
        command.env("S", dir).env("CGROUP", cgroup.path()).env("MANAGER", MANAGER);
        command.env("UNIT", format!("{UNIT}.path"));
        let program = Printer::start(command);
        let mut unit = PathUnit { program, _cgroup: cgroup, watched: watched.to_path_buf(), log };
        unit.until_it_waits();
        unit
    }

    /// Waits until it watches: it does not while its service runs.
    pub fn until_it_waits(&mut self) {
        self.program.wait_for_watch(&self.watched);
    }

    /// What its service has printed.
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Reloader for PathUnit {
    fn loaded(&mut self, _wanted: &str) -> Vec<String> {
        crate::running::loads(self.printed().lines())
    }
    fn ready(&mut self) {
        self.until_it_waits();
    }
}

/// One that loads the file.
pub fn path_unit(site: &Site, condition: &str) -> Box<dyn Reloader> {
    let script = format!("echo \"loaded $(cat {})\"\n", site.file.display());
    Box::new(PathUnit::start(site.scratch.path(), condition, &site.file, &script))
}
