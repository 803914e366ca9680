//! What is written to disk and what is accepted from it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use certs::{Authority, Credentials, Error, Paths, Request, Summary, Validity};
use time::{Duration, OffsetDateTime};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn new_ca(dir: &Path) -> Authority {
    Authority::create(dir, Validity::days(10), false).unwrap()
}

#[test]
fn keys_are_secret_and_nothing_is_left_over() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("new/certs");
    let ca = new_ca(&dir);
    ca.issue(&Request::node("n1", ["10.0.0.1"]).unwrap()).unwrap();
    let mut request = Request::client("web").unwrap();
    request.out = Some(tmp.path().join("out"));
    let issued = ca.issue(&request).unwrap();
    assert_eq!(issued.paths, Paths::in_dir(&tmp.path().join("out"), "web"));

    assert_eq!((mode(&dir), mode(&tmp.path().join("out"))), (0o700, 0o700));
    for key in [dir.join("ca.key"), dir.join("n1.key"), issued.paths.key.clone()] {
        assert_eq!(mode(&key), 0o600, "{}", key.display());
    }
    for public in [dir.join("ca.crt"), dir.join("n1.crt"), issued.paths.ca.clone(), issued.paths.cert.clone()]
    {
        assert_eq!(mode(&public), 0o644, "{}", public.display());
    }
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ca.crt", "ca.key", "n1.crt", "n1.key"]);

    let web = Credentials::load(&issued.paths).unwrap();
    assert_eq!(web.identity().to_string(), "client/web");
    let shown = format!("{web:?} {ca:?}");
    assert!(!shown.contains("key:"), "{shown}");
    let n1 = Credentials::load(&Paths::in_dir(&dir, "n1")).unwrap();
    assert_eq!(n1.names(), ["n1", "10.0.0.1"]);
}

#[test]
fn nothing_is_overwritten_unless_asked() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("ca");
    let ca = new_ca(&dir);
    let mut request = Request::node("n1", [""; 0]).unwrap();
    let paths = ca.issue(&request).unwrap().paths;
    let before = ["ca.crt", "ca.key", "n1.crt", "n1.key"].map(|name| fs::read(dir.join(name)).unwrap());

    let again = Authority::create(&dir, Validity::days(1), false).unwrap_err();
    assert!(matches!(&again, Error::Exists { path } if path.ends_with("ca.key")), "{again}");
    assert!(again.to_string().contains("--force"), "{again}");
    assert!(matches!(ca.issue(&request).unwrap_err(), Error::Exists { .. }));
    fs::remove_file(&paths.key).unwrap();
    // A half of a pair is in the way too, and the missing half is not made.
    assert!(matches!(ca.issue(&request).unwrap_err(), Error::Exists { path } if path == paths.cert));
    assert!(!paths.key.exists());
    fs::write(&paths.key, &before[3]).unwrap();
    let after = ["ca.crt", "ca.key", "n1.crt", "n1.key"].map(|name| fs::read(dir.join(name)).unwrap());
    assert_eq!(before, after);

    request.overwrite = true;
    ca.issue(&request).unwrap();
    assert_ne!(fs::read(&paths.key).unwrap(), before[3]);
    Credentials::load(&paths).unwrap();

    Authority::create(&dir, Validity::days(1), true).unwrap();
    let orphan = Credentials::load(&paths).unwrap_err().to_string();
    assert!(orphan.contains("signed by another CA"), "{orphan}");

    // Another CA's certificate in the way of the copy is not replaced either.
    let other = new_ca(&tmp.path().join("other"));
    request = Request::client("c").unwrap();
    request.out = Some(dir.clone());
    assert!(matches!(other.issue(&request).unwrap_err(), Error::Exists { path } if path.ends_with("ca.crt")));
}

#[test]
fn requests_that_cannot_be_met_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("ca");
    let ca = new_ca(&dir);
    for name in ["ca", "CA"] {
        let error = ca.issue(&Request::client(name).unwrap()).unwrap_err().to_string();
        assert!(error.contains("replace those of the CA"), "{error}");
    }
    assert!(
        ca.issue(&Request::node("1", [""; 0]).unwrap())
            .unwrap_err()
            .to_string()
            .contains("possible host name")
    );
    for san in ["host:7000", "https://host", "*.example", "", "a b", "1.2.3"] {
        let error = ca.issue(&Request::node("n", [san]).unwrap()).unwrap_err();
        assert!(matches!(error, Error::San { .. }), "{san:?}: {error}");
    }
    let issued = ca.issue(&Request::node("n", ["[::1]", "n", "A.Example.", "::1"]).unwrap()).unwrap();
    assert_eq!(issued.summary.names, ["n", "::1", "a.example"]);

    let now = OffsetDateTime::now_utc();
    let mut request = Request::client("c").unwrap();
    request.validity = Validity { not_before: now, not_after: now - Duration::days(1) };
    assert!(matches!(ca.issue(&request).unwrap_err(), Error::Validity { .. }));
    request.validity = Validity { not_before: now + Duration::days(11), not_after: now + Duration::days(12) };
    assert!(matches!(ca.issue(&request).unwrap_err(), Error::Validity { .. }), "after the end of the CA");
    request.validity = Validity::days(u32::MAX);
    let issued = ca.issue(&request).unwrap();
    assert_eq!(issued.summary.not_after, ca.summary().not_after, "an identity ends with its CA");

    assert!(matches!(Authority::open(tmp.path()).unwrap_err(), Error::NoAuthority { .. }));
    fs::copy(dir.join("n.key"), dir.join("ca.key")).unwrap();
    assert!(matches!(Authority::open(&dir).unwrap_err(), Error::KeyMismatch { .. }));
    let open = tmp.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::write(open.join("file"), "").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let exposed = Authority::create(&open, Validity::days(1), false).unwrap_err();
    assert!(matches!(exposed, Error::Exposed { .. }), "{exposed}");
}

