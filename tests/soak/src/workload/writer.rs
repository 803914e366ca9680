//! A process that writes to a mount for this one.
//!
//! Every process that is forked from one with a file open for writing has that file, too, until it
//! has executed its program; then it is closed there, which on a mount is a flush that may wait for
//! the cluster. If this process wrote, it could not start a node again while it waits for the nodes.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use quorumfs_tests::process::{self, SIGKILL};

use crate::workload::mount::value;

/// The argument that makes the program such a process.
pub const ARGUMENT: &str = "write-for-another";

/// What came of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was acknowledged, and this is wrong with what a read gave right after it.
    Written(Option<String>),
    /// It failed: number and words.
    Failed(i32, String),
}

/// The other process.
pub struct Writer {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    child: std::process::Child,
}

impl Writer {
    /// Starts it.
    pub fn start() -> io::Result<Writer> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process::spawn(command, SIGKILL)?;
        let missing = || io::Error::other("a pipe is missing");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        Ok(Writer { input, output, child })
    }

    /// Makes `path` have the value with this number: in place, or by a temporary file and a rename.
    pub fn write(&mut self, path: &Path, number: u64, in_place: bool) -> io::Result<Answer> {
        writeln!(self.input, "{in_place} {number} {}", path.display())?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let mut words = line.trim_end().splitn(3, ' ');
        let (kind, code, text) = (words.next(), words.next(), words.next().unwrap_or_default());
        match (kind, code.and_then(|code| code.parse().ok())) {
            (Some("written"), Some(0)) => Ok(Answer::Written(None)),
            (Some("written"), Some(_)) => Ok(Answer::Written(Some(text.to_string()))),
            (Some("failed"), Some(code)) => Ok(Answer::Failed(code, text.to_string())),
            _ => Err(io::Error::other(format!("the writer said {line:?}"))),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may hang in a mount; SIGKILL is seen there at the latest when the mount goes.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

/// What the other process does until its input ends.
pub fn serve() -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.splitn(3, ' ');
        let (Some(in_place), Some(Ok(number)), Some(path)) =
            (words.next(), words.next().map(str::parse), words.next())
        else {
            return Err(io::Error::other(format!("{line:?} makes no sense")));
        };
        let text = match write(Path::new(path), number, in_place == "true") {
            Ok(()) => match fs::read(path) {
                Ok(bytes) if bytes == value(number).as_bytes() => "written 0".to_string(),
                Ok(bytes) => {
                    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(30)]).into_owned();
                    format!("written 1 {number} was written, and a read gave {start:?}")
                }
                Err(error) => format!("written 1 {number} was written, and a read gave: {error}"),
            },
            Err(error) => format!("failed {} {error}", error.raw_os_error().unwrap_or_default()),
        };
        let mut output = io::stdout().lock();
        writeln!(output, "{text}")?;
        output.flush()?;
    }
    Ok(())
}

fn write(path: &Path, number: u64, in_place: bool) -> io::Result<()> {
    if in_place {
        return publish(path, number);
    }
    let temporary = path.with_file_name("temporary");
    publish(&temporary, number)?;
    fs::rename(temporary, path)
}

/// Writes a file so that it is durable when this returns `Ok`: closing alone would hide errors.
fn publish(path: &Path, number: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(value(number).as_bytes())?;
    file.sync_all()
}
