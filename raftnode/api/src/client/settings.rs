//! Where the cluster is and who we are: from flags, the environment, and files, in a fixed order.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// The client's name when nothing says another.
pub const DEFAULT_NAME: &str = "client";
/// How long a call may take when nothing says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest settings file that is read, in bytes.
const FILE_MAX: u64 = 64 << 10;
/// Most nodes that settings may name.
const NODES_MAX: usize = 64;

/// Where the cluster is and who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `host:port` of some nodes; the others are learned from them.
    pub nodes: Vec<String>,
    /// Directory with `ca.crt`, `NAME.crt` and `NAME.key`.
    pub certs: PathBuf,
    /// The identity to use, `NAME` of the files above.
    pub name: String,
    /// How long a call may take.
    pub timeout: Duration,
}

/// What the command line says; it wins over everything else.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `host:port`s.
    pub nodes: Option<Vec<String>>,
    /// Directory of the certificates.
    pub certs: Option<PathBuf>,
    /// Name of the identity.
    pub name: Option<String>,
    /// How long a call may take.
    pub timeout: Option<Duration>,
}

/// Why there are no usable settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Nothing says where the cluster is.
    #[error(
        "nothing says where the cluster is: use --nodes HOST:PORT,... or QUORUMFS_NODES, or write nodes = [\"HOST:PORT\"] into one of {looked}"
    )]
    NoNodes {
        /// The files that were looked for.
        looked: String,
    },
    /// Nothing says where the certificates are.
    #[error(
        "nothing says where the certificates are: use --certs DIR or QUORUMFS_CERTS, or write certs = \"DIR\" into one of {looked}"
    )]
    NoCerts {
        /// The files that were looked for.
        looked: String,
    },
    /// A node's address cannot be one.
    #[error("{source_name}: {addr:?} is not the address of a node: {reason}")]
    Address {
        /// Where it was written.
        source_name: String,
        /// What was written.
        addr: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file holds something else than settings.
    #[error("{}:{line}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line in it, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The identity's name cannot be one.
    #[error("{source_name}: {name:?} cannot be the name of an identity: {reason}")]
    Name {
        /// Where it was written.
        source_name: String,
        /// What was written.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: Option<toml::Spanned<Vec<String>>>,
    certs: Option<PathBuf>,
    name: Option<toml::Spanned<String>>,
    timeout: Option<toml::Spanned<String>>,
}

/// A value, with the place that it came from (for messages).
type Found<T> = Option<(T, String)>;

impl Settings {
    /// Collects the settings: flags, then `QUORUMFS_NODES`, `QUORUMFS_CERTS`, `QUORUMFS_NAME`, then the
    /// first of the files that exists: `~/.config/quorumfs/client.toml`, `/etc/quorumfs/client.toml`,
    /// and what `fsd dev` wrote under `~/.local/share/quorumfs/dev`.
    pub fn resolve(overrides: Overrides) -> Result<Settings, SettingsError> {
        Settings::resolve_with(overrides, &|name| std::env::var_os(name), Path::new("/etc"))
    }

    /// The same with the environment and `/etc` given, so that it can be tried.
    pub fn resolve_with(
        overrides: Overrides,
        env: &dyn Fn(&str) -> Option<OsString>,
        etc: &Path,
    ) -> Result<Settings, SettingsError> {
        let env = |name: &str| env(name).filter(|v| !v.is_empty());
        let files = candidates(&env, etc);
        let looked = files.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");

        let mut nodes: Found<Vec<String>> = overrides.nodes.map(|n| (n, "--nodes".into()));
        if nodes.is_none() {
            nodes =
                env("QUORUMFS_NODES").map(|v| (split_nodes(&v.to_string_lossy()), "QUORUMFS_NODES".into()));
        }
        let mut certs = overrides.certs.or_else(|| env("QUORUMFS_CERTS").map(PathBuf::from));
        let mut name: Found<String> = overrides.name.map(|n| (n, "--name".into()));
        if name.is_none() {
            name = env("QUORUMFS_NAME").map(|v| (v.to_string_lossy().into_owned(), "QUORUMFS_NAME".into()));
        }
        let mut timeout = overrides.timeout;

        // A file is read only if something is still open: a broken file must not stop a command that
        // says everything itself.
        if nodes.is_none() || certs.is_none() || name.is_none() || timeout.is_none() {
            let complete = nodes.is_some() && certs.is_some();
            for path in &files {
                let Some(text) = read(path)? else { continue };
                let file = match parse(path, &text) {
                    Ok(file) => file,
                    Err(_) if complete => break,
                    Err(error) => return Err(error),
                };
                if nodes.is_none() {
                    nodes = file.nodes.map(|n| {
                        let place = place(path, &text, n.span().start);
                        (n.into_inner(), place)
                    });
                }
                // A relative path means beside the file that says it, wherever the command runs.
                let base = path.parent().unwrap_or(Path::new("/"));
                certs = certs.or_else(|| file.certs.map(|dir| base.join(dir)));
                if name.is_none() {
                    name = file.name.map(|n| {
                        let place = place(path, &text, n.span().start);
                        (n.into_inner(), place)
                    });
                }
                if let (None, Some(written)) = (timeout, file.timeout) {
                    let parsed =
                        parse_duration(written.get_ref()).map_err(|reason| SettingsError::Parse {
                            path: path.clone(),
                            line: line_of(&text, written.span().start),
                            reason,
                        })?;
                    timeout = Some(parsed);
                }
                break;
            }
        }

        let (nodes, source) = nodes
            .filter(|(nodes, _)| !nodes.is_empty())
            .ok_or_else(|| SettingsError::NoNodes { looked: looked.clone() })?;
        let nodes = check_nodes(nodes, &source)?;
        let certs = certs.ok_or(SettingsError::NoCerts { looked })?;
        let (name, source) = name.unwrap_or_else(|| (DEFAULT_NAME.to_string(), "default".to_string()));
        check_name(&name, source)?;
        Ok(Settings { nodes, certs, name, timeout: timeout.unwrap_or(DEFAULT_TIMEOUT) })
    }
}

/// The files that may hold settings, best first.
fn candidates(env: &dyn Fn(&str) -> Option<OsString>, etc: &Path) -> Vec<PathBuf> {
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = absolute("HOME");
    let config = absolute("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|h| h.join(".config")));
    let data = absolute("XDG_DATA_HOME").or_else(|| home.as_ref().map(|h| h.join(".local/share")));
    let mut files = Vec::new();
    files.extend(config.map(|dir| dir.join("quorumfs/client.toml")));
    files.push(etc.join("quorumfs/client.toml"));
    files.extend(data.map(|dir| dir.join("quorumfs/dev/client.toml")));
    files
}

/// The text of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<String>, SettingsError> {
    let fail = |reason: String| SettingsError::Read { path: path.to_path_buf(), reason };
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > FILE_MAX => {
            return Err(fail(format!("it has {} bytes; {FILE_MAX} is the most", meta.len())));
        }
        Ok(_) => {}
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(fail(e.to_string())),
    }
    std::fs::read_to_string(path).map(Some).map_err(|e| fail(e.to_string()))
}

