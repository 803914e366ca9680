//! The point of it all: programs that know only local files notice what another host wrote.
//!
//! Each program watches a file on host B in its own way, and is asked what it has loaded, while host A writes
//! the file in every usual way. It has to come to each new value, and must never load anything but values
//! that were written, in their order. The tables in docs/reloaders.md are made of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod ask;
mod running;
mod systemd;
mod watchers;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use quorumfs_tests::cleanup::Scratch;
use quorumfs_tests::document::{self, Row};
use quorumfs_tests::inotify::Inotify;
use quorumfs_tests::pair::{PROPAGATION, Place, pair};
use quorumfs_tests::process::{describe, run};
use quorumfs_tests::{eventually, guard};

use running::Reloader;
use watchers::WATCHERS;

/// Until a program has loaded a new value, on a machine that does much else. Prometheus alone waits 5 s.
const RELOAD: Duration = Duration::from_secs(40);
/// No script that writes takes longer.
const WRITE: Duration = Duration::from_secs(60);
/// Programs that are tried at the same time.
const AT_ONCE: usize = 4;

/// Where a program watches.
pub struct Site {
    /// The directory on host B.
    pub dir: PathBuf,
    /// The file in it.
    pub file: PathBuf,
    /// A place on this host's disk.
    pub scratch: Scratch,
}

/// A program that reloads.
pub struct Watcher {
    /// As it stands in the table.
    pub name: &'static str,
    /// What has to be installed.
    pub needs: &'static [&'static str],
    /// `user.kv.events` of the directory.
    pub events: Option<&'static str>,
    /// What the program calls the file.
    pub file: &'static str,
    /// The file's content for a value.
    pub content: fn(&str) -> String,
    /// Starts it; it has loaded nothing, or the first value, and watches when this returns.
    pub start: fn(&Site) -> Box<dyn Reloader>,
}

/// A way to write a file, as a shell's script with `$FILE`, the value `$OLD` in it, the new one `$NEW`, and the new
/// content `$CONTENT`.
struct Writer {
    name: &'static str,
    script: &'static str,
}

/// The link comes last: what is written afterwards would go to another file.
const WRITERS: &[Writer] = &[
    Writer { name: "`echo >`", script: "echo \"$CONTENT\" > \"$FILE\"" },
    Writer { name: "`sed -i`", script: "sed -i \"s/$OLD/$NEW/\" \"$FILE\"" },
    Writer { name: "vim", script: "vim -u NONE -i NONE -n -es -c \"%s/$OLD/$NEW/\" -c wq \"$FILE\"" },
    Writer { name: "`mv tmp`", script: "echo \"$CONTENT\" > .tmp; mv .tmp \"$FILE\"" },
    Writer { name: "`kvctl put`", script: "" },
    Writer {
        name: "`ln -sfn`",
        script: "echo \"$CONTENT\" > \"../versions/$NEW\"; ln -sfn \"../versions/$NEW\" \"$FILE\"",
    },
];

/// The value in a text: `v` and three digits.
pub fn value_in(text: &str) -> Option<String> {
    let is_value = |at: usize| {
        let word = text.get(at..at + 4)?;
        word.bytes().skip(1).all(|b| b.is_ascii_digit()).then(|| word.to_string())
    };
    text.match_indices('v').find_map(|(at, _)| is_value(at))
}

fn value(number: usize) -> String {
    format!("v{}", 100 + number)
}

fn write(place: &Place, watcher: &Watcher, writer: &Writer, number: usize) {
    let (old, new) = (value(number - 1), value(number));
    let content = (watcher.content)(&new);
    if writer.script.is_empty() {
        return pair().kv.put(&place.key(&format!("watched/{}", watcher.file)), &format!("{content}\n"));
    }
    let mut command = Command::new("bash");
    command.args(["-e", "-c", writer.script]).current_dir(place.a.join("watched"));
    command.env("FILE", watcher.file).env("OLD", old).env("NEW", new).env("CONTENT", content);
    command.env("TERM", "dumb");
    let output = run(command, WRITE);
    assert!(output.status.success(), "{}: {}", writer.name, describe(&output));
}

