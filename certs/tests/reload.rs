//! New certificates are taken up while running, and bad ones never are.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use certs::{Authority, Credentials, Error, Paths, Reloader, Request, Validity};
use tokio::sync::watch::Receiver;

/// Far less than the time between checks without events: what arrives by then came by an event.
const DEADLINE: Duration = Duration::from_secs(20);

type Current = Receiver<Arc<Credentials>>;

async fn next(current: &mut Current) -> Arc<Credentials> {
    tokio::time::timeout(DEADLINE, current.changed()).await.expect("taken up in time").expect("running");
    current.borrow_and_update().clone()
}

fn issue(ca: &Authority, name: &str, out: &Path) -> Paths {
    let mut request = Request::node(name, ["kv.example"]).unwrap();
    request.out = Some(out.into());
    request.overwrite = true;
    ca.issue(&request).unwrap().paths
}

fn same(a: &Credentials, paths: &Paths) -> bool {
    a.chain() == Credentials::load(paths).unwrap().chain()
}

#[tokio::test]
async fn bad_files_are_refused_and_good_ones_taken() {
    let tmp = tempfile::tempdir().unwrap();
    let ca = Authority::create(&tmp.path().join("ca"), Validity::days(10), false).unwrap();
    let live = issue(&ca, "n1", &tmp.path().join("live"));
    let (reloader, mut current) = Reloader::start(live.clone()).unwrap();
    let first = current.borrow_and_update().clone();
    assert!(!reloader.reload_now().unwrap(), "nothing new");

    // Half of a new pair: written in place, as an editor might.
    let second = issue(&ca, "n1", &tmp.path().join("second"));
    fs::copy(&second.cert, &live.cert).unwrap();
    assert!(matches!(reloader.reload_now().unwrap_err(), Error::KeyMismatch { .. }));
    assert!(Arc::ptr_eq(&first, &current.borrow()), "the old ones stay in use");
    fs::copy(&second.key, &live.key).unwrap();
    assert!(same(&*next(&mut current).await, &second));

    // Somebody else's, garbage and nothing.
    let kept = current.borrow().clone();
    let stranger = issue(&ca, "n2", &tmp.path().join("stranger"));
    fs::copy(&stranger.key, &live.key).unwrap();
    fs::copy(&stranger.cert, &live.cert).unwrap();
    assert!(matches!(reloader.reload_now().unwrap_err(), Error::IdentityChanged { .. }));
    fs::write(&live.cert, "garbage").unwrap();
    assert!(matches!(reloader.reload_now().unwrap_err(), Error::Pem { .. }));
    fs::remove_file(&live.cert).unwrap();
    assert!(matches!(reloader.reload_now().unwrap_err(), Error::Read { .. }));
    assert!(Arc::ptr_eq(&kept, &current.borrow()));

    // `certs issue --force` into the live directory, by renames.
    issue(&ca, "n1", &tmp.path().join("live"));
    assert!(same(&*next(&mut current).await, &live));

    drop(reloader);
    tokio::time::timeout(DEADLINE, current.changed()).await.expect("ends in time").unwrap_err();
}

#[tokio::test]
async fn a_swapped_symlink_is_noticed() {
    // As Kubernetes does it: DIR/n1.crt -> ..data/n1.crt, and ..data is replaced by a rename.
    let tmp = tempfile::tempdir().unwrap();
    let ca = Authority::create(&tmp.path().join("ca"), Validity::days(10), false).unwrap();
    let (dir, data) = (tmp.path().join("secret"), Path::new("..data"));
    fs::create_dir(&dir).unwrap();
    issue(&ca, "n1", &dir.join("..1"));
    symlink("..1", dir.join(data)).unwrap();
    let live = Paths::in_dir(&dir, "n1");
    for path in [&live.ca, &live.cert, &live.key] {
        symlink(data.join(path.file_name().unwrap()), path).unwrap();
    }
    let (_reloader, mut current) = Reloader::start(live.clone()).unwrap();
    for version in ["..2", "..3"] {
        let fresh = issue(&ca, "n1", &dir.join(version));
        symlink(version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join(data)).unwrap();
        assert!(same(&*next(&mut current).await, &fresh), "{version}");
    }
    fs::remove_dir_all(dir.join("..1")).unwrap();

    // What the symlinks lead to is watched as well: files changed behind them.
    issue(&ca, "n1", &dir.join("..3"));
    assert!(same(&*next(&mut current).await, &live));
}

#[tokio::test]
async fn a_new_ca_is_taken_up_beside_the_old() {
    let tmp = tempfile::tempdir().unwrap();
    let old = Authority::create(&tmp.path().join("old"), Validity::days(10), false).unwrap();
    let new = Authority::create(&tmp.path().join("new"), Validity::days(10), false).unwrap();
    let live = issue(&old, "n1", &tmp.path().join("live"));
    let (_reloader, mut current) = Reloader::start(live.clone()).unwrap();
    let first = current.borrow_and_update().clone();
    let both = [&live.ca, &new.certificate_path()].map(|ca| fs::read(ca).unwrap()).concat();
    fs::write(&live.ca, both).unwrap();
    let second = next(&mut current).await;
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(first.chain(), second.chain());
}

#[test]
fn does_not_start_without_good_files() {
    let tmp = tempfile::tempdir().unwrap();
    assert!(matches!(Reloader::start(Paths::in_dir(tmp.path(), "n1")), Err(Error::Read { .. })));
}
