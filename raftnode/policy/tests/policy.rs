//! What policies give, against a reference that reads the rules as the documentation says them; and
//! what is no policy, with the place of what is wrong.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use quorumfs_api::key::Key;
use quorumfs_api::rights::{Access, POLICY_BYTES_MAX, Sight};
use quorumfs_policy::{ADMIN, InForce, Policy, Who};

fn key(text: &str) -> Key {
    Key::parse(text.to_owned()).unwrap()
}

fn policy(text: &str) -> Policy {
    Policy::parse(text.as_bytes()).unwrap()
}

const EXAMPLE: &str = r#"
deny = ["lost-*"]

[groups]
ops = ["alice", "bob"]
web = ["web-*"]

[[rule]]
who = ["@ops"]
admin = true
write = ["/"]

[[rule]]
who = ["*"]
read = ["/"]
none = ["/secrets"]

[[rule]]
who = ["@web", "ci"]
read = ["/secrets/web"]
write = ["/services/web", "/hosts/{name}"]
"#;

#[test]
fn the_example_gives_what_it_says() {
    let policy = policy(EXAMPLE);
    let access = |name: &str, path: &str| policy.rights(name).access(&key(path));
    assert_eq!(access("alice", "/services/web/addr"), Access::Write);
    assert_eq!(access("alice", "/.quorumfs/policy"), Access::Write);
    // The most that is said of one path counts, but a deeper path decides: the group's own rule is on "/".
    assert_eq!(access("alice", "/secrets/db"), Access::None);
    assert_eq!(access("web-1", "/services/web/addr"), Access::Write);
    assert_eq!(access("web-1", "/services/other"), Access::Read);
    assert_eq!(access("web-1", "/secrets/db"), Access::None);
    assert_eq!(access("web-1", "/secrets/web/key"), Access::Read);
    assert_eq!(access("web-1", "/hosts/web-1/up"), Access::Write);
    assert_eq!(access("web-1", "/hosts/web-2/up"), Access::Read);
    assert_eq!(access("web-1", "/.quorumfs/policy"), Access::None);
    assert_eq!(policy.rights("web-1").sight(&key("/secrets")), Sight::Way);
    assert_eq!(policy.rights("somebody").sight(&key("/secrets")), Sight::Hidden);
    assert_eq!(policy.rights("lost-laptop").cut_off, Some(2));
    assert_eq!(policy.rights("lost-laptop").access(&key("/x")), Access::None);
    assert!(policy.rights("bob").admin && !policy.rights("ci").admin);
    let why = policy.rights("web-1").refusal("client/web-1", "write", &key("/services/x"), Access::Write);
    assert_eq!(why, "client/web-1 may not write /services/x: line 15 of the policy gives read on /");
}

