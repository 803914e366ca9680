//! What one identity may do with which keys, as the cluster's policy says. Pure: no policy file, no
//! names, only paths with what they give. The deepest path that a key lies in decides.
//!
//! Nodes decide by it, and tell it to mounts, which refuse early what the cluster would refuse anyway.
//! The paths are a tree by components: a decision costs one step for each component of the key that
//! some path has, however many paths there are.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::key::{Key, Name};
use crate::record::Kind;

/// The directory of what concerns the cluster itself. Only admins write there.
pub static SYSTEM_DIR: LazyLock<Key> = LazyLock::new(|| own_key(&[b".quorumfs"]));
/// The file that holds the policy.
pub static POLICY_KEY: LazyLock<Key> = LazyLock::new(|| own_key(&[b".quorumfs", b"policy"]));
/// Longest policy in bytes.
pub const POLICY_BYTES_MAX: usize = 64 << 10;

fn own_key(names: &[&'static [u8]]) -> Key {
    let names = names.iter().filter_map(|name| Name::new(*name).ok());
    names.fold(Key::root(), |key, name| key.join(&name).unwrap_or(key))
}

/// What may be done with a key. Each includes the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Access {
    /// Nothing: it is not even seen.
    #[default]
    None,
    /// Get, list, watch, shared locks.
    Read,
    /// All commands, and exclusive locks.
    Write,
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Access::None => "none",
            Access::Read => "read",
            Access::Write => "write",
        })
    }
}

/// What a path gives: to itself and all below it, as far as no deeper path says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The path.
    pub path: Key,
    /// What it gives.
    pub access: Access,
    /// Line of the policy that says so, from 1; 0 for what needs no policy.
    pub line: u32,
}

/// What decides about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What may be done.
    pub access: Access,
    /// By what; nothing gives nothing.
    pub by: Option<Grant>,
}

/// What an identity sees of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All of it.
    Full,
    /// Nothing but that it is a directory on the way to something that is seen. What is no directory
    /// is hidden.
    Way,
    /// Nothing, of what is below it neither.
    Hidden,
}

impl Sight {
    /// Whether an object of this kind is shown at all.
    pub fn shows(self, kind: Kind) -> bool {
        match self {
            Sight::Full => true,
            Sight::Way => kind == Kind::Dir,
            Sight::Hidden => false,
        }
    }
}

/// What one identity may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Listed", into = "Listed")]
pub struct Rights {
    /// May change the cluster and its policy.
    pub admin: bool,
    /// The identity is denied altogether, by this line of the policy.
    pub cut_off: Option<u32>,
    root: Branch,
}

/// How rights go over the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Listed {
    admin: bool,
    cut_off: Option<u32>,
    grants: Vec<Grant>,
}

impl From<Listed> for Rights {
    fn from(listed: Listed) -> Rights {
        Rights { cut_off: listed.cut_off, ..Rights::new(listed.admin, listed.grants) }
    }
}
impl From<Rights> for Listed {
    fn from(rights: Rights) -> Listed {
        Listed { admin: rights.admin, cut_off: rights.cut_off, grants: rights.grants() }
    }
}

/// One component of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Branch {
    here: Option<(Access, u32)>,
    children: BTreeMap<Name, Branch>,
    /// The least and the most that paths here and below give.
    least: Option<Access>,
    most: Option<Access>,
}

impl Branch {
    fn count(&mut self) {
        let here = self.here.map(|(access, _)| access);
        (self.least, self.most) = (here, here);
        for child in self.children.values_mut() {
            child.count();
            self.least = [self.least, child.least].into_iter().flatten().min();
            self.most = self.most.max(child.most);
        }
    }
}

/// Where a key leads in the tree of paths.
struct Found<'a> {
    /// Components of the deepest path that the key lies in, and what it says.
    deciding: Option<(usize, Access, u32)>,
    /// The paths that begin with the key.
    below: Option<&'a Branch>,
}

impl Found<'_> {
    fn access(&self) -> Access {
        self.deciding.map_or(Access::None, |(_, access, _)| access)
    }
}

impl Rights {
    /// Rights by these paths. Where one path stands several times, the most that it gives counts.
    pub fn new(admin: bool, grants: impl IntoIterator<Item = Grant>) -> Rights {
        let mut root = Branch::default();
        for grant in grants {
            let mut at = &mut root;
            for name in grant.path.names() {
                at = at.children.entry(name).or_default();
            }
            if at.here.is_none_or(|(access, _)| access < grant.access) {
                at.here = Some((grant.access, grant.line));
            }
        }
        root.count();
        Rights { admin, cut_off: None, root }
    }

