//! The command line: what can be said, and who does it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use quorumfs_api::client::settings::{parse_duration, split_nodes};
use quorumfs_api::client::{Client, Overrides, Settings};
use quorumfs_api::{EventStyle, LeaseId};

use crate::error::Error;
use crate::output::Output;
use crate::policy::{self, PolicyCommand};
use crate::{cluster, key, lease, lock, read, txn, watch, write};

/// Exit codes and settings, for `--help`.
const AFTER: &str = "\
Keys are paths. The leading slash may be left out: \"hello\" is \"/hello\".

Settings are taken from, in this order: options; QUORUMFS_NODES, QUORUMFS_CERTS, QUORUMFS_NAME; the first \
that exists of ~/.config/quorumfs/client.toml, /etc/quorumfs/client.toml, \
~/.local/share/quorumfs/dev/client.toml (which `fsd dev` writes). A file says: \
nodes = [\"host:7400\"], certs = \"DIR\", name = \"NAME\", timeout = \"5s\".

Exit codes: 0 done; 1 refused by the store (no such key, comparison failed, full ...); 2 wrong usage or settings; \
3 the cluster cannot be reached or did not answer in time; 4 denied, or a certificate does not fit. \
`lock KEY -- COMMAND` ends with the code of the command.";

/// Reads, writes and watches keys of a quorumfs cluster, and looks after it.
#[derive(Parser)]
#[command(name = "kvctl", version, after_help = AFTER, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    /// Name of the identity: NAME.crt and NAME.key in the directory of --certs [default: client]
    #[arg(long, value_name = "CLIENT")]
    name: Option<String>,
    #[command(subcommand)]
    command: Command,
}

