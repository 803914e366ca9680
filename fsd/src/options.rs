//! The `-o` options of a mount: what fstab and `mount(8)` hand over as one comma-separated list.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorumfs_api::client::settings;
use quorumfs_api::style::{self, EventStyle};

/// Bounds of `timeout=`: below, an election cannot end in time; above, a process would seem stuck.
const TIMEOUT_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);

/// What can be asked for, in the words of the error message for everything else.
const KNOWN: &str = "certs=DIR, cert=DIR/NAME.crt, name=NAME, prefix=KEY, timeout=5s, uid=N, gid=N, umask=OCTAL, \
                     event=write|rename|swap, \
                     ro, rw, sync, async, allow_other, private, suid, nosuid, dev, nodev, exec, noexec, \
                     create_prefix, supervise, log_file=FILE";

/// Options of `mount(8)` and fstab that concern the caller, or that make no difference here: times of
/// access are not kept, and what is not the kernel's business it never sees.
const ACCEPTED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "dirsync",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "symfollow",
    "silent",
    "loud",
];

/// Options with a value that are meant for others.
const NOTES: &[&str] = &["comment", "user", "uhelper"];

/// Why an option list was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A word that is no option.
    #[error("unknown mount option {0:?}; known are: {KNOWN}; and the generic ones of mount(8)")]
    Unknown(String),
    /// An option that needs a value, without one.
    #[error("the mount option {0:?} needs a value: {0}=...")]
    NoValue(String),
    /// An option that takes no value, with one.
    #[error("the mount option {0:?} takes no value")]
    Value(String),
    /// A value that cannot be read.
    #[error("mount option {option}={value}: {reason}")]
    Bad {
        /// Which.
        option: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The mount would have to change under its users.
    #[error("a mounted quorumfs cannot be remounted with other options: unmount it, then mount it anew")]
    Remount,
}

/// What the options say; `None` where they say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Directory of the certificates.
    pub certs: Option<PathBuf>,
    /// Name of the identity in it.
    pub name: Option<String>,
    /// Subtree to mount.
    pub prefix: Option<String>,
    /// How long a system call may wait for the cluster.
    pub timeout: Option<Duration>,
    /// Owner shown for everything.
    pub uid: Option<u32>,
    /// Group shown for everything.
    pub gid: Option<u32>,
    /// Permission bits taken away from everything.
    pub umask: Option<u32>,
    /// How changes look to programs that watch, in directories that do not say.
    pub event: Option<EventStyle>,
    /// Refuse every change.
    pub read_only: bool,
    /// Commit in each `write`.
    pub sync: bool,
    /// Whether other users may look in; `None`: as the caller's rights allow.
    pub allow_other: Option<bool>,
    /// Honour set-user-id bits. Off unless asked for: whoever can write to the store could set them.
    pub suid: bool,
    /// Honour device nodes. Off unless asked for, and the store has none.
    pub dev: bool,
    /// Refuse to execute.
    pub noexec: bool,
    /// Make the prefix where it does not exist.
    pub create_prefix: bool,
    /// Let a supervisor hold the mount, so that it outlives the process that serves it.
    pub supervise: bool,
    /// Where a daemon writes its log.
    pub log_file: Option<PathBuf>,
}

impl MountOptions {
    /// Those that say how things are shown and what is refused, as one list: what a worker is told besides where
    /// the cluster is.
    pub fn behaviour(&self) -> String {
        let mut words = Vec::new();
        for (name, value) in [("uid", self.uid), ("gid", self.gid)] {
            words.extend(value.map(|value| format!("{name}={value}")));
        }
        words.extend(self.umask.map(|umask| format!("umask={umask:o}")));
        words.extend(self.event.map(|style| format!("event={}", style.name())));
        let flags = [
            (self.read_only, "ro"),
            (self.sync, "sync"),
            (self.allow_other == Some(true), "allow_other"),
            (self.allow_other == Some(false), "private"),
            (self.suid, "suid"),
            (self.dev, "dev"),
            (self.noexec, "noexec"),
        ];
        words.extend(flags.iter().filter(|(set, _)| *set).map(|(_, word)| word.to_string()));
        words.join(",")
    }

