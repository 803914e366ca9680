//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::options::{self, MountOptions};
use crate::{daemon, dev, log, mount};

/// Mounts a quorumfs store as a directory.
#[derive(Debug, Parser)]
#[command(name = "fsd", version, about, long_about = None, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mounts a store that runs on other hosts.
    ///
    /// Runs in the foreground until it is unmounted, or ended by SIGINT or SIGTERM (which unmount).
    /// SIGHUP reloads the certificates.
    Mount(MountArgs),
    /// Runs a store of one node and mounts it, all in this process. Nothing needs to be set up.
    Dev(DevArgs),
    /// Unmounts a store, also one whose daemon has died.
    #[command(visible_alias = "unmount")]
    Umount {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// Take it out of sight at once, though it is in use.
        #[arg(long, short = 'l')]
        lazy: bool,
    },
}

/// Arguments of `fsd mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Some or all nodes of the cluster: HOST:PORT,HOST:PORT,... (port 7400 if left out). "-" takes
    /// what QUORUMFS_NODES or client.toml say.
    pub nodes: String,
    /// The directory to mount on.
    pub mountpoint: PathBuf,
    /// Mount options as in fstab: certs=DIR, name=NAME, prefix=KEY, ro, sync, timeout=5s, uid=, gid=,
    /// umask=, allow_other, private ...
    #[arg(short = 'o', value_name = "OPT,...", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
    /// Directory with ca.crt, NAME.crt and NAME.key.
    #[arg(long, value_name = "DIR")]
    pub certs: Option<PathBuf>,
    /// Name of the client identity.
    #[arg(long)]
    pub name: Option<String>,
    /// Mount this subtree instead of the whole store.
    #[arg(long, value_name = "KEY")]
    pub prefix: Option<String>,
    /// Make the prefix if it does not exist.
    #[arg(long)]
    pub create_prefix: bool,
    /// How long a system call may wait for the cluster (5s if not given).
    #[arg(long, value_name = "TIME", value_parser = options::parse_timeout)]
    pub timeout: Option<Duration>,
    /// Go into the background, and return when the mount can be used.
    #[arg(long)]
    pub daemon: bool,
    /// Where a daemon writes its log (syslog if not given).
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Said by the parent of a daemon to its child.
    #[arg(long = "report-ready-on-stdout", hide = true)]
    pub is_daemon: bool,
}

/// Arguments of `fsd dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// The directory to mount on; made if it does not exist.
    pub mountpoint: PathBuf,
    /// Where the data live (~/.local/share/quorumfs/dev if not given).
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of the node in it (127.0.0.1:7400, or any free port if that is taken).
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Mount options, as for `fsd mount`.
    #[arg(short = 'o', value_name = "OPT,...", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
}

/// Runs what the command line asks for.
pub fn run() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse_from(as_subcommand(std::env::args_os().collect()));
    match cli.command {
        Command::Mount(args) => run_mount(args),
        Command::Dev(args) => {
            log::start(true);
            dev::run(&args)
        }
        Command::Umount { mountpoint, lazy } => {
            fsd_umount(&mountpoint, lazy)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_mount(args: MountArgs) -> anyhow::Result<ExitCode> {
    let options = merge(&args)?;
    if args.daemon && !args.is_daemon {
        return daemon::spawn_self();
    }
    if args.is_daemon {
        daemon::leave_terminal();
    }
    log::start(false);
    mount::run(&args, &options)
}

fn fsd_umount(mountpoint: &Path, lazy: bool) -> anyhow::Result<()> {
    Ok(crate::mountpoint::unmount(mountpoint, lazy)?)
}

/// Flags win over `-o` options of the same meaning.
fn merge(args: &MountArgs) -> anyhow::Result<MountOptions> {
    let mut options = MountOptions::parse(&args.options)?;
    options.certs = args.certs.clone().or(options.certs);
    options.name = args.name.clone().or(options.name);
    options.prefix = args.prefix.clone().or(options.prefix);
    options.timeout = args.timeout.or(options.timeout);
    options.log_file = args.log_file.clone().or(options.log_file);
    options.create_prefix |= args.create_prefix;
    Ok(options)
}

/// `mount -t quorumfs NODES DIR -o ...` runs `mount.quorumfs NODES DIR [-sfnv] [-t TYPE] [-o ...]`: the
/// same as `fsd mount NODES DIR -o ... --daemon`.
fn as_subcommand(args: Vec<OsString>) -> Vec<OsString> {
    let called = args.first().map(PathBuf::from).and_then(|p| p.file_name().map(OsString::from));
    let is_helper = called.is_some_and(|name| name == "mount.quorumfs");
    if !is_helper {
        return args;
    }
    let mut rewritten: Vec<OsString> = vec!["fsd".into(), "mount".into(), "--daemon".into()];
    let mut rest = args.into_iter().skip(1);
    while let Some(arg) = rest.next() {
        match arg.to_str() {
            // "Sloppy", "no mtab" and "verbose" mean nothing to us. The type is ours.
            Some("-s" | "-n" | "-v" | "-sn" | "-nv" | "-sv" | "-snv") => {}
            Some("-t") => drop(rest.next()),
            _ => rewritten.push(arg),
        }
    }
    rewritten
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    fn mount_args(text: &str) -> MountArgs {
        match Cli::try_parse_from(as_subcommand(words(text))).unwrap().command {
            Command::Mount(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn mount_calls_its_helper() {
        let args =
            mount_args("/sbin/mount.quorumfs n1:7400,n2:7400 /kv -s -n -t quorumfs -o rw,prefix=/services");
        assert_eq!(args.nodes, "n1:7400,n2:7400");
        assert!(args.daemon);
        assert_eq!(merge(&args).unwrap().prefix.as_deref(), Some("/services"));
    }

    #[test]
    fn flags_win_over_options() {
        let args = mount_args("fsd mount n1 /kv -o prefix=/a,name=x -o ro --prefix /b --timeout 2s");
        let options = merge(&args).unwrap();
        assert_eq!(options.prefix.as_deref(), Some("/b"));
        assert_eq!(options.name.as_deref(), Some("x"));
        assert_eq!(options.timeout, Some(Duration::from_secs(2)));
        assert!(options.read_only && !args.daemon);
    }

    #[test]
    fn the_childs_flag_exists() {
        assert!(mount_args(&format!("fsd mount n1 /kv --daemon {}", daemon::FLAG)).is_daemon);
    }
}
