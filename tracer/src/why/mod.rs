//! `tracer why`: the verdict on a node or a pod in one to three sentences, from measured figures
//! only. The rules are in [`rules`], told in words in `docs/why.md`; `tracer top` shows the same
//! verdict in its head.

pub mod evidence;
pub mod rules;
pub(crate) mod text;
pub mod words;

use std::time::Duration;

use anyhow::{anyhow, bail};
use serde::Serialize;

use self::evidence::{Facts, Failure};
use self::rules::{Finding, Weight};
use crate::client::Client;
use crate::config::{OutputFormat, PodName, WhyConfig};
use crate::export::snapshot::{Pod, Snapshot};
use crate::output::{Output, Signals, printable};

/// Failures asked for: more than the longest sensible window, so that the events cover it.
const EVENTS: &str = "/api/v1/events?since=3600000ms&follow=false";

/// Figures older than this say nothing of now, seconds.
const STALE: f64 = 10.0;

/// How long the held events may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing fails, or next to nothing.
    Fine,
    /// Something fails, and nothing on this node is seen to be the cause.
    FailsElsewhere,
    /// Nothing fails yet.
    Warning,
    /// This node kills packets.
    Sick,
}

/// What to tell a person.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The node's name.
    pub node: String,
    /// `NS/NAME`, where a pod was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// When the figures were taken, RFC 3339, UTC.
    pub time: String,
    /// How it stands.
    pub health: Health,
    /// One to three sentences.
    pub sentences: Vec<String>,
    /// The command to run next.
    pub next: String,
    /// All that was found, the worst first, with the figures.
    pub findings: Vec<Finding>,
    /// What cannot be known from here, or not now.
    pub unknown: Vec<String>,
}

/// Judges the node, or a pod of it.
pub fn judge(snapshot: &Snapshot, failures: &[Failure], pod: Option<&Pod>) -> Verdict {
    let facts = Facts {
        snapshot,
        failures,
        pod,
    };
    let findings = rules::findings(&facts);
    let health = match findings.first().map(|f| f.weight) {
        Some(Weight::Node) => Health::Sick,
        Some(Weight::Omen) => Health::Warning,
        Some(Weight::Elsewhere) => Health::FailsElsewhere,
        Some(Weight::Few | Weight::Past) | None => Health::Fine,
    };
    let next = match (&findings[..], pod) {
        ([first, ..], _) => first.next.clone(),
        ([], Some(pod)) => format!("tracer events --since 30m --pod {}", words::name(pod)),
        ([], None) => "tracer top".into(),
    };
    Verdict {
        node: snapshot.node.clone(),
        pod: pod.map(words::name),
        time: snapshot.time.clone(),
        health,
        sentences: sentences(&facts, &findings, health),
        next,
        unknown: unknown(snapshot, &findings),
        findings,
    }
}

fn sentences(facts: &Facts, findings: &[Finding], health: Health) -> Vec<String> {
    let little = findings.iter().any(|f| f.weight == Weight::Few);
    let [first, rest @ ..] = findings else {
        return vec![fine(facts, little)];
    };
    let mut sentences = Vec::new();
    match health {
        Health::Fine => sentences.push(fine(facts, little)),
        Health::FailsElsewhere => sentences.push(format!(
            "{} that tracer can see; what fails is: {}",
            if little {
                "Next to nothing is wrong on this node"
            } else {
                "Nothing is wrong on this node"
            },
            first.sentence
        )),
        Health::Warning | Health::Sick => sentences.push(first.sentence.clone()),
    }
    if health == Health::Fine {
        sentences.push(capital(&first.sentence));
    }
    // Three at most: who reads it is tired.
    let room = 3 - sentences.len();
    sentences.extend(rest.iter().take(room).map(|f| capital(&f.sentence)));
    sentences
        .into_iter()
        .map(|sentence| printable(&format!("{}.", capital(&sentence))).into_owned())
        .collect()
}

fn fine(facts: &Facts, little: bool) -> String {
    let figures = facts.figures();
    let window = facts.snapshot.window_seconds;
    let subject = match facts.pod {
        Some(pod) => format!("of {}", words::name(pod)),
        None => "on this node".into(),
    };
    let lookups = match figures.failure_ratio.get("dns") {
        Some(ratio) if *ratio > 0.0 && *ratio < 0.001 => {
            "less than 0.1 % of the lookups failed".into()
        }
        Some(ratio) if *ratio > 0.0 => format!("{:.1} % of the lookups failed", 100.0 * ratio),
        Some(_) => "no lookup failed".into(),
        None => "there were no lookups".into(),
    };
    let tables: Vec<String> = facts
        .snapshot
        .tables
        .iter()
        .filter_map(|table| {
            let entries = table.entries?;
            Some(format!(
                "{} of {} {}",
                words::count(entries),
                words::count(table.limits[2]),
                table.family.replace("ipv", "IPv")
            ))
        })
        .collect();
    let tables = if tables.is_empty() {
        String::new()
    } else {
        format!(
            ", and the neighbour tables hold {} entries",
            tables.join(" and ")
        )
    };
    if seen(facts.snapshot) {
        let nothing = if little { "Next to nothing" } else { "Nothing" };
        format!("{nothing} is wrong {subject}: {lookups} in the last {window:.0} s{tables}")
    } else {
        // Without the hooks, silence is no proof.
        format!("Tracer sees nothing wrong {subject}, but not all: see what it cannot know")
    }
}

