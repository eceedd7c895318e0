use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{aggregate::dead::DeadEndpoint, kernel::conntrack::Counters, pods::Tenant};

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
        mechanism: String::new(),
        not_seen: String::new(),
        reason: String::new(),
        verified: Vec::new(),
    });
    render_it(&View {
        node: "n1",
        dns_ports: &[53],
        watched: std::time::Duration::from_secs(1),
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
        state_resets: 0,
    });
}

/// Type and label names of each metric, as the page has them.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let page = include_str!("../../../../docs/metrics.md");
    let mut metrics = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `tracer_")) {
        let cells: Vec<_> = line.split('|').collect();
        let names: Vec<_> = cells[1]
            .split('`')
            .filter(|word| word.starts_with("tracer_"))
            .collect();
        let (kinds, labels) = cells[2].split_once(';').unwrap_or((cells[2], ""));
        // `counter, *kernel*`, `gauge 0/1`: the first word, and no remarks.
        let kinds: Vec<_> = kinds
            .split(',')
            .filter_map(|kind| kind.split_whitespace().next())
            .filter(|kind| !kind.starts_with('*'))
            .collect();
        assert!(
            kinds.len() == 1 || kinds.len() == names.len(),
            "types of {names:?}: {kinds:?}"
        );
        let labels = labels.split(',').filter_map(|l| l.trim().split('=').next());
        let labels: BTreeSet<_> = labels.filter(|label| !label.is_empty()).collect();
        for (name, kind) in names.into_iter().zip(kinds.into_iter().cycle()) {
            let of_pod: &[_] = if name.starts_with("tracer_pod_") {
                &["namespace", "pod"]
            } else {
                &[]
            };
            let labels = labels.iter().chain(of_pod).map(ToString::to_string);
            let what = (kind.to_owned(), labels.collect());
            assert!(metrics.insert(name.to_owned(), what).is_none(), "{name}");
        }
    }
    metrics
}

#[test]
fn the_page_and_the_program_name_the_same_metrics() {
    view_with(|view| {
        let mut exposed = BTreeMap::new();
        let text = render(view, Format::Text).unwrap();
        let mut kind = "";
        for line in text.lines().filter(|line| line.contains("tracer_")) {
            if line.starts_with('#') {
                kind = line.rsplit_once(' ').unwrap().1;
                continue;
            }
            let (name, labels) = line.split_once('{').unwrap();
            let name = match kind {
                "histogram" | "summary" => name
                    .trim_end_matches("_bucket")
                    .trim_end_matches("_sum")
                    .trim_end_matches("_count"),
                _ => name,
            };
            let labels = labels
                .split("\",")
                .filter_map(|l| Some(l.split_once('=')?.0));
            let labels: BTreeSet<_> = labels
                .filter(|label| !["node", "le"].contains(label))
                .map(ToOwned::to_owned)
                .collect();
            let what = (kind.to_owned(), labels);
            let before = exposed.insert(name.to_owned(), what.clone());
            assert!(before.is_none_or(|b| b == what), "labels of {name} differ");
        }
        assert_eq!(documented(), exposed);
    });
}

#[test]
fn infinity_is_what_both_formats_call_it() {
    view_with(|view| {
        for format in [Format::Text, Format::OpenMetrics] {
            let text = render(view, format).unwrap();
            assert!(text.contains("_until_full_seconds{node=\"n1\",family=\"ipv4\"} +Inf\n"));
        }
    });
}

#[test]
fn both_formats_have_the_same_samples() {
    view_with(|view| {
        let samples = |format| {
            let text = render(view, format).unwrap();
            text.lines()
                .filter(|line| !line.starts_with('#') && !line.starts_with("process_"))
                .map(|line| {
                    line.replace("le=\"1.0\"", "le=\"1\"")
                        .replace("le=\"5.0\"", "le=\"5\"")
                })
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(samples(Format::Text), samples(Format::OpenMetrics));
    });
}

#[test]
fn every_series_carries_the_node_and_is_there_once() {
    view_with(|view| {
        let text = render(view, Format::Text).unwrap();
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
        let owner = Owner {
            namespace: "a\"} 1\nforged_total 7".to_owned(),
            pod: "b\\".to_owned(),
            uid: None,
        };
        picture.owners.insert(owner.into(), figures);
        let view = View {
            picture: &picture,
            ..*view
        };
        for format in [Format::Text, Format::OpenMetrics] {
            let text = render(&view, format).unwrap();
            assert!(!text.lines().any(|line| line.starts_with("forged")));
            let escaped = r#"namespace="a\"} 1\nforged_total 7",pod="b\\","#;
            assert!(text.contains(escaped), "{text}");
        }
    });
}

/// Series of a pod with these figures, each once in both formats.
fn series_of(figures: Figures) -> usize {
    let mut series = 0;
    view_with(|view| {
        let mut picture = Picture::default();
        let owner = Owner::new("shop", "till");
        picture.owners.insert(owner, figures);
        let view = View {
            picture: &picture,
            ..*view
        };
        let [text, open] = [Format::Text, Format::OpenMetrics].map(|format| {
            let text = render(&view, format).unwrap();
            text.lines()
                .filter(|line| line.contains(r#"pod="till""#) && !line.contains("address="))
                .count()
        });
        assert_eq!(text, open);
        series = text;
    });
    series
}

/// The numbers are in docs/metrics.md.
#[test]
fn a_pod_has_as_many_series_as_the_page_says() {
    let mut figures = Figures {
        neigh_ratio: Some(0.0),
        dns_ratio: Some(0.0),
        connect_ratio: Some(0.0),
        ..Figures::default()
    };
    figures.neigh[0].created = 1;
    figures.entries[0] = 1;
    figures.dns.queries = 1;
    figures.dns.outcomes[0] = 1;
    figures.tcp.results[0] = 1;
    assert_eq!(series_of(figures.clone()), 20, "one family");
    figures.neigh[1].created = 1;
    assert_eq!(series_of(figures.clone()), 23, "both");
    figures.dns.outcomes[8] = 1;
    figures.dns.causes[0] = 1;
    figures.tcp.results[1] = 1;
    for counts in &mut figures.neigh {
        counts.table_full = 1;
    }
    assert_eq!(series_of(figures.clone()), 51, "failing in every way");
    figures.dns.received = 1;
    assert_eq!(series_of(figures), 62, "a DNS server too");
}
