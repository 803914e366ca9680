//! What is fuzzed: the configuration file of a node. The same function runs on stable, in
//! `tests/corpus.rs` of the crate above.
//!
//! `cargo +nightly fuzz run config` in the crate's folder.

use raftnode::Config;
use raftnode::config::{Settings, Size, Span};

/// Any text is a configuration that openraft takes, too, or gets an error that says something.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for word in text.split(['"', '\n']) {
        if let Err(error) = word.parse::<Size>() {
            assert!(!error.to_string().is_empty());
        }
        if let Err(error) = word.parse::<Span>() {
            assert!(!error.to_string().is_empty());
        }
    }
    let Ok(settings) = toml::from_str::<Settings>(text) else { return };
    match Config::from_settings(settings) {
        Ok(config) => assert!(raftnode::raft_config(&config).is_ok(), "openraft does not take {config:?}"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