/// The blocks of TOML in a page of the documentation.
fn documented(page: &str) -> Vec<&str> {
    page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_documentation_is_true() {
    let page = documented(include_str!("../../../docs/policy.md"));
    let readme = documented(include_str!("../../../README.md"));
    assert_eq!((page.len(), readme.len()), (2, 1));
    for text in page.iter().chain(&readme) {
        policy(text);
    }
    // The table of `who-can /secrets/web/key`.
    let policy = policy(page[0]);
    for (name, access, line) in [
        ("*", Access::None, 16),
        ("admin", Access::Write, 11),
        ("alice", Access::Write, 11),
        ("ci", Access::Read, 20),
        ("web-*", Access::Read, 20),
    ] {
        let decision = policy.rights(name).decide(&key("/secrets/web/key"));
        assert_eq!((decision.access, decision.by.map(|by| by.line)), (access, Some(line)), "{name}");
    }
    assert_eq!(policy.rights("test-*").cut_off, Some(2));
    let names = ["*", "admin", "alice", "bob", "ci", "old-laptop", "test-*", "web-*"];
    assert_eq!(policy.names(), names);
}

#[test]
fn a_name_that_is_no_name_of_a_key_gets_no_directory() {
    let policy = policy("[[rule]]\nwho = [\"*\"]\nwrite = [\"/hosts/{name}\"]\n");
    for name in [".", ".."] {
        assert_eq!(policy.rights(name).access(&key("/hosts")), Access::None);
        assert!(policy.rights(name).grants().iter().all(|grant| grant.line == 0));
    }
}

#[test]
fn without_a_policy_only_admins_reach_what_is_theirs() {
    let none = InForce::none();
    let system = key("/.quorumfs/policy");
    for (name, node, access) in
        [(ADMIN, false, Access::Write), ("web", false, Access::None), ("web", true, Access::Write)]
    {
        let rights = none.rights(Who { name, node });
        assert_eq!(rights.access(&system), access);
        assert_eq!(rights.access(&key("/anything")), Access::Write);
        assert_eq!(rights.admin, access == Access::Write);
    }
}

#[test]
fn a_policy_cannot_take_anything_from_nodes_or_the_policy_from_admins() {
    let text =
        "deny = [\"n1\"]\n[[rule]]\nwho = [\"a\"]\nadmin = true\nnone = [\"/\", \"/.quorumfs/policy\"]\n";
    let in_force = InForce::new(3, policy(text));
    let node = in_force.rights(Who { name: "n1", node: true });
    assert!(node.admin && node.covers(&Key::root(), Access::Write));
    assert!(in_force.rights(Who { name: "n1", node: false }).cut_off.is_some());
    let admin = in_force.rights(Who { name: "a", node: false });
    assert!(admin.covers(&key("/.quorumfs"), Access::Write));
    assert_eq!(admin.access(&key("/x")), Access::None);
}

#[test]
fn those_who_may_do_the_same_share_it() {
    let in_force = InForce::new(3, policy(EXAMPLE));
    let rights = |name| in_force.rights(Who { name, node: false });
    assert!(std::sync::Arc::ptr_eq(&rights("alice"), &rights("bob")));
    assert!(!std::sync::Arc::ptr_eq(&rights("web-1"), &rights("web-2")));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (text, line, column, word) in [
        ("deny = [\"a b\"]", 1, 9, "' '"),
        ("[[rule]]\nwho = [\"x\"]\nwrites = [\"/\"]\n", 3, 1, "writes"),
        ("[[rule]]\nread = [\"/\"]\n", 1, 1, "who"),
        ("[[rule]]\nwho = [\"x\"]\nread = [\"/ok\", \"nope\"]\n", 3, 16, "begin with a slash"),
        ("[[rule]]\nwho = [\"x\"]\nread = [\"/a/\"]\n", 3, 9, "empty component"),
        ("[[rule]]\nwho = [\"x\"]\nread = [\"/a/*\"]\n", 3, 9, "stands for all below"),
        ("[[rule]]\nwho = [\"x\"]\nread = [\"/a/{host}\"]\n", 3, 9, "{name}"),
        ("[[rule]]\nwho = [\"@ops\"]\n", 2, 8, "no group \"ops\""),
        ("[groups]\na = [\"@b\"]\n", 2, 6, "not other groups"),
        ("[[rule]]\nwho = [\"x\"]\nwrite = [\"/.quorumfs/x\"]\n", 3, 10, "admin = true"),
        ("[[rule]\n", 1, 8, ""),
        ("[[rule]]\nwho = \"x\"\n", 2, 7, "sequence"),
        ("rule = 1", 1, 8, ""),
        ("# \u{fc}ber\n\u{fc} = 1\n", 2, 1, ""),
    ] {
        let error = Policy::parse(text.as_bytes()).unwrap_err();
        assert_eq!((error.line, error.column), (line, column), "{text:?}: {error}");
        assert!(error.what.contains(word), "{text:?}: {error}");
        assert!(!error.to_string().contains('\n'), "one line: {error}");
    }
    let error = Policy::parse(b"# ok\n# \xff\n").unwrap_err();
    assert_eq!((error.line, error.column), (2, 3), "{error}");
    let error = Policy::parse("#".repeat(POLICY_BYTES_MAX + 1).as_bytes()).unwrap_err();
    assert!(error.what.contains("65536 is the most"), "{error}");
}

proptest! {
    #[test]
    fn any_bytes_are_a_policy_or_an_error_with_a_place(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = Policy::parse(&bytes) {
            prop_assert!(error.line >= 1 && error.column >= 1);
        }
    }

    #[test]
    fn nearly_policies_are_taken_or_placed(cut in 0..EXAMPLE.len(), insert in "[\\[\\]\"{}@*/a=\\n]{0,4}") {
        let text = format!("{}{insert}{}", &EXAMPLE[..cut], &EXAMPLE[cut..]);
        if let Err(error) = Policy::parse(text.as_bytes()) {
            prop_assert!((error.line as usize) <= text.lines().count() + 1, "{}", error);
        }
    }
}

/// A rule of the reference.
#[derive(Clone, Debug)]
struct Rule {
    who: Vec<String>,
    admin: bool,
    paths: Vec<(Access, String)>,
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let access = prop_oneof![Just(Access::None), Just(Access::Read), Just(Access::Write)];
    let path = (access, "(/[ab]){1,3}|/|/a/\\{name\\}");
    let who = prop_oneof!["[xy]", "[xy]\\*", "\\*", "@g"];
    let rule = (proptest::collection::vec(who, 1..3), any::<bool>(), proptest::collection::vec(path, 0..4));
    let rule = rule.prop_map(|(who, admin, paths)| Rule { who, admin, paths });
    proptest::collection::vec(rule, 0..5)
}

fn text_of(rules: &[Rule]) -> String {
    let mut text = "[groups]\ng = [\"x\", \"yy\"]\n".to_owned();
    for rule in rules {
        text += &format!("[[rule]]\nwho = {:?}\nadmin = {}\n", rule.who, rule.admin);
        for (word, access) in [("write", Access::Write), ("read", Access::Read), ("none", Access::None)] {
            let paths: Vec<_> = rule.paths.iter().filter(|(a, _)| *a == access).map(|(_, p)| p).collect();
            text += &format!("{word} = {paths:?}\n");
        }
    }
    text
}

/// Who is meant, spelled out.
fn is_meant(who: &str, name: &str) -> bool {
    match who {
        "@g" => ["x", "yy"].contains(&name),
        "*" => true,
        _ => match who.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => who == name,
        },
    }
}

proptest! {
    #[test]
    fn rules_give_what_the_documentation_says(rules in rules()) {
        let policy = policy(&text_of(&rules));
        for name in ["x", "y", "xx", "yy", "z"] {
            let rights = policy.rights(name);
            let mine: Vec<&Rule> =
                rules.iter().filter(|rule| rule.who.iter().any(|who| is_meant(who, name))).collect();
            prop_assert_eq!(rights.admin, mine.iter().any(|rule| rule.admin));
            for at in ["/", "/a", "/b", "/a/a", "/a/b", "/a/x", "/a/yy", "/a/b/a", "/b/b/b", "/a/z/q"] {
                let given = mine.iter().flat_map(|rule| &rule.paths).filter_map(|(access, path)| {
                    let path = key(&path.replace("{name}", name));
                    key(at).is_within(&path).then(|| (path.names().count(), *access))
                });
                // The deepest path decides; of several lines for it, the one that gives most.
                let expected = given.max().map_or(Access::None, |(_, access)| access);
                prop_assert_eq!(rights.access(&key(at)), expected, "{} {}\n{}", name, at, text_of(&rules));
            }
        }
    }
}