fn parse(path: &Path, text: &str) -> Result<File, SettingsError> {
    toml::from_str(text).map_err(|e| SettingsError::Parse {
        path: path.to_path_buf(),
        line: line_of(text, e.span().map_or(0, |s| s.start)),
        reason: e.message().to_string(),
    })
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count()
}

fn place(path: &Path, text: &str, at: usize) -> String {
    format!("{}:{}", path.display(), line_of(text, at))
}

/// Splits what `--nodes` and `QUORUMFS_NODES` hold.
pub fn split_nodes(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_string).collect()
}

/// Checks each address, adds the default port where none is given, and drops repetitions.
fn check_nodes(nodes: Vec<String>, source_name: &str) -> Result<Vec<String>, SettingsError> {
    let fail = |addr: &str, reason: String| SettingsError::Address {
        source_name: source_name.to_string(),
        addr: addr.to_string(),
        reason,
    };
    if nodes.len() > NODES_MAX {
        return Err(fail("...", format!("{} nodes are named; {NODES_MAX} is the most", nodes.len())));
    }
    let mut checked: Vec<String> = Vec::new();
    for node in nodes {
        let addr = with_port(&node).map_err(|reason| fail(&node, reason))?;
        if !checked.contains(&addr) {
            checked.push(addr);
        }
    }
    Ok(checked)
}

/// `host:port` of what may lack a port.
pub fn with_port(addr: &str) -> Result<String, String> {
    let port = crate::transport::DEFAULT_PORT;
    if let Ok(ip) = addr.parse::<std::net::Ipv6Addr>() {
        return Ok(format!("[{ip}]:{port}"));
    }
    let (host, given) = if addr.starts_with('[') {
        match addr.find(']') {
            Some(end) => addr.split_at(end + 1),
            None => return Err("a bracket is not closed".into()),
        }
    } else {
        addr.split_at(addr.find(':').unwrap_or(addr.len()))
    };
    if host.is_empty() || host.bytes().any(|b| b.is_ascii_whitespace() || b == b'/') {
        return Err("use HOST:PORT, for example node1:7400 or [::1]:7400".into());
    }
    if given.is_empty() {
        return Ok(format!("{host}:{port}"));
    }
    match given[1..].parse::<u16>() {
        Ok(port) if port != 0 && given.starts_with(':') => Ok(format!("{host}:{port}")),
        _ => Err("the port has to be a number from 1 to 65535".into()),
    }
}

/// A name becomes a file name (`NAME.crt`), so it may not lead elsewhere.
fn check_name(name: &str, source_name: String) -> Result<(), SettingsError> {
    let reason = match name {
        "" => "it is empty",
        "." | ".." => "it names a directory",
        _ if name.contains(['/', '\0']) => "it has a slash in it; the directory goes into certs",
        _ => return Ok(()),
    };
    Err(SettingsError::Name { source_name, name: name.to_string(), reason: reason.to_string() })
}

/// Reads `5s`, `500ms`, `2m`, `1h`, `7d`, or a number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        other => {
            return Err(format!("{other:?} is not a unit of time; use ms, s, m, h or d, as in 500ms or 5s"));
        }
    };
    let number: f64 =
        number.parse().map_err(|_| format!("{text:?} is not a time; write for example 500ms, 5s or 2m"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| format!("{text:?} is too long a time"))
}

/// Shows a time as [`parse_duration`] reads it.
pub fn format_duration(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        0..1000 => format!("{ms}ms"),
        // To a tenth, as below, and "2s" rather than "2.0s".
        _ if ms % 1000 < 50 => format!("{}s", ms / 1000),
        _ => format!("{:.1}s", time.as_secs_f64()),
    }
}
