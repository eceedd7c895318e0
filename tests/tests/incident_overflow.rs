//! The neighbour table overflows at the kernel's default limits: tracer warns before, counts exactly
//! while it lasts, names who holds and who is hit and what to do, and says when it is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tests::dns::truth::{CAUSES, check_node};
use tests::incident::overflow::callers::Tally;
use tests::incident::overflow::town::{BRIDGE, Resident};
use tests::incident::overflow::{DEFAULT_LIMITS, Overflow};
use tests::incident::{Stage, Timeline, page};
use tests::neigh::table_fulls;
use tests::point::{NODE_CREATES, POD_CREATES, POD_ENTRIES};
use tests::process::{run, tracer};
use tests::wait::ensure;
use tests::{Family, Lab, Metrics, Thresholds, eventually};

const FULL: [(&str, &str); 2] = [("family", "ipv4"), ("result", "table_full")];
const FAILURES: &str = "tracer_pod_dns_failures_total";
/// The agent's window.
const WINDOW: Duration = Duration::from_secs(20);

fn count(metrics: &Metrics, name: &str, one: &Resident, more: &[(&str, &str)]) -> u64 {
    metrics.count(name, &[&one.listed.labels()[..], more].concat())
}

/// Warned, with a forecast that fell and was right, before anything failed.
fn check_omen(scene: &Overflow, timeline: &Timeline) {
    let failure = timeline.reached(Stage::Failure).expect("it failed");
    let omen = timeline.between(Stage::Omen, Stage::Failure);
    eprintln!("the omen came {omen:?} before the first refusal");
    let finite: Vec<_> = scene
        .forecasts
        .iter()
        .filter(|one| one.at < failure && one.seconds.is_finite() && one.entries >= 512.0)
        .collect();
    assert!(finite.len() >= 5, "{:?}", scene.forecasts);
    let [first, last] = [finite[0], finite[finite.len() - 1]];
    assert!(
        last.seconds < 0.5 * first.seconds,
        "the forecast fell from {} s to {} s",
        first.seconds,
        last.seconds
    );
    for one in finite {
        let left = (failure - one.at).as_secs_f64();
        // The load grows in steps of a second.
        assert!(
            (one.seconds - left).abs() < 3.0 + 0.5 * left,
            "forecast {one:?}, and {left} s were left"
        );
    }
}

/// The ratio of the window is that of the lookups that ended in it, give or take a second or two at
/// its ends. On a busy machine a client learns of its lookup's end later than the kernel does.
fn check_ratio(scene: &Overflow) {
    let metrics = scene.agent.metrics();
    let at = Instant::now();
    let shown = metrics
        .get("tracer_node_failure_ratio", &[("signal", "dns")])
        .expect("lookups ended");
    let learnt = at + Duration::from_secs(1);
    std::thread::sleep(learnt - at);
    let seen = scene.callers.seen();
    let mut possible: Vec<f64> = Vec::new();
    for early in 0..=8 {
        for late in 0..=12 {
            let step = Duration::from_millis(250);
            let before = |moment: Instant, time: Duration| {
                let earlier = moment.checked_sub(time);
                earlier.expect("the lab is older")
            };
            let begin = before(at, WINDOW + step * early);
            let (failed, all) = seen.between(begin, before(learnt, step * late));
            possible.push(failed as f64 / all as f64);
        }
    }
    let lowest = possible.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = possible.iter().copied().fold(0.0, f64::max);
    eprintln!("failure ratio {shown:.4}; the clients saw {lowest:.4} to {highest:.4}");
    assert!(
        shown >= lowest - 1e-9 && shown <= highest + 1e-9,
        "failure ratio {shown}, the clients saw {lowest} to {highest}"
    );
}

