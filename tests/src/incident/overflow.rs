//! The incident *overflow*: pods arrive on a node, each talks to a few neighbours, and at the kernel's
//! default limits the neighbour table of the node is full long before its CPU or memory is.

pub mod callers;
pub mod servers;
pub mod town;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use self::callers::Callers;
use self::servers::Server;
use self::town::Town;
use super::pods::Pods;
use super::{Stage, Timeline};
use crate::agent::Agent;
use crate::events::Events;
use crate::neigh::{Family, Thresholds, table_fulls};
use crate::netns::{Lab, Netns};
use crate::process::check;
use crate::unseen::Unseen;
use crate::wait::{check_interrupt, ensure, eventually, is_emulated, patient};

/// gc_thresh1, 2, 3 as Linux has them where nobody changed them.
pub const DEFAULT_LIMITS: [u64; 3] = [128, 512, 1024];
/// Pods that arrive.
pub const PODS: u16 = 200;
/// In a second.
const WAVE: usize = 8;
const V4: Family = Family::V4;
/// Creations the kernel refused, as its trace has them.
const REFUSED: (&str, &str) = ("neigh/neigh_create", "created==0");

/// All of it, for an audience.
pub fn play(timeline: &mut Timeline) {
    let mut lab = Lab::new();
    let node = Arc::clone(&lab.hub);
    let limits = Thresholds::set(lab.lock(), DEFAULT_LIMITS);
    let mut scene = Overflow::new(&node, timeline);
    scene.fill(timeline);
    scene.suffer(timeline);
    scene.follow_advice(timeline);
    scene.recover(timeline);
    timeline.linger();
    drop(limits);
    scene.agent.stop_cleanly();
}

/// tracer's forecast at a moment before the first refusal.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    /// When it was read.
    pub at: Instant,
    /// `tracer_node_neighbour_entries`.
    pub entries: f64,
    /// `tracer_node_neighbour_time_until_full_seconds`.
    pub seconds: f64,
}

/// The node, its pods at work, and the agent that watches.
#[derive(Debug)]
pub struct Overflow {
    /// The agent.
    pub agent: Agent,
    /// Its events.
    pub events: Events,
    /// The pods at work.
    pub callers: Callers,
    /// The DNS server.
    pub dns: Server,
    /// What tracer forecast while pods arrived, until the first refusal.
    pub forecasts: Vec<Forecast>,
    /// The kernel's `table_fulls` before all of it.
    pub fulls: u64,
    _services: Vec<Server>,
    first_refusal: Receiver<Instant>,
    _watch: Watch,
    trace: Unseen,
    pods: Pods,
    /// The node and its pods.
    pub town: Town,
}

impl Overflow {
    /// A calm node; the kernel's limits must be [`DEFAULT_LIMITS`] already.
    pub fn new(node: &Arc<Netns>, timeline: &mut Timeline) -> Self {
        timeline.now(
            Stage::Step,
            format!(
                "a node with a DNS server, services, 2 calm pods, and room made for {PODS} more"
            ),
        );
        let town = Town::new(node, PODS);
        let dns = Server::dns(&town.dns);
        let services = town.services.iter().chain([&town.outside]);
        let services = services.map(Server::echo).collect();
        let mut pods = Pods::new();
        let listed = town.listed();
        let (callers, residents): (Vec<_>, Vec<_>) = listed
            .into_iter()
            .partition(|one| town.pods.iter().any(|pod| pod.listed == *one));
        assert_eq!(callers.len(), usize::from(PODS), "everybody has a name");
        pods.add(residents);
        let fulls = table_fulls(V4);
        let trace = Unseen::watch(&[REFUSED]);
        let arguments = ["--window", "20s", "--pods", &pods.argument()];
        let agent = Agent::start(&arguments);
        pods.await_known(&agent);
        timeline.watch(&agent);
        let (watch, first_refusal) = Watch::start(fulls);
        let callers = Callers::start(&town);
        Self {
            events: agent.events(),
            agent,
            callers,
            dns,
            forecasts: Vec::new(),
            fulls,
            _services: services,
            first_refusal,
            _watch: watch,
            trace,
            pods,
            town,
        }
    }

