//! `fsd status`: what mounts say of themselves, read from the directory `.quorumfs` in each.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use fsd::report::{DIR_NAME, File};

use crate::mountpoint;

/// How long a daemon may take to say how it is; it asks the cluster for less than a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Prints one mount's report, or those of all mounts that this process sees.
pub fn run(mountpoint: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let mounts = match mountpoint {
        Some(path) => vec![mountpoint::mounted(path)?],
        None => mountpoint::all_mounted()?,
    };
    if mounts.is_empty() {
        bail!("no quorumfs is mounted here; `fsd mount NODES DIR` mounts one");
    }
    let mut out = io::stdout().lock();
    let mut failed = false;
    for (number, path) in mounts.iter().enumerate() {
        let file = if json { File::StatusJson } else { File::Status };
        let text = match read(path, file) {
            Ok(text) => text,
            Err(error) if json => {
                failed = true;
                let (mount, error) = (path.display().to_string(), format!("{error:#}"));
                format!("{:#}\n", serde_json::json!({ "mount": { "mountpoint": mount }, "error": error }))
            }
            Err(error) => {
                failed = true;
                format!("{:<14}{}\nerror         {error:#}\n", "mounted on", path.display())
            }
        };
        let gap = if number > 0 && !json { "\n" } else { "" };
        write!(out, "{gap}{text}").and_then(|()| out.flush()).context("writing to standard output")?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read(mount: &Path, file: File) -> anyhow::Result<String> {
    let path = mount.join(OsStr::from_bytes(DIR_NAME)).join(file.name());
    match mountpoint::in_time(ANSWER_TIMEOUT, move || std::fs::read_to_string(path)) {
        None => bail!("its daemon does not answer: it is stopped, or gone for good (then: umount -l)"),
        Some(Ok(text)) => Ok(text),
        Some(Err(error)) => Err(explain(error)),
    }
}

fn explain(error: io::Error) -> anyhow::Error {
    let hint = match error.raw_os_error() {
        Some(libc::ENOTCONN | libc::ECONNABORTED) => {
            "its daemon has died; mount it again, which takes the remains off"
        }
        Some(libc::EACCES) => "it is another user's, and mounted for that user only",
        _ => "it does not say how it is",
    };
    anyhow::Error::new(error).context(hint)
}
