//! Names that come, go and move. All of it is committed before the call returns.

use bytes::Bytes;
use quorumfs_api::command::{Command, CreateMode, LeaseChange, RenameMode, Special, Target};
use quorumfs_api::key::Name;
use quorumfs_api::outcome::Done;
use quorumfs_api::record::{Device, Ino, Kind};

use super::{Caller, Entry, Fs, name};
use crate::asked::Believed;
use crate::errno::{Errno, Result};
use crate::handover::note;
use crate::kernel::{NodeId, STAGE};
use crate::mirror::{At, Net};
use crate::replay::expect;
use crate::state::{State, Touch};

impl Fs {
    /// If this is the replayer making what it is about to make, the entry for it.
    fn replayed(&self, caller: Caller, parent: NodeId, bytes: &[u8], kind: Kind) -> Result<Option<Entry>> {
        if !self.is_replayer(caller) {
            return Ok(None);
        }
        let mut state = self.core.state.lock();
        let at = (state.kernel.ino(parent).ok_or(Errno::ENOENT)?, name(bytes)?);
        // What the replayer does must never be taken for a user's wish.
        let ino = expect::creates(&mut state.queue, &at, kind).ok_or(Errno::ESTALE)?;
        self.give_replayer(&mut state, &at, ino).map(Some)
    }

    /// Where a new name goes; refuses one that is taken.
    async fn free(&self, parent: NodeId, bytes: &[u8], command: u8) -> Result<At> {
        self.check_writable()?;
        self.check_name(parent, bytes).await?;
        let name = name(bytes)?;
        // An earlier worker may have made it for this very call.
        let was_done = self.core.was_done(command).await?;
        let state = self.core.state.lock();
        let at = (self.dir(&state, parent)?, name);
        let is_taken = state.mirror.child(at.0, &at.1).is_some() || state.kernel.private_at(&at).is_some();
        if is_taken && !was_done {
            return Err(Errno::EEXIST);
        }
        Ok(at)
    }

    /// Does what makes `at`, and gives the kernel what was made.
    async fn make(&self, at: At, command: Command) -> Result<Entry> {
        let Done::Written { ino, .. } = self.core.commit(vec![Touch::Name(at.clone())], command).await?
        else {
            return Err(Errno::EPROTO);
        };
        let mut state = self.core.state.lock();
        let ino = state.mirror.inner(ino);
        self.give(&mut state, &at, ino)
    }

    /// Makes a directory.
    pub async fn mkdir(&self, caller: Caller, parent: NodeId, bytes: &[u8], mode: u32) -> Result<Entry> {
        if let Some(entry) = self.replayed(caller, parent, bytes, Kind::Dir)? {
            return Ok(entry);
        }
        let at = self.free(parent, bytes, note::MKDIR).await?;
        let command = {
            let state = self.core.state.lock();
            let owner = self.owner(&state, at.0, caller, mode, Kind::Dir);
            Command::Mkdir { at: self.place(&state, &at)?, parents: false, owner }
        };
        self.make(at, command).await
    }

    /// Makes a symbolic link.
    pub async fn symlink(&self, caller: Caller, parent: NodeId, bytes: &[u8], to: &[u8]) -> Result<Entry> {
        if let Some(entry) = self.replayed(caller, parent, bytes, Kind::Symlink)? {
            return Ok(entry);
        }
        let at = self.free(parent, bytes, note::SYMLINK).await?;
        let command = {
            let state = self.core.state.lock();
            let owner = self.owner(&state, at.0, caller, 0o777, Kind::Symlink);
            let to = Bytes::copy_from_slice(to);
            Command::Symlink { at: self.place(&state, &at)?, to, parents: false, owner }
        };
        self.make(at, command).await
    }

