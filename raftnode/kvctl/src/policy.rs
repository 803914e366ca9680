//! `policy ...`: the cluster's own rules about who may do what.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Subcommand;
use quorumfs_api::rights::{Access, POLICY_KEY, Rights};
use quorumfs_api::wire::Consistency;
use quorumfs_api::{Command, CreateMode, Key, LeaseChange, Owner, Record};
use quorumfs_policy::{InForce, Policy, Who};
use serde_json::{Value, json};

use crate::cli::Context;
use crate::error::Error;
use crate::key;
use crate::output::Output;
use crate::session::write;
use crate::table::table;

/// What stands in the place of names where everybody else is meant.
const EVERYBODY: &str = "*";

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Print the policy in force
    Show,
    /// Check a file without asking any cluster
    Check { file: PathBuf },
    /// Check a file and make it the policy, at once and everywhere
    Set { file: PathBuf },
    /// Who may do what with a key: each name and pattern of the policy
    WhoCan {
        key: std::ffi::OsString,
        /// By the policy in this file, without asking any cluster
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// What this identity may do, or the client NAME (for those who may read the policy)
    Rights { client: Option<String> },
}

impl PolicyCommand {
    /// Does what needs no cluster. False: this does.
    pub fn run_alone(&self, output: &Output) -> Result<bool, Error> {
        match self {
            PolicyCommand::Check { file } => {
                read(file)?;
                let said = format!("{} is a policy", file.display());
                output.say(&said, &json!({ "valid": true, "file": file.display().to_string() }))?;
            }
            PolicyCommand::WhoCan { key, file: Some(file) } => {
                let policy = Policy::parse(&read(file)?).map_err(|error| refused(file, &error))?;
                who_can(output, &InForce::new(1, policy), &key::key(key)?)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// `kvctl policy`.
pub async fn run(context: &Context, command: PolicyCommand) -> Result<(), Error> {
    if command.run_alone(&context.output)? {
        return Ok(());
    }
    match command {
        PolicyCommand::Show => show(context).await,
        PolicyCommand::Set { file } => set(context, &file).await,
        PolicyCommand::WhoCan { key, .. } => {
            who_can(&context.output, &in_force(context).await?, &key::key(&key)?)
        }
        PolicyCommand::Rights { client: None } => {
            let (_, rights) = context.client.rights(context.timeout()).await?;
            print_rights(context, &context.client.settings().name, &rights)
        }
        PolicyCommand::Rights { client: Some(name) } => {
            let rights = in_force(context).await?.rights(Who { name: &name, node: false });
            print_rights(context, &name, &rights)
        }
        PolicyCommand::Check { .. } => Ok(()),
    }
}

fn refused(file: &Path, error: &impl std::fmt::Display) -> Error {
    Error::Refused(format!("{}: {error}", file.display()))
}

/// A file that holds a policy.
fn read(file: &Path) -> Result<Vec<u8>, Error> {
    let text = std::fs::read(file)
        .map_err(|error| Error::Usage(format!("cannot read {}: {error}", file.display())))?;
    match Policy::parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(refused(file, &error)),
    }
}

/// The key that holds it.
async fn record(context: &Context) -> Result<Option<Record>, Error> {
    let (_, record) =
        context.client.get(POLICY_KEY.clone(), Consistency::Linearizable, context.timeout()).await?;
    Ok(record)
}

async fn in_force(context: &Context) -> Result<InForce, Error> {
    let Some(record) = record(context).await? else { return Ok(InForce::none()) };
    let policy = Policy::parse(&record.value).map_err(|error| {
        Error::Refused(format!("the cluster's policy is none to this kvctl, which may be too old: {error}"))
    })?;
    Ok(InForce::new(record.mod_revision, policy))
}

async fn show(context: &Context) -> Result<(), Error> {
    let output = &context.output;
    match record(context).await? {
        Some(record) if output.json => {
            let text = String::from_utf8_lossy(&record.value);
            Ok(output
                .document(&json!({ "revision": record.mod_revision, "by": record.author, "policy": text }))?)
        }
        Some(record) => Ok(output.raw(&record.value)?),
        None => {
            let said = "there is no policy: every client may read and write every key; only nodes and the client \
                        \"admin\" may change the cluster";
            Ok(output.say(said, &json!({ "revision": 0, "policy": Value::Null }))?)
        }
    }
}

async fn set(context: &Context, file: &Path) -> Result<(), Error> {
    let put = Command::Put {
        target: POLICY_KEY.clone().into(),
        value: Bytes::from(read(file)?),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease: LeaseChange::Clear,
    };
    let (revision, _) = write(&context.client, put).await?;
    let said = format!("the policy is in force from revision {revision} on");
    Ok(context.output.say(&said, &json!({ "revision": revision }))?)
}

/// One line for each name and pattern: patterns are taken for a name that only they fit.
fn who_can(output: &Output, in_force: &InForce, key: &Key) -> Result<(), Error> {
    let mut names = in_force.policy().map_or_else(Vec::new, Policy::names);
    if !names.iter().any(|name| name == EVERYBODY) {
        names.push(EVERYBODY.to_owned());
    }
    let mut rows = vec![["WHO", "MAY", "BY"].map(String::from).to_vec()];
    for name in names {
        let rights = in_force.rights(Who { name: &name, node: false });
        let decision = rights.decide(key);
        let line = rights.cut_off.or(decision.by.map(|by| by.line)).filter(|line| *line > 0);
        if output.json {
            let access = decision.access.to_string();
            output
                .document(&json!({ "who": name, "access": access, "admin": rights.admin, "line": line }))?;
            continue;
        }
        let may = match (rights.cut_off, rights.admin) {
            (Some(_), _) => "none: denied".to_owned(),
            (None, true) => format!("{}, admin", decision.access),
            (None, false) => decision.access.to_string(),
        };
        rows.push(vec![name, may, line.map_or_else(|| "-".to_owned(), |line| format!("line {line}"))]);
    }
    if !output.json {
        output.lines(&[table(&rows).as_bytes()])?;
    }
    Ok(())
}

fn print_rights(context: &Context, name: &str, rights: &Rights) -> Result<(), Error> {
    let grants = rights.grants();
    if context.output.json {
        let paths: Vec<Value> = grants
            .iter()
            .map(|grant| {
                json!({ "path": grant.path.to_string(), "access": grant.access.to_string(), "line": grant.line })
            })
            .collect();
        let document =
            json!({ "name": name, "admin": rights.admin, "denied_by": rights.cut_off, "paths": paths });
        return Ok(context.output.document(&document)?);
    }
    let mut rows = vec![["PATH", "MAY", "BY"].map(String::from).to_vec()];
    rows.extend(grants.iter().map(|grant| {
        let line = if grant.line == 0 { "-".to_owned() } else { format!("line {}", grant.line) };
        vec![grant.path.to_string(), grant.access.to_string(), line]
    }));
    let who = match (rights.cut_off, rights.admin) {
        (Some(line), _) => format!("{name} is denied by line {line}"),
        (None, true) => format!("{name} is an admin"),
        (None, false) if rights.reaches(&Key::root(), Access::Read) => format!("{name} is no admin"),
        (None, false) => format!("{name} may do nothing"),
    };
    Ok(context.output.lines(&[who.as_bytes(), table(&rows).as_bytes()])?)
}
