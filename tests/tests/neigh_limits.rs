//! How full the tables are, and when they will be: the gauges, the forecast and its events.

use std::thread::sleep;
use std::time::{Duration, Instant};

use tests::entries::{add, entries, flush, keep_reachable, try_add};
use tests::events::{Event, Events};
use tests::neigh::{FIRST_SILENT, burst, statistics, table_fulls, thresholds};
use tests::netns::DEVICE;
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Metrics, Thresholds, eventually};

/// A scrape may get a reading that another one had, a tenth of a second ago at most where it is quick.
const READING_AGE: Duration = Duration::from_millis(150);
/// And a second ago at most where it is slow: it serves ten times as long as it took.
const READING_AGE_MOST: Duration = Duration::from_millis(1100);

fn gauge(metrics: &Metrics, name: &str, family: Family) -> f64 {
    let labels = [("family", family.label())];
    metrics
        .get(&format!("tracer_node_neighbour_{name}"), &labels)
        .unwrap_or_else(|| panic!("no {name} of {family:?}"))
}

/// tracer's `gc_entries` and the kernel's `entries`, at a moment when the latter stand still.
fn compared(agent: &Agent, family: Family) -> (f64, f64) {
    sleep(READING_AGE);
    eventually(Duration::from_secs(3), || {
        let all = statistics(family).entries;
        let metrics = agent.metrics();
        ensure(all == statistics(family).entries, || {
            "entries come and go".to_owned()
        })
        .map(|()| (gauge(&metrics, "entries", family), all as f64))
    })
}

#[test]
fn entries_are_those_that_the_kernel_compares_with_the_limit() {
    let lab = Lab::new();
    let pods = [1, 2].map(|index| lab.pod("mixed", index, 1));
    let agent = Agent::start(&[]);
    for (family, pod) in Family::ALL.into_iter().zip(pods) {
        // Others may be exempt already, on the host.
        let (counted, all) = compared(&agent, family);
        let exempt = all - counted;
        assert!(exempt >= 0.0, "{counted} of {all}");
        let expect = |step: &str, more: f64| {
            let (counted, all) = compared(&agent, family);
            assert!(
                (all - counted - exempt - more).abs() < 0.5,
                "{step}: {family:?} counts {counted} of {all}, {exempt} were exempt before"
            );
        };
        burst(&pod, family, FIRST_SILENT, 50);
        expect("50 of the usual kind", 0.0);
        add(&pod, family, 2000..2020, "permanent");
        expect("20 permanent ones", 20.0);
        add(&pod, family, 2000..2005, "reachable");
        expect("5 permanent ones no longer so", 15.0);
        add(&pod, family, FIRST_SILENT..FIRST_SILENT + 10, "permanent");
        expect("10 more made permanent", 25.0);
        pod.netns.ip(&format!("link set {DEVICE} down"));
        expect("all gone", 0.0);
    }
    agent.stop_cleanly();
}

#[test]
fn a_burst_between_two_scrapes_shows_in_the_peak() {
    let lab = Lab::new();
    let pod = lab.pod("brief", 1, 1);
    let agent = Agent::start(&[]);
    for family in Family::ALL {
        let before = gauge(&agent.metrics(), "entries_peak", family);
        assert!(
            before < 200.0,
            "{family:?}: {before} entries before the test"
        );
        burst(&pod, family, FIRST_SILENT, 250);
        // Those on loopback devices do not count against the limit.
        let all = entries(&pod.netns, family);
        let reached = all.iter().filter(|entry| entry.device == DEVICE).count() as f64;
        let most = statistics(family).entries as f64;
        flush(&pod.netns, family);
        assert!(reached >= 250.0, "the lab failed: {reached}");
        // The first scrape since.
        sleep(READING_AGE_MOST);
        let metrics = agent.metrics();
        let peak = gauge(&metrics, "entries_peak", family);
        let now = gauge(&metrics, "entries", family);
        assert!(now < 100.0, "{family:?}: {now} are left");
        assert!(
            peak >= reached && peak <= most,
            "{family:?}: peak {peak}, the pod had {reached} of {most}"
        );
    }
    agent.stop_cleanly();
}

