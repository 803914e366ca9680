//! `mount.quorumfs`: what mount(8) runs for `mount -t quorumfs NODES DIR -o ...` and for lines of fstab.
//! It is this program under another name, a symbolic link in `/sbin`, and the same as `fsd mount --daemon`.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Parser;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cli::MountArgs;
use crate::options::MountOptions;

/// The names that mount(8) looks for, for the types `quorumfs` and `fuse.quorumfs`.
const NAMES: [&str; 2] = ["mount.quorumfs", "mount.fuse.quorumfs"];
/// Exit code for words that make no sense, as mount(8) has it.
pub const USAGE: u8 = 1;
/// Exit code of a mount that failed, as mount(8) has it.
pub const FAILED: u8 = 32;

/// Mounts a quorumfs store. This is called by mount(8); a person calls `fsd mount`.
#[derive(Debug, Parser)]
#[command(name = "mount.quorumfs", version, arg_required_else_help = true)]
pub struct MountHelper {
    /// Nodes of the cluster: HOST:PORT,HOST:PORT,...
    nodes: String,
    /// The directory to mount on.
    mountpoint: PathBuf,
    /// Mount options, as in fstab.
    #[arg(short = 'o', value_name = "OPT,...", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Pass over options that are not known.
    #[arg(short = 's')]
    sloppy: bool,
    /// Look at the options, and mount nothing.
    #[arg(short = 'f')]
    fake: bool,
    /// No entry in mtab: there never is one.
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Say more: there is nothing more to say.
    #[arg(short = 'v')]
    verbose: bool,
    /// Mount in that namespace: a process id, or the file of a namespace.
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The type, which is ours.
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
    /// Said by the parent of a daemon to its child.
    #[arg(long = "report-ready-on-stdout", hide = true)]
    is_daemon: bool,
}

/// The name under which this program was called, if it is that of a mount helper.
pub fn name(words: &[OsString]) -> Option<&'static str> {
    let called = Path::new(words.first()?).file_name()?;
    NAMES.into_iter().find(|name| called == *name)
}

impl MountHelper {
    /// Only the command line is to be looked at.
    pub fn is_fake(&self) -> bool {
        self.fake
    }

    /// What the options say.
    pub fn mount_options(&self) -> anyhow::Result<MountOptions> {
        let (options, unknown) = MountOptions::parse_sloppily(&self.options, self.sloppy)?;
        // Once: the child reads the same words.
        for word in unknown.iter().filter(|_| !self.is_daemon) {
            eprintln!("mount.quorumfs: passing over the mount option {word:?}, which is not known");
        }
        Ok(options)
    }

    /// Moves this process, which must have one thread only, to where the mount is wanted.
    pub fn enter_namespace(&self) -> anyhow::Result<()> {
        // The child of a process that has moved is there already.
        let Some(namespace) = self.namespace.as_deref().filter(|_| !self.is_daemon) else { return Ok(()) };
        let path = match namespace.parse::<u32>() {
            Ok(pid) => PathBuf::from(format!("/proc/{pid}/ns/mnt")),
            Err(_) => PathBuf::from(namespace),
        };
        let file = File::open(&path).with_context(|| format!("opening the mount namespace {path:?}"))?;
        if let Err(error) = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Mount)) {
            bail!("entering the mount namespace {path:?}: {error}");
        }
        Ok(())
    }

    /// The same as a command line of `fsd mount`.
    pub fn mount_args(self) -> MountArgs {
        MountArgs {
            nodes: self.nodes,
            mountpoint: self.mountpoint,
            daemon: true,
            is_daemon: self.is_daemon,
            ..MountArgs::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<MountHelper, clap::Error> {
        MountHelper::try_parse_from(text.split(' '))
    }

    #[test]
    fn only_a_helper_is_called_like_one() {
        let name = |word: &str| name(&[word.into()]);
        assert_eq!(name("/sbin/mount.quorumfs"), Some("mount.quorumfs"));
        assert_eq!(name("mount.fuse.quorumfs"), Some("mount.fuse.quorumfs"));
        assert_eq!(name("/usr/bin/fsd"), None);
    }

    #[test]
    fn what_mount_says_is_understood() {
        // As util-linux calls it, with and without flags of its own user.
        let helper = parse(
            "/sbin/mount.quorumfs n1:7400,n2:7400 /kv -sn -v -N 77 -t fuse.quorumfs -o rw,prefix=/services",
        )
        .unwrap();
        assert!(helper.sloppy && !helper.is_fake());
        assert_eq!(helper.namespace.as_deref(), Some("77"));
        assert_eq!(helper.mount_options().unwrap().prefix.as_deref(), Some("/services"));
        let args = helper.mount_args();
        assert_eq!((args.nodes.as_str(), args.mountpoint.as_path()), ("n1:7400,n2:7400", Path::new("/kv")));
        assert!(args.daemon && !args.is_daemon);
        assert!(parse("mount.quorumfs n1 /kv -f -o rw").unwrap().is_fake());
        assert!(parse("mount.quorumfs n1").is_err());
    }

    #[test]
    fn sloppy_passes_over_what_is_not_known() {
        assert!(parse("mount.quorumfs n1 /kv -o rw,color=red").unwrap().mount_options().is_err());
        assert!(
            parse("mount.quorumfs n1 /kv -s -o ro,color=red").unwrap().mount_options().unwrap().read_only
        );
        // A known one with a value that makes no sense is a mistake all the same.
        assert!(parse("mount.quorumfs n1 /kv -s -o umask=rwx").unwrap().mount_options().is_err());
    }

    #[test]
    fn the_childs_flag_exists() {
        let text = format!("mount.quorumfs n1 /kv {}", crate::daemon::FLAG);
        assert!(parse(&text).unwrap().mount_args().is_daemon);
    }
}