/// Everything that each pod was refused, and every lookup of it that died, and of what.
fn check_exact(scene: &mut Overflow) {
    let seen = scene.callers.seen();
    let refused_answers = scene.dns.refused();
    let refused = scene.refused();
    let fulls = table_fulls(Family::V4) - scene.fulls;
    let traced: u64 = refused.values().map(|(all, _)| all).sum();
    assert_eq!(
        traced, fulls,
        "the lab failed: the kernel's trace and its counter"
    );
    let unseen: u64 = refused.values().map(|(_, unseen)| unseen).sum();
    eprintln!(
        "{fulls} refused, {unseen} shown to no program; lookups: {:?}",
        seen.total()
    );
    let town = &scene.town;
    let by_device = |device: &str| refused.get(device).copied().unwrap_or_default();
    let near = |what: &str, shown: u64, (truth, unseen): (u64, u64)| {
        ensure(shown <= truth && shown + unseen >= truth, || {
            format!("{what}: {shown}, not {truth} ({unseen} unseen)")
        })
    };
    scene.events.listen(Duration::from_secs(1));
    let scene = &*scene;
    eventually(Duration::from_secs(15), || {
        let metrics = scene.agent.metrics();
        near(
            "the node",
            metrics.count(NODE_CREATES, &FULL),
            (fulls, unseen),
        )?;
        // What passes through the node is charged to its source.
        let node = [("namespace", "kube-system"), ("pod", "node")];
        let node = metrics.count(POD_CREATES, &[&node[..], &FULL].concat());
        let outside = count(&metrics, POD_CREATES, &town.outside, &FULL);
        near("the node's own", node + outside, by_device(BRIDGE))?;
        for one in town.all().filter(|one| one.address != town.outside.address) {
            let shown = count(&metrics, POD_CREATES, one, &FULL);
            near(&one.name(), shown, by_device(&one.device))?;
        }
        for (one, tally) in town.calm.iter().chain(&town.pods).zip(&seen.tallies) {
            let Tally {
                asked,
                answered,
                failed,
                no_entry,
            } = *tally;
            let lookups = |outcome| {
                let outcome = [("outcome", outcome)];
                count(&metrics, "tracer_pod_dns_lookups_total", one, &outcome)
            };
            let shown = (
                count(&metrics, "tracer_pod_dns_queries_total", one, &[]),
                lookups("noerror"),
                lookups("timeout"),
                count(
                    &metrics,
                    FAILURES,
                    one,
                    &[("cause", "neighbour_table_full")],
                ),
            );
            let of_answers = refused_answers.get(&one.address).copied().unwrap_or(0);
            let saw = (asked, answered, failed, no_entry + of_answers);
            let all = CAUSES.map(|c| (c, count(&metrics, FAILURES, one, &[("cause", c)])));
            ensure(shown == saw || unseen > 0 && shown.2 == saw.2, || {
                let told = scene.events.seen.iter();
                let told = told.filter(|e| e.is("dns_failure", &one.listed.name));
                let ids: Vec<_> = told.map(|e| e.json["id"].to_string()).collect();
                let pending = metrics.count("tracer_node_dns_pending", &[]);
                let name = one.name();
                format!("{name}: {shown:?}, the client saw {saw:?}; {all:?} {pending} {ids:?}")
            })?;
        }
        check_node(&metrics)
    });
}

/// Who holds most, by the kernel's own list.
fn check_holders(scene: &Overflow) {
    eventually(Duration::from_secs(5), || {
        let truth = scene.town.holders();
        let metrics = scene.agent.metrics();
        let mut shown: Vec<(String, u64)> = metrics
            .matching(POD_ENTRIES, &[("family", "ipv4")])
            .filter(|(labels, _)| {
                labels["namespace"] != "(netns)" && labels["namespace"] != "(host)"
            })
            .map(|(labels, held)| {
                (
                    format!("{}/{}", labels["namespace"], labels["pod"]),
                    held as u64,
                )
            })
            .collect();
        shown.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let most = |all: Vec<String>| all.into_iter().take(3).collect::<BTreeSet<_>>();
        let (saw, says) = (
            most(truth.iter().map(|one| one.0.clone()).collect()),
            most(shown.iter().map(|one| one.0.clone()).collect()),
        );
        ensure(saw == says, || format!("{says:?} hold most, not {saw:?}"))?;
        let verdict = scene.agent.why(None);
        let top = verdict["findings"][0]["figures"]["top_holder"].as_str();
        ensure(top.is_some_and(|top| saw.contains(top)), || {
            format!("not one of {saw:?}: {verdict:#}")
        })
    });
}

