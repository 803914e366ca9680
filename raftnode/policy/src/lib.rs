//! The cluster's own policy: which identity may do what with which keys. A file in the store itself,
//! in TOML; [docs/policy.md](../../../docs/policy.md) is for those who write one.
//!
//! [`parse`](Policy::parse) checks a file, [`Policy::rights`] says what it gives to a name, and
//! [`InForce`] is what a node decides by: the policy of a revision, or none. All of it is pure; the
//! state machine runs it when a command is applied, so every node has to come to the same result.

mod in_force;
mod parse;
mod pattern;

use quorumfs_api::key::Key;
use quorumfs_api::rights::{Access, Grant, Rights, SYSTEM_DIR};

pub use in_force::{ADMIN, InForce, Who};
pub use parse::PolicyError;
use pattern::Pattern;

/// What stands for the name of the client in a path.
const NAME_VARIABLE: &str = "{name}";

/// A policy that was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    denied: Vec<Denied>,
    rules: Vec<Rule>,
}

/// Names that are cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Denied {
    who: Pattern,
    line: u32,
}

/// One rule: what it gives to those whom it names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    who: Vec<Pattern>,
    admin: bool,
    paths: Vec<Path>,
}

/// What a rule gives on one path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Path {
    /// As it is written, with variables.
    text: String,
    access: Access,
    line: u32,
}

impl Path {
    /// The path for one client; `None` where its name makes none (`..`, or one that is too long).
    fn key(&self, name: &str) -> Option<Key> {
        Key::parse(self.text.replace(NAME_VARIABLE, name)).ok()
    }
}

impl Policy {
    /// The names and patterns that stand in it, each once.
    pub fn names(&self) -> Vec<String> {
        let denied = self.denied.iter().map(|denied| &denied.who);
        let named = denied.chain(self.rules.iter().flat_map(|rule| &rule.who));
        let mut names: Vec<String> = named.map(Pattern::to_string).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Which line denies the client `name` altogether.
    pub fn denied(&self, name: &str) -> Option<u32> {
        self.denied.iter().find(|denied| denied.who.matches(name)).map(|denied| denied.line)
    }

    /// What the client `name` may do.
    pub fn rights(&self, name: &str) -> Rights {
        if let Some(line) = self.denied(name) {
            return Rights::cut_off(line);
        }
        let rules = || self.rules.iter().filter(|rule| rule.who.iter().any(|who| who.matches(name)));
        let admin = rules().any(|rule| rule.admin);
        let paths = rules().flat_map(|rule| &rule.paths);
        let grants = paths
            .filter_map(|path| Some(Grant { path: path.key(name)?, access: path.access, line: path.line }));
        // Whatever the rules say: only admins change what is for admins, and they always can.
        let grants = grants
            .filter(|grant| !grant.path.is_within(&SYSTEM_DIR) || (!admin && grant.access < Access::Write));
        Rights::new(admin, grants.chain([system(admin)]))
    }
}

/// What holds for the directory of the cluster.
fn system(admin: bool) -> Grant {
    let access = if admin { Access::Write } else { Access::None };
    Grant { path: SYSTEM_DIR.clone(), access, line: 0 }
}
