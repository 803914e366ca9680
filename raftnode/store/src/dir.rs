//! The data directory: its lock, whose it is, and files that are replaced atomically.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::OpenError;

/// Name of the file that says whose directory it is.
const IDENTITY_FILE: &str = "node.toml";
/// Name of the file that is locked.
const LOCK_FILE: &str = "lock";

/// Which member a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
}

impl Identity {
    /// Whose directory this is; `None` if it is nobody's yet.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Identity>, OpenError> {
        let path = dir.join(IDENTITY_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::IdentityFile { path, reason: error.to_string() }),
        };
        match toml::from_str(&text) {
            Ok(identity) => Ok(Some(identity)),
            Err(error) => Err(OpenError::IdentityFile { path, reason: error.to_string() }),
        }
    }

    /// Writes it into a directory that is nobody's, or checks that it is the one that is there.
    pub(crate) fn claim(&self, dir: &Path) -> Result<(), OpenError> {
        match Identity::read(dir)? {
            Some(found) if found == *self => Ok(()),
            Some(found) => Err(OpenError::Identity {
                dir: dir.to_owned(),
                id: self.id,
                name: self.name.clone(),
                found_id: found.id,
                found_name: found.name,
            }),
            None => {
                let path = dir.join(IDENTITY_FILE);
                let text = toml::to_string(self).map_err(|error| OpenError::IdentityFile {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
                replace_file(&path, text.as_bytes()).map_err(OpenError::io("cannot write", path))
            }
        }
    }
}

/// The lock of a data directory. It lasts until it is released, or the last of those who share it is
/// gone, or the process ends.
#[derive(Debug)]
pub(crate) struct DirLock {
    file: Mutex<Option<File>>,
}

impl DirLock {
    /// Takes it, or says which process has it.
    pub fn take(dir: &Path) -> Result<DirLock, OpenError> {
        let path = dir.join(LOCK_FILE);
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open.map_err(OpenError::io("cannot open the lock file", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Whoever holds the lock wrote its pid, or is about to.
                let read = (&mut file).take(20).read_to_string(&mut pid);
                let known = read.is_ok() && pid.trim().parse::<u32>().is_ok();
                let holder = if known { pid.trim().to_owned() } else { "unknown".to_owned() };
                return Err(OpenError::InUse { dir: dir.to_owned(), holder });
            }
            Err(error) => return Err(OpenError::io("cannot lock", &path)(error.into())),
        }
        let write = (|| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        })();
        write.map_err(OpenError::io("cannot write the lock file", &path))?;
        Ok(DirLock { file: Mutex::new(Some(file)) })
    }

    /// Gives it up.
    pub fn release(&self) {
        if let Some(file) = self.file.lock().take() {
            // Closing is not enough: a process that is being started has a copy of the descriptor for a moment.
            // What this cannot unlock is unlocked when that is closed.
            let _ = flock(&file, FlockOperation::Unlock);
        }
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        self.release();
    }
}

/// Makes `dir` (0700) if it is not there.
pub(crate) fn make_dir(dir: &Path) -> Result<(), OpenError> {
    let missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let new: Vec<&Path> = dir.ancestors().take_while(missing).collect();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(OpenError::io("cannot make the directory", dir))?;
    // What is acknowledged in there must not go with the name of the directory.
    for name in new {
        sync_dir(parent(name)).map_err(OpenError::io("cannot sync the directory of", name))?;
    }
    Ok(())
}

/// Makes an empty file (0600) if there is none, so that a database that is opened by its path gets
/// these permissions.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file so that a crash leaves either the old or the new one.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(".new");
    let temp = PathBuf::from(temp);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temp, path)?;
    sync_dir(parent(path))
}

/// Removes a file; that it is not there is no error.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