/// The sufferers stand above in the table of `tracer top`; they are those whose lookups failed most.
fn check_sufferers(scene: &Overflow) {
    let mut command = tracer();
    command.args([
        "top",
        "--once",
        "--sort",
        "failures",
        "--agent",
        &scene.agent.address(),
    ]);
    let table = run(&mut command, Duration::from_secs(10)).stdout;
    let mut rows = table
        .lines()
        .skip_while(|line| !line.starts_with("NAMESPACE"));
    rows.next();
    let named: Vec<&str> = rows
        .filter_map(|row| row.split_whitespace().nth(1))
        .collect();
    let seen = scene.callers.seen();
    let residents = || {
        scene
            .town
            .calm
            .iter()
            .chain(&scene.town.pods)
            .zip(&seen.tallies)
    };
    let failed = |name: &str| {
        let mut found = residents().filter(|(one, _)| one.listed.name == name);
        found.next().map_or(0, |(_, tally)| tally.failed)
    };
    let mut order: Vec<u64> = residents().map(|(_, tally)| tally.failed).collect();
    order.sort_unstable_by(|a, b| b.cmp(a));
    let shown: Vec<u64> = named.iter().take(20).map(|name| failed(name)).collect();
    assert_eq!(shown, order[..20], "failures in the order of\n{table}");
}

/// Who needs no entry fails nowhere, whatever is looked at.
fn check_calm(scene: &Overflow) {
    let metrics = scene.agent.metrics();
    for calm in &scene.town.calm {
        let failed: f64 = [FAILURES, "tracer_pod_drops_total"]
            .map(|name| metrics.sum(name, &calm.listed.labels()))
            .iter()
            .sum();
        let refused = count(&metrics, POD_CREATES, calm, &FULL);
        assert!(failed == 0.0 && refused == 0, "{}", calm.name());
        let verdict = scene.agent.why(Some(&calm.name()));
        assert_eq!(verdict["health"], "fine", "{verdict:#}");
    }
    let accused = scene.events.seen.iter().find(|event| {
        scene
            .town
            .calm
            .iter()
            .any(|calm| event.json["pod"]["name"] == calm.listed.name)
    });
    assert!(accused.is_none(), "{accused:?}");
}

#[test]
fn pods_arrive_until_the_table_is_full_and_the_advice_ends_it() {
    let mut timeline = Timeline::of_test();
    let mut lab = Lab::new();
    let node = Arc::clone(&lab.hub);
    let limits = Thresholds::set(lab.lock(), DEFAULT_LIMITS);
    let mut scene = Overflow::new(&node, &mut timeline);
    scene.fill(&mut timeline);
    check_omen(&scene, &timeline);
    eprintln!("named after {:?}", timeline.assert_named());
    let took = timeline.between(Stage::Failure, Stage::Named);
    eprintln!("and {took:?} after the first refusal");

    scene.suffer(&mut timeline);
    scene.ask(&mut timeline);
    check_ratio(&scene);
    check_holders(&scene);
    let verdict = scene.agent.why(None);
    assert_eq!(verdict["health"], "sick", "{verdict:#}");
    assert_eq!(verdict["findings"][0]["rule"], "table-full", "{verdict:#}");

    // Nobody asks while figures are compared.
    scene.callers.pause(true);
    eventually(Duration::from_secs(10), || {
        let left = scene.callers.under_way();
        ensure(left == 0, || format!("{left} lookups are under way"))
    });
    let begun = Instant::now();
    check_exact(&mut scene);
    eprintln!("compared after {:?}", begun.elapsed());
    check_sufferers(&scene);
    check_calm(&scene);
    scene.callers.pause(false);

    scene.follow_advice(&mut timeline);
    scene.recover(&mut timeline);
    let now = Instant::now();
    let from = now.checked_sub(WINDOW).expect("the lab is older");
    let (failed, all) = scene.callers.seen().between(from, now);
    assert!(failed == 0 && all > 2000, "{failed} of {all} lookups fail");
    check_calm(&scene);
    eprintln!("{timeline:?}");
    page::renew(
        "overflow",
        &timeline,
        &[
            "tracer why",
            "tracer top --once --sort failures | head -12",
            "tracer why --output text",
        ],
    );
    drop(limits);
    scene.agent.stop_cleanly();
}
