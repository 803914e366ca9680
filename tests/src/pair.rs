//! Two hosts on one cluster of three nodes, shared by the tests of one file that do not disturb it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::deadline::until;
use crate::host::{Host, MountConfig};
use crate::kv::Kv;

/// How long a change may take from one mount to the other on a busy machine.
pub const PROPAGATION: Duration = Duration::from_secs(10);

/// Hosts A and B, and their cluster.
pub struct Pair {
    /// The host on which most tests write.
    pub a: Host,
    /// The host on which they look.
    pub b: Host,
    /// kvctl for the cluster.
    pub kv: Kv,
    cluster: Mutex<Cluster>,
}

/// A directory of its own for one test, as both hosts and kvctl see it.
pub struct Place {
    /// Its path on host A.
    pub a: PathBuf,
    /// Its path on host B.
    pub b: PathBuf,
    /// Its key.
    pub key: String,
}

impl Place {
    /// A key in it.
    pub fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.key)
    }
}

impl Pair {
    /// A pair of one's own, for tests that kill or stop things.
    #[track_caller]
    pub fn start() -> Pair {
        Pair::on(Cluster::start(3))
    }

    /// The same with mounts that outlive the process that serves them.
    #[track_caller]
    pub fn supervised() -> Pair {
        let cluster = Cluster::start(3);
        let [a, b] =
            ["host-a", "host-b"].map(|name| Host::mount_with(&cluster, name, MountConfig::supervised()));
        Pair { a, b, kv: cluster.kv(), cluster: Mutex::new(cluster) }
    }

    /// Mounts two hosts on a cluster.
    #[track_caller]
    pub fn on(cluster: Cluster) -> Pair {
        let a = Host::mount(&cluster, "host-a");
        let b = Host::mount(&cluster, "host-b");
        Pair { a, b, kv: cluster.kv(), cluster: Mutex::new(cluster) }
    }

    /// A new directory, which B shows already.
    #[track_caller]
    pub fn place(&self, label: &str) -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{label}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let place = Place { a: self.a.join(&name), b: self.b.join(&name), key: format!("/{name}") };
        fs::create_dir(&place.a).unwrap_or_else(|e| panic!("mkdir {:?}: {e}", place.a));
        until("B shows the new directory", PROPAGATION, || place.b.is_dir());
        place
    }

    /// The cluster, to do something to it.
    pub fn cluster(&mut self) -> &mut Cluster {
        self.cluster.get_mut().unwrap_or_else(|e| e.into_inner())
    }
}

/// The shared pair of this test process. Whoever breaks it breaks the other tests: use
/// [`Pair::start`] for that.
#[track_caller]
pub fn pair() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(Pair::start)
}
