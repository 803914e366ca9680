//! Configuration of a node: flags over a TOML file over defaults, checked before anything starts.

mod settings;
mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use quorumfs_api::limits::{STORE_MAX_DEFAULT, VALUE_MAX_DEFAULT, VALUE_MAX_LIMIT};
use quorumfs_api::transport::DEFAULT_PORT;

pub use settings::Settings;
pub use units::{Size, Span, UnitError};

/// A node of a replicated key-value store that every host can mount.
#[derive(Parser, Debug)]
#[command(name = "raftnode", version)]
pub struct Cli {
    /// "init" makes the data directory the first member of a new cluster and exits; without it the
    /// node runs.
    #[arg(value_enum)]
    pub action: Option<Action>,
    /// TOML file with the same settings as the flags, which win.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What to do instead of running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Make a new cluster of this node alone.
    Init,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {error}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        error: Box<toml::de::Error>,
    },
    /// Something that has no default is missing.
    #[error("{0} is not set: give --{0}, or {0} = ... in the configuration file")]
    Missing(&'static str),
    /// A value makes no sense.
    #[error("{name}: {why}")]
    Invalid {
        /// Which.
        name: &'static str,
        /// Why, and what to do.
        why: String,
    },
}

fn invalid(name: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { name, why: why.into() }
}

/// A checked configuration. [`Settings`] says what each knob means.
#[derive(Clone, Debug)]
pub struct Config {
    /// Raft id.
    pub id: u64,
    /// Name, as in the certificate.
    pub name: String,
    /// Where to listen (UDP).
    pub listen: SocketAddr,
    /// Where others reach this node; `None` takes the address that is really bound.
    pub advertise: Option<String>,
    /// Data directory.
    pub data: PathBuf,
    /// Certificates.
    pub certs: PathBuf,
    /// Where metrics are served (TCP); `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// Whom to ask for being added.
    pub join: Vec<String>,
    /// Largest value in bytes.
    pub value_max: u64,
    /// Largest store in bytes.
    pub store_max: u64,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Shortest election time-out.
    pub election_min: Duration,
    /// Longest election time-out, and the leader's lease.
    pub election_max: Duration,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot.
    pub log_keep: u64,
    /// Longest time for a request.
    pub request_timeout_max: Duration,
    /// Requests under way in all.
    pub requests_max: usize,
    /// Requests under way on one connection.
    pub requests_per_connection: usize,
    /// Bytes of requests under way in all.
    pub request_bytes_max: usize,
    /// Client connections in all.
    pub connections_max: usize,
    /// Client connections of one identity.
    pub connections_per_identity: usize,
    /// Watches in all.
    pub watches_max: usize,
    /// How long a watcher may take nothing.
    pub watch_stall: Duration,
    /// Threads for everything but the disk.
    pub threads: usize,
    /// How long a stop waits for requests under way.
    pub drain: Duration,
}

/// Where metrics are served when nothing is said.
const METRICS_DEFAULT: &str = "127.0.0.1:9740";
/// Threads when nothing is said.
const THREADS_DEFAULT: std::ops::RangeInclusive<usize> = 1..=4;
/// Most threads at all.
const THREADS_MAX: usize = 1024;

/// A quarter of the cores. What one thread does not hand to another costs no switch, and to be woken on a core that sleeps
/// is the most of a small request; what takes long runs elsewhere, so that one thread is there for heartbeats.
fn threads_default() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 4).clamp(*THREADS_DEFAULT.start(), *THREADS_DEFAULT.end())
}

/// Longest name of a node in bytes.
const NODE_NAME_MAX: usize = 64;

impl Config {
    /// A node with defaults for all that can have one, and no metrics.
    pub fn new(
        id: u64,
        name: &str,
        listen: SocketAddr,
        data: &Path,
        certs: &Path,
    ) -> Result<Config, ConfigError> {
        Config::from_settings(Settings {
            id: Some(id),
            name: Some(name.to_owned()),
            listen: Some(listen),
            data: Some(data.to_owned()),
            certs: Some(certs.to_owned()),
            metrics: Some("off".into()),
            ..Settings::default()
        })
    }