    /// Makes an empty file, or a special one: those connect the processes of one host, or name its devices.
    pub async fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        bytes: &[u8],
        mode: u32,
        device: Device,
    ) -> Result<Entry> {
        let special = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => None,
            libc::S_IFIFO => Some(Special::Fifo),
            libc::S_IFSOCK => Some(Special::Socket),
            libc::S_IFCHR => Some(Special::CharDevice(device)),
            libc::S_IFBLK => Some(Special::BlockDevice(device)),
            _ => return Err(Errno::EINVAL),
        };
        let kind = special.map_or(Kind::File, Special::kind);
        if let Some(entry) = self.replayed(caller, parent, bytes, kind)? {
            return Ok(entry);
        }
        let tag = if special.is_some() { note::MKNOD } else { note::PUT };
        let at = self.free(parent, bytes, tag).await?;
        let command = {
            let state = self.core.state.lock();
            let owner = self.owner(&state, at.0, caller, mode, kind);
            let place = self.place(&state, &at)?;
            match special {
                Some(special) => Command::Mknod { at: place, special, parents: false, owner },
                None => Command::Put {
                    target: Target::At(place),
                    value: Bytes::new(),
                    create: CreateMode::Exclusive,
                    parents: false,
                    owner,
                    lease: LeaseChange::Keep,
                },
            }
        };
        self.make(at, command).await
    }

    /// Takes away a file or a symbolic link.
    pub async fn unlink(&self, caller: Caller, parent: NodeId, bytes: &[u8]) -> Result<()> {
        if self.is_removed(caller, parent, bytes, false)? {
            return Ok(());
        }
        self.check_writable()?;
        self.check_name(parent, bytes).await?;
        let name = name(bytes)?;
        let at = {
            let state = self.core.state.lock();
            (self.dir(&state, parent)?, name)
        };
        if self.abandon(&at).await {
            return Ok(());
        }
        let was_done = self.core.was_done(note::DELETE).await?;
        let (command, believed) = {
            let mut state = self.core.state.lock();
            if !was_done {
                state.look_again(caller.pid, &at)?;
            }
            let command = Command::Delete { at: self.place(&state, &at)?, recursive: false };
            (command, Believed::new(&self.core, &mut state, vec![at.clone()]))
        };
        self.core.commit(vec![Touch::Name(at)], command).await?;
        believed.verdict()
    }

    /// Does away with the private file of that name, if it is one. If it is being published in this
    /// moment, it is none any more.
    async fn abandon(&self, at: &At) -> bool {
        let gate = {
            let state = self.core.state.lock();
            let private = state.kernel.private_at(at).and_then(|node| state.kernel.private(node));
            match private {
                Some(private) => private.gate.clone(),
                None => return false,
            }
        };
        let _held = gate.lock().await;
        let mut state = self.core.state.lock();
        match state.kernel.private_at(at) {
            Some(node) => {
                state.abandon(node);
                true
            }
            None => false,
        }
    }

    /// Takes away an empty directory.
    pub async fn rmdir(&self, caller: Caller, parent: NodeId, bytes: &[u8]) -> Result<()> {
        if self.is_removed(caller, parent, bytes, true)? {
            return Ok(());
        }
        self.check_writable()?;
        self.check_name(parent, bytes).await?;
        let name = name(bytes)?;
        let was_done = self.core.was_done(note::RMDIR).await?;
        let (at, command, believed) = {
            let mut state = self.core.state.lock();
            let at = (self.dir(&state, parent)?, name);
            if !was_done {
                state.look_again(caller.pid, &at)?;
            }
            if let Some(dir) = state.mirror.child(at.0, &at.1)
                && state.kernel.privates_in(dir).next().is_some()
            {
                return Err(Errno::ENOTEMPTY);
            }
            let command = Command::Rmdir { at: self.place(&state, &at)? };
            let believed = Believed::new(&self.core, &mut state, vec![at.clone()]);
            (at, command, believed)
        };
        self.core.commit(vec![Touch::Name(at)], command).await?;
        believed.verdict()
    }

    fn is_removed(&self, caller: Caller, parent: NodeId, bytes: &[u8], dir: bool) -> Result<bool> {
        if !self.is_replayer(caller) {
            return Ok(false);
        }
        let mut state = self.core.state.lock();
        let at = (state.kernel.ino(parent).ok_or(Errno::ENOENT)?, name(bytes)?);
        if expect::removes(&mut state.queue, &at, dir) { Ok(true) } else { Err(Errno::ESTALE) }
    }

    /// The replayer moves something into its place.
    fn move_in(state: &mut State, parent: NodeId, name: Name) -> Result<()> {
        let to = (state.kernel.ino(parent).ok_or(Errno::ESTALE)?, name);
        match expect::moves_in(&mut state.queue, &state.mirror, &to).ok_or(Errno::ESTALE)? {
            Net::Update { ino } => state.moved_in(ino),
            Net::Swap { dir } => state.moved_in_link(dir),
            _ => {}
        }
        Ok(())
    }

    /// Renames, with the flags of `renameat2(2)`.
    pub async fn rename(
        &self,
        caller: Caller,
        (parent, bytes): (NodeId, &[u8]),
        (new_parent, new_bytes): (NodeId, &[u8]),
        flags: u32,
    ) -> Result<()> {
        let (old, new) = (name(bytes)?, name(new_bytes)?);
        if self.is_replayer(caller) {
            let mut state = self.core.state.lock();
            if parent == STAGE {
                return Self::move_in(&mut state, new_parent, new);
            }
            let old: (Ino, _) = (state.kernel.ino(parent).ok_or(Errno::ESTALE)?, old);
            let new = (state.kernel.ino(new_parent).ok_or(Errno::ESTALE)?, new);
            return if expect::renames(&mut state.queue, &old, &new) { Ok(()) } else { Err(Errno::ESTALE) };
        }
        self.check_writable()?;
        self.check_name(parent, bytes).await?;
        self.check_name(new_parent, new_bytes).await?;
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Errno::EINVAL),
        };
        let was_done = self.core.was_done(note::RENAME).await?;
        let (from, to, source, target) = {
            let mut state = self.core.state.lock();
            let from = (self.dir(&state, parent)?, old);
            let to = (self.dir(&state, new_parent)?, new);
            if !was_done {
                state.look_again(caller.pid, &from)?;
            }
            (from.clone(), to.clone(), state.kernel.private_at(&from), state.kernel.private_at(&to))
        };
        if from == to {
            return Ok(());
        }
        if let Some(node) = source {
            self.publish_node(node).await?;
        }
        match (target, mode) {
            (None, _) => {}
            (Some(_), RenameMode::NoReplace) => return Err(Errno::EEXIST),
            (Some(node), RenameMode::Exchange) => self.publish_node(node).await?,
            (Some(_), RenameMode::Replace) => _ = self.abandon(&to).await,
        }
        let (command, believed) = {
            let mut state = self.core.state.lock();
            let command =
                Command::Rename { from: self.place(&state, &from)?, to: self.place(&state, &to)?, mode };
            (command, Believed::new(&self.core, &mut state, vec![from.clone(), to.clone()]))
        };
        self.core.commit(vec![Touch::Name(from), Touch::Name(to)], command).await?;
        believed.verdict()
    }
}