/// Waits until host B has fired all that was done before.
fn barrier(place: &Place) {
    let mut inotify = Inotify::on(&place.b);
    fs::create_dir(place.a.join("mark")).unwrap();
    inotify.until_created("mark", PROPAGATION);
    fs::remove_dir(place.a.join("mark")).unwrap();
}

/// What came of each writer.
fn observe(watcher: &Watcher) -> Vec<String> {
    let place = pair().place("reload");
    for name in ["watched", "versions", "beside"] {
        fs::create_dir(place.a.join(name)).unwrap();
    }
    if let Some(word) = watcher.events {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(place.a.join("watched"), "user.kv.events", word.as_bytes(), flags).unwrap();
    }
    let content = |number| format!("{}\n", (watcher.content)(&value(number)));
    fs::write(place.a.join("watched").join(watcher.file), content(0)).unwrap();
    barrier(&place);
    let dir = place.b.join("watched");
    let site = Site { file: dir.join(watcher.file), dir, scratch: Scratch::new("reloader") };
    let mut reloader = (watcher.start)(&site);
    let written: Vec<String> = (0..=WRITERS.len()).map(value).collect();
    // A file of the same name beside it is no business of the program's.
    let before = reloader.loaded(&written[0]);
    fs::write(place.a.join("beside").join(watcher.file), content(99)).unwrap();
    barrier(&place);
    assert_eq!(reloader.loaded(&written[0]), before, "{}: nothing has changed", watcher.name);
    let mut results = Vec::new();
    for (index, writer) in WRITERS.iter().enumerate() {
        let number = index + 1;
        reloader.ready();
        write(&place, watcher, writer, number);
        let loaded = eventually(&format!("{} sees {}", watcher.name, writer.name), RELOAD, || {
            let loaded = reloader.loaded(&written[number]);
            match loaded.last() == Some(&written[number]) {
                true => Ok(loaded),
                false => Err(format!("it has loaded {loaded:?}, and not {}", written[number])),
            }
        });
        let order: Vec<_> =
            loaded.iter().map(|value| written.iter().position(|known| known == value)).collect();
        assert!(
            order.iter().all(Option::is_some) && order.is_sorted(),
            "{} with {}: it has loaded {loaded:?}",
            watcher.name,
            writer.name
        );
        results.push("yes".to_string());
    }
    results
}

#[test]
fn programs_reload_what_another_host_wrote() {
    let _guard = guard(600);
    let only = std::env::var("QUORUMFS_TEST_PROGRAM").ok();
    let chosen: Vec<&Watcher> = WATCHERS
        .iter()
        .filter(|watcher| only.as_ref().is_none_or(|only| watcher.name.contains(only.as_str())))
        .filter(|watcher| document::installed(watcher.name, watcher.needs))
        .filter(|watcher| document::installed(watcher.name, &["vim"]))
        .filter(|watcher| !watcher.needs.contains(&systemd::MANAGER) || systemd::can_run(watcher.name))
        .collect();
    let queue = Mutex::new(chosen);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(watcher) = queue.lock().unwrap().pop() else { return };
                    let begun = Instant::now();
                    let result = observe(watcher);
                    eprintln!("{}: {:?}", watcher.name, begun.elapsed());
                    results.lock().unwrap().insert(watcher.name, result);
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    let rows: Vec<Row> =
        WATCHERS.iter().map(|watcher| (watcher.name.to_string(), results.remove(watcher.name))).collect();
    let heads: Vec<&str> =
        std::iter::once("program on the other host").chain(WRITERS.iter().map(|w| w.name)).collect();
    document::table("reloaders.md", "reloaders", &heads, &rows);
}

