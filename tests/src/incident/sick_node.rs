//! A gossip cluster that flaps because one of its nodes is sick: who tells which?
//!
//! All nodes share this kernel, so each has an agent of its own that counts only what happens in that node's
//! network namespace (`TRACER_ONLY_NETNS`), under the node's name. That is what it would see on a kernel of its
//! own: what it counts of sockets belongs to one namespace anyway, agents do not know of each other, and none is
//! told which node is sick. Names of peers come from (a stand-in for) the API server, as in a cluster; a real
//! Prometheus scrapes all of them and evaluates the real rules.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{NAMED_WITHIN, Stage, Timeline};
use crate::agent::Agent;
use crate::gossip::{Gossip, Sick, Sickness};
use crate::kubernetes::repository;
use crate::process::{run, tracer};
use crate::prometheus::{Prometheus, Sample};
use crate::standin_apiserver::StandinApiserver;
use crate::tcp::truth::PEERS;
use crate::wait::{check_interrupt, ensure, eventually, patient};

/// Nodes of the cluster.
pub const NODES: u8 = 7;
/// The one that gets sick.
pub const SICK: &str = "n3";
/// One that does not.
const WELL: &str = "n1";
/// Alerts that name a node which others have trouble with.
const ALERTS: &str = "ALERTS{alertname=~\"TracerManyNodesFailTowardsPeer|TracerNodeOutlier\"}";
/// The table of all nodes, as it is typed where this variable is the Prometheus' address.
pub const TABLE: &str = "tracer top --prometheus $PROMETHEUS --once";
/// How long a table may take.
const SOON: Duration = Duration::from_secs(10);

/// The cluster, watched.
#[derive(Debug)]
pub struct SickNode {
    agents: Vec<Agent>,
    prometheus: Prometheus,
    /// The nodes.
    pub gossip: Gossip,
    _folder: TempDir,
}

impl SickNode {
    /// All nodes are well, and Prometheus knows them.
    pub fn start() -> Self {
        let gossip = Gossip::start(NODES);
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let apiserver = StandinApiserver::start();
        for member in &gossip.members {
            apiserver.apply_node(&member.name, &member.address().to_string());
        }
        let kubeconfig = apiserver.kubeconfig(folder.path());
        // One after the other: loading the programs takes a processor's second or two each.
        let agents: Vec<Agent> = gossip
            .members
            .iter()
            .map(|member| {
                let only = format!("TRACER_ONLY_NETNS={}", member.netns.path().display());
                let access = format!("KUBECONFIG={}", kubeconfig.display());
                let mut agent = Agent::launch(&["env", &only, &access], &["--node", &member.name]);
                agent.wait_ready();
                agent
            })
            .collect();
        let targets = gossip.members.iter().zip(&agents);
        let targets: Vec<_> = targets
            .map(|(member, agent)| (member.name.as_str(), agent.listen()))
            .collect();
        let rules = ["recording", "alerts"].map(|name| {
            let path = format!("deploy/helm/tracer/files/rules/{name}.yaml");
            let rules = fs::read_to_string(repository(&path)).expect("the rules can be read");
            // Only how often they are evaluated is another.
            let copy = folder.path().join(name).with_extension("yaml");
            fs::write(&copy, rules.replace("interval: 30s", "interval: 5s"))
                .expect("files can be written");
            copy
        });
        let prometheus = Prometheus::of_agents(&targets, &[&rules[0], &rules[1]]);
        prometheus.await_up("tracer", usize::from(NODES));
        Self {
            agents,
            prometheus,
            gossip,
            _folder: folder,
        }
    }

    /// The agent of a node.
    pub fn agent(&self, node: &str) -> &Agent {
        let at = self.gossip.members.iter().position(|m| m.name == node);
        &self.agents[at.unwrap_or_else(|| panic!("there is no {node}"))]
    }

    fn top(&self, arguments: &[&str]) -> Command {
        let mut command = tracer();
        let url = self.prometheus.url();
        command.args(["top", "--prometheus", &url, "--once"]);
        command.args(arguments);
        command
    }

    /// All nodes as `top --prometheus` has them, the oddest first.
    pub fn nodes(&self) -> Vec<Value> {
        let ended = run(&mut self.top(&["--output", "json"]), SOON);
        assert!(ended.status.success(), "{ended:#?}");
        let mut answer: Value = serde_json::from_str(&ended.stdout).expect("it is JSON");
        match answer["nodes"].take() {
            Value::Array(nodes) => nodes,
            other => panic!("no nodes: {other}"),
        }
    }

    /// Names of the odd ones, the oddest first.
    pub fn odd(&self) -> Vec<String> {
        let nodes = self.nodes();
        let odd = nodes.iter().filter(|node| node["odd"] == true);
        odd.map(|node| node["node"].as_str().expect("a name").to_owned())
            .collect()
    }