    /// Pods arrive until all are there; tracer warns, the table overflows, tracer names pods.
    pub fn fill(&mut self, timeline: &mut Timeline) {
        let mut arrived = 0;
        let (mut warned, mut failed, mut named) = (false, false, false);
        let mut begun = Instant::now();
        while arrived < self.town.pods.len() || !named {
            check_interrupt();
            if begun.elapsed() >= Duration::from_secs(1) && arrived < self.town.pods.len() {
                begun = Instant::now();
                let wave = &self.town.pods[arrived..self.town.pods.len().min(arrived + WAVE)];
                self.pods.add(wave.iter().map(|one| one.listed.clone()));
                // What a pod did before it had a name would be its namespace's.
                self.pods.await_known(&self.agent);
                self.callers.arrive(wave.len());
                if arrived == 0 {
                    let pace = if is_emulated() {
                        "at a time, as fast as an emulated machine can,"
                    } else {
                        "a second"
                    };
                    let text = format!(
                        "{WAVE} pods {pace} arrive; each looks up a name and calls a service every second"
                    );
                    timeline.now(Stage::Onset, text);
                }
                arrived += wave.len();
            }
            self.events.listen(Duration::from_millis(100));
            warned = warned || self.warned(timeline);
            if !failed && let Ok(at) = self.first_refusal.try_recv() {
                failed = true;
                let text = format!("the kernel refuses an entry; {arrived} pods have arrived");
                timeline.at(at, Stage::Failure, text);
            }
            if !failed {
                self.forecast();
            }
            named = named || self.named(timeline);
            let late = timeline.reached(Stage::Failure).map(|at| at.elapsed());
            assert!(
                late.is_none_or(|late| late < patient(super::NAMED_WITHIN)),
                "not named:\n{timeline:?}"
            );
        }
        timeline.now(Stage::Step, format!("{arrived} pods are there"));
    }

    fn warned(&self, timeline: &mut Timeline) -> bool {
        let mut events = self.events.seen.iter();
        let warns = |event: &&crate::events::Event| {
            event.text("kind") == "neighbour_pressure" && event.text("state") != "normal"
        };
        let Some(event) = events.find(warns) else {
            return false;
        };
        let (entries, limit) = (&event.json["entries"], &event.json["limit"]);
        let left = event.json["time_until_full_seconds"].as_f64();
        let left = left.map_or_else(String::new, |left| format!(", full in {left:.0} s"));
        let state = event.text("state");
        let text = format!("event `neighbour_pressure`: {state}, {entries} of {limit}{left}");
        timeline.at(event.at, Stage::Omen, text);
        true
    }

    fn named(&self, timeline: &mut Timeline) -> bool {
        let mut events = self.events.seen.iter();
        let overflow = |event: &&crate::events::Event| {
            event.text("kind") == "neighbour_overflow" && event.json["pod"]["namespace"] == "shop"
        };
        let Some(event) = events.find(overflow) else {
            return false;
        };
        let pod = event.json["pod"]["name"].as_str().unwrap_or_default();
        let text = format!(
            "event `neighbour_overflow` of node {}: shop/{pod}, {} of {} entries",
            event.text("node"),
            event.json["entries"],
            event.json["limit"]
        );
        timeline.at(event.at, Stage::Named, text);
        true
    }

    fn forecast(&mut self) {
        let metrics = self.agent.metrics();
        let read = |name: &str| {
            metrics.get(
                &format!("tracer_node_neighbour_{name}"),
                &[("family", "ipv4")],
            )
        };
        if let (Some(entries), Some(seconds)) = (read("entries"), read("time_until_full_seconds")) {
            self.forecasts.push(Forecast {
                at: Instant::now(),
                entries,
                seconds,
            });
        }
    }

    /// Lookups have failed for clients, a hundred of them, and tracer says why.
    pub fn suffer(&mut self, timeline: &mut Timeline) {
        eventually(Duration::from_secs(30), || {
            let failed = self.callers.seen().total().failed;
            ensure(failed >= 100, || format!("{failed} lookups have failed"))
        });
        let event = self.events.wait(Duration::from_secs(15), |event| {
            event.text("cause") == "neighbour_table_full"
        });
        timeline.at(
            event.at,
            Stage::Step,
            format!(
                "event `dns_failure`: {}, because of neighbour_table_full, after {:.1} s",
                event.json["pod"]["name"].as_str().unwrap_or_default(),
                event.json["waited_seconds"].as_f64().unwrap_or_default()
            ),
        );
    }

