use std::collections::BTreeSet;

use super::*;
use crate::{
    aggregate::dead::DeadEndpoint,
    kernel::{conntrack::Counters, load::mechanism},
    pods::Tenant,
};

fn view_with(render_it: impl FnOnce(&View<'_>)) {
    let mut figures = Figures {
        neigh_ratio: Some(0.5),
        dns_ratio: Some(0.25),
        ..Figures::default()
    };
    figures.neigh[0].created = 1;
    figures.neigh[0].table_full = 1;
    figures.neigh[0].evictions[0] = 1;
    figures.dns.queries = 4;
    figures.dns.started = 4;
    figures.dns.outcomes[0] = 3;
    figures.dns.outcomes[8] = 1;
    figures.dns.buckets[2] = 3;
    figures.dns.received = 1;
    figures.dns.served[0] = 1;
    figures.tcp.results[1] = 3;
    figures.drops.insert(2, 1);
    figures.dead_attempts.insert(Some("10.0.0.9:80".into()), 3);
    let mut picture = Picture {
        node: figures.clone(),
        drops: vec![(2, 1)],
        dead_endpoints: vec![DeadEndpoint {
            destination: "10.0.0.9:80".to_owned(),
            tenant: Tenant::default(),
            since: std::time::Instant::now(),
            attempts: 3,
        }],
        ..Picture::default()
    };
    picture.owners.insert(Owner::new("shop", "cart"), figures);
    let hooks = Hook::ALL.map(|hook| HookStatus {
        hook,
        state: State::Attached,
        mechanism: mechanism(hook),
        reason: String::new(),
        verified: Vec::new(),
    });
    render_it(&View {
        node: "n1",
        dns_ports: &[53],
        picture: &picture,
        tables: [Some(NeighbourTable::default()); 2],
        entries: [Some(1); 2],
        peaks: [2; 2],
        seconds_until_full: [f64::INFINITY; 2],
        conntrack: Some(Conntrack {
            counters: Some(Counters::default()),
            ..Conntrack::default()
        }),
        hooks: &hooks,
        misses: &[(Hook::Neigh, 0)],
        fillings: &[Filling {
            map: "DNS",
            entries: 1,
            max_entries: 2,
            full: 0,
        }],
        sources: &[SourceStatus {
            name: "local",
            pods: 1,
            age: Some(std::time::Duration::from_secs(1)),
            reason: String::new(),
            idle: false,
        }],
        peers: &[(tracer_common::peers::Kind::Dns, "n2".to_owned(), 3)],
        gone: &[([10, 0, 0, 2].into(), Owner::new("shop", "till"))],
        reasons: &[(2, "neigh_failed".to_owned())],
        read_errors: 0,
        undecodable: 0,
    });
}

#[test]
fn the_page_and_the_program_name_the_same_metrics() {
    let page = include_str!("../../../../docs/metrics.md");
    let documented: BTreeSet<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `tracer_"))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split('`'))
        .filter(|word| word.starts_with("tracer_"))
        .collect();
    view_with(|view| {
        let text = String::from_utf8(render(view).unwrap()).unwrap();
        let exported: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .filter(|name| name.starts_with("tracer_"))
            .collect();
        assert_eq!(documented, exported);
        assert!(text.contains("_until_full_seconds{node=\"n1\",family=\"ipv4\"} +Inf\n"));
    });
}

#[test]
fn every_series_carries_the_node_and_is_there_once() {
    view_with(|view| {
        let text = String::from_utf8(render(view).unwrap()).unwrap();
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, _) = line.rsplit_once(' ').unwrap();
            assert!(series.contains("node=\"n1\""), "{line}");
            assert!(seen.insert(series.to_owned()), "twice: {line}");
        }
    });
}

#[test]
fn hostile_names_stay_inside_their_label() {
    view_with(|view| {
        let mut picture = view.picture.clone();
        let figures = picture.node.clone();
        picture
            .owners
            .insert(Owner::new("a\"} 1\nforged_total 7", "b\\"), figures);
        let text = render(&View {
            picture: &picture,
            ..*view
        })
        .unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.lines().any(|line| line.starts_with("forged")));
    });
}