    /// What all agents together count as unanswered by a node.
    pub fn unanswered(&self, node: &str) -> usize {
        let labels = [("peer", node), ("kind", "unanswered")];
        let of = |agent: &Agent| agent.metrics().count(PEERS, &labels);
        usize::try_from(self.agents.iter().map(of).sum::<u64>()).expect("it is no more than that")
    }

    /// Where connections end unanswered, by `tracer why` on the nodes that are well.
    pub fn blamed(&self) -> BTreeSet<IpAddr> {
        let others = self.gossip.members.iter().zip(&self.agents);
        let others = others.filter(|(member, _)| member.name != SICK);
        let findings = others.flat_map(|(_, agent)| match agent.why(None)["findings"].take() {
            Value::Array(findings) => findings,
            other => panic!("no findings: {other}"),
        });
        findings
            .filter(|finding| finding["rule"] == "connections-unanswered")
            .map(|finding| {
                let to = finding["figures"]["destination"].as_str();
                let to: SocketAddr = to.expect("a destination").parse().expect("an address");
                to.ip()
            })
            .collect()
    }

    /// Alerts that name a node, firing or about to.
    pub fn alerts(&self) -> Vec<Sample> {
        self.prometheus.query(ALERTS)
    }
}

/// Names, scores and reasons, for messages.
fn in_short(nodes: &[Value]) -> String {
    let lines = nodes.iter().map(|n| {
        format!(
            "{} {} {} {}\n",
            n["node"], n["score"], n["failed_towards"], n["reason"]
        )
    });
    lines.collect()
}

/// Plays it to its end, for somebody who watches: a node that stands still again and again.
pub fn play(timeline: &mut Timeline) {
    timeline.now(
        Stage::Step,
        format!("{NODES} nodes are made, each with serf and an agent; that takes half a minute"),
    );
    let scene = SickNode::start();
    timeline.watch_cluster(&scene.prometheus.url());
    let sick = fall_ill(timeline, &scene, Sickness::Paused);
    get_well(timeline, sick);
    timeline.linger();
}

/// All are well; [`SICK`] gets sick; tracer names it, and nobody else.
pub fn fall_ill(timeline: &mut Timeline, scene: &SickNode, sickness: Sickness) -> Sick {
    let gossip = &scene.gossip;
    eventually(SOON, || {
        let nodes = scene.nodes();
        let odd = nodes.iter().any(|node| node["odd"] == true);
        ensure(nodes.len() == usize::from(NODES) && !odd, || {
            in_short(&nodes)
        })
    });
    timeline.now(
        Stage::Step,
        format!("{NODES} nodes gossip, each with an agent; none is odd"),
    );
    let sick = gossip.sicken(SICK, sickness);
    let onset = Instant::now();
    timeline.at(onset, Stage::Onset, format!("{SICK} {}", sickness.text()));
    let mut suspected = false;
    let named = loop {
        check_interrupt();
        if !suspected && let Some(line) = first_suspicion(scene) {
            suspected = true;
            timeline.now(Stage::Failure, line);
        }
        let nodes = scene.nodes();
        if nodes[0]["node"] == SICK && nodes[0]["odd"] == true {
            break nodes;
        }
        let took = onset.elapsed();
        assert!(
            took < patient(NAMED_WITHIN),
            "nobody is named after {took:?}, suspicions {:?}:\n{}",
            gossip.suspicions(),
            in_short(&nodes)
        );
        std::thread::sleep(Duration::from_millis(500)); // between two looks
    };
    let reason = named[0]["reason"].as_str().unwrap_or_default();
    timeline.now(
        Stage::Named,
        format!("`tracer top --prometheus` has {SICK} first: {reason}"),
    );
    timeline.show(TABLE, &mut scene.top(&[]), usize::MAX);
    for node in [SICK, WELL] {
        let mut why = tracer();
        why.args(["why", "--agent", &scene.agent(node).address()]);
        timeline.show(&format!("tracer why  # on {node}"), &mut why, usize::MAX);
    }
    let alerts = eventually(Duration::from_mins(2), || {
        let alerts = scene.alerts();
        ensure(!alerts.is_empty(), || "no alert is pending".into()).map(|()| alerts)
    });
    for alert in &alerts {
        timeline.now(
            Stage::Step,
            format!(
                "alert {} for {}: {}",
                alert.labels["alertname"], alert.labels["node"], alert.labels["alertstate"]
            ),
        );
        assert_eq!(alert.labels["node"], SICK, "{alerts:?}");
    }
    sick
}

/// It runs as the others do again.
pub fn get_well(timeline: &mut Timeline, sick: Sick) {
    drop(sick);
    timeline.now(Stage::Step, format!("{SICK} is well again"));
}

/// The first time that another member's serf suspected the sick one.
fn first_suspicion(scene: &SickNode) -> Option<String> {
    let mut others = scene.gossip.members.iter().filter(|m| m.name != SICK);
    let who = others.find(|member| member.suspected(SICK) > 0)?;
    Some(format!("{}'s serf suspects {SICK}", who.name))
}