/// Are the hooks there that would have seen it?
fn seen(snapshot: &Snapshot) -> bool {
    let attached = |name: &str| {
        let hook = snapshot.hooks.iter().find(|h| h.name == name);
        hook.is_some_and(|h| h.state == "attached")
    };
    snapshot.read_age_seconds <= STALE && ["neigh", "dns", "tcp"].into_iter().all(attached)
}

/// First letter upper case, unless it is a name.
fn capital(sentence: &str) -> String {
    let first_word = sentence.split(' ').next().unwrap_or_default();
    let mut chars = sentence.chars();
    match chars.next() {
        Some(first) if first_word.chars().all(|c| c.is_ascii_alphabetic()) => {
            first.to_uppercase().chain(chars).collect()
        }
        _ => sentence.to_owned(),
    }
}

/// What of tracer itself stands between the figures and the truth, and what the rules cannot tell.
fn unknown(snapshot: &Snapshot, findings: &[Finding]) -> Vec<String> {
    let mut unknown = Vec::new();
    if snapshot.read_age_seconds > STALE {
        unknown.push(format!(
            "anything of the last {}: the agent cannot read the kernel's counters, and its log says why",
            words::span(snapshot.read_age_seconds)
        ));
    }
    for hook in snapshot.hooks.iter().filter(|h| h.state != "attached") {
        let what = match &*hook.name {
            "neigh" => "entries and overflows",
            "gc" => "who throws entries out",
            "dns" => "lookups",
            "drops" => "why packets are dropped",
            "tcp" => "connections",
            _ => "what it would see",
        };
        let colon = if hook.reason.is_empty() { "" } else { ": " };
        unknown.push(format!(
            "{what}: the hook {} is {}{colon}{}",
            hook.name, hook.state, hook.reason
        ));
    }
    for source in &snapshot.sources {
        if !source.reason.is_empty() && !source.idle {
            unknown.push(format!(
                "names of pods: the source {} does not answer: {}",
                source.name, source.reason
            ));
        }
    }
    let lost: u64 = snapshot.hooks.iter().map(|h| h.lost + h.suppressed).sum();
    if lost > 0 && findings.iter().any(|f| f.weight != Weight::Past) {
        unknown.push(format!(
            "details of {} events that were lost or held back; the counts above are complete",
            words::count(lost)
        ));
    }
    for finding in findings {
        if let Some(what) = &finding.unknown
            && !unknown.contains(what)
        {
            unknown.push(what.clone());
        }
    }
    if let Some(watched) = words::later(snapshot.watched_since(), &snapshot.time)
        && watched.as_secs_f64() < snapshot.window_seconds
    {
        unknown.push(format!(
            "what was before {}: tracer has watched for {} only",
            words::moment(snapshot.watched_since(), &snapshot.time),
            words::span(watched.as_secs_f64())
        ));
    }
    for line in &mut unknown {
        *line = printable(line).into_owned();
    }
    unknown
}

/// Asks the agent, judges, prints.
pub async fn run(config: WhyConfig) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let output = Output::stdout()?;
    let verdict = tokio::select! {
        verdict = ask(&config) => verdict?,
        () = signals.recv() => return Ok(()),
    };
    let text = match config.output {
        OutputFormat::Json => serde_json::to_string_pretty(&verdict)? + "\n",
        OutputFormat::Text => text::text(&verdict),
    };
    output.write(text).await;
    output.finish_or_signal(false, &mut signals).await
}

async fn ask(config: &WhyConfig) -> anyhow::Result<Verdict> {
    let client = Client::new(config.agent.clone());
    let snapshot: Snapshot = client.get_json("/api/v1/snapshot").await?;
    let mut failures = Vec::new();
    let mut lines = client.stream_lines(EVENTS).await?;
    // An agent that does not know `follow` goes on for ever.
    let patience = tokio::time::sleep(PATIENCE);
    tokio::pin!(patience);
    loop {
        tokio::select! {
            line = lines.next() => match line? {
                Some(line) => failures.extend(Failure::parse(&line)),
                None => break,
            },
            () = &mut patience => break,
        }
    }
    let pod = match &config.pod {
        Some(asked) => Some(find(&snapshot, asked)?),
        None => None,
    };
    Ok(judge(&snapshot, &failures, pod))
}

/// The pod, or an error that names the likeliest ones.
fn find<'a>(snapshot: &'a Snapshot, asked: &PodName) -> anyhow::Result<&'a Pod> {
    let PodName { namespace, name } = asked;
    let found = snapshot
        .pods
        .iter()
        .find(|pod| pod.namespace == *namespace && pod.pod == *name);
    if let Some(pod) = found {
        return Ok(pod);
    }
    let near: Vec<String> = snapshot
        .pods
        .iter()
        .filter(|pod| pod.pod.contains(&**name) || name.contains(&*pod.pod))
        .take(3)
        .map(|pod| printable(&words::name(pod)).into_owned())
        .collect();
    let node = printable(&snapshot.node);
    if near.is_empty() {
        bail!(
            "no pod {namespace}/{name} has had traffic on node {node} since tracer began to count: \
             is it on this node? `tracer top --once` lists those that had"
        );
    }
    Err(anyhow!(
        "no pod {namespace}/{name} has had traffic on node {node}; did you mean {}?",
        near.join(" or ")
    ))
}