    /// Reads the file, if there is one, and puts the flags over it.
    pub fn load(cli: &Cli) -> Result<Config, ConfigError> {
        let file = match &cli.config {
            None => Settings::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| ConfigError::Read { path: path.clone(), error })?;
                toml::from_str(&text)
                    .map_err(|error| ConfigError::Parse { path: path.clone(), error: Box::new(error) })?
            }
        };
        Config::from_settings(cli.settings.clone().over(file))
    }

    /// Fills in defaults, and checks.
    pub fn from_settings(s: Settings) -> Result<Config, ConfigError> {
        let span =
            |value: Option<Span>, default: u64| value.map_or(Duration::from_millis(default), |span| span.0);
        let metrics = s.metrics.as_deref().unwrap_or(METRICS_DEFAULT);
        let config =
            Config {
                id: s.id.ok_or(ConfigError::Missing("id"))?,
                name: s.name.ok_or(ConfigError::Missing("name"))?,
                listen: s.listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT))),
                advertise: s.advertise,
                data: s.data.ok_or(ConfigError::Missing("data"))?,
                certs: s.certs.ok_or(ConfigError::Missing("certs"))?,
                metrics: match metrics {
                    "off" => None,
                    addr => Some(addr.parse().map_err(|_| {
                        invalid("metrics", format!("{addr:?} is neither ADDR:PORT nor \"off\""))
                    })?),
                },
                join: s.join.unwrap_or_default(),
                value_max: s.value_max.map_or(VALUE_MAX_DEFAULT, |size| size.0),
                store_max: s.store_max.map_or(STORE_MAX_DEFAULT, |size| size.0),
                heartbeat: span(s.heartbeat, 100),
                election_min: span(s.election_min, 150),
                election_max: span(s.election_max, 300),
                snapshot_every: s.snapshot_every.unwrap_or(50_000),
                log_keep: s.log_keep.unwrap_or(10_000),
                request_timeout_max: span(s.request_timeout_max, 60_000),
                requests_max: s.requests_max.unwrap_or(65_536),
                requests_per_connection: s.requests_per_connection.unwrap_or(8_192),
                request_bytes_max: s.request_bytes_max.map_or(256 << 20, |size| size.0 as usize),
                connections_max: s.connections_max.unwrap_or(16_384),
                connections_per_identity: s.connections_per_identity.unwrap_or(4_096),
                watches_max: s.watches_max.unwrap_or(16_384),
                watch_stall: span(s.watch_stall, 30_000),
                threads: s.threads.unwrap_or_else(threads_default),
                drain: span(s.drain, 5_000),
            };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.id == 0 {
            return Err(invalid("id", "ids begin at 1"));
        }
        let name_ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.len() > NODE_NAME_MAX || !self.name.chars().all(name_ok) {
            return Err(invalid(
                "name",
                format!("{:?} is not 1 to {NODE_NAME_MAX} letters, digits, '-', '_' and '.'", self.name),
            ));
        }
        if let Some(advertise) = &self.advertise {
            split_addr(advertise).map_err(|why| invalid("advertise", why))?;
        } else if self.listen.ip().is_unspecified() {
            return Err(invalid(
                "advertise",
                format!("listen is {}, which no other host can reach; say HOST:PORT", self.listen),
            ));
        }
        for addr in &self.join {
            split_addr(addr).map_err(|why| invalid("join", why))?;
        }
        if self.value_max == 0 || self.value_max > VALUE_MAX_LIMIT {
            return Err(invalid(
                "value-max",
                format!("{} is not between 1 and {VALUE_MAX_LIMIT} bytes", self.value_max),
            ));
        }
        if self.store_max < self.value_max {
            return Err(invalid("store-max", "the store is smaller than one value"));
        }
        // A follower must miss more than one heartbeat before it stands for election, or a single
        // lost packet costs a leader.
        if self.heartbeat < Duration::from_millis(10)
            || self.election_min < self.heartbeat + self.heartbeat / 4
        {
            return Err(invalid(
                "election-min",
                "it must be at least a quarter longer than heartbeat, which must be 10ms or more",
            ));
        }
        if self.election_max <= self.election_min {
            return Err(invalid("election-max", "it must be longer than election-min"));
        }
        if !(1..=THREADS_MAX).contains(&self.threads) {
            return Err(invalid("threads", format!("{} is not from 1 to {THREADS_MAX}", self.threads)));
        }
        if self.snapshot_every == 0 {
            return Err(invalid("snapshot-every", "it must be at least 1"));
        }
        if self.requests_max == 0
            || self.requests_per_connection == 0
            || self.connections_max == 0
            || self.connections_per_identity == 0
        {
            return Err(invalid("requests-max", "limits of 0 would refuse everything"));
        }
        if self.request_bytes_max < quorumfs_api::limits::FRAME_MAX * 2 {
            return Err(invalid(
                "request-bytes-max",
                "it must hold at least two of the largest frames (32MiB)",
            ));
        }
        Ok(())
    }
}

