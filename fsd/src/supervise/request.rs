//! `fsd upgrade`: a word on a socket of the supervisor, and what came of it.
//!
//! The socket is named after the device of the mount, in a directory of the user who mounted. Only he, or root,
//! can get there.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::mountpoint;

/// What is asked for.
const UPGRADE: &str = "upgrade";
/// How the answer to what was done begins; any other is an error's text.
const DONE: &str = "done: ";
/// How long the new program may take, and somewhat more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// Bytes that he may take for it.
const WORD_MAX: u64 = 64;
/// How long whoever connects may take to say what he wants.
const WORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the sockets of a user's supervisors are.
fn directory(user: u32) -> PathBuf {
    if user == 0 { PathBuf::from("/run/quorumfs") } else { PathBuf::from(format!("/tmp/quorumfs-{user}")) }
}

fn socket(user: u32, device: u32) -> PathBuf {
    directory(user).join(format!("{device}.sock"))
}

/// Asks the supervisor of a mount to replace its worker; answers what it says.
pub fn upgrade(path: &Path) -> anyhow::Result<String> {
    let path = mountpoint::resolve(path)?;
    let Some(mount) = mountpoint::find(&path)? else {
        bail!("{path:?} is not a mounted quorumfs");
    };
    let Some(user) = mount.user else {
        bail!("it cannot be told who mounted {path:?}");
    };
    let place = socket(user, mount.device);
    let mut stream = UnixStream::connect(&place).with_context(|| {
        format!(
            "{path:?} has no supervisor that could be reached ({place:?}); it was mounted without --supervise, or by \
             somebody else, or its supervisor is gone: unmount it and mount it anew"
        )
    })?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).context("waiting for the supervisor")?;
    writeln!(stream, "{UPGRADE}").context("asking the supervisor")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("waiting for the supervisor")?;
    match answer.trim_end().strip_prefix(DONE) {
        Some(done) => Ok(done.to_string()),
        None if answer.is_empty() => bail!("the supervisor of {path:?} ended before it answered"),
        None => bail!("{}", answer.trim_end()),
    }
}

/// Where the supervisor hears of it.
pub struct Requests {
    askers: mpsc::Receiver<Asker>,
    listening: JoinHandle<()>,
    place: PathBuf,
    /// Number of the socket's inode.
    made: u64,
}

/// Somebody who waits for an answer.
pub struct Asker(tokio::net::UnixStream);

impl Requests {
    /// For the mount on `path`.
    pub fn listen(path: &Path) -> anyhow::Result<Requests> {
        let user = rustix::process::getuid().as_raw();
        let mount = mountpoint::find(path)?.context("the mount is gone")?;
        let directory = directory(user);
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("making {directory:?}"));
            }
            _ => {}
        }
        // In /tmp somebody else may have been faster.
        let found =
            std::fs::symlink_metadata(&directory).with_context(|| format!("looking at {directory:?}"))?;
        if !found.is_dir() || found.uid() != user || found.permissions().mode() & 0o022 != 0 {
            bail!("{directory:?} is not a directory of this user's alone");
        }
        let place = socket(user, mount.device);
        // What an earlier mount of that number has left. Nobody listens there: the number is ours now.
        let _ = std::fs::remove_file(&place);
        let listener = UnixListener::bind(&place).with_context(|| format!("listening on {place:?}"))?;
        let (sender, askers) = mpsc::channel(1);
        let made = std::fs::symlink_metadata(&place).with_context(|| format!("looking at {place:?}"))?.ino();
        Ok(Requests { askers, listening: tokio::spawn(hear(listener, sender)), place, made })
    }

    /// The next who asks for an upgrade.
    pub async fn next(&mut self) -> Asker {
        match self.askers.recv().await {
            Some(asker) => asker,
            None => std::future::pending().await,
        }
    }
}

async fn hear(listener: UnixListener, askers: mpsc::Sender<Asker>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut word = String::new();
        let mut reader = tokio::io::BufReader::new((&mut stream).take(WORD_MAX));
        let read = tokio::time::timeout(WORD_TIMEOUT, reader.read_line(&mut word)).await;
        let understood = matches!(read, Ok(Ok(_))) && word.trim_end() == UPGRADE;
        if understood && askers.send(Asker(stream)).await.is_err() {
            return;
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.listening.abort();
        // The next mount may have the number of this one by now, and listen there.
        if std::fs::symlink_metadata(&self.place).is_ok_and(|found| found.ino() == self.made) {
            let _ = std::fs::remove_file(&self.place);
        }
    }
}

impl Asker {
    /// Says what came of it.
    pub async fn answer(mut self, result: &Result<String, String>) {
        let text = match result {
            Ok(done) => format!("{DONE}{done}\n"),
            Err(error) => format!("{}\n", error.replace('\n', " ")),
        };
        // He may have gone away.
        let _ = self.0.write_all(text.as_bytes()).await;
    }
}
