//! The commands: thin, so that all that matters is in the library and has its tests there.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use certs::authority::{AUTHORITY_DAYS, IDENTITY_DAYS};
use certs::inspect::date;
use certs::{Authority, Request, Summary, Validity};
use clap::{Args, Parser, Subcommand};
use time::OffsetDateTime;

/// The most days that can be asked for: a century.
const MAX_DAYS: i64 = 36_525;

/// Makes the CA and the identities of a quorumfs cluster.
#[derive(Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the CA of a cluster.
    Init(Init),
    /// Make the key and certificate of a node or a client.
    Issue(Issue),
    /// Show what the certificates in a file say.
    Show {
        /// A PEM file with certificates.
        file: PathBuf,
    },
}

#[derive(Args)]
struct Init {
    /// Where to put ca.crt and ca.key. Made for its owner alone if it does not exist.
    #[arg(env = "QUORUMFS_CERTS")]
    dir: PathBuf,
    /// How long the CA is good for, in days.
    #[arg(long, default_value_t = AUTHORITY_DAYS, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
    days: u32,
    /// Replace a CA that exists: all that it issued becomes useless.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct Issue {
    /// Where the CA is.
    #[arg(long, env = "QUORUMFS_CERTS", default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    who: Who,
    /// A host name or IP address by which the node is dialled, beside its name. May be repeated.
    #[arg(long, value_name = "HOST_OR_IP", value_delimiter = ',', conflicts_with = "client")]
    san: Vec<String>,
    /// How long the identity is good for, in days. It ends with the CA at the latest.
    #[arg(long, default_value_t = IDENTITY_DAYS, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
    days: u32,
    /// Where to put the files, with a copy of ca.crt, in place of the CA's directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Who {
    /// The name of a node: a Raft member, which serves and dials.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The name of a client: a mount or a tool, which only dials.
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
}

/// Does what was asked, and puts what there is to say into `out`.
pub(crate) fn run(cli: Cli, out: &mut String) -> Result<()> {
    match cli.command {
        Command::Init(args) => init(&args, out),
        Command::Issue(args) => issue(args, out),
        Command::Show { file } => show(&file, out),
    }
}

fn init(args: &Init, out: &mut String) -> Result<()> {
    let authority = Authority::create(&args.dir, Validity::days(args.days), args.force)?;
    let (dir, summary) = (args.dir.display(), authority.summary());
    writeln!(out, "made the CA {}, good until {}", summary.subject, date(summary.not_after))?;
    writeln!(
        out,
        "  certificate  {}   (every node and client needs a copy)",
        authority.certificate_path().display()
    )?;
    writeln!(
        out,
        "  private key  {}   (keep it off the nodes: it makes identities)",
        args.dir.join("ca.key").display()
    )?;
    writeln!(out, "next: certs issue --dir {dir} --node NAME --san HOST_OR_IP")?;
    Ok(())
}

fn issue(args: Issue, out: &mut String) -> Result<()> {
    let mut request = match (&args.who.node, &args.who.client) {
        (Some(name), _) => Request::node(name, args.san)?,
        (None, Some(name)) => Request::client(name)?,
        (None, None) => anyhow::bail!("give --node NAME or --client NAME"),
    };
    request.validity = Validity::days(args.days);
    request.out = args.out;
    request.overwrite = args.force;
    let authority = Authority::open(&args.dir)?;
    let issued = authority.issue(&request)?;
    writeln!(out, "issued {}, good until {}", request.identity, date(issued.summary.not_after))?;
    if issued.summary.not_after < request.validity.not_after - time::Duration::seconds(1) {
        writeln!(out, "  (less than {} days, because the CA itself ends then)", args.days)?;
    }
    if !issued.summary.names.is_empty() {
        writeln!(out, "  dialled as   {}", issued.summary.names.join(", "))?;
    }
    writeln!(out, "  CA           {}", issued.paths.ca.display())?;
    writeln!(out, "  certificate  {}", issued.paths.cert.display())?;
    writeln!(out, "  private key  {}", issued.paths.key.display())?;
    Ok(())
}

fn show(file: &Path, out: &mut String) -> Result<()> {
    for (index, cert) in Summary::read(file)?.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        let identity = match &cert.identity {
            Some(identity) => identity.to_string(),
            None if cert.is_authority => "none (this is a CA)".into(),
            None => "none: quorumfs refuses this certificate".into(),
        };
        let names = if cert.names.is_empty() { "none".into() } else { cert.names.join(", ") };
        writeln!(out, "identity    {identity}")?;
        writeln!(out, "subject     {}", cert.subject)?;
        writeln!(out, "names       {names}")?;
        writeln!(out, "valid from  {}", date(cert.not_before))?;
        writeln!(out, "valid to    {}   ({})", date(cert.not_after), standing(cert))?;
        writeln!(out, "issuer      {}", cert.issuer)?;
        writeln!(out, "serial      {}", cert.serial)?;
    }
    Ok(())
}

fn standing(cert: &Summary) -> String {
    let now = OffsetDateTime::now_utc();
    if now < cert.not_before {
        "NOT YET VALID".into()
    } else if now > cert.not_after {
        "EXPIRED".into()
    } else {
        format!("{} days left", (cert.not_after - now).whole_days())
    }
}
