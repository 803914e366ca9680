//! The point of it all: programs that know only local files notice what another host wrote.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use quorumfs_tests::guard;
use quorumfs_tests::pair::{PROPAGATION, pair};
use quorumfs_tests::process::{self, SIGKILL};

/// What a program prints, line by line, while it runs.
struct Program {
    child: std::process::Child,
    lines: Receiver<String>,
}

impl Program {
    #[track_caller]
    fn start(mut command: Command) -> Program {
        // A group of its own, so that all that a script starts can be ended with it.
        command.stdout(Stdio::piped()).process_group(0);
        let mut child = process::spawn(command, SIGKILL).unwrap();
        let output: ChildStdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Program { child, lines }
    }

    #[track_caller]
    fn prints(&self, wanted: &str) {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(PROPAGATION) {
                Ok(line) if line == wanted => return,
                Ok(line) => seen.push(line),
                Err(e) => panic!("it did not print {wanted:?} ({e}); it printed {seen:?}"),
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: kill takes two numbers; the group was made for this child.
        unsafe { libc::kill(-(self.child.id() as i32), SIGKILL) };
        let _ = self.child.wait();
    }
}

fn shell(script: &str, dir: &std::path::Path) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(dir);
    command
}

/// The loop that everybody writes: wait for a change, load the file.
#[test]
fn an_inotifywait_loop_reloads() {
    let _guard = guard(90);
    let place = pair().place("loop");
    fs::write(place.a.join("config"), "one").unwrap();
    File::open(&place.b).unwrap().sync_all().unwrap();
    let program = Program::start(shell(
        "inotifywait -m -e close_write -e moved_to --format %f . 2>&1 | while read -r name; do \
             case $name in \
                 'Watches established.') echo ready;; \
                 config) echo \"loaded $(cat config)\";; \
             esac; \
         done",
        &place.b,
    ));
    program.prints("ready");
    for value in ["two", "three"] {
        fs::write(place.a.join("config"), value).unwrap();
        program.prints(&format!("loaded {value}"));
    }
    // An editor that writes a new file and renames it.
    fs::write(place.a.join("config.new"), "four").unwrap();
    fs::rename(place.a.join("config.new"), place.a.join("config")).unwrap();
    program.prints("loaded four");
    pair().kv.put(&place.key("config"), "five");
    program.prints("loaded five");
}

/// `tail -F` follows a file that another host appends to, and one that is replaced.
#[test]
fn tail_follows_what_another_host_appends() {
    use std::io::Write as _;
    let _guard = guard(90);
    let place = pair().place("tail");
    fs::write(place.a.join("log"), "first\n").unwrap();
    File::open(&place.b).unwrap().sync_all().unwrap();
    let mut command = Command::new("tail");
    command.args(["-n", "+1", "-F", "log"]).current_dir(&place.b).stderr(Stdio::null());
    let program = Program::start(command);
    program.prints("first");
    for n in 0..5 {
        let mut file = fs::OpenOptions::new().append(true).open(place.a.join("log")).unwrap();
        writeln!(file, "line {n}").unwrap();
        drop(file);
        program.prints(&format!("line {n}"));
    }
    fs::write(place.a.join("log.new"), "rotated\n").unwrap();
    fs::rename(place.a.join("log.new"), place.a.join("log")).unwrap();
    program.prints("rotated");
}

/// A directory that is used as a queue: each file that another host puts there is taken once.
#[test]
fn a_spool_directory_works_across_hosts() {
    let _guard = guard(90);
    let place = pair().place("spool");
    let program = Program::start(shell(
        "inotifywait -m -e moved_to -e close_write --format %f . 2>&1 | while read -r name; do \
             case $name in \
                 'Watches established.') echo ready;; \
                 *.job) mv \"$name\" \"$name.done\" && echo \"did $(cat \"$name.done\")\";; \
             esac; \
         done",
        &place.b,
    ));
    program.prints("ready");
    for n in 0..5 {
        fs::write(place.a.join(format!("{n}.job")), format!("job {n}")).unwrap();
        program.prints(&format!("did job {n}"));
        File::open(&place.a).unwrap().sync_all().unwrap();
        assert!(place.a.join(format!("{n}.job.done")).exists());
    }
}