/// What `inotifywait -e KIND` prints of the file itself on host B, for each writer.
fn printed(kind: &str) -> Vec<String> {
    let place = pair().place("inotifywait");
    for name in ["watched", "versions"] {
        fs::create_dir(place.a.join(name)).unwrap();
    }
    let watcher = &WATCHERS[0];
    let config = place.a.join("watched").join(watcher.file);
    fs::write(&config, (watcher.content)(&value(0))).unwrap();
    barrier(&place);
    let mut command = Command::new("inotifywait");
    command.args(["-m", "-e", kind, "-e", "delete_self", "--format", "%e %f", "."]);
    command.current_dir(place.b.join("watched"));
    let mut program = running::Printer::start(command);
    program.wait_for("Watches established.");
    let mut cells = Vec::new();
    for (index, writer) in WRITERS.iter().enumerate() {
        let from = program.lines().len();
        write(&place, watcher, writer, index + 1);
        // Every kind of event in turn, so that it is seen that nothing more comes.
        let end = format!("end{index}");
        let script = format!(": > {end}.tmp; echo x > {end}.tmp; chmod 600 {end}.tmp; mv {end}.tmp {end}");
        let mut command = running::bash(&script, &place.a.join("watched"));
        command.env("TERM", "dumb");
        assert!(run(command, WRITE).status.success());
        barrier(&place);
        let lines = eventually(&format!("{kind} after {}", writer.name), RELOAD, || {
            let lines = program.lines()[from..].to_vec();
            lines.iter().any(|line| line.contains(&end)).then_some(lines).ok_or("the end is not printed")
        });
        let mut kinds: Vec<&str> =
            lines.iter().filter_map(|line| line.strip_suffix(&format!(" {}", watcher.file))).collect();
        kinds.dedup();
        cells.push(if kinds.is_empty() { "-".to_string() } else { kinds.join(", ") });
    }
    cells
}

#[test]
fn inotifywait_prints_what_it_was_asked_for() {
    let _guard = guard(300);
    const KINDS: [&str; 5] = ["close_write", "moved_to", "create", "modify", "attrib"];
    let can = document::installed("inotifywait", &["inotifywait", "vim"]);
    let rows: Vec<Row> = KINDS
        .iter()
        .map(|kind| (format!("`inotifywait -m -e {kind}`"), can.then(|| printed(kind))))
        .collect();
    let heads: Vec<&str> = std::iter::once("asked for").chain(WRITERS.iter().map(|w| w.name)).collect();
    document::table("reloaders.md", "inotifywait", &heads, &rows);
}

/// A directory that is used as a queue: each file that another host puts there is taken once.
#[test]
fn a_spool_directory_works_across_hosts() {
    let _guard = guard(90);
    let place = pair().place("spool");
    let mut program = running::Printer::start(running::bash(
        "inotifywait -m -e moved_to -e close_write --format %f . 2>&1 | while read -r name; do \
             case $name in \
                 'Watches established.') echo ready;; \
                 *.job) mv \"$name\" \"$name.done\" && echo \"did $(cat \"$name.done\")\";; \
             esac; \
         done",
        &place.b,
    ));
    program.wait_for("ready");
    for n in 0..5 {
        fs::write(place.a.join(format!("{n}.job")), format!("job {n}")).unwrap();
        program.wait_for(&format!("did job {n}"));
        fs::File::open(&place.a).unwrap().sync_all().unwrap();
        assert!(place.a.join(format!("{n}.job.done")).exists());
    }
}

/// The same with systemd, which starts a service for as long as there is anything.
#[test]
fn a_spool_directory_works_with_systemd() {
    const WHAT: &str = "systemd, `DirectoryNotEmpty=`";
    let _guard = guard(120);
    if !document::installed(WHAT, systemd::NEEDS) || !systemd::can_run(WHAT) {
        return;
    }
    let place = pair().place("spool");
    let scratch = Scratch::new("spool");
    let dir = place.b.display();
    let script = format!("cd {dir}; for job in *.job; do echo \"did $(cat $job)\"; rm $job; done");
    let unit = systemd::PathUnit::start(scratch.path(), "DirectoryNotEmpty", &place.b, &script);
    let mut expected = String::new();
    for n in 0..5 {
        fs::write(place.a.join(".tmp"), format!("job {n}")).unwrap();
        fs::rename(place.a.join(".tmp"), place.a.join(format!("{n}.job"))).unwrap();
        expected.push_str(&format!("did job {n}\n"));
        eventually("the job is done", RELOAD, || {
            let printed = unit.printed();
            (printed == expected).then_some(()).ok_or(printed)
        });
        eventually("the job is gone", PROPAGATION, || {
            (!place.a.join(format!("{n}.job")).exists()).then_some(()).ok_or("it is there")
        });
    }
}
