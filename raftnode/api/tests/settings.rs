//! Where the client's settings come from, and what is said when they are wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorumfs_api::client::settings::{format_duration, parse_duration, with_port};
use quorumfs_api::client::{Overrides, Settings, SettingsError};

/// A home, an /etc and an environment that nothing else sees.
struct World {
    dir: tempfile::TempDir,
    env: HashMap<&'static str, OsString>,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let env = HashMap::from([("HOME", dir.path().join("home").into_os_string())]);
        World { dir, env }
    }
    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
    fn resolve(&self, overrides: Overrides) -> Result<Settings, SettingsError> {
        let env = |name: &str| self.env.get(name).cloned();
        Settings::resolve_with(overrides, &env, &self.dir.path().join("etc"))
    }
}

const DEV: &str = "home/.local/share/quorumfs/dev/client.toml";
const ETC: &str = "etc/quorumfs/client.toml";
const USER: &str = "home/.config/quorumfs/client.toml";

fn file(node: &str) -> String {
    format!("nodes = [\"{node}\"]\ncerts = \"pki\"\nname = \"{node}\"\n")
}

#[test]
fn the_nearest_file_wins_and_relative_directories_are_beside_it() {
    let world = World::new();
    for (path, name) in [(DEV, "dev"), (ETC, "etc"), (USER, "user")] {
        let path = world.write(path, &file(name));
        let settings = world.resolve(Overrides::default()).unwrap();
        assert_eq!(settings.nodes, [format!("{name}:7400")]);
        assert_eq!(settings.name, name);
        assert_eq!(settings.certs, path.parent().unwrap().join("pki"));
        assert_eq!(settings.timeout, Duration::from_secs(5));
    }
}

#[test]
fn options_win_over_the_environment_and_that_over_files() {
    let mut world = World::new();
    world.write(USER, &file("user"));
    world.env.insert("QUORUMFS_NODES", "a, b:1,,a:7400".into());
    world.env.insert("QUORUMFS_NAME", "env".into());
    let settings = world.resolve(Overrides::default()).unwrap();
    assert_eq!(settings.nodes, ["a:7400", "b:1"], "split, completed, each once");
    assert_eq!(settings.name, "env");
    let overrides =
        Overrides { nodes: Some(vec!["c".into()]), name: Some("me".into()), ..Overrides::default() };
    let settings = world.resolve(overrides).unwrap();
    assert_eq!((settings.nodes, settings.name.as_str()), (vec!["c:7400".to_string()], "me"));
}

#[test]
fn what_is_missing_is_said_with_the_ways_to_say_it() {
    let world = World::new();
    let error = world.resolve(Overrides::default()).unwrap_err().to_string();
    for hint in ["--nodes", "QUORUMFS_NODES", USER, ETC, DEV] {
        assert!(error.contains(hint), "{error}");
    }
    let error =
        world.resolve(Overrides { nodes: Some(vec!["a".into()]), ..Overrides::default() }).unwrap_err();
    assert!(matches!(error, SettingsError::NoCerts { .. }), "{error}");
}

#[test]
fn mistakes_in_a_file_are_said_with_file_and_line() {
    let world = World::new();
    for (text, line, said) in [
        ("nodes = [\"a\"]\ncerts = \"pki\"\nnoses = 1\n", 3, "noses"),
        ("nodes = [\"a\"]\ncerts = \"pki\"\ntimeout = \"5 parsecs\"\n", 3, "unit of time"),
        ("certs = \"pki\"\n\nnodes = [\"a:0\"]\n", 3, "port"),
        ("certs = \"pki\"\nname = \"../x\"\nnodes = [\"a\"]\n", 2, "slash"),
        ("nodes = [\n", 1, ""),
    ] {
        let path = world.write(USER, text);
        let error = world.resolve(Overrides::default()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:{line}: ", path.display())), "{text:?} gives {error}");
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_broken_file_does_not_stop_who_says_everything_himself() {
    let world = World::new();
    world.write(USER, "this is not toml");
    let overrides = Overrides {
        nodes: Some(vec!["a".into()]),
        certs: Some(Path::new("/pki").into()),
        ..Overrides::default()
    };
    let settings = world.resolve(overrides).unwrap();
    assert_eq!(settings.name, "client");
}

#[test]
fn addresses() {
    for (given, whole) in [
        ("node1", "node1:7400"),
        ("node1:7", "node1:7"),
        ("10.0.0.1", "10.0.0.1:7400"),
        ("::1", "[::1]:7400"),
        ("[::1]", "[::1]:7400"),
        ("[::1]:7", "[::1]:7"),
    ] {
        assert_eq!(with_port(given).unwrap(), whole);
    }
    for bad in ["", ":7400", "a:", "a:b", "a:70000", "a b", "[::1", "http://a"] {
        assert!(with_port(bad).is_err(), "{bad}");
    }
}

#[test]
fn durations() {
    for (text, ms) in
        [("5s", 5000), ("5", 5000), ("1.5s", 1500), ("500ms", 500), ("2m", 120_000), ("1d", 86_400_000)]
    {
        assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(ms));
    }
    for bad in ["", "s", "5 y", "-1s", "1..2", "99999999999999999999d"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
    assert_eq!(format_duration(Duration::from_millis(1500)), "1.5s");
    assert_eq!(format_duration(Duration::from_millis(20)), "20ms");
}
