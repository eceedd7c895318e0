//! The answers about one node's pods become a row for each that fails, and a row for each dead
//! destination with who had its address.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Serialize;

use super::api::{Answers, Sample};
use super::nodes::Attempts;
use super::queries::address;

/// A pod of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "the name of the metrics' label")]
pub(super) struct Pod {
    pub namespace: String,
    pub pod: String,
    pub dns: Attempts,
    pub connects: Attempts,
    pub refused: f64,
    pub entries: f64,
    pub retransmits: f64,
    /// Packets dropped by reason; lost in a full receive buffer under `receive_buffer`.
    pub drops: BTreeMap<String, f64>,
    /// Failed attempts at destinations that answer nobody.
    pub dead: f64,
}

impl Pod {
    /// All that failed.
    pub fn failures(&self) -> f64 {
        let drops: f64 = self.drops.values().sum();
        self.dns.failed + self.connects.failed + self.refused + drops
    }

    /// Did anything?
    pub fn is_failing(&self) -> bool {
        // What is extrapolated from nothing is nothing.
        self.failures() >= 0.5
    }
}

/// A destination that answers nobody.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Dead {
    pub destination: String,
    pub attempts: f64,
    /// `NS/POD` with most of them.
    pub mostly_by: String,
    /// Who had the address last, on any node, or has it; empty where nobody knows.
    pub last_owner: String,
}

/// One node's pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct NodePods {
    pub node: String,
    /// Those that fail, the worst first.
    pub failing: Vec<Pod>,
    /// Those that had traffic and do not.
    pub well: usize,
    /// Most attempts first.
    pub dead: Vec<Dead>,
    #[serde(skip)]
    pub warnings: Vec<String>,
}

type Name = (String, String);

impl NodePods {
    /// From the answers to [`super::queries::Queries::pods`], without owners on other nodes.
    pub fn new(node: &str, answers: Answers) -> Result<Self> {
        let Answers { samples, warnings } = answers;
        let count = samples.len();
        let Ok(answer) = <[Vec<Sample>; 10]>::try_from(samples) else {
            bail!("{count} answers to ten queries");
        };
        let [
            lookups,
            causes,
            connects,
            refused,
            entries,
            retransmits,
            drops,
            buffers,
            dead,
            info,
        ] = answer;
        let mut pods: BTreeMap<Name, Pod> = BTreeMap::new();
        let mut tell = |samples: &[Sample], into: &dyn Fn(&mut Pod, &Sample)| {
            for sample in samples.iter().filter(|s| s.value.is_finite()) {
                let (namespace, pod) = name(sample);
                let new = || Pod {
                    namespace: namespace.to_owned(),
                    pod: pod.to_owned(),
                    ..Pod::default()
                };
                let key = (namespace.to_owned(), pod.to_owned());
                into(pods.entry(key).or_insert_with(new), sample);
            }
        };
        tell(&lookups, &|pod, s| pod.dns.all = s.value);
        tell(&causes, &|pod, s| pod.dns.count(s.label("cause"), s.value));
        tell(&connects, &|pod, s| {
            pod.connects.all += s.value;
            if s.label("result") != "established" {
                pod.connects.count(s.label("result"), s.value);
            }
        });
        tell(&refused, &|pod, s| pod.refused = s.value);
        tell(&entries, &|pod, s| pod.entries = s.value);
        tell(&retransmits, &|pod, s| pod.retransmits = s.value);
        tell(&drops, &|pod, s| {
            *pod.drops.entry(s.label("reason").to_owned()).or_default() += s.value;
        });
        tell(&buffers, &|pod, s| {
            *pod.drops.entry("receive_buffer".into()).or_default() += s.value;
        });
        tell(&dead, &|pod, s| pod.dead += s.value);
        let all = pods.len();
        let mut failing: Vec<Pod> = pods.into_values().filter(Pod::is_failing).collect();
        failing.sort_by(|a, b| b.failures().total_cmp(&a.failures()));
        Ok(Self {
            node: node.to_owned(),
            well: all - failing.len(),
            failing,
            dead: destinations(&dead, &info),
            warnings,
        })
    }