    /// What tracer says of it.
    pub fn ask(&self, timeline: &mut Timeline) {
        timeline.ask(&self.agent, &["why"]);
        // Sorted by what they hold, then by how often they failed.
        for column in ["neigh-entries", "failures"] {
            timeline.ask_head(&self.agent, &["top", "--once", "--sort", column], 12);
        }
    }

    /// Runs the command that `tracer why` gives; gives the command.
    pub fn follow_advice(&self, timeline: &mut Timeline) -> String {
        // Under another name than the verdict under load.
        let said = timeline.ask(&self.agent, &["why", "--output", "text"]);
        let advice = said.lines().find_map(|line| line.strip_prefix("next: "));
        let advice = advice
            .unwrap_or_else(|| panic!("no advice:\n{said}"))
            .to_owned();
        let words: Vec<&str> = advice.split_whitespace().collect();
        assert_eq!(words[..2], ["sysctl", "-w"], "no such advice: {advice}");
        check(Command::new("sysctl").args(&words[1..]));
        timeline.now(Stage::Step, format!("`{advice}`"));
        advice
    }

    /// Waits until lookups work, the pressure is over, and tracer says so.
    pub fn recover(&mut self, timeline: &mut Timeline) {
        let calm = Duration::from_secs(8);
        let mut last = (table_fulls(V4), Instant::now());
        eventually(Duration::from_secs(40), || {
            let fulls = table_fulls(V4);
            if fulls != last.0 {
                last = (fulls, Instant::now());
            }
            let waited = last.1.elapsed();
            ensure(waited >= calm, || format!("refused {waited:?} ago"))
        });
        timeline.at(
            last.1,
            Stage::Step,
            "the kernel refuses nothing any more; the pressure is over when the table has been below 60 % for 30 s",
        );
        let begun = timeline.reached(Stage::Failure).expect("it failed first");
        let event = self.events.wait(Duration::from_mins(1), |event| {
            event.at > begun
                && event.text("kind") == "neighbour_pressure"
                && event.text("state") == "normal"
        });
        timeline.at(event.at, Stage::Step, "event `neighbour_pressure`: normal");
        eventually(Duration::from_mins(1), || {
            let mut command = crate::process::tracer();
            command.args(["why", "--agent", &self.agent.address()]);
            let said = crate::process::run(&mut command, Duration::from_secs(10)).stdout;
            ensure(said.contains(": fine"), || said.clone())
        });
        timeline.now(Stage::Over, "`tracer why`: fine, and when it was full");
        timeline.ask(&self.agent, &["why", "--output", "text"]);
    }

    /// Ground truth: creations refused so far by device, and how many of these no BPF program could
    /// see.
    pub fn refused(&self) -> BTreeMap<String, (u64, u64)> {
        let mut refused: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for traced in self.trace.all() {
            // `… neigh_create: family 2 dev e7 entries 1024 …`
            let mut words = traced
                .line
                .split_whitespace()
                .skip_while(|word| *word != "family");
            let (family, device) = (words.nth(1), words.nth(1));
            if family == Some("2") {
                let device = device.unwrap_or_else(|| panic!("no device: {}", traced.line));
                let one = refused.entry(device.to_owned()).or_default();
                one.0 += 1;
                one.1 += u64::from(traced.unseen);
            }
        }
        refused
    }
}

/// Looks at the kernel's counter until it moves.
#[derive(Debug)]
struct Watch(Arc<AtomicBool>);

impl Watch {
    fn start(fulls: u64) -> (Self, Receiver<Instant>) {
        let (send, receive) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut before = Instant::now();
            while !own.load(Ordering::Relaxed) {
                let at = Instant::now();
                if table_fulls(V4) != fulls {
                    // The earliest that it can have been. Whoever asked may be gone.
                    let _ = send.send(before);
                    return;
                }
                before = at;
                sleep(Duration::from_millis(5));
            }
        });
        (Self(stop), receive)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