#[test]
fn a_table_that_stands_still_has_its_peak_too() {
    let lab = Lab::new();
    let pod = lab.pod("still", 1, 1);
    for family in Family::ALL {
        add(&pod, family, 1000..1150, "stale");
    }
    let agent = Agent::start(&[]);
    // Nothing is created from now on; the agent looks once a second.
    sleep(Duration::from_secs(2));
    let metrics = agent.metrics();
    for family in Family::ALL {
        let entries = gauge(&metrics, "entries", family);
        assert!(entries >= 150.0, "the lab failed: {entries}");
        let peak = gauge(&metrics, "entries_peak", family);
        assert!(peak >= entries, "{family:?}: peak {peak} of {entries}");
        flush(&pod.netns, family);
    }
    sleep(READING_AGE);
    let metrics = agent.metrics();
    for family in Family::ALL {
        let peak = gauge(&metrics, "entries_peak", family);
        assert!(peak >= 150.0, "{family:?}: peak {peak} of the last minute");
    }
    agent.stop_cleanly();
}

#[test]
fn limits_that_change_are_followed() {
    let mut lab = Lab::new();
    let agent = Agent::start(&[]);
    let shown = |family: Family| {
        let metrics = agent.metrics();
        ["1", "2", "3"].map(|threshold| {
            let labels = [("family", family.label()), ("threshold", threshold)];
            metrics.get("tracer_node_neighbour_entries_limit", &labels)
        })
    };
    let follow = |family: Family| {
        let expected = thresholds(family).map(|n| Some(n as f64));
        let started = Instant::now();
        eventually(Duration::from_secs(2), || {
            let limits = shown(family);
            ensure(limits == expected, || {
                format!("{limits:?}, not {expected:?}")
            })
        });
        started.elapsed()
    };
    let mut worst = Duration::ZERO;
    for values in [[150, 600, 700], [151, 601, 9000], [128, 512, 1024]] {
        let limits = Thresholds::set(lab.lock(), values);
        worst = worst.max(follow(Family::V4)).max(follow(Family::V6));
        drop(limits);
    }
    worst = worst.max(follow(Family::V4)).max(follow(Family::V6));
    eprintln!("limits were right at most {worst:?} after they changed");
    agent.stop_cleanly();
}

const PRESSURE_LIMITS: [u64; 3] = [128, 200, 200];

/// A forecast beside what happened.
struct Sample {
    at: Instant,
    forecast: f64,
}

/// Five entries a second until the kernel refuses one: when that was, and the forecasts meanwhile.
/// `steady` is given the other family's.
fn fill(
    agent: &Agent,
    pod: &tests::netns::Pod,
    steady: &mut Vec<f64>,
) -> (Instant, Instant, Vec<Sample>) {
    let started = Instant::now();
    let mut samples = Vec::new();
    for n in 0..400 {
        let due = started + Duration::from_millis(200) * u32::from(n);
        sleep(due.saturating_duration_since(Instant::now()));
        if !try_add(pod, Family::V4, FIRST_SILENT + n, "reachable") {
            return (started, Instant::now(), samples);
        }
        if n % 10 == 9 {
            let at = Instant::now();
            let metrics = agent.metrics();
            let forecast = gauge(&metrics, "time_until_full_seconds", Family::V4);
            samples.push(Sample { at, forecast });
            steady.push(gauge(&metrics, "time_until_full_seconds", Family::V6));
        }
    }
    panic!("the lab failed: 400 entries and the table is not full");
}

fn pressure(event: &Event, family: Family) -> bool {
    event.text("kind") == "neighbour_pressure" && event.text("family") == family.label()
}

fn states(events: &Events, family: Family) -> Vec<&str> {
    let seen = events.seen.iter().filter(|event| pressure(event, family));
    seen.map(|event| event.text("state")).collect()
}

