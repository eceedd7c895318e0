//! A gossip cluster flaps because one node is sick: real serf, a real Prometheus, an agent for each node.

use std::time::Duration;

use tests::eventually;
use tests::gossip::Sickness;
use tests::incident::sick_node::{SICK, SickNode, TABLE, fall_ill, get_well};
use tests::incident::{Stage, Timeline, page};
use tests::wait::ensure;

fn the_sick_node_is_named(sickness: Sickness) {
    let scene = SickNode::start();
    let mut timeline = Timeline::of_test();
    let sick = fall_ill(&mut timeline, &scene, sickness);
    get_well(&mut timeline, sick);
    let took = timeline.assert_named();
    let blamed = scene.blamed();
    // Ground truth: it is whom the others' serf suspects.
    let suspicions = scene.gossip.suspicions();
    let most = suspicions.iter().max_by_key(|(_, n)| *n).expect("members");
    assert_eq!(most.0, SICK, "the lab failed: {suspicions:?}");
    if sickness == Sickness::Lossy {
        // What is lost on the way fails as an attempt, most often.
        assert!(scene.unanswered(SICK) <= scene.gossip.unanswered(SICK));
    } else {
        let waited = eventually(Duration::from_secs(15), || {
            let [shown, waited] = [scene.unanswered(SICK), scene.gossip.unanswered(SICK)];
            ensure(shown == waited, || format!("{shown}, serf says {waited}")).map(|()| waited)
        });
        assert!(waited >= 10, "the lab failed: {waited}");
        let sick = scene.gossip.member(SICK).address();
        assert!(blamed.iter().eq([&sick]), "{blamed:?}");
    }
    // Nobody else is accused, by then or later.
    assert_eq!(scene.odd(), [SICK], "{timeline:?}");
    eprintln!(
        "{}: named after {took:?}; {suspicions:?}\n{}",
        sickness.name(),
        timeline.text()
    );
    if sickness == Sickness::Paused {
        let why = [SICK, "n1"].map(|node| format!("tracer why  # on {node}"));
        page::renew("sick-node", &timeline, &[TABLE, &why[0], &why[1]]);
    }
}

#[test]
fn a_starved_node_is_named() {
    the_sick_node_is_named(Sickness::Starved);
}

#[test]
fn a_lossy_node_is_named() {
    the_sick_node_is_named(Sickness::Lossy);
}

#[test]
fn a_paused_node_is_named() {
    the_sick_node_is_named(Sickness::Paused);
}

/// The chart's rules as they are, with the minutes that they wait.
#[test]
#[ignore = "it waits for the minutes that alerts wait"]
fn the_alerts_on_a_paused_node_fire() {
    let scene = SickNode::start();
    let mut timeline = Timeline::of_test();
    let sick = fall_ill(&mut timeline, &scene, Sickness::Paused);
    for name in ["TracerManyNodesFailTowardsPeer", "TracerNodeOutlier"] {
        eventually(Duration::from_mins(8), || {
            let alerts = scene.alerts();
            let others = alerts.iter().find(|one| one.labels["node"] != SICK);
            assert!(others.is_none(), "{others:?} is accused");
            let fires = alerts
                .iter()
                .any(|one| one.labels["alertname"] == name && one.labels["alertstate"] == "firing");
            ensure(fires, || format!("{name} does not fire: {alerts:?}"))
        });
        timeline.now(Stage::Step, format!("alert {name} for {SICK}: firing"));
    }
    get_well(&mut timeline, sick);
    eprintln!("{timeline:?}");
    page::renew_part("sick-node", "timeline: alerts", &timeline, &[]);
}
