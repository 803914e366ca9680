//! Decisions against a reference that goes through all grants for each key, and through all keys of a
//! small world for each subtree.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn key(text: &str) -> Key {
    Key::parse(text.to_owned()).unwrap()
}

/// All keys of up to three components out of three names.
fn world() -> Vec<Key> {
    let mut keys = vec![Key::root()];
    let mut last = keys.clone();
    for _ in 0..3 {
        let names = ["a", "b", ".quorumfs"].map(|name| Name::new(name).unwrap());
        last = last.iter().flat_map(|dir| names.iter().map(|name| dir.join(name).unwrap())).collect();
        keys.extend(last.iter().cloned());
    }
    keys
}

/// The longest path that the key lies in; of equal ones, the most.
fn reference(grants: &[Grant], key: &Key) -> Access {
    let over = grants.iter().filter(|grant| key.is_within(&grant.path));
    let best = over.max_by_key(|grant| (grant.path.names().count(), grant.access));
    best.map_or(Access::None, |grant| grant.access)
}

fn grants() -> impl Strategy<Value = Vec<Grant>> {
    let access = prop_oneof![Just(Access::None), Just(Access::Read), Just(Access::Write)];
    // Only as deep as the world, so that it has a key in each subtree that a path could change.
    let path = (0..world().len()).prop_map(|at| world()[at].clone());
    let grant = (path, access, 1u32..100).prop_map(|(path, access, line)| Grant { path, access, line });
    proptest::collection::vec(grant, 0..7)
}

proptest! {
    #[test]
    fn decisions_are_those_of_the_reference(grants in grants()) {
        let rights = Rights::new(false, grants.clone());
        let world = world();
        for key in &world {
            let access = reference(&grants, key);
            prop_assert_eq!(rights.access(key), access, "{}", key);
            let decision = rights.decide(key);
            prop_assert_eq!(decision.access, access);
            match decision.by {
                Some(by) => prop_assert!(grants.contains(&by) && key.is_within(&by.path) && by.access == access),
                None => prop_assert!(!grants.iter().any(|grant| key.is_within(&grant.path))),
            }
            let within: Vec<Access> =
                world.iter().filter(|k| k.is_within(key)).map(|k| reference(&grants, k)).collect();
            for wanted in [Access::Read, Access::Write] {
                prop_assert_eq!(rights.covers(key, wanted), within.iter().all(|a| *a >= wanted), "{}", key);
                prop_assert_eq!(rights.reaches(key, wanted), within.iter().any(|a| *a >= wanted), "{}", key);
            }
            let sight = match access {
                Access::None if within.iter().all(|a| *a == Access::None) => Sight::Hidden,
                Access::None => Sight::Way,
                Access::Read | Access::Write => Sight::Full,
            };
            prop_assert_eq!(rights.sight(key), sight, "{}", key);
            // What is seen can be walked to.
            if sight != Sight::Hidden && let Some((parent, _)) = key.split() {
                prop_assert!(rights.sight(&parent) != Sight::Hidden);
            }
        }
    }

    #[test]
    fn the_wire_keeps_what_they_say(grants in grants(), admin: bool, cut_off: Option<u32>) {
        let rights = Rights { cut_off, ..Rights::new(admin, grants) };
        let bytes = postcard::to_stdvec(&rights).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Rights>(&bytes).unwrap(), rights);
    }
}

#[test]
fn a_path_ends_at_a_component() {
    let grant = Grant { path: key("/web"), access: Access::Write, line: 3 };
    let rights = Rights::new(false, [grant]);
    assert_eq!(rights.access(&key("/web")), Access::Write);
    assert_eq!(rights.access(&key("/web/a/b")), Access::Write);
    assert_eq!(rights.access(&key("/webby")), Access::None);
    assert_eq!(rights.sight(&Key::root()), Sight::Way);
    assert_eq!(rights.sight(&key("/webby")), Sight::Hidden);
}

#[test]
fn a_refusal_names_the_line_or_says_that_there_is_none() {
    let grant = |path, access, line| Grant { path: key(path), access, line };
    let rights = Rights::new(
        false,
        [grant("/a", Access::Read, 7), grant("/b", Access::Write, 8), grant("/b/x/y", Access::None, 9)],
    );
    let why = |path, access| rights.refusal("client/web1", "write", &key(path), access);
    assert_eq!(
        why("/a/k", Access::Write),
        "client/web1 may not write /a/k: line 7 of the policy gives read on /a"
    );
    assert!(why("/c", Access::Write).ends_with("no line of the policy gives it anything there"));
    assert!(why("/b", Access::Write).ends_with("line 9 of the policy gives none on /b/x/y"));
    let cut = Rights::cut_off(2).refusal("client/web1", "write", &key("/b"), Access::Write);
    assert_eq!(cut, "client/web1 is denied by line 2 of the policy");
}

#[test]
fn a_deep_key_costs_no_more_than_its_length() {
    let deep = key(&"/d".repeat(2_000));
    let grants = (0..500).map(|i| Grant { path: key(&format!("/p{i}")), access: Access::Read, line: i });
    let rights =
        Rights::new(false, grants.chain([Grant { path: deep.clone(), access: Access::Write, line: 1 }]));
    for _ in 0..100 {
        assert_eq!(rights.access(&deep), Access::Write);
        assert_eq!(rights.sight(&deep.split().unwrap().0), Sight::Way);
    }
}
