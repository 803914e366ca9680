//! Programs while they run, and what they have loaded.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorumfs_tests::eventually;
use quorumfs_tests::process::{self, SIGKILL};

use crate::value_in;

/// How long a program may take to begin, on a machine that does much else.
const BEGIN: Duration = Duration::from_secs(60);

/// A program that reloads.
pub trait Reloader: Send {
    /// The values that it has loaded so far, in order. `wanted` is the one that it should come to.
    fn loaded(&mut self, wanted: &str) -> Vec<String>;
    /// Waits until it notices the next change: some do not while they load.
    fn ready(&mut self) {}
}

/// A script in bash, in a directory.
pub fn bash(script: &str, dir: &Path) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(dir);
    command
}

/// A program, with all that it has printed. What it has started is ended with it.
pub struct Printer {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Printer {
    /// Starts it.
    #[track_caller]
    pub fn start(mut command: Command) -> Printer {
        // A group of its own, so that all that a script starts can be ended with it.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = process::spawn(command, SIGKILL).unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let outputs: [Option<Box<dyn Read + Send>>; 2] =
            [child.stdout.take().map(|o| Box::new(o) as _), child.stderr.take().map(|o| Box::new(o) as _)];
        for output in outputs.into_iter().flatten() {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                }
            });
        }
        Printer { child, lines }
    }

    /// All that it has printed, with its errors.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits until it has printed a line that holds this.
    #[track_caller]
    pub fn wait_for(&mut self, wanted: &str) {
        eventually(&format!("it prints {wanted:?}"), BEGIN, || self.check(wanted));
    }

    fn check(&mut self, wanted: &str) -> Result<(), String> {
        let ended = self.child.try_wait().unwrap();
        let lines = self.lines();
        if lines.iter().any(|line| line.contains(wanted)) {
            return Ok(());
        }
        assert!(ended.is_none(), "it ended with {ended:?} before it printed {wanted:?}: {lines:?}");
        Err(format!("{lines:?}"))
    }

    /// Process ids of it and of all that it has started, as far as they are of its group.
    pub fn pids(&self) -> Vec<u32> {
        let group = self.child.id().to_string();
        let in_group = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // After the name in parentheses: state, parent, group.
            stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(2)) == Some(group.as_str())
        };
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(in_group).collect()
    }

    /// Waits until one of its processes has an inotify watch on that path.
    #[track_caller]
    pub fn wait_for_watch(&mut self, path: &Path) {
        use std::os::unix::fs::MetadataExt as _;
        let ino = format!(" ino:{:x} ", std::fs::metadata(path).unwrap().ino());
        eventually(&format!("a watch on {path:?}"), BEGIN, || {
            let lines = self.lines();
            let infos = self.pids().into_iter().flat_map(|pid| {
                let infos = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
                infos.filter_map(|info| std::fs::read_to_string(info.path()).ok()).collect::<Vec<_>>()
            });
            let mut watches = infos.filter(|info| info.contains("inotify wd:"));
            watches
                .any(|info| info.contains(&ino))
                .then_some(())
                .ok_or(format!("not yet; it printed {lines:?}"))
        });
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        // SAFETY: kill takes two numbers; the group was made for this child.
        unsafe { libc::kill(-(self.child.id() as i32), SIGKILL) };
        let _ = self.child.wait();
    }
}

/// The values in lines of `loaded` and the content.
pub fn loads<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let loads = lines.filter_map(|line| line.strip_prefix("loaded "));
    loads.map(|text| value_in(text).unwrap_or_else(|| format!("nothing in {text:?}"))).collect()
}

/// One that prints `loaded` and the content.
impl Reloader for Printer {
    fn loaded(&mut self, _wanted: &str) -> Vec<String> {
        loads(self.lines().iter().map(String::as_str))
    }
}

/// Asks a program for a value; `None` while it cannot be asked.
pub type Ask = Box<dyn FnMut(&str) -> Option<String> + Send>;

/// One that has to be asked what it works with: whatever it says is noted, when it says it first. (A web server that
/// reloads lets some of its old processes answer for a moment.)
pub struct Asked {
    /// The program.
    pub program: Printer,
    /// Asks for the value; some can only say whether it is `wanted`.
    pub ask: Ask,
    /// What it said, each once.
    pub said: Vec<String>,
}

impl Asked {
    /// Waits until it can be asked, and says the first value.
    #[track_caller]
    pub fn start(
        program: Printer,
        first: &str,
        ask: impl FnMut(&str) -> Option<String> + Send + 'static,
    ) -> Box<dyn Reloader> {
        let mut asked = Asked { program, ask: Box::new(ask), said: Vec::new() };
        eventually("it has the first value", BEGIN, || {
            let loaded = asked.loaded(first);
            let lines = asked.program.lines();
            loaded.last().is_some_and(|v| v == first).then_some(()).ok_or(format!("{loaded:?}, {lines:?}"))
        });
        Box::new(asked)
    }
}

impl Reloader for Asked {
    fn loaded(&mut self, wanted: &str) -> Vec<String> {
        if let Some(said) = (self.ask)(wanted)
            && !self.said.contains(&said)
        {
            self.said.push(said);
        }
        self.said.clone()
    }
}

/// A program that waits for one event at a time, and is started again after each.
pub struct Again(pub Printer);

impl Reloader for Again {
    fn loaded(&mut self, wanted: &str) -> Vec<String> {
        self.0.loaded(wanted)
    }
    fn ready(&mut self) {
        eventually("it waits again", BEGIN, || {
            let lines = self.0.lines();
            // Lines of its two outputs may come here in any order.
            let count = |what: &str| lines.iter().filter(|line| line.starts_with(what)).count();
            (count("Watches established") > count("loaded ")).then_some(()).ok_or("it loads")
        });
    }
}

/// A program that drops what comes within a moment of what it noticed last, wherever the files are.
pub struct Throttled {
    /// The program.
    pub printer: Printer,
    /// How long the moment is.
    pub moment: Duration,
}

impl Reloader for Throttled {
    fn loaded(&mut self, wanted: &str) -> Vec<String> {
        self.printer.loaded(wanted)
    }
    fn ready(&mut self) {
        let mut last = (self.printer.lines().len(), Instant::now());
        eventually("it takes changes again", BEGIN, || {
            let count = self.printer.lines().len();
            if count != last.0 {
                last = (count, Instant::now());
            }
            (last.1.elapsed() > self.moment).then_some(()).ok_or("it has just loaded")
        });
    }
}

/// A program that prints what another one has loaded.
pub struct Beside {
    /// The one that prints.
    pub printer: Printer,
    /// The other: it ends when it is dropped.
    pub _beside: Printer,
}

impl Reloader for Beside {
    fn loaded(&mut self, wanted: &str) -> Vec<String> {
        self.printer.loaded(wanted)
    }
}

/// Values that something in this process has loaded.
pub struct Here<T> {
    /// What it has loaded.
    pub seen: Arc<Mutex<Vec<String>>>,
    /// What does it: it ends when it is dropped.
    pub _watcher: T,
}

impl<T: Send> Reloader for Here<T> {
    fn loaded(&mut self, _wanted: &str) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}
