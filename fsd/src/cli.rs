//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::helper::{self, MountHelper};
use crate::options::{self, MountOptions};
use crate::{daemon, dev, log, mount, status, supervise};

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
    /// Says how a mount is: its node, the leader, how far it is behind, what waits.
    ///
    /// The same can be read in the mount, in the directory `.quorumfs`.
    Status {
        /// Where it is mounted; all mounts if left out.
        mountpoint: Option<PathBuf>,
        /// For a program.
        #[arg(long)]
        json: bool,
    },
    /// Has a mount that was made with --supervise served by the program that is installed now.
    ///
    /// The mount stays: open files, locks and inotify watches are kept. If the new program does not start, the
    /// old one goes on. (SIGUSR2 to `fsd mount` does the same, and says in its log what came of it.)
    Upgrade {
        /// Where it is mounted.
        mountpoint: PathBuf,
    },
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
#[derive(Debug, Default, Args)]
pub struct MountArgs {
    /// Some or all nodes of the cluster: HOST:PORT,HOST:PORT,... (port 7400 if left out). "-" takes
    /// what QUORUMFS_NODES or client.toml say.
    pub nodes: String,
    /// The directory to mount on.
    pub mountpoint: PathBuf,
    /// Mount options as in fstab: certs=DIR, name=NAME, prefix=KEY, ro, sync, timeout=5s, uid=, gid=,
    /// umask=, event=, allow_other, private ...
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
    /// Let the mount outlive the process that serves it (Linux 6.9 or later).
    ///
    /// This process only holds the mount, and a worker serves it: when that dies, another one goes on. `fsd upgrade`
    /// and SIGUSR2 replace it by the program that is installed by then.
    #[arg(long)]
    pub supervise: bool,
    /// Said by the parent of a daemon to its child.
    #[arg(long = "report-ready-on-stdout", hide = true)]
    pub is_daemon: bool,
    /// Said by the supervisor to its worker: the number of a descriptor.
    #[arg(long, hide = true)]
    pub worker: Option<i32>,
    /// Said by the supervisor to its worker: the mount is there already.
    #[arg(long, hide = true, requires = "worker")]
    pub resume: bool,
}

/// Arguments of `fsd dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// The directory to mount on; made if it does not exist.
    pub mountpoint: PathBuf,
    /// Where the data live (~/.local/share/quorumfs/dev if not given).
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of the node in it (127.0.0.1:7400, or the next free port).
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Mount options, as for `fsd mount`.
    #[arg(short = 'o', value_name = "OPT,...", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
}

/// Runs what the command line asks for, and says what went wrong.
pub fn run() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let helper = helper::name(&words);
    let done = match helper {
        None => run_command(Cli::parse_from(words).command),
        Some(_) => match MountHelper::try_parse_from(words) {
            Ok(helper) => run_helper(helper),
            Err(error) => {
                let _ = error.print();
                return ExitCode::from(if error.use_stderr() { helper::USAGE } else { 0 });
            }
        },
    };
    done.unwrap_or_else(|error| {
        // The whole chain: what was tried, and why it failed.
        eprintln!("{}: {error:#}", helper.unwrap_or("fsd"));
        if helper.is_some() { ExitCode::from(helper::FAILED) } else { ExitCode::FAILURE }
    })
}

fn run_command(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Mount(args) => {
            let options = merge(&args)?;
            run_mount(&args, &options)
        }
        Command::Dev(args) => {
            log::start(true);
            dev::run(&args)
        }
        Command::Status { mountpoint, json } => status::run(mountpoint.as_deref(), json),
        Command::Upgrade { mountpoint } => {
            println!("{}", supervise::upgrade(&mountpoint)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Umount { mountpoint, lazy } => {
            crate::mountpoint::unmount(&mountpoint, lazy)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_helper(helper: MountHelper) -> anyhow::Result<ExitCode> {
    let options = helper.mount_options()?;
    if helper.is_fake() {
        return Ok(ExitCode::SUCCESS);
    }
    helper.enter_namespace()?;
    run_mount(&helper.mount_args(), &options)
}

fn run_mount(args: &MountArgs, options: &MountOptions) -> anyhow::Result<ExitCode> {
    if args.daemon && !args.is_daemon {
        return daemon::spawn_self();
    }
    if let Some(channel) = args.worker {
        log::set_role("fsd-worker");
        log::be_terse(args.is_daemon && !args.resume);
        log::start(false);
        return supervise::run_worker(args, options, channel);
    }
    if args.is_daemon {
        daemon::leave_terminal();
        log::be_terse(true);
    }
    if options.supervise {
        log::set_role("fsd-supervisor");
        log::start(false);
        return supervise::run(args, options);
    }
    log::start(false);
    mount::run(args, options)
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
    options.supervise |= args.supervise;
    Ok(options)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mount_args(text: &str) -> MountArgs {
        match Cli::try_parse_from(text.split(' ')).unwrap().command {
            Command::Mount(args) => args,
            other => panic!("{other:?}"),
        }
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
