use super::*;

const RANGE: f64 = 300.0;

fn sample(labels: &[(&str, &str)], value: f64) -> Sample {
    let labels = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Sample {
        labels: labels.collect(),
        value,
    }
}

/// Nodes that are up and do a thousand lookups and connects each.
fn answer(nodes: &[&str]) -> Vec<Vec<Sample>> {
    let each = |make: &dyn Fn(&str) -> Sample| nodes.iter().map(|node| make(node)).collect();
    let target = |node: &str| {
        let labels = [("node", node), ("job", "tracer"), ("instance", node)];
        sample(&labels, 1.0)
    };
    let none = Vec::new;
    vec![
        each(&target),
        each(&target),
        none(),
        each(&|node| sample(&[("node", node)], 0.0)),
        none(),
        each(&|node| sample(&[("node", node)], 1000.0)),
        each(&|node| sample(&[("node", node), ("result", "established")], 1000.0)),
        each(&|node| sample(&[("node", node)], 5.0)),
        none(),
        none(),
    ]
}

fn judged(samples: Vec<Vec<Sample>>) -> Cluster {
    let answers = Answers {
        samples,
        warnings: Vec::new(),
    };
    Cluster::new(answers, RANGE).unwrap()
}

fn odd(cluster: &Cluster) -> Vec<&str> {
    let odd = cluster.nodes.iter().filter(|node| node.is_odd());
    odd.map(|node| node.name.as_str()).collect()
}

fn failed(node: &str, cause: &str, n: f64) -> Sample {
    sample(&[("node", node), ("cause", cause)], n)
}

fn towards(from: &str, to: &str, kind: &str, n: f64) -> Sample {
    sample(&[("node", from), ("peer", to), ("kind", kind)], n)
}

fn connect_failed(node: &str, n: f64) -> Sample {
    sample(&[("node", node), ("result", "timeout")], n)
}

const FOUR: [&str; 4] = ["a", "b", "c", "d"];

#[test]
fn a_clean_and_a_quiet_cluster_have_nobody_odd() {
    assert!(odd(&judged(answer(&FOUR))).is_empty());
    let mut quiet = answer(&FOUR);
    quiet[3..].fill(Vec::new());
    let cluster = judged(quiet.clone());
    assert!(odd(&cluster).is_empty());
    assert!(cluster.warnings[0].contains("--range"), "{cluster:?}");
    // Too few to tell, though all of them failed.
    quiet[4] = vec![failed("a", "no_answer", 4.0)];
    quiet[5] = vec![sample(&[("node", "a")], 4.0)];
    assert!(odd(&judged(quiet)).is_empty());
}

