//! What a node decides by.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use quorumfs_api::key::Key;
use quorumfs_api::record::Revision;
use quorumfs_api::rights::{Access, Grant, Rights};

use crate::{Policy, system};

/// The client that is admin as long as there is no policy.
pub const ADMIN: &str = "admin";
/// Names whose rights are kept ready. Only those come in whose certificate the authority has signed.
const KEPT: usize = 16_384;

/// Who asks, as the certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who<'a> {
    /// The name.
    pub name: &'a str,
    /// Whether it is a node's certificate. Nodes hold all data anyway: nothing is denied to them.
    pub node: bool,
}

impl std::fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", if self.node { "node" } else { "client" }, self.name)
    }
}

/// The policy of a revision, or that there is none.
#[derive(Debug)]
pub struct InForce {
    /// Revision that wrote it; 0 where there is none.
    pub revision: Revision,
    policy: Option<Policy>,
    node: Arc<Rights>,
    /// Without a policy: of the client [`ADMIN`], and of all others.
    open: [Arc<Rights>; 2],
    kept: Mutex<Kept>,
}

/// Rights that were worked out.
#[derive(Debug, Default)]
struct Kept {
    by_name: HashMap<String, Arc<Rights>>,
    /// Those who may do the same share it, and with it what is made for them.
    distinct: HashSet<Arc<Rights>>,
}

impl Default for InForce {
    fn default() -> InForce {
        InForce::none()
    }
}

impl InForce {
    /// No policy: every client may read and write all but what is for admins.
    pub fn none() -> InForce {
        InForce::of(0, None)
    }

    /// The policy that this revision wrote.
    pub fn new(revision: Revision, policy: Policy) -> InForce {
        InForce::of(revision, Some(policy))
    }

    fn of(revision: Revision, policy: Option<Policy>) -> InForce {
        let all = Grant { path: Key::root(), access: Access::Write, line: 0 };
        let open = [true, false].map(|admin| {
            let grants = if admin { vec![all.clone()] } else { vec![all.clone(), system(admin)] };
            Arc::new(Rights::new(admin, grants))
        });
        InForce { revision, policy, node: Arc::new(Rights::all()), open, kept: Mutex::default() }
    }

    /// The policy, if there is one.
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// What somebody may do.
    pub fn rights(&self, who: Who<'_>) -> Arc<Rights> {
        if who.node {
            return self.node.clone();
        }
        let Some(policy) = &self.policy else {
            return self.open[usize::from(who.name != ADMIN)].clone();
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rights) = kept.by_name.get(who.name) {
            return rights.clone();
        }
        if kept.by_name.len() >= KEPT {
            *kept = Kept::default();
        }
        let rights = Arc::new(policy.rights(who.name));
        let rights = kept.distinct.get(&rights).unwrap_or(&rights).clone();
        kept.distinct.insert(rights.clone());
        kept.by_name.insert(who.name.to_owned(), rights.clone());
        rights
    }
}