    /// Reads lists such as `ro,prefix=/services`; later ones win.
    pub fn parse<S: AsRef<str>>(lists: &[S]) -> Result<MountOptions, OptionError> {
        MountOptions::parse_sloppily(lists, false).map(|(options, _)| options)
    }

    /// The same; `sloppy` (`mount -s`) passes over words that are no option, and gives them back.
    pub fn parse_sloppily<S: AsRef<str>>(
        lists: &[S],
        sloppy: bool,
    ) -> Result<(MountOptions, Vec<String>), OptionError> {
        let mut options = MountOptions::default();
        let mut passed = Vec::new();
        for list in lists {
            for word in list.as_ref().split(',').map(str::trim).filter(|w| !w.is_empty()) {
                match options.apply(word) {
                    Err(OptionError::Unknown(word)) if sloppy => passed.push(word),
                    other => other?,
                }
            }
        }
        Ok((options, passed))
    }

    fn apply(&mut self, word: &str) -> Result<(), OptionError> {
        let (option, value) = match word.split_once('=') {
            Some((option, value)) => (option, Some(value)),
            None => (word, None),
        };
        // `x-systemd.automount`, `x-...`, `comment=...` are notes for other readers of fstab, `user=...` and
        // `uhelper=...` for umount(8).
        if option.starts_with("x-") || option.starts_with("X-") || NOTES.contains(&option) {
            return Ok(());
        }
        match option {
            "certs" | "cert" | "name" | "prefix" | "timeout" | "uid" | "gid" | "umask" | "log_file"
            | "event" => {
                let value = value
                    .filter(|v| !v.is_empty())
                    .ok_or_else(|| OptionError::NoValue(option.to_string()))?;
                self.apply_value(option, value)
            }
            _ => {
                let known = self.apply_flag(option)?;
                match (known, value) {
                    (false, _) => Err(OptionError::Unknown(word.to_string())),
                    (true, Some(_)) => Err(OptionError::Value(option.to_string())),
                    (true, None) => Ok(()),
                }
            }
        }
    }

    fn apply_value(&mut self, option: &str, value: &str) -> Result<(), OptionError> {
        let bad = |reason: String| OptionError::Bad {
            option: option.to_string(),
            value: value.to_string(),
            reason,
        };
        match option {
            "certs" => self.certs = Some(value.into()),
            "cert" => {
                let (dir, name) = split_certificate(Path::new(value)).ok_or_else(|| {
                    bad("this is to be the path of a client's certificate, such as /etc/quorumfs/host1.crt".into())
                })?;
                (self.certs, self.name) = (Some(dir), Some(name));
            }
            "name" => self.name = Some(value.to_string()),
            "prefix" => self.prefix = Some(value.to_string()),
            "timeout" => self.timeout = Some(parse_timeout(value).map_err(bad)?),
            "uid" => self.uid = Some(parse_id(value).map_err(bad)?),
            "gid" => self.gid = Some(parse_id(value).map_err(bad)?),
            "umask" => self.umask = Some(parse_umask(value).map_err(bad)?),
            "event" => self.event = Some(value.parse().map_err(|e: style::UnknownStyle| bad(e.to_string()))?),
            "log_file" => self.log_file = Some(value.into()),
            _ => return Err(OptionError::Unknown(option.to_string())),
        }
        Ok(())
    }

    /// Whether `option` is a flag that is known.
    fn apply_flag(&mut self, option: &str) -> Result<bool, OptionError> {
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "allow_other" => self.allow_other = Some(true),
            "private" => self.allow_other = Some(false),
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.noexec = false,
            "noexec" => self.noexec = true,
            "create_prefix" => self.create_prefix = true,
            "supervise" => self.supervise = true,
            "remount" => return Err(OptionError::Remount),
            other => return Ok(ACCEPTED.contains(&other)),
        }
        Ok(true)
    }
}

