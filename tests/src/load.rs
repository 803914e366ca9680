//! Writers that never stop, and remember what the cluster has acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::deadline::{Done, until};
use crate::kv::Kv;

/// Writers at work. Ends with [`Load::stop`], or when it is dropped.
pub struct Load {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    done: Done,
    acknowledged: Mutex<Vec<(String, u64, Instant)>>,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// One writer for each client; each writes 1, 2, 3 ... to keys of its own below `/load`.
    pub fn start(clients: Vec<Kv>) -> Load {
        let shared = Arc::new(Shared::default());
        let writers = clients
            .into_iter()
            .enumerate()
            .map(|(number, kv)| {
                let shared = shared.clone();
                thread::spawn(move || write(&shared, number, &kv))
            })
            .collect();
        Load { shared, writers }
    }

    /// How many writes were acknowledged.
    pub fn count(&self) -> usize {
        self.shared.acknowledged.lock().unwrap().len()
    }

    /// Waits for so many more acknowledged writes; gives the longest time in which none was.
    #[track_caller]
    pub fn advance(&self, more: usize, timeout: Duration) -> Duration {
        let (start, goal) = (Instant::now(), self.count() + more);
        until(&format!("{more} more writes"), timeout, || self.count() >= goal);
        let acknowledged = self.shared.acknowledged.lock().unwrap();
        let mut times: Vec<Instant> =
            acknowledged.iter().map(|(.., at)| *at).filter(|at| *at > start).collect();
        times.push(start);
        times.sort();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Ends the writers. Gives the last acknowledged number of each key, and how often a write failed.
    pub fn stop(mut self) -> (BTreeMap<String, u64>, Vec<String>) {
        self.end();
        let mut last = BTreeMap::new();
        for (key, number, _) in self.shared.acknowledged.lock().unwrap().iter() {
            last.insert(key.clone(), *number);
        }
        (last, std::mem::take(&mut self.shared.failures.lock().unwrap()))
    }

    fn end(&mut self) {
        drop(self.shared.done.finish());
        for writer in self.writers.drain(..) {
            let _ = writer.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn write(shared: &Shared, writer: usize, kv: &Kv) {
    for number in 1.. {
        if shared.done.is_set() {
            return;
        }
        // A few keys for each writer: then some hold old numbers, and a lost write shows.
        let key = format!("/load/{writer}/{}", number % 5);
        match kv.try_run(&["put", &key, &number.to_string()]) {
            Ok(_) => shared.acknowledged.lock().unwrap().push((key, number, Instant::now())),
            Err(reason) => shared.failures.lock().unwrap().push(reason),
        }
    }
}

/// Panics unless every acknowledged write, or a later one to the same key, is there.
#[track_caller]
pub fn check(kv: &Kv, acknowledged: &BTreeMap<String, u64>) {
    for (key, number) in acknowledged {
        let found =
            kv.get(key).unwrap_or_else(|| panic!("{key} was acknowledged with {number}, and is not there"));
        let found: u64 = found.parse().unwrap_or_else(|_| panic!("{key} holds {found:?}"));
        assert!(found >= *number, "{key} was acknowledged with {number}, and holds {found}");
    }
}
