//! The views, drawn on a terminal that is only memory.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::super::nodes::{Attempts, Cluster, Finding, Signal, State as NodeState, Towards};
use super::super::super::pods::{Dead, Pod};
use super::super::state::Update;
use super::*;

fn theme(unicode: bool) -> Theme {
    Theme {
        color: true,
        unicode,
        old: false,
    }
}

fn sick() -> Node {
    let finding = Finding {
        signal: Signal::Towards,
        figure: 290.0,
        median: 0.0,
        score: 145.0,
        alone: true,
    };
    Node {
        name: "worker-with-a-rather-long-name-7".into(),
        table_used: Some(0.95),
        towards: Towards {
            failures: 435.0,
            largest: 145.0,
            nodes: 3,
            by_kind: [("connect".to_owned(), 435.0)].into(),
        },
        findings: vec![finding],
        score: 145.0,
        ..Node::default()
    }
}

fn state() -> State {
    let down = Node {
        name: "down\u{1b}[31m".into(),
        state: NodeState::Down,
        ready: Some(true),
        ..Node::default()
    };
    let well = (0..50).map(|i| Node {
        name: format!("worker-{i}"),
        ..Node::default()
    });
    let cluster = Cluster {
        nodes: [down, sick()].into_iter().chain(well).collect(),
        warnings: vec!["one store did not answer".into()],
        ..Cluster::default()
    };
    let mut state = State::default();
    state.base = "http://prometheus:9090".into();
    state.range = Duration::from_mins(5);
    state.update(Update::Cluster(Box::new(cluster)));
    state
}

fn open() -> State {
    let mut state = state();
    state.scroll(1);
    state.open_selected();
    let mut dns = Attempts {
        all: 100.0,
        ..Attempts::default()
    };
    dns.count("no_answer", 40.0);
    let pod = |i: usize| Pod {
        namespace: "shop".into(),
        pod: format!("cart-{i}"),
        dns: dns.clone(),
        ..Pod::default()
    };
    let dead = Dead {
        destination: "10.9.9.9:80".into(),
        attempts: 12.0,
        mostly_by: "shop/cart-1".into(),
        last_owner: "pay/db-0 (gone, was on n4)".into(),
    };
    state.update(Update::Pods(Box::new(NodePods {
        node: sick().name,
        failing: (0..30).map(pod).collect(),
        well: 3,
        holders: vec![("shop/scanner".into(), 900.0)],
        dead: vec![dead],
        warnings: Vec::new(),
    })));
    state
}

fn screen(state: &State, width: u16, height: u16, unicode: bool) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, state, theme(unicode)))
        .unwrap();
    let buffer = terminal.backend().buffer().clone();
    let rows = buffer.content.chunks(usize::from(width.max(1)));
    let text = rows.map(|row| {
        row.iter()
            .map(ratatui::buffer::Cell::symbol)
            .collect::<String>()
            + "\n"
    });
    text.collect()
}

#[test]
fn any_size_can_be_drawn() {
    let mut help = state();
    help.help = true;
    let empty = State::default();
    for state in [state(), open(), help, empty] {
        for (width, height) in [
            (0, 0),
            (1, 1),
            (40, 10),
            (41, 11),
            (80, 24),
            (300, 5),
            (20, 90),
        ] {
            screen(&state, width, height, true);
        }
    }
}

#[test]
fn odd_nodes_and_their_reasons_show() {
    let text = screen(&state(), 160, 30, true);
    for words in [
        "52 nodes, 2 odd, the oddest first",
        "cannot be scraped, though Kubernetes calls the node Ready",
        "3 other nodes fail towards it: 435 connects in 5m; the rest 0",
        "warning: one store did not answer",
        "✖ down\\u{1b}[31m",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    assert!(text.contains(" 95  "), "{text}");
}

#[test]
fn without_unicode_all_is_ascii() {
    for state in [state(), open()] {
        let text = screen(&state, 100, 30, false);
        assert!(text.is_ascii(), "{text}");
    }
}

#[test]
fn an_open_node_has_pods_and_dead_destinations() {
    let text = screen(&open(), 120, 50, true);
    for words in [
        "30 pods fail, 3 are well",
        "most neighbour entries: shop/scanner 900",
        "shop/cart-29",
        "no_answer",
        "10.9.9.9:80",
        "last pay/db-0 (gone, was on n4)",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    // On a small screen the end is reached by scrolling, and not passed.
    let mut small = open();
    small.scroll(1000);
    let text = screen(&small, 80, 24, true);
    assert!(text.contains("last pay/db-0"), "{text}");
}
