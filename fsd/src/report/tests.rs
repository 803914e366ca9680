#![allow(clippy::unwrap_used)]

use super::*;

fn report() -> Report {
    let member = |id: u64| Member {
        id,
        name: format!("n{id}"),
        addr: format!("10.0.0.{id}:7400"),
        voter: id < 3,
        leader: id == 1,
    };
    Report {
        version: "1.2.3".into(),
        at: 1_700_000_100_000,
        mount: Mounted {
            mountpoint: "/kv".into(),
            prefix: "/services".into(),
            since: 1_700_000_000_000,
            read_only: true,
            ..Mounted::default()
        },
        link: Link { node: Some("10.0.0.2:7400".into()), since: 1_700_000_098_000, problem: None },
        cluster: Cluster {
            quorum: true,
            said: Some(Said {
                term: 7,
                bytes: 3 << 20,
                members: (1..=3).map(member).collect(),
                ..Said::default()
            }),
            ..Cluster::default()
        },
        mirror: Mirror { revision: 42, lag: Some(0), keys: 9 },
        ..Report::default()
    }
}

/// The value of a line of `status`.
fn value(report: &Report, label: &str) -> String {
    let text = File::Status.content(report);
    let line =
        text.lines().find(|line| line.starts_with(label)).unwrap_or_else(|| panic!("no {label} in {text}"));
    line[label.len()..].trim().to_string()
}

#[test]
fn a_supervisor_is_named_where_there_is_one() {
    let mut report = report();
    assert!(!File::Status.content(&report).contains("supervisor"));
    report.daemon.supervisor = Some(4711);
    assert_eq!(value(&report, "supervisor"), "pid 4711");
    let json: serde_json::Value = serde_json::from_str(&File::StatusJson.content(&report)).unwrap();
    assert_eq!(json["daemon"]["supervisor"], 4711);
}

#[test]
fn every_file_has_a_name_and_a_number_of_its_own() {
    for file in File::ALL {
        assert_eq!(File::named(file.name().as_bytes()), Some(file));
        assert_eq!(File::numbered(file.node()), Some(file));
        assert!(is_own(file.node()) && file.node() != DIR);
        let content = file.content(&report());
        assert!(content.ends_with('\n'), "{}: {content:?}", file.name());
    }
    assert_eq!(File::named(b"policy"), None);
    assert!(is_own(DIR) && !is_own(1) && !is_own(DIR - 1) && !is_own(1 << 63));
}

#[test]
fn a_person_is_told_what_is_the_case() {
    let report = report();
    assert_eq!(value(&report, "mounted on"), "/kv, since 2023-11-14T22:13:20Z, read-only");
    assert_eq!(value(&report, "connected to"), "10.0.0.2:7400, for 2s");
    assert_eq!(value(&report, "leader"), "n1 at 10.0.0.1:7400");
    assert_eq!(value(&report, "revision"), "42, lag 0");
    assert_eq!(value(&report, "store"), "3.0 MiB of 0 B");
    assert_eq!(File::Members.content(&report).lines().last(), Some("3 n3 10.0.0.3:7400 learner"));
    assert_eq!(File::Leader.content(&report), "n1 10.0.0.1:7400\n");
}

#[test]
fn a_cluster_that_is_away_is_said_to_be() {
    let lost = Cluster {
        without_quorum_since: Some(1_700_000_088_000),
        problem: Some("nobody answers".into()),
        ..Cluster::default()
    };
    let report = Report { cluster: lost, mirror: Mirror { lag: None, ..Mirror::default() }, ..report() };
    let said = "no, the leader was last heard of 12s ago, at 2023-11-14T22:14:48Z: nobody answers";
    assert_eq!(value(&report, "quorum"), said);
    assert_eq!(value(&report, "leader"), "none");
    assert_eq!(value(&report, "revision"), "42, lag unknown".replace("42", "0"));
    assert_eq!(File::Lag.content(&report), "unknown\n");
    assert_eq!(File::Members.content(&report), "", "nobody is known: no line");
}

#[test]
fn a_program_reads_json() {
    let json: serde_json::Value = serde_json::from_str(&File::StatusJson.content(&report())).unwrap();
    assert_eq!(json["mirror"]["revision"], 42);
    assert_eq!(json["cluster"]["said"]["members"][0]["leader"], true);
    assert_eq!(json["session"], serde_json::Value::Null);
}