/// IPv4 fills within 40 s, so the forecast must raise the alarm. IPv6 is three quarters full from the start and stays so. Both are emptied.
#[test]
fn pressure_comes_before_the_first_refusal_and_goes_once() {
    let mut lab = Lab::new();
    let [filler, steady] = [("filler", 1), ("steady", 2)].map(|(n, i)| lab.pod(n, i, 1));
    keep_reachable(&filler.netns, DEVICE);
    keep_reachable(&steady.netns, DEVICE);
    let limits = Thresholds::set(lab.lock(), PRESSURE_LIMITS);
    add(&steady, Family::V6, 1000..1150, "reachable");
    let agent = Agent::start(&[]);
    let mut events = agent.events();
    let mut forecasts_of_steady = Vec::new();
    let fulls = table_fulls(Family::V4);
    let (started, full_at, samples) = fill(&agent, &filler, &mut forecasts_of_steady);
    assert!(
        table_fulls(Family::V4) > fulls,
        "refused for another reason"
    );
    let took = full_at - started;
    eprintln!("full after {took:?}");

    let is = |state: &'static str, family| {
        move |event: &Event| pressure(event, family) && event.text("state") == state
    };
    let critical = events.wait(Duration::from_secs(2), is("critical", Family::V4));
    let rising = events.wait(Duration::from_secs(1), is("rising", Family::V6));
    // No host can live on a full table for long.
    flush(&filler.netns, Family::V4);
    flush(&steady.netns, Family::V6);
    let emptied_at = Instant::now();
    drop(limits);

    let ahead = full_at.checked_duration_since(critical.at);
    let ahead = ahead.unwrap_or_else(|| panic!("critical came too late: {}", critical.json));
    eprintln!(
        "critical {ahead:?} before the first refusal: {}",
        critical.json
    );
    assert!(ahead >= Duration::from_secs(8), "{}", critical.json);
    for event in [&critical, &rising] {
        let shown = &event.json;
        assert_eq!(shown["limit"], PRESSURE_LIMITS[2], "{shown}");
        assert_eq!(shown["pod"]["namespace"], "(host)", "{shown}");
        assert_eq!(shown["pod"]["name"], "(kernel)", "{shown}");
        assert_eq!(shown["node"], "lab", "{shown}");
        let entries = shown["entries"].as_u64().expect("entries is a number");
        assert!(entries <= PRESSURE_LIMITS[2], "{shown}");
        assert!(shown.get("time_until_full_seconds").is_some(), "{shown}");
    }
    let entries = critical.json["entries"].as_u64().expect("checked above");
    assert!(entries < 180, "not by the forecast: {}", critical.json);
    // Its 150, and a few of the kernel's own.
    let entries = rising.json["entries"].as_u64().expect("checked above");
    assert!((150..170).contains(&entries), "{}", rising.json);

    judge(&samples, started, full_at);
    let trends: Vec<&f64> = forecasts_of_steady
        .iter()
        .filter(|f| f.is_finite())
        .collect();
    assert!(trends.is_empty(), "a flat table has no trend: {trends:?}");

    eventually(Duration::from_secs(25), || {
        let metrics = agent.metrics();
        let forecast = Family::ALL.map(|family| gauge(&metrics, "time_until_full_seconds", family));
        ensure(forecast.iter().all(|f| f.is_infinite()), || {
            format!("{forecast:?}")
        })
    });
    for family in Family::ALL {
        let normal = events.wait(Duration::from_secs(40), is("normal", family));
        let after = normal.at.saturating_duration_since(emptied_at);
        eprintln!("{family:?}: normal {after:?} after it was emptied");
        assert!(
            after >= Duration::from_secs(28),
            "too early: {}",
            normal.json
        );
        assert!(
            after <= Duration::from_secs(38),
            "too late: {}",
            normal.json
        );
    }
    // What comes now would be flapping.
    events.listen(Duration::from_secs(2));
    assert_eq!(states(&events, Family::V6), ["rising", "normal"]);
    let mut seen = states(&events, Family::V4);
    if seen.first() == Some(&"rising") {
        seen.remove(0);
    }
    assert_eq!(seen, ["critical", "normal"]);
    agent.stop_cleanly();
}

/// Prints each forecast with its error, and holds those to it that had time to learn.
fn judge(samples: &[Sample], started: Instant, full_at: Instant) {
    let mut errors = Vec::new();
    for sample in samples {
        let after = (sample.at - started).as_secs_f64();
        let truth = (full_at - sample.at).as_secs_f64();
        let error = (sample.forecast - truth) / truth;
        eprintln!(
            "after {after:4.1} s: forecast {:5.1} s, it took {truth:5.1} s: {:+.0} %",
            sample.forecast,
            error * 100.0
        );
        if after >= 8.0 && truth >= 2.0 {
            assert!(
                sample.forecast.is_finite(),
                "no forecast after {after:.1} s"
            );
            errors.push(error.abs());
        }
    }
    errors.sort_by(f64::total_cmp);
    let median = errors.get(errors.len() / 2).expect("some samples");
    let worst = errors.last().expect("some samples");
    eprintln!(
        "error: median {:.0} %, at most {:.0} %",
        median * 100.0,
        worst * 100.0
    );
    assert!(*median <= 0.25 && *worst <= 0.6, "errors {errors:?}");
}
