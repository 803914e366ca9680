//! The bytes of every message are fixed: what an earlier version wrote to a log, or sends while a
//! cluster is upgraded, has to be read for ever.
//!
//! `golden.txt` holds one line for each. A line that fails is a change of format: do not change the
//! line, put what is new at the end of its enum, and add a line for it. The lines of what is new are
//! printed by the failing test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;

use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::wire::{Hello, Reply, Request, WatchFrame};
use quorumfs_api::{Proposal, Record};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        write!(text, "{b:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|n| u8::from_str_radix(&text[n..n + 2], 16).unwrap()).collect()
}

fn golden() -> BTreeMap<String, String> {
    include_str!("golden.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').map(|(name, hex)| (name.to_string(), hex.to_string())).unwrap())
        .collect()
}

#[test]
fn messages_are_written_as_they_always_were() {
    let golden = golden();
    let mut wrong = String::new();
    let mut count = 0;
    for (name, bytes) in common::messages() {
        count += 1;
        let now = hex(&bytes);
        if golden.get(&name) != Some(&now) {
            writeln!(wrong, "{name} {now}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "these differ from golden.txt, or are not in it:\n{wrong}");
    assert_eq!(count, golden.len(), "golden.txt has a line for something that is no longer written");
}

/// Reads a frame and writes it again: the same bytes.
fn again<T: Serialize + DeserializeOwned>(kind: FrameKind, frame: &[u8]) -> Vec<u8> {
    codec::encode(kind, &codec::decode_whole::<T>(kind, frame).unwrap()).unwrap().to_vec()
}

#[test]
fn golden_messages_are_read() {
    for (name, text) in golden() {
        let frame = unhex(&text);
        let read = match name.split('/').next().unwrap() {
            "hello" => again::<Hello>(FrameKind::Hello, &frame),
            "write" | "call" => again::<Request>(FrameKind::Request, &frame),
            "reply" => again::<Reply>(FrameKind::Reply, &frame),
            "watch" => again::<WatchFrame>(FrameKind::Watch, &frame),
            "proposal" => again::<Proposal>(FrameKind::Entry, &frame),
            _ => again::<Record>(FrameKind::Row, &frame),
        };
        assert_eq!(read, frame, "{name}");
    }
}
