//! Processes that hold locks, driven by a test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::deadline::eventually;
use crate::process::{self, SIGKILL};

/// How long an answer may take that waits for nobody.
const ANSWER: Duration = Duration::from_secs(30);

/// A process of the program `locker`, see there for what can be said to it. Killed when dropped.
pub struct Locker {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Locker {
    /// Starts one: `program` is `env!("CARGO_BIN_EXE_locker")`.
    #[track_caller]
    pub fn start(program: &str) -> Locker {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process::spawn(command, SIGKILL).unwrap_or_else(|e| panic!("{program}: {e}"));
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("it was piped"));
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Locker { child, stdin, answers }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says something, and waits for no answer.
    #[track_caller]
    pub fn say(&mut self, words: &str) {
        let stdin = self.stdin.as_mut().expect("it was not ended");
        writeln!(stdin, "{words}").unwrap_or_else(|e| panic!("the locker is gone: {e}"));
    }

    /// What it answers.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        self.answers.recv_timeout(ANSWER).unwrap_or_else(|e| panic!("no answer within {ANSWER:?}: {e}"))
    }

    /// What it has answered by now, if anything.
    pub fn try_answer(&mut self) -> Option<String> {
        self.answers.try_recv().ok()
    }

    /// Says something and gives the answer.
    #[track_caller]
    pub fn ask(&mut self, words: &str) -> String {
        self.say(words);
        self.answer()
    }

    /// Says something that has to work.
    #[track_caller]
    pub fn must(&mut self, words: &str) {
        assert_eq!(self.ask(words), "ok", "{words}");
    }

    /// Says something that makes it wait, and comes back when its kernel has handed that on.
    #[track_caller]
    pub fn must_wait(&mut self, words: &str) {
        self.say(words);
        let place = format!("/proc/{}/wchan", self.pid());
        eventually(&format!("{words} waits"), ANSWER, || {
            let wchan = std::fs::read_to_string(&place).unwrap_or_default();
            if wchan.contains("request") || wchan.contains("fuse") { Ok(()) } else { Err(wchan) }
        });
        match self.answers.recv_timeout(Duration::from_millis(300)) {
            Err(RecvTimeoutError::Timeout) => {}
            other => panic!("{words} does not wait: {other:?}"),
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, number: i32) {
        process::signal(self.pid(), number);
    }

    /// The signal by which it ended.
    #[track_caller]
    pub fn killed_by(&mut self, timeout: Duration) -> Option<i32> {
        let child = &mut self.child;
        let ended = eventually("its end", timeout, || child.try_wait().ok().flatten().ok_or("it lives"));
        ended.signal()
    }

    /// Closes its input: it ends as a program does that comes to its end.
    #[track_caller]
    pub fn finish(mut self) {
        self.stdin.take();
        let child = &mut self.child;
        eventually("its end", ANSWER, || child.try_wait().ok().flatten().ok_or("it lives"));
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A path as it is said to a locker.
pub fn word(path: &Path) -> String {
    let text = path.to_str().expect("a path of ours").to_string();
    assert!(!text.contains(' '), "{text} is more than one word");
    text
}