    /// Everything: what nodes may.
    pub fn all() -> Rights {
        Rights::new(true, [Grant { path: Key::root(), access: Access::Write, line: 0 }])
    }

    /// Nothing, because a line of the policy denies this identity.
    pub fn cut_off(line: u32) -> Rights {
        Rights { cut_off: Some(line), ..Rights::new(false, []) }
    }

    /// The paths, in the order of their components.
    pub fn grants(&self) -> Vec<Grant> {
        let mut grants = Vec::new();
        let mut todo = vec![(Key::root(), &self.root)];
        while let Some((path, branch)) = todo.pop() {
            if let Some((access, line)) = branch.here {
                grants.push(Grant { path: path.clone(), access, line });
            }
            let children = branch.children.iter().rev();
            todo.extend(children.filter_map(|(name, child)| Some((path.join(name).ok()?, child))));
        }
        grants
    }

    fn find(&self, key: &Key) -> Found<'_> {
        let mut at = &self.root;
        let mut deciding = at.here.map(|(access, line)| (0, access, line));
        for (depth, name) in key.names().enumerate() {
            match at.children.get(&name) {
                Some(child) => at = child,
                None => return Found { deciding, below: None },
            }
            if let Some((access, line)) = at.here {
                deciding = Some((depth + 1, access, line));
            }
        }
        Found { deciding, below: Some(at) }
    }

    /// What may be done with a key.
    pub fn access(&self, key: &Key) -> Access {
        self.find(key).access()
    }

    /// What may be done with a key, and what decides it.
    pub fn decide(&self, key: &Key) -> Decision {
        let found = self.find(key);
        let by = found.deciding.map(|(depth, access, line)| {
            let names = key.names().take(depth);
            let path = names.fold(Key::root(), |path, name| path.join(&name).unwrap_or(path));
            Grant { path, access, line }
        });
        Decision { access: found.access(), by }
    }

    /// Whether so much may be done with a key and everything that is or could be below it.
    pub fn covers(&self, key: &Key, access: Access) -> bool {
        let found = self.find(key);
        found.access() >= access
            && found.below.and_then(|below| below.least).is_none_or(|least| least >= access)
    }

    /// Whether so much may be done with a key or something that could be below it.
    pub fn reaches(&self, key: &Key, access: Access) -> bool {
        let found = self.find(key);
        found.access() >= access || found.below.is_some_and(|below| below.most >= Some(access))
    }

    /// What is seen of a key.
    pub fn sight(&self, key: &Key) -> Sight {
        let found = self.find(key);
        if found.access() >= Access::Read {
            Sight::Full
        } else if found.below.is_some_and(|below| below.most >= Some(Access::Read)) {
            Sight::Way
        } else {
            Sight::Hidden
        }
    }

    /// Of a directory that is only the [`Way`](Sight::Way): the names in it that may be seen, in order.
    pub fn ways(&self, key: &Key) -> Vec<Name> {
        self.find(key).below.map_or_else(Vec::new, |below| below.children.keys().cloned().collect())
    }

    /// Why so much may not be done with `key` or all below it, for whoever asked and for the log.
    /// `who` is a name; `what` is what was wanted, as in "may not ... it".
    pub fn refusal(&self, who: &str, what: &str, key: &Key, access: Access) -> String {
        if let Some(line) = self.cut_off {
            return format!("{who} is denied by line {line} of the policy");
        }
        let decision = self.decide(key);
        let mut why = format!("{who} may not {what} {key}: ");
        match decision.by {
            Some(by) if decision.access >= access => {
                // What is in the way lies below.
                let inner = self.grants().into_iter().find(|g| g.path.is_within(key) && g.access < access);
                let inner = inner.unwrap_or(by);
                why += &reason(&inner);
            }
            Some(by) => why += &reason(&by),
            None => why += "no line of the policy gives it anything there",
        }
        why
    }
}

fn reason(by: &Grant) -> String {
    match by {
        Grant { line: 0, path, .. } if *path == *SYSTEM_DIR => {
            format!("{path} is for admins (without a policy: nodes, and the client \"admin\")")
        }
        Grant { line, path, access } => format!("line {line} of the policy gives {access} on {path}"),
    }
}

#[cfg(test)]
mod tests;
