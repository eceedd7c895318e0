//! Replays the corpus. `UPDATE=1 cargo test -p tracer fuzz` writes the part of it anew that is made of
//! tracer's own types.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use tracer_common::{AF_INET, dns, event, neigh, tcp};

use super::*;
use crate::{
    aggregate::Aggregate,
    engine::memory::Written,
    kernel::maps::Reading,
    pods::{Gone, Resolver, peers::Tally},
};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// The seeds of a target, and the inputs that once showed a mistake, by name.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = fuzz().join("seeds").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

/// One record of each kind, and of other lengths.
fn records() -> Vec<(String, Vec<u8>)> {
    let name = b"\x03api\x05local\0\0\x1c\0\x01";
    (event::KIND_NEIGHBOUR_OVERFLOW..=event::KIND_CONNECT_FAILURE)
        .map(|kind| {
            let rest = (0..600).map(|at: usize| name[at % name.len()]);
            let head = [kind.to_ne_bytes(), event::VERSION.to_ne_bytes()].concat();
            let bytes = head.into_iter().chain(rest).collect();
            (format!("kind-{kind}"), bytes)
        })
        .collect()
}

/// What an agent has written that had counted something of everything.
fn memory() -> Vec<u8> {
    let mut aggregate = Aggregate::new(Duration::from_mins(1), 10);
    let now = Instant::now();
    let dns = dns::Key {
        cgroup_id: 7,
        net_cookie: 5,
    };
    let tcp = tcp::Key {
        cgroup_id: 7,
        net_cookie: 5,
    };
    let mut reading = Reading::default();
    let key = neigh::Key {
        net_cookie: 5,
        family: AF_INET.into(),
        _pad: 0,
    };
    let mut value = neigh::Value::default();
    value.counts.created = 3;
    reading.neigh.push((key, value));
    let mut value = dns::Value::default();
    value.counts.queries = 4;
    reading.dns.push((dns, value));
    let mut value = tcp::Value::default();
    value.counts.results[1] = 2;
    reading.tcp.push((tcp, value));
    let resolver = Resolver::with(Vec::new());
    aggregate.update(reading.clone(), &resolver, now, 1);
    aggregate.update(reading, &resolver, now + crate::aggregate::ledger::HOLD, 31);
    let written = Written {
        since: SystemTime::UNIX_EPOCH + Duration::from_hours(1),
        epoch: now,
        highest: [5, 7],
        aggregate: &aggregate,
        tally: &Tally::default(),
        gone: &Gone::default(),
    };
    written.to_bytes().unwrap()
}

#[test]
fn the_corpus_passes_and_is_understood() {
    if std::env::var_os("UPDATE").is_some() {
        for (name, bytes) in records() {
            fs::write(fuzz().join("seeds/record").join(name), bytes).unwrap();
        }
        fs::write(fuzz().join("seeds/memory/made"), memory()).unwrap();
    }
    for target in TARGETS {
        let mut understood = Vec::new();
        for (path, bytes) in corpus(target.name) {
            let ran = std::panic::catch_unwind(|| (target.run)(&bytes));
            let ran = ran.unwrap_or_else(|_| panic!("{}: see above", path.display()));
            if ran {
                understood.push(path);
            }
        }
        let name = target.name;
        assert!(
            !understood.is_empty(),
            "{name}: nothing is understood; UPDATE=1 may help"
        );
        (target.run)(b"");
    }
}

#[test]
fn what_is_made_of_our_own_types_is_understood() {
    for (name, bytes) in records() {
        assert!(run("record", &bytes), "{name}");
    }
    assert!(run("memory", &memory()));
}

/// A name of a seed's pod in place of which a long one comes: longer than a format's width may be, and than a
/// line of events.
#[test]
fn names_of_any_length_find_room() {
    let long = "a".repeat(70_000);
    for (target, seed, name) in [
        ("snapshot", "overflow", "victim"),
        ("prometheus", "cluster", "cart"),
        ("prometheus", "cluster", "\"node\": \"a"),
        ("events", "overflow", "greedy"),
    ] {
        let text = fs::read_to_string(fuzz().join("seeds").join(target).join(seed)).unwrap();
        assert!(text.contains(name), "{target}/{seed} has no {name}");
        assert!(run(
            target,
            text.replace(name, &format!("{name}{long}")).as_bytes()
        ));
    }
}

#[test]
fn cargo_fuzz_has_every_target() {
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let binaries = manifest["bin"].as_array().unwrap();
    let names: Vec<&str> = binaries
        .iter()
        .map(|bin| bin["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, TARGETS.map(|target| target.name));
    for name in names {
        let path = fuzz().join(format!("fuzz_targets/{name}.rs"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(&format!("run(\"{name}\"")),
            "{}",
            path.display()
        );
    }
}
