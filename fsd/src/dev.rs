//! `fsd dev`: a store of one node and its mount in one process, with nothing to set up.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use certs::{Authority, Credentials, Paths, Request, Validity};
use quorumfs_api::client::settings::DEFAULT_TIMEOUT;
use quorumfs_api::client::{Client, Settings};
use quorumfs_api::transport::DEFAULT_PORT;
use raftnode::{Node, NodeError};

use crate::cli::DevArgs;
use crate::mount::{self, Signals};
use crate::options::MountOptions;

/// Name of the only node.
const NODE: &str = "dev";
/// Identity of kvctl and of whoever finds client.toml.
const ADMIN: &str = "admin";
/// Identity of the mount.
const HOST: &str = "host";
/// How many ports after the usual one are tried.
const PORTS_TRIED: u16 = 99;
/// Certificates of a store that is a person's own need no yearly care: ten years.
const DAYS: u32 = 3650;

/// Runs `fsd dev`.
pub fn run(args: &DevArgs) -> anyhow::Result<ExitCode> {
    let options = MountOptions::parse(&args.options)?;
    if options.certs.is_some() || options.name.is_some() {
        bail!("fsd dev makes its own certificates: leave out certs=, cert= and name=");
    }
    mount::check_host(&options)?;
    make_mountpoint(&args.mountpoint)?;
    let path = mount::prepare(&args.mountpoint)?;
    let data = args.data.clone().map_or_else(default_data, Ok)?;
    private_dir(&data)?;
    let data = data.canonicalize().with_context(|| format!("resolving {data:?}"))?;
    let certs = data.join("certs");
    let listen = args.listen.map_or_else(free_address, Ok)?;
    mount::runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        make_certificates(&certs, listen)?;
        let node = start_node(&data, &certs, listen).await?;
        let address = node.local_addr();
        let served = async {
            let settings = Settings {
                nodes: vec![address.to_string()],
                certs: certs.clone(),
                name: HOST.to_string(),
                timeout: DEFAULT_TIMEOUT,
            };
            write_client_toml(&data, address, &certs)?;
            let prefix = mount::parse_prefix(options.prefix.as_deref())?;
            let client = Client::new(settings)?;
            mount::check_prefix(&client, &prefix, options.create_prefix).await?;
            let mount = mount::start(mount::config(client, prefix, path.clone(), &options)).await?;
            print_welcome(&path, &data, args.data.is_some());
            tokio::select! {
                served = mount::serve(mount, &path, &mut signals) => served,
                error = node.wait() => Err(error.into()),
            }
        }
        .await;
        // The mount is gone by now, whatever came of it: nothing needs the node any more.
        node.stop().await.context("stopping the node")?;
        served?;
        println!("stopped; the data stay in {}", data.display());
        Ok(ExitCode::SUCCESS)
    })
}

fn make_mountpoint(path: &Path) -> anyhow::Result<()> {
    let absolute = std::path::absolute(path).with_context(|| format!("the mount point {path:?}"))?;
    if let Some(parent) = absolute.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("making {parent:?}"))?;
    }
    // `mkdir` by itself does not look into what is mounted there, where a dead or stopped daemon would
    // answer with an error or not at all.
    match std::fs::create_dir(&absolute) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e).with_context(|| format!("making the mount point {path:?}")),
    }
}

/// `${XDG_DATA_HOME:-~/.local/share}/quorumfs/dev`, where kvctl looks too.
fn default_data() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    let base =
        base.context("neither HOME nor XDG_DATA_HOME is set: say with --data where the data are to live")?;
    Ok(base.join("quorumfs/dev"))
}

/// Keys are in there: nobody else needs to look.
fn private_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("making the data directory {path:?}"))
}

/// The usual port on this machine, or the next one that is free. Not just any: the kernel gives those of its own
/// range to whoever asks for none in particular, and the next start may find this one in use.
fn free_address() -> anyhow::Result<SocketAddr> {
    let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let mut ports = (DEFAULT_PORT..=DEFAULT_PORT + PORTS_TRIED).map(local);
    // The socket is given up here, and bound again by the node a moment later.
    let found = ports.find_map(|address| match UdpSocket::bind(address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => None,
        other => Some(other.map(|_| address)),
    });
    match found {
        Some(address) => address.context("looking for a free port"),
        None => bail!(
            "the UDP ports {DEFAULT_PORT} to {} are all in use: say with --listen which one to take",
            DEFAULT_PORT + PORTS_TRIED
        ),
    }
}

/// Makes what is missing of the authority and the three identities.
fn make_certificates(dir: &Path, listen: SocketAddr) -> anyhow::Result<()> {
    let authority = if Paths::in_dir(dir, NODE).ca.exists() {
        Authority::open(dir)?
    } else {
        Authority::create(dir, Validity::days(DAYS), false)?
    };
    let mut sans = vec!["localhost".to_string(), "127.0.0.1".to_string(), "::1".to_string()];
    let address = listen.ip().to_string();
    if !sans.contains(&address) {
        sans.push(address.clone());
    }
    for (name, request) in
        [(NODE, Request::node(NODE, sans)?), (ADMIN, Request::client(ADMIN)?), (HOST, Request::client(HOST)?)]
    {
        let paths = Paths::in_dir(dir, name);
        let serves = |credentials: &Credentials| name != NODE || credentials.names().contains(&address);
        if Credentials::load(&paths).is_ok_and(|credentials| serves(&credentials)) {
            continue;
        }
        authority.issue(&Request { validity: Validity::days(DAYS), overwrite: true, ..request })?;
    }
    Ok(())
}

/// Starts the node, at the first time as a cluster of its own.
async fn start_node(data: &Path, certs: &Path, listen: SocketAddr) -> anyhow::Result<Node> {
    let config = raftnode::Config::new(1, NODE, listen, &data.join("node"), certs)?;
    match Node::init(&config).await {
        Ok(()) | Err(NodeError::Initialized(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Node::start(config).await?)
}

/// What kvctl reads when nobody tells it anything.
fn write_client_toml(data: &Path, address: SocketAddr, certs: &Path) -> anyhow::Result<()> {
    let certs =
        certs.to_str().with_context(|| format!("{certs:?} is not UTF-8, which client.toml has to be"))?;
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let text = format!(
        "# Written by `fsd dev` at each start.\nnodes = [{}]\ncerts = {}\nname = {}\n",
        quoted(&address.to_string()),
        quoted(certs),
        quoted(ADMIN),
    );
    // A reader sees the old file or the new one.
    let (path, new) = (data.join("client.toml"), data.join("client.toml.new"));
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, &path))
        .with_context(|| format!("writing {path:?}"))
}

fn print_welcome(path: &Path, data: &Path, elsewhere: bool) {
    let path = path.display();
    // A store in its usual place is found by kvctl itself; any other has to be named.
    let kvctl = if elsewhere {
        format!(
            "kvctl --nodes \"$(sed -n 's/^nodes = \\[\"\\(.*\\)\"\\]/\\1/p' {0}/client.toml)\" --certs {0}/certs --name {ADMIN}",
            data.display()
        )
    } else {
        "kvctl".to_string()
    };
    println!(
        "The store is mounted on {path}; its data are in {data}. Ctrl-C ends it.\n\
         Try, in other terminals:\n  \
           inotifywait -m {path}\n  \
           {kvctl} put /hello world\n  \
           cat {path}/hello",
        data = data.display(),
    );
}