    /// Names owners that other nodes or Kubernetes remember, from the answers to
    /// [`super::queries::Queries::owners`].
    pub fn name_owners(&mut self, answers: Answers) {
        let [gone, known] = [0, 1].map(|i| answers.samples.get(i).map_or(&[][..], Vec::as_slice));
        for dead in &mut self.dead {
            let Some(address) = address(&dead.destination) else {
                continue;
            };
            let mut owners: Vec<String> = Vec::new();
            if !dead.last_owner.is_empty() {
                owners.push(dead.last_owner.clone());
            }
            let of = |samples: &[Sample], label: &str, say: fn(&str) -> String| -> Vec<String> {
                let samples = samples.iter().filter(|s| s.label(label) == address);
                let named = samples.map(|s| {
                    let (namespace, pod) = name(s);
                    format!("{namespace}/{pod}{}", say(s.label("node")))
                });
                named.collect()
            };
            let gone = of(gone, "address", |node| format!(" (gone, was on {node})"));
            let known = of(known, "pod_ip", |node| format!(" (on {node})"));
            for owner in gone.into_iter().chain(known) {
                let who = owner.split(' ').next().unwrap_or_default().to_owned();
                let same = |known: &String| known.split(' ').next() == Some(&who);
                match owners.iter_mut().find(|known| same(known)) {
                    // What says more replaces what says less.
                    Some(known) if !known.contains(' ') => *known = owner,
                    Some(_) => {}
                    None => owners.push(owner),
                }
            }
            dead.last_owner = owners.join(" or ");
        }
        for warning in answers.warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }
}

/// Namespace and pod as the agent told them.
fn name(sample: &Sample) -> (&str, &str) {
    match (
        sample.label("exported_namespace"),
        sample.label("exported_pod"),
    ) {
        ("", "") => (sample.label("namespace"), sample.label("pod")),
        exported => exported,
    }
}

fn destinations(dead: &[Sample], info: &[Sample]) -> Vec<Dead> {
    let mut all: BTreeMap<&str, (f64, f64, String)> = BTreeMap::new();
    for sample in dead {
        let (namespace, pod) = name(sample);
        let entry = all.entry(sample.label("destination")).or_default();
        entry.0 += sample.value;
        if sample.value > entry.1 {
            (entry.1, entry.2) = (sample.value, format!("{namespace}/{pod}"));
        }
    }
    let owner = |destination: &str| {
        let own = |s: &&Sample| s.label("destination") == destination;
        let owner = info.iter().find(own).map(|s| s.label("last_owner"));
        owner.unwrap_or_default().to_owned()
    };
    let mut rows: Vec<Dead> = all
        .into_iter()
        .map(|(destination, (attempts, _, mostly_by))| Dead {
            destination: destination.to_owned(),
            attempts,
            mostly_by,
            last_owner: owner(destination),
        })
        .collect();
    rows.sort_by(|a, b| b.attempts.total_cmp(&a.attempts));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(labels: &[(&str, &str)], value: f64) -> Sample {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Sample {
            labels: labels.collect(),
            value,
        }
    }

    fn answers(samples: Vec<Vec<Sample>>) -> Answers {
        Answers {
            samples,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn pods_that_fail_are_told_and_dead_destinations_have_owners() {
        let cart = [("namespace", "shop"), ("pod", "cart")];
        // As a scraper without honor_labels has it.
        let agent = [
            ("namespace", "tracer"),
            ("pod", "agent-x"),
            ("exported_namespace", "shop"),
            ("exported_pod", "cart"),
        ];
        let with = |labels: &[(&'static str, &'static str)], more, value| {
            sample(&[labels, &[more]].concat(), value)
        };
        let mut samples = vec![Vec::new(); 10];
        samples[0] = vec![
            sample(&cart, 100.0),
            sample(&[("namespace", "shop"), ("pod", "well")], 9.0),
        ];
        samples[1] = vec![with(&agent, ("cause", "no_answer"), 40.0)];
        samples[8] = vec![
            with(&cart, ("destination", "10.0.0.9:80"), 7.0),
            with(&cart, ("destination", "10.0.0.8:80"), 9.0),
            with(&cart, ("destination", "(other)"), 1.0),
        ];
        samples[9] = vec![sample(
            &[("destination", "10.0.0.8:80"), ("last_owner", "shop/old")],
            1.0,
        )];
        let mut node = NodePods::new("n1", answers(samples)).unwrap();
        assert_eq!((node.failing.len(), node.well), (1, 1));
        assert_eq!(node.failing[0].dns.percent(), Some(40.0));
        assert_eq!(node.failing[0].dns.mostly(), Some("no_answer"));

        let gone = [
            ("namespace", "pay"),
            ("pod", "db-0"),
            ("address", "10.0.0.9"),
            ("node", "n7"),
        ];
        let kube = [
            ("namespace", "shop"),
            ("pod", "old"),
            ("pod_ip", "10.0.0.8"),
            ("node", "n1"),
        ];
        node.name_owners(answers(vec![
            vec![sample(&gone, 1.0)],
            vec![sample(&kube, 1.0)],
        ]));
        let owners: Vec<(&str, &str)> = node
            .dead
            .iter()
            .map(|d| (d.destination.as_str(), d.last_owner.as_str()))
            .collect();
        let expected = [
            ("10.0.0.8:80", "shop/old (on n1)"),
            ("10.0.0.9:80", "pay/db-0 (gone, was on n7)"),
            ("(other)", ""),
        ];
        assert_eq!(owners, expected);
        assert_eq!(node.dead[0].mostly_by, "shop/cart");
    }
}