#[test]
fn of_a_thousand_nodes_one_is_found() {
    let names: Vec<String> = (0..1000).map(|i| format!("n{i:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut samples = answer(&names);
    samples[4] = names
        .iter()
        .enumerate()
        .map(|(i, node)| failed(node, "no_answer", (i % 9) as f64))
        .collect();
    samples[4].push(failed("n500", "server", 300.0));
    let cluster = judged(samples);
    assert_eq!(odd(&cluster), ["n500"]);
    let finding = &cluster.nodes[0].findings[0];
    assert_eq!(finding.signal, Signal::Dns);
    assert!(finding.score > 20.0 && finding.median < 1.0, "{finding:?}");
}

#[test]
fn who_is_failed_towards_is_odd_and_who_met_it_is_not() {
    let mut samples = answer(&FOUR);
    for node in ["a", "b", "d"] {
        samples[6].push(connect_failed(node, 300.0));
        samples[8].push(towards(node, "c", "connect", 290.0));
        // Their own loopback, and what is no node.
        samples[8].push(towards(node, node, "connect", 900.0));
        samples[8].push(towards(node, "10.0.0.9", "connect", 10.0));
    }
    let cluster = judged(samples);
    assert_eq!(odd(&cluster), ["c"]);
    let c = &cluster.nodes[0].towards;
    assert_eq!((c.failures, c.largest, c.nodes), (870.0, 290.0, 3));
}

#[test]
fn one_witness_accuses_nobody() {
    let mut samples = answer(&FOUR);
    samples[6].push(connect_failed("a", 400.0));
    for to in ["b", "c", "d"] {
        samples[8].push(towards("a", to, "connect", 130.0));
    }
    assert_eq!(odd(&judged(samples)), ["a"]);
}

#[test]
fn lookups_that_died_at_home_or_were_answered_accuse_nobody() {
    for cause in ["netfilter", "server"] {
        let mut samples = answer(&FOUR);
        for node in ["a", "b"] {
            samples[4].push(failed(node, cause, 300.0));
            samples[8].push(towards(node, "c", "dns", 300.0));
        }
        let cluster = judged(samples);
        assert!(!odd(&cluster).contains(&"c"), "{cause}");
    }
    // Two nodes whose own tables are full, and fail towards all.
    let mut samples = answer(&["a", "b", "c", "d", "e"]);
    for node in ["a", "b"] {
        samples[3].push(sample(&[("node", node)], 500.0));
        samples[6].push(connect_failed(node, 300.0));
        samples[8].push(towards(node, "c", "connect", 300.0));
    }
    assert_eq!(odd(&judged(samples)), ["a", "b"]);
}

#[test]
fn what_cannot_be_scraped_comes_first() {
    let mut samples = answer(&FOUR);
    let target = |node: &str| sample(&[("job", "tracer"), ("instance", node)], 0.0);
    samples[1][1].value = 0.0;
    // Never answered; and one that is a target no more.
    samples[1].push(target("new:metrics"));
    samples[1].remove(3);
    samples[3].push(sample(&[("node", "c")], 800.0));
    let cluster = judged(samples.clone());
    assert_eq!(odd(&cluster), ["b", "new", "c", "d"]);
    let states: Vec<State> = cluster.nodes.iter().map(|node| node.state).collect();
    let expected = [
        State::Down,
        State::Down,
        State::Up,
        State::NoTarget,
        State::Up,
    ];
    assert_eq!(states, expected);

    // Kubernetes knows that d was taken away, and of a node without an agent.
    let ready = ["a", "b", "c", "new", "bare"];
    samples[2] = ready
        .iter()
        .map(|node| sample(&[("node", node)], 1.0))
        .collect();
    let cluster = judged(samples);
    assert_eq!(odd(&cluster), ["b", "new", "c", "bare"]);
    assert_eq!(cluster.nodes[0].ready, Some(true));
}

#[test]
fn nothing_known_is_an_error() {
    let answers = Answers {
        samples: vec![Vec::new(); 10],
        warnings: Vec::new(),
    };
    let error = Cluster::new(answers, RANGE).unwrap_err().to_string();
    assert!(error.contains("tracer_build_info"), "{error}");
}

/// Whoever everybody talks to is sent most segments again. Where its receiver fails otherwise, they excuse who
/// sent them.
#[test]
fn segments_sent_again_accuse_nobody() {
    let mut answers = answer(&FOUR);
    answers[7] = FOUR
        .map(|node| sample(&[("node", node)], if node == "c" { 5.0 } else { 2000.0 }))
        .to_vec();
    answers[7][3].value = 5.0;
    let resent = ["a", "b"].map(|from| towards(from, "c", "retransmit", 2000.0));
    answers[8] = resent.to_vec();
    let cluster = judged(answers.clone());
    assert_eq!(odd(&cluster), ["a", "b"]);
    assert!(cluster.nodes.iter().all(|node| node.score <= ODD));
    let unanswered = ["a", "b", "d"].map(|from| towards(from, "c", "unanswered", 20.0));
    answers[8].extend(unanswered);
    let cluster = judged(answers);
    assert_eq!(odd(&cluster), ["c"]);
    let c = &cluster.nodes[0].towards;
    assert_eq!((c.failures, c.by_kind["retransmit"]), (60.0, 4000.0));
}

/// Who does not answer is accused; nothing is taken off what those who waited have otherwise.
#[test]
fn connections_without_an_answer_accuse_who_does_not_answer() {
    let mut answers = answer(&FOUR);
    answers[7] = FOUR
        .map(|node| sample(&[("node", node)], if node == "a" { 400.0 } else { 1.0 }))
        .to_vec();
    answers[8] = ["a", "b", "d"]
        .map(|from| towards(from, "c", "unanswered", 200.0))
        .to_vec();
    let cluster = judged(answers);
    assert_eq!(odd(&cluster), ["c", "a"]);
    let signals: Vec<Signal> = cluster.nodes[..2]
        .iter()
        .flat_map(|node| node.findings.iter().map(|finding| finding.signal))
        .collect();
    assert_eq!(signals, [Signal::Towards, Signal::Retransmit]);
}

/// A thousand times the traffic is a thousand times the segments sent again: nodes that let the world in are
/// no match for one that others fail towards.
#[test]
fn busy_nodes_stand_below_the_sick_one() {
    let names: Vec<String> = (1..=50).map(|i| format!("n{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut answers = answer(&names);
    for busy in &mut answers[7][..3] {
        busy.value = 60_000.0;
    }
    let quiet = judged(answers.clone());
    assert_eq!(odd(&quiet), ["n01", "n02", "n03"]);
    assert!(quiet.nodes.iter().all(|node| node.score <= ODD));

    answers[8] = ["n04", "n05", "n06", "n07", "n08", "n09"]
        .map(|from| towards(from, "n20", "unanswered", 3.0))
        .to_vec();
    let cluster = judged(answers);
    assert_eq!(odd(&cluster), ["n20", "n01", "n02", "n03"]);
    assert!(cluster.nodes[0].score > ODD);
    // Of a node that fails too they are the last thing told.
    let mut both = answer(&FOUR);
    both[7][0].value = 60_000.0;
    both[6].push(connect_failed("a", 300.0));
    let cluster = judged(both);
    let signals = cluster.nodes[0].findings.iter().map(|f| f.signal);
    assert!(signals.eq([Signal::Connect, Signal::Retransmit]));
}