/// Options that can stand before or after the command.
#[derive(Args)]
struct Global {
    /// Some nodes of the cluster, HOST:PORT with commas between; the others are learned from them
    #[arg(long, global = true, value_name = "H:P,...")]
    nodes: Option<String>,
    /// Directory with ca.crt, NAME.crt and NAME.key
    #[arg(long, global = true, value_name = "DIR")]
    certs: Option<PathBuf>,
    /// How long the command may take, for example 500ms, 5s, 1m [default: 5s]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Print JSON, one document a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Write a value; missing directories are made
    Put(Put),
    /// Print a value, or all under a prefix
    Get(Get),
    /// Delete a key
    #[command(visible_alias = "rm")]
    Del(Del),
    /// List a directory
    Ls(Ls),
    /// Print changes as they happen
    Watch(WatchArgs),
    /// Compare and change many keys at once; see `kvctl txn --help`
    #[command(after_help = txn::HELP)]
    Txn,
    /// Leases: keys that go when nobody keeps them
    #[command(subcommand)]
    Lease(Lease),
    /// Make a directory
    Mkdir {
        key: OsString,
        /// Make its parents too, and do not mind if it exists
        #[arg(short, long)]
        parents: bool,
    },
    /// Remove an empty directory
    Rmdir { key: OsString },
    /// Rename a file, a link or a whole directory, as one change
    Mv {
        from: OsString,
        to: OsString,
        /// Refuse if TO exists
        #[arg(short, long, conflicts_with = "exchange")]
        no_replace: bool,
        /// Swap the two
        #[arg(long)]
        exchange: bool,
    },
    /// How changes in a directory look to programs that watch it on a mount; without STYLE, print it
    Events {
        dir: OsString,
        /// write, rename (each new value is a MOVED_TO) or swap (a `..data` link is renamed after each change);
        /// it holds for all below that say nothing themselves
        style: Option<EventStyle>,
        /// Say nothing any more: what is said above holds
        #[arg(long, conflicts_with = "style")]
        clear: bool,
    },
    /// Make a symbolic link KEY that points to TARGET
    Ln { target: OsString, key: OsString },
    /// Hold a lock while a command runs
    Lock {
        /// The file to lock; it is made if it is not there
        key: OsString,
        /// What to run with the lock held
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Members of the cluster
    #[command(subcommand)]
    Member(Member),
    /// Who may do what: the cluster's own policy
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What every node says of itself
    Status,
    /// Make the leader write a snapshot now, and drop the log behind it
    Snapshot,
}

#[derive(Args)]
pub struct Put {
    pub key: OsString,
    /// The value; "-" or nothing reads it from standard input
    #[arg(allow_hyphen_values = true)]
    pub value: Option<OsString>,
    /// Bind the key to this lease
    #[arg(long, value_name = "ID", value_parser = key::lease)]
    pub lease: Option<LeaseId>,
    /// Leave the key's lease as it is (else a put without --lease makes the key permanent)
    #[arg(long, conflicts_with = "lease")]
    pub ignore_lease: bool,
    /// Only if this is the revision that last changed the key (0: only if there is no such key)
    #[arg(long, value_name = "N")]
    pub prev_revision: Option<u64>,
}

#[derive(Args)]
pub struct Get {
    /// A key, or with --prefix the text that keys begin with
    pub key: OsString,
    /// All keys that begin with this text, as etcd means it
    #[arg(long)]
    pub prefix: bool,
    /// Leave the values out
    #[arg(long, conflicts_with_all = ["print_value_only", "raw"])]
    pub keys_only: bool,
    /// Leave the keys out
    #[arg(long)]
    pub print_value_only: bool,
    /// Print the value alone, to the byte, without a newline after it
    #[arg(long, conflicts_with_all = ["prefix", "json"])]
    pub raw: bool,
    /// Show directories too
    #[arg(long, requires = "prefix")]
    pub dirs: bool,
    /// Print at most so many keys
    #[arg(long, requires = "prefix", value_name = "N")]
    pub limit: Option<usize>,
    /// Ask any node for what it has, without a quorum: it may be old
    #[arg(long)]
    pub serializable: bool,
}

#[derive(Args)]
pub struct Del {
    pub key: OsString,
    /// All keys that begin with this text, and what is below them
    #[arg(long, conflicts_with = "recursive")]
    pub prefix: bool,
    /// Directories too, with all in them
    #[arg(short, long)]
    pub recursive: bool,
}

#[derive(Args)]
pub struct Ls {
    /// The directory [default: /]
    pub dir: Option<OsString>,
    /// Mode, owner, size, revision, time, and who changed it last
    #[arg(short)]
    pub long: bool,
    /// All below it, to any depth
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Ask any node for what it has, without a quorum: it may be old
    #[arg(long)]
    pub serializable: bool,
}

#[derive(Args)]
pub struct WatchArgs {
    /// A key, or with --prefix the text that keys begin with
    pub key: OsString,
    /// All keys that begin with this text
    #[arg(long)]
    pub prefix: bool,
    /// Begin with the changes of this revision [default: what comes from now on]
    #[arg(long, value_name = "N")]
    pub from_revision: Option<u64>,
    /// End after so many changes
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

#[derive(Subcommand)]
pub enum Lease {
    /// Grant one; prints its id
    Grant {
        /// How long it lives without being renewed, for example 60 or 60s
        #[arg(value_parser = parse_duration)]
        ttl: Duration,
    },
    /// End one: its keys are deleted
    Revoke {
        #[arg(value_parser = key::lease)]
        id: LeaseId,
    },
    /// Renew one until interrupted
    Keepalive {
        #[arg(value_parser = key::lease)]
        id: LeaseId,
        /// Only once
        #[arg(long)]
        once: bool,
    },
    /// All leases; every client that is connected has one
    List,
    /// One lease, with its keys
    Info {
        #[arg(value_parser = key::lease)]
        id: LeaseId,
    },
}

#[derive(Subcommand)]
pub enum Member {
    /// All members
    List,
    /// Add a node that runs, as a learner: it receives everything, but does not vote
    Add {
        /// Its number, which no other node ever had
        #[arg(long)]
        id: u64,
        /// Its name, which its certificate carries
        #[arg(long = "name", id = "node")]
        node: String,
        /// HOST:PORT of it
        #[arg(long)]
        addr: String,
    },
    /// Make a learner a voter
    Promote { id: u64 },
    /// Take a member out
    Remove { id: u64 },
    /// Hand leadership over, to this member or to the best one
    Transfer { id: Option<u64> },
}

/// What commands work with.
pub struct Context {
    pub client: Client,
    pub output: Output,
}

impl Context {
    /// How long the command may take.
    pub fn timeout(&self) -> Duration {
        self.client.settings().timeout
    }
}

impl Cli {
    /// Does what was said.
    pub fn run(self) -> Result<ExitCode, Error> {
        let output = Output { json: self.global.json };
        if let Command::Policy(command) = &self.command
            && command.run_alone(&output)?
        {
            return Ok(ExitCode::SUCCESS);
        }
        let overrides = Overrides {
            nodes: self.global.nodes.as_deref().map(split_nodes),
            certs: self.global.certs,
            name: self.name,
            timeout: self.global.timeout,
        };
        let settings = Settings::resolve(overrides).map_err(|e| Error::Client(e.into()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let done = runtime.block_on(async move {
            let context = Context { client: Client::new(settings)?, output };
            let done = run(&context, self.command).await;
            context.client.close().await;
            done
        });
        // Reading standard input may still be under way in a thread that cannot be stopped.
        runtime.shutdown_background();
        done.map(|()| ExitCode::SUCCESS)
    }
}

async fn run(context: &Context, command: Command) -> Result<(), Error> {
    match command {
        Command::Put(args) => write::put(context, args).await,
        Command::Get(args) => read::get(context, args).await,
        Command::Del(args) => write::del(context, args).await,
        Command::Ls(args) => read::ls(context, args).await,
        Command::Watch(args) => watch::watch(context, args).await,
        Command::Txn => txn::run(context).await,
        Command::Lease(lease) => lease::run(context, lease).await,
        Command::Mkdir { key, parents } => write::mkdir(context, &key, parents).await,
        Command::Rmdir { key } => write::rmdir(context, &key).await,
        Command::Mv { from, to, no_replace, exchange } => {
            write::mv(context, &from, &to, no_replace, exchange).await
        }
        Command::Events { dir, style, clear } => write::events(context, &dir, style, clear).await,
        Command::Ln { target, key } => write::ln(context, &target, &key).await,
        Command::Lock { key, command } => lock::run(context, &key, &command).await,
        Command::Member(member) => cluster::member(context, member).await,
        Command::Policy(command) => policy::run(context, command).await,
        Command::Status => cluster::status(context).await,
        Command::Snapshot => cluster::snapshot(context).await,
    }
}
