//! `tracer top`: what fails now, a row for each pod. Two snapshots one interval apart make a table
//! ([`table`]); a table makes text ([`text`]) for scripts, or the live view ([`live`]) on a terminal.
//! Where the snapshots come from is a [`Source`].

mod cluster;
mod columns;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod live;
mod source;
mod table;
mod text;

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

pub use cluster::NodeColumn;
pub use columns::{Column, Sort};
use source::Agent;
pub use source::{Source, Stream};
pub use table::{Row, rows};

use crate::client::Client;
use crate::config::{Config, TopConfig};
use crate::export::snapshot::Snapshot;
use crate::output::{Output, Signals};

/// Shows the live view on a terminal, else prints tables, of the agent, or of what `trace` starts in this process where
/// no agent answers at the default address and the user is root.
pub async fn run<S: Source>(
    config: TopConfig,
    trace: impl AsyncFnOnce(&Config) -> anyhow::Result<S>,
) -> anyhow::Result<()> {
    let mut signals = Signals::of_terminal()?;
    let output = Output::stdout()?;
    if let Some(cluster) = &config.cluster {
        return cluster::run(cluster, &config, output, &mut signals).await;
    }
    let client = Client::new(config.agent.clone().unwrap_or_default());
    // Asked for the answer's sake only: the rates need two of the same source.
    let answer = tokio::select! {
        answer = client.get_json::<Snapshot>("/api/v1/snapshot") => answer,
        () = signals.recv() => return Ok(()),
    };
    match answer {
        Ok(_) => show(&config, Agent(client), output, &mut signals).await,
        Err(e) if e.nobody_listens() && config.agent.is_none() => {
            if !rustix::process::geteuid().is_root() {
                return Err(anyhow!(
                    "{e}, or run `tracer top` as root to trace without one"
                ));
            }
            tracing::info!("no agent answers at the default address: tracing in this process");
            let source = trace(&config.trace)
                .await
                .context("cannot trace in this process")?;
            show(&config, source, output, &mut signals).await
        }
        Err(e) => Err(e.into()),
    }
}

/// The live view where somebody looks, tables where something reads.
async fn show(
    config: &TopConfig,
    source: impl Source,
    output: Output,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    if config.once || !somebody_looks() {
        return watch(config, source, output, signals).await;
    }
    drop(output);
    let result = live::run(config, &source, signals).await;
    source.stop().await;
    result
}

/// Is there a terminal that can show the live view?
fn somebody_looks() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    !dumb && std::io::stdout().is_terminal() && std::io::stdin().is_terminal()
}

/// Prints until a signal or a reader that has gone, or once; stops the source in any case.
async fn watch(
    config: &TopConfig,
    mut source: impl Source,
    output: Output,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let (result, signalled) = tokio::select! {
        result = print(config, &mut source, &output) => (result, false),
        () = signals.recv() => (Ok(()), true),
    };
    source.stop().await;
    let written = output.finish_or_signal(signalled, signals).await;
    result.and(written)
}

async fn print(
    config: &TopConfig,
    source: &mut impl Source,
    output: &Output,
) -> anyhow::Result<()> {
    let mut before = source.snapshot().await?;
    let mut taken = Instant::now();
    let mut ticks = interval_at(taken + config.interval, config.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let after = source.snapshot().await?;
        let now = Instant::now();
        let text = one_table(&before, &after, now - taken, config.sort);
        let text = if config.once {
            text
        } else {
            format!("{text}\n")
        };
        if !output.write(text).await || config.once {
            return Ok(());
        }
        (before, taken) = (after, now);
    }
}

/// The text of one table. `interval` is the time that truly went by.
fn one_table(before: &Snapshot, after: &Snapshot, interval: Duration, sort: Column) -> String {
    let total = table::total(before, after, interval);
    let rows = rows(before, after, interval, sort);
    text::text(after, &total, &rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::config::File;

    #[derive(Clone)]
    struct Fake {
        asked: u64,
        stopped: Arc<AtomicBool>,
    }

    impl Source for Fake {
        async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
            self.asked += 1;
            if self.asked > 3 {
                return Err(anyhow!("gone"));
            }
            Ok(Snapshot {
                node: format!("node{}", self.asked),
                ..Snapshot::default()
            })
        }

        async fn stop(self) {
            self.stopped.store(true, Ordering::Relaxed);
        }

        async fn events(&mut self, _since: Duration) -> anyhow::Result<Stream> {
            Err(anyhow!("no events"))
        }

        fn in_process(&self) -> bool {
            true
        }
    }

    async fn watch_fake(args: &[&str]) -> (anyhow::Result<()>, String) {
        let cli = Cli::read(["tracer", "top"].iter().chain(args)).unwrap();
        let Command::Top(args) = cli.command else {
            panic!("not top");
        };
        let config = TopConfig::new(&args, &File::default()).unwrap();
        let stopped = Arc::<AtomicBool>::default();
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = Fake {
            asked: 0,
            stopped: Arc::clone(&stopped),
        };
        let output = Output::to(file.reopen().unwrap()).unwrap();
        let result = watch(&config, source, output, &mut Signals::new().unwrap()).await;
        assert!(stopped.load(Ordering::Relaxed));
        (result, std::fs::read_to_string(file.path()).unwrap())
    }

    #[tokio::test]
    async fn once_is_one_table_after_one_interval() {
        let (result, text) = watch_fake(&["--once", "--interval", "100ms"]).await;
        result.unwrap();
        assert!(text.starts_with("node node2"), "{text}");
        assert!(!text.contains("node3"), "{text}");
    }

    #[tokio::test]
    async fn tables_follow_until_the_source_goes() {
        let (result, text) = watch_fake(&["--interval", "100ms"]).await;
        assert_eq!(result.unwrap_err().to_string(), "gone");
        assert!(text.contains("\n\nnode node3"), "{text}");
    }
}