/// Host and port of `host:port`; an IPv6 address stands in brackets.
pub(crate) fn split_addr(addr: &str) -> Result<(&str, u16), String> {
    let bad = || format!("{addr:?} is not HOST:PORT");
    let (host, port) = addr.rsplit_once(':').ok_or_else(bad)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(bad());
    }
    Ok((host, port.parse().map_err(|_| bad())?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, ConfigError> {
        Config::load(&Cli::try_parse_from([&["raftnode"], args].concat()).unwrap())
    }
    const NEEDED: [&str; 10] =
        ["--id", "1", "--name", "n1", "--listen", "127.0.0.1:0", "--data", "d", "--certs", "c"];

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, "id = 7\nname = \"n7\"\nlisten = \"127.0.0.1:7400\"\ndata = \"/d\"\ncerts = \"/c\"\nvalue-max = \"2MiB\"\nstore-max = 1073741824\nheartbeat = \"50ms\"\nmetrics = \"off\"\n").unwrap();
        let config = parse(&["--config", file.to_str().unwrap(), "--value-max", "3MiB"]).unwrap();
        assert_eq!((config.id, config.value_max, config.store_max), (7, 3 << 20, 1 << 30));
        assert_eq!(config.heartbeat, Duration::from_millis(50));
        assert_eq!(config.metrics, None);
        assert_eq!(config.snapshot_every, 50_000);
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_reason() {
        let with = |more: &[&str]| parse(&[&NEEDED[..], more].concat());
        assert!(with(&[]).is_ok());
        assert!(parse(&["--id", "1"]).unwrap_err().to_string().contains("name is not set"));
        for (flags, word) in [
            (&["--value-max", "9MiB"][..], "value-max"),
            (&["--store-max", "1KiB"], "store-max"),
            (&["--election-max", "100ms"], "election-max"),
            (&["--advertise", "nohost"], "advertise"),
            (&["--join", "a:1,b"], "join"),
            (&["--metrics", "somewhere"], "metrics"),
        ] {
            let error = with(flags).unwrap_err().to_string();
            assert!(error.starts_with(word), "{flags:?}: {error}");
        }
        let mut wildcard = NEEDED;
        wildcard[5] = "0.0.0.0:7400";
        assert!(parse(&wildcard).unwrap_err().to_string().contains("advertise"));
    }

    #[test]
    fn unknown_keys_in_the_file_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, "valuemax = 1\n").unwrap();
        assert!(parse(&["--config", file.to_str().unwrap()]).unwrap_err().to_string().contains("valuemax"));
    }

    #[test]
    fn addresses_split_into_host_and_port() {
        assert_eq!(split_addr("n1.example:7400").unwrap(), ("n1.example", 7400));
        assert_eq!(split_addr("[::1]:7400").unwrap(), ("::1", 7400));
        assert!(split_addr("n1").is_err() && split_addr(":7400").is_err() && split_addr("n1:x").is_err());
    }
}