/// `DIR/NAME.crt` as the directory and the identity's name.
fn split_certificate(path: &Path) -> Option<(PathBuf, String)> {
    if path.extension()? != "crt" {
        return None;
    }
    let name = path.file_stem()?.to_str()?.to_string();
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some((dir.to_path_buf(), name))
}

/// A time such as `5s` or `500ms`, within [`TIMEOUT_RANGE`].
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    let duration = settings::parse_duration(text)?;
    if !TIMEOUT_RANGE.contains(&duration) {
        return Err(format!(
            "it has to lie between {:?} and {:?}",
            TIMEOUT_RANGE.start(),
            TIMEOUT_RANGE.end()
        ));
    }
    Ok(duration)
}

fn parse_id(text: &str) -> Result<u32, String> {
    // The last number means "no change" to chown, and is nobody's.
    text.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| "a numeric id is wanted".to_string())
}

fn parse_umask(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mask| *mask <= 0o777)
        .ok_or_else(|| "an octal mask such as 022 is wanted".to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_whole_fstab_line_is_understood() {
        let options = MountOptions::parse(&[
            "rw,noatime,nosuid,nodev,_netdev,auto,x-systemd.automount,comment=kv",
            "certs=/etc/quorumfs,name=web1,prefix=/services,timeout=500ms,uid=33,gid=34,umask=027,event=rename,ro,sync,private",
        ])
        .unwrap();
        let wanted = MountOptions {
            certs: Some("/etc/quorumfs".into()),
            name: Some("web1".into()),
            prefix: Some("/services".into()),
            timeout: Some(Duration::from_millis(500)),
            uid: Some(33),
            gid: Some(34),
            umask: Some(0o27),
            event: Some(EventStyle::Rename),
            read_only: true,
            sync: true,
            allow_other: Some(false),
            ..MountOptions::default()
        };
        assert_eq!(options, wanted);
    }

    #[test]
    fn later_options_win() {
        let options = MountOptions::parse(&["ro,sync,suid", "rw,async,nosuid"]).unwrap();
        assert_eq!(options, MountOptions::default());
    }

    #[test]
    fn a_certificate_gives_directory_and_name() {
        let options = MountOptions::parse(&["cert=/etc/quorumfs/web1.crt"]).unwrap();
        assert_eq!(options.certs, Some("/etc/quorumfs".into()));
        assert_eq!(options.name.as_deref(), Some("web1"));
        assert!(MountOptions::parse(&["cert=/etc/quorumfs"]).is_err());
    }

    #[test]
    fn an_unknown_option_names_the_known_ones() {
        let message = MountOptions::parse(&["rw,prefx=/a"]).unwrap_err().to_string();
        assert!(message.contains("prefx=/a") && message.contains("prefix=KEY"), "{message}");
    }

    #[test]
    fn values_are_checked() {
        for bad in [
            "timeout=0",
            "timeout=5h",
            "timeout=",
            "timeout",
            "uid=root",
            "uid=4294967295",
            "umask=9",
            "umask=1777",
            "event=moves",
            "ro=1",
            "prefix",
            "noatime=yes",
            "remount",
        ] {
            assert!(MountOptions::parse(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(parse_timeout("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(parse_timeout("7").unwrap(), Duration::from_secs(7));
    }

    #[test]
    fn a_worker_is_told_the_same() {
        for list in
            ["", "ro,uid=12,gid=34,umask=077,private", "sync,allow_other,suid,dev,noexec", "event=rename"]
        {
            let options = MountOptions::parse(&[list]).unwrap();
            assert_eq!(MountOptions::parse(&[options.behaviour()]).unwrap(), options, "{list}");
        }
    }
}
