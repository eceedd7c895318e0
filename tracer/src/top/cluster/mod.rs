//! `tracer top --prometheus`: all nodes of a cluster, the oddest first. The figures are asked of a
//! Prometheus ([`api`], [`queries`]), judged against each other ([`nodes`], [`score`]) and told as text
//! ([`text`]) or in the live view ([`live`]).

mod api;
mod columns;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod http;
mod live;
mod nodes;
mod pods;
mod queries;
mod reason;
mod score;
mod text;

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{MissedTickBehavior, interval};

use self::api::Api;
pub use self::columns::NodeColumn;
use self::nodes::{Cluster, Node};
use self::pods::NodePods;
use self::queries::Queries;
use crate::config::{ClusterConfig, OutputFormat, TopConfig};
use crate::output::{Output, Signals};

/// Asks one Prometheus for what the views show.
#[derive(Clone)]
struct Source {
    api: Api,
    queries: Queries,
    range: Duration,
}

impl Source {
    fn new(config: &ClusterConfig) -> Result<Self> {
        Ok(Self {
            api: Api::new(config.access.clone())?,
            queries: Queries::new(config.range, &config.matchers),
            range: config.range,
        })
    }

    async fn cluster(&self) -> Result<Cluster> {
        let answers = self.api.query_all(&self.queries.nodes()).await?;
        Cluster::new(answers, self.range.as_secs_f64()).with_context(|| self.api.base().to_owned())
    }

    async fn pods(&self, node: &str) -> Result<NodePods> {
        let answers = self.api.query_all(&self.queries.pods(node)).await?;
        let mut pods = NodePods::new(node, answers)?;
        let destinations = pods.dead.iter().map(|dead| dead.destination.as_str());
        if let Some(owners) = self.queries.owners(destinations) {
            pods.name_owners(self.api.query_all(&owners).await?);
        }
        Ok(pods)
    }
}

/// The live view where somebody looks, tables where something reads.
pub(super) async fn run(
    config: &ClusterConfig,
    top: &TopConfig,
    output: Output,
    signals: &mut Signals,
) -> Result<()> {
    let source = Source::new(config)?;
    if !top.once && config.output == OutputFormat::Text && super::somebody_looks() {
        drop(output);
        return live::run(config, top.color, &source, signals).await;
    }
    let (result, signalled) = tokio::select! {
        result = print(config, top.once, &source, &output) => (result, false),
        () = signals.recv() => (Ok(()), true),
    };
    let written = output.finish_or_signal(signalled, signals).await;
    result.and(written)
}

/// Prints a table at once, for Prometheus has the past already, and unless `once` goes on.
async fn print(config: &ClusterConfig, once: bool, source: &Source, output: &Output) -> Result<()> {
    let mut ticks = interval(config.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut text = one(config, source).await?;
        if !once && config.output == OutputFormat::Text {
            text.push('\n');
        }
        if !output.write(text).await || once {
            return Ok(());
        }
    }
}

async fn one(config: &ClusterConfig, source: &Source) -> Result<String> {
    let (base, range) = (source.api.base(), source.range);
    let cluster = source.cluster().await?;
    let json = config.output == OutputFormat::Json;
    let Some(name) = &config.node else {
        let rows = sorted(&cluster, config.sort);
        return Ok(if json {
            format!("{}\n", text::nodes_json(base, range, &cluster, &rows))
        } else {
            text::nodes(base, range, &cluster, &rows)
        });
    };
    let node = cluster.nodes.iter().find(|node| node.name == *name);
    if node.is_none() {
        let known: Vec<&str> = cluster
            .nodes
            .iter()
            .take(10)
            .map(|node| node.name.as_str())
            .collect();
        anyhow::bail!(
            "{base} knows no node {name:?}; it knows {} nodes, such as {}",
            cluster.nodes.len(),
            crate::output::printable(&known.join(", "))
        );
    }
    let pods = source.pods(name).await?;
    Ok(if json {
        format!("{}\n", text::pods_json(base, range, node, &pods))
    } else {
        text::pods(base, range, node, &pods)
    })
}

/// In the order of a column; the oddest first among equals.
fn sorted(cluster: &Cluster, sort: NodeColumn) -> Vec<&Node> {
    let mut rows: Vec<&Node> = cluster.nodes.iter().collect();
    rows.sort_by(|a, b| sort.compare(a, b));
    rows
}