#[test]
fn files_that_do_not_fit_together_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let (here, there) = (new_ca(&tmp.path().join("here")), new_ca(&tmp.path().join("there")));
    let a = here.issue(&Request::node("a", [""; 0]).unwrap()).unwrap().paths;
    let b = there.issue(&Request::client("b").unwrap()).unwrap().paths;
    let refused = |paths: Paths, why: &str| {
        let error = Credentials::load(&paths).unwrap_err().to_string();
        assert!(error.contains(why), "{error:?} does not say {why:?}");
    };
    refused(Paths { key: b.key.clone(), ..a.clone() }, "does not belong to the certificate");
    refused(Paths { ca: b.ca.clone(), ..a.clone() }, "signed by another CA");
    refused(Paths { ca: a.cert.clone(), ..a.clone() }, "is not the certificate of a CA");
    refused(Paths { cert: a.ca.clone(), ..a.clone() }, "no quorumfs identity");
    refused(Paths { cert: a.key.clone(), ..a.clone() }, "no usable certificate");
    refused(Paths { key: a.cert.clone(), ..a.clone() }, "no usable private key");
    refused(Paths { key: tmp.path().join("none"), ..a.clone() }, "certs issue");
    refused(Paths { cert: tmp.path().into(), ..a.clone() }, "not a regular file");

    // A CA that has ended is refused, though TLS itself would not look; not if the next is beside it.
    let now = OffsetDateTime::now_utc();
    let ended = tmp.path().join("ended");
    let past = Validity { not_before: now - Duration::days(2), not_after: now - Duration::days(1) };
    assert!(matches!(Authority::create(&ended, past, false).unwrap_err(), Error::Expired { .. }));
    refused(Paths { ca: ended.join("ca.crt"), ..a.clone() }, "expired on");
    let both = [ended.join("ca.crt"), a.ca.clone()].map(|ca| fs::read(ca).unwrap()).concat();
    fs::write(tmp.path().join("both.crt"), both).unwrap();
    Credentials::load(&Paths { ca: tmp.path().join("both.crt"), ..a }).unwrap();
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("ca");
    let good = new_ca(&dir).issue(&Request::node("n1", ["h"]).unwrap()).unwrap().paths;
    let bad = tmp.path().join("bad");
    let each_place = |contents: &[u8], must_fail: bool| {
        fs::write(&bad, contents).unwrap();
        for paths in [
            Paths { ca: bad.clone(), ..good.clone() },
            Paths { cert: bad.clone(), ..good.clone() },
            Paths { key: bad.clone(), ..good.clone() },
        ] {
            let result = Credentials::load(&paths);
            if must_fail {
                let error = result.unwrap_err().to_string();
                assert!(error.contains("bad"), "{error:?} does not name the file");
            }
        }
        let _ = Summary::read(&bad);
    };
    for garbage in
        [&b""[..], b"\n", b"garbage", b"-----BEGIN CERTIFICATE-----", b"-----BEGIN ", &[0xff; 5000]]
    {
        each_place(garbage, true);
    }
    for kind in ["CERTIFICATE", "PRIVATE KEY", "EC PRIVATE KEY"] {
        for body in ["", "MAA=", "####", "AAAA"] {
            each_place(format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n").as_bytes(), true);
        }
    }
    for path in [&good.ca, &good.cert, &good.key] {
        let whole = fs::read(path).unwrap();
        for end in (0..whole.len() - 1).step_by(7) {
            each_place(&whole[..end], true);
        }
        for at in (0..whole.len()).step_by(5) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x15;
            each_place(&flipped, false);
        }
    }
    let oversize = fs::File::create(&bad).unwrap();
    oversize.set_len(1 << 40).unwrap();
    let paths = Paths { cert: bad.clone(), ..good };
    assert!(matches!(Credentials::load(&paths).unwrap_err(), Error::TooLarge { .. }));
}
